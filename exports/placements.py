"""Placements of a page, filled from published lists: which lists, in which order, without repeats.

Belongs here: pure functions from lists to shelves. Does not belong here: looking lists up
(`reader.py`), what they hold (`lists.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from exports.errors import ReaderError
from exports.lists import (
    ON_SALE,
    POPULAR_ALL,
    POPULAR_TRENDING,
    Recommendation,
    category_lists,
    new_list,
    segment_list,
)

PLACEMENTS = (
    "for_you",
    "buy_again",
    "because",
    "cart",
    "together",
    "viewed",
    "similar",
    "trending",
    "popular",
    "new",
    "sale",
)
_OF_PRODUCTS = ("cart", "together", "viewed", "similar")

# What is shown beside a product, in this order.
BESIDE = ("together", "viewed", "similar")

# Ids by kind, and the lists found, by (kind, id); no products for an unknown id.
Wanted = Mapping[str, Sequence[str]]
Found = dict[tuple[str, str], list[Recommendation]]


@dataclass(frozen=True, slots=True)
class Shelf:
    """One placement of a page, filled: a row of products under a heading.

    The reason is one for all of them ("Because you bought ..."), None where each has its own.
    """

    placement: str
    reason: str | None
    products: list[Recommendation]


def taken(
    lists: Iterable[Iterable[Recommendation]], k: int, leave_out: Iterable[str] = ()
) -> list[Recommendation]:
    """The first k of the lists one after the other, each product once, ranked anew."""
    seen = set(leave_out)
    chosen: list[Recommendation] = []
    for each in (each for products in lists for each in products):
        if len(chosen) >= k:
            break
        if each.product_id not in seen:
            seen.add(each.product_id)
            rank = len(chosen) + 1
            chosen.append(
                Recommendation(each.product_id, rank, each.score, each.source, each.reason)
            )
    return chosen


def stand_ins(segment: str | None) -> dict[str, list[str]]:
    """The lists of an unknown user."""
    of_segment = [] if segment is None else [segment_list(segment)]
    return {"popular": [*of_segment, POPULAR_TRENDING, POPULAR_ALL]}


def popular_lists(segment: str | None, category: str | None) -> dict[str, list[str]]:
    if category is not None:
        return {"popular": category_lists(category)}
    return {"popular": [POPULAR_ALL] if segment is None else [segment_list(segment), POPULAR_ALL]}


def with_cart(found: Found, product_ids: Sequence[str]) -> Iterable[list[Recommendation]]:
    """What goes with the products, best first, then what is like them."""
    for kind, reason in (("together", "Goes with your cart"), ("similar", "Like your cart")):
        sums: dict[str, float] = {}
        for seed in dict.fromkeys(product_ids):
            products = found[kind, seed]
            for each in products:
                share = each.score / products[0].score if products[0].score > 0 else 0.0
                sums[each.product_id] = sums.get(each.product_id, 0.0) + share
        yield [
            Recommendation(product_id, rank, round(score, 6), kind, reason)
            for rank, (product_id, score) in enumerate(
                sorted(sums.items(), key=lambda item: (-round(item[1], 6), item[0])), start=1
            )
        ]


def check_placements(placements: Sequence[str], product_ids: Sequence[str]) -> None:
    for placement in placements:
        if placement not in PLACEMENTS:
            raise ReaderError(
                f"There is no placement {placement!r}. Expected some of {', '.join(PLACEMENTS)}."
            )
        if placement in _OF_PRODUCTS and not product_ids:
            raise ReaderError(
                f"The placement {placement!r} shows what goes with products: give product_ids."
            )


def lists_of_page(
    user_id: str,
    placements: Sequence[str],
    product_ids: Sequence[str],
    segment: str | None,
    category: str | None,
) -> dict[str, list[str]]:
    """All lists that the placements are filled from, but those beside anchors."""
    popular: dict[str, None] = {}
    wanted: dict[str, list[str]] = {"bought": [user_id]}
    for placement in placements:
        for kind, ids in _sources(placement, user_id, product_ids, segment, category).items():
            if kind == "popular":
                popular |= dict.fromkeys(ids)
            else:
                wanted[kind] = sorted({*wanted.get(kind, []), *ids})
    return {**wanted, "popular": list(popular)}


def _sources(
    placement: str,
    user_id: str,
    product_ids: Sequence[str],
    segment: str | None,
    category: str | None,
) -> dict[str, list[str]]:
    match placement:
        case "for_you":
            return {"user": [user_id], **stand_ins(segment)}
        case "buy_again":
            return {"again": [user_id]}
        case "because":
            return {"anchor": [user_id]}
        case "cart":
            return {kind: list(product_ids) for kind in ("together", "similar")}
        case "trending":
            return {"popular": [POPULAR_TRENDING]}
        case "popular":
            return popular_lists(segment, category)
        case "new":
            return {"popular": [new_list(category)]}
        case "sale":
            return {"popular": [ON_SALE]}
    return {placement: [product_ids[0]]}


def lists_of_placement(
    found: Found,
    placement: str,
    user_id: str,
    product_ids: Sequence[str],
    segment: str | None,
    category: str | None,
) -> Iterable[list[Recommendation]]:
    """The lists that a placement is filled from, in their order."""
    if placement == "cart":
        return with_cart(found, product_ids)
    # A known user's own list is long enough.
    if placement == "for_you" and found["user", user_id]:
        return [found["user", user_id]]
    sources = _sources(placement, user_id, product_ids, segment, category)
    return [found[kind, each] for kind, ids in sources.items() for each in ids]


def because_shelves(
    found: Found, user_id: str, k: int, n_anchors: int, shown: set[str], bought: set[str]
) -> Iterable[Shelf]:
    """A shelf for each anchor that has something to show. Adds the products to `shown`."""
    anchors = found["anchor", user_id]
    shelves: list[Shelf] = []
    for anchor in anchors:
        if len(shelves) >= n_anchors:
            break
        lists = [found[kind, anchor.product_id] for kind in BESIDE]
        own = {each.product_id for each in anchors}
        products = [
            Recommendation(each.product_id, each.rank, each.score, each.source, anchor.reason)
            for each in taken(lists, k, shown | bought | own)
        ]
        if products:
            shown |= {each.product_id for each in products}
            shelves.append(Shelf("because", anchor.reason, products))
    return shelves
