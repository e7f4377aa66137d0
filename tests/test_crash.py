"""Killed runs, faults of the machine, readers under switches: few here, many in `make stress`."""

import json
import signal
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace

import dagster as dg
import duckdb
import pytest
from faults import FAULTS, can_mount, disk_full, filled, place_in, small_disk
from kills import children, kill_publishing
from lines import line_in, why_it_failed, write_files
from stress import _page as stress_page
from switching import switch_under_readers

from exports.redis_server import EmbeddedRedis
from ml_assets.warehouse import Warehouse, WarehouseBusyError
from orchestration.gates import Gate, Rule, judge

KILLS = 12


@pytest.fixture(scope="module")
def context():
    return children("faults", "switching")


@pytest.fixture
def place(context, tmp_path):
    with place_in(context, tmp_path) as place:
        yield place


def test_after_kill_9_every_surface_shows_one_whole_version_and_the_next_run_mends_it(
    context, place
):
    tally = kill_publishing(context, place.witness, n_kills=KILLS, seed=20111209, n_users=60)

    assert tally.problems == []
    assert tally.n_survived == tally.n_kills == KILLS
    assert tally.n_mended == tally.n_next > 1
    assert len(tally.kills) > 2


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_leaves_the_last_version_live_and_the_next_run_succeeds(place, fault):
    assert FAULTS[fault](place)


def test_a_full_disk_leaves_the_last_version_live_and_says_so(context, tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("a small disk takes the right to mount; files and versions have tests without")

    said = disk_full(context, tmp_path, lefts=[0, 512 << 10, 2 << 20])

    assert len(said) == 3


def test_readers_get_answers_of_one_version_while_versions_are_switched(context, tmp_path):
    with EmbeddedRedis(tmp_path) as redis_url:
        found = switch_under_readers(
            context,
            tmp_path,
            redis_url,
            n_switches=12,
            seconds_between=0.05,
            per_second=1000,
        )

    assert [(each.n_errors, each.n_mixed) for each in found.asked] == [(0, 0), (0, 0)]
    assert all(each.n > 50 and each.n_versions > 1 for each in found.asked)


def test_a_run_on_a_full_disk_says_to_make_room(tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("a small disk takes the right to mount")
    events = "user_id,product_id,event_type,event_ts\n" + "".join(
        f"user {n},product {n % 7},view,2024-01-01\n" for n in range(20_000)
    )
    with small_disk(tmp_path / "disk", 16) as disk:
        line = line_in(disk, data=tmp_path / "shop")
        write_files(
            line.settings.data, events__a_csv=events, products__a_csv="product_id,title\np,lamp\n"
        )
        with filled(disk, left_bytes=256 << 10):
            said = why_it_failed(line.run(dg.AssetSelection.groups("raw")))
        assert line.run(dg.AssetSelection.groups("raw")).success

    assert "No space left on device" in said
    assert said.endswith(
        "Free disk space there and run again; the last published version stays live."
    )


# --- two runs of the line -----------------------------------------------------------------------


def test_a_second_run_is_refused_before_it_changes_anything(tmp_path):
    line = line_in(tmp_path)

    with line.settings.warehouse.held():
        said = why_it_failed(line.run())

    assert said.startswith("Another run is working on ")
    assert said.endswith("wait for the other to end and run again.")
    assert not line.settings.warehouse.path.exists()


def _hold(warehouse, began):
    with warehouse.held():
        began.set()
        signal.pause()


READ_FOR_A_SECOND = """
import sys, time, duckdb
with duckdb.connect(sys.argv[1], read_only=True):
    print("open", flush=True)
    time.sleep(1)
"""


def test_a_step_waits_for_a_console_that_is_open_and_then_names_its_process(tmp_path):
    path = tmp_path / "the clockwork" / "warehouse.duckdb"
    patient = Warehouse(path, "1GB")
    with patient.connect():
        pass
    reader = subprocess.Popen(
        [sys.executable, "-c", READ_FOR_A_SECOND, path], stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout.readline() == "open\n"

    hasty = replace(patient, patience_seconds=0)
    by_whom = rf"another process \(PID {reader.pid}\)"
    with pytest.raises(WarehouseBusyError, match=by_whom), hasty.connect():
        pass
    with patient.connect() as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    assert reader.wait(60) == 0

    path.write_bytes(b"no database")
    damaged = "not a valid DuckDB database"
    with pytest.raises(duckdb.IOException, match=damaged), patient.connect():
        pass


def test_a_run_that_is_killed_lets_go_of_the_warehouse(context, tmp_path):
    warehouse = line_in(tmp_path).settings.warehouse
    began = context.Event()
    run = context.Process(target=_hold, args=(warehouse, began))
    run.start()
    assert began.wait(60)
    with pytest.raises(WarehouseBusyError), warehouse.held():
        pass

    run.kill()
    run.join()

    with warehouse.held():
        pass


# --- what a killed run leaves half-written ------------------------------------------------------

GATE = Gate(
    name="numbers",
    relations="with numbers as (select 1 as n)",
    rules=(Rule("one", "(select n from numbers)", "One is one.", "arithmetic", minimum=1),),
)


@pytest.mark.parametrize(
    "name",
    [
        "great_expectations.yml",
        "uncommitted/config_variables.yml",
        "checkpoints/numbers.json",
        "expectations/numbers.json",
        "validation_definitions/numbers.json",
    ],
)
def test_gates_judge_again_after_a_run_was_killed_while_they_wrote(tmp_path, monkeypatch, name):
    def judged():
        with duckdb.connect() as connection:
            (verdicts,) = judge(connection, GATE, docs_root=tmp_path)
            return [verdict.value for verdict in verdicts]

    assert judged() == [1]
    path = tmp_path / "gx" / name
    content = path.read_bytes()

    def cut_and_end(*_):
        path.write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("orchestration.gates._expect", cut_and_end)
        with pytest.raises(KeyboardInterrupt):
            judged()

    assert judged() == [1]
    results = list((tmp_path / "gx" / "uncommitted" / "validations").rglob("*.json"))
    assert len(results) == 2
    assert all(json.loads(each.read_text()) for each in results)


def test_the_results_of_old_runs_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestration.gates.RESULTS_KEPT", 2)
    with duckdb.connect() as connection:
        for _ in range(4):
            judge(connection, GATE, docs_root=tmp_path)

    folder = tmp_path / "gx" / "uncommitted"
    kept = {path.parent.name for path in (folder / "validations").rglob("warehouse-*.json")}
    site = folder / "data_docs" / "local_site"
    assert len(kept) == 2
    assert {path.parent.name for path in (site / "validations").rglob("*.html")} == kept
    index = (site / "index.html").read_text()
    assert all(time in index for time in kept) and index.count("/numbers/__none__/") == 2


def test_the_page_names_the_machine_although_no_benchmark_is_installed():
    chosen = Namespace(kills=1, line_kills=0, first_kills=0, seed=1)

    page = stress_page(["## Kills"], ["one was not mended"], chosen, minutes=2)

    assert f"duckdb {duckdb.__version__}" in page and "- one was not mended" in page
    assert page.endswith("## Kills")
