"""Blocks of rows on all cores: every row once, in order, and errors are not lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_assets import threads
from ml_assets.threads import over_blocks, run_over_blocks


@settings(max_examples=40, deadline=None)
@given(n_rows=st.integers(0, 30), rows_per_block=st.integers(1, 31), n_threads=st.integers(1, 3))
def test_blocks_cover_every_row_once_and_are_reported_in_order(n_rows, rows_per_block, n_threads):
    visits = np.zeros(n_rows, int)

    def work(start, stop, _):
        visits[start:stop] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "n_threads", lambda: n_threads)
        done = list(over_blocks(work, n_rows, rows_per_block=rows_per_block, scratch=lambda: None))

    assert (visits == 1).all()
    assert done == [min(at + rows_per_block, n_rows) for at in range(0, n_rows, rows_per_block)]


def test_each_thread_makes_its_scratch_memory_once_and_has_it_to_itself(monkeypatch):
    monkeypatch.setattr(threads, "n_threads", lambda: 2)
    made, in_use = [], set()

    def scratch():
        made.append(object())
        return made[-1]

    def work(start, stop, own):
        assert own not in in_use
        in_use.add(own)
        in_use.remove(own)

    assert list(over_blocks(work, 50, rows_per_block=1, scratch=scratch)) == list(range(1, 51))
    assert len(made) == 2


def test_an_error_in_one_block_reaches_the_caller():
    def work(start, stop, _):
        if start <= 7 < stop:
            raise ZeroDivisionError("row 7")

    with pytest.raises(ZeroDivisionError, match="row 7"):
        run_over_blocks(work, 20, rows_per_block=3)


def test_nothing_runs_before_it_is_asked_for():
    def work(start, stop, _):
        raise AssertionError("ran")

    over_blocks(work, 5, rows_per_block=2, scratch=lambda: None)
