"""Small shops, written out or drawn, in the shapes the marts have."""

from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp

from ml_assets.content import product_vectors, text_neighbours, tfidf
from ml_assets.frames import POPULARITY, PRODUCTS, SIGNALS, USERS
from ml_assets.item_item import ItemItemModel
from ml_assets.model_tables import NEIGHBOURS, factor_frame, neighbour_frame
from ml_assets.models import fit_model
from ml_assets.signal_matrix import SignalMatrix

SETTINGS = {
    "cf_model": "als",
    "neighbours": 20,
    "user_power": 0.9,
    "source_power": 0.4,
    "target_power": 0.4,
    "shrinkage": 5.0,
    "history_cap": 0,
    "filter_user_power": 0.1,
    "filter_item_power": 0.45,
    "filter_source_power": 0.1,
    "filter_target_power": 0.3,
    "filter_degree": 4,
    "filter_gamma": 0.05,
    "low_pass_factors": 6,
    "low_pass_weight": 0.3,
    "sharpening": 0.5,
    "sharpening_steps": 2,
    "knn_weighting": "cosine",
    "walk_power": 0.8,
    "walk_popularity_power": 0.4,
    "ease_regularization": 3.0,
    "ensemble": {"item_item": 0.6, "gf_cf": 0.4},
    "bpr_learning_rate": 0.05,
    "bpr_regularization": 0.01,
    "bpr_iterations": 50,
    "memory_megabytes": 100,
    "factors": 8,
    "regularization": 0.1,
    "regularization_power": 0.0,
    "alpha": 10.0,
    "iterations": 15,
    "content_neighbours": 20,
    "content_dimensions": 16,
    "w_cf": 0.7,
    "w_content": 0.3,
    "top_n": 4,
    "candidates": 6,
    "users_per_part": 5,
    "evaluated_users": 1000,
    "block_bytes": 1 << 20,
    "seed": 0,
}


def quiet(_message: str) -> None:
    """Progress nobody listens to."""


def signals_of(pairs: list[tuple[str, str]], *, weight: float = 1.0, bought: bool = True):
    """SIGNALS: each pair once, all alike."""
    return pl.DataFrame(
        {
            "user_id": [user for user, _ in pairs],
            "product_id": [product for _, product in pairs],
            "weight": weight,
            "relative_weight": weight,
            "n_carts": 0,
            "n_purchases": int(bought),
            "is_only_rated": False,
            "is_training": True,
        },
        schema_overrides=SIGNALS,
    )


def products_of(titles: dict[str, str | None], *, gone: frozenset[str] = frozenset()):
    """PRODUCTS: id to title; those in `gone` are not available."""
    return pl.DataFrame(
        {
            "product_id": list(titles),
            "title": list(titles.values()),
            "text": list(titles.values()),
            "added_at": None,
            "is_available": [product not in gone for product in titles],
        },
        schema_overrides=PRODUCTS,
    )


def users_of(segments: dict[str, str | None], *, category: str | None = None):
    """USERS: id to segment, all with the same favourite category."""
    return pl.DataFrame(
        {
            "user_id": list(segments),
            "segment": list(segments.values()),
            "favourite_category": category,
        },
        schema_overrides=USERS,
    )


def popularity_of(**lists: list[str]):
    """POPULARITY: `popular=`, `last_28_days=`, `trending=` are global; others `type__segment=`."""
    names = {
        "popular": ("global", "all", "all_time"),
        "last_28_days": ("global", "all", "last_28_days"),
        "trending": ("global", "all", "trending"),
    }
    rows = []
    for name, products in lists.items():
        if name in names:
            key = names[name]
        else:
            kind, segment = name.split("__")
            key = (kind, segment, "last_28_days")
        rows += [(*key, rank, product) for rank, product in enumerate(products, 1)]
    return pl.DataFrame(
        rows,
        schema=POPULARITY,
        orient="row",
    )


def checkerboard(n: int) -> list[tuple[str, str]]:
    """Users like products of their own parity, all but the one with their own number.

    After implicit's own tests: the right answer for user i is product i.
    """
    return [
        (f"{user:03}", f"{product:03}")
        for user in range(n)
        for product in range(n)
        if user % 2 == product % 2 and user != product
    ]


def random_csr_pattern(rng: np.random.Generator, shape: tuple[int, int], share: float):
    """A 0/1 matrix with about this share of ones."""
    return sp.csr_matrix((rng.random(shape) < share).astype(np.float32))


def model_tables_of(
    matrix: SignalMatrix, products: pl.DataFrame, settings: dict[str, Any]
) -> dict[str, pl.DataFrame]:
    """The four tables of models that `hybrid_of` reads, learned from the signals."""
    texts = products.sort("product_id")["text"]
    terms = tfidf(texts)
    alike = text_neighbours(terms, k=settings["content_neighbours"])
    model = fit_model(settings["cf_model"], matrix, settings=settings, seed=0)
    ids, nothing = matrix.product_ids, np.zeros((len(texts), 1), np.float32)
    factors, vectors, neighbours = nothing, nothing, pl.DataFrame(schema=NEIGHBOURS)
    if isinstance(model, ItemItemModel):
        neighbours = neighbour_frame(ids, model.follows, model.knows_item)
    else:
        factors = model.item_factors
        vectors = product_vectors(texts, dimensions=settings["content_dimensions"], seed=0)
    return {
        "item_factors": factor_frame(ids, "product_id", factors, "factors"),
        "item_neighbours": neighbours,
        "vectors": factor_frame(ids, "product_id", vectors, "vector"),
        "content_neighbours": neighbour_frame(ids, alike, np.diff(terms.indptr) > 0),
    }
