"""Every placement with real titles, as a shopkeeper would look at it: docs/placements.md.

    make placements [COMPLETE_JOURNEY=folder]

Each shop is built and published by the line; what the page shows is what a reader answers.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lines import Line, line_in, why_it_failed

from exports.lists import Recommendation
from exports.reader import Reader
from orchestration.settings import REPOSITORY

PAGE = REPOSITORY / "docs" / "placements.md"
K = 8


@dataclass(frozen=True)
class Shop:
    """A shop, and whom and what the page asks about.

    users and products may be empty: then those with the most purchases that readers know of.
    """

    name: str
    text: str
    data: Path
    products: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()
    variables: str = "{}"


def main() -> int:
    """Build, ask, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--complete-journey", type=Path, metavar="FOLDER")
    folder = parser.parse_args().complete_journey
    shops = [
        Shop(
            "Online Retail",
            "The bundled shop: purchases and cancellations of a British gift shop, December 2010"
            " to December 2011. It has no views, categories or catalogue prices.",
            REPOSITORY / "data" / "online_retail",
            products=("22423", "85123A", "20725", "84879"),
            users=("13767", "12347"),
            segments=("Germany",),
        )
    ]
    with tempfile.TemporaryDirectory() as scratch:
        if folder is not None:
            shops.append(_complete_journey(folder, Path(scratch) / "complete_journey"))
        parts = [_part(shop, Path(scratch) / shop.name) for shop in shops]
    head = [
        "# Placements",
        "",
        "Written by `make placements` from what the readers of each shop's version answer. How the"
        " lists are made: the YAML beside each model in `dbt_project/models/marts`. How to ask for"
        " them: `exports/reader.py`, [redis.md](redis.md).",
        "",
    ]
    PAGE.write_text("\n".join([*head, *parts]))
    print(PAGE)
    return 0


def _complete_journey(folder: Path, data: Path) -> Shop:
    data.mkdir()
    shutil.copy(REPOSITORY / "data" / "complete_journey" / "adapter.sql", data)
    for path in sorted(folder.glob("*.parquet")):
        shutil.copyfile(path, data / path.name)
    return Shop(
        "Complete Journey",
        "Grocery baskets of 2017 with categories and demographics, a sample of 75,000 lines"
        " ([where from](../data/complete_journey/README.md)). Age bands are the segment, income and"
        " household further ones. The sample draws lines, not baskets, so pairs and repeats are"
        " thin; products have kinds for titles.",
        data,
        segments=("45-54", "household=2 Adults Kids"),
        variables=json.dumps({"segment_by": "age_band", "segments": ["income", "household"]}),
    )


def _part(shop: Shop, scratch: Path) -> str:
    scratch.mkdir()
    line = line_in(scratch, data=shop.data)
    ops = {
        "dbt_models": {"config": {"variables": shop.variables}},
        # A shop whose recommendations the gate holds back still has all other placements.
        "serving__candidate": {"config": {"force": "the page of placements"}},
    }
    result = line.run(ops=ops)
    if not result.success:
        raise SystemExit(why_it_failed(result))
    with Reader(snapshot=line.settings.published / "current.duckdb") as reader:
        return "\n".join(_Page(shop, line, reader).lines())


class _Page:
    """One shop's part of the page."""

    def __init__(self, shop: Shop, line: Line, reader: Reader) -> None:
        self.shop, self.line, self.reader = shop, line, reader
        self.title_of = dict(line.query("select product_id, title from marts.products"))
        self.products = shop.products or self._most("product_id", "serving.bought_together", 4)
        self.users = shop.users or self._most("user_id", "serving.buy_again", 2)

    def lines(self) -> list[str]:
        reader, shop = self.reader, self.shop
        together = [(each, reader.together(each, K)) for each in self.products]
        similar = [(each, reader.similar(each, K)) for each in self.products]
        lines = [
            f"## {shop.name}",
            "",
            shop.text,
            "",
            *self._verdict(),
            *self._columns("Frequently bought together", together),
            *self._columns("Similar products", similar),
            *self._category_fallback(),
            *self._cart(),
            *self._wide(
                "The whole shop",
                {
                    "popular": reader.popular(k=K),
                    "trending": reader.trending(K),
                    "new": reader.new(k=K),
                    "on sale": reader.sale(K),
                },
                reasons=("on sale",),
            ),
            *self._wide(
                "Segments and categories",
                {
                    **{f"segment {name}": reader.popular(name, K) for name in shop.segments},
                    **{
                        f"{kind} {name}": ask(name)
                        for name in self._categories()
                        for kind, ask in (
                            ("category", lambda name: reader.popular(category=name, k=K)),
                            ("new in", lambda name: reader.new(name, K)),
                        )
                    },
                },
            ),
        ]
        for user in self.users:
            lines += self._user(user)
        return lines

    def _verdict(self) -> list[str]:
        decision, verdict = self.line.query(
            "select decision, verdict from serving.versions where state = 'live'"
        )[0]
        if decision != "forced":
            return []
        return [
            "The gate would not have published *for you* of this shop; it is shown all the same"
            f" ({verdict}).",
            "",
        ]

    def _most(self, column: str, table: str, n: int) -> tuple[str, ...]:
        """Ids with a list in a table, those with the most purchases first."""
        rows = self.line.query(
            f"select {column} from marts.signals semi join {table} using ({column})"
            f" group by {column} order by sum(n_purchases) desc, {column} limit {n}"
        )
        return tuple(each for (each,) in rows)

    def _categories(self) -> list[str]:
        rows = self.line.query(
            "select segment from marts.popularity where segment_type = 'category'"
            " and time_window = 'last_28_days' group by segment"
            " order by sum(n_users) desc, segment limit 2"
        )
        return [each for (each,) in rows]

    def _category_fallback(self) -> list[str]:
        rows = self.line.query(
            "select product_id from ml.similar_products where source = 'category'"
            " group by product_id order by product_id limit 1"
        )
        if not rows:
            return []
        return self._columns(
            "A product that nothing is like: popular ones of its category",
            [(each, self.reader.similar(each, K)) for (each,) in rows],
        )

    def _cart(self) -> list[str]:
        seeds = self.products[:2]
        return [
            *self._wide(
                "Cart with " + " and ".join(self._title(each) for each in seeds),
                {"what goes with it": self.reader.cart(seeds, K)},
            )
        ]

    def _user(self, user: str) -> list[str]:
        page = self.reader.page(user, ["for_you", "buy_again", "because", "trending", "new"], k=6)
        again = dict(
            self.line.query(
                "select product_id, format('{}, last {}, due {}', n_bought, last_bought_on, due_on)"
                f" from serving.current_buy_again where user_id = '{user}'"
            )
        )
        bought = [
            self._title(product)
            for (product,) in self.line.query(
                f"select product_id from serving.current_bought where user_id = '{user}'"
                " order by rank limit 8"
            )
        ]
        lines = [
            f"### A page for customer {user}",
            "",
            f"Bought last: {', '.join(bought)}.",
            "",
            "| placement | products |",
            "|---|---|",
        ]
        for shelf in page:
            names = [
                self._title(each.product_id)
                + (f" ({again[each.product_id]})" if shelf.placement == "buy_again" else "")
                for each in shelf.products
            ]
            heading = shelf.reason or shelf.placement.replace("_", " ")
            lines.append(f"| {_cell(heading)} | {_cell(' · '.join(names) or 'nothing')} |")
        shown = [each.product_id for shelf in page for each in shelf.products]
        assert len(shown) == len(set(shown)), "a product is on the page twice"
        return [*lines, "", f"{len(shown)} products, none twice.", ""]

    def _columns(
        self, heading: str, lists: Sequence[tuple[str, list[Recommendation]]]
    ) -> list[str]:
        # Products of one title stand side by side.
        return self._table(heading, [(self._title(each), products) for each, products in lists])

    def _wide(
        self,
        heading: str,
        lists: dict[str, list[Recommendation]],
        *,
        reasons: Sequence[str] = (),
    ) -> list[str]:
        return self._table(heading, list(lists.items()), reasons=reasons)

    def _table(
        self,
        heading: str,
        lists: Sequence[tuple[str, list[Recommendation]]],
        *,
        reasons: Sequence[str] = (),
    ) -> list[str]:
        """Lists side by side; those without products are left out."""
        lists = [(name, products) for name, products in lists if products]
        if not lists:
            return []
        depth = max(len(products) for _, products in lists)
        lines = [
            f"### {heading}",
            "",
            f"| | {' | '.join(_cell(name) for name, _ in lists)} |",
            "|---" * (len(lists) + 1) + "|",
        ]
        for place in range(depth):
            cells = []
            for name, products in lists:
                cell = ""
                if place < len(products):
                    cell = self._title(products[place].product_id)
                    if name in reasons:
                        cell += f" ({products[place].reason})"
                cells.append(_cell(cell))
            lines.append(f"| {place + 1} | {' | '.join(cells)} |")
        return [*lines, ""]

    def _title(self, product_id: str) -> str:
        return self.title_of.get(product_id) or product_id


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
