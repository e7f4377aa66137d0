"""Versions in the warehouse: staged whole, live one at a time, kept, removed, logged."""

import os
import subprocess
import sys
from datetime import date, datetime
from pathlib import Path

import duckdb
import pytest
from publishing_for_tests import NOW, STRANGE_IDS, make_shop, open_warehouse, stage

from exports import versions
from exports.errors import PublishError

LATER = datetime(2011, 12, 11, 3, 0)


@pytest.fixture
def warehouse():
    with duckdb.connect() as connection:
        make_shop(connection)
        yield connection


def go_live(warehouse, version, happened_at=NOW):
    return versions.mark_live(warehouse, version.version, run_id="run-1", happened_at=happened_at)


def stage_taste(warehouse, taste, **settings):
    make_shop(warehouse, taste=taste)
    return stage(warehouse, **settings)


def publish_taste(warehouse, taste, happened_at=NOW):
    return go_live(warehouse, stage_taste(warehouse, taste), happened_at)


def log_of(warehouse):
    return warehouse.sql(
        "select version, action from serving.publications order by publication_id"
    ).fetchall()


def served(warehouse, surface="recommendations"):
    return warehouse.sql(f"select * from serving.current_{surface} order by all").fetchall()


def test_a_staged_version_counts_what_it_holds_and_is_seen_by_nobody(warehouse):
    version = stage(warehouse)

    assert version.state == "candidate"
    assert version.version == f"20111209T000000-{version.content_hash[:8]}"
    assert (version.n_users, version.n_products) == (3, 8)
    # 3 users x 5, 8 products x 3 similar, 8 x 2 bought and 8 x 2 viewed together, 8 + 2 + 2 + 2 + 1
    # + 4 + 6 + 2 + 3 popular; of 3 users 2 to buy again, 3 anchors, 2 bought; 3 on sale.
    assert version.n_rows == 15 + 24 + 16 + 16 + 30 + 6 + 9 + 6 + 3 + 8
    assert served(warehouse) == []
    assert log_of(warehouse) == [(version.version, "candidate")]


def test_pairs_bought_and_pairs_viewed_together_are_published_apart(warehouse):
    version = stage(warehouse)

    counts = {
        each.surface: each.n_rows
        for each in versions.staged_fingerprints(warehouse, version.version)
    }
    assert counts["bought_together"] == counts["viewed_together"] == 8 * 2


def test_a_warehouse_from_before_a_surface_had_a_column_gets_it(warehouse):
    go_live(warehouse, stage(warehouse))
    warehouse.execute("drop view serving.current_similar_products")
    warehouse.execute("alter table serving.similar_products drop column source")

    go_live(warehouse, stage(warehouse, as_of=date(2011, 12, 10)))

    assert {row[-2] for row in served(warehouse, "similar_products")} == {"similar", "category"}


def test_lists_of_popular_products_are_cut_at_the_depth(warehouse):
    version = stage(warehouse, popular_depth=3)
    go_live(warehouse, version)

    assert max(row[3] for row in served(warehouse, "popular")) == 3


def test_the_views_show_the_live_version_and_name_it_last(warehouse):
    version = stage(warehouse)
    go_live(warehouse, version)

    for surface in versions.SURFACES:
        rows = served(warehouse, surface.name)
        columns = warehouse.sql(f"describe serving.current_{surface.name}").fetchall()
        assert [column[0] for column in columns] == [*surface.columns, "version"]
        assert {row[-1] for row in rows} == {version.version}
    assert versions.live_version(warehouse) == go_live(warehouse, version)


def test_the_hash_does_not_depend_on_the_order_of_rows_or_the_number_of_threads(warehouse):
    before = stage(warehouse)

    warehouse.execute(
        "create or replace table ml.recommendations as "
        "select * from ml.recommendations order by score, user_id; set threads = 1"
    )
    assert stage(warehouse).content_hash == before.content_hash


def test_the_hash_does_not_depend_on_the_type_a_rank_comes_in(warehouse):
    before = stage(warehouse)

    warehouse.execute("alter table ml.recommendations alter rank type utinyint")
    assert stage(warehouse).content_hash == before.content_hash


@pytest.mark.parametrize(
    "change",
    [
        "update ml.recommendations set score = score + 1e-12 where user_id = 'ann' and rank = 1",
        "update ml.recommendations set reason = '' where user_id = 'ann' and rank = 1",
        "update ml.recommendations set user_id = 'Ann' where user_id = 'ann'",
        "delete from marts.popularity where segment = 'UK' and rank = 2",
        "update marts.products set title = null where product_id = 'p1'",
        "insert into ml.similar_products select * from ml.similar_products limit 1",
    ],
)
def test_any_change_of_a_row_changes_the_hash(warehouse, change):
    before = stage(warehouse)

    warehouse.execute(change)
    assert stage(warehouse).content_hash != before.content_hash


def test_two_users_who_swap_their_products_change_the_hash(warehouse):
    before = stage(warehouse)

    warehouse.execute(
        "update ml.recommendations set user_id = case user_id when 'ann' then 'bob' else 'ann' end "
        "where user_id in ('ann', 'bob')"
    )
    assert stage(warehouse).content_hash != before.content_hash


def test_the_same_content_on_the_same_day_is_not_written_again(warehouse):
    live = go_live(warehouse, stage(warehouse))

    again = stage(warehouse, run_id="run-2", created_at=LATER)

    assert again == live
    assert len(served(warehouse)) == 15
    assert [action for _, action in log_of(warehouse)] == ["candidate", "published", "unchanged"]


def test_the_same_content_on_another_day_is_another_version(warehouse):
    first = stage(warehouse)
    second = stage(warehouse, as_of=date(2011, 12, 10))

    assert first.content_hash == second.content_hash
    assert second.version.startswith("20111210T000000-")


def test_two_contents_with_the_same_first_digits_are_not_mixed_up(warehouse):
    version = stage(warehouse)
    warehouse.execute("update serving.versions set content_hash = left(content_hash, 8) || 'ff'")

    with pytest.raises(PublishError, match=f"Version {version.version} exists with other content"):
        stage(warehouse)


def test_a_candidate_of_a_killed_run_is_taken_over(warehouse):
    stage(warehouse)

    taken_over = stage(warehouse, run_id="run-2", created_at=LATER)

    assert (taken_over.run_id, taken_over.state) == ("run-2", "candidate")
    assert len(versions.kept_versions(warehouse)) == 1
    assert warehouse.sql("select count(*) from serving.recommendations").fetchall() == [(15,)]


def test_a_damaged_candidate_is_written_anew(warehouse):
    version = stage(warehouse)
    warehouse.execute("update serving.recommendations set score = 0 where user_id = 'bob'")

    stage(warehouse)

    assert versions.version_fingerprints(
        warehouse, version.version
    ) == versions.staged_fingerprints(warehouse, version.version)


def test_nothing_is_left_of_a_version_that_could_not_be_staged(warehouse):
    warehouse.execute("drop table marts.products")

    with pytest.raises(PublishError, match=r"marts\.products cannot be published: expected"):
        stage(warehouse)

    assert warehouse.sql("from duckdb_schemas() where schema_name = 'serving'").fetchall() == []


def test_a_missing_column_is_named(warehouse):
    warehouse.execute("alter table ml.recommendations rename score to points")

    with pytest.raises(PublishError, match=r"ml\.recommendations cannot.*column named \"score\""):
        stage(warehouse)


def test_an_empty_table_of_recommendations_is_not_published(warehouse):
    warehouse.execute("delete from ml.recommendations")

    with pytest.raises(PublishError, match=r"ml\.recommendations has no rows"):
        stage(warehouse)


@pytest.mark.parametrize("score", ["'nan'", "'inf'", "null"])
def test_a_score_that_is_no_number_is_named_with_its_row(warehouse, score):
    warehouse.execute(
        f"update ml.recommendations set score = {score} where user_id = 'bob' and rank = 2"
    )

    with pytest.raises(PublishError, match=r"\(user_id, rank\) = \(bob, 2\)"):
        stage(warehouse)


def test_a_shop_without_pairs_or_similar_products_is_published(warehouse):
    warehouse.execute("delete from marts.product_pairs; delete from ml.similar_products")

    go_live(warehouse, stage(warehouse))

    assert served(warehouse, "bought_together") == []
    assert len(served(warehouse)) == 15


def test_ids_of_any_characters_come_back_as_they_were(warehouse):
    make_shop(warehouse, users=STRANGE_IDS)

    go_live(warehouse, stage(warehouse))

    assert {row[0] for row in served(warehouse)} == set(STRANGE_IDS)


def test_going_live_retires_the_version_before(warehouse):
    first, second = publish_taste(warehouse, 0), publish_taste(warehouse, 1, LATER)

    assert versions.get_version(warehouse, first.version).state == "retired"
    assert versions.live_version(warehouse) == second
    assert second.live_at == LATER


def test_going_live_twice_is_logged_once(warehouse):
    version = publish_taste(warehouse, 0)

    assert go_live(warehouse, version, LATER) == version
    assert [action for _, action in log_of(warehouse)] == ["candidate", "published"]


def test_a_rejected_version_keeps_its_reason_and_cannot_go_live(warehouse):
    version = stage(warehouse)

    rejected = versions.mark_rejected(
        warehouse, version.version, reason="3 users lack rows", run_id="run-1", happened_at=NOW
    )

    assert (rejected.state, rejected.reason) == ("rejected", "3 users lack rows")
    with pytest.raises(PublishError, match=r"was rejected \(3 users lack rows\)"):
        go_live(warehouse, version)
    assert log_of(warehouse)[-1] == (version.version, "rejected")


def test_a_rejected_version_may_be_staged_again(warehouse):
    version = stage(warehouse)
    versions.mark_rejected(
        warehouse, version.version, reason="a red check", run_id="run-1", happened_at=NOW
    )

    assert stage(warehouse).state == "candidate"
    assert stage(warehouse).reason is None


def test_a_live_version_cannot_be_rejected(warehouse):
    version = publish_taste(warehouse, 0)

    with pytest.raises(PublishError, match="it is live, and only a candidate can"):
        versions.mark_rejected(
            warehouse, version.version, reason="late", run_id="run-1", happened_at=NOW
        )


def roll_back(warehouse, version, *, run_id, happened_at):
    """In the warehouse alone."""
    versions.require_rollback_target(warehouse, version)
    versions.mark_live(
        warehouse, version, run_id=run_id, happened_at=happened_at, action="rolled_back"
    )


def test_a_rollback_brings_the_old_lists_back(warehouse):
    first = publish_taste(warehouse, 0)
    before = served(warehouse)
    publish_taste(warehouse, 1, LATER)

    roll_back(warehouse, first.version, run_id="by hand", happened_at=LATER)

    assert served(warehouse) == before
    assert log_of(warehouse)[-1] == (first.version, "rolled_back")


def test_a_second_rollback_goes_further_back_and_not_to_the_version_that_was_left(warehouse):
    first, second, third = (publish_taste(warehouse, taste) for taste in range(3))
    for expected in (second, first):
        version = versions.version_before(warehouse)
        assert version == expected.version
        roll_back(warehouse, version, run_id="by hand", happened_at=LATER)

    with pytest.raises(PublishError, match="can be named: ") as refused:
        versions.version_before(warehouse)
    assert second.version in str(refused.value) and third.version in str(refused.value)

    # Named, or published once more, it is a version like others.
    go_live(warehouse, third, LATER)
    fourth = publish_taste(warehouse, 3)
    assert versions.version_before(warehouse) == third.version != fourth.version


def test_the_one_statement_of_the_docs_rolls_back(warehouse):
    first, second = publish_taste(warehouse, 0), publish_taste(warehouse, 1)
    statement = versions.__doc__.split("one statement:")[1].split("Of a version")[0]

    warehouse.execute(statement)
    assert versions.live_version(warehouse).version == second.version
    warehouse.execute(statement.replace("20111208T000000-9c01d2aa", first.version))

    assert versions.live_version(warehouse).version == first.version
    assert versions.get_version(warehouse, second.version).state == "retired"


def test_one_cannot_roll_back_to_a_version_that_never_was_live(warehouse):
    first = publish_taste(warehouse, 0)
    publish_taste(warehouse, 1)
    candidate = stage_taste(warehouse, 2)

    with pytest.raises(PublishError, match=f"it is candidate.*to roll back to: {first.version}"):
        roll_back(warehouse, candidate.version, run_id="by hand", happened_at=NOW)


def test_a_version_that_does_not_exist_is_named_with_those_that_do(warehouse):
    version = stage(warehouse)

    with pytest.raises(PublishError, match=f"no version 2011.*kept: {version.version}"):
        roll_back(warehouse, "2011", run_id="by hand", happened_at=NOW)


def test_the_newest_versions_are_kept_and_the_rows_of_others_deleted(warehouse):
    published = [publish_taste(warehouse, taste) for taste in range(5)]

    removed = versions.retire_old(warehouse, retain=3, happened_at=LATER)

    assert sorted(removed) == sorted(each.version for each in published[:2])
    kept = warehouse.sql("select distinct version from serving.recommendations").fetchall()
    assert {version for (version,) in kept} == {each.version for each in published[2:]}
    assert versions.get_version(warehouse, published[0].version).removed_at == LATER
    with pytest.raises(PublishError, match="its rows are removed"):
        roll_back(warehouse, published[0].version, run_id="late", happened_at=LATER)
    with pytest.raises(PublishError, match=r"cannot go live: its rows were removed"):
        go_live(warehouse, published[0], LATER)


def test_a_clock_that_was_set_back_does_not_change_which_versions_are_kept(warehouse):
    published = [
        publish_taste(warehouse, taste, datetime(2011, 12, 20 - taste)) for taste in range(3)
    ]

    removed = versions.retire_old(warehouse, retain=2, happened_at=LATER)

    assert removed == [published[0].version]


def test_a_version_rolled_back_to_counts_as_new(warehouse):
    published = [publish_taste(warehouse, taste) for taste in range(3)]
    roll_back(warehouse, published[0].version, run_id="by hand", happened_at=LATER)

    removed = versions.retire_old(warehouse, retain=2, happened_at=LATER)

    assert removed == [published[1].version]
    assert versions.live_version(warehouse).version == published[0].version


def test_candidates_of_killed_runs_are_removed_and_say_why(warehouse):
    left_over = stage_taste(warehouse, 1)
    live = publish_taste(warehouse, 0)

    assert versions.retire_old(warehouse, retain=3, happened_at=LATER) == [left_over.version]
    row = versions.get_version(warehouse, left_over.version)
    assert (row.state, row.reason) == ("rejected", "Never went live: its run did not finish.")
    assert versions.kept_versions(warehouse) == [live]


def test_content_that_was_removed_can_be_staged_again(warehouse):
    first = publish_taste(warehouse, 0)
    publish_taste(warehouse, 1)
    versions.retire_old(warehouse, retain=1, happened_at=LATER)

    again = publish_taste(warehouse, 0)

    assert (again.version, again.state, again.removed_at) == (first.version, "live", None)
    assert len(served(warehouse)) == 15


def test_at_least_the_live_version_is_kept(warehouse):
    with pytest.raises(PublishError, match="retain is 0; keep at least 1"):
        versions.retire_old(warehouse, retain=0, happened_at=NOW)


def test_the_version_between_the_steps_is_the_one_staged_last(warehouse):
    with pytest.raises(PublishError, match="No version is staged"):
        versions.staged_version(warehouse)
    publish_taste(warehouse, 0)
    staged = stage_taste(warehouse, 1)

    assert versions.staged_version(warehouse) == staged


def test_a_connection_can_be_used_for_anything_after_each_call(warehouse):
    version = publish_taste(warehouse, 0)

    for call in (
        lambda: versions.live_version(warehouse),
        lambda: versions.staged_version(warehouse),
        lambda: versions.get_version(warehouse, version.version),
    ):
        call()
        assert warehouse.sql("select 1").fetchall() == [(1,)]


STAGE_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from publishing_for_tests import open_warehouse, stage
from exports.errors import PublishError

with open_warehouse(Path(sys.argv[1])) as warehouse:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
    try:
        stage(warehouse)
    except PublishError as error:
        print(error)
"""


def test_a_full_disk_is_a_sentence_and_leaves_the_live_version(tmp_path):
    with open_warehouse(tmp_path) as warehouse:
        live = publish_taste(warehouse, 0)
        make_shop(warehouse, taste=1, users=tuple(f"u{n}" for n in range(2000)), n_items=8)
        warehouse.execute("update ml.recommendations set reason = uuid()::varchar")

    run = subprocess.run(
        [sys.executable, "-c", STAGE_ON_A_FULL_DISK, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert "could not write the version, and nothing of it is kept" in run.stdout, run.stderr
    with open_warehouse(tmp_path) as warehouse:
        assert versions.live_version(warehouse) == live
        assert len(served(warehouse)) == 15


@pytest.mark.parametrize(
    ("rows", "is_sorted"),
    [
        ([], True),
        ([("a", 1)], True),
        ([("a", 1), ("a", 2), ("b", 1)], True),
        ([("a", 2), ("a", 1)], False),
        ([("b", 1), ("a", 2)], False),
    ],
)
def test_rows_are_sorted_only_if_they_are_not(warehouse, rows, is_sorted):
    warehouse.execute("create table stored (user_id varchar, rank integer)")
    for row in rows:
        warehouse.execute("insert into stored values (?, ?)", row)

    order = versions.order_sql(warehouse, versions.SURFACES[0], "select * from stored")

    assert order == ("" if is_sorted else "order by user_id, rank")


def test_rows_are_sorted_when_duckdb_need_not_keep_their_order(warehouse):
    warehouse.execute("set preserve_insertion_order = false")
    rows = "select 'a' as user_id, 1 as rank"

    assert versions.order_sql(warehouse, versions.SURFACES[0], rows) == "order by user_id, rank"
