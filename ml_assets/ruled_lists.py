"""What rules do to lists: one pass over the candidates of every user, places refilled as it goes.

In this order: what is excluded or not required is out; margins and boosts change scores and so the
order; pins take their ranks, and drawn products theirs; the other ranks are filled from the top,
candidates first and then the fallback chain, passing over what a cap has had enough of, and over
what a quota leaves no room for. Where the products of a quota run out, the rest of the list is
filled without it. A list is short only when nothing is left that the rules allow.

Diverse lists choose the candidate that is next by maximal marginal relevance (Carbonell &
Goldstein, "The Use of MMR, Diversity-Based Reranking", SIGIR 1998): (1 - w) x score - w x the
largest cosine with what is on the list, scores of a user's candidates scaled from 0 to 1. Which
products are shown changes; they stand by their scores all the same.

Drawn products are those with the least of a random number that is fixed for a user and a product
(permanent random numbers: Ohlsson, "Coordination of Samples Using Permanent Random Numbers", 1995):
each of a user's n possible ones with the same probability, slots / n, and the same ones tomorrow as
long as they are possible.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import scipy.sparse as sp
from numba import njit

from ml_assets.fallback import PopularityLists, fill_lists
from ml_assets.frames import RULE_LEDGER
from ml_assets.rule_set import NOBODY, RuleSet, mixed
from ml_assets.scoring import NOTHING
from ml_assets.signal_matrix import SignalMatrix, entry_keys
from ml_assets.threads import over_blocks

# In `RuledLists.step`, beside the steps of the chain.
PINNED = -2
EXPLORED = -3


@dataclass(frozen=True)
class RuledLists:
    """Lists as they are shown, and what became of each candidate.

    Attributes:
        items: `(n_users, n)` int32, best first, `NOTHING` behind.
        step: `(n_users, n)` int8, the step of the chain that filled the place, `PINNED`,
            `EXPLORED`, or `NOTHING` for a candidate or no product.
        candidate: `(n_users, n)` int32, which candidate is there, `NOTHING` for none.
        score: `(n_users, n)` float64, boosted; -inf where no candidate is.
        cause: `(n_users, k)` int16, the rule that keeps a candidate off the list, or `NOBODY`.
        placed_by: `(n_users, n)` int16, the rule that pinned or drew the product, or `NOBODY`.
        probability: `(n_users, n)` float64, of being drawn, NaN for what was not.
    """

    items: np.ndarray
    step: np.ndarray
    candidate: np.ndarray
    score: np.ndarray
    cause: np.ndarray
    placed_by: np.ndarray
    probability: np.ndarray


def apply_rules(
    rules: RuleSet | None,
    proposed: np.ndarray,
    score: np.ndarray,
    chain: PopularityLists,
    *,
    bought: sp.csr_matrix,
    n: int,
) -> RuledLists:
    """Lists of n products from candidates, the fallback chain and rules.

    Args:
        rules: Of these users; None for none.
        proposed: `(n_users, k)` int32 candidates, best first, `NOTHING` behind; k >= n.
        score: `(n_users, k)` float64, of the candidates.
        chain: What fills places that candidates leave.
        bought: `(n_users, n_items)`, an entry is a product not to show without rules, which say
            themselves what is hidden; sorted indices.
        n: Products a user.
    """
    shape = (len(proposed), n)
    if rules is None:
        items, step = fill_lists(proposed[:, :n], chain, exclude=bought)
        is_candidate = (step == NOTHING) & (items != NOTHING)
        return RuledLists(
            items=items,
            step=step,
            candidate=np.where(is_candidate, np.arange(n, dtype=np.int32), NOTHING),
            score=np.where(is_candidate, score[:, :n], -np.inf),
            cause=np.full(proposed.shape, NOBODY, dtype=np.int16),
            placed_by=np.full(shape, NOBODY, dtype=np.int16),
            probability=np.full(shape, np.nan),
        )
    ruled = RuledLists(
        items=np.full(shape, NOTHING, dtype=np.int32),
        step=np.full(shape, NOTHING, dtype=np.int8),
        candidate=np.full(shape, NOTHING, dtype=np.int32),
        score=np.full(shape, -np.inf),
        cause=np.full(proposed.shape, NOBODY, dtype=np.int16),
        placed_by=np.full(shape, NOBODY, dtype=np.int16),
        probability=np.full(shape, np.nan),
    )
    n_codes = int(rules.cap_code.max(initial=NOBODY)) + 1
    is_moved = ((rules.factor != 1) | (rules.bonus != 0)).any(axis=1)
    pool_indptr, pool_items = _pools(rules)
    arrays = (
        chain.list_indptr,
        chain.items,
        chain.list_of_user,
        rules.hidden.indptr,
        rules.hidden.indices,
        rules.group_of_user,
        rules.removed_by,
        rules.factor,
        rules.bonus,
        is_moved,
        rules.pins,
        rules.pinned_by,
        rules.explore_slots,
        rules.explore_rule,
        pool_indptr,
        pool_items,
        rules.draw_of_user,
        rules.draw_of_product,
        rules.quota_share,
        rules.quota_rule,
        rules.quota_members,
        rules.quota_members.any(axis=2),
        rules.diversity,
        rules.diversified_by,
        rules.terms.indptr,
        rules.terms.indices,
        rules.terms.data,
        rules.cap_limit,
        rules.cap_rule,
        rules.cap_applies,
        rules.cap_code,
    )
    results = (
        ruled.items,
        ruled.step,
        ruled.candidate,
        ruled.score,
        ruled.cause,
        ruled.placed_by,
        ruled.probability,
    )

    def work(start: int, stop: int, own: tuple[np.ndarray, ...]) -> None:
        _rule(start, stop, proposed, score, *arrays, *own, *results)

    for _ in over_blocks(
        work,
        len(proposed),
        scratch=lambda: (
            np.zeros((len(rules.cap_limit), n_codes), dtype=np.int64),
            np.zeros(rules.removed_by.shape[1], dtype=np.bool_),
            np.zeros(rules.removed_by.shape[1], dtype=np.bool_),
            np.zeros(rules.terms.shape[1]),
        ),
    ):
        pass
    return ruled


def _pools(rules: RuleSet) -> tuple[np.ndarray, np.ndarray]:
    """What can be drawn: products of rule e and group g are
    `items[indptr[e, g]:indptr[e, g + 1]]`.
    """
    n_explores, n_groups, _ = rules.explore_members.shape
    can = rules.explore_members & (rules.removed_by == NOBODY)
    indptr = np.zeros((n_explores, n_groups + 1), dtype=np.int64)
    n_before = np.concatenate([[0], np.cumsum(can.sum(axis=2).ravel())])
    for rule in range(n_explores):
        indptr[rule] = n_before[rule * n_groups : (rule + 1) * n_groups + 1]
    return indptr, np.nonzero(can)[2].astype(np.int32)


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


_mixed = njit(cache=True, nogil=True)(mixed)


@njit(cache=True, nogil=True)
def _ordered(boosted: np.ndarray, n: int, order: np.ndarray) -> None:
    """Insertion sort: nearly in order already. Ties stay as they were."""
    for at in range(n):
        place = at
        while place > 0 and boosted[order[place - 1]] < boosted[at]:
            order[place] = order[place - 1]
            place -= 1
        order[place] = at


@njit(cache=True, nogil=True)
def _liken(
    item: int,
    candidates: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    dense: np.ndarray,
    likeness: np.ndarray,
) -> None:
    """Raise each candidate's likeness to its cosine with an item that came on the list."""
    for at in range(indptr[item], indptr[item + 1]):
        dense[indices[at]] = data[at]
    for i in range(len(candidates)):
        cosine = 0.0
        for at in range(indptr[candidates[i]], indptr[candidates[i] + 1]):
            cosine += data[at] * dense[indices[at]]
        likeness[i] = max(likeness[i], cosine)
    for at in range(indptr[item], indptr[item + 1]):
        dense[indices[at]] = 0.0


@njit(cache=True, nogil=True)
def _rule(
    start: int,
    stop: int,
    proposed: np.ndarray,
    score: np.ndarray,
    list_indptr: np.ndarray,
    chain_items: np.ndarray,
    list_of_user: np.ndarray,
    hidden_indptr: np.ndarray,
    hidden_indices: np.ndarray,
    group_of_user: np.ndarray,
    removed_by: np.ndarray,
    factor: np.ndarray,
    bonus: np.ndarray,
    is_moved: np.ndarray,
    pins: np.ndarray,
    pinned_by: np.ndarray,
    explore_slots: np.ndarray,
    explore_rule: np.ndarray,
    pool_indptr: np.ndarray,
    pool_items: np.ndarray,
    draw_of_user: np.ndarray,
    draw_of_product: np.ndarray,
    quota_share: np.ndarray,
    quota_rule: np.ndarray,
    quota_members: np.ndarray,
    has_members: np.ndarray,
    diversity: np.ndarray,
    diversified_by: np.ndarray,
    term_indptr: np.ndarray,
    term_indices: np.ndarray,
    term_data: np.ndarray,
    cap_limit: np.ndarray,
    cap_rule: np.ndarray,
    cap_applies: np.ndarray,
    cap_code: np.ndarray,
    counts: np.ndarray,
    is_listed: np.ndarray,
    is_proposed: np.ndarray,
    dense: np.ndarray,
    items: np.ndarray,
    step_of: np.ndarray,
    candidate_of: np.ndarray,
    score_of: np.ndarray,
    cause: np.ndarray,
    placed_by: np.ndarray,
    probability: np.ndarray,
) -> None:
    k, n = proposed.shape[1], items.shape[1]
    n_quotas, n_caps = len(quota_share), len(cap_limit)
    boosted = np.empty(k)
    relevance = np.empty(k)
    likeness = np.empty(k)
    is_taken = np.empty(k, dtype=np.bool_)
    order = np.empty(k, dtype=np.int32)
    needs = np.empty(n_quotas, dtype=np.int64)
    chosen = np.empty(n, dtype=np.int32)
    chosen_candidate = np.empty(n, dtype=np.int32)
    chosen_step = np.empty(n, dtype=np.int8)
    drawn = np.empty(n, dtype=np.int32)
    drawn_number = np.empty(n, dtype=np.uint64)
    for row in range(start, stop):
        group = group_of_user[row]
        hidden = hidden_indices[hidden_indptr[row] : hidden_indptr[row + 1]]
        n_candidates = 0
        while n_candidates < k and proposed[row, n_candidates] >= 0:
            at = n_candidates
            item = proposed[row, at]
            value = score[row, at]
            if is_moved[group]:
                value += np.float64(bonus[group, item])
                value += (np.float64(factor[group, item]) - 1.0) * abs(value)
            boosted[at] = value
            cause[row, at] = removed_by[group, item]
            is_proposed[item] = True
            is_taken[at] = False
            order[at] = at
            n_candidates += 1
        if is_moved[group]:
            _ordered(boosted, n_candidates, order)
        for quota in range(n_quotas):
            least = np.int64(np.ceil(quota_share[quota] * n - 1e-9))
            needs[quota] = least if has_members[quota, group] else 0
        n_free = n
        for place in range(n):
            item = pins[group, place]
            if item < 0 or removed_by[group, item] >= 0 or _is_in(hidden, item):
                continue
            items[row, place] = item
            step_of[row, place] = PINNED
            placed_by[row, place] = pinned_by[group, place]
            n_free -= 1
            _list(item, group, needs, quota_members, counts, cap_applies, cap_code, is_listed)
        for explore in range(len(explore_slots)):
            slots = min(explore_slots[explore], n_free)
            n_pool, n_drawn = 0, 0
            for at in range(pool_indptr[explore, group], pool_indptr[explore, group + 1]):
                item = pool_items[at]
                # What the models propose needs no help.
                if is_listed[item] or is_proposed[item] or _is_in(hidden, item):
                    continue
                n_pool += 1
                number = _mixed(draw_of_user[row] ^ draw_of_product[item])
                if n_drawn < slots:
                    n_drawn += 1
                elif slots == 0 or number >= drawn_number[slots - 1]:
                    continue
                place = n_drawn - 1
                while place > 0 and drawn_number[place - 1] > number:
                    drawn[place], drawn_number[place] = drawn[place - 1], drawn_number[place - 1]
                    place -= 1
                drawn[place], drawn_number[place] = item, number
            for i in range(n_drawn):
                item = drawn[i]
                why = _capped_by(item, group, counts, cap_limit, cap_rule, cap_applies, cap_code)
                if why != NOBODY:
                    continue
                # Spread over the list; a pin that stands there is passed by.
                place = (i + 1) * n // (slots + 1)
                while items[row, place] >= 0:
                    place = (place + 1) % n
                items[row, place] = item
                step_of[row, place] = EXPLORED
                placed_by[row, place] = explore_rule[explore]
                probability[row, place] = min(1.0, slots / n_pool)
                n_free -= 1
                _list(item, group, needs, quota_members, counts, cap_applies, cap_code, is_listed)
        weight = diversity[group]
        candidates = proposed[row, :n_candidates]
        if weight > 0 and n_candidates > 0:
            best, worst = boosted[order[0]], boosted[order[n_candidates - 1]]
            for at in range(n_candidates):
                relevance[at] = (boosted[at] - worst) / (best - worst) if best > worst else 0.0
                likeness[at] = 0.0
            for place in range(n):
                if items[row, place] >= 0:
                    _liken(
                        items[row, place],
                        candidates,
                        term_indptr,
                        term_indices,
                        term_data,
                        dense,
                        likeness,
                    )
        n_chosen = 0
        for turn in range(2 if n_quotas else 1):
            # In the second turn what quotas asked for has run out.
            is_reserved = turn == 0 and _unmet(needs) >= n_free
            i = 0
            while i < n_candidates:
                if weight > 0:
                    # The best of all that are left; without diversity that is the next one.
                    next_one = -1
                    best_value = -np.inf
                    for j in range(n_candidates):
                        at = order[j]
                        value = (1 - weight) * relevance[at] - weight * likeness[at]
                        if not is_taken[at] and cause[row, at] == NOBODY and value > best_value:
                            next_one, best_value = j, value
                    if next_one < 0 or n_free == 0:
                        break
                    at = order[next_one]
                else:
                    at = order[i]
                    i += 1
                item = proposed[row, at]
                if n_free == 0 or is_taken[at] or removed_by[group, item] >= 0:
                    continue
                if is_listed[item]:
                    is_taken[at] = True
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
                is_taken[at] = True
                n_chosen += 1
                n_free -= 1
                _list(item, group, needs, quota_members, counts, cap_applies, cap_code, is_listed)
                is_reserved = turn == 0 and _unmet(needs) >= n_free
                if weight > 0:
                    _liken(item, candidates, term_indptr, term_indices, term_data, dense, likeness)
            for step in range(list_of_user.shape[1]):
                listed = list_of_user[row, step]
                if listed < 0 or n_free == 0:
                    continue
                for at in range(list_indptr[listed], list_indptr[listed + 1]):
                    item = chain_items[at]
                    # The rarest first: most of a long list helps no quota.
                    if is_reserved and not _helps(item, group, needs, quota_members):
                        continue
                    if is_listed[item] or removed_by[group, item] >= 0 or _is_in(hidden, item):
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
            if turn == 0 and n_quotas and weight > 0:
                # What a quota passed over may come after all.
                for at in range(n_candidates):
                    for quota in range(n_quotas):
                        is_passed_over = removed_by[group, proposed[row, at]] < 0
                        if is_passed_over and cause[row, at] == quota_rule[quota]:
                            cause[row, at] = NOBODY
        if weight > 0:
            _blame_diversity(
                n_candidates,
                n_chosen,
                boosted,
                is_taken,
                chosen_candidate,
                diversified_by[group],
                cause[row],
            )
        for at in range(n_candidates):
            is_proposed[proposed[row, at]] = False
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
        n_placed = 0
        for place in range(n):
            n_placed += items[row, place] >= 0
        taken = 0
        length = n_chosen + n_placed
        last = length - 1
        for at in range(n - 1, length - 1, -1):
            if items[row, at] < 0:
                continue
            while items[row, last] >= 0:
                last -= 1
            items[row, last], items[row, at] = items[row, at], NOTHING
            step_of[row, last], step_of[row, at] = step_of[row, at], NOTHING
            placed_by[row, last], placed_by[row, at] = placed_by[row, at], NOBODY
            probability[row, last], probability[row, at] = probability[row, at], np.nan
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


@njit(cache=True, nogil=True)
def _blame_diversity(
    n_candidates: int,
    n_chosen: int,
    boosted: np.ndarray,
    is_taken: np.ndarray,
    chosen_candidate: np.ndarray,
    rule: int,
    cause: np.ndarray,
) -> None:
    """Candidates better than one that was chosen, which nothing else keeps off the list."""
    least = np.inf
    for i in range(n_chosen):
        if chosen_candidate[i] >= 0:
            least = min(least, boosted[chosen_candidate[i]])
    for at in range(n_candidates):
        if not is_taken[at] and cause[at] == NOBODY and boosted[at] > least:
            cause[at] = rule


def ledger_frame(
    rules: RuleSet,
    ruled: RuledLists,
    proposed: np.ndarray,
    score: np.ndarray,
    matrix: SignalMatrix,
) -> pl.DataFrame:
    """RULE_LEDGER: every candidate that a rule removed or moved, every pin and draw, every repeat.

    A candidate that is neither on the list nor here came after the last one that was taken. A
    product that a repeat rule hides was no candidate, and has neither rank.

    Args:
        rules: Of these users.
        ruled: From `apply_rules`.
        proposed: `(n_users, k)` candidates.
        score: `(n_users, k)`, theirs.
        matrix: Gives ids.
    """
    rank_of_candidate = np.zeros(proposed.shape, dtype=np.int32)
    row, place = np.nonzero(ruled.candidate != NOTHING)
    rank_of_candidate[row, ruled.candidate[row, place]] = place + 1
    placed_row, placed_place = np.nonzero(ruled.placed_by != NOBODY)
    placed_item = ruled.items[placed_row, placed_place]
    # Pinned products that are candidates as well have an old rank.
    same = proposed[placed_row] == placed_item[:, None]
    old_of_placed = np.where(same.any(axis=1), same.argmax(axis=1) + 1, 0)
    was_placed = np.zeros(proposed.shape, dtype=bool)
    was_placed[placed_row[old_of_placed > 0], old_of_placed[old_of_placed > 0] - 1] = True

    group = rules.group_of_user[:, None]
    is_there = proposed != NOTHING
    mover = np.where(is_there, rules.moved_by[group, np.maximum(proposed, 0)], NOBODY)
    old_rank = np.arange(1, proposed.shape[1] + 1, dtype=np.int32)[None, :]
    is_removed = (ruled.cause != NOBODY) & (rank_of_candidate == 0) & ~was_placed
    is_moved = (rank_of_candidate > 0) & (rank_of_candidate != old_rank)
    # Its own score would have been enough.
    least = np.where(np.isfinite(ruled.score), ruled.score, np.inf).min(axis=1, initial=np.inf)
    is_pushed_off = (rank_of_candidate == 0) & ~was_placed & (score > least[:, None])
    rule = np.where(
        is_removed, ruled.cause, np.where(is_moved | is_pushed_off, mover, np.int16(NOBODY))
    )
    row, at = np.nonzero(rule != NOBODY)
    back_row, back_place, back_rule = _returned(rules, ruled)
    back_candidate = ruled.candidate[back_row, back_place]
    hidden_row = np.repeat(np.arange(len(proposed)), np.diff(rules.hidden.indptr))
    by_rule = rules.hidden.data != NOBODY
    unranked = np.zeros(int(by_rule.sum()), dtype=np.int32)
    parts = (
        (row, proposed[row, at], rule[row, at], at + 1, rank_of_candidate[row, at]),
        (
            placed_row,
            placed_item,
            ruled.placed_by[placed_row, placed_place],
            old_of_placed,
            placed_place + 1,
        ),
        (
            back_row,
            ruled.items[back_row, back_place],
            back_rule,
            np.where(back_candidate == NOTHING, 0, back_candidate + 1),
            back_place + 1,
        ),
        (
            hidden_row[by_rule],
            rules.hidden.indices[by_rule],
            rules.hidden.data[by_rule],
            unranked,
            unranked,
        ),
    )
    users, items, number, old, new = (
        np.concatenate([part[column] for part in parts]).astype(np.int64) for column in range(5)
    )
    return pl.DataFrame(
        {
            "user_id": matrix.user_ids.gather(users),
            "product_id": matrix.product_ids.gather(items),
            "rule_id": pl.Series([each.rule_id for each in rules.rules], dtype=pl.String).gather(
                number
            ),
            "action": pl.Series([each.action for each in rules.rules], dtype=pl.String).gather(
                number
            ),
            "old_rank": _null_for_0(old),
            "new_rank": _null_for_0(new),
        }
    ).match_to_schema(RULE_LEDGER)


def _returned(rules: RuleSet, ruled: RuledLists) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, place and rule of what is on a list although it was bought."""
    row, place = np.nonzero(ruled.items != NOTHING)
    if rules.returned.nnz == 0:
        return row[:0], place[:0], row[:0]
    keys = entry_keys(rules.returned)
    wanted = row.astype(np.int64) * rules.returned.shape[1] + ruled.items[row, place]
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    is_back = keys[at] == wanted
    return row[is_back], place[is_back], rules.returned.data[at[is_back]]


def _null_for_0(ranks: np.ndarray) -> pl.Series:
    return pl.Series(ranks, dtype=pl.Int32).replace(0, None)
