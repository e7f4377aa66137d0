"""The bundled shop through the whole line: what `make demo` shows holds for every row of it."""

import re
from pathlib import Path

import pytest
from lines import line_in, unexplained, why_it_failed

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY / "data" / "online_retail"
# A statement of the README, and below it the table that it answers with.
ANSWERED = re.compile(r"```sql\n([^`]+)```\n\n((?:\|.*\n)+)")


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


def test_the_questions_of_the_readme_have_the_answers_that_it_shows(demo):
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = readme.split("<!-- questions -->")[1].split("<!-- /questions -->")[0]
    answered = ANSWERED.findall(block)
    assert len(answered) == 4

    for statement, table in answered:
        ask = demo.query if "marts." in statement else demo.snapshot
        rows = [[shown(value) for value in row] for row in ask(statement)]
        expected = [line.strip("| \n").split(" | ") for line in table.splitlines()[2:]]
        assert rows == expected, statement


def shown(value):
    return (
        f"{value:.2f}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else value
    )
