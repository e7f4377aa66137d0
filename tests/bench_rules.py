"""What rules cost: lists of candidates under rules and caps, beside sorting the same rows."""

from datetime import date
from functools import partial

import duckdb
import numpy as np
import polars as pl
import scipy.sparse as sp
from bench_measure import Section, in_turn

from ml_assets.fallback import PopularityLists
from ml_assets.frames import SIGNALS
from ml_assets.rule_set import RuleSet
from ml_assets.ruled_lists import RuledLists, apply_rules
from ml_assets.rules import RULES, active_rules, compile_rules, make_relations
from ml_assets.signal_matrix import build_signal_matrix

K, N = 100, 20
RULED, BARE, SORTED = "rules and caps", "no rules", "the same rows sorted in Polars"
DAY = date(2024, 6, 1)
WRITTEN = (
    ("too dear", "exclude", "price > 950 and user.segment = 's1'", None, None),
    ("home market", "require", "user.segment = 's2' and category <> 'c3'", None, None),
    ("own brand", "boost", "brand = 'b1'", 1.2, None),
    ("hero", "pin", "product_id = 'p00000007'", 1.0, None),
    ("share", "quota", "brand = 'b2'", 0.1, None),
    ("categories", "cap", None, None, "category"),
    ("brands", "cap", None, None, "brand"),
)


def sections(*, n_users: int, n_items: int, n_runs: int) -> list[Section]:
    """One section."""
    rng = np.random.default_rng(7)
    # Distinct within a list: a random start and a random stride.
    start, stride = rng.integers(n_items, size=n_users), rng.integers(1, 99, size=n_users)
    proposed = ((start[:, None] + stride[:, None] * np.arange(K)) % n_items).astype(np.int32)
    score = -np.sort(-rng.exponential(size=(n_users, K)), axis=1)
    chain = PopularityLists(
        list_indptr=np.array([0, n_items]),
        items=rng.permutation(n_items).astype(np.int32),
        list_of_user=np.zeros((n_users, 1), dtype=np.int32),
    )
    bought = sp.csr_matrix((n_users, n_items), dtype=np.float32)
    rules = _rules(n_users, n_items)
    ask = partial(_apply, proposed=proposed, score=score, chain=chain, bought=bought)
    few = slice(0, 64)
    apply_rules(
        rules.for_users(np.arange(64)),
        proposed[few],
        score[few],
        PopularityLists(chain.list_indptr, chain.items, chain.list_of_user[few]),
        bought=sp.csr_matrix(bought[few]),
        n=N,
    )
    frame = pl.DataFrame(
        {
            "user": np.repeat(np.arange(n_users, dtype=np.int32), K),
            "item": proposed.ravel(),
            "score": rng.permuted(score, axis=1).ravel(),
        }
    )
    timings = in_turn(
        {
            RULED: partial(ask, rules),
            BARE: partial(ask, None),
            SORTED: partial(frame.sort, "user", "score", "item", descending=[False, True, False]),
        },
        n_runs=n_runs,
    )
    rows = tuple(timing.row(name) for name, timing in timings.items())
    return [
        Section(
            "Rules",
            f"{n_users:,} lists of {K} candidates to {N} rows under {len(WRITTEN)} rules (exclude,"
            " require, boost, pin, quota and two caps) in three groups of users;"
            f" {n_items:,} products, medians of {n_runs}.",
            rows,
            beside=SORTED,
        )
    ]


def _apply(rules: RuleSet | None, **lists) -> RuledLists:
    return apply_rules(rules, n=N, **lists)


def _rules(n_users: int, n_items: int) -> RuleSet:
    with duckdb.connect() as connection:
        connection.execute(
            f"""
            create schema marts;
            create table marts.users as
            select format('u{{:08d}}', i) as user_id, 's' || i % 3 as segment,
                null::date as last_at, null::varchar as attributes
            from range({n_users}) as numbers (i);
            create table marts.products as
            select format('p{{:08d}}', i) as product_id, 'c' || hash(i) % 40 as category,
                'b' || hash(i + 1) % 300 as brand, (hash(i + 2) % 1000)::double as price,
                null::date as added_at, true as is_available, null::double as margin,
                null::varchar as attributes
            from range({n_items}) as numbers (i);
            """
        )
        written = pl.DataFrame([(*row, None, None) for row in WRITTEN], schema=RULES, orient="row")
        users, products = (
            connection.sql(f"select {name}_id from marts.{name}s order by all").pl().to_series()
            for name in ("user", "product")
        )
        rules = compile_rules(
            connection,
            active_rules(written, as_of=DAY),
            matrix=build_signal_matrix(
                pl.DataFrame(schema=SIGNALS), user_ids=users, product_ids=products
            ),
            relations=lambda: make_relations(connection, DAY),
            days_since=lambda: np.empty(0),
            terms=lambda: sp.csr_matrix((n_items, 0)),
            top_n=N,
            seed=7,
        )
    assert rules is not None
    return rules
