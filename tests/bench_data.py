"""What the benchmarks run on: generated matrices and shops of any size, and Gowalla.

The generated ones have what decides about speed: long tails of products and users, taste in
topics, factors that were trained. They are drawn once and kept in the folder of the benchmarks.
No claim about the quality of recommendations may rest on them.
"""

import gzip
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from ml_assets.signal_matrix import BOUGHT, SignalMatrix
from orchestration.landing.synthetic_shop import write_shop

N_TOPICS = 200
DIRT = {
    "exact_duplicates": 0.005,
    "near_duplicates": 0.005,
    "bots": 0.01,
    "bad_types": 0.002,
    "unknown_products": 0.003,
    "blank_ids": 0.001,
    "future_dates": 0.001,
    "late_files": 0.01,
    "damaged_titles": 0.02,
}


@dataclass(frozen=True)
class Factors:
    """Trained factors and the matrix that they were trained on."""

    users: np.ndarray
    items: np.ndarray
    history: sp.csr_matrix


@dataclass(frozen=True)
class Split:
    """A matrix to learn from, and what is to be found; both `(n_users, n_items)`."""

    name: str
    train: sp.csr_matrix
    test: sp.csr_matrix


def long_tailed(*, n_users: int, n_items: int, n_entries: int, seed: int) -> sp.csr_matrix:
    """Who touched what: ones, `(n_users, n_items)` float32, about `n_entries` of them.

    An item is of one topic, a user likes three topics and takes a fifth from everywhere. How
    often items are taken follows Zipf's law, how many a user takes a log-normal one.
    """
    rng = np.random.default_rng(seed)
    topic_of_item = topics_of_items(n_items)
    popularity = 1.0 / (10.0 + rng.permutation(n_items))
    by_topic = np.lexsort((-popularity, topic_of_item))
    edges = np.searchsorted(topic_of_item[by_topic], np.arange(N_TOPICS + 1))
    mass = np.concatenate([[0.0], np.cumsum(popularity[by_topic])])
    activity = rng.lognormal(sigma=1.0, size=n_users)
    # A third more than wanted: so many fall on one that the user has already.
    n_drawn = rng.poisson(activity * (1.35 * n_entries / activity.sum())) + 1
    user = np.repeat(np.arange(n_users), n_drawn)
    liked = rng.integers(N_TOPICS, size=(n_users, 3))
    topic = liked[user, rng.choice(3, size=len(user), p=[0.5, 0.3, 0.2])]
    is_any = rng.random(len(user)) < 0.2
    low = np.where(is_any, 0.0, mass[edges[topic]])
    high = np.where(is_any, mass[-1], mass[edges[topic + 1]])
    place = np.searchsorted(mass, low + rng.random(len(user)) * (high - low), side="right") - 1
    item = by_topic[np.minimum(place, n_items - 1)]
    pairs = np.unique(user * n_items + item)
    ones = np.ones(len(pairs), dtype=np.float32)
    return sp.csr_matrix((ones, np.divmod(pairs, n_items)), shape=(n_users, n_items))


def topics_of_items(n_items: int) -> np.ndarray:
    """`(n_items,)` the topic of each item of generated matrices and texts."""
    return np.random.default_rng(N_TOPICS).integers(N_TOPICS, size=n_items)


def trained_factors(
    folder: Path, *, n_users: int, n_items: int, n_entries: int, n_factors: int
) -> Factors:
    """Factors of `implicit`'s ALS on a long-tailed matrix, trained once for each size."""
    from implicit.als import AlternatingLeastSquares

    history = long_tailed(n_users=n_users, n_items=n_items, n_entries=n_entries, seed=7)
    path = folder / f"factors-{n_users}-{n_items}-{n_entries}-{n_factors}.npz"
    if not path.exists():
        als = AlternatingLeastSquares(
            factors=n_factors, regularization=30.0, alpha=40.0, iterations=10, random_state=7
        )
        with threadpool_limits(1, "blas"):
            als.fit(history, show_progress=False)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part.npz")
        np.savez(unfinished, users=als.user_factors, items=als.item_factors)
        unfinished.rename(path)
    with np.load(path) as stored:
        return Factors(users=stored["users"], items=stored["items"], history=history)


def split_at_random(matrix: sp.csr_matrix, *, name: str, share: float, seed: int) -> Split:
    """A share of each user's entries is to be found; of a user with few, maybe none."""
    held_back = np.random.default_rng(seed).random(matrix.nnz) < share
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))

    def part(mask: np.ndarray) -> sp.csr_matrix:
        place = (rows[mask], matrix.indices[mask])
        return sp.csr_matrix((matrix.data[mask], place), shape=matrix.shape)

    return Split(name, part(~held_back), part(held_back))


def gowalla(folder: Path) -> Split:
    """The split that LightGCN was published with: train.txt and test.txt, also as .gz.

    A line is a user and the places they checked in at. After He et al., "LightGCN" (SIGIR 2020).
    """
    pairs = [_pairs(folder, name) for name in ("train", "test")]
    n_users, n_items = np.vstack(pairs).max(axis=0) + 1
    train, test = (
        sp.csr_matrix((np.ones(len(each), np.float32), each.T), shape=(n_users, n_items))
        for each in pairs
    )
    return Split("Gowalla", train, test)


def _pairs(folder: Path, name: str) -> np.ndarray:
    path = folder / f"{name}.txt"
    text = path.read_text() if path.exists() else _unpacked(path.with_suffix(".txt.gz"))
    pairs = []
    for line in text.splitlines():
        user, *items = map(int, line.split())
        pairs += [(user, item) for item in items]
    return np.array(pairs)


def _unpacked(path: Path) -> str:
    with gzip.open(path, "rt") as file:
        return file.read()


def signals_of_matrix(history: sp.csr_matrix) -> SignalMatrix:
    """As the line has it; every entry is a purchase of today."""
    return SignalMatrix(
        user_ids=_ids(history.shape[0]).rename("user_id"),
        product_ids=_ids(history.shape[1]).rename("product_id"),
        weights=history,
        history=history,
        kinds=np.full(history.nnz, BOUGHT, dtype=np.int8),
        trains_on_user=np.ones(history.shape[0], dtype=bool),
    )


def _ids(n: int) -> pl.Series:
    # All of one length, so that their order is that of the numbers.
    return pl.select(pl.int_range(n).cast(pl.String).str.zfill(8)).to_series()


def topic_texts(n_items: int, *, seed: int) -> pl.Series:
    """What is written about each product: six words of its topic, and two that any may have."""
    rng = np.random.default_rng(seed)
    own = 30 * topics_of_items(n_items)[:, None] + rng.integers(30, size=(n_items, 6))
    common = 30 * N_TOPICS + rng.integers(1000, size=(n_items, 2))
    return pl.Series([" ".join(f"word{n}" for n in row) for row in np.hstack([own, common])])


@dataclass(frozen=True)
class Shop:
    """A landing folder, and a file with the last of its events that has not landed yet."""

    folder: Path
    last_events: Path
    n_users: int
    n_products: int

    @property
    def n_bytes(self) -> int:
        """Size of the landed files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*.parquet"))

    def land_last_events(self) -> None:
        """What arrives on the day after."""
        shutil.copy(self.last_events, self.folder / "events")

    def take_back_last_events(self) -> None:
        """As it was before that day."""
        (self.folder / "events" / self.last_events.name).unlink(missing_ok=True)


def generated_shop(folder: Path, *, n_events: int, progress: Callable[[str], None]) -> Shop:
    """A year of a shop of this size, written once: 50 events a user, and 200 or more a product.

    One event in a hundred, the latest ones, stands beside the landing folder for a refresh.
    """
    n_users, n_products = n_events // 50, min(50_000, n_events // 200)
    home = folder / f"shop-{n_events}"
    shop = Shop(home / "landing", home / "events_last.parquet", n_users, n_products)
    if not shop.last_events.exists():
        progress(f"writing a shop of {n_events:,} events")
        shutil.rmtree(home, ignore_errors=True)
        write_shop(
            shop.folder,
            n_users=n_users,
            n_products=n_products,
            n_events=n_events,
            n_days=365,
            start=date(2024, 1, 1),
            seed=7,
            file_format="parquet",
            dirt=DIRT,
        )
        _hold_back(shop, n_events // 100)
    shop.take_back_last_events()
    return shop


def _hold_back(shop: Shop, n_rows: int) -> None:
    """Move the last rows of the last month's file into a file of its own."""
    path = max(each for each in (shop.folder / "events").iterdir() if "late" not in each.name)
    rest, last = path.with_suffix(".rest"), shop.last_events.with_suffix(".part")
    with duckdb.connect() as connection:
        connection.execute(
            "create table events as select *, row_number() over (order by"
            " coalesce(event_ts::varchar between '2024' and '2026', false) desc,"
            " event_ts::varchar desc) as place from read_parquet($path)",
            {"path": str(path)},
        )
        for name, condition in ((rest, ">"), (last, "<=")):
            connection.execute(
                f"copy (select * exclude (place) from events where place {condition} {n_rows}"
                " order by place desc)"
                f" to '{name}' (format parquet, compression zstd)"
            )
    rest.rename(path)
    last.rename(shop.last_events)
