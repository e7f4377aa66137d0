"""The bytes that go to Redis: lists of a version as commands of the Redis protocol.

Belongs here: turning rows of a version into bytes. Does not belong here: where rows come from and
where bytes go (`redis_load.py`).

One compiled loop reads Arrow's buffers as DuckDB filled them and writes what the socket sends: no
text is made in between, no piece is copied twice. A batch of rows ends anywhere, so what belongs to
a list that may go on is handed back, to stand before the next batch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

# Numba looks for it at a first call, and numpy imports it late: in two threads at once that fails
# ("maximum recursion depth exceeded").
import numpy.ma
import pyarrow as pa
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from exports.lists import DECIMALS, HALF, LEAST_HUGE, LEAST_ORDINARY, score_text

# A HSET of so many lists of 700 bytes keeps readers waiting for 0.1 ms; more gain nothing.
_LISTS_PER_COMMAND = 50

# A value is {"items":[[product,score,position],...],"why":[[source,reason],...]}: see lists.py.
_VALUE_START = np.frombuffer(b'{"items":[', dtype=np.uint8)
_VALUE_MIDDLE = np.frombuffer(b'],"why":[', dtype=np.uint8)
_VALUE_END = np.frombuffer(b"]}\r\n", dtype=np.uint8)
_NULL = np.frombuffer(b"null", dtype=np.uint8)
_LINE_END = np.frombuffer(b"\r\n", dtype=np.uint8)
_PAIRS = np.frombuffer(b"".join(b"%02d" % number for number in range(100)), dtype=np.uint8)
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_COUNT, _LENGTH, _MINUS, _ZERO, _POINT = (np.uint8(ord(mark)) for mark in "*$-0.")
_QUOTE, _BACKSLASH, _COMMA, _OPEN, _CLOSE = (np.uint8(ord(mark)) for mark in '"\\,[]')
_FIRST_PRINTABLE = 0x20
_MILLION = 10**DECIMALS

# JSON writes a control character with six bytes: \u001f.
_MOST_BYTES_PER_BYTE = 6
# Digits, commas and brackets of an item and of its reason; head of a list.
_MOST_BYTES_PER_ROW = 80
_MOST_BYTES_PER_LIST = 80


@dataclass(frozen=True)
class Commands:
    """Bytes to send, and how many replies they get. Valid until the next ones are made."""

    content: memoryview
    n_commands: int
    n_lists: int


class OutOfOrder(Exception):
    """Rows came in another order than by list and rank. What was made of them is to be redone."""


def to_commands(batches: Iterable[pa.RecordBatch], key: str) -> Iterator[Commands]:
    """HSETs that put the lists into the hash `key`, a field each, in the order of the rows.

    Args:
        batches: The columns of `lists.rows_sql`, ordered by list and rank over all batches.
        key: The hash.

    Raises:
        OutOfOrder: if a row should stand before the one it follows.
    """
    writer = _Writer(key)
    rest: pa.RecordBatch | None = None
    for batch in batches:
        if batch.num_rows == 0:
            continue
        starts = _starts_of_lists(batch)
        end_of_first = int(starts[1]) if len(starts) > 1 else batch.num_rows
        if rest is not None:
            # The rest and the first list, in a batch of their own: a copy of few rows.
            first = _joined(rest, batch.slice(0, end_of_first))
            if len(starts) == 1:
                rest = first
                continue
            yield writer.write(first, _starts_of_lists(first), n_left=0)
            starts = starts[1:]
        if len(starts) > 1:
            yield writer.write(batch, starts, n_left=1)
        rest = batch.slice(int(starts[-1]))
    if rest is not None:
        yield writer.write(rest, _starts_of_lists(rest), n_left=0)


class _Writer:
    def __init__(self, key: str) -> None:
        name = key.encode()
        self._head = np.frombuffer(
            b"\r\n$4\r\nHSET\r\n$%d\r\n%s\r\n" % (len(name), name), dtype=np.uint8
        )
        self._out = np.empty(0, dtype=np.uint8)

    def write(self, rows: pa.RecordBatch, starts: np.ndarray, *, n_left: int) -> Commands:
        """Commands of the lists that start at `starts`, but for the last n_left of them."""
        ends = np.append(starts, rows.num_rows)[: len(starts) - n_left + 1]
        n_lists = len(ends) - 1
        n_commands = -(-n_lists // _LISTS_PER_COMMAND)
        scores = _numbers(rows.column("score"))
        texts = [_text(rows.column(name)) for name in _TEXTS]
        texts.append(_odd_scores(scores))
        most = (
            _MOST_BYTES_PER_BYTE * sum(int(text[0][-1] - text[0][0]) for text in texts)
            + rows.num_rows * _MOST_BYTES_PER_ROW
            + n_lists * _MOST_BYTES_PER_LIST
            + n_commands * (len(self._head) + 20)
        )
        if most > len(self._out):
            # Only what is written takes memory.
            self._out = np.empty(most, dtype=np.uint8)
        n_bytes = _write(
            self._out,
            self._head,
            ends,
            *texts,
            scores,
            np.empty(np.diff(ends).max(), dtype=np.int64),
        )
        return Commands(self._out.data[:n_bytes], n_commands, n_lists)


# Without numba's counting of references, which takes more time than all the rest: nothing here
# makes an array.
_compiled = njit(cache=True, nogil=True, _nrt=False)
_inlined = njit(cache=True, nogil=True, _nrt=False, forceinline=True)

_TEXTS = ("list_id", "product_id", "source", "reason")

# Offsets, bytes, one bit per text that tells whether it is there (none if all are), first bit.
_Text = tuple[np.ndarray, np.ndarray, np.ndarray, int]


def _text(texts: pa.Array) -> _Text:
    is_there, offsets, data = texts.buffers()
    return (
        _array(offsets, "int32")[texts.offset : texts.offset + len(texts) + 1],
        _array(data, "uint8"),
        _array(is_there if texts.null_count else None, "uint8"),
        texts.offset,
    )


def _odd_scores(scores: np.ndarray) -> _Text:
    """The texts of scores that are tiny or huge; nothing where there are none, as nearly always."""
    n_bytes = np.zeros(1, dtype=np.int32)
    pieces = []
    if _n_odd(scores) > 0:
        is_ordinary = (abs(scores) >= LEAST_ORDINARY) & (abs(scores) < LEAST_HUGE)
        rows = np.flatnonzero(~is_ordinary)
        # Not pa.array, which imports pandas, for a second or two.
        pieces = [score_text(score).encode() for score in scores[rows].tolist()]
        n_bytes = np.zeros(len(scores) + 1, dtype=np.int32)
        n_bytes[rows + 1] = [len(piece) for piece in pieces]
    return (
        _array(np.cumsum(n_bytes, dtype=np.int32).tobytes(), "int32"),
        _array(b"".join(pieces), "uint8"),
        _array(None, "uint8"),
        0,
    )


def _numbers(numbers: pa.Array) -> np.ndarray:
    # Not to_numpy, for the same reason.
    found = _array(numbers.buffers()[1], str(numbers.type))
    return found[numbers.offset : numbers.offset + len(numbers)]


def _array(buffer: pa.Buffer | bytes | None, kind: str) -> np.ndarray:
    found = np.frombuffer(buffer or b"", dtype=kind)
    # Some of Arrow's buffers can be written and some not, and numba would compile for each mixture.
    found.flags.writeable = False
    return found


def _starts_of_lists(rows: pa.RecordBatch) -> np.ndarray:
    starts = np.empty(rows.num_rows, dtype=np.int64)
    n = _find_starts(starts, *_text(rows.column("list_id"))[:2], _numbers(rows.column("rank")))
    if n < 0:
        raise OutOfOrder
    return starts[:n]


def _joined(first: pa.RecordBatch, second: pa.RecordBatch) -> pa.RecordBatch:
    columns = zip(first.columns, second.columns, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.concat_arrays(column) for column in columns], schema=first.schema
    )


_WORD = 8
_ALL_BITS = np.uint64(0xFFFFFFFFFFFFFFFF)
_EACH_BYTE = np.uint64(0x0101010101010101)
_HIGH_BITS = np.uint64(0x8080808080808080)


# A place may be counted from the end in Python. To ask that about each takes a third of the time.


@intrinsic
def _get(typing_context, array, at):  # type: ignore[no-untyped-def]
    """An element of an array, at a place from its start."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.load(builder.gep(array.data, [arguments[1]]))

    return array.dtype(array, types.intp), code


@intrinsic
def _set(typing_context, array, at, value):  # type: ignore[no-untyped-def]
    """Write an element of an array, at a place from its start."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        builder.store(arguments[2], builder.gep(array.data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), code


@intrinsic
def _word_at(typing_context, data, at):  # type: ignore[no-untyped-def]
    """Eight bytes of an array as one number, at any place."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(array.data, [arguments[1]])
        return builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(data, types.intp), code


@intrinsic
def _put_word(typing_context, out, at, word):  # type: ignore[no-untyped-def]
    """Write eight bytes of an array as one number, at any place."""

    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(array.data, [arguments[1]])
        word = builder.bitcast(address, ir.IntType(64).as_pointer())
        builder.store(arguments[2], word, align=1)
        return context.get_dummy_value()

    return types.void(out, types.intp, types.uint64), code


@_inlined
def _needs_escape(word: np.uint64) -> np.uint64:
    """High bits of the bytes that are a control character, a quote or a backslash.

    The subtraction turns on the high bit of a byte that is too small. A borrow may also turn on
    bits of the bytes after one that was found, never before it.
    """
    quote = word ^ (_EACH_BYTE * np.uint64(_QUOTE))
    backslash = word ^ (_EACH_BYTE * np.uint64(_BACKSLASH))
    return (
        ((word - _EACH_BYTE * np.uint64(_FIRST_PRINTABLE)) & ~word)
        | ((quote - _EACH_BYTE) & ~quote)
        | ((backslash - _EACH_BYTE) & ~backslash)
    ) & _HIGH_BITS


@_compiled
def _find_starts(
    starts: np.ndarray, offsets: np.ndarray, data: np.ndarray, rank: np.ndarray
) -> int:
    """Rows at which lists start; their number, or -1 if rows are not ordered by list and rank."""
    n = 1
    _set(starts, 0, np.int64(0))
    for row in range(1, len(rank)):
        before, start, end = _get(offsets, row - 1), _get(offsets, row), _get(offsets, row + 1)
        if start - before == end - start and _are_equal(data, before, start, end - start):
            if _get(rank, row) < _get(rank, row - 1):
                return -1
            continue
        shorter = min(start - before, end - start)
        at = 0
        while at < shorter and _get(data, before + at) == _get(data, start + at):
            at += 1
        # Bytes of UTF-8 are ordered as DuckDB orders texts.
        if at < shorter and _get(data, before + at) > _get(data, start + at):
            return -1
        if at == shorter and start - before > end - start:
            return -1
        _set(starts, n, row)
        n += 1
    return n


@_compiled
def _n_odd(scores: np.ndarray) -> int:
    n = 0
    for score in scores:
        # Not the other way round: what is not a number is odd too.
        n += not LEAST_ORDINARY <= abs(score) < LEAST_HUGE
    return n


@_compiled
def _write(
    out: np.ndarray,
    head: np.ndarray,
    ends: np.ndarray,
    ids: _Text,
    products: _Text,
    sources: _Text,
    reasons: _Text,
    score_texts: _Text,
    scores: np.ndarray,
    why_rows: np.ndarray,
) -> int:
    """Write the commands of the lists ends[0]:ends[1], ends[1]:ends[2], ...; the bytes written.

    Only scores that are tiny or huge have a text in `score_texts`.
    """
    n_lists = len(ends) - 1
    n_digits = 3
    at = 0
    for each in range(n_lists):
        if each % _LISTS_PER_COMMAND == 0:
            _set(out, at, _COUNT)
            at = _put_number(out, at + 1, 2 + 2 * min(_LISTS_PER_COMMAND, n_lists - each))
            at = _put(out, at, head, 0, len(head))
        id_start, id_end = _get(ids[0], _get(ends, each)), _get(ids[0], _get(ends, each) + 1)
        _set(out, at, _LENGTH)
        at = _put_number(out, at + 1, id_end - id_start)
        at = _put(out, at, _LINE_END, 0, 2)
        at = _put(out, at, ids[1], id_start, id_end)
        at = _put(out, at, _LINE_END, 0, 2)
        # The value's length stands before it, and nearly always has as many digits as that of the
        # list before.
        begin = at + 1 + n_digits + 2
        end = _put_value(
            out,
            begin,
            _get(ends, each),
            _get(ends, each + 1),
            products,
            sources,
            reasons,
            score_texts,
            scores,
            why_rows,
        )
        n_bytes = end - begin - 2
        found = _n_digits(n_bytes)
        if found != n_digits:
            end = _shift(out, begin, end, found - n_digits)
            n_digits = found
        _set(out, at, _LENGTH)
        at = _put_number(out, at + 1, n_bytes)
        _put(out, at, _LINE_END, 0, 2)
        at = end
    return at


@_inlined
def _put_value(
    out: np.ndarray,
    at: int,
    start: int,
    end: int,
    products: _Text,
    sources: _Text,
    reasons: _Text,
    score_texts: _Text,
    scores: np.ndarray,
    why_rows: np.ndarray,
) -> int:
    n_whys = 0
    at = _put(out, at, _VALUE_START, 0, len(_VALUE_START))
    for row in range(start, end):
        position = 0
        while position < n_whys and not (
            _is_same(reasons, row, _get(why_rows, position))
            and _is_same(sources, row, _get(why_rows, position))
        ):
            position += 1
        if position == n_whys:
            _set(why_rows, n_whys, row)
            n_whys += 1
        if row > start:
            _set(out, at, _COMMA)
            at += 1
        _set(out, at, _OPEN)
        at = _put_json(out, at + 1, products, row)
        _set(out, at, _COMMA)
        score = _get(scores, row)
        if LEAST_ORDINARY <= abs(score) < LEAST_HUGE:
            at = _put_score(out, at + 1, score)
        else:
            offsets, data, _, _ = score_texts
            at = _put(out, at + 1, data, _get(offsets, row), _get(offsets, row + 1))
        _set(out, at, _COMMA)
        at = _put_number(out, at + 1, position)
        _set(out, at, _CLOSE)
        at += 1
    at = _put(out, at, _VALUE_MIDDLE, 0, len(_VALUE_MIDDLE))
    for position in range(n_whys):
        if position > 0:
            _set(out, at, _COMMA)
            at += 1
        _set(out, at, _OPEN)
        at = _put_json(out, at + 1, sources, _get(why_rows, position))
        _set(out, at, _COMMA)
        at = _put_json(out, at + 1, reasons, _get(why_rows, position))
        _set(out, at, _CLOSE)
        at += 1
    return _put(out, at, _VALUE_END, 0, len(_VALUE_END))


@_inlined
def _is_there(texts: _Text, row: int) -> bool:
    _, _, bits, first = texts
    if len(bits) == 0:
        return True
    return (_get(bits, (first + row) >> 3) >> ((first + row) & 7)) & 1 == 1


@_inlined
def _is_same(texts: _Text, row: int, other: int) -> bool:
    offsets, data, _, _ = texts
    start, other_start = _get(offsets, row), _get(offsets, other)
    n_bytes = _get(offsets, row + 1) - start
    if _get(offsets, other + 1) - other_start != n_bytes:
        return False
    if n_bytes == 0:
        return _is_there(texts, row) == _is_there(texts, other)
    return _are_equal(data, start, other_start, n_bytes)


@_inlined
def _are_equal(data: np.ndarray, start: int, other: int, n_bytes: int) -> bool:
    # From the end, since that is where ids and reasons differ.
    while n_bytes >= _WORD:
        n_bytes -= _WORD
        if _word_at(data, start + n_bytes) != _word_at(data, other + n_bytes):
            return False
    if n_bytes == 0:
        return True
    if max(start, other) + _WORD <= len(data):
        difference = _word_at(data, start) ^ _word_at(data, other)
        return difference << np.uint64(8 * (_WORD - n_bytes)) == 0
    while n_bytes > 0 and _get(data, start + n_bytes - 1) == _get(data, other + n_bytes - 1):
        n_bytes -= 1
    return n_bytes == 0


@_inlined
def _put(out: np.ndarray, at: int, data: np.ndarray, start: int, end: int) -> int:
    for each in range(end - start):
        _set(out, at + each, _get(data, start + each))
    return at + end - start


@_inlined
def _put_json(out: np.ndarray, at: int, texts: _Text, row: int) -> int:
    if not _is_there(texts, row):
        return _put(out, at, _NULL, 0, len(_NULL))
    offsets, data, _, _ = texts
    start, end = _get(offsets, row), _get(offsets, row + 1)
    _set(out, at, _QUOTE)
    at += 1
    # Eight bytes at once as far as none needs an escape; no read goes beyond the data.
    while start < end and start + _WORD <= len(data):
        word = _word_at(data, start)
        n_bytes = min(end - start, _WORD)
        if _needs_escape(word) & (_ALL_BITS >> np.uint64(8 * (_WORD - n_bytes))):
            break
        # What is too much is written over by what follows.
        _put_word(out, at, word)
        start += n_bytes
        at += n_bytes
    for each in range(start, end):
        byte = _get(data, each)
        if byte < _FIRST_PRINTABLE:
            _set(out, at, _BACKSLASH)
            _set(out, at + 1, ord("u"))
            _set(out, at + 2, _ZERO)
            _set(out, at + 3, _ZERO)
            _set(out, at + 4, _get(_HEX, byte >> 4))
            _set(out, at + 5, _get(_HEX, byte & 15))
            at += 6
            continue
        if byte in (_QUOTE, _BACKSLASH):
            _set(out, at, _BACKSLASH)
            at += 1
        _set(out, at, byte)
        at += 1
    _set(out, at, _QUOTE)
    return at + 1


@_inlined
def _n_digits(number: int) -> int:
    n = 1
    while number >= 10:
        number //= 10
        n += 1
    return n


@_inlined
def _put_number(out: np.ndarray, at: int, number: int) -> int:
    if number < 10:
        _set(out, at, _ZERO + number)
        return at + 1
    end = at + _n_digits(number)
    for place in range(end - 1, at - 1, -1):
        _set(out, place, _ZERO + number % 10)
        number //= 10
    return end


@_inlined
def _put_score(out: np.ndarray, at: int, score: float) -> int:
    """`published_score` of an ordinary one."""
    if score < 0:
        _set(out, at, _MINUS)
        at += 1
    # Unsigned: signed division takes a branch more for Python's rounding.
    number = np.uint64(abs(score) * _MILLION + HALF)
    whole = number // np.uint64(_MILLION)
    at = _put_number(out, at, whole)
    _set(out, at, _POINT)
    part = np.uint32(number - whole * np.uint64(_MILLION))
    for place in range(at + DECIMALS - 1, at, -2):
        rest = part // np.uint32(100)
        pair = 2 * (part - np.uint32(100) * rest)
        _set(out, place, _get(_PAIRS, pair))
        _set(out, place + 1, _get(_PAIRS, pair + 1))
        part = rest
    return at + 1 + DECIMALS


@_inlined
def _shift(out: np.ndarray, start: int, end: int, by: int) -> int:
    """Move out[start:end] by a few places."""
    if by > 0:
        for each in range(end - 1, start - 1, -1):
            _set(out, each + by, _get(out, each))
    else:
        for each in range(start, end):
            _set(out, each + by, _get(out, each))
    return end + by
