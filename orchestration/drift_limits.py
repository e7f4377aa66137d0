"""Which checks of drift there are, and the limits that a shop sets for them.

Belongs here: the names and words of the checks, reading dbt_project/seeds/drift_limits.csv. Does
not belong here: what is usual and how it is judged (`drift.py`).
"""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

SEED = "drift_limits.csv"
BLOCK, WARN = "block", "warn"


class LimitsError(ValueError):
    """Limits that make no sense; the message names row and column."""


@dataclass(frozen=True)
class Check:
    """A question to each run.

    Attributes:
        name: Of the row of limits, and of the check in Dagster.
        table: The table it is about, with its schema.
        description: What holds when it passes.
        remedy: What to do when it does not.
    """

    name: str
    table: str
    description: str
    remedy: str


INPUT_CHECKS = (
    Check(
        "catalogue_shrank",
        "marts.products",
        "About as many products can be bought as before.",
        "the products file is cut short, holds a part, or says that nothing is in stock: compare "
        "it with the one before, and land it whole",
    ),
    Check(
        "catalogue_text_vanished",
        "marts.products",
        "About as many products as before have a text of their own.",
        "titles and descriptions came empty or all alike: look at staging.stg_products, and land "
        "the products file with its texts",
    ),
    Check(
        "event_type_vanished",
        "intermediate.int_daily_signals",
        "Every event type that is due came.",
        "the export leaves it out or calls it by another name: look at the newest events file, "
        "and land it whole",
    ),
    Check(
        "day_is_missing",
        "intermediate.int_daily_signals",
        "Every day that is due has events.",
        "its file did not arrive, was removed, or was refused: look at raw.landing_files and "
        "staging.rejected_rows, and land it",
    ),
    Check(
        "volume_jumped",
        "intermediate.int_daily_signals",
        "The latest day has about as many events as such a day has.",
        "events came twice, are of a test or of a program, or only a part of them came: compare "
        "the newest events file with the one before, and land the right one",
    ),
    Check(
        "accepted_share_fell",
        "intermediate.int_daily_signals",
        "About as large a share of event rows as before is accepted.",
        "a column changed its format or the catalogue lacks products: count "
        "staging.rejected_rows by reason, and land the file as it was agreed",
    ),
    Check(
        "weights_are_equal",
        "marts.signals",
        "Signals differ in weight.",
        "times or event types came all alike, or dbt_project/seeds/event_weights.csv no longer "
        "tells them apart: look at marts.signals",
    ),
)
LIST_CHECKS = (
    Check(
        "coverage_fell",
        "serving.candidate",
        "About as many users as before are served by models, and products are on lists.",
        "the models know fewer users or products: look at marts.degradation, "
        "marts.row_accounting and the rules of dbt_project/seeds/merchandising_rules.csv",
    ),
    Check(
        "metric_fell",
        "serving.candidate",
        "On the last weeks the lists would have been about as good as before.",
        "settings or data changed: compare ml.offline_metrics with serving.run_metrics and "
        "mend what changed since the last published version",
    ),
)
CHECKS = {check.name: check for check in (*INPUT_CHECKS, *LIST_CHECKS)}


@dataclass(frozen=True)
class Limit:
    """A row of staging.drift_limits; its YAML says what each column means."""

    check_name: str
    severity: str
    lowest: float | None
    highest: float | None
    least_fall: float | None
    most_fall: float | None
    deviations: float | None
    runs: float | None
    min_runs: float | None
    min_rows: float | None


def limits_of_file(path: Path) -> dict[str, Limit]:
    """The limits of the seed drift_limits.csv.

    Raises:
        LimitsError: naming row and column of all that is wrong.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        lacking = [each.name for each in fields(Limit) if each.name not in (lines.fieldnames or ())]
        if lacking:
            raise LimitsError(f"{path.name} has no column {', '.join(lacking)}. Add it.")
        return limits_of(lines, place=path.name)


def limits_of(rows: Iterable[Mapping[str, Any]], *, place: str) -> dict[str, Limit]:
    """Check rows of limits and give them by the name of their check.

    Args:
        rows: Values as text or as what they are; empty text is nothing.
        place: Where they stand, for the message.

    Raises:
        LimitsError: naming row and column of all that is wrong.
    """
    found: dict[str, Limit] = {}
    wrong = []
    for number, row in enumerate(rows, 1):
        limit, problems = _read_row(row)
        if limit.check_name in found:
            problems.append(("check_name", "stands there twice: keep one row"))
        found[limit.check_name] = limit
        name = limit.check_name or "without a name"
        wrong += [f"row {number} ({name}), column {column}: {text}" for column, text in problems]
    wrong += [f"there is no row for {name}" for name in CHECKS if name not in found]
    if wrong:
        raise LimitsError(f"{place}: {'; '.join(wrong)}. Correct dbt_project/seeds/{SEED}.")
    return found


def _read_row(row: Mapping[str, Any]) -> tuple[Limit, list[tuple[str, str]]]:
    """The limits of a row, and what is wrong with it: column and words."""
    texts = {column: str(row[column] or "").strip() for column in ("check_name", "severity")}
    problems = []
    if texts["check_name"] not in CHECKS:
        problems.append(("check_name", f"is no check; choose from {', '.join(CHECKS)}"))
    if texts["severity"] not in (BLOCK, WARN):
        problems.append(("severity", f"is {texts['severity']!r}: expected {BLOCK} or {WARN}"))
    numbers: dict[str, Any] = {}
    for column in _NUMBERS:
        try:
            numbers[column] = _number(row[column])
        except ValueError:
            numbers[column] = None
            problems.append(
                (column, f"is {row[column]!r}: expected a number, such as 0.2, or nothing")
            )
    limit = Limit(texts["check_name"], texts["severity"], **numbers)
    return limit, [*problems, *_contradictions(limit)]


_NUMBERS = [field.name for field in fields(Limit) if field.name not in ("check_name", "severity")]


def _number(value: Any) -> float | None:
    if value is None or not str(value).strip():
        return None
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _contradictions(limit: Limit) -> Iterator[tuple[str, str]]:
    for column, least in (("deviations", 0), ("min_rows", 0), ("runs", 1), ("min_runs", 1)):
        value = getattr(limit, column)
        if value is not None and value < least:
            yield column, f"is {value:g}: expected at least {least}"
        if value is not None and column != "deviations" and value % 1:
            yield column, f"is {value:g}: expected a whole number"
    for column in ("least_fall", "most_fall"):
        value = getattr(limit, column)
        if value is not None and not 0 < value <= 1:
            yield column, f"is {value:g}: expected a share above 0 and at most 1"
    if None not in (limit.lowest, limit.highest) and limit.lowest > limit.highest:  # type: ignore[operator]
        yield "lowest", f"{limit.lowest:g} is above highest, {limit.highest:g}"
    learns = (limit.least_fall, limit.most_fall, limit.deviations)
    if any(value is not None for value in learns):
        for column in ("least_fall", "most_fall", "deviations", "runs", "min_runs"):
            if getattr(limit, column) is None:
                yield column, "is empty, and nothing can be learned without it"
        if None not in learns and limit.least_fall > limit.most_fall:  # type: ignore[operator]
            yield "least_fall", f"{limit.least_fall:g} is above most_fall, {limit.most_fall:g}"
    if None not in (limit.runs, limit.min_runs) and limit.min_runs > limit.runs:  # type: ignore[operator]
        yield "min_runs", f"{limit.min_runs:g} is above runs, {limit.runs:g}"
