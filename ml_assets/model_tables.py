"""Models as tables and back: arrays a row, so that SQL can score and a diff shows what changed."""

import numpy as np
import polars as pl
import pyarrow as pa
import scipy.sparse as sp

from ml_assets.frames import NEIGHBOURS
from ml_assets.item_item import NOTHING
from ml_assets.learning import history_of, scaled_rows
from ml_assets.models import (
    FactorModel,
    ItemItemModel,
    content_by_history,
    rows_with_values,
    user_profiles,
)
from ml_assets.recommend import Hybrid
from ml_assets.scoring import nearest_items
from ml_assets.signal_matrix import SignalMatrix


def factor_frame(ids: pl.Series, name: str, vectors: np.ndarray, column: str) -> pl.DataFrame:
    """One row per id with an opinion; a vector of zeros is none."""
    keep = vectors.any(axis=1)
    array = pl.Series(column, np.ascontiguousarray(vectors[keep], dtype=np.float32))
    width = max(1, vectors.shape[1])
    return pl.DataFrame({name: ids.filter(pl.Series(keep)), column: array}).with_columns(
        pl.col(column).cast(pl.Array(pl.Float32, width))
    )


def vectors_of(frame: pl.DataFrame, ids: pl.Series, column: str) -> np.ndarray | None:
    """Rows of a factor table in the order of `ids`, zeros where there is none; None if empty."""
    if frame.is_empty():
        return None
    stored = frame[column].to_numpy().astype(np.float32)
    vectors = np.zeros((len(ids), stored.shape[1]), dtype=np.float32)
    known = (
        frame.select(pl.col(frame.columns[0]))
        .with_row_index("row")
        .join(pl.DataFrame({frame.columns[0]: ids}).with_row_index("place"), on=frame.columns[0])
    )
    vectors[known["place"].to_numpy()] = stored[known["row"].to_numpy()]
    return vectors


def neighbour_frame(
    product_ids: pl.Series, matrix: sp.csr_matrix, is_known: np.ndarray
) -> pl.DataFrame:
    """NEIGHBOURS: a sparse square matrix, one row per product.

    `item` is the product's position, and what `other_items` mean: integers, since ten million ids
    would take longer to write than the model to learn.

    Args:
        product_ids: The order of rows and columns.
        matrix: `(n_items, n_items)` float32.
        is_known: `(n_items,)` bool, whether the model has an opinion about the product.
    """
    indptr = _as_arrow(matrix.indptr.astype(np.int32))
    lists = [
        pl.from_arrow(pa.ListArray.from_arrays(indptr, _as_arrow(values)))
        for values in (matrix.indices.astype(np.int32), matrix.data.astype(np.float32))
    ]
    return pl.DataFrame(
        {
            "product_id": product_ids,
            "item": np.arange(len(product_ids), dtype=np.int32),
            "is_known": is_known,
            "other_items": lists[0],
            "weights": lists[1],
        }
    ).match_to_schema(NEIGHBOURS)


def neighbours_of(
    frame: pl.DataFrame, product_ids: pl.Series
) -> tuple[sp.csr_matrix, np.ndarray] | None:
    """The matrix and `is_known` in the order of `product_ids`; None if the table is empty.

    Products that the model has and the catalogue has not are left out, new ones have no entries.
    """
    if frame.is_empty():
        return None
    frame = frame.sort("item")
    n_items = len(product_ids)
    place = (
        frame.select("product_id")
        .join(
            pl.DataFrame({"product_id": product_ids}).with_row_index("place"),
            on="product_id",
            how="left",
            maintain_order="left",
        )["place"]
        .cast(pl.Int64)
        .fill_null(-1)
        .to_numpy()
    )
    lengths = frame["other_items"].list.len().to_numpy()
    # Writable, like matrices that are made here: numba compiles every loop anew for others.
    column, weight = (
        frame[name].explode(empty_as_null=False).to_numpy(writable=True)
        for name in ("other_items", "weights")
    )
    if len(place) == n_items and (place == np.arange(n_items)).all():
        # The catalogue is the one that was learned from: nothing has moved.
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        matrix = sp.csr_matrix((weight, column, indptr), shape=(n_items, n_items))
    else:
        row, column = np.repeat(place, lengths), place[column]
        keep = (row >= 0) & (column >= 0)
        matrix = sp.csr_matrix((weight[keep], (row[keep], column[keep])), shape=(n_items, n_items))
        matrix.sort_indices()
    is_known = np.zeros(n_items, dtype=bool)
    is_known[place[frame["is_known"].to_numpy() & (place >= 0)]] = True
    return matrix, is_known


def hybrid_of(
    matrix: SignalMatrix,
    *,
    user_factors: pl.DataFrame,
    item_factors: pl.DataFrame,
    item_neighbours: pl.DataFrame,
    vectors: pl.DataFrame,
    content_neighbours: pl.DataFrame,
    w_cf: float,
    w_content: float,
) -> Hybrid:
    """The models as they are stored, the content model in the family of the collaborative one."""
    users = vectors_of(user_factors, matrix.user_ids, "factors")
    items = vectors_of(item_factors, matrix.product_ids, "factors")
    if users is not None and items is not None:
        texts = vectors_of(vectors, matrix.product_ids, "vector")
        return Hybrid(
            cf=FactorModel(users, items, rows_with_values(users), rows_with_values(items)),
            content=None if texts is None else user_profiles(matrix, texts),
            w_cf=w_cf,
            w_content=w_content,
        )
    learned = neighbours_of(item_neighbours, matrix.product_ids)
    alike = neighbours_of(content_neighbours, matrix.product_ids)
    return Hybrid(
        cf=learned
        and ItemItemModel(
            history=history_of(matrix),
            follows=learned[0],
            knows_user=np.diff(matrix.history.indptr) > 0,
            knows_item=learned[1],
        ),
        content=alike and content_by_history(matrix, alike[0]),
        w_cf=w_cf,
        w_content=w_content,
    )


def likeness_of(
    product_ids: pl.Series,
    *,
    item_factors: pl.DataFrame,
    item_neighbours: pl.DataFrame,
    content_neighbours: pl.DataFrame,
    k: int,
    block_bytes: int,
    w_cf: float,
    w_content: float,
) -> list[tuple[sp.csr_matrix, float]]:
    """How like products are to each other, from 0 to 1, by each model there is.

    By text and by factors it is the cosine; by an item-item model the geometric mean of how much
    each follows from the other, as a share of what follows most. One way alone would put whatever
    sells best now beside everything, for it follows from everything.
    """
    likeness = []
    items = vectors_of(item_factors, product_ids, "factors")
    learned = neighbours_of(item_neighbours, product_ids)
    if items is not None:
        likeness.append((_alike_by_factors(items, k=k, block_bytes=block_bytes), w_cf))
    elif learned is not None:
        # What is spoken against is not alike.
        follows = learned[0].maximum(0)
        largest = follows.max(axis=1).toarray().ravel()
        inverse = np.divide(1, largest, out=np.zeros_like(largest), where=largest > 0)
        share = scaled_rows(follows, inverse)
        likeness.append((sp.csr_matrix(share.multiply(share.T).sqrt()), w_cf))
    alike = neighbours_of(content_neighbours, product_ids)
    if alike is not None:
        # Kept by the product that follows; here it is the one asked about.
        likeness.append((sp.csr_matrix(alike[0].T), w_content))
    return [(matrix, weight) for matrix, weight in likeness if weight > 0]


def _alike_by_factors(items: np.ndarray, *, k: int, block_bytes: int) -> sp.csr_matrix:
    everything = np.ones(len(items), dtype=bool)
    nearest, cosines = nearest_items(
        items, k=k, eligible=everything, block_bytes=block_bytes, progress=lambda _: None
    )
    row, place = np.nonzero(nearest != NOTHING)
    alike = sp.csr_matrix(
        (cosines[row, place].astype(np.float32), (row, nearest[row, place])),
        shape=(len(items), len(items)),
    )
    alike.sort_indices()
    return alike


def _as_arrow(numbers: np.ndarray) -> pa.Array:
    # pa.array would do, but imports pandas, for a second.
    kind = pa.from_numpy_dtype(numbers.dtype)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])
