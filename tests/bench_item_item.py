"""Training, and all users' top 20 by item-item models, beside `implicit` and scipy.

RecTools' item-kNN is `implicit`'s in a wrapper, so the rows of `implicit` stand for both.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from bench_data import Split, gowalla, long_tailed, signals_of_matrix, split_at_random
from bench_factors import BLOCK_BYTES, K
from bench_measure import Section, in_turn
from threadpoolctl import threadpool_limits

from ml_assets.assets import RecommenderSettings
from ml_assets.evaluation import accuracy, find
from ml_assets.item_item import NOTHING, ItemItemModel
from ml_assets.models import fit_item_item
from ml_assets.recommend import Hybrid, propose
from ml_assets.threads import n_threads

OURS = "recmart item_item"
FEW = 20
# As fast as it goes with lists that are still better than those of the rivals.
FASTEST = {"neighbours": 5, "history_cap": 20}
SCIPY = "the same model, scipy product + argpartition"
COLUMNS = ("training, seconds", "scoring, seconds", f"NDCG@{K}", f"Recall@{K}")
# Users of one sparse product. Only its entries are partitioned: dense rows took ten times as long.
_ROWS_PER_BLOCK = 1024

Recommend = Callable[[], np.ndarray]


def sections(
    *, n_users: int, n_items: int, n_entries: int, gowalla_folder: Path | None, n_runs: int
) -> list[Section]:
    """The generated matrix, and Gowalla where there is a copy."""
    generated = long_tailed(n_users=n_users, n_items=n_items, n_entries=n_entries, seed=11)
    splits = [split_at_random(generated, name="a generated matrix", share=0.2, seed=11)]
    if gowalla_folder is not None:
        splits.append(gowalla(gowalla_folder))
    found = [_section(split, n_runs=n_runs) for split in splits]
    if gowalla_folder is None:
        note = " No copy of Gowalla was at hand: give its folder with --gowalla."
        found = [Section(**{**vars(each), "text": each.text + note}) for each in found]
    return found


def _section(split: Split, *, n_runs: int) -> Section:
    trainers = _trainers(split)
    warm_up(split.train)
    trained = in_turn({name: fit for name, (fit, _) in trainers.items()}, n_runs=n_runs)
    recommenders: dict[str, Recommend] = {
        name: recommend(trained[name].result) for name, (_, recommend) in trainers.items()
    }
    recommenders[SCIPY] = partial(_by_scipy, split.train, trained[OURS].result)
    scored = in_turn(recommenders, n_runs=n_runs)
    rows = []
    for name, scoring in scored.items():
        training = trained.get(name, trained[OURS])
        found = find(scoring.result, split.test)
        metrics = accuracy(found, split.test, cutoffs=(K,)).means()
        both = type(scoring)(
            training.seconds + scoring.seconds,
            max(training.extra_bytes, scoring.extra_bytes),
            None,
        )
        rows.append(
            both.row(
                name,
                f"{training.seconds:.2f}",
                f"{scoring.seconds:.2f}",
                f"{metrics[f'ndcg@{K}']:.4f}",
                f"{metrics[f'recall@{K}']:.4f}",
            )
        )
    n_users, n_items = split.train.shape
    return Section(
        f"Training and all users' top {K}, item-item: {split.name}",
        f"{n_users:,} users, {n_items:,} products, {split.train.nnz:,} entries to learn from,"
        f" {split.test.nnz:,} to find; all ones. Ours with the line's settings. `implicit`'s"
        " kNN trains on all cores and recommends on one; its rows in threads give each core users"
        f" and a model of its own. Seconds are training and scoring together, medians of {n_runs}.",
        tuple(rows),
        beside=OURS,
        columns=COLUMNS,
    )


def line_settings(**changes: Any) -> Mapping[str, Any]:
    """The settings of the line, as its models take them."""
    return RecommenderSettings(**changes).as_settings()


def warm_up(train: sp.csr_matrix) -> None:
    """Once through all compiled code, so that no measured run has to compile."""
    few = signals_of_matrix(sp.csr_matrix(train[:200]))
    _ours(few.weights, fit_item_item(few, settings=line_settings(**FASTEST), seed=0))


def _trainers(
    split: Split,
) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Recommend]]]:
    from implicit.nearest_neighbours import BM25Recommender, CosineRecommender

    train = split.train
    signals = signals_of_matrix(train)

    def ours(**changes: Any) -> tuple[Callable[[], Any], Callable[[Any], Recommend]]:
        settings = line_settings(**changes)
        return (
            lambda: fit_item_item(signals, settings=settings, seed=0),
            lambda model: partial(_ours, train, model),
        )

    found = {
        OURS: ours(),
        f"{OURS}, {FEW} neighbours": ours(neighbours=FEW),
        "{}, {neighbours} neighbours, {history_cap} entries a user".format(OURS, **FASTEST): ours(
            **FASTEST
        ),
    }
    for kind, k in ((CosineRecommender, 20), (CosineRecommender, 200), (BM25Recommender, 200)):
        name = f"implicit {kind.__name__}, K={k}"
        fit = partial(_fit_implicit, partial(kind, K=k), train)
        found[name] = (fit, lambda model: partial(_by_implicit, train, model))
        if k == 200:
            found[f"{name}, in threads"] = (
                fit,
                lambda model: partial(_by_implicit_in_threads, train, model),
            )
    found["implicit ALS, 64 factors"] = (
        partial(fit_implicit_als, train),
        lambda model: partial(_by_implicit, train, model),
    )
    return found


def _fit_implicit(make: Callable[[], Any], train: sp.csr_matrix) -> Any:
    model = make()
    model.fit(train, show_progress=False)
    return model


def fit_implicit_als(train: sp.csr_matrix) -> Any:
    """Its ALS, with one BLAS thread below its own as it asks for."""
    from implicit.als import AlternatingLeastSquares

    with threadpool_limits(1, "blas"):
        return _fit_implicit(
            lambda: AlternatingLeastSquares(
                factors=64, regularization=30.0, alpha=40.0, iterations=15, random_state=1
            ),
            train,
        )


def _ours(train: sp.csr_matrix, model: ItemItemModel) -> np.ndarray:
    return propose(
        Hybrid(cf=model, content=None, w_cf=1.0, w_content=0.0),
        k=K,
        exclude=train,
        eligible=np.ones(train.shape[1], dtype=bool),
        block_bytes=BLOCK_BYTES,
        progress=lambda _: None,
    ).items


def _by_implicit(train: sp.csr_matrix, model: Any) -> np.ndarray:
    with threadpool_limits(1, "blas"):
        best: np.ndarray = model.recommend(np.arange(train.shape[0]), train, N=K)[0]
    return best


def _by_implicit_in_threads(train: sp.csr_matrix, model: Any) -> np.ndarray:
    parts = np.array_split(np.arange(train.shape[0]), n_threads())

    def recommend(users: np.ndarray) -> np.ndarray:
        # A copy has a scorer of its own; one scorer serves one thread at a time.
        best: np.ndarray = copy(model).recommend(users, train[users[0] : users[-1] + 1], N=K)[0]
        return best

    with ThreadPoolExecutor(n_threads()) as pool:
        return np.vstack(list(pool.map(recommend, parts)))


def _by_scipy(train: sp.csr_matrix, model: ItemItemModel) -> np.ndarray:
    best = np.full((train.shape[0], K), NOTHING)

    def recommend(start: int) -> None:
        stop = min(start + _ROWS_PER_BLOCK, train.shape[0])
        scores = model.history[start:stop] @ model.follows
        is_had = np.zeros(train.shape[1], dtype=bool)
        for user in range(start, stop):
            had = train.indices[train.indptr[user] : train.indptr[user + 1]]
            is_had[had] = True
            own = slice(scores.indptr[user - start], scores.indptr[user - start + 1])
            is_open = ~is_had[scores.indices[own]]
            items, values = scores.indices[own][is_open], scores.data[own][is_open]
            is_had[had] = False
            if len(items) > K:
                top = np.argpartition(values, -K)[-K:]
                items, values = items[top], values[top]
            best[user, : len(items)] = items[np.argsort(-values)]

    with ThreadPoolExecutor(n_threads()) as pool:
        list(pool.map(recommend, range(0, train.shape[0], _ROWS_PER_BLOCK)))
    return best
