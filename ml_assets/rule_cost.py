"""What each rule costs: lists of a fold made with all rules, and again with all but one.

Lists are made as they are published: what was bought is hidden, rules are applied, places are
filled by the fallback chain. They are judged by everything their users went for in the days after.
Conditions read today's catalogue and users, since no other is known; windows of repeat rules count
to the fold's day.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, partial
from typing import Any

import duckdb
import numpy as np
import polars as pl
import scipy.sparse as sp

from ml_assets.backtest import Learned, Past, chain_for_all
from ml_assets.evaluation import PerUser, accuracy, diversity, find, mean_of_places
from ml_assets.frames import MARGIN_CURVE, RULE_COST
from ml_assets.intervals import Draws, Resampled, draw_users, resample
from ml_assets.recommend import Hybrid, propose
from ml_assets.rule_set import Rule, RulesError, RuleSet, days_between
from ml_assets.ruled_lists import apply_rules
from ml_assets.rules import (
    ALL_RULES,
    compile_rules,
    count_rows,
    in_order,
    make_relations,
    read_rules_in_force,
)
from ml_assets.scoring import NOTHING, Progress
from ml_assets.signal_matrix import SignalMatrix

# Of a margin rule: how many deviations of taste a deviation of margin is worth.
KNOB = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)

# Net of what was returned by the fold's day, as DATED_SIGNALS are.
_LAST_BOUGHT = """
    select user_id, product_id, max(event_on) as last_bought_on
    from intermediate.int_daily_signals
    anti join (
        from intermediate.int_backtest_undone_days where period = 'backtest' and n_left <= 0
    ) as undone using (user_id, product_id, event_type, event_on)
    where event_type = 'purchase' and event_on <= $day
    group by user_id, product_id
"""

# Rules as arrays, for the users of a matrix; None without any rule.
Compile = Callable[[Sequence[Rule], SignalMatrix], RuleSet | None]


@dataclass(frozen=True)
class Prices:
    """What was found.

    Attributes:
        rules: RULE_COST without the counts of today's lists.
        margin: MARGIN_CURVE, no rows where products have no margins that differ.
        skipped: Rules that could not be priced, each with the reason.
    """

    rules: pl.DataFrame
    margin: pl.DataFrame
    skipped: dict[str, str]


_NOTHING = (pl.DataFrame(schema=RULE_COST), pl.DataFrame(schema=MARGIN_CURVE))


def price_warehouse(
    connection: duckdb.DuckDBPyConnection,
    past: Past,
    learned: Learned,
    *,
    signals: pl.DataFrame,
    holdout_from: date,
    as_of: date,
    settings: Mapping[str, Any],
    progress: Progress,
) -> Prices:
    """`price_rules` for the rules in force, with what the ledger counts of today's lists.

    Args:
        connection: The warehouse, for writing temporary tables.
        past: The fold.
        learned: See `backtest.learn`.
        signals: DATED_SIGNALS at the end of `holdout_from`.
        holdout_from: Last day the models see.
        as_of: Last day of the fold.
        settings: As of `price_rules`.
        progress: Likewise.
    """
    try:
        rules = read_rules_in_force(connection)
    except duckdb.CatalogException:
        return Prices(*_NOTHING, {"anything": "no lists were made yet"})
    margins = connection.sql("select product_id, margin from marts.products").pl()
    if not rules and margins["margin"].n_unique() < 2:
        return Prices(*_NOTHING, {"anything": "there are no rules, and no margins to weigh"})
    # Once for all the rules that are tried.
    relations = cache(partial(make_relations, connection, as_of))
    last_on = signals.select("user_id", "product_id", last_on=pl.col("last_at").dt.date())

    @cache
    def last_done() -> pl.DataFrame:
        bought = connection.sql(_LAST_BOUGHT, params={"day": holdout_from}).pl()
        return last_on.join(bought, on=["user_id", "product_id"], how="left")

    def compiled(some: Sequence[Rule], matrix: SignalMatrix) -> RuleSet | None:
        return compile_rules(
            connection,
            some,
            matrix=matrix,
            relations=relations,
            days_since=lambda: days_between(matrix, last_done(), day=holdout_from),
            terms=lambda: past.terms,
            top_n=settings["top_n"],
            seed=settings["seed"],
        )

    margins = past.matrix.product_ids.to_frame().join(
        margins, on="product_id", how="left", maintain_order="left"
    )
    found = price_rules(
        past,
        learned,
        rules,
        compiled=compiled,
        margin=margins["margin"].fill_null(float("nan")).to_numpy(),
        settings=settings,
        progress=progress,
    )
    return replace(found, rules=count_rows(connection, found.rules))


def price_rules(
    past: Past,
    learned: Learned,
    rules: Sequence[Rule],
    *,
    compiled: Compile,
    margin: np.ndarray,
    settings: Mapping[str, Any],
    progress: Progress,
) -> Prices:
    """Measure the lists of a fold with and without each rule, and for turns of the margin knob.

    Args:
        past: The fold.
        learned: See `backtest.learn`.
        rules: Those in force.
        compiled: Turns them into arrays.
        margin: `(n_items,)` float64, NaN where it is not known.
        settings: `candidates`, `top_n`, `block_bytes` and `seed`.
        progress: Told what is being measured.
    """
    lists = _Lists(past, learned.blend.for_users(past.asked), compiled, margin, settings)
    try:
        ruled = lists.figures(rules)
    except RulesError as reason:
        # They are right for today's catalogue; the fold lacks what was added since.
        return Prices(*_NOTHING, {ALL_RULES: str(reason)})
    skipped: dict[str, str] = {}
    rows = []
    for rule in (*rules, None) if rules else ():
        name = rule.rule_id if rule else ALL_RULES
        progress(f"making lists without {name}")
        try:
            without = lists.figures([each for each in rules if rule and each is not rule])
        except RulesError as reason:
            skipped[name] = str(reason)
            continue
        action = rule.action if rule else None
        rows.append({"rule_id": name, "action": action, **_beside(ruled, without)})
    return Prices(
        rules=pl.DataFrame(rows, schema_overrides=RULE_COST).match_to_schema(
            RULE_COST, missing_columns="insert"
        )
        if rows
        else pl.DataFrame(schema=RULE_COST),
        margin=_margin_curve(lists, rules, progress, skipped),
        skipped=skipped,
    )


def _beside(ruled: Resampled, without: Resampled) -> dict[str, float | int | None]:
    difference = ruled.minus(without)
    low, high = difference.interval()
    row: dict[str, float | int | None] = {"n_users_asked": int(ruled.n_users[0])}
    for i, name in enumerate(each.split("@")[0] for each in ruled.names):
        row[f"{name}_with"], row[f"{name}_without"] = ruled.value[i], without.value[i]
        row[f"{name}_difference"] = difference.value[i]
        row[f"{name}_low"], row[f"{name}_high"] = low[i], high[i]
    return {key: None if value != value else value for key, value in row.items()}


def _margin_curve(
    lists: "_Lists", rules: Sequence[Rule], progress: Progress, skipped: dict[str, str]
) -> pl.DataFrame:
    others = [rule for rule in rules if rule.action != "margin"]
    rows = []
    for weight in KNOB if lists.has_margins else ():
        progress(f"weighing margins by {weight}")
        knob = [Rule("(knob)", "margin", None, weight, None)] if weight else []
        try:
            found = lists.figures(in_order([*others, *knob]))
        except RulesError as reason:
            skipped[f"margins weighed by {weight}"] = str(reason)
            continue
        low, high = found.interval()
        row: dict[str, float] = {"weight": weight, "n_users": int(found.n_users[0])}
        for i, name in enumerate(each.split("@")[0] for each in found.names):
            row |= {name: found.value[i], f"{name}_low": low[i], f"{name}_high": high[i]}
        rows.append(row)
    if not rows:
        return pl.DataFrame(schema=MARGIN_CURVE)
    return pl.DataFrame(rows).match_to_schema(
        MARGIN_CURVE, missing_columns="insert", extra_columns="ignore"
    )


class _Lists:
    """Lists of the users of the fold who have a past, by any rules."""

    def __init__(
        self,
        past: Past,
        hybrid: Hybrid,
        compiled: Compile,
        margin: np.ndarray,
        settings: Mapping[str, Any],
    ) -> None:
        self._past, self._hybrid = past, hybrid
        self._compiled, self._settings = compiled, settings
        known = np.flatnonzero(past.questions.is_known)
        self._matrix = past.questions.matrix.for_users(known)
        self._relevant = sp.csr_matrix(past.questions.relevant[known])
        chain = chain_for_all(past.questions, past.popularity)
        self._chain = replace(chain, list_of_user=chain.list_of_user[known])
        self._draws: Draws = draw_users(np.arange(len(known)), seed=settings["seed"])
        known_margins = margin[past.eligible & np.isfinite(margin)]
        self.has_margins = len(known_margins) > 0 and bool(known_margins.std() > 0)
        # What is not known is taken for the mean, and helps and hurts nobody.
        fallback = known_margins.mean() if self.has_margins else 0.0
        self._margin = np.where(np.isfinite(margin), margin, fallback)

    def figures(self, rules: Sequence[Rule]) -> Resampled:
        """Of lists by these rules: accuracy, likeness of what is shown, and what it earns.

        Raises:
            RulesError: if the rules make no sense for this fold.
        """
        compiled = self._compiled(rules, self._matrix)
        bought, n = self._matrix.bought, self._settings["top_n"]
        proposed = propose(
            self._hybrid,
            k=self._settings["candidates"],
            exclude=bought if compiled is None else compiled.hidden,
            eligible=self._past.eligible,
            block_bytes=self._settings["block_bytes"],
            progress=lambda _: None,
        )
        best = apply_rules(
            compiled, proposed.items, proposed.score, self._chain, bought=bought, n=n
        ).items
        return resample(self._judged(best, n), self._draws)[0]

    def _judged(self, best: np.ndarray, n: int) -> list[PerUser]:
        found = find(best, self._relevant)
        accurate = accuracy(found, self._relevant, cutoffs=(n,))
        columns = [accurate.names.index(f"{name}@{n}") for name in ("ndcg", "recall")]
        figures = [PerUser(tuple(accurate.names[i] for i in columns), accurate.values[:, columns])]
        nothing = np.full((len(best), 1), np.nan)
        if self._past.terms is not None:
            figures.append(diversity(best, self._past.terms, cutoffs=(n,)))
        else:
            figures.append(PerUser((f"diversity@{n}",), nothing))
        if self.has_margins:
            earned = np.where(found != NOTHING, self._margin[np.maximum(best, 0)], 0.0).sum(axis=1)
            figures += [
                mean_of_places("margin", best, self._margin, cutoffs=(n,)),
                PerUser((f"margin_of_hits@{n}",), earned[:, None]),
            ]
        else:
            figures += [PerUser((f"{name}@{n}",), nothing) for name in ("margin", "margin_of_hits")]
        names = tuple(name for each in figures for name in each.names)
        return [PerUser(names, np.hstack([each.values for each in figures]))]
