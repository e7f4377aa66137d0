"""Writes synthetic shops: landing folders of any size that look like a real shop's export.

Here belong the shop's world (users, products, taste), the walk from impression to purchase, and
the dirt of real exports. Reading landing folders does not belong here: see ingest. The shops serve
tests and benchmarks; no claim about the quality of recommendations may rest on them.

    python -m orchestration.landing.synthetic_shop \\
        --out my_shop --users 2000 --products 500 --events 60000 --days 366 --seed 7

The world. A product belongs to one of up to 24 topics ("tea", "hiking", ...); its title and
description are made of the topic's words, its category and brand follow from the topic. A user
prefers up to three topics, which ones depends on the country. Product popularity and user activity
follow power laws. 60 % of the users and 70 % of the products are there at the start, the others
arrive over time (`added_at`), and no event comes before its user's and its product's arrival.

The events. A user opens a session on one of the preferred topics and is shown products of it, or
of the home page. Each step happens to some of those before it, seconds to weeks later:
impression -> view -> click -> add_to_cart -> purchase -> rating, return (or remove_from_cart
instead of purchase). The steps up to purchase share the `session_id`; what is bought together
shares the `order_id`, and a return names the order it undoes. Day, week and year have seasons.

The dirt, each kind with its own share. A row carries at most one kind, except that any row may
also be late. Shares are shares of all rows of events, where nothing else is said.

- exact_duplicates: a row once more, equal in every value.
- near_duplicates: a row once more, one second later, under an event_id of its own.
- bots: views by a few users with thousands of views a day (all of them on one day when the share
  is too small for that), without impressions and evenly over the catalogue.
- bad_types: text in `event_ts`, `price`, `quantity` or `rating`. These columns are then strings
  in every file, because a Parquet column has one type.
- unknown_products: a product_id that is not in the catalogue.
- blank_ids: a user_id or product_id that is empty or a blank.
- future_dates: event_ts moved to the years 2090 to 2099.
- late_files: rows missing in the file of their month and delivered, all of them together, in a
  file `..._late` that comes after the next month's file.
- malformed_lines: further lines with too few or too many fields (share of the rows of CSV files;
  only for CSV output).
- damaged_titles: product titles in capitals, in small letters, or with stray blanks (share of the
  products).
- unknown_event_types: event types outside the contract. Such a row stops the pipeline, so
  `--dirt SHARE` leaves this kind out; it must be asked for by name.

`--format mixed` rotates Parquet, CSV, compressed CSV and JSON lines from file to file; the
compressed CSV files then use the header aliases `interaction_type` and `ts`.
"""

from orchestration.landing.synthetic_shop.shop import DIRT_KINDS, EVENT_TYPES, ShopSettingsError
from orchestration.landing.synthetic_shop.write import FORMATS, ShopSummary, write_shop

__all__ = [
    "DIRT_KINDS",
    "EVENT_TYPES",
    "FORMATS",
    "ShopSettingsError",
    "ShopSummary",
    "write_shop",
]
