"""Evaluated rules as arrays, a row per group of users whom they treat alike.

Belongs here: what rules add up to, and that they do not contradict each other. Does not belong
here: reading and evaluating them (`rules.py`), what they do to a list (`ruled_lists.py`).
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import polars as pl
import scipy.sparse as sp

from ml_assets.signal_matrix import (
    BOUGHT,
    PUT_IN_CART,
    RATED,
    SignalMatrix,
    entry_keys,
    only_entries,
    scale_to_one,
)

# What rules can take: a byte or a few for each product and group of users that rules tell apart.
MOST_CELLS = 20_000_000
NOBODY = -1
# What a repeat rule can be about, in its by_column.
# Whoever rated a product has seen it.
EVENTS = {"purchase": BOUGHT, "add_to_cart": PUT_IN_CART, "view": RATED}


class RulesError(ValueError):
    """Rules that make no sense; the message names each."""


@dataclass(frozen=True)
class Rule:
    """A row of RULES. See docs/rules.md for what each action does."""

    rule_id: str
    action: str
    predicate: str | None
    value: float | None
    by_column: str | None

    @property
    def restricts(self) -> bool:
        """Whether it can leave a list short."""
        return self.action in ("exclude", "require", "repeat", "cap")


@dataclass(frozen=True)
class Evaluated:
    """A rule's answers: to whom it applies, and for each kind of them about which products.

    Attributes:
        applies: `(n_users,)` bool.
        kind_of_user: `(n_users,)` int64.
        matches: `(n_kinds, n_products)` bool.
    """

    applies: np.ndarray
    kind_of_user: np.ndarray
    matches: np.ndarray


@dataclass(frozen=True)
class Catalogue:
    """What rules ask of products beside their conditions, in the order of the matrix.

    Attributes:
        available: `(n_products,)` bool.
        margin: `(n_products,)` float64, NaN where it is not known.
        codes: Of each cap, by its rule_id: `(n_products,)` int32, which value of its column a
            product has, `NOBODY` for none.
        terms: What lists are diverse by, `(n_products, d)` CSR, None if nothing is known; only
            asked for by a rule.
    """

    available: np.ndarray
    margin: np.ndarray
    codes: dict[str, np.ndarray]
    terms: Callable[[], sp.csr_matrix | None]


@dataclass(frozen=True)
class RuleSet:
    """Rules as arrays. Users whom rules treat alike are a group.

    Attributes:
        rules: In the order in which they are applied; arrays below hold positions in it.
        group_of_user: `(n_users,)` int32.
        digest_of_group: `(n_groups,)` int64, changes with anything that rules say to the group.
        removed_by: `(n_groups, n_products)` int16, the exclude or require that keeps the product
            off the list, or `NOBODY`.
        hidden: `(n_users, n_products)` CSR, what a user is not to be shown again; data is the
            repeat rule that says so, int16, `NOBODY` where it is simply bought.
        returned: `(n_users, n_products)` CSR, what they bought and may be shown all the same; data
            is the repeat rule.
        factor: `(n_groups, n_products)` float32, what boosts make of 1.
        bonus: `(n_groups, n_products)` float32, what margins add to the score.
        moved_by: `(n_groups, n_products)` int16, the last rule of the two, or `NOBODY`.
        pins: `(n_groups, top_n)` int32, the product of each rank, or `NOBODY`.
        pinned_by: `(n_groups, top_n)` int16.
        explore_slots: `(n_explores,)` int64.
        explore_rule: `(n_explores,)` int16.
        explore_members: `(n_explores, n_groups, n_products)` bool.
        draw_of_user: `(n_users,)` uint64, the user's part in the random numbers of exploring.
        draw_of_product: `(n_products,)` uint64.
        quota_share: `(n_quotas,)` float64.
        quota_rule: `(n_quotas,)` int16.
        quota_members: `(n_quotas, n_groups, n_products)` bool.
        diversity: `(n_groups,)` float64, what unlikeness counts beside the score, 0 to 1.
        diversified_by: `(n_groups,)` int16.
        terms: `(n_products, d)` CSR, rows of length 1 or empty; of no columns unless a rule asks.
        cap_limit: `(n_caps,)` int64.
        cap_rule: `(n_caps,)` int16.
        cap_applies: `(n_caps, n_groups)` bool.
        cap_code: `(n_caps, n_products)` int32, which value a product has; `NOBODY`: not counted.
    """

    rules: tuple[Rule, ...]
    group_of_user: np.ndarray
    digest_of_group: np.ndarray
    removed_by: np.ndarray
    hidden: sp.csr_matrix
    returned: sp.csr_matrix
    factor: np.ndarray
    bonus: np.ndarray
    moved_by: np.ndarray
    pins: np.ndarray
    pinned_by: np.ndarray
    explore_slots: np.ndarray
    explore_rule: np.ndarray
    explore_members: np.ndarray
    draw_of_user: np.ndarray
    draw_of_product: np.ndarray
    quota_share: np.ndarray
    quota_rule: np.ndarray
    quota_members: np.ndarray
    diversity: np.ndarray
    diversified_by: np.ndarray
    terms: sp.csr_matrix
    cap_limit: np.ndarray
    cap_rule: np.ndarray
    cap_applies: np.ndarray
    cap_code: np.ndarray

    @classmethod
    def of_one_group(
        cls, rules: Sequence[Rule], *, hidden: sp.csr_matrix, top_n: int, n_groups: int = 1
    ) -> "RuleSet":
        """A set that does nothing yet, all users in the first group.

        Args:
            rules: What the arrays will refer to.
            hidden: As of the attribute.
            top_n: Rows a user.
            n_groups: Of users that rules tell apart.
        """
        n_users, n_products = hidden.shape
        shape = (n_groups, n_products)
        return cls(
            rules=tuple(rules),
            group_of_user=np.zeros(n_users, np.int32),
            digest_of_group=np.zeros(n_groups, np.int64),
            removed_by=np.full(shape, NOBODY, np.int16),
            hidden=hidden,
            returned=sp.csr_matrix(hidden.shape, dtype=np.int16),
            factor=np.ones(shape, np.float32),
            bonus=np.zeros(shape, np.float32),
            moved_by=np.full(shape, NOBODY, np.int16),
            pins=np.full((n_groups, top_n), NOBODY, np.int32),
            pinned_by=np.full((n_groups, top_n), NOBODY, np.int16),
            explore_slots=np.empty(0, np.int64),
            explore_rule=np.empty(0, np.int16),
            explore_members=np.empty((0, *shape), bool),
            draw_of_user=np.zeros(n_users, np.uint64),
            draw_of_product=np.zeros(n_products, np.uint64),
            quota_share=np.empty(0, np.float64),
            quota_rule=np.empty(0, np.int16),
            quota_members=np.empty((0, *shape), bool),
            diversity=np.zeros(n_groups, np.float64),
            diversified_by=np.full(n_groups, NOBODY, np.int16),
            terms=sp.csr_matrix((n_products, 0), dtype=np.float64),
            cap_limit=np.empty(0, np.int64),
            cap_rule=np.empty(0, np.int16),
            cap_applies=np.empty((0, n_groups), bool),
            cap_code=np.empty((0, n_products), np.int32),
        )

    def for_users(self, rows: np.ndarray) -> "RuleSet":
        """The same for these users, in this order."""
        return replace(
            self,
            group_of_user=self.group_of_user[rows],
            hidden=self.hidden[rows],
            returned=self.returned[rows],
            draw_of_user=self.draw_of_user[rows],
        )

    def digests(self, of_product: np.ndarray) -> np.ndarray:
        """`(n_users,)` int64, changes with anything that rules say to the user.

        Args:
            of_product: `(n_products,)` uint64, a hash of each id.
        """
        found = self.digest_of_group[self.group_of_user].copy()
        for each, salt in ((self.hidden, 1), (self.returned, 2)):
            # Which rule it is, too: the ledger names it.
            by_rule = each.data.astype(np.int64).view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
            entry = (of_product[each.indices] ^ by_rule) * np.uint64(2 * salt + 1)
            sums = np.concatenate([[np.uint64(0)], np.cumsum(entry, dtype=np.uint64)])
            found ^= (sums[each.indptr[1:]] - sums[each.indptr[:-1]]).view(np.int64)
        return found


def combine(
    rules: Sequence[Rule],
    evaluated: Sequence[Evaluated],
    *,
    catalogue: Catalogue,
    matrix: SignalMatrix,
    days_since: Callable[[], np.ndarray],
    top_n: int,
    seed: int,
) -> RuleSet:
    """What the rules add up to.

    Args:
        rules: In the order of application.
        evaluated: Of each rule.
        catalogue: Its products.
        matrix: Its users, and what they did.
        days_since: Gives what `days_between` gives; only called for a repeat rule.
        top_n: Rows a user.
        seed: Of exploring.

    Raises:
        RulesError: naming each rule that leaves some users nothing, or contradicts another.
    """
    keys = np.column_stack([np.where(each.applies, each.kind_of_user + 1, 0) for each in evaluated])
    group_keys, group_of_user = np.unique(keys, axis=0, return_inverse=True)
    group_of_user = group_of_user.ravel().astype(np.int32)
    n_groups, n_products = len(group_keys), len(matrix.product_ids)
    if n_groups * n_products > MOST_CELLS:
        raise RulesError(
            f"the rules tell {n_groups:,} groups of users apart, which with {n_products:,} products"
            f" is more than {MOST_CELLS:,}; use fewer or coarser columns of the user"
        )
    n_of_group = np.bincount(group_of_user, minlength=n_groups)
    # Filled below in place.
    ruled = RuleSet.of_one_group(rules, hidden=_bought(matrix), top_n=top_n, n_groups=n_groups)
    repeats: list[tuple[int, np.ndarray]] = []
    explores: list[tuple[int, np.ndarray]] = []
    quotas: list[tuple[int, np.ndarray]] = []
    caps: list[tuple[int, np.ndarray, np.ndarray]] = []
    problems: list[str] = []
    for number, (rule, each) in enumerate(zip(rules, evaluated, strict=True)):
        applies = group_keys[:, number] > 0
        matches = np.zeros((n_groups, n_products), dtype=bool)
        matches[applies] = each.matches[group_keys[applies, number] - 1]
        if rule.action in ("exclude", "require"):
            goes = matches if rule.action == "exclude" else ~matches & applies[:, None]
            had_some = (catalogue.available & (ruled.removed_by == NOBODY)).any(axis=1)
            ruled.removed_by[goes & (ruled.removed_by == NOBODY)] = number
            has_some = (catalogue.available & (ruled.removed_by == NOBODY)).any(axis=1)
            if (had_some & ~has_some).any():
                n_left = int(n_of_group[had_some & ~has_some].sum())
                problems.append(f"rule {rule.rule_id} leaves {n_left:,} users without any product")
        elif rule.action == "repeat":
            repeats.append((number, matches))
        elif rule.action == "boost":
            ruled.factor[matches] *= np.float32(_value(rule))
            ruled.moved_by[matches] = number
        elif rule.action == "margin":
            problems += _add_margin(rule, number, matches, catalogue, ruled)
        elif rule.action == "pin":
            problems += _pin(rule, number, matches & catalogue.available, matrix.product_ids, ruled)
        elif rule.action == "explore":
            explores.append((number, matches & catalogue.available))
        elif rule.action == "quota":
            quotas.append((number, matches & catalogue.available))
        elif rule.action == "diversify":
            if not each.matches.all():
                problems.append(
                    f"rule {rule.rule_id}: diversify is about whole lists; its condition can only "
                    "be about the user"
                )
            ruled.diversity[applies] = _value(rule)
            ruled.diversified_by[applies] = number
        else:
            if len(each.matches) > 1:
                problems.append(
                    f"rule {rule.rule_id}: a cap cannot compare products with users; use a "
                    "condition on one of them"
                )
            code = catalogue.codes[rule.rule_id]
            caps.append((number, applies, np.where(each.matches[0], code, NOBODY)))
    terms = catalogue.terms() if ruled.diversity.any() else ruled.terms
    if terms is None:
        name = next(rule.rule_id for rule in rules if rule.action == "diversify")
        problems.append(f"rule {name}: products have no texts that tell them apart")
    problems += _problems_of_explores(explores, rules, top_n)
    problems += _problems_of_quotas(quotas, rules)
    if problems:
        raise RulesError("; ".join(problems))
    hidden, returned = _hidden(repeats, rules, matrix, group_of_user, days_since)
    drawn = _draws(matrix, seed) if explores else (ruled.draw_of_user, ruled.draw_of_product)
    ruled = replace(
        ruled,
        group_of_user=group_of_user,
        hidden=hidden,
        returned=returned,
        explore_slots=np.array([_value(rules[number]) for number, _ in explores], np.int64),
        explore_rule=_numbers(explores),
        explore_members=_members(explores, n_groups, n_products),
        draw_of_user=drawn[0],
        draw_of_product=drawn[1],
        quota_share=np.array([_value(rules[number]) for number, _ in quotas], np.float64),
        quota_rule=_numbers(quotas),
        quota_members=_members(quotas, n_groups, n_products),
        terms=_unit_rows(terms),
        cap_limit=np.array([_value(rules[number]) for number, *_ in caps], np.int64),
        cap_rule=np.array([number for number, *_ in caps], np.int16),
        cap_applies=np.array([each for _, each, _ in caps], bool).reshape(len(caps), n_groups),
        cap_code=np.array([code for *_, code in caps], np.int32).reshape(len(caps), n_products),
    )
    return replace(ruled, digest_of_group=_digests(ruled, matrix.product_ids, seed))


def _value(rule: Rule) -> float:
    assert rule.value is not None
    return rule.value


def _numbers(numbered: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    return np.array([number for number, _ in numbered], dtype=np.int16)


def _members(
    numbered: Sequence[tuple[int, np.ndarray]], n_groups: int, n_products: int
) -> np.ndarray:
    return np.array([each for _, each in numbered], dtype=bool).reshape(
        len(numbered), n_groups, n_products
    )


def _bought(matrix: SignalMatrix) -> sp.csr_matrix:
    nobody = np.full(len(matrix.kinds), NOBODY, dtype=np.int16)
    return only_entries(matrix.weights, matrix.kinds == BOUGHT, nobody)


def _add_margin(
    rule: Rule, number: int, matches: np.ndarray, catalogue: Catalogue, ruled: RuleSet
) -> Iterator[str]:
    """Scores are in deviations from a user's mean; margins get the same unit."""
    known = catalogue.available & np.isfinite(catalogue.margin)
    deviation = catalogue.margin[known].std() if known.any() else 0.0
    if not deviation > 0:
        yield (
            f"rule {rule.rule_id}: products have no margins that differ; give them in the column "
            "margin of the products file"
        )
        return
    above = (catalogue.margin - catalogue.margin[known].mean()) / deviation
    gets = matches & np.isfinite(catalogue.margin)
    ruled.bonus[gets] += np.broadcast_to(_value(rule) * above, gets.shape)[gets].astype(np.float32)
    ruled.moved_by[gets] = number


def _pin(
    rule: Rule, number: int, matches: np.ndarray, product_ids: pl.Series, ruled: RuleSet
) -> Iterator[str]:
    pins, pinned_by = ruled.pins, ruled.pinned_by
    place = int(_value(rule)) - 1
    if place >= pins.shape[1]:
        yield f"rule {rule.rule_id} pins to rank {place + 1} of lists of {pins.shape[1]}"
        return
    if (n := int(matches.sum(axis=1).max(initial=0))) > 1:
        yield f"rule {rule.rule_id} pins {n:,} products to one rank; name one"
        return
    groups, products = np.nonzero(matches)
    taken = pinned_by[groups, place] != NOBODY
    if taken.any():
        other = ruled.rules[pinned_by[groups, place][taken][0]].rule_id
        yield f"rules {other} and {rule.rule_id} pin two products to rank {place + 1}"
        return
    twice = (pins[groups] == products[:, None]).any(axis=1)
    if twice.any():
        yield f"rule {rule.rule_id} pins {product_ids[int(products[twice][0])]} a second time"
        return
    pins[groups, place] = products
    pinned_by[groups, place] = number


def _problems_of_explores(
    explores: Sequence[tuple[int, np.ndarray]], rules: Sequence[Rule], top_n: int
) -> Iterator[str]:
    if not explores:
        return
    places = _asked_for(explores, rules)
    if (places >= top_n).any():
        names = " and ".join(f"rule {rules[number].rule_id}" for number, _ in explores)
        yield f"{names}: explore takes {places.max():.0f} of {top_n} places"


def _problems_of_quotas(
    quotas: Sequence[tuple[int, np.ndarray]], rules: Sequence[Rule]
) -> Iterator[str]:
    if not quotas:
        return
    asked_for = _asked_for(quotas, rules)
    if (asked_for > 1 + 1e-9).any():
        names = ", ".join(rules[number].rule_id for number, _ in quotas)
        yield f"rules {names}: quotas add up to {asked_for.max():.0%} of a list"


def _asked_for(numbered: Sequence[tuple[int, np.ndarray]], rules: Sequence[Rule]) -> np.ndarray:
    """`(n_groups,)`: what the rules that have products for a group ask for, added up."""
    return np.sum([each.any(axis=1) * _value(rules[number]) for number, each in numbered], axis=0)


def _hidden(
    repeats: Sequence[tuple[int, np.ndarray]],
    rules: Sequence[Rule],
    matrix: SignalMatrix,
    group_of_user: np.ndarray,
    days_since: Callable[[], np.ndarray],
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """What is not shown again, and what was bought and comes back: see RuleSet.

    What was bought is hidden for good, unless rules on purchases say for how long. Of several
    rules the strictest holds.
    """
    if not repeats:
        bought = _bought(matrix)
        return bought, sp.csr_matrix(bought.shape, dtype=np.int16)
    pattern, kinds = matrix.weights, matrix.kinds
    group = np.repeat(group_of_user, np.diff(pattern.indptr))
    since_last, since_bought = days_since()
    hides = np.full(len(kinds), NOBODY, dtype=np.int16)
    frees = np.full(len(kinds), NOBODY, dtype=np.int16)
    for number, matches in repeats:
        rule = rules[number]
        event = EVENTS[rule.by_column or "purchase"]
        speaks = matches[group, pattern.indices] & (kinds >= event)
        days = since_bought if event == BOUGHT else since_last
        window = np.inf if rule.value is None else rule.value
        hides[speaks & (days < window)] = number
        if event == BOUGHT:
            frees[speaks & (days >= window)] = number
    is_hidden = (hides != NOBODY) | ((kinds == BOUGHT) & (frees == NOBODY))
    is_returned = ~is_hidden & (kinds == BOUGHT)
    return only_entries(pattern, is_hidden, hides), only_entries(pattern, is_returned, frees)


def _draws(matrix: SignalMatrix, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return hashes_of(matrix.user_ids, salt=str(seed)), hashes_of(matrix.product_ids)


def hashes_of(ids: pl.Series, *, salt: str = "") -> np.ndarray:
    """`(n,)` uint64 of each id, the same in every run and place."""
    key = salt.encode()
    return np.array(
        [
            int.from_bytes(
                hashlib.blake2b(each.encode(), digest_size=8, key=key).digest(), "little"
            )
            for each in ids
        ],
        dtype=np.uint64,
    )


def mixed(number: np.ndarray) -> np.ndarray:
    """Uint64 in which every bit moved every other; a number or many."""
    # The finaliser of splitmix64 (Steele, Lea & Flood, OOPSLA 2014).
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


def _unit_rows(terms: sp.csr_matrix) -> sp.csr_matrix:
    scale = scale_to_one(terms)
    return sp.csr_matrix(
        (
            terms.data.astype(np.float64) * np.repeat(scale, np.diff(terms.indptr)),
            terms.indices.astype(np.int32),
            terms.indptr.astype(np.int64),
        ),
        shape=terms.shape,
    )


def days_between(matrix: SignalMatrix, last_on: pl.DataFrame, *, day: date) -> np.ndarray:
    """Days from the last event of any kind, and from the last purchase, to a day.

    Args:
        matrix: Users and products.
        last_on: user_id, product_id, last_on and last_bought_on (null: never) of each entry, in
            any order; others are ignored.
        day: That day.

    Returns:
        `(2, n_entries)` float64 of the matrix, NaN where nothing was bought.
    """
    n_products = len(matrix.product_ids)
    row, column = (
        pl.DataFrame({name: ids, "position": np.arange(len(ids), dtype=np.int64)})
        for name, ids in (("user_id", matrix.user_ids), ("product_id", matrix.product_ids))
    )
    found = (
        last_on.join(row, on="user_id")
        .join(column, on="product_id", suffix="_of_product")
        .select(
            key=pl.col("position") * n_products + pl.col("position_of_product"),
            since_last=(pl.lit(day) - pl.col("last_on")).dt.total_days(),
            since_bought=(pl.lit(day) - pl.col("last_bought_on")).dt.total_days(),
        )
        .sort("key")
    )
    keys, days = found["key"].to_numpy(), found.select("since_last", "since_bought").to_numpy()
    wanted = entry_keys(matrix.weights)
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    if len(wanted) and not (len(keys) and (keys[place] == wanted).all()):
        raise ValueError("some signals have no day of their last event")
    return days[place].astype(np.float64).T if len(wanted) else np.empty((2, 0))


def _digests(ruled: RuleSet, product_ids: pl.Series, seed: int) -> np.ndarray:
    """`(n_groups,)` int64 of what each array says to the group."""
    of_all = hashlib.blake2b(
        repr((ruled.rules, product_ids.to_list(), seed)).encode(), digest_size=8
    )
    for array in (ruled.cap_code, ruled.terms.indptr, ruled.terms.indices, ruled.terms.data):
        of_all.update(np.ascontiguousarray(array).data)
    of_groups = (
        ruled.removed_by,
        ruled.factor,
        ruled.bonus,
        ruled.pins,
        ruled.explore_members.swapaxes(0, 1),
        ruled.quota_members.swapaxes(0, 1),
        ruled.diversity,
        ruled.cap_applies.T,
    )
    found = []
    for group in range(len(ruled.digest_of_group)):
        digest = of_all.copy()
        for each in of_groups:
            digest.update(np.ascontiguousarray(each[group]).tobytes())
        found.append(int.from_bytes(digest.digest(), "little", signed=True))
    return np.array(found, dtype=np.int64)
