"""Which users, products and weeks a figure is taken over."""

from datetime import date

import numpy as np
import polars as pl

HEAD_SHARE = 0.5


def light_users(n_touched: np.ndarray) -> tuple[np.ndarray, int]:
    """Users with a short history: at most the median, so that both halves are about as large.

    Args:
        n_touched: `(n_users,)`, how many products each touched before the fold; users without any
            are cold, and neither light nor heavy.

    Returns:
        `(n_users,)` bool, and the bound: the most products a light user touched.
    """
    known = n_touched[n_touched > 0]
    bound = int(np.quantile(known, 0.5)) if len(known) else 0
    return (n_touched > 0) & (n_touched <= bound), bound


def product_segments(n_interactions: np.ndarray) -> dict[str, np.ndarray]:
    """Head, tail and new products, each `(n_items,)` bool; every product is in one of them.

    - `head`: the fewest products that make up half of all interactions.
    - `tail`: the others that anyone touched.
    - `new`: nobody touched them yet.

    Args:
        n_interactions: `(n_items,)`, how many users touched each before the fold.
    """
    order = np.lexsort((np.arange(len(n_interactions)), -n_interactions))
    before = np.cumsum(n_interactions[order]) - n_interactions[order]
    is_head = np.zeros(len(n_interactions), dtype=bool)
    is_head[order] = before < HEAD_SHARE * n_interactions.sum()
    is_new = n_interactions == 0
    is_head &= ~is_new
    return {"head": is_head, "tail": ~is_head & ~is_new, "new": is_new}


def weeks_after(moments: pl.Series, day: date) -> np.ndarray:
    """`(n,)` int64: 1 for the seven days after `day`, 2 for the next seven, and so on."""
    n_days = (moments.dt.date() - day).dt.total_days().to_numpy()
    return (n_days - 1) // 7 + 1
