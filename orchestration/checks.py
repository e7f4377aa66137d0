"""The gates as asset checks: a red one stops the run, and the last good version stays live."""

from collections.abc import Iterator

import dagster as dg
import duckdb

from exports import versions
from exports.versions import Version
from ml_assets.assets import RecommenderSettings
from ml_assets.promotion import REFUSED
from ml_assets.warehouse import Warehouse, now
from orchestration.gates import (
    ACCEPTED_EVENTS,
    SIGNALS,
    Gate,
    Verdict,
    judge,
    placements_gate,
    recommendations_gate,
)
from orchestration.settings import Settings

EVENTS_KEY = dg.AssetKey(["staging", "stg_events"])
SIGNALS_KEY = dg.AssetKey(["marts", "signals"])
CANDIDATE_KEY = dg.AssetKey(["serving", "candidate"])


def _specs(gate: Gate, asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(name=rule.name, asset=asset, description=rule.description, blocking=True)
        for rule in gate.rules
    ]


def _results(verdicts: list[Verdict], asset: dg.AssetKey) -> Iterator[dg.AssetCheckResult]:
    for verdict in verdicts:
        rule = verdict.rule
        yield dg.AssetCheckResult(
            check_name=rule.name,
            asset_key=asset,
            passed=verdict.passed,
            description=rule.description if verdict.passed else complaint(verdict, asset),
            metadata={"seen": verdict.value, "expected": _range(verdict)},
        )


def complaint(verdict: Verdict, asset: dg.AssetKey) -> str:
    """Where, what was seen, what was expected and what to look at, as a sentence."""
    rule = verdict.rule
    return (
        f"{'.'.join(asset.path)}, {rule.name}: saw {verdict.value:g}, expected {_range(verdict)}. "
        f"{rule.description} Here it does not hold: {rule.remedy}."
    )


def stop(complaints: list[str], consequence: str) -> None:
    """End the step with the complaints for a reason; Dagster's own names the checks alone."""
    if complaints:
        raise dg.Failure(description="\n".join([*complaints, consequence]), allow_retries=False)


def _range(verdict: Verdict) -> str:
    low, high = verdict.rule.minimum, verdict.rule.maximum
    if low is None:
        return f"at most {high:g}"
    if high is None:
        return f"at least {low:g}"
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


# One op for both tables: the models wait for marts.signals, and so for the events' gate too.
@dg.multi_asset_check(
    name="input_gates",
    specs=[*_specs(ACCEPTED_EVENTS, EVENTS_KEY), *_specs(SIGNALS, SIGNALS_KEY)],
    can_subset=True,
)
def input_gates(
    context: dg.AssetCheckExecutionContext,
    settings: dg.ResourceParam[Settings],
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.AssetCheckResult]:
    """Accepted events and signals, before any model learns from them."""
    # Who builds one layer alone is asked about that one.
    wanted = context.selected_asset_check_keys
    complaints = []
    asked = {
        asset: gate
        for asset, gate in ((EVENTS_KEY, ACCEPTED_EVENTS), (SIGNALS_KEY, SIGNALS))
        if any(key.asset_key == asset for key in wanted)
    }
    with warehouse.connect() as connection:
        judged = judge(connection, *asked.values(), docs_root=settings.home)
    for asset, verdicts in zip(asked, judged, strict=True):
        for result in _results(verdicts, asset):
            if dg.AssetCheckKey(asset, str(result.check_name)) in wanted:
                yield result
                if not result.passed:
                    complaints.append(str(result.description))
    stop(complaints, "No model was trained on it, and the last published version stays live.")


@dg.multi_asset_check(
    name="recommendation_gates",
    specs=[
        *_specs(recommendations_gate("", 1), CANDIDATE_KEY),
        *_specs(placements_gate(""), CANDIDATE_KEY),
        dg.AssetCheckSpec(
            name="promotion",
            asset=CANDIDATE_KEY,
            description="On the last weeks it beats popularity and is not worse than what is live.",
            blocking=True,
        ),
    ],
)
def recommendation_gates(
    context: dg.AssetCheckExecutionContext,
    settings: dg.ResourceParam[Settings],
    warehouse: dg.ResourceParam[Warehouse],
    recommender: RecommenderSettings,
) -> Iterator[dg.AssetCheckResult]:
    """The staged version, before any reader can see it; a red one marks it as rejected."""
    with warehouse.connect() as connection:
        version = versions.staged_version(connection)
        judged = judge(
            connection,
            recommendations_gate(version.version, recommender.top_n),
            placements_gate(version.version),
            docs_root=settings.home,
        )
        verdicts = [verdict for verdicts in judged for verdict in verdicts]
        complaints = [
            complaint(verdict, CANDIDATE_KEY) for verdict in verdicts if not verdict.passed
        ]
        promotion = promotion_result(version)
        if not promotion.passed:
            complaints.append(f"serving.candidate, promotion: {promotion.description}")
        if complaints:
            reject(context, connection, version, " ".join(complaints))
    yield from _results(verdicts, CANDIDATE_KEY)
    yield promotion
    stop(complaints, "The version is rejected; the last published one stays live.")


def promotion_result(version: Version) -> dg.AssetCheckResult:
    """The decision that stands in serving.versions, for the UI."""
    is_refused = version.decision == REFUSED and version.state != "live"
    description = f"{version.decision}: {version.verdict}."
    if is_refused:
        description += (
            " Mend the settings or the data, or publish it all the same: run with"
            ' ops > serving__candidate > config > force: "who, and why".'
        )
    return dg.AssetCheckResult(
        check_name="promotion",
        asset_key=CANDIDATE_KEY,
        passed=not is_refused,
        description=description,
    )


def reject(
    context: dg.AssetCheckExecutionContext,
    connection: duckdb.DuckDBPyConnection,
    version: Version,
    reason: str,
) -> None:
    """Keep a staged version from going live, and say why."""
    # A version that is live already has passed this gate: what changed is the marts around it.
    if version.state == "candidate":
        versions.mark_rejected(
            connection,
            version.version,
            reason=reason,
            run_id=context.run.run_id,
            happened_at=now(),
        )
