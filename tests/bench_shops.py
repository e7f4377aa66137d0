"""Real shops as landing folders, and the days at which they are looked back on.

Online Retail is bundled. The others are read where the user has them and written to a temporary
folder in the shape of the landing contract: nothing is filtered, what cannot be used is refused by
the line itself.
"""

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from orchestration.settings import REPOSITORY


@dataclass(frozen=True)
class Shop:
    """A landing folder and what is to be measured on it.

    Attributes:
        name: For people.
        about: What the data is and how it was brought into the contract, in Markdown.
        days: Last days that models see in the folds that judge, ascending.
        variables: Of dbt_project.yml, where the shop needs others.
        sources: Of the blend, beside those of every shop.
        land: Gives the landing folder; may write it below the folder it is given.
    """

    name: str
    about: str
    days: tuple[date, date, date]
    land: Callable[[Path], Path]
    variables: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


def online_retail() -> Shop:
    """The bundled shop."""
    return Shop(
        name="Online Retail",
        about=(
            "A British gift shop, December 2010 to December 2011 (`data/online_retail`): purchases "
            "and returns, titles, countries. No views, carts, categories, brands or prices of the "
            "catalogue."
        ),
        days=(date(2011, 9, 11), date(2011, 10, 11), date(2011, 11, 11)),
        land=lambda _: REPOSITORY / "data" / "online_retail",
    )


def complete_journey(source: Path) -> Shop:
    """Complete Journey 2.0 by 84.51: receipts of a grocer, with categories and demographics."""

    def land(folder: Path) -> Path:
        _write(
            folder,
            events=f"""
                select
                    household_id as user_id, product_id, 'purchase' as event_type,
                    transaction_timestamp as event_ts, quantity,
                    round(sales_value / nullif(quantity, 0), 4) as price, basket_id as order_id
                from read_parquet('{source}/transactions_sample.parquet')
                order by all
            """,
            products=f"""
                select
                    product_id, product_type as title, product_category as category, brand,
                    department as description, manufacturer_id, package_size
                from read_parquet('{source}/products.parquet')
                order by all
            """,
            users=f"""
                select household_id as user_id, age as age_band, * exclude (household_id, age)
                from read_parquet('{source}/demographics.parquet')
                order by all
            """,
        )
        return folder

    return Shop(
        name="Complete Journey",
        about=(
            "Groceries of 2017 (84.51°, Complete Journey 2.0): a random sample of the rows of "
            "receipts, so a basket is never whole and most of what a household buys is not seen. "
            "Every row is a `purchase`; the type of product is its title, and category, brand and "
            "department are part of its text. Demographics are columns of the users: age as "
            "`age_band`, the others as further columns. `segment_by` is `household_comp`, known of "
            "a third of the households, which gives `popular_in_segment`."
        ),
        days=(date(2017, 9, 15), date(2017, 10, 15), date(2017, 11, 15)),
        land=land,
        variables={"segment_by": "household_comp"},
        sources=("popular_in_segment",),
    )


def deskdrop(source: Path) -> Shop:
    """Deskdrop: articles shared in a company."""

    def land(folder: Path) -> Path:
        with zipfile.ZipFile(source / "users_interactions.csv.zip") as archive:
            (name,) = (each for each in archive.namelist() if each.endswith(".csv"))
            rows = pl.read_csv(io.BytesIO(archive.read(name)), infer_schema_length=0)
        _write(
            folder,
            rows=rows,
            events="""
                select
                    personId as user_id, contentId as product_id,
                    case eventType
                        when 'VIEW' then 'view'
                        when 'LIKE' then 'click'
                        when 'BOOKMARK' then 'add_to_cart'
                        when 'FOLLOW' then 'add_to_cart'
                        when 'COMMENT CREATED' then 'purchase'
                    end as event_type,
                    make_timestamp(timestamp::bigint * 1000000) as event_ts,
                    sessionId as session_id
                from rows
                order by all
            """,
            products="""
                select distinct contentId as product_id, null::varchar as title
                from rows order by all
            """,
            users="""
                select personId as user_id, userCountry as country
                from rows
                group by personId, userCountry
                qualify row_number() over (
                    partition by user_id order by country is null, count(*) desc, country
                ) = 1
                order by all
            """,
        )
        return folder

    return Shop(
        name="Deskdrop",
        about=(
            "Articles read in a company, March 2016 to February 2017 (Deskdrop). Its five event "
            "types became those of ours in the same order: VIEW `view` (weight 1), LIKE "
            "`click` (1.5), BOOKMARK and FOLLOW `add_to_cart` (3), COMMENT CREATED `purchase` (5). "
            "No titles, so there is no content model, and the hybrid is `item_item` alone."
        ),
        days=(date(2016, 9, 1), date(2016, 10, 1), date(2016, 11, 1)),
        land=land,
    )


# By the name of the folder that holds it.
OTHERS: Mapping[str, Callable[[Path], Shop]] = {
    "complete_journey": complete_journey,
    "deskdrop": deskdrop,
}


def _write(folder: Path, *, rows: pl.DataFrame | None = None, **queries: str) -> None:
    """Events, products and users as Parquet files of a landing folder."""
    with duckdb.connect() as connection:
        if rows is not None:
            connection.register("rows", rows.to_arrow())
        for entity, query in queries.items():
            (folder / entity).mkdir(parents=True)
            connection.sql(query).write_parquet(str(folder / entity / f"{entity}.parquet"))
