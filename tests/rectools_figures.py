# /// script
# requires-python = ">=3.11,<3.12"
# dependencies = ["rectools==0.19.0", "pandas<3", "numpy<2"]
# ///
"""What RecTools says of a few lists: writes tests/data/rectools.json for test_evaluation.py.

RecTools 0.19 wants numpy below 2, pandas below 3 and attrs below 24, and brings pm-implicit, which
overwrites implicit's modules: it cannot be installed beside recmart. Run it in an environment of
its own:

    uv run --no-project --script tests/rectools_figures.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from rectools import Columns
from rectools.metrics import (
    MAP,
    MRR,
    NDCG,
    CatalogCoverage,
    HitRate,
    IntraListDiversity,
    MeanInvUserFreq,
    Precision,
    Recall,
)
from rectools.metrics.distances import PairwiseDistanceCalculator

CUTOFFS = (5, 10, 20, 50)
N_USERS, N_ITEMS, N_DIMENSIONS = 40, 120, 6


class Cosine(PairwiseDistanceCalculator):
    """1 - cosine of two products' vectors."""

    def __init__(self, vectors: np.ndarray) -> None:
        """Take vectors, `(n_items, d)`."""
        self.unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _get_distances_for_item_pairs(self, items_0, items_1):
        pairs = self.unit[np.asarray(items_0, int)] * self.unit[np.asarray(items_1, int)]
        return 1 - pairs.sum(axis=1)


def fixture() -> dict:
    """Lists, answers, a past and vectors: short lists, one answer, more answers than places."""
    rng = np.random.default_rng(2011)
    lists, answers, past = [], [], []
    for user in range(N_USERS):
        length = 50 if user % 5 else int(rng.integers(2, 50))
        lists.append(rng.choice(N_ITEMS, length, replace=False).tolist())
        n_answers = (1, 3, 10, 70)[user % 4]
        answers.append(sorted(rng.choice(N_ITEMS, n_answers, replace=False).tolist()))
        # The last tenth of the catalogue has no past.
        past.append(sorted(rng.choice(N_ITEMS - 12, 15, replace=False).tolist()))
    vectors = rng.integers(-3, 4, (N_ITEMS, N_DIMENSIONS))
    vectors[:, 0] = np.where(vectors.any(axis=1), vectors[:, 0], 1)
    return {"lists": lists, "answers": answers, "past": past, "vectors": vectors.tolist()}


def table(rows: list[list[int]]) -> pd.DataFrame:
    """A row per user and item, ranked."""
    return pd.DataFrame(
        [(user, item, rank) for user, own in enumerate(rows) for rank, item in enumerate(own, 1)],
        columns=[Columns.User, Columns.Item, Columns.Rank],
    )


def main() -> None:
    """Write the fixture with the figures."""
    given = fixture()
    reco, answers, past = (table(given[name]) for name in ("lists", "answers", "past"))
    distance = Cosine(np.array(given["vectors"], dtype=float))
    per_user, overall = {}, {}
    for k in CUTOFFS:
        judged = {
            "precision": Precision(k),
            "recall": Recall(k),
            "ndcg": NDCG(k, divide_by_achievable=True),
            "map": MAP(k),
            "mrr": MRR(k),
            "hit_rate": HitRate(k),
        }
        for name, metric in judged.items():
            per_user[f"{name}@{k}"] = metric.calc_per_user(reco, answers)
        per_user[f"novelty@{k}"] = MeanInvUserFreq(k).calc_per_user(reco, past)
        per_user[f"diversity@{k}"] = IntraListDiversity(k, distance).calc_per_user(reco)
        overall[f"coverage@{k}"] = CatalogCoverage(k, normalize=True).calc(reco, range(N_ITEMS))
    everyone = range(N_USERS)
    page = {
        "rectools": version("rectools"),
        **given,
        "per_user": {name: series[everyone].tolist() for name, series in per_user.items()},
        "mean": {name: float(series.mean()) for name, series in per_user.items()},
        "overall": overall,
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in page.items())
    path = Path(__file__).parent / "data" / "rectools.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
