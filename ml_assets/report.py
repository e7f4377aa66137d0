"""The report: a run's figures as one HTML page, for people who run a shop or look at its data.

Charts are drawn by Vega-Lite and stand in the page as SVG, so it needs neither a script nor a
network, and its Content-Security-Policy allows none. What a chart shows stands below it in figures.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import polars as pl

from ml_assets.findings import Findings
from ml_assets.judging import TARGETS
from ml_assets.promotion import BASELINES, DEFAULT, LIVE, judge_promotion

_NAMES = {
    "random": "chance",
    "popular": "popular, all time",
    "popular_28_days": "popular, 28 days",
    "content": "texts",
    DEFAULT: "blend",
    LIVE: "live version",
}
_COLOURS = {
    "random": "#b9bec6",
    "popular": "#8d949e",
    "popular_28_days": "#565d68",
    "content": "#d98a1f",
    DEFAULT: "#c0273d",
    LIVE: "#7a4fb0",
}
_TASTE = "#2672b0"
_METRICS = {
    "recall": "recall",
    "ndcg": "NDCG",
    "map": "MAP",
    "mrr": "MRR",
    "hit_rate": "hit rate",
    "coverage": "coverage",
    "gini": "Gini",
    "novelty": "novelty",
    "diversity": "diversity",
}
_HEADLINE = ("recall@20", "ndcg@20", "map@20", "mrr@20", "hit_rate@20", "precision@20")
_OF_LISTS = ("coverage@20", "gini@20", "novelty@20", "diversity@20")
_SEGMENTS = {
    "customers": ("light", "heavy", "cold"),
    "products": ("head", "tail", "new", "purchases"),
}


@dataclass(frozen=True)
class Report:
    """What was made.

    Attributes:
        html: The page.
        pictures: The main charts by name, each an SVG as a data URI.
    """

    html: str
    pictures: dict[str, str]


def make_report(findings: Findings) -> Report:
    """Write the page. Takes some seconds, of which Altair's import is one, whatever the shop."""
    metrics = findings.metrics.filter(pl.col("fold") == pl.col("fold").max())
    charts: dict[str, str] = {}
    sections = [
        _verdict(findings, metrics),
        _headline(metrics, charts),
        _over_k(metrics, charts),
        _segments(metrics),
        _catalogue(metrics, findings.exposure),
        _blend(findings, charts),
        _learning(findings, charts),
        _examples(findings),
        _versions(findings),
    ]
    return Report(
        html=_page(findings, metrics, sections),
        pictures={name: _picture(svg) for name, svg in charts.items()},
    )


# Sections, in the order of the page. Each answers a question, or says that it cannot.


def _verdict(findings: Findings, metrics: pl.DataFrame) -> str:
    promotion = judge_promotion(metrics)
    lines = [
        f"<p class='verdict {escape(promotion.decision.replace(' ', '-'))}'>"
        f"Gate: <b>{escape(promotion.decision)}</b>. {escape(promotion.verdict)}.</p>"
    ]
    found = _in_short(metrics)
    if found:
        lines.append("<ul>" + "".join(f"<li>{line}</li>" for line in found) + "</ul>")
    return _section("verdict", "In short", "", "".join(lines))


def _in_short(metrics: pl.DataFrame) -> list[str]:
    known = metrics.filter(segment="known", target="new_products")
    by_key = {(row["model"], row["metric"]): row for row in known.iter_rows(named=True)}
    blend = by_key.get((DEFAULT, "recall@20"))
    if blend is None:
        return []
    lines = [
        f"{blend['n_users']:,} customers with a past bought or looked at products that were new to "
        f"them. Of these products, {_percent(blend)} stood in their lists of 20."
    ]
    hit = by_key.get((DEFAULT, "hit_rate@20"))
    if hit is not None:
        lines.append(f"{_percent(hit)} of them found at least one.")
    rivals = [by_key[name, "recall@20"] for name in BASELINES if (name, "recall@20") in by_key]
    if rivals:
        rival = max(rivals, key=lambda row: row["value"])
        text = f"The best list of what is popular ({_name(rival['model'])}) finds {_percent(rival)}"
        if rival["difference"] is not None:
            ahead = -100 * rival["difference"]
            sure = "a sure" if rival["is_different"] else "not a sure"
            way = "ahead" if ahead >= 0 else "behind"
            text += f"; the blend is {abs(ahead):.1f} points {way}, {sure} difference"
        lines.append(text + ".")
    coverage = by_key.get((DEFAULT, "coverage@20"))
    if coverage is not None:
        lines.append(f"All lists together show {_percent(coverage)} of the catalogue.")
    return lines


def _percent(row: dict[str, Any]) -> str:
    text = f"{100 * row['value']:.1f} %"
    if row["low"] is None:
        return text
    return f"{text} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def _headline(metrics: pl.DataFrame, charts: dict[str, str]) -> str:
    known = metrics.filter(segment="known")
    parts = []
    rows = known.filter(pl.col("metric").is_in(["recall@20", "ndcg@20"]))
    if len(rows):
        charts["accuracy"] = _svg(
            _grid(
                rows,
                lambda each, title: _intervals(
                    each, down="model", order=(), title=title, legend=False
                ),
                margin=130,
            )
        )
        parts.append(_figure(charts["accuracy"]))
    for target, meaning in TARGETS.items():
        of_target = known.filter(target=target)
        if len(of_target):
            users = f"{max(of_target['n_users']):,} customers"
            parts.append(f"<h3>{escape(meaning.capitalize())} <small>{users}</small></h3>")
            parts.append(_metric_table(of_target, _HEADLINE))
    return _section(
        "headline",
        "How good are the lists?",
        "Each dot is a model, its line where the figure would fall for 95 of 100 equally large "
        "groups of customers. Further right is better. ▲ ▼ in the tables: surely above or below "
        "the blend, customer by customer.",
        "".join(parts),
    )


def _over_k(metrics: pl.DataFrame, charts: dict[str, str]) -> str:
    rows = metrics.filter(
        (pl.col("segment") == "known") & pl.col("metric").str.contains(r"^(recall|ndcg)@\d+$")
    ).with_columns(
        k=pl.col("metric").str.extract(r"@(\d+)$", 1).cast(pl.Int32),
        metric=pl.col("metric").str.extract(r"^(.*)@", 1),
    )
    body = ""
    if len(rows):
        charts["over_k"] = _svg(
            _curve_grid(rows, x="k", x_title="rows looked at", values=[5, 10, 20, 50], is_log=True)
        )
        body = _figure(charts["over_k"]) + _figures(rows, "k")
    return _section(
        "over-k",
        "What if customers look at more of the list?",
        "Left is a phone's screen, right a long page. Recall can only rise; NDCG counts a find "
        "the more the higher it stands.",
        body,
    )


def _segments(metrics: pl.DataFrame) -> str:
    rows = metrics.filter((pl.col("metric") == "ndcg@20") & (pl.col("target") == "new_products"))
    parts = []
    charts = [
        _intervals(chosen, down="segment", order=names, title=kind, legend=True)
        for kind, names in _SEGMENTS.items()
        if len(chosen := rows.filter(pl.col("segment").is_in(names)))
    ]
    weeks = metrics.filter(
        pl.col("metric").is_in(["recall@20", "ndcg@20"])
        & (pl.col("target") == "new_products")
        & pl.col("segment").str.starts_with("week_")
    ).with_columns(week=pl.col("segment").str.extract(r"(\d+)$", 1).cast(pl.Int32))
    if charts:
        parts.append(_figure(_svg(_beside(charts))))
    if len(weeks):
        found = weeks["week"].unique().sort().to_list()
        parts.append(
            "<h3>Week by week</h3><p class='aid'>A line that falls: the lists grow old.</p>"
        )
        chart = _curve_grid(weeks, x="week", x_title="week after the lists", values=found)
        parts.append(_figure(_svg(chart)))
    if len(rows):
        parts.append(_details("Figures, both targets", _segment_tables(metrics)))
    return _section(
        "segments",
        "For whom, and for what?",
        "NDCG@20, products new to the customer. Light: customers whose history is no longer than "
        "the median; heavy: longer; cold: none. Head: the few products that make half of all "
        "interactions; tail: the rest; new: touched by nobody before; purchases: what was bought.",
        "".join(parts),
    )


def _segment_tables(metrics: pl.DataFrame) -> str:
    parts = []
    for target, meaning in TARGETS.items():
        rows = metrics.filter(target=target, metric="ndcg@20")
        names = rows["segment"].unique(maintain_order=True).to_list()
        if names:
            parts.append(f"<h3>{escape(meaning.capitalize())}</h3>")
            parts.append(_cells(rows, down="segment", names=names, across="model"))
    return "".join(parts)


def _catalogue(metrics: pl.DataFrame, exposure: pl.DataFrame) -> str:
    known = metrics.filter(segment="known", target="new_products")
    parts = []
    rows = known.filter(pl.col("metric").is_in(_OF_LISTS))
    if len(rows):
        parts.append(_figure(_svg(_bars(rows))))
        for target, meaning in TARGETS.items():
            of_target = metrics.filter(segment="known", target=target)
            parts.append(f"<h3>Lists for {escape(meaning)}</h3>")
            parts.append(_metric_table(of_target, _OF_LISTS))
    totals = {name: int(exposure[name].sum()) for name in exposure.columns if name.startswith("n_")}
    if totals and all(totals.values()):
        parts.append(
            "<h3>Who gets the rows?</h3><p class='aid'>Today's lists. Where the red bar is longer "
            "than the grey one, those products are shown more than customers go for them.</p>"
        )
        parts.append(_figure(_svg(_shares(exposure, totals))))
        parts.append(
            _table(
                ["products", "of the catalogue", "of interactions", "of recommended rows"],
                [
                    [
                        row["segment"],
                        *(f"{row[n]:,} ({100 * row[n] / totals[n]:.1f} %)" for n in totals),
                    ]
                    for row in exposure.iter_rows(named=True)
                ],
            )
        )
    return _section(
        "catalogue",
        "How much of the catalogue is shown, and is it only bestsellers?",
        "Coverage: share of the catalogue that anybody is shown. Gini: 0 when all products are "
        "shown alike, 1 when all lists are the same. Novelty: the higher, the rarer what is "
        "shown. Diversity: how unlike the texts on a list are.",
        "".join(parts),
    )


def _blend(findings: Findings, charts: dict[str, str]) -> str:
    rows = _of_curves(findings.blend_curve)
    body = ""
    if len(rows):
        here = findings.w_cf / (findings.w_cf + findings.w_content)
        charts["blend_curve"] = _svg(
            _curve_grid(
                rows,
                x="w_cf",
                x_title="weight of taste; the rest is the weight of texts",
                marks={here: f"this run: {here:.2g} / {1 - here:.2g}"},
            )
        )
        best = rows.filter(target="new_products", metric="ndcg").sort("value").tail(1)
        at = "".join(
            f"<p>Best NDCG@20 for new products: {row['value']:.4f} at "
            f"{row['w_cf']:g} / {row['w_content']:g}.</p>"
            for row in best.iter_rows(named=True)
        )
        body = _figure(charts["blend_curve"]) + at + _figures(rows, "w_cf")
    return _section(
        "blend-curve",
        "How much taste, how much text?",
        "Left: only what products' texts say. Right: only what customers of similar taste went "
        "for. Where the band is flat, the weights hardly matter. To change them, let the job "
        "tune_settings choose: it asks earlier days, so that this fold stays an honest test.",
        body,
    )


def _learning(findings: Findings, charts: dict[str, str]) -> str:
    rows = _of_curves(findings.learning_curve)
    body = ""
    if len(rows):
        days = rows["n_days"].unique().sort().to_list()
        charts["learning_curve"] = _svg(
            _curve_grid(
                rows,
                x="n_days",
                x_title="days of records before the fold",
                values=days,
                is_log=True,
            )
        )
        body = _figure(charts["learning_curve"]) + _figures(rows, "n_days")
    return _section(
        "learning-curve",
        "Does more history help?",
        "The blend, learned from the signals of the last 28, 56, 112, … days before the fold, for "
        "the same customers and questions each time. Still rising on the right: keep collecting. "
        "A customer and a product count by their latest day.",
        body,
    )


def _of_curves(frame: pl.DataFrame) -> pl.DataFrame:
    """The figures that are drawn, as of the blend."""
    return frame.filter(pl.col("metric").is_in(["recall@20", "ndcg@20"])).with_columns(
        metric=pl.col("metric").str.extract(r"^(.*)@", 1), model=pl.lit(DEFAULT)
    )


def _examples(findings: Findings) -> str:
    parts = []
    for (user_id,), rows in findings.examples.group_by("user_id", maintain_order=True):
        answers = findings.answers.filter(user_id=user_id)
        n_hits = int(rows["is_hit"].sum())
        shown = "".join(
            f"<li{' class=hit' if row['is_hit'] else ''}>{escape(row['title'])}"
            f"{' ✔' if row['is_hit'] else ''} <small>{escape(row['reason'] or '')}</small></li>"
            for row in rows.head(10).iter_rows(named=True)
        )
        hits = set(rows.filter("is_hit")["product_id"])
        went_for = "".join(
            f"<li{' class=hit' if row['product_id'] in hits else ''}>{escape(row['title'])}"
            f"{'' if row['is_new'] else ' <small>had it before</small>'}</li>"
            for row in answers.head(12).iter_rows(named=True)
        )
        more = f"<p><small>and {len(answers) - 12:,} more</small></p>" if len(answers) > 12 else ""
        parts.append(
            f"<div class='example'><h3>Customer {escape(str(user_id))} "
            f"<small>{n_hits} of {len(rows)} rows hit</small></h3><div class='two'>"
            f"<div><h4>Shown first</h4><ol>{shown}</ol></div>"
            f"<div><h4>Went for, {len(answers):,} products</h4><ul>{went_for}</ul>{more}</div>"
            "</div></div>"
        )
    return _section(
        "examples",
        "What do lists look like?",
        "Customers whom nobody chose: the first by a hash of their id. Lists as they would have "
        "been made before the fold; ✔ marks what the customer then went for.",
        "".join(parts),
    )


def _versions(findings: Findings) -> str:
    body = ""
    if len(findings.versions):
        body = _table(
            ["version", "made", "state", "gate", "figures"],
            [
                [
                    row["version"],
                    f"{row['created_at']:%Y-%m-%d %H:%M}",
                    row["state"],
                    row["decision"] or "",
                    row["verdict"] or "",
                ]
                for row in findings.versions.iter_rows(named=True)
            ],
        )
    return _section(
        "versions",
        "What was decided before?",
        "Versions of earlier runs, latest first. A refused one is not published; the last good "
        "one stays live.",
        body,
        nothing="This is the first version.",
    )


# Charts.


def _named(rows: pl.DataFrame) -> pl.DataFrame:
    """With what people read: names of models, and each figure in words."""
    bounds = pl.format(
        " ({} to {})", *(pl.col(name).round(4).cast(pl.String) for name in ("low", "high"))
    ).fill_null("")
    # Drawn last, what is published stays visible where it is as good as another.
    rows = rows.sort(pl.col("model") == DEFAULT, maintain_order=True)
    extra = [name for name in ("k", "week", "w_cf", "n_days") if name in rows.columns]
    where = [pl.format(", {} {}", pl.lit(name), pl.col(name)) for name in extra]
    return rows.with_columns(
        model=pl.col("model").map_elements(_name, return_dtype=pl.String),
        words=pl.concat_str(
            pl.col("model").map_elements(_name, return_dtype=pl.String),
            *where,
            pl.format(": {}", pl.col("value").round(4).cast(pl.String)),
            bounds,
        ),
    )


def _in_order(models: pl.Series) -> list[str]:
    """What is published first, baselines last: METRICS turned round."""
    names = models.unique(maintain_order=True).to_list()[::-1]
    return sorted(names, key=lambda name: (name != DEFAULT, name != LIVE))


def _name(model: str) -> str:
    return _NAMES.get(model, f"taste ({model})")


def _metric_name(metric: str) -> str:
    name, at, k = metric.partition("@")
    return f"{_METRICS.get(name, name)}{at}{k}"


def _colour(rows: pl.DataFrame, *, legend: bool = True) -> Any:
    import altair as alt

    models = _in_order(rows["model"])
    return alt.Color(
        "model:N",
        title=None,
        sort=[_name(model) for model in models],
        scale=alt.Scale(
            domain=[_name(model) for model in models],
            range=[_COLOURS.get(model, _TASTE) for model in models],
        ),
        legend=alt.Legend(orient="bottom", columns=7, symbolType="circle", symbolOpacity=1)
        if legend and len(models) > 1
        else None,
    )


def _intervals(
    rows: pl.DataFrame, *, down: str, order: Sequence[str], title: str, legend: bool
) -> Any:
    """A dot with a line for each model; the models below each other, in each of `down`."""
    import altair as alt

    colour = _colour(rows, legend=legend)
    models = list(colour["sort"])
    axis = alt.Axis(ticks=False, labelPadding=8)
    base = alt.Chart(_named(rows)).encode(
        y=alt.Y(
            f"{down}:N", sort=list(order) if down != "model" else models, title=None, axis=axis
        ),
        color=colour,
        description="words:N",
    )
    if down != "model":
        base = base.encode(yOffset=alt.YOffset("model:N", sort=models))
    x_axis = alt.Axis(tickCount=6)
    return alt.layer(
        base.mark_rule(strokeWidth=2).encode(
            x=alt.X("low:Q", title=None, axis=x_axis), x2="high:Q"
        ),
        base.mark_circle(size=70, opacity=1).encode(x=alt.X("value:Q", title=None)),
    ).properties(width=370, height=alt.Step(19 if down == "model" else 10), title=_title(title))


def _curves(
    rows: pl.DataFrame,
    *,
    x: str,
    x_title: str,
    title: str,
    values: Sequence[float] | None = None,
    is_log: bool = False,
    marks: Mapping[float, str] | None = None,
) -> Any:
    """A line with a band for each model."""
    import altair as alt

    scale = alt.Scale(type="log", nice=False) if is_log else alt.Scale(nice=False)
    axis = alt.Axis(grid=False, format="~g", **({"values": list(values)} if values else {}))
    base = alt.Chart(_named(rows)).encode(
        x=alt.X(f"{x}:Q", scale=scale, axis=axis, title=x_title),
        color=_colour(rows),
        description="words:N",
    )
    # Flush, or labels that stand out push some titles up.
    y_axis = alt.Axis(labelFlush=True)
    layers = [
        base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title=None, axis=y_axis), y2="high:Q"),
        base.mark_line(strokeWidth=2).encode(y=alt.Y("value:Q", title=None)),
        base.mark_circle(size=40, opacity=1).encode(y=alt.Y("value:Q", title=None)),
    ]
    if marks:
        # Data of its own, or it would be drawn once a row.
        rule = alt.Chart(pl.DataFrame({x: list(marks), "text": list(marks.values())})).encode(
            x=f"{x}:Q"
        )
        layers += [
            rule.mark_rule(color="#565d68", strokeDash=[4, 3], strokeWidth=1),
            rule.mark_text(align="right", dx=-6, dy=-8, color="#565d68").encode(
                y=alt.value(190), text="text:N"
            ),
        ]
    return alt.layer(*layers).properties(width=430, height=190, title=_title(title))


def _curve_grid(rows: pl.DataFrame, **how: Any) -> Any:
    return _grid(rows, lambda each, title: _curves(each, title=title, **how), margin=56)


def _grid(rows: pl.DataFrame, draw: Callable[[pl.DataFrame, str], Any], *, margin: int) -> Any:
    """A chart for each metric and target, with axes of its own: they have no common scale.

    draw: From its rows and its title. margin: Pixels for what stands left of the frames.
    """
    import altair as alt

    metrics = sorted(rows["metric"].unique(), reverse=True)
    cells = [
        draw(of_cell, f"{_metric_name(metric)}: {meaning}")
        for target, meaning in TARGETS.items()
        for metric in metrics
        if len(of_cell := rows.filter(target=target, metric=metric))
    ]
    # Flush: frames line up whatever stands beside them, which then needs room.
    return alt.concat(
        *cells, columns=len(metrics), bounds="flush", spacing={"row": 66, "column": margin}
    ).resolve_legend(color="shared")


def _title(text: str) -> Any:
    import altair as alt

    return alt.TitleParams(text, anchor="start", fontSize=12)


def _beside(charts: Iterable[Any]) -> Any:
    import altair as alt

    return alt.hconcat(*charts, spacing=40).resolve_legend(color="shared")


def _bars(rows: pl.DataFrame) -> Any:
    import altair as alt

    named, colour = _named(rows), _colour(rows, legend=False)
    panels: list[Any] = []
    for name in _OF_LISTS:
        of_metric = named.filter(metric=name)
        if not len(of_metric):
            continue
        axis = alt.Axis(ticks=False, labels=not panels)
        panels.append(
            alt.Chart(of_metric)
            .mark_bar()
            .encode(
                y=alt.Y("model:N", sort=list(colour["sort"]), title=None, axis=axis),
                x=alt.X("value:Q", title=None, axis=alt.Axis(tickCount=4)),
                color=colour,
                description="words:N",
            )
            .properties(
                width=200,
                height=alt.Step(19),
                title=_title(_metric_name(name)),
            )
        )
    return _beside(panels)


def _shares(exposure: pl.DataFrame, totals: dict[str, int]) -> Any:
    import altair as alt

    kinds = {
        "n_products": "the catalogue",
        "n_interactions": "interactions",
        "n_recommended": "recommended rows",
    }
    rows = [
        {"segment": row["segment"], "of": of, "share": row[name] / totals[name]}
        for row in exposure.iter_rows(named=True)
        for name, of in kinds.items()
    ]
    frame = pl.DataFrame(rows).with_columns(
        words=pl.format("{}: {} % of {}", "segment", (pl.col("share") * 100).round(1), "of")
    )
    return (
        alt.Chart(frame)
        .mark_bar()
        .encode(
            y=alt.Y("segment:N", sort=exposure["segment"].to_list(), title=None),
            yOffset=alt.YOffset("of:N", sort=list(kinds.values())),
            x=alt.X("share:Q", title=None, axis=alt.Axis(format="%", tickCount=8)),
            color=alt.Color(
                "of:N",
                title=None,
                scale=alt.Scale(
                    domain=list(kinds.values()), range=["#dfe2e6", "#8d949e", _COLOURS[DEFAULT]]
                ),
                legend=alt.Legend(orient="right"),
            ),
            description="words:N",
        )
        .properties(width=700, height=alt.Step(16))
    )


def _configured(chart: Any) -> str:
    font = "Helvetica, Arial, sans-serif"
    # Ours, and looked at: holding each against the schema of Vega-Lite takes half a second.
    spec = chart.to_dict(validate=False)
    spec["background"] = "white"
    spec["config"] = {
        "font": font,
        "view": {"stroke": None},
        "axis": {
            "labelFontSize": 11,
            "titleFontSize": 11,
            "titleFontWeight": "normal",
            "domainColor": "#c5c9cf",
            "tickColor": "#c5c9cf",
            "gridColor": "#eceef1",
            "labelColor": "#3a3f47",
            "titleColor": "#3a3f47",
            "labelLimit": 220,
        },
        "legend": {"labelFontSize": 11, "labelColor": "#3a3f47", "labelLimit": 220},
        "title": {"color": "#1d2026"},
    }
    return json.dumps(spec)


def _svg(chart: Any) -> str:
    import vl_convert

    return vl_convert.vegalite_to_svg(_configured(chart))


def _figure(svg: str) -> str:
    # Names of namespaces look like addresses, and HTML does without.
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    # What Vega says to screen readers, browsers show on hovering.
    svg = re.sub(
        r'<(path|line|text) (aria-label="([^"]*)"[^>]*?)/>', r"<\1 \2><title>\3</title></\1>", svg
    )
    return f"<figure>{svg}</figure>"


def _picture(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


# Tables.


def _metric_table(rows: pl.DataFrame, names: Sequence[str]) -> str:
    there = [name for name in names if name in set(rows["metric"])]
    return _cells(rows, down="model", names=there, across="metric")


def _cells(rows: pl.DataFrame, *, down: str, names: Sequence[str], across: str) -> str:
    """Figures with intervals. names: of the metrics across, or of the segments down."""
    by_key = {(row[down], row[across]): row for row in rows.iter_rows(named=True)}
    heads = names if across == "metric" else _in_order(rows[across])
    sides = names if across != "metric" else _in_order(rows[down])
    label = {"metric": _metric_name, "model": _name, "segment": lambda each: each.replace("_", " ")}
    body = [
        [label[down](side), *(_figure_cell(by_key.get((side, head))) for head in heads)]
        for side in sides
    ]
    return _table([down, *(label[across](head) for head in heads)], body)


def _figure_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    mark = ""
    if row.get("is_different"):
        mark = " ▲" if row["difference"] > 0 else " ▼"
    interval = "" if row["low"] is None else f"\n{row['low']:.4f} to {row['high']:.4f}"
    return f"{row['value']:.4f}{mark}{interval}"


def _figures(rows: pl.DataFrame, x: str) -> str:
    heads = {"k": "rows", "w_cf": "weight of taste", "n_days": "days"}
    body = [
        [
            _name(row["model"]),
            TARGETS.get(row["target"], row["target"]),
            _metric_name(row["metric"]),
            f"{row[x]:g}",
            _figure_cell({**row, "is_different": False}),
            f"{row['n_users']:,}",
        ]
        for row in rows.iter_rows(named=True)
    ]
    return _details(
        "Figures", _table(["model", "target", "metric", heads[x], "value", "customers"], body)
    )


def _table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Cells are text; what follows a line break is set small."""
    lines = [f"<tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>"]
    for row in body:
        cells = []
        for cell in row:
            first, _, rest = cell.partition("\n")
            cells.append(
                f"<td>{escape(first)}{f'<small>{escape(rest)}</small>' if rest else ''}</td>"
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class='wide'><table>{''.join(lines)}</table></div>"


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _section(
    name: str, title: str, aid: str, body: str, *, nothing: str = "Nothing was measured here."
) -> str:
    text = f"<p class='aid'>{escape(aid)}</p>" if aid else ""
    return (
        f"<section id='{name}'><h2>{escape(title)}</h2>{text}"
        f"{body or f'<p class=nothing>{escape(nothing)}</p>'}</section>"
    )


_STYLE = """
body{font:15px/1.5 system-ui,Helvetica,Arial,sans-serif;color:#1d2026;background:#fff;
max-width:1040px;margin:0 auto;padding:24px 24px 80px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:20px;margin:44px 0 4px;border-top:1px solid #dfe2e6;
padding-top:20px}h3{font-size:15px;margin:20px 0 6px}h4{font-size:13px;margin:8px 0 4px}
small{color:#5b626d;font-weight:normal}.aid,.nothing{color:#4a505a;max-width:760px;margin:0 0 12px}
.nothing{font-style:italic}figure{margin:12px 0}figure svg{max-width:100%;height:auto}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;
font-variant-numeric:tabular-nums}th{text-align:left;font-weight:600;
border-bottom:1px solid #c5c9cf;padding:4px 14px 4px 0;white-space:nowrap}
td{padding:4px 14px 4px 0;border-bottom:1px solid #eceef1;vertical-align:top}
td small{display:block;font-size:11px}details{margin:10px 0}summary{cursor:pointer;color:#2672b0}
.verdict{border-left:4px solid #8d949e;background:#f5f6f8;padding:8px 14px}
.verdict.accepted{border-color:#2c8a4b}.verdict.refused{border-color:#c0273d}
.two{display:grid;grid-template-columns:3fr 2fr;gap:24px;font-size:13px}
.two ol,.two ul{margin:0;padding-left:22px}li.hit{font-weight:600;color:#1c6e38}
nav{margin:12px 0 0;font-size:13px}nav a{color:#2672b0;margin-right:14px;text-decoration:none}
"""


def _page(findings: Findings, metrics: pl.DataFrame, sections: Sequence[str]) -> str:
    folds = metrics["fold"].unique().to_list()
    asked = "No fold of the past could be asked, so there are no figures of models yet: they need "
    asked += "customers who come back after the first weeks."
    if folds:
        first, _, last = folds[0].partition("/")
        asked = (
            f"The models saw what happened up to {first}, and were asked about the days after it, "
            f"up to {last}."
        )
    title = f"Recommendations as of {findings.as_of}"
    links = "".join(
        f"<a href='#{name}'>{text}</a>"
        for name, text in re.findall(r"<section id='([^']*)'><h2>(.*?)</h2>", "".join(sections))
    )
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{escape(asked)} <small>Run {escape(findings.run_id[:8])}."
        f"</small></p><nav>{links}</nav>{''.join(sections)}</body></html>\n"
    )
