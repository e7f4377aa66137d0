"""The bundled shop through the whole line: what `make demo` shows holds for every row of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from lines import line_in, unexplained, why_it_failed

from exports.errors import SettingError
from orchestration import demo as program
from orchestration.settings import from_environment

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY / "data" / "online_retail"
# A statement of the README, and below it the table that it answers with.
ANSWERED = re.compile(r"```sql\n([^`]+)```\n\n((?:\|.*\n)+)")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    line = line_in(tmp_path_factory.mktemp("demo"), data=DATA)
    result = line.run()
    assert result.success, why_it_failed(result)
    return line


def test_every_customer_has_a_full_list_that_is_live(demo):
    assert demo.query(
        "select count(*), count(distinct user_id), max(n_rows), min(n_rows) from ("
        " select user_id, count(*) over (partition by user_id) as n_rows"
        " from serving.current_recommendations)"
    ) == [(20 * 4_372, 4_372, 20, 20)]


def test_the_shares_of_every_row_add_up_to_its_score(demo):
    assert unexplained(demo) == (0, 20 * 4_372)


def test_what_is_served_adds_up_to_all(demo):
    assert demo.value("select sum(share) from marts.degradation") == pytest.approx(1)
    assert demo.value("select count(distinct source) from marts.degradation") > 2


def test_the_questions_of_the_readme_have_the_answers_that_it_shows(demo):
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = readme.split("<!-- questions -->")[1].split("<!-- /questions -->")[0]
    answered = ANSWERED.findall(block)
    assert len(answered) == 4

    for statement, table in answered:
        ask = demo.query if "marts." in statement else demo.snapshot
        rows = [[shown(value) for value in row] for row in ask(statement)]
        expected = [line.strip("| \n").split(" | ") for line in table.splitlines()[2:]]
        assert rows == expected, statement


def shown(value):
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else value


WRONG = [
    ("REDIS_URL", "OFF", "OFF is not a Redis address: expected is redis://host:6379/0, "),
    ("REDIS_URL", "OFF", "; or the word embedded for a server of the line's own, or off for none."),
    ("RECMART_MEMORY_LIMIT", "banana", "banana: expected is a number with a unit, such as 4GB"),
    ("RECMART_MEMORY_LIMIT", "4", "4: expected is a number with a unit, such as 4GB"),
]


@pytest.mark.parametrize(("name", "value", "said"), WRONG)
def test_a_setting_that_cannot_be_used_is_told_before_any_work(
    monkeypatch, capsys, name, value, said
):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["demo"])

    with pytest.raises(SettingError):
        from_environment()
    assert program.main() == 1
    shown = capsys.readouterr().err
    assert shown.startswith(name) and said in shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_URL", "off"),
        ("REDIS_URL", "rediss://me:pa%2Fss@redis.example:6380/1?ssl_ca_certs=/etc/ca.pem"),
        ("REDIS_URL", "unix:///run/redis.sock?db=1"),
        ("RECMART_MEMORY_LIMIT", "50%"),
        ("RECMART_MEMORY_LIMIT", "1.5 GiB"),
    ],
)
def test_what_redis_and_duckdb_understand_can_be_set(monkeypatch, name, value):
    monkeypatch.setenv(name, value)

    assert value in (from_environment().redis_url, from_environment().memory_limit)


def test_a_job_that_is_none_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", "--job", "nosuch"])

    with pytest.raises(SystemExit):
        program.main()

    said = capsys.readouterr().err
    assert "nosuch" in said and "daily_recommendations" in said and "refresh_rec" in said


def test_a_home_without_a_warehouse_is_told_and_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("RECMART_HOME", str(tmp_path / "typo"))

    done = subprocess.run(
        [sys.executable, "-m", "orchestration.rollback"], capture_output=True, text=True
    )

    assert done.returncode == 1
    assert done.stderr.startswith(f"There is no warehouse {tmp_path}/typo/warehouse.duckdb, so")
    assert not (tmp_path / "typo").exists()
