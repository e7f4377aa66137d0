"""What rules do to lists: one pass over the candidates of every user, places refilled as it goes.

In this order: what is excluded or not required is out; boosts change scores and so the order; pins
take their ranks; the other ranks are filled from the top, candidates first and then the fallback
chain, passing over what a cap has had enough of, and over what a quota leaves no room for. Where
the products of a quota run out, the rest of the list is filled without it. A list is short only
when nothing is left that the rules allow.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import scipy.sparse as sp
from numba import njit

from ml_assets.fallback import PopularityLists, fill_lists
from ml_assets.frames import RULE_LEDGER
from ml_assets.rules import NOBODY, RuleSet
from ml_assets.scoring import NOTHING
from ml_assets.signal_matrix import SignalMatrix
from ml_assets.threads import over_blocks

# In `RuledLists.step`, beside the steps of the chain.
PINNED = -2


@dataclass(frozen=True)
class RuledLists:
    """Lists as they are shown, and what became of each candidate.

    Attributes:
        items: `(n_users, n)` int32, best first, `NOTHING` behind.
        step: `(n_users, n)` int8, the step of the chain that filled the place, `PINNED`, or
            `NOTHING` for a candidate or no product.
        candidate: `(n_users, n)` int32, which candidate is there, `NOTHING` for none.
        score: `(n_users, n)` float64, boosted; -inf where no candidate is.
        cause: `(n_users, k)` int16, the rule that keeps a candidate off the list, or `NOBODY`.
    """

    items: np.ndarray
    step: np.ndarray
    candidate: np.ndarray
    score: np.ndarray
    cause: np.ndarray


def apply_rules(
    rules: RuleSet | None,
    proposed: np.ndarray,
    score: np.ndarray,
    chain: PopularityLists,
    *,
    exclude: sp.csr_matrix,
    n: int,
) -> RuledLists:
    """Lists of n products from candidates, the fallback chain and rules.

    Args:
        rules: Of these users; None for none.
        proposed: `(n_users, k)` int32 candidates, best first, `NOTHING` behind; k >= n.
        score: `(n_users, k)` float64, of the candidates.
        chain: What fills places that candidates leave.
        exclude: `(n_users, n_items)`, an entry is a product not to show; sorted indices.
        n: Products a user.
    """
    if rules is None:
        items, step = fill_lists(proposed[:, :n], chain, exclude=exclude)
        is_candidate = (step == NOTHING) & (items != NOTHING)
        return RuledLists(
            items=items,
            step=step,
            candidate=np.where(is_candidate, np.arange(n, dtype=np.int32), NOTHING),
            score=np.where(is_candidate, score[:, :n], -np.inf),
            cause=np.full(proposed.shape, NOBODY, dtype=np.int16),
        )
    shape = (len(proposed), n)
    ruled = RuledLists(
        items=np.full(shape, NOTHING, dtype=np.int32),
        step=np.full(shape, NOTHING, dtype=np.int8),
        candidate=np.full(shape, NOTHING, dtype=np.int32),
        score=np.full(shape, -np.inf),
        cause=np.full(proposed.shape, NOBODY, dtype=np.int16),
    )
    n_codes = int(rules.cap_code.max(initial=NOBODY)) + 1
    has_boost = (rules.factor != 1).any(axis=1)
    has_members = rules.quota_members.any(axis=2)

    def work(start: int, stop: int, own: tuple[np.ndarray, np.ndarray]) -> None:
        _rule(
            start,
            stop,
            proposed,
            score,
            chain.list_indptr,
            chain.items,
            chain.list_of_user,
            exclude.indptr,
            exclude.indices,
            rules.group_of_user,
            rules.removed_by,
            rules.factor,
            has_boost,
            rules.pins,
            rules.quota_share,
            rules.quota_rule,
            rules.quota_members,
            has_members,
            rules.cap_limit,
            rules.cap_rule,
            rules.cap_applies,
            rules.cap_code,
            *own,
            ruled.items,
            ruled.step,
            ruled.candidate,
            ruled.score,
            ruled.cause,
        )

    for _ in over_blocks(
        work,
        len(proposed),
        rows_per_block=4096,
        scratch=lambda: (
            np.zeros((len(rules.cap_limit), n_codes), dtype=np.int64),
            np.zeros(rules.removed_by.shape[1], dtype=np.bool_),
        ),
    ):
        pass
    return ruled


@njit(cache=True, nogil=True)
def _is_in(items: np.ndarray, item: int) -> bool:
    place = np.searchsorted(items, item)
    return bool(place < len(items) and items[place] == item)


@njit(cache=True, nogil=True)
def _capped_by(
    item: int,
    group: int,
    counts: np.ndarray,
    cap_limit: np.ndarray,
    cap_rule: np.ndarray,
    cap_applies: np.ndarray,
    cap_code: np.ndarray,
) -> int:
    """The cap that has had enough of the item's kind, or NOBODY."""
    for cap in range(len(cap_limit)):
        code = cap_code[cap, item]
        if cap_applies[cap, group] and code >= 0 and counts[cap, code] >= cap_limit[cap]:
            return int(cap_rule[cap])
    return NOBODY


@njit(cache=True, nogil=True)
def _unmet(needs: np.ndarray) -> int:
    """Places that quotas still ask for."""
    total = 0
    for need in needs:
        total += max(need, 0)
    return total


@njit(cache=True, nogil=True)
def _helps(item: int, group: int, needs: np.ndarray, quota_members: np.ndarray) -> bool:
    for quota in range(len(needs)):
        if needs[quota] > 0 and quota_members[quota, group, item]:
            return True
    return False


@njit(cache=True, nogil=True)
def _first_unmet(needs: np.ndarray, quota_rule: np.ndarray) -> int:
    for quota in range(len(needs)):
        if needs[quota] > 0:
            return int(quota_rule[quota])
    return NOBODY


@njit(cache=True, nogil=True)
def _list(
    item: int,
    group: int,
    needs: np.ndarray,
    quota_members: np.ndarray,
    counts: np.ndarray,
    cap_applies: np.ndarray,
    cap_code: np.ndarray,
    is_listed: np.ndarray,
) -> None:
    """Note that the item has a place."""
    is_listed[item] = True
    for quota in range(len(needs)):
        needs[quota] -= quota_members[quota, group, item]
    for cap in range(len(cap_code)):
        if cap_applies[cap, group] and cap_code[cap, item] >= 0:
            counts[cap, cap_code[cap, item]] += 1


@njit(cache=True, nogil=True)
def _rule(
    start: int,
    stop: int,
    proposed: np.ndarray,
    score: np.ndarray,
    list_indptr: np.ndarray,
    chain_items: np.ndarray,
    list_of_user: np.ndarray,
    exclude_indptr: np.ndarray,
    exclude_indices: np.ndarray,
    group_of_user: np.ndarray,
    removed_by: np.ndarray,
    factor: np.ndarray,
    has_boost: np.ndarray,
    pins: np.ndarray,
    quota_share: np.ndarray,
    quota_rule: np.ndarray,
    quota_members: np.ndarray,
    has_members: np.ndarray,
    cap_limit: np.ndarray,
    cap_rule: np.ndarray,
    cap_applies: np.ndarray,
    cap_code: np.ndarray,
    counts: np.ndarray,
    is_listed: np.ndarray,
    items: np.ndarray,
    step_of: np.ndarray,
    candidate_of: np.ndarray,
    score_of: np.ndarray,
    cause: np.ndarray,
) -> None:
    k, n = proposed.shape[1], items.shape[1]
    n_quotas, n_caps = len(quota_share), len(cap_limit)
    boosted = np.empty(k)
    order = np.empty(k, dtype=np.int32)
    needs = np.empty(n_quotas, dtype=np.int64)
    chosen = np.empty(n, dtype=np.int32)
    chosen_candidate = np.empty(n, dtype=np.int32)
    chosen_step = np.empty(n, dtype=np.int8)
    for row in range(start, stop):
        group = group_of_user[row]
        excluded = exclude_indices[exclude_indptr[row] : exclude_indptr[row + 1]]
        n_candidates = 0
        while n_candidates < k and proposed[row, n_candidates] >= 0:
            at = n_candidates
            value = score[row, at]
            if has_boost[group]:
                value += (np.float64(factor[group, proposed[row, at]]) - 1.0) * abs(value)
            boosted[at] = value
            # Insertion sort: nearly in order already. Ties stay as they were.
            place = at
            if has_boost[group]:
                while place > 0 and boosted[order[place - 1]] < value:
                    order[place] = order[place - 1]
                    place -= 1
            order[place] = at
            n_candidates += 1
        for quota in range(n_quotas):
            least = np.int64(np.ceil(quota_share[quota] * n - 1e-9))
            needs[quota] = least if has_members[quota, group] else 0
        n_free = n
        for place in range(n):
            item = pins[group, place]
            if item < 0 or removed_by[group, item] >= 0 or _is_in(excluded, item):
                continue
            items[row, place] = item
            step_of[row, place] = PINNED
            n_free -= 1
            _list(item, group, needs, quota_members, counts, cap_applies, cap_code, is_listed)
        n_chosen = 0
        for turn in range(2 if n_quotas else 1):
            # In the second turn what quotas asked for has run out.
            is_reserved = turn == 0 and _unmet(needs) >= n_free
            for i in range(n_candidates):
                at = order[i]
                item = proposed[row, at]
                if removed_by[group, item] >= 0:
                    cause[row, at] = removed_by[group, item]
                    continue
                if n_free == 0 or is_listed[item]:
                    continue
                why = _capped_by(item, group, counts, cap_limit, cap_rule, cap_applies, cap_code)
                if why == NOBODY and is_reserved and not _helps(item, group, needs, quota_members):
                    why = _first_unmet(needs, quota_rule)
                cause[row, at] = why
                if why != NOBODY:
                    continue
                chosen[n_chosen] = item
                chosen_candidate[n_chosen] = at
                chosen_step[n_chosen] = NOTHING
                n_chosen += 1
                n_free -= 1
                _list(item, group, needs, quota_members, counts, cap_applies, cap_code, is_listed)
                is_reserved = turn == 0 and _unmet(needs) >= n_free
            for step in range(list_of_user.shape[1]):
                listed = list_of_user[row, step]
                if listed < 0 or n_free == 0:
                    continue
                for at in range(list_indptr[listed], list_indptr[listed + 1]):
                    item = chain_items[at]
                    # The rarest first: most of a long list helps no quota.
                    if is_reserved and not _helps(item, group, needs, quota_members):
                        continue
                    if is_listed[item] or removed_by[group, item] >= 0 or _is_in(excluded, item):
                        continue
                    if (
                        _capped_by(item, group, counts, cap_limit, cap_rule, cap_applies, cap_code)
                        != NOBODY
                    ):
                        continue
                    chosen[n_chosen] = item
                    chosen_candidate[n_chosen] = NOTHING
                    chosen_step[n_chosen] = step
                    n_chosen += 1
                    n_free -= 1
                    _list(
                        item, group, needs, quota_members, counts, cap_applies, cap_code, is_listed
                    )
                    is_reserved = turn == 0 and _unmet(needs) >= n_free
                    if n_free == 0:
                        break
        # What came in the second turn goes where its score belongs: candidates by the boosted
        # score, then the chain as it came.
        for i in range(1, n_chosen):
            item, at, step = chosen[i], chosen_candidate[i], chosen_step[i]
            place = i
            while (
                place > 0
                and at >= 0
                and (
                    chosen_candidate[place - 1] < 0
                    or boosted[chosen_candidate[place - 1]] < boosted[at]
                )
            ):
                chosen[place] = chosen[place - 1]
                chosen_candidate[place] = chosen_candidate[place - 1]
                chosen_step[place] = chosen_step[place - 1]
                place -= 1
            chosen[place], chosen_candidate[place], chosen_step[place] = item, at, step
        # A list that ends before a pinned rank moves the pin up: ranks have no gaps.
        n_pinned = 0
        for place in range(n):
            n_pinned += items[row, place] >= 0
        taken = 0
        length = n_chosen + n_pinned
        last = length - 1
        for at in range(n - 1, length - 1, -1):
            if items[row, at] < 0:
                continue
            while items[row, last] >= 0:
                last -= 1
            items[row, last] = items[row, at]
            step_of[row, last] = PINNED
            items[row, at] = NOTHING
            step_of[row, at] = NOTHING
        for place in range(length):
            if items[row, place] >= 0:
                continue
            items[row, place] = chosen[taken]
            step_of[row, place] = chosen_step[taken]
            candidate_of[row, place] = chosen_candidate[taken]
            if chosen_candidate[taken] >= 0:
                score_of[row, place] = boosted[chosen_candidate[taken]]
            taken += 1
        for place in range(length):
            is_listed[items[row, place]] = False
            for cap in range(n_caps):
                if cap_code[cap, items[row, place]] >= 0:
                    counts[cap, cap_code[cap, items[row, place]]] = 0


def ledger_frame(
    rules: RuleSet, ruled: RuledLists, proposed: np.ndarray, matrix: SignalMatrix
) -> pl.DataFrame:
    """RULE_LEDGER: every candidate that a rule removed or moved, and every pin.

    A candidate that is neither on the list nor here came after the last one that was taken.

    Args:
        rules: Of these users.
        ruled: From `apply_rules`.
        proposed: `(n_users, k)` candidates.
        matrix: Gives ids.
    """
    rank_of_candidate = np.zeros(proposed.shape, dtype=np.int32)
    row, place = np.nonzero(ruled.candidate != NOTHING)
    rank_of_candidate[row, ruled.candidate[row, place]] = place + 1
    is_pinned = ruled.step == PINNED
    pinned_row, pinned_place = np.nonzero(is_pinned)
    pinned_item = ruled.items[pinned_row, pinned_place]
    # Pinned products that are candidates as well have an old rank.
    old_of_pin = np.zeros(len(pinned_row), dtype=np.int32)
    same = proposed[pinned_row] == pinned_item[:, None]
    old_of_pin[same.any(axis=1)] = same.argmax(axis=1)[same.any(axis=1)] + 1
    pin_rule = _rule_of_pins(rules, pinned_row, pinned_item)
    was_pinned = np.zeros(proposed.shape, dtype=bool)
    was_pinned[pinned_row[old_of_pin > 0], old_of_pin[old_of_pin > 0] - 1] = True

    group = rules.group_of_user[:, None]
    is_there = proposed != NOTHING
    boost = np.where(is_there, rules.boosted_by[group, np.maximum(proposed, 0)], NOBODY)
    old_rank = np.arange(1, proposed.shape[1] + 1, dtype=np.int32)[None, :]
    is_removed = (ruled.cause != NOBODY) & (rank_of_candidate == 0) & ~was_pinned
    is_moved = (rank_of_candidate > 0) & (boost != NOBODY) & (rank_of_candidate != old_rank)
    # Only what would have been on the list otherwise, or was lifted onto it, is a boost's doing.
    rule = np.where(is_removed, ruled.cause, np.where(is_moved, boost, NOBODY))
    row, at = np.nonzero(rule != NOBODY)
    new_rank = rank_of_candidate[row, at]
    ids = [each.rule_id for each in rules.rules]
    actions = [each.action for each in rules.rules]
    number = np.concatenate([rule[row, at], pin_rule]).astype(np.int64)
    return pl.DataFrame(
        {
            "user_id": matrix.user_ids.gather(np.concatenate([row, pinned_row])),
            "product_id": matrix.product_ids.gather(
                np.concatenate([proposed[row, at], pinned_item]).astype(np.int64)
            ),
            "rule_id": pl.Series(ids, dtype=pl.String).gather(number),
            "action": pl.Series(actions, dtype=pl.String).gather(number),
            "old_rank": _null_for_0(np.concatenate([at + 1, old_of_pin])),
            "new_rank": _null_for_0(np.concatenate([new_rank, pinned_place + 1])),
        }
    ).match_to_schema(RULE_LEDGER)


def _rule_of_pins(rules: RuleSet, row: np.ndarray, item: np.ndarray) -> np.ndarray:
    group = rules.group_of_user[row]
    place = (rules.pins[group] == item[:, None]).argmax(axis=1)
    return np.asarray(rules.pinned_by[group, place]) if len(row) else np.empty(0, np.int16)


def _null_for_0(ranks: np.ndarray) -> pl.Series:
    return pl.Series(ranks, dtype=pl.Int32).replace(0, None)
