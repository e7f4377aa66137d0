"""`make bench-models`: the collaborative models beside each other on several data sets.

Why item_item is the default is a question of evidence, and this is where it comes from: the same
matrices, scoring and metrics as the line's, default settings, no tuning. Writes docs/models.md.
Data sets that may not be shipped are read from a folder of the user's; those not found are left
out, and the page says so.
"""

import argparse
import gzip
import io
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import scipy.sparse as sp

from ml_assets.assets import RecommenderSettings
from ml_assets.evaluation import PerUser, accuracy, find
from ml_assets.intervals import Resampled, draw_users, pool, resample
from ml_assets.models import fit_model
from ml_assets.recommend import Hybrid, propose
from ml_assets.signal_matrix import SignalMatrix, build_signal_matrix, positions
from orchestration.settings import REPOSITORY

K = 20
HALF_LIFE_DAYS = 30
HOLDOUT_DAYS = 28
MODELS = ("popularity", "als", "item_item")
DEFAULT_MODEL = RecommenderSettings().cf_model
# The folds of the bundled shop end before the holdout of its README.
RETAIL_FOLDS = ("2011-08-12", "2011-09-09", "2011-10-14")


@dataclass(frozen=True)
class Fold:
    """What a model sees, and what the users went for afterwards."""

    matrix: SignalMatrix
    relevant: sp.csr_matrix


@dataclass(frozen=True)
class DataSet:
    """A name, where the figures come from, and the folds."""

    name: str
    split: str
    folds: list[Fold]


def temporal_folds(connection: duckdb.DuckDBPyConnection, days: tuple[str, ...]) -> list[Fold]:
    """Folds over the table `events` (user_id, product_id, event_on, weight), one a day."""
    folds = []
    for day in map(date.fromisoformat, days):
        signals = connection.sql(
            """
            with seen as (
                select *, max(event_on) over (partition by user_id) as user_last_on
                from events where event_on <= $day
            )
            select
                user_id, product_id,
                sum(weight * 0.5 ** (($day - event_on) / $half_life)) as weight,
                sum(weight * 0.5 ** ((user_last_on - event_on) / $half_life)) as relative_weight,
                0 as n_carts, 1 as n_purchases,
                false as is_only_rated, true as is_training
            from seen group by all
            """,
            params={"day": day, "half_life": float(HALF_LIFE_DAYS)},
        ).pl()
        holdout = connection.sql(
            "select distinct user_id, product_id from events"
            " where event_on > $day and event_on <= $day + $n_days",
            params={"day": day, "n_days": HOLDOUT_DAYS},
        ).pl()
        folds.append(_fold(signals, holdout))
    return folds


def _fold(signals: pl.DataFrame, holdout: pl.DataFrame) -> Fold:
    """Of the holdout, what is new to users and products that were there before."""
    matrix = build_signal_matrix(
        signals, user_ids=signals["user_id"], product_ids=signals["product_id"]
    )
    known = holdout.filter(
        pl.col("user_id").is_in(matrix.user_ids.implode())
        & pl.col("product_id").is_in(matrix.product_ids.implode())
    ).join(signals, on=["user_id", "product_id"], how="anti")
    place = (
        positions(known["user_id"], matrix.user_ids),
        positions(known["product_id"], matrix.product_ids),
    )
    ones = np.ones(len(known), dtype=np.float32)
    return Fold(matrix, sp.csr_matrix((ones, place), shape=matrix.weights.shape))


def online_retail() -> DataSet:
    """The bundled shop: purchases of the public file, as its adapter reads them."""
    path = REPOSITORY / "data" / "online_retail" / "online_retail.parquet"
    connection = duckdb.connect()
    connection.execute(
        f"""
        create table events as
        select
            CustomerID::varchar as user_id, upper(StockCode) as product_id,
            InvoiceDate::date as event_on, 5 * least(count(*), 3) as weight
        from read_parquet('{path}')
        where CustomerID is not null and Quantity > 0 and UnitPrice > 0
            and regexp_full_match(upper(StockCode), '[0-9]{{5}}[A-Z]{{0,2}}')
        group by all
        """
    )
    return DataSet(
        "Online Retail",
        f"{len(RETAIL_FOLDS)} folds of four weeks",
        temporal_folds(connection, RETAIL_FOLDS),
    )


def gowalla(folder: Path) -> DataSet:
    """The published split of Gowalla (BARS id Gowalla_m1); the test part is asked once."""
    train, test = (_pairs(folder / f"{part}.txt.gz") for part in ("train", "test"))
    signals = train.with_columns(
        weight=1.0,
        relative_weight=1.0,
        n_carts=0,
        n_purchases=1,
        is_only_rated=False,
        is_training=True,
    )
    return DataSet("Gowalla", "the published test part", [_fold(signals, test)])


def _pairs(path: Path) -> pl.DataFrame:
    with gzip.open(path, "rt") as file:
        lines = [line.split() for line in file]
    return pl.DataFrame(
        {
            "user_id": [line[0] for line in lines for _ in line[1:]],
            "product_id": [item for line in lines for item in line[1:]],
        }
    )


def deskdrop(folder: Path) -> DataSet:
    """Deskdrop: articles read and liked in a company."""
    with zipfile.ZipFile(folder / "users_interactions.csv.zip") as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".csv"))
        rows = pl.read_csv(io.BytesIO(archive.read(name)), infer_schema_length=0)
    connection = duckdb.connect()
    connection.register("rows", rows.to_arrow())
    connection.execute(
        """
        create table events as
        select
            personId as user_id, contentId as product_id,
            to_timestamp(timestamp::bigint)::date as event_on,
            max(case eventType when 'VIEW' then 1.0 when 'LIKE' then 2.0 else 3.0 end) as weight
        from rows group by all
        """
    )
    days = ("2016-08-01", "2016-09-15", "2016-11-01")
    return DataSet("Deskdrop", "3 folds of four weeks", temporal_folds(connection, days))


def complete_journey(folder: Path) -> DataSet:
    """Complete Journey: a random sample of the rows of a grocer's receipts."""
    connection = duckdb.connect()
    connection.execute(
        f"""
        create table events as
        select
            household_id::varchar as user_id, product_id::varchar as product_id,
            transaction_timestamp::date as event_on, 5.0 as weight
        from read_parquet('{folder}/transactions_sample.parquet')
        """
    )
    days = ("2017-08-01", "2017-09-01", "2017-10-01")
    return DataSet("Complete Journey", "3 folds of four weeks", temporal_folds(connection, days))


def measure(data: DataSet, name: str) -> tuple[list[tuple[pl.Series, PerUser]], float, float]:
    """Users asked and their figures, a fold each; processor seconds of training and of scoring."""
    folds, fit, score = [], [], []
    for fold in data.folds:
        settings = RecommenderSettings().as_settings()
        settings["popularity"] = np.asarray(fold.matrix.touched.sum(axis=0)).ravel()
        asked = np.flatnonzero(np.diff(fold.relevant.indptr))
        started = time.process_time()
        model = fit_model(name, fold.matrix, settings=settings, seed=settings["seed"])
        fitted = time.process_time()
        lists = propose(
            Hybrid(cf=model.for_users(asked), content=None, w_cf=1.0, w_content=0.0),
            k=K,
            exclude=sp.csr_matrix(fold.matrix.touched[asked]),
            eligible=np.ones(len(fold.matrix.product_ids), dtype=bool),
            block_bytes=settings["block_bytes"],
            progress=lambda _: None,
        )
        fit.append(fitted - started)
        score.append(time.process_time() - fitted)
        relevant = sp.csr_matrix(fold.relevant[asked])
        figures = accuracy(find(lists.items, relevant), relevant, cutoffs=(K,))
        folds.append((fold.matrix.user_ids.gather(asked), figures))
    return folds, float(np.mean(fit)), float(np.mean(score))


def table_of(data: DataSet) -> list[str]:
    """A row per model, over all users and folds, the models compared on the same users."""
    measured = {name: measure(data, name) for name in MODELS}
    pooled = {name: pool(folds) for name, (folds, *_) in measured.items()}
    user_of_row = pooled[DEFAULT_MODEL][0]
    draws = draw_users(user_of_row, seed=RecommenderSettings().seed)
    found = dict(
        zip(pooled, resample([figures for _, figures in pooled.values()], draws), strict=True)
    )
    lines = []
    for name, resampled in found.items():
        difference = resampled.minus(found[DEFAULT_MODEL])
        seconds = " | ".join(f"{each:.1f}" for each in measured[name][1:])
        figures = " | ".join(
            _with_interval(each, f"{metric}@{K}")
            for each, metric in (
                (resampled, "recall"),
                (resampled, "ndcg"),
                (difference, "ndcg"),
            )
        )
        if name == DEFAULT_MODEL:
            figures = figures.rsplit(" | ", 1)[0] + " | "
        lines.append(
            f"| {data.name}, {data.split} | {len(user_of_row):,} | {name} | {figures} | {seconds} |"
        )
    return lines


def _with_interval(resampled: Resampled, metric: str) -> str:
    at = resampled.names.index(metric)
    low, high = resampled.interval()
    return f"{resampled.value[at]:.4f} ({low[at]:.4f} to {high[at]:.4f})"


def report(sets: list[DataSet], left_out: list[str]) -> str:
    """The page."""
    lines = [
        "# Which collaborative model, and why",
        "",
        "Written by `make bench-models`. Default settings, nothing tuned on these figures, except"
        " that the defaults of both models were chosen on the folds of Online Retail shown here and"
        " on a part held out of Gowalla's train. Full ranking, only products new to the user, means"
        " over users and folds with intervals of 95 %: users are resampled, each with all their"
        " folds, and differences are between the same users. Processor seconds on all cores"
        " together, means over the folds.",
        "",
        f"| data | users asked | model | Recall@{K} | NDCG@{K} | NDCG@{K} less {DEFAULT_MODEL}'s |"
        " training, s | scoring, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data in sets:
        lines += table_of(data)
    if left_out:
        lines += ["", f"Not found, and left out: {', '.join(left_out)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with gowalla/, deskdrop/ ...")
    arguments = parser.parse_args()
    others: dict[str, Callable[[Path], DataSet]] = {
        "gowalla": gowalla,
        "deskdrop": deskdrop,
        "complete_journey": complete_journey,
    }
    sets, left_out = [online_retail()], []
    for name, read in others.items():
        if arguments.data is not None and (arguments.data / name).is_dir():
            sets.append(read(arguments.data / name))
        else:
            left_out.append(name)
    # Compiled before anything is timed.
    for name in MODELS:
        measure(DataSet("", "", sets[0].folds[:1]), name)
    page = REPOSITORY / "docs" / "models.md"
    page.write_text(report(sets, left_out))
    print(page.read_text())


if __name__ == "__main__":
    main()
