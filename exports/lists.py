"""The lists an application can ask for, and how one list looks in Redis.

Belongs here: the kinds of lists as SQL over the serving tables, their keys, their values. The
loader writes Redis from this SQL and the reader asks the snapshot with it, so that the two give
the same answers by construction. Does not belong here: connections.

For application developers, any language:

1. `GET recmart:current` gives the live version, say `20111209T000000-3f2a91bc`.
2. `HGET recmart:{version}:{kind} {id}` gives one list, best first; HMGET gives several:

   | hash                        | field               | list                               |
   |-----------------------------|---------------------|------------------------------------|
   | `recmart:{version}:user`    | user_id             | recommendations for a user         |
   | `recmart:{version}:again`   | user_id             | bought before and due again        |
   | `recmart:{version}:anchor`  | user_id             | what the user bought, put in the   |
   |                             |                     | cart or viewed last: show what     |
   |                             |                     | goes with it under its reason      |
   | `recmart:{version}:bought`  | user_id             | all that the user bought, to leave |
   |                             |                     | it out; every score is 1           |
   | `recmart:{version}:similar` | product_id          | products like this one             |
   | `recmart:{version}:together`| product_id          | often bought with it; score =      |
   |                             |                     | log-likelihood ratio               |
   | `recmart:{version}:viewed`  | product_id          | often viewed with it, likewise     |
   | `recmart:{version}:popular` | `all`               | popular of all time                |
   | `recmart:{version}:popular` | `trending`          | rising this week                   |
   | `recmart:{version}:popular` | `segment:{segment}` | popular in a segment, 28 days; of  |
   |                             |                     | a further column: `column=value`   |
   | `recmart:{version}:popular` | `category:{name}`   | popular in a category, 28 days     |
   | `recmart:{version}:popular` | `category_all:{name}` | the same of all time             |
   | `recmart:{version}:popular` | `new`               | new arrivals, the latest first;    |
   |                             |                     | score = days it still counts       |
   | `recmart:{version}:popular` | `new:{category}`    | the same of a category             |
   | `recmart:{version}:popular` | `sale`              | below its usual price; score =     |
   |                             |                     | share saved                        |

   Segments have their own prefix because a shop may have a segment called "all".

3. The value is JSON in UTF-8:

   {"items":[["85123A",1.234567,0],["22423",1.1,0],["47566",3.0,1]],
    "why":[["hybrid","Because you bought WHITE METAL LANTERN"],["trending","Trending now"]]}

   An item is [product_id, score, position in "why"]; a "why" is [source, reason], reason may be
   null. Many products of a list share their reason; writing it once halves the memory.

A missing field means that the user or product is unknown: take the popular list of the segment,
then `trending`, then `all`. Read `recmart:current` again for every request (in one pipeline with
the list): the previous version is kept, so a list read just after a switch is whole.
"""

import json
import math
from dataclasses import dataclass

POINTER = "recmart:current"
POPULAR_ALL = "all"
POPULAR_TRENDING = "trending"
POPULAR_NEW = "new"
ON_SALE = "sale"

# Scores with six decimals, tiny and huge ones with six digits. Shortest-round-trip doubles have 17
# digits: half of the value's bytes, for figures nobody compares that closely.
DECIMALS = 6
LEAST_ORDINARY, LEAST_HUGE = 0.001, 1e9
# The largest double below a half: what is added before digits are cut off.
HALF = 0.49999999999999994

# One select per kind: list_id, rank, product_id, score, source, reason. {scope} is the condition on
# the version: the warehouse holds several, a snapshot one.
_ROWS = {
    "user": """
        select user_id as list_id, rank, product_id, score, source, reason
        from serving.recommendations where {scope}""",
    "similar": """
        select product_id as list_id, rank, similar_product_id as product_id, score,
            source, case when source = 'similar' then 'Similar product'
                else 'Popular in its category' end as reason
        from serving.similar_products where {scope}""",
    "together": """
        select product_id as list_id, rank, other_product_id as product_id,
            log_likelihood as score, 'together' as source, 'Often bought together' as reason
        from serving.bought_together where {scope}""",
    "viewed": """
        select product_id as list_id, rank, other_product_id as product_id,
            log_likelihood as score, 'viewed' as source, 'Often viewed together' as reason
        from serving.viewed_together where {scope}""",
    "again": """
        select user_id as list_id, rank, product_id, score, 'again' as source,
            'Bought ' || n_bought || case when n_bought = 1 then ' time' else ' times' end as reason
        from serving.buy_again where {scope}""",
    "anchor": """
        select user_id as list_id, rank, product_id, 1.0 as score, kind as source,
            case kind
                when 'bought' then 'Because you bought '
                when 'put in cart' then 'Because you put in your cart '
                when 'rated' then 'Because you rated '
                else 'Because you viewed '
            end || title as reason
        from serving.anchors where {scope}""",
    "bought": """
        select user_id as list_id, rank, product_id, 1.0 as score, 'bought' as source,
            null::varchar as reason
        from serving.bought where {scope}""",
    "popular": """
        select
            case
                when segment_type = 'segment' then 'segment:' || segment
                when time_window = 'new_arrivals' and segment_type = 'global' then 'new'
                when time_window = 'new_arrivals' then 'new:' || segment
                when segment_type = 'category' and time_window = 'all_time'
                    then 'category_all:' || segment
                when segment_type = 'category' then 'category:' || segment
                when time_window = 'trending' then 'trending'
                else 'all'
            end as list_id,
            rank, product_id, score,
            case
                when time_window = 'new_arrivals' then 'new'
                when segment_type in ('segment', 'category') then segment_type
                when time_window = 'trending' then 'trending'
                else 'popular'
            end as source,
            case
                when time_window = 'new_arrivals' then 'New'
                when segment_type in ('segment', 'category') then 'Popular in ' || segment
                when time_window = 'trending' then 'Trending now'
                else 'Popular with everyone'
            end as reason
        from serving.popular
        where {scope} and (segment_type, time_window) in (
            ('global', 'all_time'), ('global', 'trending'), ('global', 'new_arrivals'),
            ('segment', 'last_28_days'), ('category', 'last_28_days'), ('category', 'all_time'),
            ('category', 'new_arrivals')
        )
        union all
        select 'sale', rank, product_id, share_saved, 'sale',
            round(100 * share_saved)::integer || ' % below its usual price'
        from serving.on_sale where {scope}""",
}

KINDS = tuple(_ROWS)
KINDS_OF_USERS = ("user", "again", "anchor", "bought")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One product of a list. Rank 1 is best; score never rises with rank inside one source."""

    product_id: str
    rank: int
    score: float
    source: str
    reason: str | None


def rows_sql(kind: str, *, has_versions: bool, condition: str = "true") -> str:
    """Select the rows of lists of a kind, unordered.

    Columns: list_id, rank, product_id, score (as the table has it, see `published_score`), source,
    reason. With has_versions the statement takes the parameter $version. The condition is on
    list_id and rank; here and not around the statement, so that texts are only made of rows that
    are wanted.
    """
    rows = _ROWS[kind].format(scope="version = $version" if has_versions else "true")
    return f"""
        select list_id, rank, product_id, score::double as score, source, reason
        from ({rows})
        where {condition}"""


def published_score(score: float) -> float:
    """The score of a row of rows_sql as it is published: what JSON readers make of it."""
    if not LEAST_ORDINARY <= abs(score) < LEAST_HUGE:
        return float(score_text(score))
    # Both this division and the reading of a decimal give the double that is nearest.
    return math.trunc(score * 10**DECIMALS + math.copysign(HALF, score)) / 10**DECIMALS


def score_text(score: float) -> str:
    """A tiny or huge score as it is published."""
    return f"{score:.6g}"


def key(version: str, kind: str) -> str:
    """The hash that holds the lists of a kind: its fields are ids, its values lists."""
    return f"recmart:{version}:{kind}"


def manifest_key(version: str) -> str:
    """The Redis key that says that a version is loaded and verified, and how many lists it has."""
    return f"recmart:{version}:manifest"


def segment_list(segment: str) -> str:
    """The id of a segment's list of popular products."""
    return f"segment:{segment}"


def category_lists(category: str) -> list[str]:
    """The ids of a category's lists of popular products: of late, and of all time."""
    return [f"category:{category}", f"category_all:{category}"]


def new_list(category: str | None) -> str:
    """The id of the list of new arrivals, of a category if one is given."""
    return POPULAR_NEW if category is None else f"{POPULAR_NEW}:{category}"


def decode(value: bytes | str) -> list[Recommendation]:
    """Read the value of one list."""
    content = json.loads(value)
    why = content["why"]
    return [
        Recommendation(product_id, rank, float(score), *why[position])
        for rank, (product_id, score, position) in enumerate(content["items"], start=1)
    ]
