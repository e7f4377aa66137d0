"""The chart of cost over size, as SVG."""

from collections.abc import Sequence
from pathlib import Path

import altair as alt
import polars as pl
from bench_line import Size
from bench_measure import GIB

_MEASURED, _LINEAR = "measured", "in proportion to the events"


def write_chart(sizes: Sequence[Size], path: Path) -> None:
    """Seconds and peak memory over events, beside a line that grows as the events do.

    The line goes through the largest size but one, where start-up no longer weighs much: the
    measured curve is flatter than the line where cost grows less than in proportion.
    """
    anchor = sizes[-2] if len(sizes) > 1 else sizes[-1]
    rows = []
    for size in sizes:
        for cost, of, share in (
            (_MEASURED, size, 1.0),
            (_LINEAR, anchor, size.n_events / anchor.n_events),
        ):
            measured = of.measured
            rows.append(
                (
                    size.n_events,
                    cost,
                    measured.seconds * share,
                    measured.peak_bytes / GIB * share,
                )
            )
    frame = pl.DataFrame(rows, schema=["events", "cost", "seconds", "GiB"], orient="row")
    # As plain rows: Altair would want a frame's columns through another library.
    data = alt.Data(values=frame.to_dicts())
    n_events = [size.n_events for size in sizes]
    panels = alt.hconcat(
        _panel(data, "seconds", "seconds of the whole line", n_events),
        _panel(data, "GiB", "peak memory, GiB", n_events),
    )
    panels.save(path)


def _panel(data: alt.Data, column: str, title: str, n_events: list[int]) -> alt.Chart:
    logarithmic = alt.Scale(type="log", nice=False, padding=8)
    names = [_MEASURED, _LINEAR]
    return (
        alt.Chart(data, width=320, height=260)
        .mark_line(point=True)
        .encode(
            x=alt.X(
                "events:Q",
                scale=logarithmic,
                title="events",
                axis=alt.Axis(format="~s", values=n_events),
            ),
            y=alt.Y(
                f"{column}:Q",
                scale=logarithmic,
                title=title,
                axis=alt.Axis(format="~g", tickCount=6),
            ),
            color=alt.Color(
                "cost:N",
                scale=alt.Scale(domain=names, range=["#1f5fa8", "#999999"]),
                legend=alt.Legend(orient="top", title=None),
            ),
            strokeDash=alt.StrokeDash(
                "cost:N", scale=alt.Scale(domain=names, range=[[1, 0], [4, 4]]), legend=None
            ),
        )
    )
