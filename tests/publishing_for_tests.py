"""A small shop's tables, ready to publish."""

from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb

from exports import files, redis_load
from exports.publish import remove_old, switch_live
from exports.versions import Version, stage_version
from ml_assets.promotion import ACCEPTED, Promotion

AS_OF = date(2011, 12, 9)
NOW = datetime(2011, 12, 10, 3, 0)

# Everything that a key, a JSON text and a SQL literal could trip over.
STRANGE_IDS = (
    "001",
    "1",
    "it's",
    'say "hi"',
    "back\\slash",
    "two\nlines\r\nCRLF",
    "tab\there",
    "nul\x00byte",
    "😀🇳🇱",
    "*3\r\n$3\r\nDEL\r\n",
    "a:b:manifest",
    "null",
    "{}[],",
    " blank ",
    "שלום",
    "é",
    "e\u0301",
    "x" * 3000,
)


def make_shop(
    connection: duckdb.DuckDBPyConnection,
    *,
    users: tuple[str, ...] = ("ann", "bob", "cy"),
    n_products: int = 8,
    n_items: int = 5,
    taste: int = 0,
) -> None:
    """Fill the tables that are published. Another taste gives other lists of the same shape.

    Scores never rise with rank; every list of a user ends with a row that another source filled.
    """
    connection.execute(
        "create or replace temp table user_ids as "
        "select unnest($users)::varchar as user_id, unnest(range(len($users))) as n",
        {"users": list(users)},
    )
    fill_shop(connection, n_products=n_products, n_items=n_items, taste=taste)


def publish_version(
    connection: duckdb.DuckDBPyConnection,
    version: Version,
    published_dir: Path,
    redis_url: str | None,
    *,
    retain: int = 2,
    run_id: str = "run",
    happened_at: datetime = NOW,
) -> Version:
    """What the assets do with a staged or live version, one step after the other."""
    files.write_version_files(connection, version, published_dir)
    if redis_url is not None:
        redis_load.load_version(connection, version, redis_url=redis_url, ttl_seconds=3600)
    live = switch_live(
        connection,
        version.version,
        published_dir=published_dir,
        redis_url=redis_url,
        run_id=run_id,
        happened_at=happened_at,
    )
    remove_old(
        connection,
        published_dir=published_dir,
        redis_url=redis_url,
        retain=retain,
        happened_at=happened_at,
    )
    return live


def fill_shop(
    connection: duckdb.DuckDBPyConnection, *, n_products: int, n_items: int, taste: int
) -> None:
    """Like make_shop, for the users of the temporary table user_ids."""
    connection.execute("create schema if not exists ml; create schema if not exists marts")
    parameters = {"products": n_products, "items": n_items, "taste": taste}
    connection.execute(
        """
        create or replace table marts.products as
        select
            'p' || i as product_id, 'Lantern No. ' || i as title, 'lanterns' as category,
            null::varchar as brand, 'A lantern' as description, 1.25 * i as price
        from range($products) as numbers (i)
        """,
        {"products": n_products},
    )
    connection.execute(
        """
        create or replace table ml.recommendations as
        select
            user_id,
            item as rank,
            'p' || (n + item + $taste) % $products as product_id,
            3.0 / item as score,
            0.5 as cf_score,
            null::double as content_score,
            case when item = $items then 'trending' else 'hybrid' end as source,
            case
                when item = 1 then null
                when item = $items then 'Trending now'
                else 'Because you bought "Lantern No. ' || (n + item // 3) % $products || '"'
            end as reason,
            'hot' as temperature,
            null::varchar as because_product_id,
            null::double as probability
        from user_ids, range(1, $items + 1) as items (item)
        order by hash(user_id, item)
        """,
        parameters,
    )
    connection.execute(
        """
        create or replace table ml.scored_users as
        select user_id, n as inputs_hash, 0::bigint as rules_hash from user_ids;
        create or replace table ml.scored_products as
        select product_id, true as is_available, 'one model' as model_hash from marts.products
        """
    )
    connection.execute(
        """
        create or replace table ml.similar_products as
        select
            'p' || i as product_id, item as rank,
            'p' || (i + item) % $products as similar_product_id, 1.0 / item as score,
            case when i = 7 then 'category' else 'similar' end as source
        from range($products) as numbers (i), range(1, 4) as items (item)
        """,
        {"products": n_products},
    )
    connection.execute(
        """
        create or replace table marts.product_pairs as
        select
            'p' || i as product_id, relation, item as rank,
            'p' || (i + 2 * item) % $products as other_product_id, 9 - item as n_together,
            0.1 as support, 0.2 as confidence, 3.5 as lift, 12.5 / item as log_likelihood
        from range($products) as numbers (i), range(1, 3) as items (item),
            (values ('bought_together'), ('viewed_together')) as relations (relation)
        """,
        {"products": n_products},
    )
    connection.execute(
        """
        create or replace table marts.popularity as
        select
            segment_type, segment, time_window, (1 + i)::integer as rank,
            'p' || (i + shift) % $products as product_id, (100 - i)::double as score,
            (100 - i)::integer as n_users
        from range($products) as numbers (i), (
            values
                ('global', 'all', 'all_time', 0, 1000),
                ('global', 'all', 'trending', 3, 2),
                ('segment', 'UK', 'last_28_days', 5, 2),
                ('segment', 'UK', 'all_time', 6, 2),
                ('segment', 'all', 'last_28_days', 7, 1),
                ('category', 'lanterns', 'last_28_days', 1, 4),
                ('category', 'lanterns', 'all_time', 3, 6),
                ('category', 'lanterns', 'new_arrivals', 6, 2),
                ('global', 'all', 'new_arrivals', 5, 3)
        ) as lists (segment_type, segment, time_window, shift, depth)
        where i < depth
        """,
        {"products": n_products},
    )
    # The first user bought p0 thrice and p1 once, and looked at p5.
    connection.execute(
        """
        create or replace table marts.buy_again as
        select
            user_id, item as rank, 'p' || (n + item - 1) % $products as product_id,
            3.5 - item as score, (5 - 2 * item)::integer as n_bought,
            date '2011-11-01' as last_bought_on, date '2011-12-01' as due_on
        from user_ids, range(1, 3) as items (item)
        """,
        {"products": n_products},
    )
    connection.execute(
        """
        create or replace table marts.bought as
        select user_id, rank, product_id, last_bought_on from marts.buy_again
        """
    )
    connection.execute(
        """
        create or replace table marts.anchors as
        select
            user_id, item as rank, 'p' || (n + shift) % $products as product_id,
            'Lantern No. ' || (n + shift) % $products as title, kind,
            timestamp '2011-12-09' as last_at
        from user_ids, (
            values (1, 5, 'viewed'), (2, 0, 'bought'), (3, 1, 'put in cart')
        ) as anchors (item, shift, kind)
        """,
        {"products": n_products},
    )
    connection.execute(
        """
        create or replace table marts.on_sale as
        select
            item as rank, 'p' || (item + 1) % $products as product_id, 1.0 as price,
            2.0 as usual_price, 0.5 / item as share_saved
        from range(1, 4) as items (item)
        """,
        {"products": n_products},
    )


def stage(connection: duckdb.DuckDBPyConnection, **settings: Any) -> Version:
    """Stage what the tables hold."""
    return stage_version(
        connection,
        **{
            "as_of": AS_OF,
            "run_id": "run-1",
            "seed": 42,
            "config_hash": "c0ffee",
            "settings": "{}",
            "promotion": Promotion(ACCEPTED, "better than ever"),
            "code_version": "0.1.0",
            "origin": [],
            "created_at": NOW,
            "top_n": 5,
            "popular_depth": 100,
            **settings,
        },
    )


def open_warehouse(folder: Path) -> duckdb.DuckDBPyConnection:
    """A warehouse file like the one of a run."""
    return duckdb.connect(str(folder / "warehouse.duckdb"), config={"threads": 2})
