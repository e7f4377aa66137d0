"""Who is told when a run fails or recommendations grow old, and what a failure says."""

import json
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import dagster as dg
import pytest
from dagster._core.definitions.run_status_sensor_definition import RunStatusSensorCursor
from lines import line_in

from exports.assets import LIVE_KEY, SERVED_FOR
from orchestration import alerts
from orchestration.alerts import (
    NO_HOOK,
    AlertError,
    alert_on_failure,
    alert_on_old_recommendations,
    complaint_of_age,
    send,
)
from orchestration.dbt_assets import dbt_models, failed_node, project
from orchestration.definitions import build_definitions

NOW = datetime(2024, 5, 6, 12, tzinfo=UTC)


class Hook:
    """A webhook that keeps what it was told, and answers as it is told to.

    With the first of `statuses` a time, with `status` when none is left.
    """

    def __init__(self):
        self.texts, self.statuses, self.status = [], [], 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                hook.texts.append(json.loads(body)["text"])
                self.send_response(hook.statuses.pop(0) if hook.statuses else hook.status)
                self.send_header("Location", "/login")
                self.end_headers()

            def do_GET(self):
                # A page to log in: what follows a redirection reads it.
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/a-secret-token"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.setattr(alerts, "_WAITS_SECONDS", (0.0, 0.0))
    hook = Hook()
    yield hook
    hook.server.shutdown()
    hook.server.server_close()


@pytest.fixture
def failed(tmp_path):
    """A run that failed for want of a landing folder, with the instance that remembers it."""
    settings = line_in(tmp_path).settings
    with dg.DagsterInstance.ephemeral() as instance:
        result = (
            build_definitions(settings)
            .resolve_job_def("daily_recommendations")
            .execute_in_process(instance=instance, raise_on_error=False)
        )
        assert not result.success
        yield settings, instance, result


def failure_context(failed, alert_url):
    settings, instance, result = failed
    (event,) = (event for event in result.all_events if event.is_run_failure)
    return dg.build_run_status_sensor_context(
        "alert_on_failure",
        dagster_event=event,
        dagster_instance=instance,
        dagster_run=instance.get_run_by_id(result.run_id),
        resources={"settings": replace(settings, alert_url=alert_url)},
    ).for_run_failure()


def test_a_failed_run_is_told_with_the_words_of_its_failure(failed, hook):
    assert alert_on_failure(failure_context(failed, hook.url)) is None

    (text,) = hook.texts
    assert text.startswith(f"recmart: daily_recommendations failed, run {failed[2].run_id}.\n")
    assert "landing" in text
    assert text.endswith("Readers keep the version they had.")


def test_without_a_hook_the_sensors_say_so(failed):
    settings, instance, _ = failed

    skipped = alert_on_failure(failure_context(failed, ""))
    old = alert_on_old_recommendations(
        dg.build_sensor_context(instance=instance, resources={"settings": settings})
    )

    assert skipped.skip_message == old.skip_message == NO_HOOK


def test_old_recommendations_are_told_once(tmp_path, hook):
    settings = replace(line_in(tmp_path).settings, alert_url=hook.url)

    def look(instance, cursor=None):
        context = dg.build_sensor_context(
            instance=instance, cursor=cursor, resources={"settings": settings}
        )
        return alert_on_old_recommendations(context).skip_message, context.cursor

    with dg.DagsterInstance.ephemeral() as instance:
        assert look(instance) == ("nothing was published yet", None)
        instance.report_runless_asset_event(dg.AssetMaterialization(LIVE_KEY))
        said, cursor = look(instance)
    assert said.startswith("last published ") and cursor is None
    assert hook.texts == []

    long_ago = NOW - SERVED_FOR - timedelta(hours=4)
    said = complaint_of_age(long_ago, now=NOW, told=None)
    assert said.startswith("recmart: nothing was published for 40 hours, since 2024-05-04 20:00")
    assert complaint_of_age(long_ago, now=NOW, told=NOW - timedelta(hours=2)) is None
    assert complaint_of_age(long_ago, now=NOW, told=NOW - timedelta(hours=25)) == said
    # Told of a former gap: this one is new.
    assert complaint_of_age(long_ago, now=NOW, told=long_ago - timedelta(hours=1)) == said
    assert complaint_of_age(NOW - SERVED_FOR, now=NOW, told=None) is None


@pytest.mark.parametrize(
    ("url", "status", "says"),
    [
        ("ftp://host/a-secret-token", 200, "must begin with http"),
        ("http://127.0.0.1:1/a-secret-token", 200, "nobody answered"),
        ("http://[a-secret-token", 200, "nobody answered"),
        ("https://bot:a-secret-token@hooks.example/services", 200, "nobody answered"),
        (None, 403, "in 3 tries: it answered 403"),
        (None, 302, "it answered 302"),
    ],
)
def test_an_alert_that_cannot_be_sent_is_a_sentence_without_the_url(hook, url, status, says):
    hook.status = status

    with pytest.raises(AlertError, match=says) as raised:
        send(url or hook.url, "text")

    # Dagster writes down what an error came of as well.
    assert raised.value.__cause__ is raised.value.__context__ is None
    assert "a-secret-token" not in str(raised.value)


def test_an_alert_that_is_not_taken_at_once_is_sent_again(hook):
    hook.statuses = [503, 429]

    send(hook.url, "text")

    assert hook.texts == ["text"] * 3


def test_a_run_that_was_started_by_hand_is_told_though_it_is_of_no_code_location(failed, hook):
    settings, instance, result = failed
    context = dg.build_sensor_context(
        instance=instance,
        cursor=RunStatusSensorCursor(record_id=0).to_json(),
        # As the daemon looks; a run in the process of `make demo` is of no repository.
        repository_name="__repository__",
        resources={"settings": replace(settings, alert_url=hook.url)},
    )

    alert_on_failure.evaluate_tick(context)

    assert [text.splitlines()[0] for text in hook.texts] == [
        f"recmart: daily_recommendations failed, run {result.run_id}."
    ]


def test_every_dbt_test_is_a_check_that_says_what_it_is_about():
    nodes = json.loads(project.manifest_path.read_text())["nodes"].values()
    tests = {node["name"] for node in nodes if node["resource_type"] == "test"}

    said = {spec.name: spec.description for spec in dbt_models.check_specs}

    assert said.keys() == tests
    assert all(text and text.endswith(".") for text in said.values())
    assert said["accepted_range_product_pairs_support__1__0"] == (
        "Each support is a number from 0 to 1."
    )


def test_a_failed_dbt_test_names_tables_figure_and_query(tmp_path):
    node = {
        "package_name": "recmart",
        "original_file_path": "models/marts/signals.yml",
        "path": "unique_signals.sql",
        "test_metadata": {"name": "unique", "kwargs": {"column_name": "user_id"}},
        "depends_on": {"nodes": ["model.recmart.signals"]},
    }
    result = {
        "unique_id": "test.recmart.unique_signals.4f",
        "status": "fail",
        "message": "Got 3 results, configured to fail if != 0",
        "failures": 3,
    }

    said = failed_node(result, node, tmp_path)

    assert said == (
        "signals, test unique_signals: 3 rows break it, 0 are expected. No two rows agree in "
        "user_id. To see them run "
        f"{tmp_path}/compiled/recmart/models/marts/signals.yml/unique_signals.sql."
    )
    result.update(unique_id="seed.recmart.rules", message="CSV Error on Line: 6\n" * 30)
    assert len(failed_node(result, node, tmp_path).splitlines()) == 5
    result.update(unique_id="test.recmart.unique_signals.4f")
    result.update(status="error", message="Binder Error: no such column\n")
    assert failed_node(result, node, tmp_path).startswith(
        "test unique_signals: Binder Error: no such column\nMend dbt_project/models/marts/"
    )
