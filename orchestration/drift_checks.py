"""Drift as asset checks: a run that is unlike those before it stops before readers see it."""

from collections.abc import Iterator, Sequence
from datetime import datetime

import dagster as dg
import duckdb

from exports import run_history, versions
from exports.run_history import RunMetric
from ml_assets.warehouse import MissingTableError, Warehouse, now, read_table
from orchestration import drift, drift_figures
from orchestration.checks import reject, stop
from orchestration.drift import Figure, Judged
from orchestration.drift_limits import (
    INPUT_CHECKS,
    LIST_CHECKS,
    Check,
    Limit,
    LimitsError,
    limits_of,
)
from orchestration.gates import judge
from orchestration.settings import Settings


def _specs(checks: Sequence[Check]) -> list[dg.AssetCheckSpec]:
    return [
        dg.AssetCheckSpec(
            name=check.name,
            asset=dg.AssetKey(check.table.split(".")),
            description=check.description,
            blocking=True,
        )
        for check in checks
    ]


def _config(checks: Sequence[Check]) -> dict[str, dg.Field]:
    """Of one run only, so that nobody can forget it on."""
    names = {
        check.name: dg.Field(str, is_required=False, description="Who lets it through, and why.")
        for check in checks
    }
    return {
        "accept": dg.Field(
            dg.Shape(names),
            is_required=False,
            description="Checks whose figures are right although they are out of range; kept in "
            "serving.run_metrics. What is usual is learned anew from this run on.",
        )
    }


@dg.multi_asset_check(
    name="drift_of_inputs",
    specs=_specs(INPUT_CHECKS),
    can_subset=True,
    config_schema=_config(INPUT_CHECKS),
)
def drift_of_inputs(
    context: dg.AssetCheckExecutionContext,
    settings: dg.ResourceParam[Settings],
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.AssetCheckResult]:
    """What was loaded against earlier runs, before any model learns from it."""
    happened_at = now()
    with warehouse.connect() as connection:
        limits, past = _limits(connection), drift_figures.past_runs(connection)
        figures = drift_figures.input_figures(
            connection, limits, past, checks=_wanted(context), now=happened_at
        )
        judged = _judge(context, connection, settings, figures, limits, past, happened_at)
    yield from _results(context, INPUT_CHECKS, judged)
    stop(_blocked(context, INPUT_CHECKS, judged), "No model was trained on it.")


@dg.multi_asset_check(
    name="drift_of_lists",
    specs=_specs(LIST_CHECKS),
    can_subset=True,
    config_schema=_config(LIST_CHECKS),
)
def drift_of_lists(
    context: dg.AssetCheckExecutionContext,
    settings: dg.ResourceParam[Settings],
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.AssetCheckResult]:
    """The staged version against earlier ones, before any reader can see it."""
    happened_at = now()
    with warehouse.connect() as connection:
        version = versions.staged_version(connection)
        limits, past = _limits(connection), drift_figures.past_runs(connection)
        figures = drift_figures.list_figures(connection, version.version)
        judged = _judge(context, connection, settings, figures, limits, past, happened_at)
        complaints = _blocked(context, LIST_CHECKS, judged)
        if complaints:
            reject(context, connection, version, " ".join(complaints))
    yield from _results(context, LIST_CHECKS, judged)
    stop(complaints, "No reader saw the lists.")


def _wanted(context: dg.AssetCheckExecutionContext) -> set[str]:
    return {key.name for key in context.selected_asset_check_keys}


def _limits(connection: duckdb.DuckDBPyConnection) -> dict[str, Limit]:
    try:
        rows = read_table(connection, "staging.drift_limits").to_dicts()
        return limits_of(rows, place="staging.drift_limits")
    except (MissingTableError, LimitsError) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


def _judge(
    context: dg.AssetCheckExecutionContext,
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    figures: Sequence[Figure],
    limits: dict[str, Limit],
    past: Sequence[RunMetric],
    happened_at: datetime,
) -> list[Judged]:
    """Judge the figures of the checks that are asked, and record them."""
    op, wanted = context.op_execution_context, _wanted(context)
    ranges = [
        (each, drift.expected(each, limits[each.check], past))
        for each in figures
        if each.check in wanted
    ]
    gate = drift.gate_of(op.op_def.name, [each for each in ranges if each[0].is_judged])
    (verdicts,) = judge(connection, gate, docs_root=settings.home) if gate.rules else ([],)
    judged = drift.outcomes(
        ranges,
        {verdict.rule.name: verdict.passed for verdict in verdicts},
        limits,
        op.op_config.get("accept", {}),
        may_block=bool(past),
    )
    number = run_history.number_of_run(connection, context.run.run_id)
    run_history.record(
        connection,
        [
            RunMetric(
                run_number=number,
                run_id=context.run.run_id,
                happened_at=happened_at,
                as_of=each.figure.as_of,
                version=None,
                check_name=each.figure.check,
                metric=each.figure.metric,
                value=each.figure.value,
                lowest=each.expected.lowest,
                highest=each.expected.highest,
                outcome=each.outcome,
                accepted=each.accepted,
                is_published=False,
            )
            for each in judged
        ],
    )
    return judged


def _complaint(
    context: dg.AssetCheckExecutionContext, check: Check, judged: Sequence[Judged], outcome: str
) -> str:
    """About the check's figures with this outcome; empty if there are none."""
    found = [each for each in judged if each.figure.check == check.name and each.outcome == outcome]
    op = context.op_execution_context.op_def.name
    return drift.complaint(check, found, op=op) if found else ""


def _blocked(
    context: dg.AssetCheckExecutionContext, checks: Sequence[Check], judged: Sequence[Judged]
) -> list[str]:
    texts = [_complaint(context, check, judged, "blocked") for check in checks]
    return [text for text in texts if text]


def _results(
    context: dg.AssetCheckExecutionContext, checks: Sequence[Check], judged: Sequence[Judged]
) -> Iterator[dg.AssetCheckResult]:
    for check in checks:
        if check.name not in _wanted(context):
            continue
        own = [each for each in judged if each.figure.check == check.name]
        told = [drift.told(each) for each in own if each.outcome != "noted"]
        is_blocked = any(each.outcome == "blocked" for each in own)
        texts = [
            text
            for outcome in ("blocked", "warned", "accepted")
            if (text := _complaint(context, check, own, outcome))
        ]
        if not is_blocked:
            for text in texts:
                context.log.warning(text)
        yield dg.AssetCheckResult(
            check_name=check.name,
            asset_key=dg.AssetKey(check.table.split(".")),
            passed=not texts,
            severity=(dg.AssetCheckSeverity.ERROR if is_blocked else dg.AssetCheckSeverity.WARN),
            description=" ".join(texts) or " ".join([check.description, *told]),
            metadata={
                each.figure.metric: "nothing" if each.figure.value is None else each.figure.value
                for each in own
            },
        )
