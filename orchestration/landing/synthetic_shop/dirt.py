"""The dirt of real exports, counted to the row."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping
from datetime import date

import numpy as np
import polars as pl

from orchestration.landing.synthetic_shop.shop import (
    ADDING_KINDS,
    CODES,
    DAY,
    DIRT_KINDS,
    EVENT_TYPES,
    Shop,
    ShopSettingsError,
    Window,
)

BAD_TIMES = ("yesterday", "2024-13-45 10:00:00", "10 o'clock", "31/31/2024 noon")
BAD_NUMBERS = ("many", "12.50 EUR", "one", "1O")
UNKNOWN_TYPES = ("wishlist", "share", "page_view")
# Marks where a CSV line is to be cut off, or gets more fields; no value of ours contains them.
CUT, SPLIT = "\x02", "\x03"


def refuse_wrong_dirt(dirt: Mapping[str, float], *, file_format: str, n_users: int) -> None:
    """Raise ShopSettingsError for kinds that do not exist, and shares that cannot be."""
    for kind, share in dirt.items():
        if kind not in DIRT_KINDS:
            raise ShopSettingsError(
                f"The kind of dirt '{kind}' is unknown; choose from {', '.join(DIRT_KINDS)}."
            )
        if not 0 <= share <= 0.5:
            raise ShopSettingsError(
                f"The share of {kind} is {share}; give a number between 0 and 0.5."
            )
    rows = {kind: share for kind, share in dirt.items() if kind != "damaged_titles"}
    if sum(rows.values()) > 0.5:
        raise ShopSettingsError(
            f"The shares of dirty rows add up to {sum(rows.values()):.3g}, but at most half of a"
            " shop may be dirty; give smaller ones."
        )
    if dirt.get("malformed_lines", 0) > 0 and file_format in ("parquet", "jsonl"):
        raise ShopSettingsError(
            f"malformed_lines exist in CSV files only, but the format is {file_format}; choose"
            " csv, csv.gz or mixed, or leave malformed_lines out."
        )
    if dirt.get("bots", 0) > 0 and n_users < 2:
        raise ShopSettingsError("A shop with bots needs at least 2 users, one of them no bot.")


def quotas_of(
    window: Window, *, n_real: int, owed: Mapping[str, float]
) -> tuple[dict[str, int], dict[str, float]]:
    """Rows of each kind of dirt for a window, and the fractions left for the next one.

    Args:
        window: Its shares are shares of the rows of its file.
        n_real: Clean rows of real users, the only ones that get dirty.
        owed: The fractions left by the window before.
    """
    n_rows = n_real / (1 - window.added_share)
    due = {kind: owed.get(kind, 0.0) + share * n_rows for kind, share in window.shares.items()}
    quotas = {}
    room = n_real
    for kind, amount in due.items():
        # Late rows need no room: any row may be late, dirty ones too.
        quotas[kind] = math.floor(amount + 1e-6)
        if kind != "late_files":
            quotas[kind] = min(quotas[kind], room)
            room -= quotas[kind]
    return quotas, {**owed, **{kind: due[kind] - quotas[kind] for kind in due}}


def soil(
    shop: Shop,
    due: pl.DataFrame,
    *,
    quotas: Mapping[str, int],
    n_numbered: int,
    rng: np.random.Generator,
) -> tuple[pl.DataFrame, int]:
    """Number the events and make some of them dirty; what only shows in text is marked for later.

    Returns:
        The events with event (its number), dirt (0, or the kind's code) and flavour (which of a
        kind's variants), ordered by time; and the last event's number.
    """
    sizes = {kind: n for kind, n in quotas.items() if kind != "late_files"}
    is_real = ~due["is_bot"].to_numpy()
    chosen = rng.choice(np.flatnonzero(is_real), size=sum(sizes.values()), replace=False)
    ends = itertools.accumulate(sizes.values())
    rows_of = {
        kind: chosen[end - n : end] for (kind, n), end in zip(sizes.items(), ends, strict=True)
    }
    dirt = np.zeros(len(due), dtype=np.uint8)
    for kind in sizes.keys() - ADDING_KINDS:
        dirt[rows_of[kind]] = CODES[kind]
    rows = due.with_columns(
        pl.Series("event", n_numbered + 1 + np.arange(len(due))),
        pl.Series("dirt", dirt),
        pl.Series("flavour", rng.integers(0, 256, len(due), dtype=np.uint8)),
    )
    n_numbered += len(due)

    copies = {kind: rows[rows_of[kind]] for kind in ADDING_KINDS if kind in rows_of}
    if "near_duplicates" in copies:
        n = len(copies["near_duplicates"])
        copies["near_duplicates"] = copies["near_duplicates"].with_columns(
            pl.col("at") + 1, pl.Series("event", n_numbered + 1 + np.arange(n))
        )
        n_numbered += n
    if "malformed_lines" in copies:
        code = pl.lit(CODES["malformed_lines"], dtype=pl.UInt8)
        copies["malformed_lines"] = copies["malformed_lines"].with_columns(dirt=code)
    if copies:
        rows = pl.concat([rows, *copies.values()]).sort("at", maintain_order=True)
    if "future_dates" in rows_of:
        rows = _move_to_the_future(shop, rows, rng=rng)
    if "unknown_products" in rows_of:
        # Numbers after the catalogue's last one.
        is_unknown = pl.col("dirt") == CODES["unknown_products"]
        rows = rows.with_columns(product=pl.col("product") + is_unknown * len(shop.products.number))
    return rows, n_numbered


def _move_to_the_future(
    shop: Shop, rows: pl.DataFrame, *, rng: np.random.Generator
) -> pl.DataFrame:
    """The rows keep their places in the file, as if a clock had been wrong for a moment."""
    at = rows["at"].to_numpy().copy()
    moved = np.flatnonzero(rows["dirt"].to_numpy() == CODES["future_dates"])
    first, end = (date(2090, 1, 1) - shop.start).days, (date(2100, 1, 1) - shop.start).days
    at[moved] = rng.integers(first * DAY, end * DAY, len(moved))
    return rows.with_columns(at=pl.Series(at))


def count_types(rows: pl.DataFrame) -> Counter[str]:
    """Count the well-formed rows of each event type."""
    dirt = rows["dirt"].to_numpy()
    is_unknown = dirt == CODES["unknown_event_types"]
    is_known = ~is_unknown & (dirt != CODES["malformed_lines"])
    known = np.bincount(rows["event_type"].to_numpy()[is_known], minlength=len(EVENT_TYPES))
    unknown = np.bincount(
        rows["flavour"].to_numpy()[is_unknown] % len(UNKNOWN_TYPES), minlength=len(UNKNOWN_TYPES)
    )
    counts = [*zip(EVENT_TYPES, known, strict=True), *zip(UNKNOWN_TYPES, unknown, strict=True)]
    return Counter({name: int(n) for name, n in counts if n})


def hold_back(
    rows: pl.DataFrame, *, n: int, rng: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off n rows at random, order kept; malformed lines stay where they are."""
    movable = np.flatnonzero(rows["dirt"].to_numpy() != CODES["malformed_lines"])
    is_late = np.zeros(len(rows), dtype=bool)
    is_late[rng.choice(movable, size=min(n, len(movable)), replace=False)] = True
    return rows.filter(~is_late), rows.filter(is_late)


def show_dirt(landed: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Put in the text of blank ids, bad types, unknown types and the marks of malformed lines."""
    flavour = rows["flavour"]

    def replaced(column: str, kind: str, nth: int, out_of: int, value: str) -> None:
        nonlocal landed
        is_hit = (rows["dirt"] == CODES[kind]) & (flavour % out_of == nth)
        if is_hit.any():
            landed = landed.with_columns(
                pl.when(is_hit).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
            )

    for nth, (column, blank) in enumerate(itertools.product(("user_id", "product_id"), ("", " "))):
        replaced(column, "blank_ids", nth, 4, blank)
    columns = ("event_ts", "price", "quantity", "rating")
    for nth, (variant, column) in enumerate(itertools.product(range(4), columns)):
        text = BAD_TIMES[variant] if column == "event_ts" else BAD_NUMBERS[variant]
        replaced(column, "bad_types", nth, 16, text)
    for nth, event_type in enumerate(UNKNOWN_TYPES):
        replaced("event_type", "unknown_event_types", nth, len(UNKNOWN_TYPES), event_type)
    replaced("session_id", "malformed_lines", 0, 3, CUT)
    replaced("order_id", "malformed_lines", 1, 3, SPLIT)
    replaced("event_id", "malformed_lines", 2, 3, f"### export interrupted{CUT}")
    return landed


def damage_titles(
    products: pl.DataFrame, *, share: float, rng: np.random.Generator
) -> pl.DataFrame:
    """Write a share of the titles in wrong case or with stray blanks."""
    chosen = rng.choice(len(products), size=round(share * len(products)), replace=False)
    damage = np.zeros(len(products), dtype=np.uint8)
    damage[chosen] = 1 + np.arange(len(chosen)) % 4
    title, is_damaged = pl.col("title"), pl.Series(damage)
    return products.with_columns(
        title=pl.when(is_damaged == 1)
        .then(title.str.to_uppercase())
        .when(is_damaged == 2)
        .then(title.str.to_lowercase())
        .when(is_damaged == 3)
        .then(pl.format("  {} ", title))
        .when(is_damaged == 4)
        .then(title.str.replace_all(" ", "   ", literal=True))
        .otherwise(title)
    )


def parse_dirt(text: str, *, file_format: str) -> dict[str, float]:
    """Read `--dirt`: one share for every kind that may stand in a shop, or kind=share,...

    Raises:
        ShopSettingsError: if it is neither.
    """
    if "=" not in text:
        share = _share(text, of="--dirt")
        kinds = [kind for kind in DIRT_KINDS if kind != "unknown_event_types"]
        if file_format in ("parquet", "jsonl"):
            kinds.remove("malformed_lines")
        return dict.fromkeys(kinds, share)
    dirt: dict[str, float] = {}
    for pair in text.split(","):
        kind, _, value = (part.strip() for part in pair.partition("="))
        if kind in dirt:
            raise ShopSettingsError(f"--dirt names {kind} twice; give it one share.")
        dirt[kind] = _share(value, of=kind)
    return dirt


def _share(text: str, *, of: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ShopSettingsError(
            f"'{text}' is not a share for {of}; give a number such as 0.01, or for --dirt"
            " kind=share pairs such as bots=0.01,late_files=0.02."
        ) from None
