"""All users' top 20 by factors: this engine, `implicit`, numpy, faiss and the bare product.

The bare matrix product is the limit of whatever scores every pair; below it is only who leaves
pairs out. The rivals run as they run best: `implicit` with one BLAS thread below its own, numpy
with the fastest block and threads of several tried, faiss with its own threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import scipy.sparse as sp
from bench_data import Factors, trained_factors
from bench_measure import Section, in_turn
from threadpoolctl import threadpool_limits

from ml_assets.scoring import top_items, unit_rows
from ml_assets.threads import n_threads

K = 20
OURS = "recmart"
PRODUCT = "the bare matrix product"
# As by default, see RecommenderSettings.
BLOCK_BYTES = 16 << 20
# Scores of a tile stay in the processor's cache, where those of all products have to go to memory.
_TILE = 1024
# Larger ones were faster on a few users and slower on all of them: their memory is new each time.
_BLOCKS = (64, 128, 256, 512)
_ON_ALL_CORES = {"one block after another, BLAS on all cores": 1, "a block a core": n_threads()}

Work = Callable[[int, int, np.ndarray], None]


def sections(
    folder: Path, *, n_users: int, n_asked: int, n_items: int, n_entries: int, n_runs: int
) -> list[Section]:
    """Factors as they were trained, and the same with items of one length."""
    factors = trained_factors(
        folder, n_users=n_users, n_items=n_items, n_entries=n_entries, n_factors=128
    )
    asked = Factors(factors.users[:n_asked], factors.items, factors.history[:n_asked])
    equal = Factors(asked.users, unit_rows(asked.items), asked.history)
    size = f"{n_asked:,} users x {n_items:,} products x {factors.items.shape[1]} factors"
    return [
        _section(
            f"All users' top {K}, trained factors",
            f"{size}: ALS on a generated long-tailed matrix of {factors.history.nnz:,} entries and"
            f" {n_users:,} users; what a user has is left out.",
            asked,
            n_runs=n_runs,
        ),
        _section(
            f"All users' top {K}, factors of equal norms",
            f"{size}: the same users, products scaled to length one, so that no norm tells which"
            " products cannot enter a list.",
            equal,
            n_runs=n_runs,
        ),
    ]


def _section(title: str, text: str, factors: Factors, *, n_runs: int) -> Section:
    numpy_top, how_numpy = _fastest(partial(_numpy_top, factors), factors)
    product, how_product = _fastest(partial(_product, factors, len(factors.items)), factors)
    in_tiles, how_in_tiles = _fastest(partial(_product, factors, _TILE), factors)
    faiss_top, how_faiss = _faiss(factors)
    rivals: dict[str, Callable[[], Any]] = {
        OURS: partial(_ours, factors),
        "implicit.recommend": _implicit(factors),
        "numpy product + argpartition": numpy_top,
        "faiss flat, nothing left out": faiss_top,
        PRODUCT: product,
        f"the same in tiles of {_TILE:,} products": in_tiles,
    }
    _ours(Factors(factors.users[:64], factors.items, factors.history[:64]))
    timings = in_turn(rivals, n_runs=n_runs)
    rows = tuple(
        timing.row(name, _share_equal(factors, timing.result, leave_out="faiss" not in name))
        for name, timing in timings.items()
    )
    text += (
        f" Medians of {n_runs}. numpy: {how_numpy}; bare product: {how_product},"
        f" in tiles {how_in_tiles}; faiss:"
        f" {how_faiss}, and it is not asked to leave out what each user has. Lists are compared"
        " with a float64 scoring of all pairs for 200 users."
    )
    return Section(title, text, rows, beside=PRODUCT, columns=("lists equal to float64",))


def _ours(factors: Factors) -> np.ndarray:
    return top_items(
        factors.users,
        factors.items,
        k=K,
        exclude=factors.history,
        eligible=np.ones(len(factors.items), dtype=bool),
        block_bytes=BLOCK_BYTES,
        progress=lambda _: None,
    )


def _implicit(factors: Factors) -> Callable[[], np.ndarray]:
    from implicit.als import AlternatingLeastSquares

    with threadpool_limits(1, "blas"):
        als = AlternatingLeastSquares(factors=factors.items.shape[1])
    als.user_factors, als.item_factors = factors.users, factors.items

    def run() -> np.ndarray:
        with threadpool_limits(1, "blas"):
            best: np.ndarray = als.recommend(
                np.arange(len(factors.users)), factors.history, N=K, filter_already_liked_items=True
            )[0]
        return best

    return run


def _faiss(factors: Factors) -> tuple[Callable[[], np.ndarray], str]:
    """With as many BLAS threads below its own as it runs best with."""
    import faiss

    index = faiss.IndexFlatIP(factors.items.shape[1])
    index.add(factors.items)

    def run(n_users: int, n_blas_threads: int) -> np.ndarray:
        faiss.omp_set_num_threads(n_threads())
        with threadpool_limits(n_blas_threads, "blas"):
            best: np.ndarray = index.search(factors.users[:n_users], K)[1]
        return best

    tried = []
    for n_blas_threads in {1, n_threads()}:
        started = perf_counter()
        run(4096, n_blas_threads)
        tried.append((perf_counter() - started, n_blas_threads))
    _, n_best = min(tried)
    return partial(run, len(factors.users), n_best), f"{n_best} BLAS threads below its own"


def _fastest(run: Callable[..., Any], factors: Factors) -> tuple[Callable[[], Any], str]:
    """With the best of several block sizes and ways to use the cores, found on some users."""
    n_tried = min(4096, len(factors.users))
    tried: list[tuple[float, int, str]] = []
    for how, n_workers in _ON_ALL_CORES.items():
        for rows_per_block in _BLOCKS:
            for _ in range(2):
                started = perf_counter()
                run(n_users=n_tried, rows_per_block=rows_per_block, n_workers=n_workers)
                tried.append((perf_counter() - started, rows_per_block, how))
    _, rows_per_block, how = min(tried)
    best = partial(
        run,
        n_users=len(factors.users),
        rows_per_block=rows_per_block,
        n_workers=_ON_ALL_CORES[how],
    )
    return best, f"{rows_per_block} users a block, {how}"


def fastest_product(factors: Factors) -> Callable[[], None]:
    """The bare matrix product of these factors, as it runs best."""
    run, _ = _fastest(partial(_product, factors, len(factors.items)), factors)
    return run


def _product(
    factors: Factors, width: int, *, n_users: int, rows_per_block: int, n_workers: int
) -> None:
    """For each block of users one product with as many items at a time as `width`."""
    starts = range(0, len(factors.items), width)
    tiles = [np.ascontiguousarray(factors.items[start : start + width].T) for start in starts]

    def work(start: int, stop: int, scores: np.ndarray) -> None:
        flat = scores.reshape(-1)
        for tile in tiles:
            n = (stop - start) * tile.shape[1]
            out = flat[:n].reshape(stop - start, tile.shape[1])
            np.matmul(factors.users[start:stop], tile, out=out)

    _in_blocks(work, factors, n_users=n_users, rows_per_block=rows_per_block, n_workers=n_workers)


def _numpy_top(
    factors: Factors, *, n_users: int, rows_per_block: int, n_workers: int
) -> np.ndarray:
    columns, history = np.ascontiguousarray(factors.items.T), factors.history
    best = np.empty((n_users, K), dtype=np.int64)

    def work(start: int, stop: int, scores: np.ndarray) -> None:
        np.matmul(factors.users[start:stop], columns, out=scores)
        row = np.repeat(np.arange(stop - start), np.diff(history.indptr[start : stop + 1]))
        scores[row, history.indices[history.indptr[start] : history.indptr[stop]]] = -np.inf
        best[start:stop] = top_of_rows(scores)

    _in_blocks(work, factors, n_users=n_users, rows_per_block=rows_per_block, n_workers=n_workers)
    return best


def top_of_rows(scores: np.ndarray) -> np.ndarray:
    """The K largest of each row, best first."""
    top = np.argpartition(scores, -K, axis=1)[:, -K:]
    order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1)
    return np.take_along_axis(top, order, axis=1)


def _in_blocks(
    work: Work, factors: Factors, *, n_users: int, rows_per_block: int, n_workers: int
) -> None:
    """Each worker has memory for the scores of a block, and its share of the BLAS threads."""
    n_blocks = -(-n_users // rows_per_block)

    def run(worker: int) -> None:
        scores = np.empty((rows_per_block, len(factors.items)), dtype=np.float32)
        for block in range(worker, n_blocks, n_workers):
            start, stop = block * rows_per_block, min((block + 1) * rows_per_block, n_users)
            work(start, stop, scores[: stop - start])

    with (
        threadpool_limits(n_threads() // n_workers, "blas"),
        ThreadPoolExecutor(n_workers) as pool,
    ):
        list(pool.map(run, range(n_workers)))


def _share_equal(factors: Factors, best: Any, *, leave_out: bool) -> str:
    """Of 200 users, how many lists are those of a scoring of all pairs in double precision.

    Products whose scores differ by less than the last bits of a sum may have changed places:
    those bits depend on the order of adding up.
    """
    if best is None:
        return ""
    rows = np.unique(np.linspace(0, len(best) - 1, 200).astype(np.int64))
    scores = factors.users[rows].astype(np.float64) @ factors.items.astype(np.float64).T
    if leave_out:
        scores[sp.csr_matrix(factors.history[rows]).nonzero()] = -np.inf
    exact = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    gap = np.take_along_axis(scores, exact, axis=1) - np.take_along_axis(scores, best[rows], axis=1)
    is_equal = (exact == best[rows]) | (
        np.abs(gap) < 1e-13 * np.abs(scores[np.isfinite(scores)]).max()
    )
    return f"{is_equal.all(axis=1).mean():.1%}"
