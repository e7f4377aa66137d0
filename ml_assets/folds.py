"""A day of the past with what was known then and what came after it, as files."""

import json
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from ml_assets.frames import HOLDOUT, POPULARITY, PRODUCTS, SIGNALS, USERS

TABLES = {
    "signals": SIGNALS,
    "popularity": POPULARITY,
    # What a learned ranker looks at besides.
    "products": pl.Schema(
        {**PRODUCTS, "category": pl.String(), "brand": pl.String(), "price": pl.Float64()}
    ),
    "users": USERS,
    "holdout": HOLDOUT,
}
_LABEL = "fold.json"


@dataclass(frozen=True)
class Fold:
    """What models may learn from, and what they are asked about.

    Attributes:
        day: The last day that models see.
        n_days: Days of the answers, from the day after it.
        signals: SIGNALS as they were at the end of the day.
        popularity: POPULARITY likewise.
        products: PRODUCTS with `category`, `brand` and `price`.
        users: USERS.
        holdout: HOLDOUT, what users went for in the days after.
    """

    day: date
    n_days: int
    signals: pl.DataFrame
    popularity: pl.DataFrame
    products: pl.DataFrame
    users: pl.DataFrame
    holdout: pl.DataFrame

    @property
    def last_day(self) -> date:
        """The last day of the answers."""
        return self.day + timedelta(days=self.n_days)

    @property
    def as_arguments(self) -> dict[str, Any]:
        """What `backtest.look_back` takes."""
        return {
            "signals": self.signals,
            "holdout": self.holdout,
            "products": self.products,
            "popularity": self.popularity,
            "holdout_from": self.day,
            "as_of": self.last_day,
        }

    @property
    def name(self) -> str:
        """As in METRICS: `2011-11-11/2011-12-09`."""
        return f"{self.day}/{self.last_day}"


def write_fold(fold: Fold, folder: Path, *, made_from: str) -> None:
    """Keep a fold; what is in the folder is replaced.

    Args:
        fold: The tables.
        folder: Made if it is not there.
        made_from: What the fold depends on; `read_fold` gives it only to who asks for the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _LABEL).unlink(missing_ok=True)
    for name in TABLES:
        getattr(fold, name).write_parquet(folder / f"{name}.parquet")
    label = {"day": fold.day.isoformat(), "n_days": fold.n_days, "made_from": made_from}
    # Last: a fold without a label is none.
    (folder / _LABEL).write_text(json.dumps(label))


def read_fold(folder: Path, *, made_from: str) -> Fold | None:
    """A fold that was kept; None if there is none, or it was made from something else."""
    path = folder / _LABEL
    if not path.exists():
        return None
    label = json.loads(path.read_text())
    if label["made_from"] != made_from:
        return None
    tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    return Fold(day=date.fromisoformat(label["day"]), n_days=label["n_days"], **tables)
