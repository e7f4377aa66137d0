"""Business rules as data: what a merchandiser writes, checked and turned into arrays.

Belongs here: reading `staging.merchandising_rules`, refusing what makes no sense, evaluating
predicates. Does not belong here: what rules do to a list (`ruled_lists.py`).

A predicate is parsed and looked at node by node before it is run: comparisons, and, or, not, in,
between, is null, like, a few functions, constants, and columns of the product and of the user. It
sees two relations and cannot name others.
"""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import date
from typing import Any

import duckdb
import numpy as np
import polars as pl
import scipy.sparse as sp

from ml_assets.rule_set import (
    EVENTS,
    MOST_CELLS,
    NOBODY,
    Catalogue,
    Evaluated,
    Rule,
    RulesError,
    RuleSet,
    combine,
)
from ml_assets.signal_matrix import SignalMatrix, positions

RULES = pl.Schema(
    {
        "rule_id": pl.String,
        "action": pl.String,
        "predicate": pl.String,
        "value": pl.Float64,
        "by_column": pl.String,
        "starts_on": pl.Date,
        "ends_on": pl.Date,
    }
)
RULES_IN_FORCE = pl.Schema(
    {
        "position": pl.Int32,
        "rule_id": pl.String,
        "action": pl.String,
        "predicate": pl.String,
        "value": pl.Float64,
        "by_column": pl.String,
        "restricts": pl.Boolean,
    }
)
# In the order in which they are applied.
ACTIONS = (
    "exclude", "require", "repeat", "margin", "boost", "pin", "explore", "quota", "diversify", "cap"
)  # fmt: skip
# When users last did something with a product, and when they last bought it.
LAST_DONE = """
    select user_id, product_id, last_at::date as last_on, last_bought_on
    from marts.signals
    left join marts.bought using (user_id, product_id)
"""
# In RULE_COST.
ALL_RULES = "(all rules)"
# What cap means without a value.
CAPS = {"category": 3, "brand": 2}
PRICE_BANDS = 5

_CLASSES = {"COMPARISON", "CONJUNCTION", "CONSTANT", "COLUMN_REF", "OPERATOR", "BETWEEN"}
_FUNCTIONS = {
    "~~", "!~~", "~~*", "!~~*", "lower", "upper", "trim", "contains", "starts_with", "ends_with",
    "coalesce", "abs", "round", "+", "-", "*", "/",
}  # fmt: skip
_TYPES = {"date", "timestamp", "double", "integer", "bigint", "varchar", "boolean"}


def active_rules(frame: pl.DataFrame, *, as_of: date) -> list[Rule]:
    """The rules of a day, in the order in which they are applied.

    Args:
        frame: RULES.
        as_of: The day.

    Raises:
        RulesError: for rows that make no sense, whatever their dates; predicates are not looked at.
    """
    problems = list(_problems_of_rows(frame))
    if problems:
        raise RulesError("; ".join(problems))
    active = frame.filter(
        pl.col("starts_on").is_null() | (pl.col("starts_on") <= as_of),
        pl.col("ends_on").is_null() | (pl.col("ends_on") >= as_of),
    )
    return in_order([_rule_of(row) for row in active.iter_rows(named=True)])


def _rule_of(row: Mapping[str, Any]) -> Rule:
    return Rule(
        rule_id=row["rule_id"],
        action=row["action"],
        predicate=row["predicate"],
        value=CAPS.get(row["by_column"]) if _is_default_cap(row) else row["value"],
        by_column=row["by_column"],
    )


def in_order(rules: Sequence[Rule]) -> list[Rule]:
    """As they are applied: by action, then by rule_id."""
    return sorted(rules, key=lambda rule: (ACTIONS.index(rule.action), rule.rule_id))


def write_rules(connection: duckdb.DuckDBPyConnection, rules: Sequence[Rule]) -> None:
    """ml.rules_in_force: what the lists were made by, in the order of application."""
    frame = pl.DataFrame(
        [
            (position, *astuple(rule), rule.restricts)
            for position, rule in enumerate(rules, start=1)
        ],
        schema=RULES_IN_FORCE,
        orient="row",
    )
    connection.register("in_force", frame.to_arrow())
    connection.execute("create or replace table ml.rules_in_force as from in_force")


def read_rules_in_force(connection: duckdb.DuckDBPyConnection) -> list[Rule]:
    """What `write_rules` wrote."""
    rows = connection.execute(
        "select rule_id, action, predicate, value, by_column from ml.rules_in_force"
        " order by position"
    ).fetchall()
    return [Rule(*row) for row in rows]


def count_rows(connection: duckdb.DuckDBPyConnection, cost: pl.DataFrame) -> pl.DataFrame:
    """RULE_COST with what the ledger counts; the row without an action is about all rules."""
    counted = connection.sql(
        """
        select
            rule_id,
            count(distinct user_id) as n_users,
            count(*) filter (new_rank is null) as n_kept_off,
            count(*) filter (new_rank is not null and action in ('boost', 'margin')) as n_moved,
            count(*) filter (new_rank is not null and action not in ('boost', 'margin'))
                as n_placed
        from ml.rule_ledger
        group by grouping sets ((rule_id), ())
        """
    ).pl()
    named = counted.with_columns(pl.col("rule_id").fill_null(ALL_RULES))
    return (
        cost.drop("n_users", "n_kept_off", "n_moved", "n_placed")
        .join(named, on="rule_id", how="left", maintain_order="left")
        .with_columns(pl.col("n_users", "n_kept_off", "n_moved", "n_placed").fill_null(0))
        .select(cost.columns)
    )


def _is_default_cap(row: Mapping[str, Any]) -> bool:
    return row["action"] == "cap" and row["value"] is None


def _problems_of_rows(frame: pl.DataFrame) -> Iterator[str]:
    seen: set[str] = set()
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        name, action, value = row["rule_id"], row["action"], row["value"]
        if not (name and name.strip()):
            yield f"row {number} has no rule_id"
            continue
        if name in seen:
            yield f"rule {name} is there twice"
        seen.add(name)
        if action not in ACTIONS:
            yield f"rule {name}: there is no action {action!r}; choose from {', '.join(ACTIONS)}"
            continue
        if row["starts_on"] and row["ends_on"] and row["starts_on"] > row["ends_on"]:
            yield f"rule {name} ends on {row['ends_on']}, before it starts on {row['starts_on']}"
        wants, is_right = {
            "repeat": ("days, or nothing for good,", value is None or _is_count(value)),
            "boost": ("a factor above 0", _is_within(value, np.inf)),
            "margin": ("a weight above 0", _is_within(value, np.inf)),
            "pin": ("a rank from 1", _is_count(value)),
            "explore": ("how many places, at least 1,", _is_count(value)),
            "quota": ("a share above 0, at most 1,", _is_within(value, 1)),
            "diversify": ("a weight above 0, at most 1,", _is_within(value, 1)),
            "cap": (
                "how many, at least 1,",
                _is_count(value) or (value is None and row["by_column"] in CAPS),
            ),
        }.get(action, ("nothing", value is None))
        if not is_right:
            yield f"rule {name}: {action} wants {wants} as value, got {value}"
        if action == "repeat" and row["by_column"] not in (None, *EVENTS):
            yield (
                f"rule {name}: repeat wants an event as by_column, one of {', '.join(EVENTS)}, got "
                f"{row['by_column']}"
            )
        if action == "cap" and not row["by_column"]:
            yield f"rule {name}: cap wants a product column as by_column"


def _is_count(value: float | None) -> bool:
    return value is not None and value >= 1 and float(value).is_integer()


def _is_within(value: float | None, most: float) -> bool:
    return value is not None and 0 < value <= most and np.isfinite(value)


# Of the relations that predicates can name.
Columns = Mapping[str, Sequence[str]]


def compile_rules(
    connection: duckdb.DuckDBPyConnection,
    rules: Sequence[Rule],
    *,
    matrix: SignalMatrix,
    relations: Callable[[], Columns],
    days_since: Callable[[], np.ndarray],
    terms: Callable[[], sp.csr_matrix | None],
    top_n: int,
    seed: int,
) -> RuleSet | None:
    """Evaluate the rules over `marts.users` and `marts.products`; None without any rule.

    Args:
        connection: The warehouse, for writing temporary tables.
        rules: From `active_rules`.
        matrix: Users, products, and what one did with the other. Rules on users apply to nobody
            who is not in marts.users.
        relations: See `make_relations`; only called if there is a rule.
        days_since: Gives what `rule_set.days_between` gives; only called for a repeat rule.
        terms: Gives what lists are diverse by, `(n_products, d)`; only called if a rule asks.
        top_n: Rows a user.
        seed: Of exploring.

    Raises:
        RulesError: naming each rule that cannot be run, that leaves some users nothing, or that
            contradicts another.
    """
    if not rules:
        return None
    columns = relations()
    problems: list[str] = []
    parsed = []
    for rule in rules:
        try:
            parsed.append(_parse(connection, rule, columns))
        except RulesError as error:
            problems.append(str(error))
    if problems:
        raise RulesError("; ".join(problems))
    evaluated = []
    for rule, predicate in zip(rules, parsed, strict=True):
        try:
            evaluated.append(_evaluate(connection, rule, predicate, matrix))
        except duckdb.Error as error:
            problems.append(f"rule {rule.rule_id}: {str(error).splitlines()[0]}")
        except RulesError as error:
            problems.append(str(error))
    if problems:
        raise RulesError("; ".join(problems))
    return combine(
        rules,
        evaluated,
        catalogue=_catalogue(connection, rules, matrix.product_ids, terms),
        matrix=matrix,
        days_since=days_since,
        top_n=top_n,
        seed=seed,
    )


def problems_to_come(
    connection: duckdb.DuckDBPyConnection,
    frame: pl.DataFrame,
    *,
    as_of: date,
    relations: Callable[[], Columns],
) -> list[str]:
    """Sentences on rules that would stop the run of the day on which they start.

    Not errors: what such a rule names may be in the catalogue by then.

    Args:
        connection: The warehouse.
        frame: RULES, as `active_rules` takes it.
        as_of: The day.
        relations: As for `compile_rules`; only called if a rule is to come.
    """
    coming = frame.filter(pl.col("starts_on") > as_of)
    problems = []
    columns = relations() if len(coming) else {}
    for row in coming.sort("starts_on", "rule_id").iter_rows(named=True):
        try:
            _parse(connection, _rule_of(row), columns)
        except RulesError as error:
            problems.append(f"{error}. On {row['starts_on']}, when it starts, no run would publish")
    return problems


@dataclass(frozen=True)
class _Predicate:
    """A predicate in three parts, SQL each: of the user alone, and the rest."""

    of_user: str
    rest: str
    user_columns: tuple[str, ...]


def make_relations(connection: duckdb.DuckDBPyConnection, as_of: date) -> Columns:
    """Write temp.rules_product and temp.rules_user, what predicates can name.

    Args:
        connection: The warehouse, for writing temporary tables.
        as_of: What a product's age is counted to.

    Returns:
        The columns of `product` and `user`: the marts' own, what is derived from them, and the
        further columns of the shop's files, but for those whose name is taken.
    """
    derived = {
        "product": "date_diff('day', added_at, $as_of::date) as age_days,"
        f" case when price is not null then ntile({PRICE_BANDS}) over ("
        "partition by price is null order by price, product_id) end as price_band,",
        "user": "date_diff('day', last_at, $as_of::date) as days_away,",
    }
    for name, expressions in derived.items():
        select = f"select {expressions} * exclude (attributes)"
        described = connection.execute(
            f"describe {select} from marts.{name}s", {"as_of": as_of}
        ).fetchall()
        # A column without a name is none that a condition could name.
        taken = {"", *(column.lower() for column, *_ in described)}
        further = ""
        for (key,) in connection.execute(
            f"select distinct unnest(json_keys(attributes)) as key from marts.{name}s"
            " where attributes is not null order by key"
        ).fetchall():
            if key.lower() not in taken:
                taken.add(key.lower())
                # https://www.rfc-editor.org/rfc/rfc6901
                pointer = "/" + key.replace("~", "~0").replace("/", "~1").replace("'", "''")
                further += f", json_extract_string(attributes, '{pointer}') as {_quoted(key)}"
        connection.execute(
            f"create or replace temp table rules_{name} as {select}{further} from marts.{name}s",
            {"as_of": as_of},
        )
    return {
        name: [row[0] for row in connection.execute(f"describe temp.rules_{name}").fetchall()]
        for name in derived
    }


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _parse(connection: duckdb.DuckDBPyConnection, rule: Rule, columns: Columns) -> _Predicate:
    if rule.by_column is not None and rule.action == "cap":
        _require_column(rule, "product", rule.by_column, columns)
    text = (rule.predicate or "").strip()
    if not text:
        return _Predicate("true", "true", ())
    ((serialized,),) = connection.execute(
        "select json_serialize_sql($sql)", {"sql": f"select {text}"}
    ).fetchall()
    tree = json.loads(serialized)
    if tree.get("error"):
        raise RulesError(
            f"rule {rule.rule_id}: {text!r} is not a condition ({tree['error_message']})"
        )
    node = tree["statements"][0]["node"] if len(tree["statements"]) == 1 else {}
    is_bare = (
        node.get("type") == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"]["type"] == "EMPTY"
        and not node["modifiers"]
        and not node["cte_map"]["map"]
        and not any(node.get(key) for key in ("where_clause", "having", "qualify", "sample"))
        and not node["group_expressions"]
    )
    if not is_bare or node["select_list"][0].get("alias"):
        raise RulesError(f"rule {rule.rule_id}: {text!r} is more than a condition")
    root = node["select_list"][0]
    is_and = root.get("type") == "CONJUNCTION_AND"
    of_user, rest, mixed = [], [], set()
    for each in root["children"] if is_and else [root]:
        found = {_resolve(rule, reference, columns) for reference in _references(rule, each)}
        sql = _text_of(connection, tree, each)
        if found and all(relation == "user" for relation, _ in found):
            of_user.append(sql)
        else:
            rest.append(sql)
            mixed |= {column for relation, column in found if relation == "user"}
    return _Predicate(_all_of(of_user), _all_of(rest), tuple(sorted(mixed)))


def _all_of(conditions: Sequence[str]) -> str:
    return " and ".join(f"({each})" for each in conditions) or "true"


def _references(rule: Rule, node: Any) -> Iterator[dict[str, Any]]:
    """Column references of an expression; refuses whatever is not on the list."""
    if isinstance(node, list):
        for each in node:
            yield from _references(rule, each)
        return
    if not isinstance(node, dict):
        return
    kind = node.get("class")
    if kind == "COLUMN_REF":
        yield node
        return
    if kind == "FUNCTION":
        name = node["function_name"]
        if name not in _FUNCTIONS:
            raise RulesError(
                f"rule {rule.rule_id}: {name} is not a function rules know; they know "
                f"{', '.join(sorted(each for each in _FUNCTIONS if each.isidentifier()))}"
            )
        for argument in node["arguments"]:
            yield from _references(rule, argument["expression"])
        return
    if kind == "CAST":
        if node["type_expr"]["type_name"].lower() not in _TYPES:
            raise RulesError(
                f"rule {rule.rule_id}: a value cannot become {node['type_expr']['type_name']}; "
                f"choose from {', '.join(sorted(_TYPES))}"
            )
        yield from _references(rule, node["child"])
        return
    if kind is not None and kind not in _CLASSES:
        raise RulesError(
            f"rule {rule.rule_id}: {kind.lower()} is not allowed in a condition; use comparisons, "
            "and, or, not, in, between, is null and like over columns of product and user"
        )
    for value in node.values():
        yield from _references(rule, value)


def _resolve(rule: Rule, node: dict[str, Any], columns: Columns) -> tuple[str, str]:
    """Which relation and column is meant; a name without relation is written out in the tree."""
    names = node["column_names"]
    if len(names) == 1:
        found = [relation for relation in ("product", "user") if names[0] in columns[relation]]
        if len(found) == 2:
            raise RulesError(
                f"rule {rule.rule_id}: {names[0]} is a column of both; write product.{names[0]} or "
                f"user.{names[0]}"
            )
        if not found:
            _require_column(rule, "product", names[0], columns)
        node["column_names"] = [found[0], names[0]]
        return found[0], names[0]
    if len(names) != 2 or names[0] not in columns:
        raise RulesError(
            f"rule {rule.rule_id}: {'.'.join(names)} is no column; write product.<column> or "
            "user.<column>"
        )
    _require_column(rule, names[0], names[1], columns)
    return names[0], names[1]


def _require_column(rule: Rule, relation: str, name: str, columns: Columns) -> None:
    if name in columns[relation]:
        return
    near = difflib.get_close_matches(name, columns[relation], n=1)
    meant = f"; did you mean {near[0]}?" if near else "."
    raise RulesError(
        f"rule {rule.rule_id}: {relation} has no column {name}{meant} It has "
        f"{', '.join(sorted(columns[relation]))}"
    )


def _text_of(connection: duckdb.DuckDBPyConnection, tree: dict[str, Any], node: Any) -> str:
    """The SQL of one expression of a parsed statement."""
    statement = json.loads(json.dumps(tree))
    statement["statements"][0]["node"]["select_list"] = [node]
    ((sql,),) = connection.execute(
        "select json_deserialize_sql($tree::json)", {"tree": json.dumps(statement)}
    ).fetchall()
    return str(sql).strip().removeprefix("SELECT ").rstrip(";")


def _evaluate(
    connection: duckdb.DuckDBPyConnection,
    rule: Rule,
    predicate: _Predicate,
    matrix: SignalMatrix,
) -> Evaluated:
    user_ids, product_ids = matrix.user_ids, matrix.product_ids
    n_users, n_products = len(user_ids), len(product_ids)
    columns = [_quoted(column) for column in predicate.user_columns]
    keys = ", ".join(columns)
    connection.execute(
        f"create or replace temp table rules_kind as with kinds as"
        f' (select distinct {keys or "1 as one"} from temp.rules_user as "user")'
        f" select *, row_number() over (order by {keys or 'one'}) - 1 as kind from kinds"
    )
    ((n_kinds,),) = connection.execute("select count(*) from temp.rules_kind").fetchall()
    if n_kinds * n_products > MOST_CELLS:
        raise RulesError(
            f"rule {rule.rule_id} compares users and products in {n_kinds:,} x {n_products:,} ways,"
            f" more than {MOST_CELLS:,}; compare fewer or coarser columns of the user"
        )
    is_same = (
        " and ".join(f'"user".{column} is not distinct from kinds.{column}' for column in columns)
        or "true"
    )
    users = connection.sql(
        f'select "user".user_id, coalesce({predicate.of_user}, false) as applies, kinds.kind'
        f' from temp.rules_user as "user" inner join temp.rules_kind as kinds on {is_same}'
    ).pl()
    applies, kind = np.zeros(n_users, dtype=bool), np.zeros(n_users, dtype=np.int64)
    users = users.filter(pl.col("user_id").is_in(user_ids.implode()))
    at = positions(users["user_id"], user_ids)
    applies[at], kind[at] = users["applies"].to_numpy(), users["kind"].to_numpy()
    pairs = connection.sql(
        f'select "user".kind, product.product_id from temp.rules_kind as "user"'
        f" cross join temp.rules_product as product where coalesce({predicate.rest}, false)"
    ).pl()
    pairs = pairs.filter(pl.col("product_id").is_in(product_ids.implode()))
    matches = np.zeros((n_kinds, n_products), dtype=bool)
    matches[pairs["kind"].to_numpy(), positions(pairs["product_id"], product_ids)] = True
    return Evaluated(applies, kind, matches)


def _catalogue(
    connection: duckdb.DuckDBPyConnection,
    rules: Sequence[Rule],
    product_ids: pl.Series,
    terms: Callable[[], sp.csr_matrix | None],
) -> Catalogue:
    counted = [
        (number, _quoted(rule.by_column))
        for number, rule in enumerate(rules)
        if rule.action == "cap" and rule.by_column
    ]
    codes = [
        f"dense_rank() over (partition by {column} is null order by {column})"
        f" * ({column} is not null)::integer - 1 as code_{number}"
        for number, column in counted
    ]
    found = connection.sql(
        "select product_id, is_available, margin::double as margin"
        f"{''.join(f', {code}' for code in codes)} from temp.rules_product"
    ).pl()
    found = found.filter(pl.col("product_id").is_in(product_ids.implode()))
    at = positions(found["product_id"], product_ids)

    def arranged(column: str, missing: bool | float | int, dtype: type) -> np.ndarray:
        values: np.ndarray = np.full(len(product_ids), missing, dtype=dtype)
        values[at] = found[column].fill_null(missing).to_numpy()
        return values

    return Catalogue(
        available=arranged("is_available", False, np.bool_),
        margin=arranged("margin", np.nan, np.float64),
        codes={
            rule.rule_id: arranged(f"code_{number}", NOBODY, np.int32)
            for number, rule in enumerate(rules)
            if rule.action == "cap"
        },
        terms=terms,
    )
