"""The shop before its first event: catalogue, customers, tastes, seasons, bots."""

from dataclasses import replace
from datetime import date

import numpy as np
import numpy.typing as npt
import polars as pl

from orchestration.landing.synthetic_shop.shop import (
    NO_DAY,
    Floats,
    Ints,
    Products,
    Shop,
    Users,
    ids,
)
from orchestration.landing.synthetic_shop.words import (
    AGE_BANDS,
    BRAND_HEADS,
    BRAND_TAILS,
    BRANDS_PER_TOPIC,
    COLOURS,
    COUNTRIES,
    COUNTRY_SHARES,
    GENDERS,
    TOPICS,
    vocabulary,
)

BOT_VIEWS_PER_DAY = 3_000
# At most one view in four seconds, or bots would make near duplicates of their own.
MAX_BOT_VIEWS_PER_DAY = 20_000
# Monday first. Shops sell most at the start of the week and in the evening.
WEEKDAY_WEIGHTS = (1.10, 1.08, 1.02, 0.98, 0.90, 0.85, 1.07)
NIGHT_WEIGHTS = (8, 4, 2, 1, 1, 2, 8, 20)
HOUR_WEIGHTS = (*NIGHT_WEIGHTS, 34, 42, 46, 48, 52, 48, 46, 46, 48, 54, 64, 78, 84, 70, 42, 20)


def build_shop(
    *,
    n_users: int,
    n_products: int,
    n_days: int,
    start: date,
    n_bot_views: int,
    rng: np.random.Generator,
) -> Shop:
    """Draw everything that is there before the first event."""
    # Four products a topic, or tiny catalogues would have one product for every taste.
    n_topics = min(len(TOPICS), max(1, n_products // 4))
    products = _draw_products(n_products, n_topics=n_topics, n_days=n_days, rng=rng)
    users = _draw_users(n_users, n_topics=n_topics, n_days=n_days, rng=rng)
    bot_days = _plan_bots(users, n_views=n_bot_views, n_days=n_days, rng=rng)
    is_bot = np.zeros(n_users, dtype=bool)
    is_bot[bot_days["user"].to_numpy()] = True
    return Shop(
        start=start,
        n_days=n_days,
        user_ids=ids("u", n_users),
        # As many again for unknown products.
        product_ids=ids("p", n_products, n_more=n_products),
        products=products,
        users=replace(users, is_bot=is_bot, activity=np.where(is_bot, 0.0, users.activity)),
        hour_weights=_season(start, n_days=n_days, rng=rng),
        topic_phase=rng.uniform(0, 2 * np.pi, n_topics),
        bot_days=bot_days,
    )


def _draw_products(n: int, *, n_topics: int, n_days: int, rng: np.random.Generator) -> Products:
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
    return Products(
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


def _draw_users(n: int, *, n_topics: int, n_days: int, rng: np.random.Generator) -> Users:
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
    return Users(
        joined_day=joined_day,
        # Pareto 1.4, cut off: nobody real is as busy as a bot.
        activity=((1 - rng.random(n)) ** (-1 / 1.4)).clip(max=60),
        topics=np.column_stack([draw_by_row(taste, country, rng=rng) for _ in range(3)]),
        topic_shares=np.column_stack([first, (1 - first) * 0.65, (1 - first) * 0.35]),
        country=country,
        is_bot=np.zeros(n, dtype=bool),
    )


def draw_by_row(weights: Floats, row: Ints, *, rng: np.random.Generator) -> Ints:
    """A column for each row named, drawn by the weights that stand in that row."""
    cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    # Rows one above the other: one binary search then serves all of them.
    stacked = (cumulative + np.arange(len(weights))[:, None]).ravel()
    found = np.searchsorted(stacked, row + rng.random(len(row)), side="right")
    return np.minimum(found - row * weights.shape[1], weights.shape[1] - 1)


def _plan_bots(
    users: Users, *, n_views: int, n_days: int, rng: np.random.Generator
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


def describe_products(shop: Shop, *, rng: np.random.Generator) -> pl.DataFrame:
    """The catalogue in the columns of the landing contract, and the colour besides."""
    products = shop.products
    n = len(products.number)
    category, nouns, likes = (np.array(words) for words in zip(*vocabulary(), strict=True))
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


def _sentence(text: pl.Expr) -> pl.Expr:
    return text.str.slice(0, 1).str.to_uppercase() + text.str.slice(1)


def _day(shop: Shop, column: str) -> pl.Expr:
    """Midnight of a day that is counted from the start."""
    start_day = (shop.start - date(1970, 1, 1)).days
    return (pl.col(column) + start_day).cast(pl.Int32).cast(pl.Date).cast(pl.Datetime("ms"))


def describe_users(shop: Shop, *, rng: np.random.Generator) -> pl.DataFrame:
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
