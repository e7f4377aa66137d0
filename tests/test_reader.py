"""The reader gives the same answers from Redis and from the snapshot, and always some."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
import redis
from publishing_for_tests import STRANGE_IDS, make_shop, publish_version, stage

from exports import reader, redis_load
from exports.errors import ReaderError
from exports.lists import POINTER
from exports.placements import PLACEMENTS
from exports.reader import Reader, Recommendation
from exports.redis_server import EmbeddedRedis


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    embedded = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
    yield embedded.start()
    embedded.stop()


@pytest.fixture(scope="module")
def warehouse():
    with duckdb.connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="module")
def version(warehouse, published, redis_url):
    """A shop with strange ids, live everywhere."""
    return publish_shop(warehouse, published, redis_url, taste=0)


def publish_shop(warehouse, published, redis_url, *, taste):
    make_shop(warehouse, taste=taste, users=("ann", "bob", *STRANGE_IDS))
    warehouse.execute(
        "update ml.similar_products set product_id = $ids[1 + product_id[2:]::int]",
        {"ids": list(STRANGE_IDS)},
    )
    return publish_version(warehouse, stage(warehouse), published, redis_url)


@pytest.fixture(params=["redis", "snapshot"])
def source(request, version, published, redis_url):
    """The arguments of a Reader of one kind."""
    if request.param == "redis":
        return {"redis_url": redis_url}
    return {"snapshot": published / "current.duckdb"}


@pytest.fixture
def reading(source):
    with Reader(**source) as opened:
        yield opened


def ids(products):
    return [each.product_id for each in products]


def sources(products):
    return [each.source for each in products]


def test_a_user_gets_the_published_list(reading):
    assert reading.recommend("ann") == [
        Recommendation("p1", 1, 3.0, "hybrid", None),
        Recommendation("p2", 2, 1.5, "hybrid", 'Because you bought "Lantern No. 0"'),
        Recommendation("p3", 3, 1.0, "hybrid", 'Because you bought "Lantern No. 1"'),
        Recommendation("p4", 4, 0.75, "hybrid", 'Because you bought "Lantern No. 1"'),
        Recommendation("p5", 5, 0.6, "trending", "Trending now"),
    ]


def test_k_cuts_the_list(reading):
    assert ids(reading.recommend("ann", k=2)) == ["p1", "p2"]
    assert ids(reading.similar("001", k=1)) == ["p1"]
    assert ids(reading.popular(k=3)) == ["p0", "p1", "p2"]


def test_products_have_similar_ones_and_ones_bought_together(reading):
    assert reading.similar("001") == [
        Recommendation("p1", 1, 1.0, "similar", "Similar product"),
        Recommendation("p2", 2, 0.5, "similar", "Similar product"),
        Recommendation("p3", 3, 0.333333, "similar", "Similar product"),
    ]
    assert reading.together("p0") == [
        Recommendation("p2", 1, 12.5, "together", "Often bought together"),
        Recommendation("p4", 2, 6.25, "together", "Often bought together"),
    ]


def test_products_have_ones_that_are_viewed_together(reading):
    assert reading.viewed("p0", k=1) == [
        Recommendation("p2", 1, 12.5, "viewed", "Often viewed together")
    ]


def test_a_product_that_nothing_is_like_has_its_categorys_popular_ones(reading):
    # The eighth strange id stands for p7.
    assert reading.similar(STRANGE_IDS[7], k=1) == [
        Recommendation("p0", 1, 1.0, "category", "Popular in its category")
    ]


def test_an_unknown_product_has_neither(reading):
    assert reading.similar("nothing like it") == []
    assert reading.together("nothing like it") == []
    assert reading.viewed("nothing like it") == []


def test_an_unknown_user_has_nothing_to_buy_again_and_no_anchors(reading):
    assert reading.buy_again("nobody") == []
    assert reading.because("nobody") == []


def test_what_is_due_again_says_how_often_it_was_bought(reading):
    assert reading.buy_again("ann") == [
        Recommendation("p0", 1, 2.5, "again", "Bought 3 times"),
        Recommendation("p1", 2, 1.5, "again", "Bought 1 time"),
    ]


def test_popular_of_a_category_is_of_late_then_of_all_time_and_of_nothing_else(reading):
    products = reading.popular(category="lanterns")

    assert ids(products) == ["p1", "p2", "p3", "p4", "p5", "p6", "p7", "p0"]
    assert sources(products) == ["category"] * 8
    assert products[0].reason == "Popular in lanterns"
    assert reading.popular(category="nothing of it") == []


def test_new_arrivals_are_of_the_shop_or_of_a_category(reading):
    assert reading.new(k=2) == [
        Recommendation("p5", 1, 100.0, "new", "New"),
        Recommendation("p6", 2, 99.0, "new", "New"),
    ]
    assert ids(reading.new("lanterns")) == ["p6", "p7"]
    assert reading.new("nothing of it") == []


def test_a_sale_says_how_much_it_saves(reading):
    assert reading.sale(k=2) == [
        Recommendation("p2", 1, 0.5, "sale", "50 % below its usual price"),
        Recommendation("p3", 2, 0.25, "sale", "25 % below its usual price"),
    ]


def test_trending_alone(reading):
    assert ids(reading.trending()) == ["p3", "p4"]


# --- several lists at once ------------------------------------------------------------------------


def test_because_has_a_row_for_each_anchor_without_what_was_bought_and_without_repeats(reading):
    rows = reading.because("ann", k=2)

    # Beside p5 stand p7 and p1, which ann bought, and then p7 again; beside p0 p2 and p4; beside p1
    # p3 and p5, an anchor.
    assert [(row.reason, ids(row.products)) for row in rows] == [
        ("Because you viewed Lantern No. 5", ["p7"]),
        ("Because you bought Lantern No. 0", ["p2", "p4"]),
        ("Because you put in your cart Lantern No. 1", ["p3"]),
    ]
    assert {each.reason for each in rows[1].products} == {"Because you bought Lantern No. 0"}
    assert sources(rows[1].products) == ["together", "together"]


def test_because_passes_over_an_anchor_with_nothing_left_to_show(reading):
    assert [row.placement for row in reading.because("ann", k=9, n_anchors=2)] == ["because"] * 2
    # All that stands beside p5 is shown already.
    page = reading.page("ann", ["similar", "because"], product_ids=["001"], n_anchors=1)
    assert page[0].products[0].product_id == "p2"


def test_a_cart_adds_shares_so_that_no_product_decides_alone(reading):
    # p0 goes with p2 (1) and p4 (0.5), p2 with p4 (1) and p6 (0.5): 1.5 for p4.
    products = reading.cart(["p0", "p2", "p0"], k=3)

    assert products == [
        Recommendation("p4", 1, 1.5, "together", "Goes with your cart"),
        Recommendation("p6", 2, 0.5, "together", "Goes with your cart"),
    ]
    # Filled with similar products: those of "001" are p1, p2, p3.
    assert ids(reading.cart(["p0", "001"])) == ["p2", "p4", "p1", "p3"]
    assert reading.cart([]) == []
    assert reading.cart(["nothing like it"]) == []


def test_a_page_shows_no_product_twice_and_the_first_placement_chooses(reading):
    placements = ["buy_again", "together", "because", "new", "sale", "trending", "popular"]

    page = reading.page("ann", placements, k=2, product_ids=["p3"])

    shelves = [(each.placement, ids(each.products)) for each in page]
    assert shelves == [
        ("buy_again", ["p0", "p1"]),
        ("together", ["p5", "p7"]),
        ("because", ["p2", "p4"]),
        ("new", ["p6"]),
        ("sale", []),
        ("trending", []),
        ("popular", []),
    ]
    shown = [product for _, products in shelves for product in products]
    assert len(shown) == len(set(shown)) == 7


def test_a_page_for_nobody_and_of_one_category(reading):
    page = reading.page(
        "nobody", ["for_you", "buy_again", "because", "popular"], k=3, category="lanterns"
    )

    assert [(each.placement, ids(each.products)) for each in page] == [
        ("for_you", ["p3", "p4", "p0"]),
        ("buy_again", []),
        ("popular", ["p1", "p2", "p5"]),
    ]


def test_a_page_refuses_what_it_cannot_fill(reading):
    with pytest.raises(
        ReaderError, match=r"There is no placement 'hero'\. Expected some of for_you"
    ):
        reading.page("ann", ["hero"])
    with pytest.raises(ReaderError, match="'cart' shows what goes with products: give product_ids"):
        reading.page("ann", ["cart"])


def test_a_page_costs_redis_one_round_trip_and_two_with_anchors(version, redis_url):
    with Reader(redis_url) as reading, redis.Redis.from_url(redis_url) as client:
        reading.recommend("ann")

        def round_trips(*arguments, **settings):
            before = client.info("commandstats")["cmdstat_mget"]["calls"]
            reading.page(*arguments, **settings)
            return client.info("commandstats")["cmdstat_mget"]["calls"] - before

        assert round_trips("ann", ["for_you", "cart", "new", "sale"], product_ids=["p1"]) == 1
        assert round_trips("ann", ["for_you", "because", "new"]) == 2


@pytest.mark.parametrize("user", ["ann", "bob", "nobody", STRANGE_IDS[8]])
def test_pages_are_the_same_from_redis_and_snapshot(version, published, redis_url, user):
    everything = {"placements": PLACEMENTS, "product_ids": ["p1", "001", "p1"]}
    with (
        Reader(redis_url=redis_url) as from_redis,
        Reader(snapshot=published / "current.duckdb") as from_snapshot,
    ):
        for k in (1, 2, 20):
            assert from_redis.page(user, k=k, **everything) == from_snapshot.page(
                user, k=k, **everything
            )


def test_an_unknown_user_gets_what_trends_and_then_what_is_popular_each_once(reading):
    products = reading.recommend("nobody", k=6)

    assert ids(products) == ["p3", "p4", "p0", "p1", "p2", "p5"]
    assert sources(products) == ["trending"] * 2 + ["popular"] * 4
    assert [each.rank for each in products] == [1, 2, 3, 4, 5, 6]


def test_an_unknown_user_with_a_segment_gets_what_is_popular_there_first(reading):
    products = reading.recommend("nobody", k=7, segment="UK")

    assert ids(products) == ["p5", "p6", "p3", "p4", "p0", "p1", "p2"]
    assert sources(products) == ["segment"] * 2 + ["trending"] * 2 + ["popular"] * 3
    assert products[0].reason == "Popular in UK"


def test_a_segment_nobody_is_in_changes_nothing(reading):
    assert reading.recommend("nobody", segment="Atlantis") == reading.recommend("nobody")


def test_the_segment_called_all_is_not_everybody(reading):
    assert ids(reading.popular("all", k=2)) == ["p7", "p0"]


def test_popular_in_a_segment_is_filled_up_with_popular_everywhere(reading):
    assert ids(reading.popular("UK", k=4)) == ["p5", "p6", "p0", "p1"]
    assert sources(reading.popular("UK", k=4)) == ["segment", "segment", "popular", "popular"]


@pytest.mark.parametrize("user", STRANGE_IDS, ids=range(len(STRANGE_IDS)))
def test_ids_of_any_characters_give_the_same_from_redis_and_snapshot(
    version, published, redis_url, user
):
    with (
        Reader(redis_url=redis_url) as from_redis,
        Reader(snapshot=published / "current.duckdb") as from_snapshot,
    ):
        assert sources(from_redis.recommend(user))[0] == "hybrid"
        assert from_redis.recommend(user) == from_snapshot.recommend(user)
        assert from_redis.similar(user) == from_snapshot.similar(user)


def test_a_new_version_is_seen_at_the_next_call(warehouse, published, redis_url, version, source):
    with Reader(**source) as reading:
        before = reading.recommend("ann")
        publish_shop(warehouse, published, redis_url, taste=1)
        after = reading.recommend("ann")
        publish_shop(warehouse, published, redis_url, taste=0)
        again = reading.recommend("ann")

    assert ids(after) == ["p2", "p3", "p4", "p5", "p6"]
    assert before == again != after


def test_a_snapshot_file_that_was_replaced_is_seen_at_the_next_call(
    warehouse, published, version, redis_url, tmp_path
):
    copy = tmp_path / "copied.duckdb"
    shutil.copy((published / "current.duckdb").resolve(), copy)
    with Reader(snapshot=copy) as reading:
        before = reading.recommend("ann")
        publish_shop(warehouse, published, redis_url, taste=1)
        shutil.copy((published / "current.duckdb").resolve(), tmp_path / "new")
        publish_shop(warehouse, published, redis_url, taste=0)
        (tmp_path / "new").replace(copy)

        assert reading.recommend("ann") != before


def test_reading_cannot_write_or_look_at_other_files(version, published, tmp_path):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with Reader(snapshot=published / "current.duckdb") as reading:
        reading.popular()
        connection = reading._snapshot._connection
        for statement in (
            "delete from serving.products",
            f"from read_csv('{tmp_path}/secret.csv')",
            "set enable_external_access = true",
            f"attach '{tmp_path}/other.duckdb' as other",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(statement)


def test_threads_can_share_a_reader(source):
    from concurrent.futures import ThreadPoolExecutor

    with Reader(**source) as reading, ThreadPoolExecutor(4) as executor:
        answers = list(executor.map(lambda _: reading.recommend("ann"), range(40)))

    assert all(answer == answers[0] for answer in answers)


def test_a_closed_reader_opens_again(reading):
    before = reading.recommend("ann")
    reading.close()

    assert reading.recommend("ann") == before


# --- when something is down ---------------------------------------------------------------------


def test_the_snapshot_stands_in_for_a_redis_that_is_down(version, published):
    with Reader("redis://127.0.0.1:1/0", published / "current.duckdb") as both:
        assert ids(both.recommend("ann")) == ["p1", "p2", "p3", "p4", "p5"]


def test_redis_is_left_alone_a_while_after_it_failed_and_then_asked_again(
    version, published, redis_url, monkeypatch
):
    monkeypatch.setattr(reader, "_REDIS_PAUSE_SECONDS", 3600.0)
    with Reader(redis_url, published / "current.duckdb") as both:
        running, both._redis._client = both._redis._client, redis.Redis(port=1)
        both.recommend("ann")
        both._redis._client = running
        both._snapshot._path = Path("gone")
        with pytest.raises(ReaderError, match="The snapshot gone cannot be read"):
            both.recommend("ann")

        both._ask_redis_from = time.monotonic()

        assert ids(both.recommend("ann", k=1)) == ["p1"]


def test_a_redis_that_hangs_costs_a_tenth_of_a_second(warehouse, version, published, tmp_path):
    embedded = EmbeddedRedis(tmp_path)
    url = embedded.start()
    with redis.Redis.from_url(url) as client:
        process = client.info("server")["process_id"]
    redis_load.load_version(warehouse, version, redis_url=url, ttl_seconds=60)
    redis_load.switch_redis(version.version, redis_url=url)
    try:
        with Reader(url, published / "current.duckdb") as both, Reader(url) as alone:
            answer = both.recommend("ann")
            os.kill(process, signal.SIGSTOP)
            begin = time.monotonic()
            with pytest.raises(ReaderError, match="does not answer"):
                alone.recommend("ann")
            assert time.monotonic() - begin < 0.5
            assert both.recommend("ann") == answer
            begin = time.monotonic()
            assert both.recommend("ann") == answer
            assert time.monotonic() - begin < 0.1
    finally:
        os.kill(process, signal.SIGCONT)
        embedded.stop()


def test_a_redis_that_lost_the_live_version_is_no_unknown_user(
    warehouse, version, published, redis_url
):
    with redis.Redis.from_url(redis_url) as client:
        kept = {name: client.dump(name) for name in client.scan_iter(f"*{version.version}*")}
        client.delete(*kept)
        try:
            with (
                Reader(redis_url) as alone,
                Reader(redis_url, published / "current.duckdb") as both,
            ):
                with pytest.raises(ReaderError, match="has lost its keys: they expired or were"):
                    alone.recommend("ann")
                assert ids(both.recommend("ann"))[0] == "p1"
        finally:
            for name, value in kept.items():
                client.restore(name, 3_600_000, value)


def test_a_redis_without_anything_published_is_a_sentence(redis_url):
    with (
        Reader(redis_url.replace("/0", "/9")) as empty,
        pytest.raises(ReaderError, match=f"holds nothing published: {POINTER} is missing"),
    ):
        empty.popular()


def test_when_both_fail_the_sentence_names_both(tmp_path):
    with (
        Reader("redis://:s3cret@127.0.0.1:1/0", tmp_path / "gone.duckdb") as neither,
        pytest.raises(ReaderError) as caught,
    ):
        neither.recommend("ann")

    assert "Redis at redis://127.0.0.1:1/0 does not answer" in str(caught.value)
    assert f"The snapshot {tmp_path / 'gone.duckdb'} cannot be read" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_file_that_is_no_snapshot_is_a_sentence(tmp_path):
    other = tmp_path / "other.duckdb"
    other.write_text("Dear reader,")
    with Reader(snapshot=other) as reading, pytest.raises(ReaderError, match="cannot be read"):
        reading.recommend("ann")
    with duckdb.connect(str(tmp_path / "empty.duckdb")):
        pass
    with (
        Reader(snapshot=tmp_path / "empty.duckdb") as reading,
        pytest.raises(ReaderError, match=r"Expected the file published/current\.duckdb"),
    ):
        reading.recommend("ann")


def test_a_reader_needs_something_to_read():
    with pytest.raises(ReaderError, match="needs a redis_url, the path of a snapshot"):
        Reader()


def test_an_address_that_is_none_is_a_sentence():
    with pytest.raises(ReaderError, match="localhost is not a Redis address"):
        Reader("localhost")


# --- from a shell -------------------------------------------------------------------------------


def test_a_list_is_printed(source, capsys):
    name, value = next(iter(source.items()))
    option = {"redis_url": "--redis", "snapshot": "--snapshot"}[name]

    assert reader.main(["ann", option, str(value), "--k", "2"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["1", "p1", "3", "hybrid"],
        ["2", "p2", "1.5", "hybrid", "Because", "you", "bought", '"Lantern', "No.", '0"'],
    ]


def test_without_options_the_environment_tells_where_to_read(
    version, published, tmp_path, monkeypatch, capsys
):
    (tmp_path / "published").symlink_to(published)
    monkeypatch.setenv("RECMART_HOME", str(tmp_path))
    monkeypatch.delenv("REDIS_URL", raising=False)

    assert reader.main(["nobody", "--segment", "UK", "--k", "1"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["1", "p5"]


def test_a_failure_is_a_sentence_and_an_exit_code(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "exports.reader", "ann", "--snapshot", str(tmp_path / "gone")],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert run.returncode == 1
    assert run.stderr.startswith("The snapshot")
    assert "Traceback" not in run.stderr
