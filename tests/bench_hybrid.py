"""What a second model costs: the blend of two in one pass, beside each alone and beside merging.

Merging is what is done where models cannot be blended while they score: each gives a longer list,
and the lists are joined. A product that only one of them lists then counts as average for the
other, so merged lists are not the same; the share that is tells how far off they are.
"""

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp
from bench_data import signals_of_matrix, topic_texts, trained_factors
from bench_factors import BLOCK_BYTES, K
from bench_item_item import line_settings
from bench_measure import Section, in_turn

from ml_assets.content import product_vectors, text_neighbours, tfidf
from ml_assets.item_item import NOTHING
from ml_assets.models import (
    FactorModel,
    content_by_history,
    fit_item_item,
    rows_with_values,
    user_profiles,
)
from ml_assets.recommend import Hybrid, Lists, propose
from ml_assets.signal_matrix import SignalMatrix

HYBRID, CF, CONTENT = "hybrid in one pass", "collaborative alone", "content alone"
MERGED = "both alone, merged in Polars"
# Rows of each model's list that are merged into K.
LONGER = 100


def sections(
    folder: Path, *, n_users: int, n_asked: int, n_items: int, n_entries: int, n_runs: int
) -> list[Section]:
    """Both families of models."""
    factors = trained_factors(
        folder, n_users=n_users, n_items=n_items, n_entries=n_entries, n_factors=128
    )
    matrix = signals_of_matrix(factors.history)
    asked, size = np.arange(n_asked), f"{n_asked:,} users x {n_items:,} products"
    return [
        _section(
            "Hybrid and rules, item-item models",
            f"{size}; 200 neighbours by users and 50 by text.",
            _item_item_models(matrix).for_users(asked),
            sp.csr_matrix(factors.history[asked]),
            n_runs=n_runs,
        ),
        _section(
            "Hybrid and rules, factor models",
            f"{size}; 128 ALS factors and 64 dimensions of text.",
            _factor_models(matrix, factors.users, factors.items).for_users(asked),
            sp.csr_matrix(factors.history[asked]),
            n_runs=n_runs,
        ),
    ]


def _factor_models(matrix: SignalMatrix, users: np.ndarray, items: np.ndarray) -> Hybrid:
    vectors = product_vectors(topic_texts(len(items), seed=7), dimensions=64, seed=7)
    return Hybrid(
        cf=FactorModel(users, items, rows_with_values(users), rows_with_values(items)),
        content=user_profiles(matrix, vectors),
        w_cf=0.7,
        w_content=0.3,
    )


def _item_item_models(matrix: SignalMatrix) -> Hybrid:
    settings = line_settings(neighbours=200)
    texts = topic_texts(len(matrix.product_ids), seed=7)
    return Hybrid(
        cf=fit_item_item(matrix, settings=settings, seed=0),
        content=content_by_history(matrix, text_neighbours(tfidf(texts), k=50)),
        w_cf=0.7,
        w_content=0.3,
    )


def _section(
    title: str, text: str, hybrid: Hybrid, exclude: sp.csr_matrix, *, n_runs: int
) -> Section:
    # One product in twenty is sold out.
    eligible = np.arange(exclude.shape[1]) % 20 > 0
    ask = partial(best_of, exclude=exclude, eligible=eligible)
    best_of(hybrid.for_users(np.arange(64)), exclude=exclude[:64], eligible=eligible)
    cf, content = each_alone(hybrid)
    timings = in_turn(
        {
            HYBRID: partial(ask, hybrid),
            CF: partial(ask, cf),
            CONTENT: partial(ask, content),
            MERGED: lambda: merged(hybrid, ask(cf, k=LONGER), ask(content, k=LONGER)),
        },
        n_runs=n_runs,
    )
    same = _share_of_pairs(timings[MERGED].result, timings[HYBRID].result)
    rows = tuple(timing.row(name) for name, timing in timings.items())
    text += (
        f" What a user has and a twentieth of the products are left out. Top {K}, medians of"
        f" {n_runs}; merged from {LONGER} of each model, {same:.1%} of the rows are those of the"
        " hybrid."
    )
    return Section(title, text, rows, beside=CF)


def each_alone(hybrid: Hybrid) -> tuple[Hybrid, Hybrid]:
    """Its collaborative and its content model, each as if there were no other."""
    return (
        Hybrid(cf=hybrid.cf, content=None, w_cf=1.0, w_content=0.0),
        Hybrid(cf=None, content=hybrid.content, w_cf=0.0, w_content=1.0),
    )


def best_of(hybrid: Hybrid, *, exclude: sp.csr_matrix, eligible: np.ndarray, k: int = K) -> Lists:
    """The k best products of every user."""
    return propose(
        hybrid,
        k=k,
        exclude=exclude,
        eligible=eligible,
        block_bytes=BLOCK_BYTES,
        progress=lambda _: None,
    )


def merged(hybrid: Hybrid, cf: Lists, content: Lists) -> pl.DataFrame:
    """The K best of each user by the weighted sum of what the two lists say."""
    both = _frame(cf, "cf").join(
        _frame(content, "content"), on=["user", "item"], how="full", coalesce=True
    )
    score = hybrid.w_cf * pl.col("cf").fill_null(0) + hybrid.w_content * pl.col(
        "content"
    ).fill_null(0)
    return (
        both.with_columns(score=score)
        .sort("user", "score", "item", descending=[False, True, False])
        .group_by("user", maintain_order=True)
        .head(K)
    )


def _frame(lists: Lists, name: str) -> pl.DataFrame:
    user, place = np.nonzero(lists.items != NOTHING)
    return pl.DataFrame(
        {
            "user": user.astype(np.int32),
            "item": lists.items[user, place],
            name: lists.score[user, place],
        }
    )


def _share_of_pairs(merged: pl.DataFrame, lists: Lists) -> float:
    exact = _frame(lists, "score")
    return len(exact.join(merged, on=["user", "item"], how="semi")) / max(1, len(exact))
