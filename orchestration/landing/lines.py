"""The lines of a text file, numbered and bounded."""

import contextlib
import gzip
import io
import re
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from orchestration.landing.contract import LandingError, LandingFile, first_line, is_utf8
from orchestration.landing.raw_tables import NotPlainError

# Longer lines are no events. Bounds the memory a file without line ends can take.
_LONGEST_LINE = 16 * 2**20
# Some ten thousand lines: few enough to be held as Python strings, many enough to insert at once.
_CHARACTERS_PER_BLOCK = 2 * 2**20


class NumberedLines:
    """The lines of a text file with the number of the last one taken, counted from 1.

    Lines keep their ends. Bytes that are not UTF-8 become surrogates, see is_utf8.
    """

    def __init__(self, file: LandingFile) -> None:
        self.number = 0
        self.fetched: deque[str] = deque()
        self._blocks = _blocks_of_lines(file)

    def fetch(self) -> bool:
        """Fetch a block if nothing is fetched; say whether there is anything to take."""
        while not self.fetched:
            block = next(self._blocks, None)
            if block is None:
                return False
            self.fetched.extend(block)
        return True

    def take(self) -> str:
        """Take the next line."""
        self.number += 1
        return self.fetched.popleft()

    def take_all(self) -> list[str]:
        """Take all fetched lines."""
        block = list(self.fetched)
        self.number += len(block)
        self.fetched.clear()
        return block

    def take_until_odd_quotes(self, n_taken: int) -> list[str]:
        """Take lines up to one in which a quoted value may end, or until the record is too long.

        A line with an even number of quotes leaves a value that was open before it open.

        Args:
            n_taken: Characters of the record that were taken before.
        """
        n_characters = _LONGEST_LINE - n_taken
        taken = []
        while n_characters > 0 and self.fetch():
            line = self.take()
            taken.append(line)
            n_characters -= len(line)
            if line.count('"') % 2:
                break
        return taken

    def put_back(self, lines: Sequence[str]) -> None:
        """Give back the lines that were taken last."""
        self.fetched.extendleft(reversed(lines))
        self.number -= len(lines)


def _blocks_of_lines(file: LandingFile) -> Iterator[list[str]]:
    """Yield the lines of a file; of one that is too long the head, too long as well.

    The first line's end decides: lines end at each LF (a CR before it belongs to the end, any
    other CR to a value), or at each CR as on old Macs.
    """
    rest = ""
    ends: str | None = None
    with _opened(file) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        while chunk := text.read(_CHARACTERS_PER_BLOCK):
            ends = ends or ("\r" if re.match(r"[^\r\n]*\r(?!\n)", chunk) else "\n")
            lines = list(io.StringIO(rest + chunk, newline=ends))
            # The last line may go on in the next chunk.
            rest = lines.pop()[:_LONGEST_LINE]
            yield lines
    if rest:
        yield [rest]


def count_plain_lines(file: LandingFile, *, quotes_count: bool) -> int:
    """Count the lines of a file that all end alike.

    Args:
        file: The file.
        quotes_count: Whether a blank next to a quote is a reason for care: DuckDB's CSV reader
            makes one value of `"a" "b"`.

    Raises:
        NotPlainError: if lines end in different ways, or for such a quote.
    """
    n_lf = n_cr = n_crlf = 0
    last = b""
    with _opened(file) as stream:
        while chunk := stream.read(2**20):
            n_lf += chunk.count(b"\n")
            n_cr += chunk.count(b"\r")
            # Pairs may straddle two chunks.
            chunk = last + chunk
            if n_cr:
                n_crlf += chunk.count(b"\r\n")
            if quotes_count and (b'" ' in chunk or b' "' in chunk):
                raise NotPlainError
            last = chunk[-1:]
    if n_cr and not n_cr == n_crlf == n_lf:
        raise NotPlainError
    return n_lf + (last not in (b"", b"\n"))


def problem_with_line(text: str, n_values: int, n_columns: int) -> str | None:
    """Say why a line is no record; None if it may be one."""
    if len(text) >= _LONGEST_LINE:
        return f"The line is longer than {_LONGEST_LINE:,} characters."
    if not is_utf8(text):
        return "The line is not UTF-8."
    if text and n_values != n_columns:
        return f"Expected {n_columns} columns, found {n_values}."
    return None


@contextlib.contextmanager
def _opened(file: LandingFile) -> Iterator[BinaryIO]:
    """Open a file for reading, unpacked; damage found while reading is a LandingError."""
    try:
        with contextlib.ExitStack() as stack:
            stream: Any = stack.enter_context(file.path.open("rb"))
            if compression(file) == "gzip":
                stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise LandingError(
            f"{file.source_file} is not a whole gzip file ({first_line(error)}). Copy or compress "
            "it again, or move it out of the landing folder."
        ) from error


def compression(file: LandingFile) -> str:
    """Return how a file is packed, in the words of DuckDB's readers."""
    return "gzip" if file.path.name.lower().endswith(".gz") else "none"
