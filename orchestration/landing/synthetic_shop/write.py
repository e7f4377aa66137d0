"""A whole shop, from its settings to its landing folder."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from orchestration.landing.synthetic_shop.dirt import (
    count_types,
    damage_titles,
    hold_back,
    quotas_of,
    refuse_wrong_dirt,
    soil,
)
from orchestration.landing.synthetic_shop.files import LandingFiles, as_landed_events
from orchestration.landing.synthetic_shop.sessions import draw_events, windows_of
from orchestration.landing.synthetic_shop.shop import DIRT_KINDS, Shop, ShopSettingsError
from orchestration.landing.synthetic_shop.world import build_shop, describe_products, describe_users

FORMATS = ("parquet", "csv", "csv.gz", "jsonl", "mixed")


@dataclass(frozen=True)
class ShopSummary:
    """What was written.

    `dirt` counts what each requested kind changed or added: rows of events for most, lines for
    malformed_lines, products for damaged_titles. `rows_by_event_type` counts the well-formed rows
    of events by the type they carry, dirt included.
    """

    rows_by_file: dict[str, int]
    rows_by_event_type: dict[str, int]
    dirt: dict[str, int]
    bot_user_ids: tuple[str, ...]

    @property
    def n_events(self) -> int:
        """Rows in the files of events, malformed lines included."""
        return sum(n for file, n in self.rows_by_file.items() if file.startswith("events/"))


def write_shop(
    out: Path,
    *,
    n_users: int,
    n_products: int,
    n_events: int,
    n_days: int,
    start: date,
    seed: int,
    file_format: str,
    dirt: Mapping[str, float],
) -> ShopSummary:
    """Write a landing folder with events/, products/ and users/; equal arguments, equal bytes.

    Args:
        out: The landing folder; created when missing, its three folders must hold no file.
        n_users: Users in the shop, bots among them.
        n_products: Products in the catalogue.
        n_events: Rows of events to write, dirt included.
        n_days: Length of the shop's history.
        start: Its first day.
        seed: Fixes every draw.
        file_format: One of FORMATS.
        dirt: Share of each of DIRT_KINDS; kinds left out do not occur.

    Raises:
        ShopSettingsError: for a wrong setting, before anything is written.
    """
    _refuse_wrong_settings(
        out,
        n_users=n_users,
        n_products=n_products,
        n_events=n_events,
        n_days=n_days,
        start=start,
        seed=seed,
        file_format=file_format,
        dirt=dirt,
    )
    dirt = {kind: share for kind, share in dirt.items() if share > 0}
    world_seed, text_seed, event_seeds = np.random.SeedSequence(seed).spawn(3)
    shop = build_shop(
        n_users=n_users,
        n_products=n_products,
        n_days=n_days,
        start=start,
        n_bot_views=round(dirt.get("bots", 0) * n_events),
        rng=np.random.default_rng(world_seed),
    )
    rng = np.random.default_rng(text_seed)
    products = damage_titles(
        describe_products(shop, rng=rng), share=dirt.get("damaged_titles", 0), rng=rng
    )
    users = describe_users(shop, rng=rng)
    with LandingFiles(out) as files:
        is_mixed = file_format == "mixed"
        files.write(
            "products/products", "csv" if is_mixed else file_format, n_products, lambda: products
        )
        files.write("users/users", "jsonl" if is_mixed else file_format, n_users, lambda: users)
        dirt_counts, type_counts = _write_events(
            shop, files, n_events=n_events, file_format=file_format, dirt=dirt, seeds=event_seeds
        )
    dirt_counts["damaged_titles"] = round(dirt.get("damaged_titles", 0) * n_products)
    return ShopSummary(
        rows_by_file=files.rows_by_file,
        rows_by_event_type={name: type_counts[name] for name in sorted(type_counts)},
        dirt={kind: dirt_counts[kind] for kind in DIRT_KINDS if kind in dirt},
        bot_user_ids=tuple(shop.user_ids.filter(pl.Series(shop.users.is_bot))),
    )


def _refuse_wrong_settings(
    out: Path,
    *,
    n_users: int,
    n_products: int,
    n_events: int,
    n_days: int,
    start: date,
    seed: int,
    file_format: str,
    dirt: Mapping[str, float],
) -> None:
    sizes = {"users": n_users, "products": n_products, "events": n_events, "days": n_days}
    for name, size in sizes.items():
        if size < 1:
            raise ShopSettingsError(
                f"The number of {name} is {size}, but a shop needs at least 1; give a larger one."
            )
    if seed < 0:
        raise ShopSettingsError(f"The seed is {seed}; give a whole number from 0 on.")
    if start.year < 1990 or n_days > 36_600 or (start + timedelta(days=n_days)).year > 2080:
        raise ShopSettingsError(
            f"A shop of {n_days} days from {start} does not lie between 1990 and 2080 (dirty rows"
            " are dated from 2090 on); give another start or fewer days."
        )
    if file_format not in FORMATS:
        raise ShopSettingsError(
            f"The format '{file_format}' is unknown; choose one of {', '.join(FORMATS)}."
        )
    refuse_wrong_dirt(dirt, file_format=file_format, n_users=n_users)
    for folder in ("events", "products", "users"):
        if (out / folder).exists() and any((out / folder).iterdir()):
            raise ShopSettingsError(
                f"The folder '{out / folder}' already holds files, which would become part of the"
                " shop; name an empty folder or delete them first."
            )


def _write_events(
    shop: Shop,
    files: LandingFiles,
    *,
    n_events: int,
    file_format: str,
    dirt: Mapping[str, float],
    seeds: np.random.SeedSequence,
) -> tuple[Counter[str], Counter[str]]:
    """Write file by file, and what is late after the file that follows.

    Returns:
        Rows by kind of dirt, and well-formed rows by event type.
    """
    # Only rows of real users get dirty, but shares are shares of all rows.
    scale = n_events / max(1, n_events - shop.n_bot_views)
    shares = {k: s * scale for k, s in dirt.items() if k not in ("bots", "damaged_titles")}
    windows = windows_of(shop, n_rows=n_events, file_format=file_format, shares=shares)
    landed = partial(as_landed_events, shop, is_text="bad_types" in dirt)

    def write(label: str, file_format: str, rows: pl.DataFrame) -> None:
        make = partial(landed, rows, has_aliases=is_mixed and file_format == "csv.gz")
        files.write(f"events/events_{label}", file_format, len(rows), make)

    is_mixed = file_format == "mixed"
    dirt_counts, type_counts = Counter({"bots": shop.n_bot_views}), Counter[str]()
    owed: dict[str, float] = {}
    late = pl.DataFrame()
    n_numbered = 0
    for window, due, rng in draw_events(shop, windows, n_events=n_events, seeds=seeds):
        n_real = len(due) - int(due["is_bot"].sum())
        quotas, owed = quotas_of(window, n_real=n_real, owed=owed)
        rows, n_numbered = soil(shop, due, quotas=quotas, n_numbered=n_numbered, rng=rng)
        on_time, held_back = hold_back(rows, n=quotas.get("late_files", 0), rng=rng)
        dirt_counts.update({**quotas, "late_files": len(held_back)})
        type_counts.update(count_types(rows))

        write(window.label, window.file_format, on_time)
        if not late.is_empty():
            write(f"{window.label}_late", window.late_format, late)
        late = held_back
    if not late.is_empty():
        last_day = shop.start + timedelta(days=shop.n_days - 1)
        month_after = last_day.replace(day=1) + timedelta(days=31)
        write(f"{month_after:%Y-%m}_late", windows[-1].late_format, late)
    return dirt_counts, type_counts
