"""CSV files -> schema raw, quickly where every line is a record, else line by line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from orchestration.landing.contract import (
    LONGEST_ERROR,
    LandingError,
    LandingFile,
    canonical,
    is_utf8,
    match_columns,
    readable,
)
from orchestration.landing.lines import (
    NumberedLines,
    compression,
    count_plain_lines,
    problem_with_line,
)
from orchestration.landing.raw_tables import (
    KEPT_OF_MALFORMED_LINE,
    Counts,
    NotPlainError,
    insert_malformed,
    insert_rows,
    literal_path,
    registered,
    table_relation,
)

# The longest value that Python's csv module takes is a bit longer.
_LONGEST_HEADER = 100_000
# A quote that is never closed gives back millions of lines at once.
_MALFORMED_PER_BLOCK = 100_000
_DELIMITERS = (",", ";", "\t", "|")


class _OpenQuoteError(Exception):
    """The text ends inside a quoted value: it may go on in the next line."""


@dataclass(frozen=True)
class _CsvShape:
    """What the header line tells."""

    delimiter: str
    header: list[str]
    matched: dict[str, int]


def read_plain_csv(connection: duckdb.DuckDBPyConnection, file: LandingFile) -> Counts:
    """Read a CSV file of which every line is a record, with DuckDB's reader."""
    n_lines = count_plain_lines(file, quotes_count=True)
    lines = NumberedLines(file)
    shape = _read_header(lines, file)
    if lines.number != 1:
        raise NotPlainError
    columns = ", ".join(f"'c{position}': 'VARCHAR'" for position in range(len(shape.header)))
    relation = table_relation(
        "read_csv($path, auto_detect = false, header = true, delim = $delimiter, quote = '\"', "
        f"escape = '\"', compression = '{compression(file)}', hive_partitioning = false, "
        f"columns = {{{columns}}})",
        row="row_number() over () + 1",
        matched=shape.matched,
        header=shape.header,
        parameters={"path": literal_path(file.path), "delimiter": shape.delimiter},
    )
    try:
        n_rows = insert_rows(connection, file.entity, relation, file.source_file)
    except (duckdb.InvalidInputException, duckdb.IOException) as error:
        raise NotPlainError from error
    if n_rows != n_lines - 1:
        raise NotPlainError
    return Counts(n_rows)


def read_csv_carefully(connection: duckdb.DuckDBPyConnection, file: LandingFile) -> Counts:
    """Read a CSV file line by line, so that one broken record costs no other.

    A blank line is no record, and delimiters too many at the end of a line are left out, as in
    DuckDB. Where a quote is closed in the middle of a value or never, only the line on which that
    record starts is malformed, and reading goes on with the next.
    """
    lines = NumberedLines(file)
    shape = _read_header(lines, file)
    relation = table_relation(
        "landing_block",
        row="line_number",
        matched=shape.matched,
        header=shape.header,
        parameters={},
    )
    n_rows = n_malformed = 0
    while lines.fetch():
        numbers, values, malformed = _parse_block(lines, shape.delimiter, len(shape.header))
        block = pa.table(
            [pa.array(numbers, pa.int64()), *(pa.array(column, pa.string()) for column in values)],
            names=["line_number", *(f"c{position}" for position in range(len(shape.header)))],
        )
        with registered(connection, "landing_block", block):
            n_rows += insert_rows(connection, file.entity, relation, file.source_file)
        n_malformed += _insert_malformed_block(connection, file, malformed)
    return Counts(n_rows, n_malformed)


def _insert_malformed_block(
    connection: duckdb.DuckDBPyConnection,
    file: LandingFile,
    malformed: Sequence[tuple[int, str, str]],
) -> int:
    if not malformed:
        return 0
    table = pa.table(
        {
            "line_number": [number for number, _, _ in malformed],
            "line": [readable(line[:KEPT_OF_MALFORMED_LINE]) for _, line, _ in malformed],
            "error": [error for _, _, error in malformed],
        }
    )
    with registered(connection, "landing_malformed", table):
        return insert_malformed(connection, file, "landing_malformed")


def _read_header(lines: "NumberedLines", file: LandingFile) -> _CsvShape:
    """Take the first record off the lines and find the contract's columns in it."""
    text = ""
    while not text.strip() and lines.fetch():
        text = lines.take()
    if not text.strip():
        raise LandingError(
            f"{file.source_file} has no header line. Its first line has to name the columns; "
            f"required are {', '.join(file.entity.required)}."
        )
    if not is_utf8(text) or "\0" in text:
        raise LandingError(
            f"{file.source_file}: the header is not UTF-8 text. Save the file as CSV in UTF-8, "
            "or move it out of the landing folder."
        )
    n_quotes = text.count('"')
    while n_quotes % 2 and len(text) < _LONGEST_HEADER and lines.fetch():
        line = lines.take()
        text += line
        n_quotes += line.count('"')
    if len(text) >= _LONGEST_HEADER:
        raise LandingError(
            f"{file.source_file}: the header is longer than {_LONGEST_HEADER:,} characters, as in "
            "a file that is no CSV or has a quote that is never closed. Its first line has to "
            "name the columns."
        )

    def split(delimiter: str) -> list[str]:
        try:
            return _split_record(text, delimiter)
        except (_OpenQuoteError, ValueError):
            return []

    def n_known_and_all(delimiter: str) -> tuple[int, int]:
        header = split(delimiter)
        return len({canonical(file.entity, name) for name in header} - {None}), len(header)

    # The first of the best: a header of one column is a comma's.
    delimiter = max(_DELIMITERS, key=n_known_and_all)
    header = split(delimiter)
    if not header:
        raise LandingError(
            f"{file.source_file}: the header has a quote in the wrong place: "
            f"{text.strip()[:LONGEST_ERROR]!r}. "
            "Its first line has to name the columns.",
            discreet=f"{file.source_file}: the header has a quote in the wrong place. Its first "
            "line has to name the columns.",
        )
    # A delimiter at the end of every line makes a last column without a name, which is no clash.
    named = [name if name.strip() else f"column_{at + 1}" for at, name in enumerate(header)]
    return _CsvShape(
        delimiter, named, match_columns(file.entity, named, source_file=file.source_file)
    )


def _parse_block(
    lines: "NumberedLines", delimiter: str, n_columns: int
) -> tuple[list[int], list[list[str]], list[tuple[int, str, str]]]:
    """Take fetched lines, and those that belong to the last record, and parse them.

    Returns:
        The line numbers of the records, their values column by column, and the malformed
        lines as (line number, text, error).
    """
    # Lines without quotes are split together, and so are lines of quoted values only, which takes
    # a fraction of the time of splitting each.
    separators = (delimiter, f'"{delimiter}"')
    together: list[tuple[list[int], list[str]]] = [([], []), ([], [])]
    numbers: list[int] = []
    records: list[list[str]] = []
    malformed: list[tuple[int, str, str]] = []
    while lines.fetched and len(malformed) < _MALFORMED_PER_BLOCK:
        number = lines.number + 1
        line = lines.take()
        text = line.rstrip("\r\n")
        if '"' not in text:
            n_values = text.count(delimiter) + 1
            if n_values > n_columns and text.endswith(delimiter * (n_values - n_columns)):
                text, n_values = text[: n_columns - n_values], n_columns
            error = problem_with_line(text, n_values, n_columns)
            if text and not error:
                together[0][0].append(number)
                together[0][1].append(text)
        elif _has_quoted_values_only(text, separators[1], n_columns):
            error = problem_with_line(text, n_columns, n_columns)
            if not error:
                together[1][0].append(number)
                together[1][1].append(text[1:-1])
        else:
            text, record, error = _take_record(line, lines, delimiter, n_columns)
            if not error:
                numbers.append(number)
                records.append(record)
        if error:
            malformed.append((number, text, error))
    columns = [list(column) for column in zip(*records, strict=True)] or [
        [] for _ in range(n_columns)
    ]
    for separator, (more_numbers, texts) in zip(separators, together, strict=True):
        values = separator.join(texts).split(separator) if texts else []
        numbers += more_numbers
        for at, column in enumerate(columns):
            column += values[at::n_columns]
    return numbers, columns, malformed


def _has_quoted_values_only(text: str, separator: str, n_columns: int) -> bool:
    """Say whether all quotes of a line are around its values, so that none is inside."""
    return (
        text[0] == text[-1] == '"'
        and text.count('"') == 2 * n_columns
        and text[1:-1].count(separator) == n_columns - 1
    )


def _take_record(
    first: str, lines: "NumberedLines", delimiter: str, n_columns: int
) -> tuple[str, list[str], str | None]:
    """Take what is still missing of a record off the lines; of a broken one nothing.

    Args:
        first: The line on which the record starts.
        lines: Those that follow.
        delimiter: Between two values.
        n_columns: How many values there have to be.

    Returns:
        The text, its values, and what is wrong with it.
    """
    text = first
    further: list[str] = []
    while True:
        try:
            values = _split_record(text, delimiter)
            break
        except _OpenQuoteError:
            more = lines.take_until_odd_quotes(len(text))
            error = "A quote is opened and never closed."
        except ValueError as problem:
            more = []
            error = str(problem)
        if not more:
            lines.put_back(further)
            return first.rstrip("\r\n"), [], error
        further += more
        text += "".join(more)
    text = text.rstrip("\r\n")
    if not any(values[n_columns:]):
        values = values[:n_columns]
    return text, values, problem_with_line(text, len(values), n_columns)


def _split_record(text: str, delimiter: str) -> list[str]:
    """Split the text of one record, line ends and all, into its values (RFC 4180).

    Blanks around a quoted value are left out. A quote inside a value that is not quoted is an
    ordinary character, as in: 5" pipe.

    Raises:
        _OpenQuoteError: if the text ends inside a quoted value.
        ValueError: if a quoted value is followed by something else than a delimiter.
    """
    quoted, bare = _VALUE[delimiter]
    values: list[str] = []
    position = 0
    while True:
        if match := quoted.match(text, position):
            if match["open"] is not None:
                raise _OpenQuoteError
            value = match["value"].replace('""', '"')
        else:
            match = bare.match(text, position)
            value = match["value"] if match else ""
        if not match or match["end"] is None:
            raise ValueError("A quoted value goes on after its closing quote.")
        is_last = match["end"] != delimiter
        values.append(value)
        position = match.end()
        if is_last:
            return values


def _value_patterns(delimiter: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Compile what matches a quoted and a bare value with the delimiter or line end after it."""
    d = re.escape(delimiter)
    end = rf"(?P<end>{d}|[\r\n]*\Z)"
    # Possessive (*+): a text of megabytes must not be tried in every way of splitting it.
    quoted = rf' *"(?P<value>[^"]*+(?:""[^"]*+)*+)(?:" *{end}?|(?P<open>\Z))'
    return re.compile(quoted), re.compile(rf"(?P<value>[^{d}\n]*?){end}")


_VALUE = {delimiter: _value_patterns(delimiter) for delimiter in _DELIMITERS}
