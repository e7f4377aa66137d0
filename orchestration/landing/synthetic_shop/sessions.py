"""The walk from impression to purchase, window by window, and the views of bots."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from orchestration.landing.synthetic_shop.shop import (
    CART,
    CLICK,
    DAY,
    EVENT_SCHEMA,
    EVENT_TYPES,
    HOUR,
    IMPRESSION,
    MINUTE,
    NEVER,
    PURCHASE,
    RATING,
    REMOVAL,
    RETURN,
    VIEW,
    Bools,
    Floats,
    Ints,
    Products,
    Shop,
    Window,
)
from orchestration.landing.synthetic_shop.world import draw_by_row

# A chunk is generated whole: a million rows take about 0.5 GB while they are made and written.
MAX_ROWS_PER_CHUNK = 1_000_000
# Products shown in a session, and events that come of one product shown, both measured. They only
# size the first draw; what is missing is drawn again, what is too much is cut off.
PRODUCTS_PER_SESSION = 8
EVENTS_PER_IMPRESSION = 1.9
MIXED_FORMATS = ("parquet", "csv", "csv.gz", "jsonl")


@dataclass(frozen=True)
class _Shown:
    """Products shown to users, in the order of their sessions; positions in Users, Products."""

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


def draw_events(
    shop: Shop, windows: Sequence[Window], *, n_events: int, seeds: np.random.SeedSequence
) -> Iterator[tuple[Window, pl.DataFrame, np.random.Generator]]:
    """The clean events and the views of bots, window by window, each ordered by time.

    A rating may come weeks after its session: it is carried on to the window it falls into.
    """
    n_real = n_events - shop.n_bot_views
    carried = pl.DataFrame(schema=EVENT_SCHEMA)
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


def windows_of(
    shop: Shop, *, n_rows: int, file_format: str, shares: Mapping[str, float]
) -> list[Window]:
    """Calendar months, cut into equally busy parts where a month has too many rows."""
    hours = np.datetime64(shop.start, "h") + np.arange(len(shop.hour_weights))
    months = hours.astype("datetime64[M]")
    starts = np.flatnonzero(np.r_[True, months[1:] != months[:-1]])
    cumulative = np.cumsum(shop.hour_weights)
    windows: list[Window] = []
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
                Window(
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
    shop: Shop, window: Window, *, n: int, n_sessions: int, rng: np.random.Generator
) -> tuple[pl.DataFrame, int]:
    """Exactly n events of sessions that begin in the window, and the last session's number."""
    parts = [pl.DataFrame(schema=EVENT_SCHEMA)]
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
    shop: Shop, window: Window, *, n: int, n_sessions: int, rng: np.random.Generator
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
    choice = draw_by_row(users.topic_shares[user] * season[preferred], np.arange(n_new), rng=rng)
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
    home = draw_by_row(topic_totals[None, :], np.zeros(len(session), dtype=np.int64), rng=rng)
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


def _popularity_in(shop: Shop, window: Window) -> Floats:
    """How much each product draws in a window: new ones more, those that run out nothing."""
    products = shop.products
    age = np.maximum(window.first_hour // 24 - products.added_day, 0)
    fresh = products.popularity * (1 + 1.5 * np.exp(-age / 20))
    return np.where(products.until_day * 24 <= window.end_hour, 0.0, fresh)


def _count_present(products: Products, *, first_day: int, last_day: int) -> Ints:
    """Products of each topic that have arrived by each day, shape (n_days, n_topics)."""
    n_topics = len(products.topic_begin) - 1
    days = np.arange(first_day, last_day + 1)
    # One sorted key for both, topic first; 1,000 days is the oldest product's age.
    stride = 1_001 + max(last_day, int(products.added_day.max())) + 1
    key = products.topic * stride + products.added_day + 1_000
    wanted = np.arange(n_topics) * stride + (days[:, None] + 1_000)
    return np.searchsorted(key, wanted, side="right") - products.topic_begin[:-1]


def _walk_the_funnel(shop: Shop, shown: _Shown, *, rng: np.random.Generator) -> _Walk:
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


def _as_events(shop: Shop, shown: _Shown, walk: _Walk) -> pl.DataFrame:
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
    return pl.concat([pl.DataFrame(part).cast(EVENT_SCHEMA) for part in parts])


def _browse_as_bots(
    shop: Shop, window: Window, *, n_sessions: int, rng: np.random.Generator
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
    return views.cast(EVENT_SCHEMA), n_sessions + len(plan)
