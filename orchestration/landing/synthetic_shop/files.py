"""Events and tables as the landing contract has them, written in the background."""

import calendar
import gzip
import io
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import polars as pl

from orchestration.landing.synthetic_shop.dirt import CUT, SPLIT, show_dirt
from orchestration.landing.synthetic_shop.shop import EVENT_TYPES, Shop, padded

FrameMaker = Callable[[], pl.DataFrame]


class LandingFiles:
    """Writes files in the background, one at a time, and counts their rows."""

    def __init__(self, out: Path) -> None:
        self.rows_by_file: dict[str, int] = {}
        self._out = out
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._unfinished: Future[None] | None = None

    def __enter__(self) -> "LandingFiles":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._finish()
        finally:
            self._writer.shutdown()

    def write(self, stem: str, file_format: str, n_rows: int, make: FrameMaker) -> None:
        """Make a frame and write it, as soon as the one before is written.

        One at a time, or frames would pile up in memory before a slow disk.
        """
        self._finish()
        self.rows_by_file[f"{stem}.{file_format}"] = n_rows
        path = self._out / f"{stem}.{file_format}"
        self._unfinished = self._writer.submit(_write_file, path, file_format, make)

    def _finish(self) -> None:
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            unfinished.result()


def _write_file(path: Path, file_format: str, make: FrameMaker) -> None:
    frame = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    if file_format == "parquet":
        # Level 1 takes two thirds of the time of the default, and no more space.
        frame.write_parquet(path, compression="zstd", compression_level=1)
    elif file_format == "jsonl":
        frame.with_columns(pl.col(pl.Datetime).dt.strftime("%Y-%m-%dT%H:%M:%S")).write_ndjson(path)
    elif file_format == "csv":
        path.write_bytes(_csv_of(frame))
    else:
        # Without the time, which gzip would write into the file.
        path.write_bytes(gzip.compress(_csv_of(frame), compresslevel=1, mtime=0))


def _csv_of(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_csv(buffer, datetime_format="%Y-%m-%d %H:%M:%S")
    text = buffer.getvalue()
    if CUT.encode() in text:
        text = re.sub(rb",?\x02[^\n]*", b"", text)
    return text.replace(SPLIT.encode(), b",surplus,fields")


def as_landed_events(
    shop: Shop, rows: pl.DataFrame, *, is_text: bool, has_aliases: bool
) -> pl.DataFrame:
    """The columns of the landing contract; dates and numbers as text if asked for."""
    epoch = calendar.timegm(shop.start.timetuple())
    event_at = pl.from_epoch(pl.col("at") + epoch, time_unit="s").cast(pl.Datetime("ms"))
    landed = rows.select(
        event_id="e" + padded("event", width=10),
        # Gathered: writing each id anew costs three times as much.
        user_id=shop.user_ids.gather(rows["user"]),
        product_id=shop.product_ids.gather(rows["product"] - 1),
        event_type=pl.Series(EVENT_TYPES).gather(rows["event_type"]),
        event_ts=event_at.dt.strftime("%Y-%m-%d %H:%M:%S") if is_text else event_at,
        rating=_unless_zero("rating"),
        quantity=_unless_zero("quantity"),
        price=_unless_zero("price"),
        session_id=_unless_zero("session", "s" + padded("session", width=9)),
        order_id=_unless_zero("order", "o" + padded("order", width=9)),
    )
    if is_text:
        landed = landed.with_columns(pl.col("rating", "quantity", "price").cast(pl.String))
    if (rows["dirt"] > 0).any():
        landed = show_dirt(landed, rows)
    aliases = {"event_type": "interaction_type", "event_ts": "ts"}
    return landed.rename(aliases) if has_aliases else landed


def _unless_zero(column: str, shown: pl.Expr | None = None) -> pl.Expr:
    value = pl.col(column)
    return pl.when(value != 0).then(value if shown is None else shown)
