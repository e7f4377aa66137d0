"""What a shop hands us: its files, their columns, and the weights of its event types.

What is in the files is read next door: ingest.py, with a module for each format.
"""

import csv
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class LandingError(Exception):
    """Something about the landing folder that only its owner can mend.

    The message is a whole sentence: which file, column or row, what was expected, what to do.

    Attributes:
        discreet: The same without anything that stands in a file, where customers' ids must not
            get into logs.
    """

    def __init__(self, message: str, *, discreet: str | None = None) -> None:
        super().__init__(message)
        self.discreet = message if discreet is None else discreet


@dataclass(frozen=True)
class Entity:
    """One kind of landing file, with the columns of its raw table in their order."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """Required columns first."""
        return self.required + self.optional


@dataclass(frozen=True)
class LandingFile:
    """A file of the landing folder.

    source_file is its posix path relative to that folder, with bytes that are not UTF-8 as \\xff.
    format is one of FORMATS, None for a file of another type.
    """

    path: Path
    source_file: str
    entity: Entity
    format: str | None


# In the order in which they are loaded; the names are also the folders and the raw tables.
ENTITIES: Mapping[str, Entity] = {
    entity.name: entity
    for entity in (
        Entity(
            name="events",
            required=("user_id", "product_id", "event_type", "event_ts"),
            optional=(
                "event_id",
                "rating",
                "quantity",
                "price",
                "session_id",
                "order_id",
                "version",
                "rank",
                "variant",
            ),
            aliases={"interaction_type": "event_type", "ts": "event_ts"},
        ),
        Entity(
            name="products",
            required=("product_id", "title"),
            optional=(
                "category",
                "brand",
                "description",
                "price",
                "margin",
                "img_url",
                "available_from",
                "available_until",
                "in_stock",
                "added_at",
            ),
        ),
        Entity(
            name="users",
            required=("user_id",),
            optional=("country", "age_band", "gender"),
        ),
    )
}

# The end of a file name, and how such a file is read. A .json file is JSON lines too.
FORMATS: Mapping[str, str] = {
    ".csv": "csv",
    ".csv.gz": "csv",
    ".jsonl": "json lines",
    ".jsonl.gz": "json lines",
    ".ndjson": "json lines",
    ".json": "json lines",
    ".parquet": "parquet",
}

# How much of an error, or of what is wrong, a message says.
LONGEST_ERROR = 500
LAYOUT = (
    "Expected are the folders events/ and products/, and optionally users/, each with files that "
    f"end in {', '.join(FORMATS)}; or an adapter.sql that defines the views events and products"
)

# What other systems call our columns; difflib alone does not see that a customer is a user.
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "user_id": ("customer", "client", "visitor", "shopper", "buyer", "member", "account", "user"),
    "product_id": ("item", "sku", "article", "asin", "stock_code", "variant_id", "product"),
    "event_type": ("event", "action", "behavior", "behaviour", "activity", "interaction", "type"),
    "event_ts": ("timestamp", "time", "date", "datetime", "occurred", "created", "event_at"),
    "title": ("name", "product_name", "label", "headline"),
}


def normalise(name: str) -> str:
    """Return a column name as headers are compared: without outer blanks, lower case."""
    return name.strip().lower()


def canonical(entity: Entity, name: str) -> str | None:
    """Return the contract's column that a header name means, or None for a further column."""
    wanted = entity.aliases.get(normalise(name), normalise(name))
    return wanted if wanted in entity.columns else None


def match_columns(entity: Entity, header: Sequence[str], *, source_file: str) -> dict[str, int]:
    """Find the contract's columns in a header.

    Args:
        entity: What the file is about.
        header: Column names as they stand in the file.
        source_file: For the message.

    Returns:
        Contract column -> position in the header. Positions not named are further columns.

    Raises:
        LandingError: if two columns have the same name or the same meaning, or a required
            one is missing.
    """
    first_position: dict[str, int] = {}
    matched: dict[str, int] = {}
    for position, name in enumerate(header):
        column = canonical(entity, name)
        key = column or normalise(name)
        if key in first_position:
            raise LandingError(
                f"{source_file}: the columns {header[first_position[key]]!r} and {name!r} both "
                f"mean {key}. Every column may stand in a file once: rename or remove one of them.",
                discreet=f"{source_file}: two columns have the same name or meaning. Every column "
                "may stand in a file once: rename or remove one of them.",
            )
        first_position[key] = position
        if column:
            matched[column] = position
    require_columns(entity, matched, header, source_file=source_file)
    return matched


def require_columns(
    entity: Entity, matched: Mapping[str, object], header: Sequence[str], *, source_file: str
) -> None:
    """Raise LandingError if a required column is not among the matched ones, naming a likely one.

    Args:
        entity: What the file is about.
        matched: Keyed by the contract columns that were found.
        header: The names that stand in the file.
        source_file: For the message.
    """
    missing = [column for column in entity.required if column not in matched]
    if not missing:
        return
    others = [name for name in header if canonical(entity, name) is None]
    guesses = [(column, _likely_name(column, others)) for column in missing]
    hints = "".join(f" Is {name!r} the {column}?" for column, name in guesses if name)
    what = f"{source_file}: {_columns(missing)} missing from this file of {entity.name}; "
    remedy = "Rename the column, or put an adapter.sql into the landing folder that maps it."
    raise LandingError(
        f"{what}it has {', '.join(map(repr, header)) or 'no columns at all'}.{hints} {remedy}",
        discreet=f"{what}it has {len(header)} others. {remedy}",
    )


def _columns(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"the required column {names[0]!r} is"
    return f"the required columns {', '.join(map(repr, names))} are"


def _likely_name(column: str, names: Sequence[str]) -> str | None:
    spelled = {normalise(name): name for name in names}
    close = difflib.get_close_matches(column, spelled, n=1, cutoff=0.7)
    if close:
        return spelled[close[0]]
    for synonym in _SYNONYMS.get(column, ()):
        for key, name in spelled.items():
            if synonym in key:
                return name
    return None


def list_landing_files(folder: Path) -> list[LandingFile]:
    """List the files to be read, in name order within each entity, sub-folders included.

    Names that start with a dot or an underscore are markers of other programs and are left out.

    Raises:
        LandingError: if events/ or products/ is missing.
    """
    for name in ("events", "products"):
        if not (folder / name).is_dir():
            raise LandingError(f"There is no folder {name}/ in {folder}. {LAYOUT}.")
    files = []
    for entity in ENTITIES.values():
        for path in sorted((folder / entity.name).rglob("*"), key=Path.as_posix):
            parts = path.relative_to(folder).parts
            if path.is_dir() or any(part.startswith((".", "_")) for part in parts):
                continue
            source_file = readable("/".join(parts))
            files.append(LandingFile(path, source_file, entity, format_of(path.name)))
    return files


def format_of(name: str) -> str | None:
    """Return the format that the end of a file's name stands for, None if it is unknown."""
    return next((known for end, known in FORMATS.items() if name.lower().endswith(end)), None)


def require_format(file: LandingFile) -> str:
    """Return the file's format, or raise LandingError if it is unknown or the name is no text."""
    if not is_utf8(str(file.path)):
        raise LandingError(
            f"{file.source_file} has a name that is not UTF-8. Rename it, or move it out of the "
            "landing folder."
        )
    if file.format is None:
        raise LandingError(
            f"{file.source_file} is of a type that is not understood. Expected are files that end "
            f"in {', '.join(FORMATS)}: convert it, or move it out of the landing folder."
        )
    return file.format


def is_utf8(text: str) -> bool:
    """Say whether a text that was decoded with surrogateescape held nothing but UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def readable(text: str) -> str:
    """Return a text decoded with surrogateescape, with bytes that are not UTF-8 as \\xff."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_event_types(weights_csv: Path) -> set[str]:
    """Return the event types of the dbt seed event_weights.csv after checking every line of it.

    Args:
        weights_csv: event_type, weight (finite, 0 or more), half_life_days (above 0, or blank),
            undoes (another event type, or blank).

    Raises:
        LandingError: for the first line that is wrong.
    """
    try:
        with weights_csv.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header = tuple(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LandingError(
            f"{weights_csv} cannot be read ({error}). It holds the weight of each event type."
        ) from error
    expected = ("event_type", "weight", "half_life_days", "undoes")
    if header != expected:
        raise LandingError(
            f"{weights_csv} has to start with the line {','.join(expected)}, but starts with "
            f"{','.join(header) or 'nothing'}."
        )
    types = [row["event_type"] or "" for row in rows]
    for number, row in enumerate(rows, start=2):
        problem = _problem_with_weight(row, types[: number - 2], types)
        if problem:
            raise LandingError(f"{weights_csv}, line {number}: {problem}")
    if not types:
        raise LandingError(f"{weights_csv} has no line. Give each event type a weight.")
    return set(types)


def _problem_with_weight(
    row: Mapping[str, str | None], former_types: Sequence[str], types: Sequence[str]
) -> str | None:
    name, undoes = row["event_type"] or "", row["undoes"] or ""
    weight, half_life = row["weight"] or "", row["half_life_days"] or ""
    if None in row.values() or None in row:
        return "it has to have four values, separated by commas; the last two may be blank."
    if not name or name != normalise(name):
        return f"event_type is {name!r}; write it in lower case and without blanks around it."
    if name in former_types:
        return f"event_type {name!r} stands there twice; keep one line for it."
    if not _is_number(weight) or float(weight) < 0:
        return f"the weight of {name!r} is {weight!r}; expected is a finite number, 0 or more."
    if half_life and (not _is_number(half_life) or float(half_life) <= 0):
        return (
            f"half_life_days of {name!r} is {half_life!r}; expected is a number of days above 0, "
            "or nothing for the project's half_life_days."
        )
    if undoes and (undoes not in types or undoes == name):
        return f"{name!r} undoes {undoes!r}; expected is another event type of this file."
    return None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def first_line(error: BaseException) -> str:
    """Return what an error says first; damaged files get their bytes into messages of readers."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line[:LONGEST_ERROR])
