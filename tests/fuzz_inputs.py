"""Hypothesis strategies for landing folders: files good and damaged, and what is to become of them.

Every record carries a mark of its own (mk12x3y) in one of its values, so that it can be found again
in the raw tables, in the staging tables and in the refused lines, whatever happened around it. What
is to become of a record is decided here, from what was written, and never from what was read.
"""

import codecs
import gzip
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

RECEIVED_AT = datetime(2024, 3, 1, 6, 0)
CATALOGUE = ["p1", "P1", "01", "🎁", "'; drop table raw.events; --"]
MARK = re.compile(r"mk\d+x\d+y")
# The column with the mark.
MARKED = {"events": "event_id", "products": "description", "users": "age_band"}
REQUIRED = {
    "events": ["user_id", "product_id", "event_type", "event_ts"],
    "products": ["product_id", "title"],
    "users": ["user_id"],
}
COLUMNS = {
    "events": [*REQUIRED["events"], "event_id", "rating", "quantity", "price", "session_id"],
    "products": [*REQUIRED["products"], "description", "price", "in_stock", "added_at"],
    "users": ["user_id", "country", "age_band"],
}

Values = dict[str, str | None]


@dataclass(frozen=True)
class Record:
    """One record as it is written.

    fate is "accepted", the column for which staging has to refuse the row, "line" (the line cannot
    be read), or "any": whatever is right, but accepted or refused and not lost.
    """

    values: Values
    fate: str
    at: datetime | None = None
    spoil: Callable[[bytes], bytes] | None = None

    @property
    def mark(self) -> str:
        """What to look for."""
        found = MARK.search(json.dumps(self.values))
        assert found
        return found[0]


@dataclass(frozen=True)
class FuzzFile:
    """One file of the landing folder.

    fate is "loaded", "refused" (the ingest has to name it and to load nothing of it) or "any" of
    both. render writes the records in the order in which it gets them; with is_ordered the damage
    is at a place of the file, so that only the order in which they were drawn will do.
    """

    entity: str
    name: str
    damage: str
    records: tuple[Record, ...]
    render: Callable[[Sequence[Record]], bytes]
    fate: str = "loaded"
    is_ordered: bool = False

    @property
    def source_file(self) -> str:
        """As the raw tables call it."""
        return f"{self.entity}/{self.name}"


# ---------------------------------------------------------------- values

# Without delimiters, quotes and line ends: for files of which lines are broken.
TAME_IDS = [
    *("ana", "Ana", "ANA", "1", "01", "1.0", "1e0", "null", "NULL", "nan", "N/A", "-", "true"),
    *(
        "🎁",
        "👩‍👩‍👧",
        "שלום עולם",
        "\u202egnp.exe",
        "naïve",
        "nai\u0308ve",
        "日本語",
        "ﬁ",
        "\ufeffbom",
    ),
    *("O'Neil", "'; drop table raw.events; --", "' or '1'='1", "{{ ref('x') }}", "${HOME}", "%s"),
    *("../../etc/passwd", "=cmd!A0", "\\", "\\N", "\\u0000", "x" * 300, " inner  blanks "),
]
WILD_IDS = [
    *TAME_IDS,
    *(
        '"',
        '""',
        'a"b',
        "a,b",
        "a;b|c\td",
        "two\nlines",
        "dos\r\nlines",
        ",",
        "\\\\\n",
        "[1]",
        "{}",
    ),
    *('{"a": 1}', '"quoted"', "' \"", "nul\0byte", "\x1b[31mred", "\u2028", "\x85"),
]
BLANKS = [None, "", " ", "\t", " \t "]
_OFFSETS = ["", "Z", "+00", "+05:30", "-08:00", "+14:00"]
DAY = datetime(2024, 2, 1)
# Neither a date nor a time, or one that no event can have; the last ones are out of bounds.
BAD_TIMES = [
    *("yesterday", "n/a", "0000-00-00", "2024-02-30", "2023-02-29 10:00:00", "2024-13-01"),
    *("2024-02-01 25:00:00", "2024-02-01T10:61:00Z", "Feb 1 2024", "31.12.2023", "12:30"),
    *("infinity", "-infinity", "nan", "inf", "9" * 40, "-" * 19, "20240231", "45323"),
    *("2024-06-01", "2199-12-31 23:59:59", "9999-12-31", "4102444800", "294247-01-10 04:00:54Z"),
    *(
        "1970-01-01",
        "0",
        "-1",
        "1989-12-31 23:59:59",
        "0001-01-01",
        "1066-10-14",
        "0044-03-15 (BC)",
    ),
]
# DuckDB has a view on these that is as good as another.
ODD_TIMES = [
    *("2024-03-31 02:30:00 Europe/Berlin", "2024-03-10 02:30:00 America/New_York", "2024-2-1"),
    *("2023-11-05 01:30:00 America/New_York", "2024-02-01 24:00:00", "2016-12-31 23:59:60"),
    *("2024-02-01 10:00:00 UTC", "2024-02-01T10:00", "2024/02/01", "02/01/2024", "01.02.2024"),
    *("2024-W05-4", "2024-02-01 10:00:00 PM", "2024-02-01 10:00:00.123456789", "1706781600.5"),
    *(
        "\uff12024-02-01",
        "epoch",
        "now",
        "1e9",
        "2024-02-01 10:00:00 Nowhere/Town",
        "2024-02-01+25:00",
    ),
]
GOOD_PRICES = [None, "", "1", "2.50", " 3 ", "1e2", "007", "0.01", "+4", "99999999999999999999"]
BAD_PRICES = ["-1", "1,5", "€5", "nan", "NaN", "inf", "-Infinity", "1e400", "free", "٣", "1.2.3"]
GOOD_QUANTITIES = [None, "", "1", "2.5", "1e3", "999999999"]
BAD_QUANTITIES = ["0", "-1", "1000000000", "1e400", "nan", "inf", "many", "1,0", "--1"]
GOOD_RATINGS = [None, "", "0.5", "5", "4.50"]
BAD_RATINGS = ["0", "0.4", "5.1", "-3", "nan", "inf", "***", "4/5"]


@st.composite
def good_times(draw: Any) -> tuple[str, datetime]:
    """A text in one of the formats that are read, and its time in UTC."""
    # From 1995 up to the day of the load; with the hours that a change to summer time leaves out.
    at = draw(
        st.one_of(
            st.datetimes(datetime(1995, 1, 1), datetime(2024, 2, 28)),
            st.sampled_from([datetime(2023, 3, 26, 2, 30), datetime(2023, 3, 12, 2, 30), DAY]),
        )
    ).replace(microsecond=0)
    numbers = ["compact day", "seconds", "milliseconds"]
    form = draw(st.sampled_from(["day", "space", "T", "fraction", *numbers]))
    if form in ("day", "compact day"):
        day = at.replace(hour=0, minute=0, second=0)
        return f"{day:%Y-%m-%d}" if form == "day" else f"{day:%Y%m%d}", day
    if form in ("seconds", "milliseconds"):
        since = int(at.replace(tzinfo=UTC).timestamp())
        return (str(since) if form == "seconds" else f"{since}000"), at
    offset = draw(st.sampled_from(_OFFSETS))
    separator = "T" if form == "T" else " "
    text = f"{at:%Y-%m-%d}{separator}{at:%H:%M:%S}{'.250' if form == 'fraction' else ''}"
    hours = re.match(r"([+-])(\d\d):?(\d\d)?", offset)
    ahead = (
        timedelta(hours=int(hours[2]), minutes=int(hours[3] or 0)) * (-1 if hours[1] == "-" else 1)
        if hours
        else timedelta()
    )
    fraction = timedelta(milliseconds=250 if form == "fraction" else 0)
    return text + offset, at + fraction - ahead


def _broken(values: Values, column: str, texts: Sequence[str | None]) -> Any:
    return st.sampled_from(texts).map(lambda text: ({**values, column: text}, column))


@st.composite
def event_records(draw: Any, mark: str, *, is_tame: bool = False) -> Record:
    """An event that is good, or has one value for which it has to be refused."""
    text, at = draw(good_times())
    values: Values = {
        "user_id": draw(st.sampled_from(TAME_IDS if is_tame else WILD_IDS)),
        "product_id": draw(st.sampled_from(CATALOGUE)),
        "event_type": draw(st.sampled_from(["view", " View ", "PURCHASE", "cart_add\t"])),
        "event_ts": text,
        "event_id": mark,
        "rating": draw(st.sampled_from(GOOD_RATINGS)),
        "quantity": draw(st.sampled_from(GOOD_QUANTITIES)),
        "price": draw(st.sampled_from(GOOD_PRICES)),
        "session_id": draw(st.sampled_from([None, "", *(TAME_IDS if is_tame else WILD_IDS)])),
    }
    if is_tame:
        values["event_type"] = "view"
    if draw(st.integers(0, 2)):
        return Record(values, "accepted", at)
    values, fate = draw(
        st.one_of(
            _broken(values, "user_id", BLANKS),
            _broken(values, "product_id", [*BLANKS, "nowhere", "p1 ", "🎁🎁", "P01"]),
            _broken(values, "event_type", BLANKS),
            _broken(values, "event_ts", [*BLANKS, *BAD_TIMES]),
            _broken(values, "rating", BAD_RATINGS),
            _broken(values, "quantity", BAD_QUANTITIES),
            _broken(values, "price", BAD_PRICES),
            st.just(({**values, "event_type": "rating", "rating": None}, "rating")),
            st.just(({**values, "event_type": "purchase", "price": "0"}, "price")),
            st.sampled_from(ODD_TIMES).map(lambda odd: ({**values, "event_ts": odd}, "any")),
        )
    )
    if is_tame:
        values = {name: value and value.replace("\t", " ") for name, value in values.items()}
        values = {name: value and value.replace(",", ".") for name, value in values.items()}
        # 1.5 is a price.
        fate = "any" if fate in ("price", "quantity") else fate
    return Record(values, fate)


@st.composite
def product_records(draw: Any, mark: str, *, is_tame: bool = False) -> Record:
    """A product; only one without an id is refused, besides rows that say again what others do."""
    ids = TAME_IDS if is_tame else WILD_IDS
    product_id = draw(st.sampled_from([*CATALOGUE, *ids, *BLANKS]))
    values: Values = {
        "product_id": product_id,
        "title": draw(st.sampled_from([None, *ids])),
        "description": mark,
        "price": draw(st.sampled_from([*GOOD_PRICES, "free", "nan", "-1", "inf"])),
        "in_stock": draw(st.sampled_from([None, "yes", "0", "maybe"])),
        "added_at": draw(st.sampled_from([None, "2024-01-01", *BAD_TIMES, *ODD_TIMES])),
    }
    return Record(values, "product_id" if product_id in BLANKS else "accepted")


@st.composite
def user_records(draw: Any, mark: str, *, is_tame: bool = False) -> Record:
    """A user; only one without an id is refused, besides rows that say again what others do."""
    ids = TAME_IDS if is_tame else WILD_IDS
    user_id = draw(st.sampled_from([*ids, *BLANKS]))
    values: Values = {
        "user_id": user_id,
        "country": draw(st.sampled_from([None, *ids])),
        "age_band": mark,
    }
    return Record(values, "user_id" if user_id in BLANKS else "accepted")


RECORDS = {"events": event_records, "products": product_records, "users": user_records}


# ---------------------------------------------------------------- writing files


@dataclass(frozen=True)
class CsvStyle:
    """How a CSV file is written."""

    delimiter: str = ","
    line_end: str = "\n"
    quotes_all: bool = False
    header: tuple[str, ...] = ()
    tail: str = ""
    ends: tuple[str, ...] = ()


def csv_bytes(records: Sequence[Record], style: CsvStyle) -> bytes:
    """Write a header and the records; a spoilt record is spoilt after it was written well.

    `tail` follows each line; `ends` are line ends that the lines take in turn.
    """

    def quoted(value: str | None) -> str:
        value = value or ""
        special = {style.delimiter, '"', "\r", "\n"}
        if style.quotes_all or special & set(value) or value != value.strip(" "):
            return '"' + value.replace('"', '""') + '"'
        return value

    ends = style.ends or (style.line_end,)
    text = style.delimiter.join(map(quoted, style.header)) + style.tail + ends[0]
    lines = [text.encode()]
    for position, record in enumerate(records, start=1):
        values = [record.values.get(canonical(name)) for name in style.header]
        line = style.delimiter.join(map(quoted, values)) + style.tail
        encoded = line.encode()
        if record.spoil:
            encoded = record.spoil(encoded)
        lines.append(encoded + ends[position % len(ends)].encode())
    return b"".join(lines)


def canonical(name: str) -> str:
    """The column that a header of a fuzzed file means."""
    return {"ts": "event_ts", "interaction_type": "event_type"}.get(
        name.strip().lower(), name.strip().lower()
    )


def json_bytes(records: Sequence[Record], *, line_end: str = "\n", is_ascii: bool = True) -> bytes:
    """Write an object a line."""
    lines = []
    for record in records:
        members = {name: value for name, value in record.values.items() if value is not None}
        line = json.dumps(members, ensure_ascii=is_ascii).encode()
        lines.append(record.spoil(line) if record.spoil else line)
    return b"".join(line + line_end.encode() for line in lines)


def parquet_bytes(
    records: Sequence[Record], columns: Sequence[str], *, compression: str = "snappy"
) -> bytes:
    """Write text columns, in groups of two rows."""
    table = pa.table(
        {
            name: pa.array([record.values.get(name) for record in records], pa.string())
            for name in columns
        }
    )
    return _parquet(table, compression=compression)


def _parquet(table: pa.Table, **settings: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=2, **settings)
    return sink.getvalue()


# ---------------------------------------------------------------- kinds of damage

# Each takes draw, the entity and a function that draws the records; it gives the end of the name
# and the fields of a FuzzFile.
Draws = Callable[..., tuple[Record, ...]]
Kind = Callable[[Any, str, Draws], tuple[str, dict[str, Any]]]
KINDS: dict[str, Kind] = {}


def kind(name: str) -> Callable[[Kind], Kind]:
    """Register a kind of damage."""

    def register(function: Kind) -> Kind:
        KINDS[name] = function
        return function

    return register


def _csv(draw: Any, entity: str, **style: Any) -> Callable[[Sequence[Record]], bytes]:
    chosen = CsvStyle(**{"header": tuple(draw(st.permutations(COLUMNS[entity]))), **style})
    return lambda records: csv_bytes(records, chosen)


@kind("none: CSV of any style")
def _clean_csv(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    # A lone CR inside a value ends lines in a file whose lines end in CR, if it comes first.
    render = _csv(
        draw,
        entity,
        delimiter=draw(st.sampled_from(",;\t|")),
        line_end=draw(st.sampled_from(["\n", "\r\n"])),
        quotes_all=draw(st.booleans()),
    )
    return ".csv", {"records": rows(), "render": render}


@kind("none: gzip of one or two members")
def _clean_gzip(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    records, render = rows(), _csv(draw, entity)
    cut = draw(st.integers(0, 60))

    def packed(shown: Sequence[Record]) -> bytes:
        text = render(shown)
        return gzip.compress(text[:cut], mtime=0) + gzip.compress(text[cut:], mtime=0)

    return ".csv.gz", {"records": records, "render": packed}


@kind("none: JSON lines")
def _clean_json(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    end, is_ascii = draw(st.sampled_from(["\n", "\r\n"])), draw(st.booleans())
    bom = draw(st.sampled_from([b"", codecs.BOM_UTF8]))
    return draw(st.sampled_from([".jsonl", ".ndjson", ".json", ".JSONL"])), {
        "records": rows(at_least=1, is_complete=True),
        "render": lambda shown: bom + json_bytes(shown, line_end=end, is_ascii=is_ascii),
    }


@kind("none: Parquet of text")
def _clean_parquet(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    columns = draw(st.permutations(COLUMNS[entity]))
    compression = draw(st.sampled_from(["snappy", "gzip", "zstd", "none"]))
    return ".parquet", {
        "records": rows(),
        "render": lambda shown: parquet_bytes(shown, columns, compression=compression),
    }


@kind("typed Parquet: times of any unit and zone, nan, inf, decimals, lists")
def _typed_parquet(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    zone = draw(st.sampled_from([None, "UTC", "Asia/Kolkata", "America/New_York", "+05:45"]))
    numbers = draw(
        st.sampled_from([pa.float64(), pa.float32(), pa.decimal128(12, 2), pa.int8(), pa.uint64()])
    )
    records = rows()
    kept = []
    for record in records:
        if entity == "events":
            fate = "event_ts" if record.at is None else "accepted"
            odd = float("nan") if pa.types.is_floating(numbers) else None
            price = draw(st.sampled_from([1, 7, odd, None]))
            if fate == "accepted" and price != price:
                fate = "price"
            record = replace(
                record,
                values={
                    **record.values,
                    "user_id": "7",
                    "product_id": "p1",
                    "event_type": "view",
                    "rating": None,
                    "quantity": None,
                    "price": str(price) if price is not None else None,
                },
                fate=fate,
                # Coarser units cut what is below them.
                at=record.at and record.at.replace(microsecond=0),
            )
        kept.append(record)

    def render(shown: Sequence[Record]) -> bytes:
        columns: dict[str, Any] = {}
        for name in COLUMNS[entity]:
            texts = [record.values.get(name) for record in shown]
            columns[name] = pa.array(texts, pa.string())
        if entity == "events":
            times = [
                record.at and record.at.replace(tzinfo=UTC if zone else None) for record in shown
            ]
            columns["event_ts"] = pa.array(times, pa.timestamp(unit, zone))
            prices = [record.values["price"] for record in shown]
            columns["price"] = pa.array(
                [None if p is None else float(p) for p in prices], pa.float64()
            ).cast(numbers, safe=False)
            columns["user_id"] = pa.array([7] * len(shown), pa.int32())
            columns["product_id"] = columns["product_id"].cast(pa.binary())
            columns["event_type"] = columns["event_type"].dictionary_encode()
        columns["tags"] = pa.array([["a", None]] * len(shown), pa.list_(pa.string()))
        return _parquet(pa.table(columns), coerce_timestamps=None)

    return ".parquet", {"records": tuple(kept), "render": render}


@kind("BOM, CR alone, CR LF and LF in one file, blank lines, blanks in the header")
def _line_ends(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    ends = draw(
        st.sampled_from(
            [("\r",), ("\n", "\r\n"), ("\n\n",), ("\r\n", "\n", "\n\n\n"), ("\r\n\r\n",)]
        )
    )
    header = tuple(
        draw(st.sampled_from([name, name.upper(), f" {name} "]))
        for name in draw(st.permutations(COLUMNS[entity]))
    )
    records, render = rows(is_tame=True), _csv(draw, entity, ends=ends, header=header)
    before = draw(st.sampled_from([b"", codecs.BOM_UTF8]))
    after = draw(st.sampled_from([b"", b"\n", b" "])) if ends != ("\r",) else b""

    def rendered(shown: Sequence[Record]) -> bytes:
        text = before + render(shown)
        return text + after if after != b" " else text.rstrip(b"\r\n")

    return ".csv", {"records": records, "render": rendered}


@kind("further, missing and reordered columns, other names for columns")
def _columns(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    optional = [name for name in COLUMNS[entity] if name not in (*REQUIRED[entity], MARKED[entity])]
    left_out = draw(st.sets(st.sampled_from(optional or ["country"])))
    more = draw(
        st.lists(
            st.sampled_from(["Device", "select", "'; --", "$path", "ß", "c0", "source_row", "🎁"]),
            unique=True,
        )
    )
    aliases = {"event_ts": "ts", "event_type": "Interaction_Type"}
    names = [*(c for c in COLUMNS[entity] if c not in left_out), *more]
    header = tuple(
        aliases.get(name, name) if draw(st.booleans()) else name
        for name in draw(st.permutations(names))
    )
    records = tuple(
        replace(
            record,
            # What is left out cannot be the reason any more.
            fate="any" if record.fate in (*left_out, "any") else record.fate,
            values={n: v for n, v in record.values.items() if n not in left_out}
            | dict.fromkeys(map(canonical, more), draw(st.sampled_from([None, "x", '{"a": 1}']))),
        )
        for record in rows(is_complete=True)
    )
    tail = draw(st.sampled_from(["", ",", ",,"]))
    render = _csv(draw, entity, header=header, tail=tail if len(tail) < 2 else "")
    return ".csv", {"records": records, "render": render}


@kind("lines with values too few or too many")
def _ragged(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    def spoilt(record: Record) -> Record:
        how = draw(st.sampled_from([None, b",more", b",a,b,c,d"]))
        if how is None:
            return record
        return replace(record, fate="line", spoil=lambda line: line + how)

    records = tuple(spoilt(record) for record in rows(is_tame=True))
    render = _csv(draw, entity)
    return ".csv", {"records": records, "render": render}


@kind("broken quotes")
def _broken_quotes(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    header = (*draw(st.permutations(COLUMNS[entity])), "note")
    # One a file: with a second one, a well quoted value over several lines may lie between them.
    opening = draw(st.sampled_from(['"opened', '"', '"""']))
    others = ["fine", '"fine, too"', '5" pipe', '"closed" early']

    def spoilt(at: int, record: Record) -> Record:
        note = opening if at == 0 else draw(st.sampled_from(others))
        fate = "line" if note in (opening, '"closed" early') else record.fate
        return replace(record, fate=fate, spoil=lambda line: line + note.encode())

    records = tuple(spoilt(at, record) for at, record in enumerate(rows(is_tame=True)))
    render = _csv(draw, entity, header=header)
    return ".csv", {"records": records, "render": render}


@kind("lines in other encodings, null bytes")
def _encodings(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    header = (*draw(st.permutations(COLUMNS[entity])), "note")

    def spoilt(record: Record) -> Record:
        note, fate = draw(
            st.sampled_from(
                [
                    ("日本".encode(), None),
                    ("Müller".encode("latin-1"), "line"),
                    ("Ж".encode("cp1251"), "line"),
                    ("日本".encode("shift-jis"), "line"),
                    (b"\xed\xa0\x80", "line"),
                    (b"\xff\xfe", "line"),
                    (b"\xc3", "line"),
                    (b"a\0b", None),
                    (b"\0", None),
                    (b"\x1a", None),
                ]
            )
        )
        return replace(record, fate=fate or record.fate, spoil=lambda line: line + note)

    records = tuple(spoilt(record) for record in rows(is_tame=True))
    render = _csv(draw, entity, header=header)
    return ".csv", {"records": records, "render": render}


@kind("a header in the middle, as of files put together")
def _two_headers(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    records, render = rows(), _csv(draw, entity)
    middle = len(records) // 2

    def joined(shown: Sequence[Record]) -> bytes:
        return render(shown[:middle]) + render(shown[middle:])

    # The second header is a row as well: of events refused for its time, but a product.
    return ".csv", {"records": records, "render": joined, "is_ordered": True}


@kind("text cut off in the middle of a line")
def _cut_text(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    all_rows = rows(is_tame=True, at_least=1)
    is_json = draw(st.booleans())
    if is_json:
        all_rows = tuple(r for r in all_rows if r.values)
        render: Callable[[Sequence[Record]], bytes] = json_bytes
    else:
        render = _csv(draw, entity)
    cut = draw(st.integers(1, 25))
    text = render(all_rows).removesuffix(b"\n")
    last = len(text) - text.rfind(b"\n") - 1
    text = text[: -min(cut, last - 1)] if last > 1 else text
    left = tuple(
        replace(record, fate="any") if record is all_rows[-1] else record
        for record in all_rows
        if record.mark.encode() in text
    )
    # JSON lines: when the only object is broken, there is none.
    fate = "any" if is_json else "loaded"
    return (".jsonl" if is_json else ".csv"), {
        "records": left,
        "render": _constant(text),
        "is_ordered": True,
        "fate": fate,
    }


@kind("bytes overwritten in the middle")
def _overwritten(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    all_rows, render = rows(is_tame=True, at_least=1), _csv(draw, entity)
    text = bytearray(render(all_rows))
    start = text.index(b"\n") + 1
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(start, len(text) - 1))
        junk = draw(st.binary(min_size=1, max_size=6))
        text[at : at + len(junk)] = junk
    content = bytes(text)
    left = tuple(
        replace(record, fate="any") for record in all_rows if record.mark.encode() in content
    )
    return ".csv", {"records": left, "render": _constant(content), "is_ordered": True}


@kind("a field of megabytes")
def _huge_field(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    # 17 MB is more than a line may have.
    size, fate, is_quoted = draw(
        st.sampled_from(
            [
                (10_000_000, None, False),
                (10_000_000, None, True),
                (17_000_000, "line", False),
                (200_000, None, True),
            ]
        )
    )
    header = (*COLUMNS[entity], "note")
    first, *others = rows(is_tame=True, at_least=1)
    note = b'"' + b"x,\n" * (size // 3) + b'"' if is_quoted else b"x" * size
    spoilt = replace(first, fate=fate or first.fate, spoil=lambda line: line + note)
    records = (spoilt, *others)
    render = _csv(draw, entity, header=header)
    return ".csv", {"records": records, "render": render}


@kind("JSON lines: broken, of another type, doubled members, lone surrogates, nan")
def _broken_json(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    def spoilt(record: Record) -> Record:
        def edit(change: Callable[[bytes], bytes], fate: str) -> Record:
            return replace(record, spoil=change, fate=fate)

        return draw(
            st.sampled_from(
                [
                    record,
                    edit(lambda line: line[:-1], "line"),
                    edit(lambda line: b"[" + line + b"]", "line"),
                    edit(lambda line: json.dumps(line.decode()).encode(), "line"),
                    edit(lambda line: line + b",", "line"),
                    edit(lambda line: line + b"\0", "any"),
                    edit(lambda line: line[:-1] + b', "note": "\xff"}', "line"),
                    edit(lambda line: line[:-1] + b', "note": "\\ud800"}', "any"),
                    edit(lambda line: line[:-1] + b', "note": NaN}', "any"),
                    edit(lambda line: line[:-1] + b', "note": 1e999}', "any"),
                    edit(lambda line: line[:-1] + b', "note": ' + b"[" * 3000 + b"}", "any"),
                    edit(
                        lambda line: line[:-1] + b', "n": ' + b"[" * 900 + b"]" * 900 + b"}", "any"
                    ),
                    edit(lambda line: line[:-1] + b', "user_id": "twice"}', "any"),
                    edit(
                        lambda line: line[:-1] + b', "": 1, "a/b~c": {"$x": [null]}}', record.fate
                    ),
                    edit(lambda line: line[:-1] + b', "\\u0000": "\\u0000"}', "any"),
                    edit(lambda line: b"\t" + line + b" ", record.fate),
                    edit(lambda line: line.replace(b'"', b"'"), "line"),
                    edit(lambda line: line + b"\n\n  ", record.fate),
                ]
            )
        )

    whole, *others = rows(at_least=1, is_complete=True)
    records = (whole, *map(spoilt, others))
    return ".jsonl", {"records": records, "render": json_bytes}


@kind("Parquet: bytes overwritten in the middle")
def _overwritten_parquet(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    all_rows = rows(at_least=1)
    compression = draw(st.sampled_from(["snappy", "gzip", "zstd", "none"]))
    content = bytearray(parquet_bytes(all_rows, COLUMNS[entity], compression=compression))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(4, len(content) - 5))
        junk = draw(st.binary(min_size=1, max_size=8))
        junk = junk[: len(content) - 4 - at]
        content[at : at + len(junk)] = junk
    damaged = bytes(content)
    # The format has no checksum of its own: what still reads like a file is one. No record of it
    # can be vouched for, the file as a whole only.
    return ".parquet", {
        "records": (),
        "render": _constant(damaged),
        "is_ordered": True,
        "fate": "any",
    }


@kind("events told again, with other prices and notes")
def _told_again(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    header = tuple(draw(st.permutations([*COLUMNS[entity], "note"])))
    records = []
    for record in rows():
        if entity == "events":
            at = DAY + timedelta(seconds=draw(st.integers(0, 4)))
            values = {
                **{"user_id": "u", "product_id": "p1", "event_type": "view"},
                **{"event_ts": str(at), "price": draw(st.sampled_from([None, "1", "2"]))},
                **{"event_id": draw(st.sampled_from([None, "e1", "e2"])), "note": record.mark},
            }
            record = Record(values, "accepted", at)
        records.append(record)
    render = _csv(draw, entity, header=header)
    return ".csv", {"records": tuple(records), "render": render}


def _refused(ending: str, content: bytes, **more: Any) -> tuple[str, dict[str, Any]]:
    return ending, {
        "records": (),
        "render": _constant(content),
        "is_ordered": True,
        "fate": "refused",
        **more,
    }


@kind("refused: truncated or spoilt gzip, or none")
def _bad_gzip(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    ending = draw(st.sampled_from([".csv.gz", ".jsonl.gz"]))
    records = rows(at_least=1, is_complete=True)
    text = (
        json_bytes(records)
        if ending == ".jsonl.gz"
        else csv_bytes(records, CsvStyle(header=tuple(COLUMNS[entity])))
    )
    whole = gzip.compress(text, mtime=0)
    cut = draw(st.integers(1, len(whole) - 1))
    return _refused(
        ending,
        draw(
            st.sampled_from(
                [whole[:cut], whole[:-8] + b"\0" * 8, text, b"\x1f\x8b\x08", whole + b"junk"]
            )
        ),
    )


@kind("refused: truncated Parquet, or none")
def _bad_parquet(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    records = rows(at_least=1)
    whole = parquet_bytes(records, COLUMNS[entity])
    cut = draw(st.integers(1, len(whole) - 1))
    return _refused(
        ".parquet",
        draw(
            st.sampled_from(
                [
                    whole[:cut],
                    whole[cut:],
                    b"PAR1PAR1",
                    b"PAR1" + b"\xff" * 40 + b"PAR1",
                    gzip.compress(whole),
                    csv_bytes(records, CsvStyle(header=tuple(COLUMNS[entity]))),
                ]
            )
        ),
    )


@kind("refused: headers doubled, missing, in UTF-16, or not there")
def _bad_header(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    records = rows()
    columns = COLUMNS[entity]
    style = CsvStyle(header=tuple(columns))
    text = csv_bytes(records, style)
    name = draw(st.sampled_from(columns))
    missing = draw(st.sampled_from(REQUIRED[entity]))
    return _refused(
        ".csv",
        draw(
            st.sampled_from(
                [
                    csv_bytes(records, replace(style, header=(*columns, name))),
                    csv_bytes(records, replace(style, header=(*columns, f" {name.upper()}"))),
                    csv_bytes(records, replace(style, header=(*columns, "x", "X"))),
                    csv_bytes(
                        records, replace(style, header=tuple(c for c in columns if c != missing))
                    ),
                    text.decode().encode("utf-16"),
                    text.decode().encode("utf-16-be"),
                    text.decode().encode("utf-32-le"),
                    b"sep=,\n" + text,
                    b'"' + text,
                    text.replace(b",", b"\0"),
                    b"",
                    b"\n \n",
                    codecs.BOM_UTF8,
                    b"\0" * 4096,
                    b"<!DOCTYPE html><html><body>503 Service Unavailable</body></html>",
                    b"%PDF-1.4\n1 0 obj\n",
                    b"PK\x03\x04" + bytes(range(256)),
                    b"x" * 150_000,
                ]
            )
        ),
    )


@kind("refused: JSON that is no JSON lines")
def _bad_json(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    records = rows(at_least=1, is_complete=True)
    objects = [json.loads(line) for line in json_bytes(records).splitlines()]
    return _refused(
        draw(st.sampled_from([".json", ".jsonl"])),
        draw(
            st.sampled_from(
                [
                    json.dumps(objects, indent=2).encode(),
                    json.dumps(objects).encode(),
                    json.dumps({"events": objects}).encode(),
                    json_bytes(records).decode().encode("utf-16"),
                    b"null\n",
                    b"{}\n{}\n",
                    b"",
                    b"\n\n",
                    b"\0\0\0\0",
                    csv_bytes(records, CsvStyle(header=tuple(COLUMNS[entity]))),
                ]
            )
        ),
    )


@kind("refused: of another type, or with a name that is no text")
def _bad_name(draw: Any, entity: str, rows: Draws) -> tuple[str, dict[str, Any]]:
    text = csv_bytes(rows(), CsvStyle(header=tuple(COLUMNS[entity])))
    return _refused(draw(st.sampled_from([".xlsx", ".csv.bak", ".txt", "", "\udcff.csv"])), text)


# ---------------------------------------------------------------- a folder

# Names are keys: a folder, odd characters; the number makes each of them another one.
NAMES = [
    "a",
    "B b",
    "day=1/part-0",
    "it's [1]*?",
    'q"uote',
    "日本",
    "\u202eabc",
    "%s",
    "x;y,z",
    "ä",
]


@st.composite
def fuzz_files(draw: Any, number: int, damage: str) -> FuzzFile:
    """One file; number makes its name and its marks differ from those of other files."""
    entity = draw(st.sampled_from(["events", "events", "products", "users"]))
    n_drawn = 0

    def rows(
        *, at_least: int = 0, is_tame: bool = False, is_complete: bool = False
    ) -> tuple[Record, ...]:
        nonlocal n_drawn
        records = []
        for _ in range(draw(st.integers(at_least, 6))):
            record = draw(RECORDS[entity](f"mk{number}x{n_drawn}y", is_tame=is_tame))
            n_drawn += 1
            if is_complete:
                # Where there is no header, a column that no record has is a missing one.
                for name in REQUIRED[entity]:
                    record.values[name] = record.values[name] or ""
            records.append(record)
        return tuple(records)

    ending, fields = KINDS[damage](draw, entity, rows)
    name = f"{draw(st.sampled_from(NAMES))} {number}{ending}"
    return FuzzFile(entity=entity, name=name, damage=damage, **fields)


def _constant(content: bytes) -> Callable[[Sequence[Record]], bytes]:
    return lambda _: content


TWIN = "none: the same file under another name"


@st.composite
def landing_folders(draw: Any) -> tuple[FuzzFile, ...]:
    """Folders of a good catalogue, a good file of events, a file of every kind, and some more."""
    kinds = [*draw(st.permutations(list(KINDS))), *draw(st.lists(st.sampled_from(list(KINDS))))]
    files = [draw(fuzz_files(number, damage)) for number, damage in enumerate(kinds, start=10)]
    for at in draw(st.sets(st.integers(0, len(files) - 1), max_size=3)):
        # With the records in another order it would be another file.
        files[at] = replace(files[at], is_ordered=True)
        content = files[at].render(files[at].records)
        name = draw(st.sampled_from(["0 ", "c ", "~ "])) + files[at].name.replace("/", " ")
        # Its records are counted where they came from.
        files.append(
            replace(files[at], name=name, damage=TWIN, records=(), render=_constant(content))
        )
    return (*GOOD_FILES, *files)


def _good_files() -> tuple[FuzzFile, FuzzFile]:
    products = tuple(
        Record({"product_id": product, "description": f"mk0x{at}y"}, "accepted")
        for at, product in enumerate(CATALOGUE)
    )
    event: Values = {"user_id": "u", "product_id": "p1", "event_type": "view"}
    events = (Record({**event, "event_ts": "2024-02-01", "event_id": "mk1x0y"}, "accepted", DAY),)
    return tuple(  # type: ignore[return-value]
        FuzzFile(
            entity,
            "0.csv",
            "none: a good file beside the others",
            records,
            lambda rows, columns=tuple(COLUMNS[entity]): csv_bytes(rows, CsvStyle(header=columns)),
        )
        for entity, records in (("products", products), ("events", events))
    )


GOOD_FILES = _good_files()
