"""Whose lists must be made again, because something they depend on changed.

A list depends on its user's signals, on the models, on which products can be recommended, on the
titles in its reasons and, where the fallback chain filled it, on the popularity of the day. The
last two runs are compared in these, not in time: whoever is not touched keeps their rows as they
are, bit for bit, and would get the same ones if they were made again.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from ml_assets.fallback import CHAIN
from ml_assets.item_item import ItemItemModel
from ml_assets.recommend import Hybrid
from ml_assets.rule_set import hashes_of, mixed
from ml_assets.signal_matrix import SignalMatrix


class Scored(Protocol):
    """What the lists that exist were made from, and whom they are for.

    Questions and not frames, since the answers are few of many millions of rows.
    """

    @property
    def model_hash(self) -> str:
        """See `model_hash`."""

    def users(self) -> pl.DataFrame:
        """user_id, inputs_hash and rules_hash of each user who has a list."""

    def products(self) -> pl.DataFrame:
        """product_id, title and is_available of the whole catalogue."""

    def users_with_filled_places(self, sources: list[str]) -> pl.Series:
        """Users with rows of these sources."""

    def users_with_full_lists(self, top_n: int) -> pl.Series:
        """Users with that many rows or more."""

    def users_who_were_proposed(self, product_ids: pl.Series) -> pl.Series:
        """Users who have one of these products among their candidates or on their list."""

    def users_who_read_of(self, product_ids: pl.Series) -> pl.Series:
        """Users with one of these products in a reason."""


@dataclass(frozen=True)
class Touched:
    """Which users are scored, and why.

    Attributes:
        is_touched: `(n_users,)` bool.
        reasons: How many users for each cause; a user can have several.
    """

    is_touched: np.ndarray
    reasons: dict[str, int]

    def __str__(self) -> str:
        """For the run's log, before anything is scored."""
        n, n_all = int(self.is_touched.sum()), len(self.is_touched)
        why = ", ".join(f"{count:,} {cause}" for cause, count in self.reasons.items() if count)
        return f"will score {n:,} of {n_all:,} users" + (f": {why}" if why else "")


def model_hash(hybrid: Hybrid, product_ids: pl.Series, *, settings: str) -> str:
    """Changes with anything that can change every user's list.

    Args:
        hybrid: The models. Users' own vectors have no part in it: they follow from the signals.
        product_ids: The order of the models' items.
        settings: Whatever else decides, as text.
    """
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    for model, weight in hybrid.models:
        digest.update(repr(weight).encode())
        # Only products the model knows: others can come and go without changing anything.
        known = np.flatnonzero(model.knows_item)
        for product_id in product_ids.gather(known):
            digest.update(product_id.encode() + b"\0")
        arrays: tuple[np.ndarray, ...]
        if isinstance(model, ItemItemModel):
            place = np.cumsum(model.knows_item, dtype=np.int32) - np.int32(1)
            arrays = (
                np.diff(model.follows.indptr)[known],
                place[model.follows.indices],
                model.follows.data,
            )
        else:
            arrays = (model.item_factors[known],)
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def inputs_hashes(matrix: SignalMatrix) -> np.ndarray:
    """`(n_users,)` int64: changes with any signal of the user, whatever else is in the matrix."""
    of_product = hashes_of(matrix.product_ids)
    history = matrix.history
    # The step of splitmix64, so that 0 is not mixed to 0.
    step = np.uint64(0x9E3779B97F4A7C15)
    entry = mixed(of_product[history.indices] + step)
    weight = history.data.astype(np.float32).view(np.uint32).astype(np.uint64)
    entry = mixed((entry ^ weight) + step)
    entry = mixed((entry ^ matrix.kinds.astype(np.uint64)) + step)
    # A sum, so that the order of products does not matter; it wraps around.
    sums = np.concatenate([[np.uint64(0)], np.cumsum(entry, dtype=np.uint64)])
    return (sums[history.indptr[1:]] - sums[history.indptr[:-1]]).view(np.int64)


def everybody(n_users: int, cause: str) -> Touched:
    """All users, for one cause."""
    return Touched(np.ones(n_users, dtype=bool), {cause: n_users})


def touched_users(
    matrix: SignalMatrix,
    hybrid: Hybrid,
    products: pl.DataFrame,
    *,
    hash_of_models: str,
    hashes: np.ndarray,
    hashes_of_rules: np.ndarray,
    top_n: int,
    before: Scored | None,
) -> Touched:
    """Compare with what the lists that exist were made from.

    Args:
        matrix: Today's signals.
        hybrid: Today's models.
        products: PRODUCTS.
        hash_of_models: From `model_hash`.
        hashes: From `inputs_hashes`.
        hashes_of_rules: `(n_users,)` int64, 0 without rules.
        top_n: Rows of a full list.
        before: None when there are no lists yet.
    """
    n_users = len(matrix.user_ids)
    if before is None:
        return everybody(n_users, "have no list yet")
    if before.model_hash != hash_of_models:
        return everybody(n_users, "because models or settings changed")
    users = pl.DataFrame({"user_id": matrix.user_ids})
    known = users.join(before.users(), on="user_id", how="left", maintain_order="left")
    is_new = known["inputs_hash"].is_null().to_numpy()
    has_new_signals, has_new_rules = (
        (known[column].fill_null(0).to_numpy() != now) & ~is_new
        for column, now in (("inputs_hash", hashes), ("rules_hash", hashes_of_rules))
    )

    def among(ids: pl.Series) -> np.ndarray:
        return matrix.user_ids.is_in(ids.implode()).to_numpy()

    is_filled = among(before.users_with_filled_places([link.source for link in CHAIN]))
    # The shop had nothing left for them: a product that comes can fill the place.
    is_short = ~among(before.users_with_full_lists(top_n)) & ~is_new
    renamed, came, went = _changed_products(products, before.products())
    is_reached = _is_reached(matrix, hybrid, came) | among(before.users_who_were_proposed(went))
    is_renamed = among(before.users_who_read_of(renamed))
    causes = {
        "are new": is_new,
        "have other signals": has_new_signals,
        "are under other rules": has_new_rules,
        "have rows of the fallback chain": is_filled,
        "have a short list": is_short,
        "are reached by products that came or went": is_reached,
        "have a reason with a title that changed": is_renamed,
    }
    return Touched(
        np.logical_or.reduce(list(causes.values())),
        {cause: int(mask.sum()) for cause, mask in causes.items()},
    )


def _changed_products(
    now: pl.DataFrame, before: pl.DataFrame
) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Ids of products with another title, that can be recommended now, and that cannot any more."""
    both = now.select("product_id", "title", "is_available").join(
        before, on="product_id", how="full", suffix="_before", coalesce=True
    )
    is_there, was_there = (
        pl.col(column).fill_null(False) for column in ("is_available", "is_available_before")
    )
    return (
        both.filter(pl.col("title").ne_missing(pl.col("title_before")))["product_id"],
        both.filter(is_there & ~was_there)["product_id"],
        both.filter(was_there & ~is_there)["product_id"],
    )


def _is_reached(matrix: SignalMatrix, hybrid: Hybrid, came: pl.Series) -> np.ndarray:
    """`(n_users,)` bool: a model could propose one of these products to the user."""
    places = matrix.product_ids.is_in(came.implode()).to_numpy()
    reached = np.zeros(len(matrix.user_ids), dtype=bool)
    if not places.any():
        return reached
    for model, _ in hybrid.models:
        if isinstance(model, ItemItemModel):
            leads_there = (abs(model.follows) @ places.astype(np.float32)) > 0
            reached |= (matrix.touched @ leads_there.astype(np.float32)) > 0
        elif (places & model.knows_item).any():
            # An inner product is never without an opinion.
            reached |= model.knows_user
    return reached
