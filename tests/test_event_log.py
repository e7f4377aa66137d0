"""Dagster's history as `dagster.yaml` sets it up."""

import queue
import shutil
import threading
from pathlib import Path

import dagster as dg
import pytest

from orchestration.event_log import _MOST_OPEN, KeptOpenEventLog
from orchestration.settings import REPOSITORY


@dg.asset
def made(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    context.log.info("a line of the log")
    return dg.MaterializeResult(metadata={"rows": 3})


@dg.asset_check(asset=made)
def has_rows() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(REPOSITORY / "orchestration" / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def _run() -> str:
    with dg.DagsterInstance.get() as instance:
        result = dg.materialize([made, has_rows], instance=instance)
    assert result.success
    return result.run_id


def _events(instance: dg.DagsterInstance, run_id: str) -> list[tuple[str, str | None]]:
    return [
        (event.user_message, event.dagster_event and event.dagster_event.event_type_value)
        for event in instance.all_logs(run_id)
    ]


def test_dagsters_own_class_reads_what_was_written(home: Path) -> None:
    run_id = _run()
    with dg.DagsterInstance.get() as instance:
        assert isinstance(instance.event_log_storage, KeptOpenEventLog)
        ours = _events(instance, run_id)
        is_made = instance.get_latest_materialization_event(dg.AssetKey("made"))
    (home / "dagster.yaml").unlink()
    with dg.DagsterInstance.get() as instance:
        assert not isinstance(instance.event_log_storage, KeptOpenEventLog)
        assert _events(instance, run_id) == ours
        assert instance.get_latest_materialization_event(dg.AssetKey("made")) == is_made
    assert is_made is not None
    assert ("a line of the log", None) in ours
    assert {"ASSET_MATERIALIZATION", "ASSET_CHECK_EVALUATION", "PIPELINE_SUCCESS"} <= {
        kind for _, kind in ours
    }


def test_a_file_that_was_opened_stays_open_and_few_do(home: Path) -> None:
    runs = [_run() for _ in range(3)]
    with dg.DagsterInstance.get() as instance:
        storage = instance.event_log_storage
        assert isinstance(storage, KeptOpenEventLog)
        first = [_events(instance, run_id) for run_id in runs]
        engines = dict(storage._engines)
        assert [_events(instance, run_id) for run_id in runs] == first
        assert {run_id: storage._engines[run_id] for run_id in runs} == {
            run_id: engines[run_id] for run_id in runs
        }
        for number in range(2 * _MOST_OPEN):
            assert instance.all_logs(f"run-{number}") == []
        assert len(storage._engines) == _MOST_OPEN
        assert [_events(instance, run_id) for run_id in runs] == first


def test_who_watches_a_run_sees_every_event_while_it_is_written(home: Path) -> None:
    seen: queue.Queue[str] = queue.Queue()
    with dg.DagsterInstance.get() as writer, dg.DagsterInstance.get() as reader:
        run = writer.create_run_for_job(
            dg.Definitions(assets=[made]).resolve_implicit_global_asset_job_def()
        )
        writer.report_engine_event("first", run)
        reader.watch_event_logs(run.run_id, None, lambda event, _: seen.put(event.message))
        for text in ("second", "last"):
            # The writer keeps its connection, as a run does until its end.
            writer.report_engine_event(text, run)
            while seen.get(timeout=10) != text:
                pass


def test_a_wiped_log_is_empty_and_takes_new_events(home: Path) -> None:
    run_id = _run()
    with dg.DagsterInstance.get() as instance:
        assert instance.all_logs(run_id)
        instance.event_log_storage.wipe()
        assert instance.all_logs(run_id) == []
        assert dg.materialize([made, has_rows], instance=instance).success
    with dg.DagsterInstance.get() as instance:
        record = instance.get_latest_materialization_event(dg.AssetKey("made"))
        assert record is not None
        assert instance.all_logs(record.run_id)


def test_threads_and_a_second_instance_read_while_a_run_writes(home: Path) -> None:
    done = threading.Event()
    seen: list[int] = []
    with dg.DagsterInstance.get() as reader:

        def read() -> None:
            while not done.is_set():
                seen.extend(len(_events(reader, run.run_id)) for run in reader.get_runs())

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            runs = [_run() for _ in range(3)]
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert max(seen) > 0
        for run_id in runs:
            assert "ASSET_MATERIALIZATION" in {kind for _, kind in _events(reader, run_id)}
