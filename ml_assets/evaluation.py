"""How good recommendations would have been: a global temporal holdout, full ranking.

Models learn from what happened up to a day and are asked about what came after it, for all
users at once, so nothing leaks from the future (Meng et al., "Exploring Data Splitting
Strategies for the Evaluation of Recommendation Models", RecSys 2020). All products of the
catalogue are ranked; sampled negatives can turn the order of models round (Krichene & Rendle,
"On Sampled Metrics for Item Recommendation", KDD 2020).
"""

import numpy as np
import polars as pl
import scipy.sparse as sp

from ml_assets.scoring import NOTHING


def ranking_metrics(
    best: np.ndarray, relevant: sp.csr_matrix, *, n_eligible: int
) -> dict[str, float]:
    """Means over the users who have something to find.

    - `recall`: found / relevant.
    - `ndcg`: binary gains, discount `1 / log2(rank + 1)`, ideal over min(k, relevant) (Järvelin
      & Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques", TOIS 2002).
    - `hit_rate`: share of users with at least one found.
    - `coverage`: share of the catalogue that anyone was shown.

    Args:
        best: `(n_users, k)` item positions, best first, `NOTHING` for an empty place.
        relevant: `(n_users, n_items)`, an entry is a product to find.
        n_eligible: Products that could have been shown.

    Raises:
        ValueError: if no user has anything to find.
    """
    n_relevant = np.diff(relevant.indptr)
    asked = np.flatnonzero(n_relevant)
    if len(asked) == 0:
        raise ValueError("no user of the holdout has anything to find")
    best, n_relevant = best[asked], n_relevant[asked]
    k = best.shape[1]
    hits = _hits(best, sp.csr_matrix(relevant[asked]))
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discount)[np.minimum(n_relevant, k) - 1]
    shown = np.unique(best[best != NOTHING])
    return {
        f"recall@{k}": float((hits.sum(axis=1) / n_relevant).mean()),
        f"ndcg@{k}": float(((hits * discount).sum(axis=1) / ideal).mean()),
        f"hit_rate@{k}": float(hits.any(axis=1).mean()),
        f"coverage@{k}": len(shown) / n_eligible,
    }


def _hits(best: np.ndarray, relevant: sp.csr_matrix) -> np.ndarray:
    """`(n_users, k)` bool: the proposed product is relevant."""
    n_items = relevant.shape[1]
    rows = np.repeat(np.arange(relevant.shape[0], dtype=np.int64), np.diff(relevant.indptr))
    wanted = rows * n_items + relevant.indices
    proposed = np.arange(len(best), dtype=np.int64)[:, None] * n_items + best
    return np.isin(proposed, wanted) & (best != NOTHING)


def metric_rows(
    fold: str, model: str, target: str, metrics: dict[str, float], n_users: int
) -> pl.DataFrame:
    """METRICS rows of one model on one fold."""
    return pl.DataFrame(
        {
            "fold": fold,
            "model": model,
            "target": target,
            "metric": list(metrics),
            "value": list(metrics.values()),
            "n_users": n_users,
        },
        schema_overrides={"n_users": pl.Int64},
    )


def metric_table(metrics: pl.DataFrame) -> str:
    """METRICS as a Markdown table, a row per model, in the order of the rows."""
    names = metrics["metric"].unique(maintain_order=True).to_list()
    wide = metrics.pivot("metric", index="model", values="value", maintain_order=True)
    lines = [
        "| model | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row in wide.iter_rows(named=True):
        cells = " | ".join(f"{row[name]:.4f}" for name in names)
        lines.append(f"| {row['model']} | {cells} |")
    return "\n".join(lines)
