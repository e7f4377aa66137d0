"""The bundled shop through the whole line: what `make demo` shows holds for every row of it."""

from pathlib import Path

import pytest
from lines import line_in, unexplained, why_it_failed

DATA = Path(__file__).parents[1] / "data" / "online_retail"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    line = line_in(tmp_path_factory.mktemp("demo"), data=DATA)
    result = line.run()
    assert result.success, why_it_failed(result)
    return line


def test_every_customer_has_a_full_list_that_is_live(demo):
    assert demo.query(
        "select count(*), count(distinct user_id), max(n_rows), min(n_rows) from ("
        " select user_id, count(*) over (partition by user_id) as n_rows"
        " from serving.current_recommendations)"
    ) == [(20 * 4_372, 4_372, 20, 20)]


def test_the_shares_of_every_row_add_up_to_its_score(demo):
    assert unexplained(demo) == (0, 20 * 4_372)


def test_what_is_served_adds_up_to_all(demo):
    assert demo.value("select sum(share) from marts.degradation") == pytest.approx(1)
    assert demo.value("select count(distinct source) from marts.degradation") > 2
