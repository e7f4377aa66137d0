"""A page that holds the figures, loads nothing from anywhere, and says what it does not know."""

import base64
import re
from dataclasses import replace
from datetime import date, datetime
from functools import cache

import polars as pl
import pytest
from test_backtest import run_backtest
from test_curves import plain as curves_of_shop

from ml_assets.findings import VERSIONS, Findings, exposure
from ml_assets.frames import BLEND_CURVE, LEARNING_CURVE, METRICS
from ml_assets.report import make_report

SECTIONS = [
    "verdict",
    "headline",
    "over-k",
    "segments",
    "catalogue",
    "blend-curve",
    "learning-curve",
    "examples",
    "versions",
]
EVIL = '<img src=x onerror=alert(1)> & "it\'s"'
NOBODY = Findings(
    as_of=date(2024, 6, 29),
    run_id="0123456789",
    metrics=pl.DataFrame(schema=METRICS),
    blend_curve=pl.DataFrame(schema=BLEND_CURVE),
    learning_curve=pl.DataFrame(schema=LEARNING_CURVE),
    w_cf=0.7,
    w_content=0.3,
    exposure=exposure(
        pl.DataFrame({"product_id": ["p"], "n_interactions": [0], "n_recommended": [0]})
    ),
    examples=pl.DataFrame(
        schema={
            "user_id": pl.String,
            "rank": pl.Int32,
            "product_id": pl.String,
            "title": pl.String,
            "reason": pl.String,
            "is_hit": pl.Boolean,
        }
    ),
    answers=pl.DataFrame(
        schema={
            "user_id": pl.String,
            "product_id": pl.String,
            "title": pl.String,
            "is_new": pl.Boolean,
        }
    ),
    versions=pl.DataFrame(schema=list(VERSIONS)),
)


@cache
def findings():
    """A small shop, with a customer and a title that would break a careless page."""
    return replace(
        NOBODY,
        metrics=run_backtest().metrics,
        blend_curve=curves_of_shop().blend,
        learning_curve=curves_of_shop().learning,
        exposure=exposure(
            pl.DataFrame(
                {
                    "product_id": ["a", "b", "c", "d"],
                    "n_interactions": [6, 4, 2, 0],
                    "n_recommended": [12, 3, 0, 5],
                }
            )
        ),
        examples=pl.DataFrame(
            {
                "user_id": ["7", "7", EVIL],
                "rank": [1, 2, 1],
                "product_id": ["a", "b", "a"],
                "title": ["lamp", EVIL, "lamp"],
                "reason": ["Because you bought a chair", None, "Trending now"],
                "is_hit": [True, False, False],
            }
        ),
        answers=pl.DataFrame(
            {
                "user_id": ["7", "7", EVIL],
                "product_id": ["a", "c", "c"],
                "title": ["lamp", "cup", "cup"],
                "is_new": [True, False, True],
            }
        ),
        versions=pl.DataFrame(
            {
                "version": ["20240628T000000-aa"],
                "created_at": [datetime(2024, 6, 28, 3)],
                "state": ["rejected"],
                "decision": ["refused"],
                "verdict": ["not ahead of popular: ndcg@20 0.1"],
            }
        ),
    )


@cache
def page():
    return make_report(findings()).html


def text_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_every_section_is_there_with_something_in_it():
    assert re.findall(r"<section id='([^']*)'", page()) == SECTIONS
    assert "Nothing was measured" not in page() and "first version" not in page()
    assert page().count("<svg") == 8


def test_the_page_holds_the_figures_of_the_frames():
    metrics, text = findings().metrics, text_of(page())
    shown = metrics.filter(
        pl.col("segment") == "known",
        pl.col("metric").is_in(["recall@5", "ndcg@50", "mrr@20", "hit_rate@20", "gini@20"]),
    )
    for frame in (shown, metrics.filter(metric="ndcg@20")):
        for row in frame.iter_rows(named=True):
            bounds = "" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
            assert re.search(rf"{row['value']:.4f} ?[▲▼]? {re.escape(bounds)}", text), row
    for curve in (findings().blend_curve, findings().learning_curve):
        for row in curve.filter(metric="recall@20").iter_rows(named=True):
            assert f"{row['value']:.4f} {row['low']:.4f} to {row['high']:.4f}" in text


def test_a_chart_shows_each_figure_once_and_where_it_belongs():
    (svg,) = re.findall(r"<section id='blend-curve'>.*?(<svg.*?</svg>)", page(), re.DOTALL)

    # Points of two targets by two metrics, each at eleven weights.
    points = re.findall(r"<title>(blend, w_cf [^<]*)</title>", svg)
    values = findings().blend_curve.filter(pl.col("metric").is_in(["recall@20", "ndcg@20"]))
    circles = len(re.findall(r'aria-roledescription="circle"', svg))
    assert circles == len(values) == 44
    assert set(points) >= {
        f"blend, w_cf {row['w_cf']}: {round(row['value'], 4)}"
        f" ({round(row['low'], 4)} to {round(row['high'], 4)})"
        for row in values.iter_rows(named=True)
    }
    assert svg.count("this run: 0.7 / 0.3") >= 4


def test_nothing_is_loaded_from_anywhere():
    report = make_report(findings())

    assert not re.search(r"//|<script|<link|<iframe|<object|\bsrc=(?!x)|url\(|@import", report.html)
    assert "default-src 'none'" in report.html
    assert list(report.pictures) == ["accuracy", "over_k", "blend_curve", "learning_curve"]
    for picture in report.pictures.values():
        kind, _, data = picture.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert base64.b64decode(data).startswith(b"<svg")


def test_titles_ids_and_verdicts_cannot_break_the_page():
    assert "<img" not in page()
    assert page().count("&lt;img src=x onerror=alert(1)&gt; &amp;") == 2


def test_hits_are_marked_in_the_list_and_among_what_the_customer_went_for():
    first, second = re.findall(r"<div class='example'>.*?</div></div></div>", page(), re.DOTALL)

    assert "1 of 2 rows hit" in first and "0 of 1 rows hit" in second
    assert re.findall(r"<li class=hit>(\w+)", first) == ["lamp", "lamp"]
    assert "cup <small>had it before</small>" in first and "had it before" not in second
    assert "hit>" not in second


def test_recommended_rows_are_held_against_interactions():
    of_products = findings().exposure

    # Half of twelve interactions are those of a.
    assert of_products.rows() == [("head", 1, 6, 12), ("tail", 2, 6, 3), ("new", 1, 0, 5)]
    assert "1 (25.0 %)</td><td>6 (50.0 %)</td><td>12 (60.0 %)" in page()


def test_the_gate_of_this_run_and_of_those_before_is_told():
    text = text_of(page())

    assert "Gate: accepted" in text
    assert "20240628T000000-aa 2024-06-28 03:00 rejected refused not ahead of popular" in text


def test_a_run_without_figures_gives_a_page_that_says_so():
    html = make_report(NOBODY).html

    assert re.findall(r"<section id='([^']*)'", html) == SECTIONS
    assert "No fold of the past could be asked" in html
    assert "no model could be held against a fold" in html and "not judged" in html
    assert html.count("Nothing was measured here.") == 7 and "first version" in html
    assert "<svg" not in html and make_report(NOBODY).pictures == {}


@pytest.mark.parametrize("model", ["popular", "hybrid"])
def test_one_figure_of_one_user_is_enough_for_a_page(model):
    one = pl.DataFrame(
        {
            "fold": "2024-06-01/2024-06-29",
            "model": model,
            "target": "new_products",
            "segment": "known",
            "metric": "recall@20",
            "value": 0.25,
            "n_users": 1,
        }
    ).match_to_schema(METRICS, missing_columns="insert")

    text = text_of(make_report(replace(NOBODY, metrics=one)).html)

    assert "0.2500" in text and "1 customers" in text
    assert ("25.0 % stood in their lists" in text) == (model == "hybrid")


def test_the_same_findings_give_the_same_page():
    assert make_report(findings()).html == page()
