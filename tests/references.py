"""What the engines compute, the slow way: every pair is scored, in plain numpy.

Nothing here is fast or saves memory. It is short enough to be checked by reading.
"""

import numpy as np

from ml_assets.item_item import NOTHING


def inner_products(users, items, shifts=None):
    """Every user's score of every item in double precision, `(n_users, n_items)`.

    Summed along the vectors pair by pair, so that equal vectors give equal bits.
    """
    scores = (users[:, None].astype(float) * items[None].astype(float)).sum(axis=2)
    if shifts is not None:
        scores = scores + shifts.of_user.astype(float)[:, shifts.group_of_item]
    return scores


def full_sort(scores, *, exclude, eligible, k):
    """Positions of the k best allowed items of each row, ties by position, `NOTHING` behind."""
    best = np.full((len(scores), k), NOTHING)
    excluded = exclude.toarray() != 0
    for row, values in enumerate(scores):
        order = np.lexsort((np.arange(len(values)), -values))
        allowed = order[eligible[order] & ~excluded[row, order]][:k]
        best[row, : len(allowed)] = allowed
    return best


def blended(models, weights):
    """`sum of weight x z` over factor models, `(n_users, n_items)`; unknown is 0.

    z is taken over all products the model knows, and is 0 where they are all alike.
    """
    total = 0.0
    for model, weight in zip(models, weights, strict=True):
        z = standardised(inner_products(model.user_factors, model.item_factors), model)
        total = total + weight * np.nan_to_num(z)
    return total


def standardised(raw, model):
    """`(score - mean) / deviation` per user over the products the model knows.

    NaN where the model knows nothing of the user or the product; 0 without any deviation.
    """
    z = np.full(raw.shape, np.nan)
    for user in np.flatnonzero(model.knows_user):
        known = raw[user, model.knows_item]
        # A deviation that is only rounding is none.
        deviates = len(known) > 0 and known.std() > 1e-7 * np.abs(known).max()
        z[user, model.knows_item] = (known - known.mean()) / known.std() if deviates else 0.0
    return z


def nearest_dense(sources, targets, source_scale, target_scale):
    """`diag(source_scale) S' T diag(target_scale)` without its diagonal, dense."""
    product = sources.toarray().T.astype(float) @ targets.toarray().astype(float)
    np.fill_diagonal(product, 0)
    return source_scale[:, None] * product * target_scale[None]


def largest_positive(dense, k):
    """The k largest positive entries of each row, ties by the lower index; the others are 0."""
    kept = np.zeros_like(dense)
    for row, values in enumerate(dense):
        order = np.lexsort((np.arange(len(values)), -values))[:k]
        kept[row, order] = values[order]
    return np.maximum(kept, 0)


def largest_absolute(dense, k):
    """The k entries of largest absolute value of each row, ties by the lower index; else 0."""
    kept = np.zeros_like(dense)
    for row, values in enumerate(dense):
        order = np.lexsort((np.arange(len(values)), -np.abs(values)))[:k]
        kept[row, order] = values[order]
    return kept


def history_scores(model):
    """`history @ follows` in double precision, zeros for users the model does not know."""
    raw = model.history.toarray().astype(float) @ model.follows.toarray().astype(float)
    return raw * model.knows_user[:, None]


def scores_by_history(models):
    """What item-item models say of every pair.

    Returns:
        The weighted sum of z-scores `(n_users, n_items)`, -inf where no model arrives; and each
        model's own z-scores, NaN where it knows nothing.
    """
    raw = [history_scores(model) for model, _ in models]
    z = [standardised(scores, model) for scores, (model, _) in zip(raw, models, strict=True)]
    total = sum(weight * np.nan_to_num(part) for part, (_, weight) in zip(z, models, strict=True))
    arrives = np.any([scores != 0 for scores in raw], axis=0)
    return np.where(arrives, total, -np.inf), z


def largest_share(models, inverse_deviation, chosen):
    """Item of the user's history with the largest share in each chosen one's score.

    The share of j in i is `sum over models of weight / deviation x history[j] x follows[j, i]`.
    `NOTHING` where no share is above 0; never i itself; ties by the lower item.
    """
    history = models[0][0].history.toarray().astype(float)
    because = np.full(chosen.shape, NOTHING)
    for user, place in np.argwhere(chosen != NOTHING):
        item, share = chosen[user, place], 0.0
        for (model, weight), inverse in zip(models, inverse_deviation, strict=True):
            leads = model.follows.toarray()[:, item].astype(float)
            share = share + history[user] * leads * (weight * inverse[user])
        share[item] = 0.0
        if share.max() > 0:
            because[user, place] = share.argmax()
    return because


def ruled_list(
    *,
    n,
    k,
    items,
    score,
    chain,
    bought,
    removed,
    factor,
    bonus,
    pins,
    quotas,
    caps,
    explore,
    numbers,
    diversity,
    vectors,
):
    """One user's list by rules, as `ruled_lists` describes it.

    explore is (places, which products) of one rule, numbers the draw of each product; vectors are
    of length 1 or 0.
    """
    earning = {
        item: value + np.float64(np.float32(bonus[item]))
        for item, value in zip(items, score, strict=True)
    }
    boosted = {
        item: value + (np.float64(np.float32(factor[item])) - 1) * abs(value)
        for item, value in earning.items()
    }
    candidates = sorted(items, key=lambda item: -boosted[item])
    placed = {
        place: item
        for place, item in sorted(pins.items())
        if item not in removed and item not in bought
    }
    chosen: list[tuple[int, bool]] = []

    def listed():
        return [*placed.values(), *(item for item, _ in chosen)]

    def is_capped(item):
        return any(
            code[item] >= 0 and sum(code[other] == code[item] for other in listed()) >= limit
            for limit, code in caps
        )

    def open_quotas():
        found = []
        for share, members in quotas:
            need = int(np.ceil(share * n - 1e-9)) if any(members) else 0
            need -= sum(members[other] for other in listed())
            if need > 0:
                found.append((need, members))
        return found

    def is_reserved(item):
        helps = any(members[item] for _, members in open_quotas())
        asked = sum(need for need, _ in open_quotas())
        return not helps and asked >= n - len(listed())

    slots = min(explore[0], n - len(placed))
    pool = [
        item
        for item in np.flatnonzero(explore[1])
        if item not in {*removed, *bought, *items, *placed.values()}
    ]
    for i, item in enumerate(sorted(pool, key=lambda item: numbers[item])[:slots]):
        if is_capped(item):
            continue
        place = (i + 1) * n // (slots + 1)
        while place in placed:
            place = (place + 1) % n
        placed[place] = item

    values = list(boosted.values())
    spread = max(values, default=0) - min(values, default=0)

    def marginal(item):
        relevance = (boosted[item] - min(values)) / spread if spread else 0.0
        likeness = max([0.0, *(float(vectors[item] @ vectors[other]) for other in listed())])
        return round((1 - diversity) * relevance - diversity * likeness, 12)

    for ignores_quotas in (False, True):
        left = list(candidates)
        while left:
            item = max(left, key=marginal) if diversity else left[0]
            left.remove(item)
            if (
                len(listed()) < n
                and not {item} & {*removed, *listed()}
                and not is_capped(item)
                and (ignores_quotas or not is_reserved(item))
            ):
                chosen.append((item, True))
        for item in (item for each in chain for item in each):
            if (
                len(listed()) < n
                and not {item} & {*removed, *listed(), *bought}
                and not is_capped(item)
                and (ignores_quotas or not is_reserved(item))
            ):
                chosen.append((item, False))
    of_candidates = sorted(
        (item for item, is_candidate in chosen if is_candidate), key=lambda item: -boosted[item]
    )
    rest = of_candidates + [item for item, is_candidate in chosen if not is_candidate]
    length = len(listed())
    result = []
    late = [item for place, item in sorted(placed.items()) if place >= length]
    for place in range(length):
        if place in placed:
            result.append(placed[place])
        elif rest:
            result.append(rest.pop(0))
        else:
            result.append(late.pop(0))
    return result
