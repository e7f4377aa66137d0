"""Who may be published: figures in, a decision with a sentence out."""

import polars as pl

from ml_assets.promotion import ACCEPTED, FORCED, NOT_JUDGED, REFUSED, judge_promotion


def metrics(*rows, fold="2024-01-01/2024-01-29"):
    """METRICS from (model, value, difference, low, high)."""
    return pl.DataFrame(
        [
            {
                "fold": fold,
                "model": model,
                "target": "new_products",
                "segment": "known",
                "metric": "ndcg@20",
                "value": value,
                "n_users": 1_000,
                "difference": difference,
                "difference_low": low,
                "difference_high": high,
            }
            for model, value, difference, low, high in rows
        ],
        schema_overrides=dict.fromkeys(
            ("difference", "difference_low", "difference_high"), pl.Float64
        ),
    )


BLEND = ("hybrid", 0.15, None, None, None)
BEATEN = ("popular", 0.10, -0.05, -0.06, -0.04)


def test_ahead_of_popularity_and_alone_is_accepted_with_the_figures():
    found = judge_promotion(metrics(BLEND, BEATEN))

    assert found.decision == ACCEPTED
    assert found.verdict == (
        "ndcg@20 0.1500 on 2024-01-01/2024-01-29, 1,000 users; "
        "popular 0.1000 (-0.0500, -0.0600 to -0.0400)"
    )


def test_whoever_does_not_beat_popularity_in_the_mean_is_refused():
    found = judge_promotion(metrics(BLEND, ("popular_28_days", 0.16, 0.01, -0.02, 0.04)))

    assert found.decision == REFUSED
    assert found.verdict.startswith("not ahead of popular_28_days: ndcg@20 0.1500")


def test_worse_than_the_live_version_within_noise_is_accepted_beyond_it_refused():
    within = judge_promotion(metrics(BLEND, BEATEN, ("live", 0.16, 0.01, -0.001, 0.02)))
    beyond = judge_promotion(metrics(BLEND, BEATEN, ("live", 0.16, 0.01, 0.001, 0.02)))

    assert within.decision == ACCEPTED
    assert beyond.decision == REFUSED
    assert "worse than the live version beyond noise" in beyond.verdict


def test_of_several_folds_the_latest_counts():
    earlier = metrics(BLEND, ("popular", 0.2, 0.05, 0.04, 0.06), fold="2023-12-01/2023-12-29")

    assert judge_promotion(pl.concat([earlier, metrics(BLEND, BEATEN)])).decision == ACCEPTED


def test_without_a_fold_nothing_is_judged():
    assert judge_promotion(metrics(BEATEN)).decision == NOT_JUDGED


def test_a_refusal_can_be_forced_by_somebody_for_a_reason_and_nothing_else_can():
    refused = judge_promotion(metrics(BLEND, ("popular", 0.16, 0.01, 0.0, 0.02)))
    accepted = judge_promotion(metrics(BLEND, BEATEN))

    forced = refused.forced_by("Anna: the sale starts today")

    assert forced.decision == FORCED
    assert forced.verdict.startswith("forced by Anna: the sale starts today, although not ahead")
    assert accepted.forced_by("Anna") == accepted
