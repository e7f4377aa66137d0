"""Figures of lists one can redo by hand, and the same ones by RecTools."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from ml_assets import threads
from ml_assets.evaluation import (
    CUTOFFS,
    PerUser,
    accuracy,
    catalogue_figures,
    diversity,
    fallback_share,
    find,
    gini,
    novelty,
    self_information,
)
from ml_assets.scoring import NOTHING

RECTOOLS = json.loads((Path(__file__).parent / "data" / "rectools.json").read_text())


def log2(x):
    return np.log2(x)


def entries(rows, n_items):
    """A one for each product of each row."""
    matrix = sp.lil_matrix((len(rows), n_items), dtype=np.float32)
    for row, items in enumerate(rows):
        matrix[row, items] = 1
    return sp.csr_matrix(matrix)


def lists_of(rows, k):
    """Short rows end in empty places."""
    return np.array([row[:k] + [NOTHING] * (k - len(row)) for row in rows], np.int32)


def judged(rows, answers, *, n_items, k, **options):
    relevant = entries(answers, n_items)
    found = find(lists_of(rows, k), relevant)
    return accuracy(found, relevant, cutoffs=options.pop("cutoffs", (k,)), **options)


def test_figures_of_one_list_are_the_arithmetic_of_the_textbook():
    figures = judged([[7, 1, 3]], [[1, 3, 5, 8]], n_items=9, k=3).means()

    ideal = 1 / log2(2) + 1 / log2(3) + 1 / log2(4)
    assert figures == {
        "precision@3": pytest.approx(2 / 3),
        "recall@3": pytest.approx(2 / 4),
        "ndcg@3": pytest.approx((1 / log2(3) + 1 / log2(4)) / ideal),
        "map@3": pytest.approx((1 / 2 + 2 / 3) / 4),
        "mrr@3": pytest.approx(1 / 2),
        "hit_rate@3": 1.0,
    }


def test_rectools_says_the_same_of_every_user():
    n_items = len(RECTOOLS["vectors"])
    best = lists_of(RECTOOLS["lists"], CUTOFFS[-1])
    relevant = entries(RECTOOLS["answers"], n_items)
    figures = [
        accuracy(find(best, relevant), relevant),
        novelty(best, self_information(entries(RECTOOLS["past"], n_items))),
        diversity(best, sp.csr_matrix(np.array(RECTOOLS["vectors"], float))),
    ]

    ours = {
        name: column
        for each in figures
        for name, column in zip(each.names, each.values.T, strict=True)
    }
    assert ours.keys() == RECTOOLS["per_user"].keys()
    for name, column in ours.items():
        np.testing.assert_allclose(column, RECTOOLS["per_user"][name], rtol=0, atol=1e-9)
    means = {name: mean for each in figures for name, mean in each.means().items()}
    assert means == pytest.approx(RECTOOLS["mean"], rel=0, abs=1e-9)
    catalogue = catalogue_figures(best, np.ones(n_items, dtype=bool))
    coverage = {name: catalogue[name] for name in RECTOOLS["overall"]}
    assert coverage == pytest.approx(RECTOOLS["overall"], rel=0, abs=1e-9)


def test_a_shorter_list_is_the_head_of_a_longer_one():
    rows, answers = [[4, 1, 0, 2, 3]], [[0, 3]]

    both = judged(rows, answers, n_items=5, k=5, cutoffs=(2, 5))

    head = judged(rows, answers, n_items=5, k=5, cutoffs=(2,))
    assert both.names[:6] == head.names
    assert (both.values[:, :6] == head.values).all()


def test_users_with_nothing_to_find_do_not_count():
    figures = judged([[0], [1], [2]], [[0], [], [0]], n_items=3, k=1)

    assert np.isnan(figures.values[1]).all()
    assert figures.means()["recall@1"] == 1 / 2


def test_what_is_not_asked_about_is_neither_to_be_found_nor_a_hit():
    relevant = entries([[0, 1, 2], [1]], 4)
    found = find(lists_of([[0, 1, 3], [1]], 3), relevant)

    figures = accuracy(found, relevant, counts=relevant.indices != 1, cutoffs=(3,))

    assert figures.values[0, :2].tolist() == [1 / 3, 1 / 2]
    assert np.isnan(figures.values[1]).all()


def test_an_empty_place_is_a_miss_and_not_the_last_product():
    figures = judged([[]], [[1]], n_items=2, k=2)

    assert figures.means() == dict.fromkeys(figures.names, 0.0)


def test_a_mean_over_nobody_is_an_error_that_names_the_figure():
    with pytest.raises(ValueError, match="precision@1 is defined for no user"):
        judged([[0]], [[]], n_items=1, k=1).means()


def test_lists_too_short_for_a_cutoff_are_refused():
    with pytest.raises(ValueError, match="lists of 1 places cannot be judged at 5"):
        judged([[0]], [[0]], n_items=1, k=1, cutoffs=(5,))


def test_answers_that_are_not_in_order_or_of_other_users_are_refused():
    unsorted = sp.csr_matrix((np.ones(2), np.array([1, 0]), np.array([0, 2])), shape=(1, 2))

    with pytest.raises(ValueError, match="must be sorted"):
        find(lists_of([[0]], 1), unsorted)
    with pytest.raises(ValueError, match="lists of 1 users, answers of 2"):
        find(lists_of([[0]], 1), entries([[0], [1]], 2))


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    rng = np.random.default_rng(0)
    best = np.argsort(rng.random((20_000, 60)), axis=1)[:, :50].astype(np.int32)
    relevant = sp.csr_matrix((rng.random((20_000, 60)) < 0.05).astype(np.float32))
    vectors = sp.csr_matrix(rng.random((60, 9)) * (rng.random((60, 9)) < 0.4))

    def everything():
        return [
            accuracy(find(best, relevant), relevant).values.tobytes(),
            novelty(best, self_information(relevant)).values.tobytes(),
            diversity(best, vectors).values.tobytes(),
        ]

    found = []
    for n in (1, 3):
        monkeypatch.setattr(threads, "n_threads", lambda n=n: n)
        found.append(everything())
    assert found[0] == found[1]


def test_novelty_is_the_bits_of_how_rare_a_product_is():
    # Four users with a past: all touched 0, one touched 1, nobody touched 2.
    information = self_information(entries([[0], [0], [0, 1], [0], []], 3))

    figures = novelty(lists_of([[0, 1], [2], []], 2), information, cutoffs=(1, 2))

    assert figures.values[0].tolist() == [0, (0 + log2(4)) / 2]
    assert figures.values[1].tolist() == [log2(4), log2(4)]
    assert np.isnan(figures.values[2]).all()


def test_the_share_of_fallback_counts_the_places_that_are_filled():
    best = lists_of([[5, 4, 3], [2]], 3)

    figures = fallback_share(best, np.array([[0, 0, 1], [1, 0, 0]], bool), cutoffs=(2, 3))

    assert figures.values.tolist() == [[0, 1 / 3], [1, 1]]


def test_diversity_is_one_less_the_mean_cosine_of_all_pairs():
    # 0 and 1 point the same way at another length, 2 stands upright on them, 3 is unknown.
    vectors = sp.csr_matrix(np.array([[1.0, 0], [3, 0], [0, 2], [0, 0]]))

    figures = diversity(lists_of([[0, 3, 1, 2], [3, 2], [1, 0]], 4), vectors, cutoffs=(3, 4))

    assert figures.values[0].tolist() == pytest.approx([0, 2 / 3])
    assert np.isnan(figures.values[1]).all()
    assert figures.values[2].tolist() == pytest.approx([0, 0])


def test_diversity_by_category_is_the_share_of_pairs_of_two_kinds():
    categories = entries([[0], [0], [1], [1]], 2)

    assert diversity(lists_of([[0, 1, 2, 3]], 4), categories, cutoffs=(4,)).means() == {
        "diversity@4": pytest.approx(4 / 6)
    }


def test_coverage_and_inequality_are_over_what_could_be_shown():
    best = lists_of([[0, 1], [0, 2]], 2)
    eligible = np.array([True, True, True, True, False])

    figures = catalogue_figures(best, eligible, cutoffs=(1, 2))

    # Shown twice, once, once and never: the mean difference of pairs over twice the mean.
    assert figures == {
        "coverage@1": 1 / 4,
        "gini@1": pytest.approx(3 / 4),
        "coverage@2": 3 / 4,
        "gini@2": pytest.approx((1 + 1 + 2 + 0 + 1 + 1) * 2 / 16 / 2 / 1),
    }


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
def test_gini_is_half_the_mean_difference_of_all_pairs(numbers):
    n, mean = len(numbers), sum(numbers) / len(numbers)
    differences = sum(abs(one - other) for one in numbers for other in numbers) / n**2

    assert gini(np.array(numbers)) == pytest.approx(differences / mean / 2)


def test_lists_that_show_nothing_of_the_catalogue_have_no_inequality():
    eligible = np.array([True, False])
    for best in (lists_of([[]], 1), lists_of([[1]], 1)):
        assert catalogue_figures(best, eligible, cutoffs=(1,)) == {"coverage@1": 0}
    with pytest.raises(ValueError, match="all numbers are 0"):
        gini(np.zeros(2))


def test_only_some_users_leaves_the_others_undefined():
    figures = PerUser(("a",), np.array([[1.0], [3.0]]))

    assert figures.only(np.array([False, True])).means() == {"a": 3}
