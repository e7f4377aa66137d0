"""What the parts of the generator share: the shop, its event types and its kinds of dirt."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import polars as pl

EVENT_TYPES = (
    "impression",
    "view",
    "click",
    "add_to_cart",
    "purchase",
    "remove_from_cart",
    "rating",
    "return",
)
DIRT_KINDS = {
    "exact_duplicates": "a row once more, equal in every value",
    "near_duplicates": "a row once more, a second later, with its own event_id",
    "bots": "a few users with thousands of views a day",
    "bad_types": "text in event_ts, price, quantity or rating",
    "unknown_products": "a product_id that is not in the catalogue",
    "blank_ids": "an empty or blank user_id or product_id",
    "future_dates": "event_ts in the years 2090 to 2099",
    "late_files": "rows delivered in a file after the next month's file",
    "malformed_lines": "lines with too few or too many fields (share of CSV rows; CSV only)",
    "damaged_titles": "product titles with stray blanks or wrong case (share of products)",
    "unknown_event_types": "event types outside the contract; stops the pipeline, ask by name",
}
IMPRESSION, VIEW, CLICK, CART, PURCHASE, REMOVAL, RATING, RETURN = range(len(EVENT_TYPES))
MINUTE, HOUR, DAY = 60, 3_600, 86_400
# A time and a day that no shop reaches.
NEVER, NO_DAY = 2**62, 10**6
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
# Times in seconds from the start of the shop; numbers from 1, user a position from 0.
EVENT_SCHEMA = pl.Schema(
    {
        "at": pl.Int64,
        "user": pl.Int32,
        "product": pl.Int32,
        "event_type": pl.UInt8,
        "rating": pl.UInt8,
        "quantity": pl.Int16,
        "price": pl.Float64,
        "session": pl.Int64,
        "order": pl.Int64,
        "is_bot": pl.Boolean,
    }
)
# Kinds that add rows; the others change rows that are there.
ADDING_KINDS = ("exact_duplicates", "near_duplicates", "malformed_lines")
CODES = {kind: code for code, kind in enumerate(DIRT_KINDS, start=1)}


class ShopSettingsError(ValueError):
    """A setting of the shop is wrong; the message is a sentence that says what to do."""


@dataclass(frozen=True)
class Products:
    """The catalogue, ordered by topic, then by the day it was added; days count from the start."""

    number: Ints
    topic: Ints
    added_day: Ints
    until_day: Ints
    popularity: Floats
    quality: Floats
    price: Floats
    topic_begin: Ints


@dataclass(frozen=True)
class Users:
    """The users, ordered by the day they joined; days count from the start of the shop."""

    joined_day: Ints
    activity: Floats
    topics: Ints
    topic_shares: Floats
    country: Ints
    is_bot: Bools


@dataclass(frozen=True)
class Window:
    """A stretch of hours that is generated at once and becomes a file; hours from the start.

    `shares` are those of the kinds of dirt that rows of this file can have, bots aside.
    """

    label: str
    first_hour: int
    end_hour: int
    file_format: str
    late_format: str
    shares: Mapping[str, float]

    @property
    def added_share(self) -> float:
        """Share of rows that are there besides the shop's events."""
        return sum(self.shares.get(kind, 0.0) for kind in ADDING_KINDS)


@dataclass(frozen=True)
class Shop:
    """Everything that is drawn before the first event; product_ids go on after the catalogue."""

    start: date
    n_days: int
    user_ids: pl.Series
    product_ids: pl.Series
    products: Products
    users: Users
    hour_weights: Floats
    topic_phase: Floats
    bot_days: pl.DataFrame

    @property
    def end_at(self) -> int:
        """Seconds from the start after which nothing happens; leaves room for near duplicates."""
        return self.n_days * DAY - 2

    @property
    def n_bot_views(self) -> int:
        """Views by all bots together."""
        return int(self.bot_days["n_views"].sum())


def padded(column: str, *, width: int) -> pl.Expr:
    """A number with leading zeros."""
    # zfill takes four times as long.
    return (pl.col(column) + 10**width).cast(pl.String).str.slice(1)


def ids(prefix: str, n: int, *, n_more: int = 0) -> pl.Series:
    """The ids of 1 to n, at least six digits wide, and of as many more numbers as asked for."""
    numbers = pl.DataFrame({"number": np.arange(1, n + n_more + 1)})
    width = max(6, len(str(n + n_more)))
    return numbers.select(prefix + padded("number", width=width)).to_series()
