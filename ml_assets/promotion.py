"""May this be published? The blend against popularity, and against what is live, on one fold."""

from dataclasses import dataclass

import polars as pl

# The blend as the settings have it, and as those of the live version have it.
DEFAULT = "hybrid"
LIVE = "live"

BASELINES = ("popular", "popular_28_days")
TARGET, SEGMENT, METRIC = "new_products", "known", "ndcg@20"

ACCEPTED, REFUSED, NOT_JUDGED, FORCED = "accepted", "refused", "not judged", "forced"


@dataclass(frozen=True)
class Promotion:
    """What was decided, with the figures in words.

    Attributes:
        decision: `ACCEPTED`, `REFUSED`, `NOT_JUDGED` or `FORCED`.
        verdict: A sentence.
    """

    decision: str
    verdict: str

    def forced_by(self, who_and_why: str) -> "Promotion":
        """A refusal that somebody overrides; anything else stays as it is."""
        if self.decision != REFUSED:
            return self
        return Promotion(FORCED, f"forced by {who_and_why}, although {self.verdict}")


def judge_promotion(metrics: pl.DataFrame) -> Promotion:
    """Decide by the latest fold: ahead of popularity, and not worse than the live one beyond noise.

    Popularity has to be beaten in the mean, since whoever cannot do that needs no model. The live
    version's settings are measured on the same fold and the same users, and only a difference whose
    95 % interval excludes zero counts against the new ones.

    Args:
        metrics: METRICS; `difference` of each model is its value minus that of the blend.
    """
    rows = metrics.filter(
        (pl.col("target") == TARGET) & (pl.col("segment") == SEGMENT) & (pl.col("metric") == METRIC)
    )
    own = rows.filter(pl.col("model") == DEFAULT).sort("fold").tail(1).to_dicts()
    if not own:
        return Promotion(NOT_JUDGED, "no model could be held against a fold of the past")
    (blend,) = own
    others = {
        row["model"]: row
        for row in rows.filter(pl.col("fold") == blend["fold"]).iter_rows(named=True)
    }
    figures = [f"{METRIC} {blend['value']:.4f} on {blend['fold']}, {blend['n_users']:,} users"]
    reasons = []
    for name in (*BASELINES, LIVE):
        if name not in others:
            continue
        row = others[name]
        figures.append(f"{name} {row['value']:.4f} ({_difference(row)})")
        if name == LIVE and (row["difference_low"] or 0) > 0:
            reasons.append("worse than the live version beyond noise")
        if name != LIVE and row["difference"] >= 0:
            reasons.append(f"not ahead of {name}")
    text = "; ".join(figures)
    if reasons:
        return Promotion(REFUSED, f"{' and '.join(reasons)}: {text}")
    return Promotion(ACCEPTED, text)


def _difference(row: dict[str, float]) -> str:
    text = f"{row['difference']:+.4f}"
    if row["difference_low"] is None:
        return text
    return f"{text}, {row['difference_low']:+.4f} to {row['difference_high']:+.4f}"
