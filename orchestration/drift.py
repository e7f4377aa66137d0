"""Is what came today like what came before? What earlier runs allow, and the words for it.

Belongs here: what is usual, what is due, what becomes of a figure. Does not belong here: how it is
counted (`drift_figures.py`), what must hold whatever was before (`gates.py`), whether a model is
good enough (`ml_assets/promotion.py`), the table of earlier runs (`exports/run_history.py`).

Limits are learned from published runs alone, so that a fault that was stopped never becomes usual.
Spread is the median absolute deviation times 1.4826, which is the standard deviation where figures
are normal and takes no notice of a few that are not (Rousseeuw & Croux, "Alternatives to the Median
Absolute Deviation", JASA 1993).
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from statistics import median

from exports.run_history import RunMetric
from orchestration.drift_limits import CHECKS, WARN, Check, Limit
from orchestration.gates import Gate, Rule

# A feed that is behind by more is not late: it is history that somebody loaded.
LIVE_DAYS = 28
# In so many weeks an event type, or any event, has to be there on a weekday to be due on the next.
WEEKS = 4

# How metrics begin that name a type or a day, and the one that says how old the data were.
EVENTS_OF, VANISHED, MISSING, BEHIND = "events of ", "vanished ", "missing ", "hours behind"


@dataclass(frozen=True)
class Figure:
    """What a run sees.

    Attributes:
        check: The name of its check.
        metric: What was counted, in words.
        value: None where there was nothing to count.
        n_rows: Rows it rests on.
        as_of: The day it is about.
        detail: Which ones, for people.
        is_judged: False for what only later runs ask.
    """

    check: str
    metric: str
    value: float | None
    n_rows: float
    as_of: date
    detail: str = ""
    is_judged: bool = True


@dataclass(frozen=True)
class Expected:
    """The range a figure must be in, and why, as words.

    Attributes:
        lowest: None for no bound.
        highest: Likewise.
        why: Where the range is from.
    """

    lowest: float | None
    highest: float | None
    why: str

    def __str__(self) -> str:
        low, high = self.lowest, self.highest
        if low is None and high is None:
            return f"anything ({self.why})"
        if low is None or high is None:
            bound = f"at most {_text(high)}" if low is None else f"at least {_text(low)}"
        else:
            bound = f"{_text(low)} to {_text(high)}"
        return f"{bound} ({self.why})"


def _text(number: float | None) -> str:
    """A number for people: counts in full, shares with four digits."""
    if number is None:
        return "nothing"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def expected(figure: Figure, limit: Limit, past: Sequence[RunMetric]) -> Expected:
    """What the limits and the published runs allow.

    A figure may fall by `deviations` robust standard deviations, but by at least `least_fall` and
    at most `most_fall` of what is usual: near-equal runs are no hair trigger, and unsteady ones do
    not hide a collapse.

    Args:
        figure: What the run sees.
        limit: Of its check.
        past: What published runs saw.
    """
    if figure.value is None or not figure.is_judged:
        return Expected(None, None, "there is nothing to judge")
    if limit.min_rows is not None and figure.n_rows < limit.min_rows:
        rests = f"it rests on {figure.n_rows:.0f} rows, and is judged from {limit.min_rows:.0f} on"
        return Expected(None, None, rests)
    if limit.least_fall is None or limit.most_fall is None or limit.deviations is None:
        return Expected(limit.lowest, limit.highest, "stated in drift_limits")
    values = usual_values(figure, limit, past)
    if len(values) < (limit.min_runs or 1):
        why = (
            f"{len(values)} of {limit.min_runs:.0f} published runs that it takes to learn: only "
            "what drift_limits states counts"
        )
        return Expected(limit.lowest, limit.highest, why)
    usual = median(values)
    if usual <= 0:
        return Expected(limit.lowest, limit.highest, f"{usual:g} is usual")
    spread = 1.4826 * median(abs(value - usual) for value in values)
    room = min(max(limit.deviations * spread / usual, limit.least_fall), limit.most_fall)
    learned = usual * (1 - room)
    why = f"{_text(usual)} is usual, the median of {len(values)} published runs, less {room:.0%}"
    if limit.lowest is not None and limit.lowest > learned:
        return Expected(limit.lowest, limit.highest, "stated in drift_limits")
    return Expected(learned, limit.highest, why)


def usual_values(figure: Figure, limit: Limit, past: Sequence[RunMetric]) -> list[float]:
    """The figure in the latest published runs, one per as_of, oldest first."""
    found = [
        row.value
        for row in since_accepted(past, figure.check)
        if row.metric == figure.metric and row.value is not None
    ]
    return found[-int(limit.runs or 1) :]


def since_accepted(past: Sequence[RunMetric], check: str) -> list[RunMetric]:
    """Rows of a check from the latest run on that somebody let through: it began something new."""
    rows = [row for row in past if row.check_name == check]
    first = max((row.run_number for row in rows if row.accepted), default=0)
    return [row for row in rows if row.run_number >= first]


# --- what is due --------------------------------------------------------------------------------


@dataclass(frozen=True)
class TypeCount:
    """How often an event type came.

    Attributes:
        event_type: Its name.
        n_today: On the latest day that is over.
        n_weeks: Of the `WEEKS` weeks before, those that had it on the same weekday.
        n_usual: Events on these days, in the mean of `WEEKS`.
        n_recent: In the 28 days up to that day.
    """

    event_type: str
    n_today: int
    n_weeks: int
    n_usual: float
    n_recent: int


def vanished_types(
    counts: Sequence[TypeCount], past: Sequence[RunMetric], limit: Limit
) -> list[str]:
    """Event types that are due and did not come, sorted.

    Due on a day is what the same weekday of each of the weeks before had, often enough that chance
    does not explain its absence: of ten expected events none comes once in 20,000 days (Poisson).
    On a day with fewer events than usual fewer of each type are expected. Due at all is what every
    published run had.

    Args:
        counts: One per type.
        past: What published runs saw.
        limit: Of event_type_vanished; min_rows is the least number of events to expect.
    """
    least = limit.min_rows or 1
    n_today = sum(each.n_today for each in counts)
    n_usual = sum(each.n_usual for each in counts)
    gone = set()
    for each in counts:
        others = n_usual - each.n_usual
        share_of_day = min(1.0, n_today / others) if others > 0 else 1.0
        is_due = each.n_weeks == WEEKS and each.n_usual * share_of_day >= least
        if each.n_today == 0 and is_due:
            gone.add(each.event_type)
    rows = since_accepted(past, "event_type_vanished")
    days = sorted({row.as_of for row in rows})[-int(limit.runs or 1) :]
    if len(days) >= (limit.min_runs or 1):
        here = {each.event_type for each in counts if each.n_recent}
        seen: dict[str, list[float]] = {}
        for row in rows:
            if row.metric.startswith(EVENTS_OF) and row.as_of in days and row.value:
                seen.setdefault(row.metric.removeprefix(EVENTS_OF), []).append(row.value)
        gone |= {
            name
            for name, values in seen.items()
            if name not in here and len(values) == len(days) and median(values) >= least
        }
    return sorted(gone)


def hours_behind(as_of: date, now: datetime, past: Sequence[RunMetric]) -> float:
    """Hours from the end of as_of to the run that saw its events first; below 0 on the day itself.

    Args:
        as_of: The day of the run.
        now: Naive UTC.
        past: What published runs saw.
    """
    hours = (now - _end_of(as_of)).total_seconds() / 3600
    former = [row.value for row in _behind(past) if row.as_of == as_of and row.value is not None]
    return min([hours, *former])


def last_day_due(
    as_of: date, *, newest: date, now: datetime, past: Sequence[RunMetric], runs: int
) -> date:
    """The last day of which there should be events.

    Yesterday's are due at the hour at which published runs usually had them.

    Args:
        as_of: The day of the run.
        newest: The day of the latest event of all.
        now: Naive UTC.
        past: What published runs saw.
        runs: Published runs that tell what is usual.
    """
    published = _behind(past)
    if as_of < newest or not published:
        # Somebody asked for a day of the past, or there was no run that could tell.
        return as_of
    due = max(as_of, published[-1].as_of)
    usual = median(row.value or 0 for row in published[-runs:])
    if usual > LIVE_DAYS * 24:
        return due
    # Half an hour: a run that starts a little earlier than usual.
    had_by_now = (now - timedelta(hours=usual - 0.5)).date() - timedelta(days=1)
    return max(due, min(had_by_now, now.date() - timedelta(days=1)))


def _behind(past: Sequence[RunMetric]) -> list[RunMetric]:
    return [row for row in past if row.check_name == "day_is_missing" and row.metric == BEHIND]


def _end_of(day: date) -> datetime:
    return datetime.combine(day + timedelta(days=1), time.min)


def missing_days(
    days: set[date],
    *,
    as_of: date,
    until: date,
    published: date | None = None,
    closed: Collection[date] = (),
) -> list[date]:
    """Days that are due and have no events, from the week before as_of on.

    A weekday is due if it had events in each of the four weeks before that week, so a shop that
    closes on Sundays has none due; and the last day that was published is.

    Args:
        days: With events, up to as_of.
        as_of: The day of the run.
        until: From `last_day_due`.
        published: as_of of the latest run that published.
        closed: Days that are not due, whatever their weekday.
    """
    week = as_of - timedelta(days=6)
    before = Counter(
        day.weekday()
        for day in (week - timedelta(days=n) for n in range(1, 7 * WEEKS + 1))
        if day in days
    )
    return [
        day
        for day in (week + timedelta(days=n) for n in range((until - week).days + 1))
        if day not in days
        and day not in closed
        and (before[day.weekday()] == WEEKS or day == published)
    ]


def known(
    past: Sequence[RunMetric], check: str, prefix: str, *, latest_only: bool = False
) -> set[str]:
    """What a published run lacked already: somebody let that through, and it is not told again."""
    rows = [row for row in past if row.check_name == check]
    first = rows[-1].run_number if rows and latest_only else 0
    return {
        row.metric.removeprefix(prefix)
        for row in rows
        if row.run_number >= first and row.metric.startswith(prefix)
    }


# --- judging ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """A figure with what became of it.

    Attributes:
        figure: What the run saw.
        expected: What the limits and earlier runs allow.
        outcome: Of `RunMetric`.
        accepted: Who let it through, and why.
    """

    figure: Figure
    expected: Expected
    outcome: str
    accepted: str | None = None


def gate_of(name: str, judged: Sequence[tuple[Figure, Expected]]) -> Gate:
    """The figures with the range each must be in, for `gates.judge` and its Data Docs."""
    return Gate(
        name=name,
        relations="",
        rules=tuple(
            Rule(
                name=identifier(figure),
                sql=repr(float(figure.value)),
                description=f"{CHECKS[figure.check].description} Here: {figure.metric}, {range_}.",
                remedy=CHECKS[figure.check].remedy,
                minimum=range_.lowest,
                maximum=range_.highest,
            )
            for figure, range_ in judged
            if figure.value is not None and _is_bounded(range_)
        ),
    )


def identifier(figure: Figure) -> str:
    """The figure's name in the gate."""
    return re.sub(r"\W", "_", f"{figure.check}_by_{figure.metric}")


def _is_bounded(range_: Expected) -> bool:
    return range_.lowest is not None or range_.highest is not None


def outcomes(
    judged: Sequence[tuple[Figure, Expected]],
    passed: Mapping[str, bool],
    limits: Mapping[str, Limit],
    accepted: Mapping[str, str],
    *,
    may_block: bool,
) -> list[Judged]:
    """What becomes of each figure.

    Args:
        judged: Figures with their ranges.
        passed: By `identifier`: whether those with a bound are in range.
        limits: From `limits_of`.
        accepted: By the name of a check: who wants it let through, and why.
        may_block: Whether anything was published before; else there is nothing to keep live, and
            an odd last day of a shop that somebody tries is no reason to show nothing.
    """
    found = []
    for figure, range_ in judged:
        if not figure.is_judged:
            found.append(Judged(figure, range_, "noted"))
        elif identifier(figure) not in passed:
            found.append(Judged(figure, range_, "not judged"))
        elif passed[identifier(figure)]:
            found.append(Judged(figure, range_, "passed"))
        elif accepted.get(figure.check, "").strip():
            found.append(Judged(figure, range_, "accepted", accepted[figure.check].strip()))
        else:
            warns = not may_block or limits[figure.check].severity == WARN
            found.append(Judged(figure, range_, "warned" if warns else "blocked"))
    return found


def told(judged: Judged) -> str:
    """What was seen and what was expected, as a sentence."""
    figure = judged.figure
    value = _text(figure.value)
    detail = f" ({figure.detail})" if figure.detail else ""
    return f"{figure.metric}: saw {value}{detail}, expected {judged.expected}."


def complaint(check: Check, judged: Sequence[Judged], *, op: str) -> str:
    """What a check saw, what it expected and what to do, for the person who has to mend it.

    Args:
        check: The check.
        judged: Its figures that are out of range, at least one.
        op: The step whose run config lets it through.
    """
    text = f"{check.name} on {check.table}: {' '.join(told(each) for each in judged)} "
    outcome = judged[0].outcome
    if outcome == "accepted":
        return f"{text}Let through by {judged[0].accepted}."
    text += f"Probably {check.remedy}."
    if outcome == "blocked":
        text += (
            " The last published version stays live. If the data are right, run with"
            f' ops > {op} > config > accept > {check.name}: "who, and why".'
        )
    return text
