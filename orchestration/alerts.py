"""Telling people: a run failed, or what is served has grown old.

Belongs here: when an alert is sent, what it says, how it is sent. Does not belong here: the words
of a failure (`failures.py`).

An alert is a POST of `{"text": ...}` to RECMART_ALERT_URL, which is what the incoming webhooks of
Slack, Mattermost, Rocket.Chat and Google Chat take; docs/alerts.md has the rest. Without that URL
the sensors do nothing but say so.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta

import dagster as dg

from exports.assets import LIVE_KEY, SERVED_FOR
from orchestration.failures import sentences
from orchestration.settings import Settings

_TIMEOUT_SECONDS = 10.0
# Before each further try. Dagster shows a failed run to its sensor once, and waits a minute for it.
_WAITS_SECONDS = (2.0, 8.0)
NO_HOOK = "RECMART_ALERT_URL is not set, so nobody is told"


class AlertError(Exception):
    """An alert could not be sent, though it was tried several times."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A POST that is redirected becomes a GET of some page, which answers well and tells nobody."""

    def redirect_request(self, *_: object) -> None:
        """Nowhere: the answer stays the redirection."""


def send(url: str, text: str) -> None:
    """Post a text to a webhook, and try again twice where it does not take it.

    Args:
        url: Where to; it may hold a token and is never shown.
        text: What to say, plain.

    Raises:
        AlertError: if the URL makes no sense, nobody answers, or the answer is no 2xx.
    """
    if not url.startswith(("http://", "https://")):
        raise AlertError("RECMART_ALERT_URL must begin with http:// or https://.")
    for wait in _WAITS_SECONDS:
        if _refusal(url, text) is None:
            return
        time.sleep(wait)
    reason = _refusal(url, text)
    if reason is not None:
        raise AlertError(
            f"The webhook of RECMART_ALERT_URL did not take an alert in {1 + len(_WAITS_SECONDS)} "
            f"tries: {reason}. Correct the URL, or mend what listens there. What failed stands "
            "under Runs in the Dagster UI."
        )


def _refusal(url: str, text: str) -> str | None:
    """Why the webhook does not take a text; None where it does."""
    try:
        request = urllib.request.Request(
            url,
            data=json.dumps({"text": text}).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(request, timeout=_TIMEOUT_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"it answered {error.code} {error.reason}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        # Neither the URL nor what urllib says of it: both can hold the token.
        return f"nobody answered as a web server does ({type(error).__name__})"


@dg.run_failure_sensor(
    name="alert_on_failure",
    default_status=dg.DefaultSensorStatus.RUNNING,
    # Runs of `make demo` and `dagster job execute` do not say from which code location they are.
    monitor_all_code_locations=True,
    description="Tells the webhook of RECMART_ALERT_URL of each run that failed, and why.",
)
def alert_on_failure(
    context: dg.RunFailureSensorContext, settings: dg.ResourceParam[Settings]
) -> dg.SkipReason | None:
    """One alert per failed run, with the words of each failed step."""
    if not settings.alert_url:
        return dg.SkipReason(NO_HOOK)
    run = context.dagster_run
    records = context.instance.get_records_for_run(run.run_id).records
    events = [
        record.event_log_entry.dagster_event
        for record in records
        if record.event_log_entry.dagster_event is not None
    ]
    lines = sentences(events) or [context.failure_event.message or "no reason is known"]
    send(
        settings.alert_url,
        "\n".join(
            [
                f"recmart: {run.job_name} failed, run {run.run_id}.",
                *lines,
                "Readers keep the version they had.",
            ]
        ),
    )
    return None


@dg.sensor(
    name="alert_on_old_recommendations",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=600,
    description="Tells the webhook of RECMART_ALERT_URL once a day that nothing was published for"
    f" {SERVED_FOR.total_seconds() / 3600:.0f} hours.",
)
def alert_on_old_recommendations(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]
) -> dg.SkipReason:
    """Look at when a version was last published or found unchanged."""
    if not settings.alert_url:
        return dg.SkipReason(NO_HOOK)
    event = context.instance.get_latest_materialization_event(LIVE_KEY)
    if event is None:
        return dg.SkipReason("nothing was published yet")
    published = datetime.fromtimestamp(event.timestamp, UTC)
    told = datetime.fromisoformat(context.cursor) if context.cursor else None
    now = datetime.now(UTC)
    text = complaint_of_age(published, now=now, told=told)
    if text is None:
        return dg.SkipReason(f"last published {published:%Y-%m-%d %H:%M} UTC")
    send(settings.alert_url, text)
    context.update_cursor(now.isoformat())
    return dg.SkipReason(text)


def complaint_of_age(published: datetime, *, now: datetime, told: datetime | None) -> str | None:
    """What to say of recommendations of that age; None where nothing is to be said now.

    Args:
        published: When a version was last published, or found to be unchanged.
        now: Now.
        told: When it was last said; it is said once a day.
    """
    age = now - published
    is_told = told is not None and told > published and now - told < timedelta(days=1)
    if age <= SERVED_FOR or is_told:
        return None
    return (
        f"recmart: nothing was published for {age.total_seconds() / 3600:.0f} hours, since "
        f"{published:%Y-%m-%d %H:%M} UTC; {SERVED_FOR.total_seconds() / 3600:.0f} are expected at "
        "most. Readers still get that version. Look under Runs in the Dagster UI for what failed "
        "last, or turn the schedule nightly on."
    )
