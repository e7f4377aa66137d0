"""The bytes that go to Redis: lists of a version as commands of the Redis protocol.

Belongs here: building buffers from Arrow columns. Does not belong here: where rows come from and
where bytes go (`redis_load.py`). Nothing loops over lists or items: numpy computes where each piece
of text belongs, and Arrow copies the pieces together.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Keys get up to a tenth more than the TTL, so that a version does not expire in one moment.
_JITTER_SHARE = 0.1
_KEYS_PER_EXISTS = 1_000

# A value is {"items":[[product,score,position],...],"why":[[source,reason],...]}: see lists.py.
_VALUE_START = '{"items":[['
_VALUE_MIDDLE = '],"why":['
_VALUE_END = "]}"


def to_commands(rows: pa.Table, version: str, kind: str, *, ttl_seconds: int) -> memoryview:
    """One SET per list, as bytes of the Redis protocol, in the order of the rows.

    Args:
        rows: At least one row, ordered by list and rank. list_id; item, the JSON of product and
            score with a comma after each; why, the JSON of source and reason; salt, a uint64 that
            spreads the lists' expiry.
        version: Part of the keys.
        kind: Part of the keys.
        ttl_seconds: Least lifetime of the keys; 0 for no end.
    """
    ids, item, why = (rows[name].combine_chunks() for name in ("list_id", "item", "why"))
    n_items = len(ids)
    is_first_item = np.ones(n_items, dtype=bool)
    is_first_item[1:] = as_numpy(pc.not_equal(ids[1:], ids[:-1]).cast(pa.uint8()))
    starts = np.flatnonzero(is_first_item)
    list_of = np.cumsum(is_first_item) - 1
    n_lists = len(starts)
    items_in = np.diff(np.append(starts, n_items))

    # Each reason once a list. Encoding numbers the pairs (list, reason) as they first turn up, so
    # the pairs of a list have consecutive numbers, and its first row has its first pair.
    why = why.dictionary_encode()
    code = as_numpy(why.indices).astype(np.int64)
    pair = as_numpy(as_arrow(list_of * len(why.dictionary) + code).dictionary_encode().indices)
    pair_of_first_item = pair[starts]
    position = pair - pair_of_first_item[list_of]
    reasons_in = np.diff(np.append(pair_of_first_item, pair.max() + 1))
    pair_row = np.flatnonzero(np.diff(np.maximum.accumulate(pair), prepend=-1))
    pair_list = list_of[pair_row]

    # What follows a piece depends only on whether it is the last of its kind in its list.
    is_last_item = np.append(is_first_item[1:], True)
    closings = _texts([f"{n}{end}" for n in range(position.max() + 1) for end in ("],[", "]")])
    closing = 2 * position + is_last_item
    reasons = pa.concat_arrays([_glue(why.dictionary, ","), why.dictionary])
    is_last_reason = position[pair_row] == reasons_in[pair_list] - 1
    reason = code[pair_row] + is_last_reason * len(why.dictionary)

    value_bytes = (
        len(_VALUE_START + _VALUE_MIDDLE + _VALUE_END)
        + np.add.reduceat(_lengths(item) + _lengths(closings)[closing], starts)
        + np.add.reduceat(_lengths(reasons)[reason], pair_of_first_item)
    )
    keys = _glue(f"recmart:{version}:{kind}:", ids.take(as_arrow(starts)))
    arguments = 5 if ttl_seconds else 3
    heads = _glue(
        f"*{arguments}\r\n$3\r\nSET\r\n",
        _argument(keys),
        "$",
        _text(value_bytes),
        f"\r\n{_VALUE_START}",
    )
    feet = _texts([f"{_VALUE_END}\r\n"] * n_lists)
    if ttl_seconds:
        most = np.uint64(1 + int(ttl_seconds * _JITTER_SHARE))
        jitter = as_numpy(rows["salt"].combine_chunks())[starts] % most
        feet = _glue(feet, "$2\r\nEX\r\n", _argument(_text(ttl_seconds + jitter)))

    # The pool of pieces, and which of them stands at which place.
    pool = [heads, item, closings, _texts([_VALUE_MIDDLE]), reasons, feet]
    head, first_item, first_closing, middle, first_reason, foot = np.cumsum(
        [0, *(len(pieces) for pieces in pool[:-1])]
    )
    pieces_in = 3 + 2 * items_in + reasons_in
    begin = np.cumsum(pieces_in) - pieces_in
    begin_middle = begin + 1 + 2 * items_in
    begin_item = begin[list_of] + 1 + 2 * (np.arange(n_items) - starts[list_of])
    order = np.empty(int(pieces_in.sum()), dtype=np.int64)
    order[begin] = head + np.arange(n_lists)
    order[begin_item] = first_item + np.arange(n_items)
    order[begin_item + 1] = first_closing + closing
    order[begin_middle] = middle
    order[begin_middle[pair_list] + 1 + position[pair_row]] = first_reason + reason
    order[begin + pieces_in - 1] = foot + np.arange(n_lists)
    return _bytes_of(pa.concat_arrays(pool).take(as_arrow(order)))


def to_exists(ids: pa.Array, version: str, kind: str) -> tuple[memoryview, int]:
    """Commands that count how many of the lists exist, and the number of commands."""
    arguments = _argument(_glue(f"recmart:{version}:{kind}:", ids))
    commands = []
    for start in range(0, len(arguments), _KEYS_PER_EXISTS):
        batch = arguments.slice(start, _KEYS_PER_EXISTS)
        commands.append(b"*%d\r\n$6\r\nEXISTS\r\n" % (len(batch) + 1))
        commands.append(_bytes_of(batch))
    return memoryview(b"".join(commands)), len(commands) // 2


def as_arrow(numbers: np.ndarray) -> pa.Array:
    """The numbers without a copy, and without pa.array: it imports pandas, for a second or two."""
    kind = pa.from_numpy_dtype(numbers.dtype)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def as_numpy(numbers: pa.Array) -> np.ndarray:
    """The numbers, none of them null, without a copy; to_numpy imports pandas too."""
    found = np.frombuffer(numbers.buffers()[1] or b"", dtype=str(numbers.type))
    return found[numbers.offset : numbers.offset + len(numbers)]


def _argument(texts: pa.Array) -> pa.Array:
    return _glue("$", _text(_lengths(texts)), "\r\n", texts, "\r\n")


def _glue(*pieces: pa.Array | str) -> pa.Array:
    # The function takes the separator last, and imports pandas for a bare str.
    return pc.binary_join_element_wise(
        *(_texts([each])[0] if isinstance(each, str) else each for each in (*pieces, ""))
    )


def _text(numbers: np.ndarray) -> pa.Array:
    return as_arrow(numbers).cast(pa.string())


def _texts(texts: list[str]) -> pa.Array:
    pieces = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(pieces))]
    return pa.Array.from_buffers(pa.string(), len(pieces), buffers)


def _lengths(texts: pa.Array) -> np.ndarray:
    return as_numpy(pc.binary_length(texts)).astype(np.int64)


def _bytes_of(texts: pa.Array) -> memoryview:
    """The texts one after the other, without a copy."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(data)[int(ends[0]) : int(ends[-1])]
