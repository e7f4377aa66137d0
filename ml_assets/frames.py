"""The frames that cross a module border, by name.

What a table's columns mean is written once, in the YAML beside its dbt model; here are the
columns that Python relies on.
"""

import polars as pl


def _frame(**columns: pl.DataType | type[pl.DataType]) -> pl.Schema:
    return pl.Schema(columns)


SIGNALS = _frame(
    user_id=pl.String,
    product_id=pl.String,
    weight=pl.Float64,
    relative_weight=pl.Float64,
    n_carts=pl.Int32,
    n_purchases=pl.Int32,
    is_only_rated=pl.Boolean,
    is_training=pl.Boolean,
)

# With the day of each pair's latest event, so that the past can be cut short.
DATED_SIGNALS = pl.Schema({**SIGNALS, "last_at": pl.Datetime("us")})

PRODUCTS = _frame(
    product_id=pl.String,
    title=pl.String,
    text=pl.String,
    added_at=pl.Datetime("us"),
    is_available=pl.Boolean,
)

USERS = _frame(user_id=pl.String, segment=pl.String, favourite_category=pl.String)

POPULARITY = _frame(
    segment_type=pl.String,
    segment=pl.String,
    time_window=pl.String,
    rank=pl.Int32,
    product_id=pl.String,
)

HOLDOUT = _frame(
    user_id=pl.String,
    product_id=pl.String,
    n_purchases=pl.Int32,
    is_new=pl.Boolean,
    first_at=pl.Datetime("us"),
)

# What the models propose to one user, best first; a null score means: that model knows nothing
# of this user or this product.
CANDIDATES = _frame(
    user_id=pl.String,
    rank=pl.Int32,
    product_id=pl.String,
    score=pl.Float64,
    cf_score=pl.Float64,
    content_score=pl.Float64,
    source=pl.String,
)

RECOMMENDATIONS = _frame(
    user_id=pl.String,
    rank=pl.Int32,
    product_id=pl.String,
    score=pl.Float64,
    cf_score=pl.Float64,
    content_score=pl.Float64,
    source=pl.String,
    # hot: a user with much history; warm: with a little; cold: with none.
    temperature=pl.String,
    reason=pl.String,
    because_product_id=pl.String,
    # Of a row that was drawn at random (source explore): of being drawn.
    probability=pl.Float64,
)

# What rules did to candidates; new_rank is null for what is not on the list.
RULE_LEDGER = _frame(
    user_id=pl.String,
    product_id=pl.String,
    rule_id=pl.String,
    action=pl.String,
    old_rank=pl.Int32,
    new_rank=pl.Int32,
)

# How each list came about: hashes of the user's signals and of the rules, and what puts raw scores
# on one scale, z = (raw - mean) x inverse_deviation; null where the model knows nothing of them.
SCORED_USERS = _frame(
    user_id=pl.String,
    inputs_hash=pl.Int64,
    rules_hash=pl.Int64,
    cf_mean=pl.Float64,
    cf_inverse_deviation=pl.Float64,
    content_mean=pl.Float64,
    content_inverse_deviation=pl.Float64,
)

SIMILAR_PRODUCTS = _frame(
    product_id=pl.String, rank=pl.Int32, similar_product_id=pl.String, score=pl.Float64
)

# What similar_products reads beside the models.
PRODUCTS_BY_CATEGORY = pl.Schema({**PRODUCTS, **_frame(category=pl.String)})
SCORED_POPULARITY = pl.Schema({**POPULARITY, **_frame(score=pl.Float64)})

# With where a product's rows are from: similar, or category where nothing is like it.
SIMILAR_LISTS = pl.Schema({**SIMILAR_PRODUCTS, **_frame(source=pl.String)})

# One row per (fold, model, target, segment, metric). low and high bound the value's interval of
# 95 %, difference is value minus that of `compared_with` on the same users, with an interval of its
# own, and is_different says that this one excludes zero. Null where there is no such thing.
METRICS = _frame(
    fold=pl.String,
    model=pl.String,
    target=pl.String,
    segment=pl.String,
    metric=pl.String,
    value=pl.Float64,
    low=pl.Float64,
    high=pl.Float64,
    n_users=pl.Int64,
    compared_with=pl.String,
    difference=pl.Float64,
    difference_low=pl.Float64,
    difference_high=pl.Float64,
    is_different=pl.Boolean,
)

_OF_USERS = {
    "target": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n_users": pl.Int64,
}

# One row per (w_cf, target, metric): accuracy of the blend for other weights, over the users with a
# past of the fold of METRICS, or a sample of them.
BLEND_CURVE = pl.Schema({"w_cf": pl.Float64, "w_content": pl.Float64, **_OF_USERS})

# One row per (n_days, target, metric): accuracy of the blend for the same users, had the shop's
# records begun n_days before the fold; n_signals is what was left to learn from.
LEARNING_CURVE = pl.Schema({"n_days": pl.Int32, "n_signals": pl.Int64, **_OF_USERS})

_FIGURES_OF_LISTS = ("ndcg", "recall", "diversity", "margin", "margin_of_hits")

# One row per rule, and one for all of them together. The counts are of today's lists: rows that
# the rule kept off them, moved, placed (pinned, drawn, let come back), and users concerned. The
# figures are of lists of the fold of METRICS with all rules and without this one: difference is
# with minus without on the same users, low and high bound its interval of 95 %.
RULE_COST = pl.Schema(
    {
        "rule_id": pl.String,
        "action": pl.String,
        "n_users": pl.Int64,
        "n_kept_off": pl.Int64,
        "n_moved": pl.Int64,
        "n_placed": pl.Int64,
        "n_users_asked": pl.Int64,
        **{
            f"{name}_{what}": pl.Float64
            for name in _FIGURES_OF_LISTS
            for what in ("with", "without", "difference", "low", "high")
        },
    }
)

# One row per weight of a margin rule, beside the other rules: what lists of the fold of METRICS
# find, and what they earn; margin is the mean of what is shown, margin_of_hits the sum over what
# the user then went for.
MARGIN_CURVE = pl.Schema(
    {
        "weight": pl.Float64,
        "n_users": pl.Int64,
        **{
            f"{name}{what}": pl.Float64
            for name in ("ndcg", "recall", "margin", "margin_of_hits")
            for what in ("", "_low", "_high")
        },
    }
)

NEIGHBOURS = pl.Schema(
    [
        ("product_id", pl.String),
        ("item", pl.Int32),
        ("is_known", pl.Boolean),
        ("other_items", pl.List(pl.Int32)),
        ("weights", pl.List(pl.Float32)),
    ]
)

# What lists are made into, all in one transaction; table and what it says.
LIST_TABLES = {
    "candidates": "What the models propose to each user, with each model's score normalised per "
    "user. One row per (user, rank), best first.",
    "recommendations": "The list of every user, filled by the fallback chain where the models know "
    "too little, with a reason for each row. One row per (user, rank).",
    "rule_ledger": "Which candidates a rule removed or moved, and from which rank, and what it "
    "pinned, drew, hid or let come back; new_rank is null for what is not on the list. One row per "
    "(user, product, rule).",
    "scored_users": "What each user's list was made from, as a hash: a user whose hash is the same "
    "keeps the list; and the scale of each model's scores. One row per user.",
    "scored_products": "The catalogue the lists were made from, with the hash of the models. One "
    "row per product.",
}
