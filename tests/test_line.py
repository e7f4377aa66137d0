"""The whole line on a small, nasty shop: what survives, what is refused, what is published."""

import csv
import gzip
import html
import io
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from dataclasses import replace
from datetime import date
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from lines import Line, line_in, unexplained, why_it_failed, write_files, write_small_shop

from exports.assets import REDIS_RETRIES
from exports.placements import PLACEMENTS
from exports.reader import Reader
from exports.redis_server import find_redis_server
from ml_assets.rule_cost import KNOB
from ml_assets.rules import ACTIONS
from orchestration.dbt_assets import DbtConfig, variables_of
from orchestration.demo import report
from orchestration.landing.synthetic_shop import write_shop
from orchestration.schedules import fingerprint, new_landing_files
from orchestration.settings import DBT_PROJECT_DIR

ODD_USERS = ["007", "7", "O'Hara", 'say "hi"', "two\nlines", "🎁", "Ünïcode; drop table", "a,b"]


def csv_text(header: list[str], rows: list[list[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A generated shop with dirt of every kind, and odd customers of our own in another file."""
    folder = tmp_path_factory.mktemp("line")
    line = line_in(folder, redis_url="embedded")
    summary = write_shop(
        line.settings.data,
        n_users=150,
        n_products=80,
        n_events=12_000,
        n_days=90,
        start=date(2024, 1, 1),
        seed=5,
        file_format="mixed",
        dirt={
            "exact_duplicates": 0.01,
            "bad_types": 0.01,
            "unknown_products": 0.01,
            "future_dates": 0.01,
            "blank_ids": 0.01,
            "late_files": 0.01,
        },
    )
    header = ["user_id", "product_id", "event_type", "event_ts", "price"]
    rows = []
    for i, user in enumerate(ODD_USERS):
        rows.append([user, f"odd-{i}", "purchase", "2024-03-01 10:00:00", "9.5"])
        rows.append([user, f"odd-{(i + 1) % len(ODD_USERS)}", "view", "2024-03-02", ""])
    rows += [
        ["one event", "odd-0", "purchase", "2024-03-05T12:00:00Z", "3"],
        ["only views", "odd-1", "view", "2024-03-05T12:00:00+02:00", ""],
        ["only views", "odd-2", "view", "2024-03-06", ""],
        ["nobody's wish", "never described", "purchase", "2024-03-05", "3"],
        ["from the future", "odd-1", "purchase", "2099-01-01", "3"],
        ["bad number", "odd-1", "purchase", "2024-03-05", "cheap"],
    ]
    # Regulars, who buy two things every ten days, and at last a new one.
    for user in ("regular 1", "regular 2", "regular 3"):
        for day in ("2024-02-11", "2024-02-21", "2024-03-02"):
            rows += [[user, f"odd-{i}", "purchase", day, "9.5"] for i in (0, 1)]
        rows.append([user, "just in", "purchase", "2024-03-25", "2"])
    write_files(
        line.settings.data,
        events__odd_csv=csv_text(header, rows) + "too,few\n",
        products__odd_csv=csv_text(
            ["product_id", "title", "category"],
            [[f"odd-{i}", f"odd thing number{i}", "oddities"] for i in range(len(ODD_USERS))]
            + [["untitled", "", ""], ["just in", "hardly arrived", "oddities"]],
        ),
    )
    result = line.run()
    assert result.success, why_it_failed(result)
    yield line, summary
    line.stop()


def test_every_row_that_arrived_is_accepted_or_rejected_with_a_reason(shop):
    line, _ = shop

    arrived = line.value(
        "select sum(n_rows + n_malformed) from raw.landing_files where entity = 'events'"
    )
    accepted = line.value("select count(*) from staging.stg_events")
    rejected = line.value("select count(*) from staging.rejected_rows where entity = 'events'")
    assert arrived == accepted + rejected
    assert line.value("select count(*) from staging.rejected_rows where reason is null") == 0


def test_each_bad_row_is_named_with_file_column_and_reason(shop):
    line, _ = shop

    reasons = dict(
        line.query(
            "select coalesce(column_name, 'line'), reason from staging.rejected_rows"
            " where source_file = 'events/odd.csv'"
        )
    )
    assert reasons["product_id"] == "product is not in the catalogue"
    assert "future" in reasons["event_ts"]
    assert "not a number" in reasons["price"]
    assert len(reasons) == 4


def test_ids_of_any_characters_get_their_list_in_the_snapshot_and_in_redis(shop):
    line, _ = shop
    url = (line.settings.home / "redis" / "url").read_text().strip()
    from_redis = Reader(redis_url=url)
    from_snapshot = Reader(snapshot=line.settings.published / "current.duckdb")

    for user in [*ODD_USERS, "one event", "only views"]:
        listed = from_redis.recommend(user, k=20)
        assert len(listed) == 20
        assert listed == from_snapshot.recommend(user, k=20)
        assert (user,) in line.query("select distinct user_id from serving.current_recommendations")


def test_a_user_with_views_only_is_recommended_from_views(shop):
    line, _ = shop

    (source, reason), *_ = line.query(
        "select source, reason from serving.current_recommendations"
        " where user_id = 'only views' order by rank"
    )
    assert source == "hybrid" and reason.startswith("Because you viewed ")


def test_an_unknown_user_gets_what_is_popular(shop):
    line, _ = shop

    listed = Reader(snapshot=line.settings.published / "current.duckdb").recommend("nobody", k=5)

    assert len(listed) == 5 and {item.source for item in listed} <= {"trending", "popular"}


def test_published_scores_add_up_in_sql(shop):
    line, _ = shop

    wrong = line.value(
        "select count(*) from serving.current_recommendations where source = 'hybrid'"
        " and score <> 0.7 * coalesce(cf_score, 0) + 0.3 * coalesce(content_score, 0)"
    )
    assert wrong == 0


MODEL_ROWS = """
    select user_id, rank, product_id, score, cf_score, content_score, source
    from ml.recommendations
    where source in ('hybrid', 'content')
    order by user_id, rank
"""


def test_the_published_lists_can_be_blended_again_in_sql(shop):
    line, _ = shop

    again = line.query("from ml.blended(0.7, 0.3) order by user_id, rank")
    texts_only = line.query("from ml.blended(0, 1, top_n := 3) order by user_id, rank")

    assert again == line.query(MODEL_ROWS) and len(again) > 1000
    assert [row[3] for row in texts_only] == [row[5] or 0 for row in texts_only]
    assert max(row[1] for row in texts_only) == 3
    assert {row[2] for row in texts_only} != {row[2] for row in again if row[1] <= 3}


def quoted(text):
    """As SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def test_the_shares_of_every_published_row_add_up_to_its_score(shop):
    line, _ = shop

    n_wrong, n_rows = unexplained(line)

    assert n_rows > 1000 and n_wrong == 0


def test_an_explanation_names_what_the_user_did_and_its_share(shop):
    line, _ = shop
    ((user, product, score, because),) = line.query(
        "select user_id, product_id, score, because_product_id from ml.recommendations"
        " where source = 'hybrid' and because_product_id is not null"
        " order by score desc, user_id limit 1"
    )

    rows = line.query(
        "select because_product_id, because_title, what, share"
        f" from ml.explain_recommendation({quoted(user)}, {quoted(product)})"
    )

    assert sum(row[3] for row in rows) == pytest.approx(score, abs=1e-5)
    of_product: dict[str, float] = {}
    for name, _, what, share in rows:
        if name is not None:
            of_product[name] = of_product.get(name, 0.0) + share
            assert what in ("bought", "put in the cart", "rated", "viewed")
        else:
            assert what == "an average product" and share < 0
    # The reason that is published is the product of the largest share.
    of_product.pop(product, None)
    assert max(of_product, key=lambda name: of_product[name]) == because


def test_a_reason_says_the_strongest_thing_that_the_user_did(shop):
    line, _ = shop
    did = (
        "case when n_purchases > 0 then 'bought' when n_carts > 0 then 'put in your cart'"
        " when n_views + n_clicks > 0 then 'viewed' else 'rated' end"
    )

    found = line.query(
        f"select {did} as did, bool_and(starts_with(reason, 'Because you ' || did || ' '))"
        " from ml.recommendations as lists join marts.signals as past"
        " on past.user_id = lists.user_id and past.product_id = because_product_id"
        " where source in ('hybrid', 'content') group by did order by did"
    )

    assert found == [(did, True) for did in ("bought", "put in your cart", "viewed")]


def test_the_shares_of_single_days_add_up_to_the_score_as_well(shop):
    line, _ = shop
    # Somebody who did several things with what speaks for a product.
    ((user, product, score),) = line.query(
        "select lists.user_id, lists.product_id, score from ml.recommendations as lists"
        " join marts.signals as past on past.user_id = lists.user_id"
        " and past.product_id = because_product_id"
        " where lists.source = 'hybrid'"
        " order by n_views + n_carts + n_purchases desc, lists.user_id, rank limit 1"
    )
    asked = f"({quoted(user)}, {quoted(product)})"

    rows = line.query(
        f"select because_product_id, event_on, event_type, share from ml.explain_events{asked}"
    )

    assert sum(row[3] for row in rows) == pytest.approx(score, abs=1e-5)
    n_products = line.value(f"select count(*) from ml.explain_recommendation{asked}")
    days = [row for row in rows if row[1] is not None]
    assert len(rows) > n_products and {row[2] for row in days} > {"view"}
    # What a day adds is what marts.signals is made of.
    wrong = line.value(
        """
        with days as (
            select user_id, product_id, sum(relative_weight) as added, sum(share) as shares
            from marts.signal_days
            group by all
        )
        select count(*)
        from marts.signals
        full join days using (user_id, product_id)
        where
            relative_weight > 1e-9
            and (added is null or abs(added - relative_weight) > 1e-6 or abs(shares - 1) > 1e-9)
        """
    )
    assert wrong == 0


def test_every_column_of_every_dbt_table_is_described(shop):
    line, _ = shop
    manifest = json.loads((DBT_PROJECT_DIR / "target" / "manifest.json").read_text())
    tables = [
        node for node in manifest["nodes"].values() if node["resource_type"] in ("model", "seed")
    ]

    silent = {
        f"{table['schema']}.{table['name']}.{column}"
        for table in tables
        for (column,) in line.query(
            "select column_name from information_schema.columns"
            f" where table_schema = '{table['schema']}' and table_name = '{table['name']}'"
        )
        if not table["columns"].get(column, {}).get("description")
    }

    assert len(tables) > 30
    assert silent == set()


def test_why_a_product_is_not_on_the_list_has_an_answer(shop):
    line, _ = shop
    ((user,),) = line.query(
        "select user_id from marts.signals where n_purchases > 0 order by user_id limit 1"
    )

    def why(of_user, product):
        return [
            reason
            for (reason,) in line.query(
                f"select reason from ml.why_not({quoted(of_user)}, {quoted(product)})"
            )
        ]

    def first(sql):
        return line.value(sql.format(user=user))

    bought = first(
        "select product_id from marts.signals join marts.products using (product_id)"
        " where user_id = '{user}' and n_purchases > 0 and is_available limit 1"
    )
    listed = first("select product_id from ml.recommendations where user_id = '{user}' limit 1")
    others = line.query(
        "select product_id from marts.products where is_available and product_id not in"
        f" (select product_id from ml.recommendations where user_id = '{user}') and product_id not"
        f" in (select product_id from marts.signals where user_id = '{user}' and n_purchases > 0)"
    )
    assert why("nobody", listed) == ["no such user"]
    assert why(user, "no such thing") == ["no such product"]
    assert why(user, listed) == ["it is on the list"]
    assert why(user, bought) == ["bought already"]
    answers = {reason for (product,) in others[:15] for reason in why(user, product)}
    assert answers <= {"other products are better", "nothing leads there"} and answers
    # Every product of the shop has an answer.
    assert all(len(why(user, product)) == 1 for (product,) in others[:15])


def test_how_much_is_served_by_what_adds_up(shop):
    line, _ = shop

    rows = line.query("select temperature, source, n_rows, share from marts.degradation")

    assert sum(row[3] for row in rows) == pytest.approx(1)
    assert sum(row[2] for row in rows) == line.value("select count(*) from ml.recommendations")
    assert {row[0] for row in rows} <= {"hot", "warm", "cold"}
    served = line.query(
        "select distinct temperature, source from serving.current_recommendations order by all"
    )
    assert served == sorted((row[0], row[1]) for row in rows)


def test_models_are_tables_and_sql_can_score_with_them(shop):
    line, _ = shop

    wrong = line.query(
        """
        with history as (
            select user_id, other_items, weights, sqrt(relative_weight) as amount
            from marts.signals join ml.item_neighbours using (product_id)
        ),
        steps as (
            select user_id, unnest(other_items) as item, amount * unnest(weights) as share
            from history
        ),
        scores as (
            select user_id, item, sum(share) as score from steps group by all
        ),
        scales as (
            select
                user_id,
                sum(score) / n as mean,
                sqrt(sum(score * score) / n - mean * mean) as deviation
            from scores cross join (
                select count(*) as n from ml.item_neighbours where is_known
            )
            group by user_id, n
        )
        select user_id, product_id, cf_score, (scores.score - mean) / deviation as z
        from serving.current_recommendations
        join ml.item_neighbours using (product_id)
        join scales using (user_id)
        join scores using (user_id, item)
        where source = 'hybrid' and not abs(cf_score - z) < 1e-4
        """
    )
    assert wrong == []
    assert line.value("select count(*) from ml.item_neighbours where len(other_items) > 0") > 0


def test_parquet_snapshot_and_tables_hold_the_same_version(shop):
    line, _ = shop
    (version,) = line.query("select version from serving.versions where state = 'live'")[0]
    folder = line.settings.published / "versions" / version

    rows = line.query(
        "select * exclude (version) from serving.current_recommendations order by all"
    )
    parquet = pl.read_parquet(folder / "recommendations.parquet")
    assert sorted(parquet.rows(), key=str) == sorted(rows, key=str)
    assert line.snapshot("select version from serving.versions") == [(version,)]
    assert json.loads((folder / "manifest.json").read_text())["version"] == version


def test_the_metrics_of_models_and_baselines_are_a_table(shop):
    line, _ = shop

    models = {model for (model,) in line.query("select distinct model from ml.offline_metrics")}
    assert models == {"random", "popular", "popular_28_days", "item_item", "content", "hybrid"}
    # All lists alike: then the bounds are the value, but for the last bits.
    unlike = line.query(
        "select count(*) from ml.offline_metrics where segment = 'known'"
        " and not coalesce(value between low - 1e-9 and high + 1e-9,"
        " metric similar to '(coverage|gini)@.*')"
    )
    assert unlike == [(0,)]
    targets = line.query("select distinct target from ml.offline_metrics order by 1")
    assert targets == [("any_next",), ("new_products",)]
    beaten = line.query(
        "select is_different, difference_low < 0 from ml.offline_metrics where model = 'random'"
        " and target = 'any_next' and segment = 'known' and metric = 'ndcg@20'"
    )
    assert beaten == [(True, True)]


def test_the_report_tells_the_figures_of_the_run(shop):
    line, _ = shop
    page = (line.settings.home / "reports" / "latest.html").read_text(encoding="utf-8")

    values = line.query(
        "select value from ml.offline_metrics where model = 'hybrid' and segment = 'known'"
        " and metric in ('recall@20', 'ndcg@20', 'coverage@20')"
        " union all select value from ml.blend_curve where metric = 'ndcg@20'"
        " union all select value from ml.learning_curve where metric = 'ndcg@20'"
    )
    assert len(values) > 6 + 22 + 2
    assert [value for (value,) in values if f"{value:.4f}" not in page] == []
    for (user,) in line.query("select distinct user_id from ml.backtest_examples"):
        assert html.escape(f"Customer {user} ") in page
    as_of = line.value("select as_of from intermediate.int_as_of")
    assert len(list((line.settings.home / "reports").glob(f"{as_of}-????????.html"))) >= 1


def test_placements_are_the_same_from_redis_and_snapshot_and_no_page_repeats_a_product(shop):
    line, _ = shop
    url = (line.settings.home / "redis" / "url").read_text().strip()
    asked = {"product_ids": ["odd-0", *viewed_most(line)], "category": "oddities"}
    users = [user for (user,) in line.query("select user_id from marts.users order by user_id")]
    bought = set(line.query("select user_id, product_id from marts.signals where n_purchases > 0"))
    shelves = []
    with (
        Reader(redis_url=url) as from_redis,
        Reader(snapshot=line.settings.published / "current.duckdb") as from_snapshot,
    ):
        for user in [*users, "nobody"]:
            # Who chooses last has little left, so both ways.
            for placements in (PLACEMENTS, PLACEMENTS[::-1]):
                page = from_redis.page(user, placements, 6, **asked)
                assert page == from_snapshot.page(user, placements, 6, **asked)
                shown = [each.product_id for shelf in page for each in shelf.products]
                assert len(shown) == len(set(shown))
                assert not set(shown) & set(asked["product_ids"])
                for shelf in page:
                    for each in shelf.products:
                        is_owned = (user, each.product_id) in bought
                        assert is_owned == (shelf.placement == "buy_again")
                shelves += page
        for seed in asked["product_ids"]:
            for placement in PLACEMENTS:
                shelves += from_redis.page("nobody", [placement], product_ids=[seed])
    filled = {shelf.placement for shelf in shelves if shelf.products}
    # Everybody pays the usual price here.
    assert filled == set(PLACEMENTS) - {"sale"}
    headings = {str(shelf.reason).split(" ")[2] for shelf in shelves if shelf.reason}
    assert headings == {"bought", "put", "viewed"}


def viewed_most(line):
    rows = line.query(
        "select product_id from marts.product_pairs group by product_id"
        " order by count(*) desc, product_id limit 2"
    )
    return [product_id for (product_id,) in rows]


def test_great_expectations_wrote_its_documents(shop):
    line, _ = shop
    site = line.settings.home / "gx" / "uncommitted" / "data_docs" / "local_site"

    assert (site / "index.html").exists()
    names = {path.stem for path in (site / "expectations").glob("*.html")}
    assert names == {
        "accepted_events",
        "signals",
        "recommendations",
        "placements",
        "drift_of_inputs",
    }


def test_the_same_input_twice_gives_the_same_bytes(shop, tmp_path):
    line, _ = shop
    again = line_in(tmp_path, data=line.settings.data)

    result = again.run()

    assert result.success, why_it_failed(result)
    hashes = "select version, content_hash from serving.versions"
    assert again.query(hashes) == line.query(hashes)
    table = "select * from ml.recommendations order by user_id, rank"
    assert again.query(table) == line.query(table)


def test_a_second_run_loads_no_file_twice_and_publishes_nothing_new(shop):
    line, _ = shop
    before = line.query("select count(*) from raw.events")

    result = line.run()

    assert result.success, why_it_failed(result)
    assert line.query("select count(*) from raw.events") == before
    actions = line.query("select action from serving.publications order by publication_id")
    assert [action for (action,) in actions][-1] == "unchanged"
    assert line.value("select count(*) from serving.versions") == 1


def test_a_red_gate_leaves_the_last_version_live_and_says_what_it_saw(shop):
    line, _ = shop
    live = line.snapshot("select version from serving.versions")
    with line.settings.warehouse.connect() as connection:
        connection.execute("create table ml.kept as from ml.recommendations")
        connection.execute(
            "update ml.recommendations set product_id = 'untitled' where rank <= 2"
            " and user_id = '007'"
        )
    try:
        result = line.run(
            dg.AssetSelection.groups("serving") | dg.AssetSelection.checks_for_assets()
        )
    finally:
        with line.settings.warehouse.connect() as connection:
            connection.execute("create or replace table ml.recommendations as from ml.kept")
            connection.execute("drop table ml.kept")

    assert "serving.candidate, no_product_twice: saw 1, expected at most 0. " in why_it_failed(
        result
    )
    assert line.snapshot("select version from serving.versions") == live
    (reason,) = line.query("select reason from serving.versions where state = 'rejected'")[0]
    assert "saw 1, expected" in reason


# Proposes what nobody wants: the rarer, the better.
WORSE = {
    "resources": {
        "recommender": {"config": {"target_power": 9.0, "shrinkage": 0.0, "w_content": 0.0}}
    }
}
MODELS_AND_LISTS = dg.AssetSelection.groups("ml", "serving") | (
    dg.AssetSelection.checks_for_assets(["serving", "candidate"])
)


def test_a_worse_model_is_refused_with_its_figures_and_the_last_version_stays_live(shop, tmp_path):
    line, _ = shop
    copy = copied(line, tmp_path)
    live = copy.query("select version, decision from serving.versions where state = 'live'")

    said = why_it_failed(copy.run(MODELS_AND_LISTS, **WORSE))

    assert live[0][1] == "accepted"
    assert copy.query("select version from serving.versions where state = 'live'") == [live[0][:1]]
    refused = copy.query(
        "select decision, verdict, reason from serving.versions where state = 'rejected'"
        " order by created_at desc limit 1"
    )
    decision, verdict, reason = refused[0]
    assert decision == "refused"
    assert "worse than the live version beyond noise" in verdict and "ndcg@20" in verdict
    assert verdict in reason and "force" in reason
    assert "serving.candidate, promotion: refused: " in said and verdict in said


def test_a_refused_version_can_be_forced_by_name_and_the_name_is_kept(shop, tmp_path):
    line, _ = shop
    copy = copied(line, tmp_path)
    force = {"serving__candidate": {"config": {"force": "Anna: a trial with rarities"}}}

    result = copy.run(MODELS_AND_LISTS, **WORSE, ops=force)

    assert result.success, why_it_failed(result)
    decision, verdict = copy.query(
        "select decision, verdict from serving.versions where state = 'live'"
    )[0]
    assert decision == "forced"
    assert verdict.startswith("forced by Anna: a trial with rarities, although ")


def copied(line, folder):
    """A line without Redis on the same files, with all that this one has built."""
    copy = line_in(folder, data=line.settings.data)
    copy.settings.home.mkdir()
    shutil.copy(line.settings.warehouse.path, copy.settings.warehouse.path)
    return copy


NOBODY_LISTENS = "redis://127.0.0.1:1/0"


def test_without_redis_the_step_is_red_and_the_last_version_stays_live(shop):
    line, _ = shop
    live = line.snapshot("select version from serving.versions")
    without = Line(replace(line.settings, redis_url=NOBODY_LISTENS))

    result = without.run(dg.AssetSelection.groups("serving"))

    said = why_it_failed(result)
    assert "127.0.0.1:1" in said and "The last published version stays live." in said
    retried = [event.step_key for event in result.all_events if event.is_step_up_for_retry]
    assert retried == ["serving__redis"] * REDIS_RETRIES
    assert line.snapshot("select version from serving.versions") == live


def test_a_redis_that_comes_back_is_loaded_by_the_same_run(shop, tmp_path):
    line, _ = shop
    copy = copied(line, tmp_path)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    servers = []

    def hang_up_then_serve():
        connection, _ = listener.accept()
        listener.close()
        connection.close()
        command = [find_redis_server(), "--port", str(port), "--save", "", "--dir", tmp_path]
        servers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))

    thread = threading.Thread(target=hang_up_then_serve, daemon=True)
    thread.start()
    url = f"redis://127.0.0.1:{port}/0"
    back = Line(replace(copy.settings, redis_url=url, redis_retry_seconds=1.0))
    try:
        result = back.run(dg.AssetSelection.groups("serving"))
        assert result.success, why_it_failed(result)
        assert [event.step_key for event in result.all_events if event.is_step_up_for_retry]
        assert Reader(redis_url=url).recommend("007", k=5)
    finally:
        thread.join(10)
        for server in servers:
            server.kill()
            server.wait()


def test_without_redis_a_first_run_publishes_tables_and_files_all_the_same(shop, tmp_path):
    line, _ = shop
    copy = copied(line, tmp_path)
    first = Line(replace(copy.settings, redis_url=NOBODY_LISTENS))
    with first.settings.warehouse.connect() as connection:
        connection.execute("drop schema serving cascade")

    said = why_it_failed(first.run(dg.AssetSelection.groups("serving")))

    assert "Tables and files of version" in said
    assert first.snapshot("select count(*) from serving.recommendations")[0][0] > 0
    assert first.value("select count(*) from serving.current_recommendations") > 0


def test_redis_can_be_left_out(shop, tmp_path):
    line, _ = shop
    without = copied(line, tmp_path)

    result = without.run(dg.AssetSelection.groups("serving"))

    assert result.success, why_it_failed(result)
    assert without.snapshot("select count(*) from serving.versions") == [(1,)]


def test_a_shop_with_one_user_one_product_and_no_titles_is_served(tmp_path):
    line = line_in(tmp_path)
    write_files(
        line.settings.data,
        events__a_jsonl='{"user_id": "u", "product_id": "p", "event_type": "view",'
        ' "event_ts": "2024-01-01"}\n',
        products__a_csv="product_id,title\np,\n",
    )

    result = line.run()

    assert result.success, why_it_failed(result)
    rows = line.query("select user_id, product_id, source from serving.current_recommendations")
    assert rows in ([("u", "p", "trending")], [("u", "p", "popular")])
    assert line.query("select * from ml.offline_metrics") == []
    page = (line.settings.home / "reports" / "latest.html").read_text(encoding="utf-8")
    assert "No fold of the past could be asked" in page
    assert re.search(r"^ +u  1\. p  ", report(line.settings, seconds=1), re.MULTILINE)


BAD = {
    "an empty events file": (
        {"events__a_csv": ""},
        ["events/a.csv"],
    ),
    "only a header": (
        {"events__a_csv": "user_id,product_id,event_type,event_ts\n"},
        ["events"],
    ),
    "a missing column": (
        {"events__a_csv": "user_id,product_id,event_ts\nu,p,2024-01-01\n"},
        ["events/a.csv", "event_type"],
    ),
    "a renamed column": (
        {"events__a_csv": "user,product_id,event_type,event_ts\nu,p,view,2024-01-01\n"},
        ["events/a.csv", "user_id"],
    ),
    "an unknown event type": (
        {"events__a_csv": "user_id,product_id,event_type,event_ts\nu,p,wishlist,2024-01-01\n"},
        ["wishlist", "events/a.csv", "event_weights.csv"],
    ),
    "an unreadable file": (
        {"events__a_parquet": b"PAR1 but not really"},
        ["events/a.parquet"],
    ),
    "a truncated gzip": (
        {"events__a_csv_gz": b""},
        ["events/a.csv.gz"],
    ),
    "a catalogue without a title column": (
        {
            "events__a_csv": "user_id,product_id,event_type,event_ts\nu,p,view,2024-01-01\n",
            "products__a_csv": "product_id,name\np,lamp\n",
        },
        ["products/a.csv", "title"],
    ),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_files_stop_the_run_with_a_sentence(case, tmp_path):
    line = line_in(tmp_path)
    files, words = BAD[case]
    good = {"products__a_csv": "product_id,title\np,lamp\n"}
    write_files(line.settings.data, **{**good, **{k: v for k, v in files.items() if "gz" not in k}})
    if case == "a truncated gzip":
        whole = gzip.compress(b"user_id,product_id,event_type,event_ts\n" * 1000)
        (line.settings.data / "events").mkdir()
        (line.settings.data / "events" / "a.csv.gz").write_bytes(whole[: len(whole) // 2])

    said = why_it_failed(line.run(dg.AssetSelection.groups("raw")))

    for word in words:
        assert word in said
    assert "Traceback" not in said and "Error:" not in said


def test_a_negative_weight_stops_the_run_before_dbt_sees_it(tmp_path, monkeypatch):
    from orchestration import landing_assets

    weights = tmp_path / "event_weights.csv"
    weights.write_text("event_type,weight,half_life_days,undoes\nview,-1,,\n")
    monkeypatch.setattr(landing_assets, "EVENT_WEIGHTS", weights)
    line = line_in(tmp_path)
    write_files(
        line.settings.data,
        events__a_csv="user_id,product_id,event_type,event_ts\nu,p,view,2024-01-01\n",
        products__a_csv="product_id,title\np,lamp\n",
    )

    said = why_it_failed(line.run(dg.AssetSelection.groups("raw")))

    assert "event_weights.csv" in said and "-1" in said


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ('{"halflife": 3}', "names halflife, which dbt_project.yml does not have: expected are"),
        ('{"halflife": 3, "min_pairs": 1}', "names halflife, min_pairs, which dbt_project.yml"),
        ("{half_life_days: 3}", "variables is {half_life_days: 3}: expected is a JSON object"),
        ("[]", "variables is []: expected is a JSON object"),
    ],
)
def test_variables_that_dbt_would_not_read_are_refused(variables, said):
    with pytest.raises(dg.Failure, match=re.escape(said)):
        variables_of(DbtConfig(variables=variables))


def test_variables_may_be_any_of_the_project():
    given = {"event_weights": {"view": 5}, "pairs_at_once": 1}

    found = variables_of(DbtConfig(variables=json.dumps(given), as_of="2024-01-31"))

    assert found == {**given, "as_of": "2024-01-31"}


@pytest.mark.parametrize(
    "setting",
    [
        {"top_n": 0},
        {"candidates": 5},
        {"w_cf": -1.0},
        {"cf_model": "bpr"},
        {"knn_weighting": "idf"},
        {"filter_gamma": 0.0},
        {"filter_degree": 0},
        {"ease_regularization": 0.0},
        {"memory_megabytes": 0},
        {"history_cap": -1},
        {"similar": -1},
        {"evaluated_users": 0},
        {"user_power": float("nan")},
        {"similar_w_content": 1.5},
        {"ensemble": {"als": 1.0}},
        {"ensemble": {"gf_cf": 0.0}},
    ],
)
def test_a_setting_that_makes_no_sense_is_named(setting, tmp_path):
    from ml_assets.assets import RecommenderSettings

    with pytest.raises(dg.Failure, match=next(iter(setting))):
        RecommenderSettings(**setting).checked()


def test_the_sensor_sees_new_changed_and_removed_files(tmp_path):
    file = Path(tmp_path / "a.csv")
    prints = [fingerprint(tmp_path)]
    file.write_text("1")
    prints.append(fingerprint(tmp_path))
    file.write_text("22")
    prints.append(fingerprint(tmp_path))
    file.rename(tmp_path / "b.csv")
    prints.append(fingerprint(tmp_path))

    # Not UTF-8, as Windows' programs name their files.
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.csv")).write_text("1")
    prints.append(fingerprint(tmp_path))

    assert len(set(prints)) == 5
    # No new data.
    (tmp_path / "erasures").mkdir()
    (tmp_path / "erasures" / "2024-03.csv").write_text("user_id\nu\n")
    assert fingerprint(tmp_path) == prints[-1]


def test_a_folder_that_is_as_it_was_before_a_bad_file_starts_the_line_again(tmp_path):
    line = line_in(tmp_path)
    write_files(line.settings.data, events__a_csv="good")
    file = line.settings.data / "events" / "a.csv"
    good = file.stat()
    cursor, requests = None, []
    for content in ("good", "bad", "good", "good"):
        file.write_text(content)
        os.utime(file, ns=(good.st_atime_ns, good.st_mtime_ns))
        context = dg.build_sensor_context(cursor=cursor, resources={"settings": line.settings})
        asked = new_landing_files.evaluate_tick(context).run_requests
        requests.append([request.run_key for request in asked])
        cursor = context.cursor

    # Without a key that Dagster would find among earlier runs.
    assert requests == [[None], [None], [None], []]


def test_a_refresh_keeps_the_models_and_scores_only_whom_new_events_concern(tmp_path):
    line = line_in(tmp_path)
    write_small_shop(line.settings.data, n_events=4_000)
    too_early = line.run(job_name="refresh_recommendations")
    assert "Run the job daily_recommendations once" in why_it_failed(too_early)

    assert line.run().success
    learned = (
        "from ml.item_neighbours order by item",
        "from intermediate.int_pair_counts order by all",
        # A new product must not shift the numbers by which the pairs were counted.
        "from marts.product_pairs order by all",
    )
    lists = "select user_id, inputs_hash from ml.scored_users"
    learned_before, lists_before = [line.query(each) for each in learned], dict(line.query(lists))
    assert all(learned_before)
    last = line.value("select max(event_at) from staging.stg_events")
    user, *_ = lists_before
    write_files(
        line.settings.data,
        events__new_csv=csv_text(
            ["user_id", "product_id", "event_type", "event_ts"],
            [[user, "p1", "view", last], ["somebody new", "p1", "view", last]],
        ).replace("p1", line.value("select min(product_id) from marts.products")),
        products__new_csv=csv_text(["product_id", "title"], [["!first of all", "Tea for one"]]),
    )

    assert line.run(job_name="refresh_recommendations").success

    assert [line.query(each) for each in learned] == learned_before
    assert line.value("select min(product_id) from marts.products") == "!first of all"
    changed = dict(line.query(lists)).items() - lists_before.items()
    assert {user_id for user_id, _ in changed} == {user, "somebody new"}
    listed = line.value(
        "select count(*) from serving.current_recommendations where user_id = 'somebody new'"
    )
    assert listed == 20

    # Nor when some of what was counted is counted again by hand.
    by_hand = [["intermediate", "int_basket_counts"], ["marts", "product_pairs"]]
    assert line.run(dg.AssetSelection.assets(*by_hand)).success
    assert [line.query(each) for each in learned] == learned_before

    # And back by the job, and forth again by name; then by name to one that never was.
    second, first = [
        version
        for (version,) in line.query("select version from serving.versions order by live_at desc")
    ]
    for name, expected in (("", first), (second, second)):
        named = {"switch_back": {"config": {"version": name}}}
        assert line.run(job_name="roll_back", ops=named).success
        assert line.snapshot("select version from serving.versions") == [(expected,)]
        assert line.value("select distinct version from serving.current_products") == expected
    result = line.run(
        job_name="roll_back", ops={"switch_back": {"config": {"version": "20240101T0-none"}}}
    )
    said = why_it_failed(result)
    assert "20240101T0-none" in said and first in said


def with_rules(line, folder, *rows):
    """A copy with these rules: rule_id, action, predicate, value, by_column."""
    copy = copied(line, folder)
    with copy.settings.warehouse.connect() as connection:
        for rule_id, action, predicate, value, by_column in rows:
            connection.execute(
                "insert into staging.merchandising_rules"
                " (rule_id, action, predicate, value, by_column) values (?, ?, ?, ?, ?)",
                [rule_id, action, predicate, value, by_column],
            )
    return copy


def test_no_published_row_breaks_a_rule_and_every_candidate_is_accounted_for(shop, tmp_path):
    line, _ = shop
    ((country,), *_) = line.query(
        "select country from marts.users where country is not null"
        " group by country order by count(*) desc, country limit 1"
    )
    (one, two, three), *_ = line.query(
        "select list(category order by category) from"
        " (select category from marts.products where is_available and category is not null"
        "  group by category order by count(*) desc, category limit 3)"
    )[0]
    pinned = line.value(
        "select product_id from marts.products where is_available and price is not null"
        f" and category = '{two}' order by product_id limit 1"
    )
    copy = with_rules(
        line,
        tmp_path,
        ("bands", "cap", None, 9.0, "price_band"),
        ("tea again", "repeat", f"category = '{one}'", 7.0, None),
        ("rest", "repeat", None, 2.0, "add_to_cart"),
        ("earn", "margin", None, 0.3, None),
        ("try out", "explore", "age_days < 400", 2.0, None),
        ("variety", "diversify", "user.n_events > 3", 0.3, None),
        ("gone", "exclude", "price > 30 and product.title is not null", None, None),
        (
            "home market",
            "require",
            f"user.country = '{country}' and category <> '{three}'",
            None,
            None,
        ),
        ("push", "boost", f"category = '{one}'", 1.5, None),
        ("hero", "pin", f"product_id = '{pinned}'", 1.0, None),
        ("own share", "quota", f"category = '{one}'", 0.2, None),
        ("mix", "cap", None, 6.0, "category"),
    )

    result = copy.run(MODELS_AND_LISTS, ops={"serving__candidate": {"config": {"force": "rules"}}})

    assert result.success, why_it_failed(result)
    lists = (
        "serving.current_recommendations as lists"
        " join marts.products as product using (product_id)"
        " join marts.users as customer using (user_id)"
    )

    def count(condition):
        return copy.value(f"select count(*) from {lists} where {condition}")

    assert count("true") > 2000
    assert count("price > 30 and title is not null") == 0
    assert count(f"customer.country = '{country}' and category = '{three}'") == 0
    assert count(f"customer.country = '{country}' and category is null") == 0
    assert count(f"rank = 1 and product_id <> '{pinned}' and source = 'pinned'") == 0
    hero = f"product_id = '{pinned}'"
    owned = f"select user_id from marts.signals where {hero} and n_purchases > 0"
    users = copy.value(f"select count(*) from marts.users where user_id not in ({owned})")
    may = 0 if copy.value(f"select price > 30 from marts.products where {hero}") else users
    assert count(f"rank = 1 and {hero} and source = 'pinned'") == may
    assert (
        copy.value(
            f"select coalesce(max(n), 0) from (select count(*) as n from {lists}"
            " where category is not null group by user_id, category)"
        )
        <= 6
    )
    assert (
        copy.value(
            f"select coalesce(max(n), 0) from (select count(*) as n from {lists}"
            " join (select product_id, ntile(5) over (order by price, product_id) as price_band"
            "  from marts.products where price is not null) as bands using (product_id)"
            " group by user_id, price_band)"
        )
        <= 9
    )
    as_of = "(select as_of from intermediate.int_as_of)"
    # What was bought is back after a week if it is of the category, and never otherwise.
    assert (
        count(
            "exists (from marts.bought as owned where owned.user_id = lists.user_id"
            " and owned.product_id = lists.product_id"
            f" and (product.category is distinct from '{one}'"
            f" or date_diff('day', last_bought_on, {as_of}) < 7))"
        )
        == 0
    )
    back = (
        "select lists.user_id, lists.product_id from serving.current_recommendations as lists"
        " semi join marts.bought as owned"
        " on lists.user_id = owned.user_id and lists.product_id = owned.product_id"
        " order by all"
    )
    assert copy.query(back) == copy.query(
        "select user_id, product_id from ml.rule_ledger"
        " where rule_id = 'tea again' and new_rank is not null order by all"
    )
    assert len(copy.query(back)) > 0
    # What lies in a cart rests for two days.
    assert (
        count(
            "exists (from marts.signals as done where done.user_id = lists.user_id"
            " and done.product_id = lists.product_id and n_carts > 0 and n_purchases = 0"
            f" and date_diff('day', last_at, {as_of}) < 2)"
        )
        == 0
    )
    # Two places for what is new, with the chance that each product had.
    drawn = copy.query(
        f"""
        with possible as (
            select user_id, count(*) as n_possible
            from marts.users
            cross join (
                from marts.products
                where is_available and date_diff('day', added_at, {as_of}) < 400
                    and not coalesce(price > 30, false) and product_id <> '{pinned}'
            ) as product
            anti join (
                select user_id, product_id from ml.candidates
                union all select user_id, product_id from marts.bought
                union all select user_id, product_id from ml.rule_ledger where rule_id = 'rest'
            ) as known using (user_id, product_id)
            where not (
                users.country is not distinct from '{country}'
                and (category is null or category = '{three}')
            )
            group by user_id
        )
        select user_id, count(*) filter (source = 'explore') as n_drawn,
            any_value(probability) as probability, any_value(n_possible) as n_possible
        from ml.recommendations left join possible using (user_id)
        group by user_id order by user_id
        """
    )
    assert all(n_drawn <= 2 for _, n_drawn, *_ in drawn)
    assert sum(n_drawn for _, n_drawn, *_ in drawn) > len(drawn)
    wrong = [
        row for row in drawn if row[1] and row[2] != pytest.approx(min(1, 2 / max(row[3] or 0, 1)))
    ]
    assert wrong == []
    assert count("probability is not null and source <> 'explore'") == 0
    # A fifth of each list, where so many are allowed that the user does not own.
    short = copy.value(
        f"""
        with allowed as (
            select user_id, count(*) as n_allowed
            from marts.users cross join marts.products as product
            anti join (from marts.signals where n_purchases > 0) as owned
                using (user_id, product_id)
            where category = '{one}' and is_available
                and not (coalesce(price > 30, false) and title is not null)
            group by user_id
        )
        select count(*) from (
            select user_id, count(*) filter (category = '{one}') as n_shown,
                count(*) as n_rows
            from {lists} group by user_id
        ) inner join allowed using (user_id)
        where n_shown < least(4, n_allowed) and n_rows >= 20
        """
    )
    assert short == 0
    # Each candidate is on the list, was removed by a rule, or came after the last that was taken.
    lost = copy.value(
        """
        with shown as (
            select user_id, product_id, rank from ml.recommendations
        ),
        last as (
            select user_id, min(score) as least_score, count(*) as n_rows
            from ml.recommendations where source in ('hybrid', 'content') group by user_id
        )
        select count(*)
        from ml.candidates as candidate
        anti join shown using (user_id, product_id)
        anti join (from ml.rule_ledger where new_rank is null) as ruled
            using (user_id, product_id)
        left join last using (user_id)
        where candidate.score > least_score
        """
    )
    assert lost == 0
    fates = dict(copy.query("select fate, count(*) from ml.candidate_fates group by fate"))
    assert set(fates) == {
        "published",
        "kept off by a rule",
        "behind the last that was taken",
    }
    assert sum(fates.values()) == copy.value("select count(*) from ml.candidates")
    actions = dict(copy.query("select action, count(*) from ml.rule_ledger group by action"))
    assert set(actions) == set(ACTIONS)
    # What stands in the ledger as removed is not shown, what moved is where it says.
    assert (
        copy.value(
            "select count(*) from ml.rule_ledger"
            " join ml.recommendations using (user_id, product_id)"
            " where new_rank is distinct from rank"
        )
        == 0
    )
    n_wrong, n_rows = unexplained(copy)
    assert n_wrong == 0 and n_rows > 2000
    assert copy.value("select sum(share) from marts.degradation") == pytest.approx(1)
    # Each rule has its price, and all of them together.
    priced = {
        row[0]: row[1:]
        for row in copy.query(
            "select rule_id, n_kept_off + n_moved + n_placed, ndcg_with, ndcg_without,"
            " ndcg_difference, ndcg_low, ndcg_high, diversity_difference, margin_difference"
            " from marts.rule_cost"
        )
    }
    everything = priced.pop("(all rules)")
    assert set(priced) == {name for (name,) in copy.query("select rule_id from ml.rules_in_force")}
    assert sum(n_rows for n_rows, *_ in priced.values()) == everything[0]
    for n_rows, ruled, without, difference, low, high, *_ in (everything, *priced.values()):
        assert n_rows > 0
        assert 0 < ruled < 1 and 0 < without < 1
        assert difference == pytest.approx(ruled - without)
        assert low <= difference <= high
    assert priced["variety"][-2] > 0
    assert priced["earn"][-1] > 0
    curve = copy.query("select weight, margin from ml.margin_curve order by weight")
    assert [weight for weight, _ in curve] == list(KNOB)
    assert [margin for _, margin in curve] == sorted(margin for _, margin in curve)


def test_a_bad_rule_stops_the_run_by_name_and_the_last_version_stays_live(shop, tmp_path):
    line, _ = shop
    copy = with_rules(
        line,
        tmp_path,
        ("sale", "exclude", "product.categry = 'x'", None, None),
        ("nothing", "exclude", "1 = 1; drop table marts.users", None, None),
    )
    live = copy.query("select version from serving.versions where state = 'live'")

    said = why_it_failed(copy.run(MODELS_AND_LISTS))

    assert "rule sale: product has no column categry; did you mean category?" in said
    assert "rule nothing" in said and "merchandising_rules.csv" in said
    assert copy.query("select version from serving.versions where state = 'live'") == live
    assert copy.value("select count(*) from marts.users") > 0


def test_scores_of_factor_models_are_explained_as_well(shop, tmp_path):
    line, _ = shop
    copy = copied(line, tmp_path)

    result = copy.run(
        dg.AssetSelection.groups("ml") - dg.AssetSelection.assets(["ml", "report"]),
        resources={"recommender": {"config": {"cf_model": "als", "factors": 8}}},
    )

    assert result.success, why_it_failed(result)
    n_wrong, n_rows = unexplained(copy)
    assert n_wrong == 0 and n_rows > 2000
    assert copy.value("select count(*) from ml.score_shares where part = 'content'") > 2000
    # The collaborative score is split by what was touched as well; single precision leaves little.
    (n_events, largest), *_ = copy.query(
        "select count(*) filter (what in ('bought', 'put in the cart', 'viewed')),"
        " max(abs(share)) filter (what = 'rounding')"
        " from ml.score_shares where part = 'collaborative'"
    )
    assert n_events > 2000
    assert largest < 1e-4
