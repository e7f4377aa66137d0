"""Writes synthetic shops: landing folders of any size that look like a real shop's export.

Here belong the shop's world (users, products, taste), the walk from impression to purchase, and
the dirt of real exports. Reading landing folders does not belong here: see ingest. The shops serve
tests and benchmarks; no claim about the quality of recommendations may rest on them.

    python -m orchestration.landing.synthetic_shop \\
        --out my_shop --users 2000 --products 500 --events 60000 --days 366 --seed 7

The world. A product belongs to one of up to 24 topics ("tea", "hiking", ...); its title and
description are made of the topic's words, its category and brand follow from the topic. A user
prefers up to three topics, which ones depends on the country. Product popularity and user activity
follow power laws. 60 % of the users and 70 % of the products are there at the start, the others
arrive over time (`added_at`), and no event comes before its user's and its product's arrival.

The events. A user opens a session on one of the preferred topics and is shown products of it, or
of the home page. Each step happens to some of those before it, seconds to weeks later:
impression -> view -> click -> add_to_cart -> purchase -> rating, return (or remove_from_cart
instead of purchase). The steps up to purchase share the `session_id`; what is bought together
shares the `order_id`, and a return names the order it undoes. Day, week and year have seasons.

The dirt, each kind with its own share. A row carries at most one kind, except that any row may
also be late. Shares are shares of all rows of events, where nothing else is said.

- exact_duplicates: a row once more, equal in every value.
- near_duplicates: a row once more, one second later, under an event_id of its own.
- bots: views by a few users with thousands of views a day (all of them on one day when the share
  is too small for that), without impressions and evenly over the catalogue.
- bad_types: text in `event_ts`, `price`, `quantity` or `rating`. These columns are then strings
  in every file, because a Parquet column has one type.
- unknown_products: a product_id that is not in the catalogue.
- blank_ids: a user_id or product_id that is empty or a blank.
- future_dates: event_ts moved to the years 2090 to 2099.
- late_files: rows missing in the file of their month and delivered, all of them together, in a
  file `..._late` that comes after the next month's file.
- malformed_lines: further lines with too few or too many fields (share of the rows of CSV files;
  only for CSV output).
- damaged_titles: product titles in capitals, in small letters, or with stray blanks (share of the
  products).
- unknown_event_types: event types outside the contract. Such a row stops the pipeline, so
  `--dirt SHARE` leaves this kind out; it must be asked for by name.

`--format mixed` rotates Parquet, CSV, compressed CSV and JSON lines from file to file; the
compressed CSV files then use the header aliases `interaction_type` and `ts`.
"""

import argparse
import calendar
import gzip
import io
import itertools
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

FORMATS = ("parquet", "csv", "csv.gz", "jsonl", "mixed")
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

# A chunk is generated whole: a million rows take about 0.5 GB while they are made and written.
MAX_ROWS_PER_CHUNK = 1_000_000
# Products shown in a session, and events that come of one product shown, both measured. They only
# size the first draw; what is missing is drawn again, what is too much is cut off.
PRODUCTS_PER_SESSION = 8
EVENTS_PER_IMPRESSION = 1.9
BOT_VIEWS_PER_DAY = 3_000
# At most one view in four seconds, or bots would make near duplicates of their own.
MAX_BOT_VIEWS_PER_DAY = 20_000

# Topic: (category, what it is, what it is like). Content models have these words to go by.
TOPICS = {
    "tea": (
        "kitchen",
        "teapot teacup saucer infuser caddy strainer samovar tea-tray",
        "porcelain enamel brewing afternoon herbal darjeeling",
    ),
    "baking": (
        "kitchen",
        "cake-tin muffin-tray whisk rolling-pin cookie-cutter cake-stand sieve spatula",
        "pastry sugar icing sourdough gingerbread sponge",
    ),
    "cooking": (
        "kitchen",
        "saucepan skillet ladle casserole colander peeler wok stockpot",
        "cast-iron non-stick copper chef gourmet induction",
    ),
    "planting": (
        "garden",
        "flowerpot trowel planter watering-can seed-box trellis spade dibber",
        "terracotta balcony orchid herb-garden compost perennial",
    ),
    "barbecue": (
        "garden",
        "grill skewer tongs charcoal-starter smoker drip-pan fire-pit grill-brush",
        "hickory smoky outdoor ember marinade mesquite",
    ),
    "birds": (
        "garden",
        "bird-feeder nest-box birdbath seed-dispenser perch birdhouse suet-holder bird-table",
        "robin sparrow woodland feather songbird starling",
    ),
    "blocks": (
        "toys",
        "brick-set marble-run train-track crane castle-kit robot-kit bridge-kit gear-box",
        "stackable building wooden-block magnetic engineer junior",
    ),
    "dolls": (
        "toys",
        "doll dollhouse pram puppet teddy doll-wardrobe cradle doll-dress",
        "cuddly plush princess nursery knitted-hair storytime",
    ),
    "games": (
        "toys",
        "board-game puzzle dice-set card-game chess-set domino quiz-box memory-game",
        "strategy family travel-size riddle cooperative classic-edition",
    ),
    "cycling": (
        "sports",
        "bike-light saddle handlebar-bag pump bike-helmet pedal bottle-cage chain-lock",
        "reflective gravel commuter carbon touring tubeless",
    ),
    "running": (
        "sports",
        "running-shoe headband armband running-vest stopwatch race-belt insole tracksuit",
        "marathon breathable sprint cushioned interval finisher",
    ),
    "hiking": (
        "sports",
        "backpack tent sleeping-bag trekking-pole headlamp compass thermos hammock",
        "alpine summit ultralight trail waterproof expedition",
    ),
    "writing": (
        "office",
        "fountain-pen pencil-case inkwell rollerball eraser sharpener nib-set marker",
        "calligraphy italic graphite executive refillable india-ink",
    ),
    "paper": (
        "office",
        "notebook envelope-set planner sketchbook wrapping-paper sticker-sheet album card-set",
        "dotted linen-paper recycled handbound monthly ivory",
    ),
    "desks": (
        "office",
        "desk-lamp monitor-stand footrest file-tray chair-mat letter-rack pinboard drawer-unit",
        "ergonomic adjustable walnut-veneer height-memory stackable-tray anti-glare",
    ),
    "candles": (
        "home",
        "candle candlestick lantern tealight-holder wax-melt incense-burner candelabra snuffer",
        "scented vanilla beeswax lavender advent sandalwood",
    ),
    "lighting": (
        "home",
        "floor-lamp pendant chandelier lampshade night-light wall-sconce light-chain spotlight",
        "dimmable opal warm-white filament crystal rattan",
    ),
    "bedding": (
        "home",
        "duvet pillowcase quilt blanket bedspread mattress-topper bolster throw",
        "percale down-filled satin quilted hypoallergenic patchwork",
    ),
    "knitwear": (
        "clothing",
        "cardigan pullover scarf beanie mittens poncho turtleneck leg-warmers",
        "merino cable-knit alpaca chunky mohair fair-isle",
    ),
    "shoes": (
        "clothing",
        "loafer sneaker ankle-boot sandal ballerina derby wedge slipper",
        "suede nubuck lace-up slip-on patent-leather crepe-sole",
    ),
    "jewellery": (
        "clothing",
        "necklace bracelet earrings brooch ring anklet cufflinks charm",
        "sterling gold-plated pearl gemstone filigree birthstone",
    ),
    "audio": (
        "electronics",
        "headphones loudspeaker turntable microphone soundbar amplifier earbuds radio",
        "noise-cancelling stereo hi-fi bluetooth studio vinyl",
    ),
    "photo": (
        "electronics",
        "tripod lens camera-bag flash-unit photo-printer lens-filter gimbal darkroom-kit",
        "wide-angle mirrorless macro instant telephoto analogue",
    ),
    "computing": (
        "electronics",
        "keyboard laptop-sleeve webcam usb-hub mouse memory-stick router graphics-tablet",
        "mechanical wireless ultra-fast compact gaming backlit",
    ),
}
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "grey", "pink", "brown", "orange")
BRAND_HEADS = ("Alder", "Birk", "Cor", "Dune", "Elm", "Fjord", "Grove", "Hale", "Isar", "Juno")
BRAND_TAILS = ("berg", "craft", "field", "haus", "line", "mark", "stone", "works")
BRANDS_PER_TOPIC = 6
COUNTRIES = ("DE", "GB", "FR", "NL", "US", "AT", "ES", "SE")
COUNTRY_SHARES = (0.30, 0.20, 0.15, 0.10, 0.10, 0.06, 0.05, 0.04)
AGE_BANDS = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
GENDERS = ("f", "m", "x")

# Monday first. Shops sell most at the start of the week and in the evening.
WEEKDAY_WEIGHTS = (1.10, 1.08, 1.02, 0.98, 0.90, 0.85, 1.07)
NIGHT_WEIGHTS = (8, 4, 2, 1, 1, 2, 8, 20)
HOUR_WEIGHTS = (*NIGHT_WEIGHTS, 34, 42, 46, 48, 52, 48, 46, 46, 48, 54, 64, 78, 84, 70, 42, 20)

MIXED_FORMATS = ("parquet", "csv", "csv.gz", "jsonl")
BAD_TIMES = ("yesterday", "2024-13-45 10:00:00", "10 o'clock", "31/31/2024 noon")
BAD_NUMBERS = ("many", "12.50 EUR", "one", "1O")
UNKNOWN_TYPES = ("wishlist", "share", "page_view")
# Marks where a CSV line is to be cut off, or gets more fields; no value of ours contains them.
CUT, SPLIT = "\x02", "\x03"

# A time and a day that no shop reaches.
NEVER, NO_DAY = 2**62, 10**6

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
FrameMaker = Callable[[], pl.DataFrame]

# Times in seconds from the start of the shop; numbers from 1, user a position from 0.
_EVENT_SCHEMA = pl.Schema(
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
_ADDING_KINDS = ("exact_duplicates", "near_duplicates", "malformed_lines")
_CODES = {kind: code for code, kind in enumerate(DIRT_KINDS, start=1)}


class ShopSettingsError(ValueError):
    """A setting of the shop is wrong; the message is a sentence that says what to do."""


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


@dataclass(frozen=True)
class _Products:
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
class _Users:
    """The users, ordered by the day they joined; days count from the start of the shop."""

    joined_day: Ints
    activity: Floats
    topics: Ints
    topic_shares: Floats
    country: Ints
    is_bot: Bools


@dataclass(frozen=True)
class _Window:
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
        return sum(self.shares.get(kind, 0.0) for kind in _ADDING_KINDS)


@dataclass(frozen=True)
class _Shop:
    """Everything that is drawn before the first event; product_ids go on after the catalogue."""

    start: date
    n_days: int
    user_ids: pl.Series
    product_ids: pl.Series
    products: _Products
    users: _Users
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


@dataclass(frozen=True)
class _Shown:
    """Products shown to users, in the order of their sessions; positions in _Users, _Products."""

    session: Ints
    user: Ints
    product: Ints
    is_liked: Bools
    shown_at: Ints


@dataclass(frozen=True)
class _Walk:
    """What came of each product shown: `at` is (n_event_types, n_shown), NEVER if it did not."""

    at: Ints
    rating: Floats
    quantity: Ints
    price: Floats


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
    shop = _build_shop(
        n_users=n_users,
        n_products=n_products,
        n_days=n_days,
        start=start,
        n_bot_views=round(dirt.get("bots", 0) * n_events),
        rng=np.random.default_rng(world_seed),
    )
    rng = np.random.default_rng(text_seed)
    products = _damage_titles(
        _describe_products(shop, rng=rng), share=dirt.get("damaged_titles", 0), rng=rng
    )
    users = _describe_users(shop, rng=rng)
    with _LandingFiles(out) as files:
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
    _refuse_wrong_dirt(dirt, file_format=file_format, n_users=n_users)
    for folder in ("events", "products", "users"):
        if (out / folder).exists() and any((out / folder).iterdir()):
            raise ShopSettingsError(
                f"The folder '{out / folder}' already holds files, which would become part of the"
                " shop; name an empty folder or delete them first."
            )


def _refuse_wrong_dirt(dirt: Mapping[str, float], *, file_format: str, n_users: int) -> None:
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


def _build_shop(
    *,
    n_users: int,
    n_products: int,
    n_days: int,
    start: date,
    n_bot_views: int,
    rng: np.random.Generator,
) -> _Shop:
    # Four products a topic, or tiny catalogues would have one product for every taste.
    n_topics = min(len(TOPICS), max(1, n_products // 4))
    products = _draw_products(n_products, n_topics=n_topics, n_days=n_days, rng=rng)
    users = _draw_users(n_users, n_topics=n_topics, n_days=n_days, rng=rng)
    bot_days = _plan_bots(users, n_views=n_bot_views, n_days=n_days, rng=rng)
    is_bot = np.zeros(n_users, dtype=bool)
    is_bot[bot_days["user"].to_numpy()] = True
    return _Shop(
        start=start,
        n_days=n_days,
        user_ids=_ids("u", n_users),
        # As many again for unknown products.
        product_ids=_ids("p", n_products, n_more=n_products),
        products=products,
        users=replace(users, is_bot=is_bot, activity=np.where(is_bot, 0.0, users.activity)),
        hour_weights=_season(start, n_days=n_days, rng=rng),
        topic_phase=rng.uniform(0, 2 * np.pi, n_topics),
        bot_days=bot_days,
    )


def _draw_products(n: int, *, n_topics: int, n_days: int, rng: np.random.Generator) -> _Products:
    topic_weights = 1 / np.sqrt(np.arange(1, n_topics + 1))
    topic = rng.choice(n_topics, size=n, p=topic_weights / topic_weights.sum())
    added_day = np.where(
        rng.random(n) < 0.7, -rng.integers(1, 1_000, n), rng.integers(0, n_days, n)
    )
    until_day = np.where(
        rng.random(n) < 0.03, np.maximum(added_day, 0) + rng.integers(30, 400, n), NO_DAY
    )
    # One product of each topic is always there, so that every user finds something on every day.
    topic[:n_topics] = np.arange(n_topics)
    added_day[:n_topics] = -1_000
    until_day[:n_topics] = NO_DAY

    number = np.empty(n, dtype=np.int64)
    number[np.argsort(added_day, kind="stable")] = np.arange(1, n + 1)
    order = np.lexsort((number, topic))
    return _Products(
        number=number[order],
        topic=topic[order],
        added_day=added_day[order],
        until_day=until_day[order],
        # Zipf with an exponent of 0.8: in a catalogue of 50,000 one per cent draws a third.
        popularity=np.power(1.0 + rng.permutation(n), -0.8),
        quality=rng.normal(0, 0.6, n),
        price=np.round(np.exp(rng.normal(2.7, 0.9, n)).clip(0.5, 2_000), 2),
        topic_begin=np.searchsorted(topic[order], np.arange(n_topics + 1)),
    )


def _draw_users(n: int, *, n_topics: int, n_days: int, rng: np.random.Generator) -> _Users:
    n_at_start = max(min(2, n), round(0.6 * n))
    joined_day = np.concatenate(
        [
            np.sort(-rng.integers(1, 700, n_at_start)),
            np.sort(rng.integers(0, n_days, n - n_at_start)),
        ]
    )
    country = rng.choice(len(COUNTRIES), size=n, p=COUNTRY_SHARES)
    taste = rng.gamma(1.0, size=(len(COUNTRIES), n_topics)) + 0.2
    first = rng.uniform(0.5, 0.9, n)
    return _Users(
        joined_day=joined_day,
        # Pareto 1.4, cut off: nobody real is as busy as a bot.
        activity=((1 - rng.random(n)) ** (-1 / 1.4)).clip(max=60),
        topics=np.column_stack([_draw_by_row(taste, country, rng=rng) for _ in range(3)]),
        topic_shares=np.column_stack([first, (1 - first) * 0.65, (1 - first) * 0.35]),
        country=country,
        is_bot=np.zeros(n, dtype=bool),
    )


def _draw_by_row(weights: Floats, row: Ints, *, rng: np.random.Generator) -> Ints:
    """A column for each row named, drawn by the weights that stand in that row."""
    cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    # Rows one above the other: one binary search then serves all of them.
    stacked = (cumulative + np.arange(len(weights))[:, None]).ravel()
    found = np.searchsorted(stacked, row + rng.random(len(row)), side="right")
    return np.minimum(found - row * weights.shape[1], weights.shape[1] - 1)


def _plan_bots(
    users: _Users, *, n_views: int, n_days: int, rng: np.random.Generator
) -> pl.DataFrame:
    """One row per bot and day: user (position), day, n_views. Bots have joined before the start."""
    n_bot_days = -(-n_views // BOT_VIEWS_PER_DAY)
    n_at_start = int((users.joined_day < 0).sum())
    n_bots = max(
        1, min(-(-n_bot_days // min(n_days, 10)), n_at_start - 1, len(users.country) // 50)
    )
    n_bot_days = min(n_bot_days, n_bots * n_days)
    if n_bot_days == 0:
        return pl.DataFrame(schema={"user": pl.Int64, "day": pl.Int64, "n_views": pl.Int64})
    # Position 0 stays a real user: somebody has to be there on the first day.
    bots = 1 + rng.choice(n_at_start - 1, size=n_bots, replace=False)
    turn = np.arange(n_bot_days)
    first_day = rng.integers(0, n_days, n_bots)
    shares = np.diff(np.round(np.linspace(0, n_views, n_bot_days + 1))).astype(np.int64)
    return pl.DataFrame(
        {
            "user": bots[turn % n_bots],
            "day": (first_day[turn % n_bots] + turn // n_bots) % n_days,
            "n_views": shares.clip(max=MAX_BOT_VIEWS_PER_DAY),
        }
    )


def _season(start: date, *, n_days: int, rng: np.random.Generator) -> Floats:
    """How busy each hour of the shop is; the sum is 1."""
    days = np.datetime64(start, "D") + np.arange(n_days)
    # 1970-01-01 was a Thursday.
    weekday = (days.astype(np.int64) + 3) % 7
    day_of_year = (days - days.astype("datetime64[Y]")).astype(np.int64)
    # A calm summer and a peak at the end of November, with a little growth over the years.
    yearly = 1 + 0.15 * np.cos(2 * np.pi * day_of_year / 365.25)
    yearly += 0.8 * np.exp(-(((day_of_year - 332) / 14) ** 2))
    growth = 1.2 ** (np.arange(n_days) / 365.25)
    luck = np.exp(rng.normal(0, 0.05, n_days))
    daily = np.asarray(WEEKDAY_WEIGHTS)[weekday] * yearly * growth * luck
    hours = np.outer(daily, np.asarray(HOUR_WEIGHTS, dtype=float)).ravel()
    return hours / hours.sum()


class _LandingFiles:
    """Writes files in the background, one at a time, and counts their rows."""

    def __init__(self, out: Path) -> None:
        self.rows_by_file: dict[str, int] = {}
        self._out = out
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._unfinished: Future[None] | None = None

    def __enter__(self) -> "_LandingFiles":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._finish()
        finally:
            self._writer.shutdown()

    def write(self, stem: str, file_format: str, n_rows: int, make: FrameMaker) -> None:
        """Make a frame and write it, as soon as the one before is written.

        One at a time, or frames would pile up in memory before a slow disk.
        """
        self._finish()
        self.rows_by_file[f"{stem}.{file_format}"] = n_rows
        path = self._out / f"{stem}.{file_format}"
        self._unfinished = self._writer.submit(_write_file, path, file_format, make)

    def _finish(self) -> None:
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            unfinished.result()


def _write_file(path: Path, file_format: str, make: FrameMaker) -> None:
    frame = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    if file_format == "parquet":
        # Level 1 takes two thirds of the time of the default, and no more space.
        frame.write_parquet(path, compression="zstd", compression_level=1)
    elif file_format == "jsonl":
        frame.with_columns(pl.col(pl.Datetime).dt.strftime("%Y-%m-%dT%H:%M:%S")).write_ndjson(path)
    elif file_format == "csv":
        path.write_bytes(_csv_of(frame))
    else:
        # Without the time, which gzip would write into the file.
        path.write_bytes(gzip.compress(_csv_of(frame), compresslevel=1, mtime=0))


def _csv_of(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_csv(buffer, datetime_format="%Y-%m-%d %H:%M:%S")
    text = buffer.getvalue()
    if CUT.encode() in text:
        text = re.sub(rb",?\x02[^\n]*", b"", text)
    return text.replace(SPLIT.encode(), b",surplus,fields")


def _write_events(
    shop: _Shop,
    files: _LandingFiles,
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
    windows = _windows(shop, n_rows=n_events, file_format=file_format, shares=shares)
    landed = partial(_as_landed_events, shop, is_text="bad_types" in dirt)

    def write(label: str, file_format: str, rows: pl.DataFrame) -> None:
        make = partial(landed, rows, has_aliases=is_mixed and file_format == "csv.gz")
        files.write(f"events/events_{label}", file_format, len(rows), make)

    is_mixed = file_format == "mixed"
    dirt_counts, type_counts = Counter({"bots": shop.n_bot_views}), Counter[str]()
    owed: dict[str, float] = {}
    late = pl.DataFrame()
    n_numbered = 0
    for window, due, rng in _draw_events(shop, windows, n_events=n_events, seeds=seeds):
        n_real = len(due) - int(due["is_bot"].sum())
        quotas, owed = _quotas(window, n_real=n_real, owed=owed)
        rows, n_numbered = _soil(shop, due, quotas=quotas, n_numbered=n_numbered, rng=rng)
        on_time, held_back = _hold_back(rows, n=quotas.get("late_files", 0), rng=rng)
        dirt_counts.update({**quotas, "late_files": len(held_back)})
        type_counts.update(_count_types(rows))

        write(window.label, window.file_format, on_time)
        if not late.is_empty():
            write(f"{window.label}_late", window.late_format, late)
        late = held_back
    if not late.is_empty():
        last_day = shop.start + timedelta(days=shop.n_days - 1)
        month_after = last_day.replace(day=1) + timedelta(days=31)
        write(f"{month_after:%Y-%m}_late", windows[-1].late_format, late)
    return dirt_counts, type_counts


def _draw_events(
    shop: _Shop, windows: Sequence[_Window], *, n_events: int, seeds: np.random.SeedSequence
) -> Iterator[tuple[_Window, pl.DataFrame, np.random.Generator]]:
    """The clean events and the views of bots, window by window, each ordered by time.

    A rating may come weeks after its session: it is carried on to the window it falls into.
    """
    n_real = n_events - shop.n_bot_views
    carried = pl.DataFrame(schema=_EVENT_SCHEMA)
    n_planned, n_sessions = 0, 0
    for window, window_seed in zip(windows, seeds.spawn(len(windows)), strict=True):
        rng = np.random.default_rng(window_seed)
        n_rows = round(shop.hour_weights[: window.end_hour].sum() * n_real) - n_planned
        n_planned += n_rows
        n_clean = round(n_rows * (1 - window.added_share))
        made, n_sessions = _walk_sessions(shop, window, n=n_clean, n_sessions=n_sessions, rng=rng)
        views, n_sessions = _browse_as_bots(shop, window, n_sessions=n_sessions, rng=rng)

        pool = pl.concat([carried, made, views])
        is_due = pool["at"] < window.end_hour * HOUR
        carried = pool.filter(~is_due)
        due = pool.filter(is_due).sort("at", maintain_order=True)
        if not due.is_empty():
            yield window, due, rng


def _windows(
    shop: _Shop, *, n_rows: int, file_format: str, shares: Mapping[str, float]
) -> list[_Window]:
    """Calendar months, cut into equally busy parts where a month has too many rows."""
    hours = np.datetime64(shop.start, "h") + np.arange(len(shop.hour_weights))
    months = hours.astype("datetime64[M]")
    starts = np.flatnonzero(np.r_[True, months[1:] != months[:-1]])
    cumulative = np.cumsum(shop.hour_weights)
    windows: list[_Window] = []
    for begin, end in zip(starts, [*starts[1:], len(hours)], strict=True):
        before = cumulative[begin] - shop.hour_weights[begin]
        share = cumulative[end - 1] - before
        n_parts = max(1, math.ceil(share * n_rows / MAX_ROWS_PER_CHUNK))
        cuts = np.searchsorted(cumulative, before + share * np.arange(1, n_parts) / n_parts) + 1
        edges = np.unique([begin, *cuts[cuts < end], end])
        for part, (first, last) in enumerate(itertools.pairwise(edges.tolist()), start=1):
            label = f"{months[begin]}" if len(edges) == 2 else f"{months[begin]}_{part:03d}"
            mixed = itertools.islice(itertools.cycle(MIXED_FORMATS), len(windows), None)
            own, _, of_late = (next(mixed) for _ in range(3))
            own, of_late = (own, of_late) if file_format == "mixed" else (file_format, file_format)
            windows.append(
                _Window(
                    label=label,
                    first_hour=first,
                    end_hour=last,
                    file_format=own,
                    late_format=of_late,
                    shares=_shares_in(own, shares),
                )
            )
    return windows


def _shares_in(file_format: str, shares: Mapping[str, float]) -> dict[str, float]:
    is_csv = file_format in ("csv", "csv.gz")
    return {kind: share for kind, share in shares.items() if is_csv or kind != "malformed_lines"}


def _walk_sessions(
    shop: _Shop, window: _Window, *, n: int, n_sessions: int, rng: np.random.Generator
) -> tuple[pl.DataFrame, int]:
    """Exactly n events of sessions that begin in the window, and the last session's number."""
    parts = [pl.DataFrame(schema=_EVENT_SCHEMA)]
    n_drawn_per_event = 1 / EVENTS_PER_IMPRESSION
    while n > 0:
        n_drawn = math.ceil(1.02 * n * n_drawn_per_event) + 50
        shown = _show_products(shop, window, n=n_drawn, n_sessions=n_sessions, rng=rng)
        n_sessions = int(shown.session[-1])
        walk = _walk_the_funnel(shop, shown, rng=rng)
        n_walked = int((walk.at < shop.end_at).sum())
        part = _as_events(shop, shown, _cut_short(walk, n=n, end_at=shop.end_at))
        parts.append(part)
        n -= len(part)
        n_drawn_per_event = n_drawn / n_walked
    return pl.concat(parts), n_sessions


def _show_products(
    shop: _Shop, window: _Window, *, n: int, n_sessions: int, rng: np.random.Generator
) -> _Shown:
    """About n products in sessions numbered from n_sessions + 1; no product twice in a session."""
    users, products = shop.users, shop.products
    n_new = math.ceil(n / PRODUCTS_PER_SESSION)
    busy = np.cumsum(shop.hour_weights[window.first_hour : window.end_hour])
    hour = window.first_hour + np.searchsorted(busy, rng.random(n_new) * busy[-1], side="right")
    hour = np.minimum(hour, window.end_hour - 1)
    day = hour // 24
    begun_at = hour * HOUR + rng.integers(0, HOUR - MINUTE, n_new)
    user = _draw_by_weight(
        users.activity,
        begin=np.zeros(n_new, dtype=np.int64),
        end=np.searchsorted(users.joined_day, day, side="right"),
        rng=rng,
    )
    season = 1 + 0.4 * np.cos(2 * np.pi * window.first_hour / (24 * 365.25) + shop.topic_phase)
    preferred = users.topics[user]
    choice = _draw_by_row(users.topic_shares[user] * season[preferred], np.arange(n_new), rng=rng)
    session_topic = preferred[np.arange(n_new), choice]

    # The n-th product of a session is shown n pauses after its beginning.
    length = rng.geometric(1 / PRODUCTS_PER_SESSION, n_new)
    session = np.repeat(np.arange(n_new), length)
    place = np.arange(len(session)) - np.repeat(np.cumsum(length) - length, length)
    pause = rng.integers(10, 50, n_new)[session]
    shown_at = begun_at[session] + place * pause + (place > 0) * rng.integers(0, 9, len(session))

    # One product in six is seen on the home page, whatever the session is about.
    popularity = _popularity_in(shop, window)
    n_present = _count_present(products, first_day=day.min(), last_day=day.max())
    totals = np.r_[0.0, np.cumsum(popularity)]
    topic_totals = (
        totals[products.topic_begin[:-1] + n_present[0]] - totals[products.topic_begin[:-1]]
    )
    home = _draw_by_row(topic_totals[None, :], np.zeros(len(session), dtype=np.int64), rng=rng)
    topic = np.where(rng.random(len(session)) < 1 / 6, home, session_topic[session])
    begin = products.topic_begin[topic]
    end = begin + n_present[day[session] - day.min(), topic]
    product = _draw_by_weight(popularity, begin=begin, end=end, rng=rng)

    kept = np.sort(np.unique(session * len(popularity) + product, return_index=True)[1])
    return _Shown(
        session=n_sessions + 1 + session[kept],
        user=user[session[kept]],
        product=product[kept],
        is_liked=(preferred[session[kept]] == topic[kept, None]).any(axis=1),
        shown_at=shown_at[kept],
    )


def _draw_by_weight(weights: Floats, *, begin: Ints, end: Ints, rng: np.random.Generator) -> Ints:
    """A position from begin to before end for each pair of them, drawn by weight."""
    totals = np.r_[0.0, np.cumsum(weights)]
    low, high = totals[begin], totals[end]
    drawn = low + rng.random(len(begin)) * (high - low)
    # The last position with this total: those before it have no weight.
    return np.clip(np.searchsorted(totals, drawn, side="right") - 1, begin, end - 1)


def _popularity_in(shop: _Shop, window: _Window) -> Floats:
    """How much each product draws in a window: new ones more, those that run out nothing."""
    products = shop.products
    age = np.maximum(window.first_hour // 24 - products.added_day, 0)
    fresh = products.popularity * (1 + 1.5 * np.exp(-age / 20))
    return np.where(products.until_day * 24 <= window.end_hour, 0.0, fresh)


def _count_present(products: _Products, *, first_day: int, last_day: int) -> Ints:
    """Products of each topic that have arrived by each day, shape (n_days, n_topics)."""
    n_topics = len(products.topic_begin) - 1
    days = np.arange(first_day, last_day + 1)
    # One sorted key for both, topic first; 1,000 days is the oldest product's age.
    stride = 1_001 + max(last_day, int(products.added_day.max())) + 1
    key = products.topic * stride + products.added_day + 1_000
    wanted = np.arange(n_topics) * stride + (days[:, None] + 1_000)
    return np.searchsorted(key, wanted, side="right") - products.topic_begin[:-1]


def _walk_the_funnel(shop: _Shop, shown: _Shown, *, rng: np.random.Generator) -> _Walk:
    """Which of the products shown are viewed, clicked, bought, ..., and when."""
    n = len(shown.session)
    quality = shop.products.quality[shown.product]
    appeal = np.where(shown.is_liked, 1.0, 0.7) * np.exp(0.15 * quality)
    at = np.full((len(EVENT_TYPES), n), NEVER)

    def some_of(positions: Ints, rate: float | Floats) -> Ints:
        return positions[rng.random(len(positions)) < rate]

    def happens(event_type: int, positions: Ints, after: int, soonest: int, latest: int) -> None:
        at[event_type, positions] = at[after, positions] + rng.integers(
            soonest, latest, len(positions)
        )

    at[IMPRESSION] = shown.shown_at
    views = some_of(np.arange(n), 0.55 * appeal)
    happens(VIEW, views, IMPRESSION, 2, 30)
    clicks = some_of(views, 0.45 * appeal[views])
    happens(CLICK, clicks, VIEW, 1, 40)
    carts = some_of(clicks, 0.45 * appeal[clicks])
    happens(CART, carts, CLICK, 5, 4 * MINUTE)

    # Whoever checks out buys nearly all of the cart, in one order after the last addition.
    session = shown.session - shown.session[0]
    checkout_at = np.zeros(session[-1] + 1, dtype=np.int64)
    np.maximum.at(checkout_at, session[carts], at[CART, carts])
    checkout_at += rng.integers(30, 15 * MINUTE, len(checkout_at))
    has_checkout = rng.random(len(checkout_at)) < 0.6
    purchases = some_of(carts, 0.9 * has_checkout[session[carts]])
    at[PURCHASE, purchases] = checkout_at[session[purchases]]
    left = carts[at[PURCHASE, carts] == NEVER]
    happens(REMOVAL, some_of(left, 0.4), CART, 10, 10 * MINUTE)
    happens(RATING, some_of(purchases, 0.35), PURCHASE, DAY, 21 * DAY)
    happens(RETURN, some_of(purchases, 0.07), PURCHASE, 2 * DAY, 30 * DAY)

    opinion = 3.2 + 1.1 * shown.is_liked + quality - 1.5 * (at[RETURN] < NEVER)
    discount = np.where(rng.random(len(checkout_at)) < 0.15, 0.9, 1.0)
    return _Walk(
        at=at,
        rating=np.rint(opinion + rng.normal(0, 0.7, n)).clip(1, 5),
        quantity=rng.geometric(0.75, n),
        price=np.round(shop.products.price[shown.product] * discount[session], 2),
    )


def _cut_short(walk: _Walk, *, n: int, end_at: int) -> _Walk:
    """The same walk ended after n events; never an event without the one it follows from."""
    n_events = np.cumsum((walk.at < end_at).sum(axis=0))
    n_whole = int(np.searchsorted(n_events, n, side="right"))
    missing = n - (int(n_events[n_whole - 1]) if n_whole else 0)
    at = walk.at.copy()
    # What a whole walk would exceed is filled with products that were only shown.
    at[:, n_whole + missing :] = NEVER
    at[VIEW:, n_whole:] = NEVER
    return replace(walk, at=at)


def _as_events(shop: _Shop, shown: _Shown, walk: _Walk) -> pl.DataFrame:
    """One row per event; 0 stands for what an event of its type does not have."""
    parts = []
    for event_type in range(len(EVENT_TYPES)):
        at = np.flatnonzero(walk.at[event_type] < shop.end_at)
        has_quantity = event_type in (CART, PURCHASE, REMOVAL, RETURN)
        session = shown.session[at]
        parts.append(
            {
                "at": walk.at[event_type, at],
                "user": shown.user[at],
                "product": shop.products.number[shown.product[at]],
                "event_type": np.full(len(at), event_type),
                "rating": walk.rating[at] * (event_type == RATING),
                "quantity": walk.quantity[at] * has_quantity,
                "price": walk.price[at] * has_quantity,
                # Ratings and returns come weeks later, in no session.
                "session": session * (event_type not in (RATING, RETURN)),
                "order": session * (event_type in (PURCHASE, RETURN)),
                "is_bot": np.zeros(len(at), dtype=bool),
            }
        )
    return pl.concat([pl.DataFrame(part).cast(_EVENT_SCHEMA) for part in parts])


def _browse_as_bots(
    shop: _Shop, window: _Window, *, n_sessions: int, rng: np.random.Generator
) -> tuple[pl.DataFrame, int]:
    """The views of bots that begin their day in the window: one endless session a day each."""
    begin, end = math.ceil(window.first_hour / 24), math.ceil(window.end_hour / 24)
    plan = shop.bot_days.filter(pl.col("day").is_between(begin, end, closed="left"))
    n_views = plan["n_views"].to_numpy()
    turn = np.repeat(np.arange(len(plan)), n_views)
    place = np.arange(len(turn)) - np.repeat(np.cumsum(n_views) - n_views, n_views)
    # Evenly over 23 hours, so that the last view is still on the day.
    pause = 23 * HOUR // np.maximum(n_views, 1)
    day = plan["day"].to_numpy()[turn]
    # Products are numbered by arrival, so those that are there come first.
    n_present = np.searchsorted(np.sort(shop.products.added_day), day, side="right")
    nothing = np.zeros(len(turn), dtype=np.int64)
    views = pl.DataFrame(
        {
            "at": day * DAY + place * pause[turn] + pause[turn] // 2,
            "user": plan["user"].to_numpy()[turn],
            "product": 1 + rng.integers(0, n_present),
            "event_type": np.full(len(turn), VIEW),
            "rating": nothing,
            "quantity": nothing,
            "price": nothing,
            "session": n_sessions + 1 + turn,
            "order": nothing,
            "is_bot": np.ones(len(turn), dtype=bool),
        }
    )
    return views.cast(_EVENT_SCHEMA), n_sessions + len(plan)


def _quotas(
    window: _Window, *, n_real: int, owed: Mapping[str, float]
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


def _soil(
    shop: _Shop,
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
    for kind in sizes.keys() - _ADDING_KINDS:
        dirt[rows_of[kind]] = _CODES[kind]
    rows = due.with_columns(
        pl.Series("event", n_numbered + 1 + np.arange(len(due))),
        pl.Series("dirt", dirt),
        pl.Series("flavour", rng.integers(0, 256, len(due), dtype=np.uint8)),
    )
    n_numbered += len(due)

    copies = {kind: rows[rows_of[kind]] for kind in _ADDING_KINDS if kind in rows_of}
    if "near_duplicates" in copies:
        n = len(copies["near_duplicates"])
        copies["near_duplicates"] = copies["near_duplicates"].with_columns(
            pl.col("at") + 1, pl.Series("event", n_numbered + 1 + np.arange(n))
        )
        n_numbered += n
    if "malformed_lines" in copies:
        code = pl.lit(_CODES["malformed_lines"], dtype=pl.UInt8)
        copies["malformed_lines"] = copies["malformed_lines"].with_columns(dirt=code)
    if copies:
        rows = pl.concat([rows, *copies.values()]).sort("at", maintain_order=True)
    if "future_dates" in rows_of:
        rows = _move_to_the_future(shop, rows, rng=rng)
    if "unknown_products" in rows_of:
        # Numbers after the catalogue's last one.
        is_unknown = pl.col("dirt") == _CODES["unknown_products"]
        rows = rows.with_columns(product=pl.col("product") + is_unknown * len(shop.products.number))
    return rows, n_numbered


def _move_to_the_future(
    shop: _Shop, rows: pl.DataFrame, *, rng: np.random.Generator
) -> pl.DataFrame:
    """The rows keep their places in the file, as if a clock had been wrong for a moment."""
    at = rows["at"].to_numpy().copy()
    moved = np.flatnonzero(rows["dirt"].to_numpy() == _CODES["future_dates"])
    first, end = (date(2090, 1, 1) - shop.start).days, (date(2100, 1, 1) - shop.start).days
    at[moved] = rng.integers(first * DAY, end * DAY, len(moved))
    return rows.with_columns(at=pl.Series(at))


def _count_types(rows: pl.DataFrame) -> Counter[str]:
    dirt = rows["dirt"].to_numpy()
    is_unknown = dirt == _CODES["unknown_event_types"]
    is_known = ~is_unknown & (dirt != _CODES["malformed_lines"])
    known = np.bincount(rows["event_type"].to_numpy()[is_known], minlength=len(EVENT_TYPES))
    unknown = np.bincount(
        rows["flavour"].to_numpy()[is_unknown] % len(UNKNOWN_TYPES), minlength=len(UNKNOWN_TYPES)
    )
    counts = [*zip(EVENT_TYPES, known, strict=True), *zip(UNKNOWN_TYPES, unknown, strict=True)]
    return Counter({name: int(n) for name, n in counts if n})


def _hold_back(
    rows: pl.DataFrame, *, n: int, rng: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off n rows at random, order kept; malformed lines stay where they are."""
    movable = np.flatnonzero(rows["dirt"].to_numpy() != _CODES["malformed_lines"])
    is_late = np.zeros(len(rows), dtype=bool)
    is_late[rng.choice(movable, size=min(n, len(movable)), replace=False)] = True
    return rows.filter(~is_late), rows.filter(is_late)


def _as_landed_events(
    shop: _Shop, rows: pl.DataFrame, *, is_text: bool, has_aliases: bool
) -> pl.DataFrame:
    """The columns of the landing contract; dates and numbers as text if asked for."""
    epoch = calendar.timegm(shop.start.timetuple())
    event_at = pl.from_epoch(pl.col("at") + epoch, time_unit="s").cast(pl.Datetime("ms"))
    landed = rows.select(
        event_id="e" + _padded("event", width=10),
        # Gathered: writing each id anew costs three times as much.
        user_id=shop.user_ids.gather(rows["user"]),
        product_id=shop.product_ids.gather(rows["product"] - 1),
        event_type=pl.Series(EVENT_TYPES).gather(rows["event_type"]),
        event_ts=event_at.dt.strftime("%Y-%m-%d %H:%M:%S") if is_text else event_at,
        rating=_unless_zero("rating"),
        quantity=_unless_zero("quantity"),
        price=_unless_zero("price"),
        session_id=_unless_zero("session", "s" + _padded("session", width=9)),
        order_id=_unless_zero("order", "o" + _padded("order", width=9)),
    )
    if is_text:
        landed = landed.with_columns(pl.col("rating", "quantity", "price").cast(pl.String))
    if (rows["dirt"] > 0).any():
        landed = _show_dirt(landed, rows)
    aliases = {"event_type": "interaction_type", "event_ts": "ts"}
    return landed.rename(aliases) if has_aliases else landed


def _padded(column: str, *, width: int) -> pl.Expr:
    # zfill takes four times as long.
    return (pl.col(column) + 10**width).cast(pl.String).str.slice(1)


def _unless_zero(column: str, shown: pl.Expr | None = None) -> pl.Expr:
    value = pl.col(column)
    return pl.when(value != 0).then(value if shown is None else shown)


def _ids(prefix: str, n: int, *, n_more: int = 0) -> pl.Series:
    """The ids of 1 to n, at least six digits wide, and of as many more numbers as asked for."""
    numbers = pl.DataFrame({"number": np.arange(1, n + n_more + 1)})
    width = max(6, len(str(n + n_more)))
    return numbers.select(prefix + _padded("number", width=width)).to_series()


def _show_dirt(landed: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """Put in the text of blank ids, bad types, unknown types and the marks of malformed lines."""
    flavour = rows["flavour"]

    def replaced(column: str, kind: str, nth: int, out_of: int, value: str) -> None:
        nonlocal landed
        is_hit = (rows["dirt"] == _CODES[kind]) & (flavour % out_of == nth)
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


def _describe_products(shop: _Shop, *, rng: np.random.Generator) -> pl.DataFrame:
    """The catalogue in the columns of the landing contract, and the colour besides."""
    products = shop.products
    n = len(products.number)
    category, nouns, likes = (np.array(words) for words in zip(*_vocabulary(), strict=True))
    brands = [f"{head}{tail}" for tail in BRAND_TAILS for head in BRAND_HEADS]
    brand_of_topic = rng.integers(0, len(brands), (len(TOPICS), BRANDS_PER_TOPIC))

    def drawn_twice(words: npt.NDArray[np.str_]) -> tuple[pl.Series, pl.Series]:
        """Two different words of each product's topic."""
        one = rng.integers(0, words.shape[1], n)
        other = (one + rng.integers(1, words.shape[1], n)) % words.shape[1]
        return pl.Series(words[products.topic, one]), pl.Series(words[products.topic, other])

    noun, other_noun = drawn_twice(nouns)
    like, other_like = drawn_twice(likes)

    frame = pl.DataFrame(
        {
            "number": products.number,
            "category": category[products.topic],
            "brand": np.array(brands)[
                brand_of_topic[products.topic, rng.integers(0, BRANDS_PER_TOPIC, n)]
            ],
            "price": products.price,
            # A share of the price.
            "margin": np.round(rng.uniform(0.1, 0.6, n), 3),
            "in_stock": rng.random(n) < 0.95,
            "added_day": products.added_day,
            "until_day": products.until_day,
            "colour": np.array(COLOURS)[rng.integers(0, len(COLOURS), n)],
            "noun": noun,
            "like": like,
            "other_like": other_like,
            "other_noun": other_noun,
            "model": rng.integers(100, 1_000, n),
            "has_model": rng.random(n) < 0.3,
            "has_brand": rng.random(n) < 0.95,
            "has_description": rng.random(n) < 0.9,
        }
    ).sort("number")
    model = pl.when("has_model").then(pl.format(" {}", "model")).otherwise(pl.lit(""))
    return frame.select(
        product_id=shop.product_ids.head(n),
        title=_sentence(pl.format("{} {} {}{}", "like", "colour", "noun", model)),
        category="category",
        brand=pl.when("has_brand").then("brand"),
        description=pl.when("has_description").then(
            _sentence(
                pl.format("{} and {}, goes with every {}.", "like", "other_like", "other_noun")
            )
        ),
        price="price",
        margin="margin",
        img_url=pl.format("https://shop.example/{}.jpg", shop.product_ids.head(n)),
        available_from=pl.when(pl.col("added_day") >= 0).then(_day(shop, "added_day")),
        available_until=pl.when(pl.col("until_day") < NO_DAY).then(_day(shop, "until_day")),
        in_stock="in_stock",
        added_at=_day(shop, "added_day"),
        colour="colour",
    )


def _vocabulary() -> list[tuple[str, list[str], list[str]]]:
    return [(category, nouns.split(), likes.split()) for category, nouns, likes in TOPICS.values()]


def _sentence(text: pl.Expr) -> pl.Expr:
    return text.str.slice(0, 1).str.to_uppercase() + text.str.slice(1)


def _day(shop: _Shop, column: str) -> pl.Expr:
    """Midnight of a day that is counted from the start."""
    start_day = (shop.start - date(1970, 1, 1)).days
    return (pl.col(column) + start_day).cast(pl.Int32).cast(pl.Date).cast(pl.Datetime("ms"))


def _damage_titles(
    products: pl.DataFrame, *, share: float, rng: np.random.Generator
) -> pl.DataFrame:
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


def _describe_users(shop: _Shop, *, rng: np.random.Generator) -> pl.DataFrame:
    """The users in the columns of the landing contract, and added_at, the day they joined."""
    n = len(shop.users.country)
    frame = pl.DataFrame(
        {
            "country": np.array(COUNTRIES)[shop.users.country],
            "has_country": rng.random(n) < 0.97,
            "age_band": np.array(AGE_BANDS)[rng.integers(0, len(AGE_BANDS), n)],
            "has_age_band": rng.random(n) < 0.9,
            "gender": rng.choice(GENDERS, size=n, p=(0.52, 0.45, 0.03)),
            "has_gender": rng.random(n) < 0.9,
            "joined_day": shop.users.joined_day,
        }
    )
    return frame.select(
        shop.user_ids.alias("user_id"),
        pl.when("has_country").then("country").alias("country"),
        pl.when("has_age_band").then("age_band").alias("age_band"),
        pl.when("has_gender").then("gender").alias("gender"),
        _day(shop, "joined_day").alias("added_at"),
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


def _whole_number(text: str) -> int:
    try:
        return int(text.replace("_", "").replace(",", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a whole number; write one such as 1000."
        ) from None


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a date; write one such as 2024-01-31."
        ) from None


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, DIRT_KINDS))
    kinds = "\n".join(f"  {kind:{width}}  {text}" for kind, text in DIRT_KINDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m orchestration.landing.synthetic_shop",
        description="Write a synthetic shop as a landing folder: events/, products/, users/.",
        epilog=f"kinds of dirt (shares are shares of all rows of events unless said):\n{kinds}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="an empty folder")
    for name, help_text in (
        ("users", "users in the shop"),
        ("products", "products in the catalogue"),
        ("events", "rows of events, dirt included"),
        ("days", "length of the history"),
        ("seed", "equal arguments and seed give equal files"),
    ):
        parser.add_argument(
            f"--{name}", type=_whole_number, required=True, metavar="N", help=help_text
        )
    parser.add_argument(
        "--start",
        type=_date,
        default=date(2024, 1, 1),
        metavar="DATE",
        help="first day (default 2024-01-01); the pipeline refuses events after today",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="parquet", help="of the files (default parquet)"
    )
    parser.add_argument(
        "--dirt",
        metavar="DIRT",
        help="one SHARE for every kind but unknown_event_types, or kind=share,... (default none)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a shop as the command line says and print what was written; 0 when all is well."""
    options = _parser().parse_args(arguments)
    began_at = time.monotonic()
    try:
        dirt = parse_dirt(options.dirt, file_format=options.format) if options.dirt else {}
        summary = write_shop(
            options.out,
            n_users=options.users,
            n_products=options.products,
            n_events=options.events,
            n_days=options.days,
            start=options.start,
            seed=options.seed,
            file_format=options.format,
            dirt=dirt,
        )
    except ShopSettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"The shop could not be written to '{options.out}': {error}.", file=sys.stderr)
        return 1
    print(_report(summary, out=options.out, seconds=time.monotonic() - began_at))
    return 0


def _report(summary: ShopSummary, *, out: Path, seconds: float) -> str:
    lines = [
        f"{out}: {len(summary.rows_by_file)} files, {summary.n_events:,} rows of events"
        f" in {seconds:.1f} s"
    ]
    for heading, counts in (
        ("rows by event type", summary.rows_by_event_type),
        ("dirt", summary.dirt),
    ):
        if counts:
            width = max(map(len, counts))
            lines += [f"{heading}:", *(f"  {name:{width}}  {n:>13,}" for name, n in counts.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
