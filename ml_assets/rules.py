"""Business rules as data: what a merchandiser writes, checked and turned into arrays.

Belongs here: reading `staging.merchandising_rules`, refusing what makes no sense, evaluating
predicates. Does not belong here: what rules do to a list (`ruled_lists.py`).

A predicate is parsed and looked at node by node before it is run: comparisons, and, or, not, in,
between, is null, like, a few functions, constants, and columns of the product and of the user. It
sees two relations and cannot name others.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import date
from typing import Any

import duckdb
import numpy as np
import polars as pl

from ml_assets.signal_matrix import positions

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
ACTIONS = ("exclude", "require", "boost", "pin", "quota", "cap")
# What cap means without a value.
CAPS = {"category": 3, "brand": 2}
# What rules can take: a byte or a few for each product and group of users that rules tell apart.
MOST_CELLS = 20_000_000
PRICE_BANDS = 5

_CLASSES = {"COMPARISON", "CONJUNCTION", "CONSTANT", "COLUMN_REF", "OPERATOR", "BETWEEN"}
_FUNCTIONS = {
    "~~", "!~~", "~~*", "!~~*", "lower", "upper", "trim", "contains", "starts_with", "ends_with",
    "coalesce", "abs", "round", "+", "-", "*", "/",
}  # fmt: skip
_TYPES = {"date", "timestamp", "double", "integer", "bigint", "varchar", "boolean"}
NOBODY = -1


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
        return self.action in ("exclude", "require", "cap")


@dataclass(frozen=True)
class RuleSet:
    """Rules as arrays. Users whom rules treat alike are a group.

    Attributes:
        rules: In the order in which they are applied; arrays below hold positions in it.
        group_of_user: `(n_users,)` int32.
        digest_of_group: `(n_groups,)` int64, changes with anything that rules say to the group.
        removed_by: `(n_groups, n_products)` int16, the exclude or require that keeps the product
            off the list, or `NOBODY`.
        factor: `(n_groups, n_products)` float32, what boosts make of 1.
        boosted_by: `(n_groups, n_products)` int16, the last boost, or `NOBODY`.
        pins: `(n_groups, top_n)` int32, the product of each rank, or `NOBODY`.
        pinned_by: `(n_groups, top_n)` int16.
        quota_share: `(n_quotas,)` float64.
        quota_rule: `(n_quotas,)` int16.
        quota_members: `(n_quotas, n_groups, n_products)` bool.
        cap_limit: `(n_caps,)` int64.
        cap_rule: `(n_caps,)` int16.
        cap_applies: `(n_caps, n_groups)` bool.
        cap_code: `(n_caps, n_products)` int32, which value a product has; `NOBODY`: not counted.
    """

    rules: tuple[Rule, ...]
    group_of_user: np.ndarray
    digest_of_group: np.ndarray
    removed_by: np.ndarray
    factor: np.ndarray
    boosted_by: np.ndarray
    pins: np.ndarray
    pinned_by: np.ndarray
    quota_share: np.ndarray
    quota_rule: np.ndarray
    quota_members: np.ndarray
    cap_limit: np.ndarray
    cap_rule: np.ndarray
    cap_applies: np.ndarray
    cap_code: np.ndarray

    def for_users(self, rows: np.ndarray) -> "RuleSet":
        """The same for these users, in this order."""
        return replace(self, group_of_user=self.group_of_user[rows])


def active_rules(frame: pl.DataFrame, *, as_of: date) -> list[Rule]:
    """The rules of a day, in the order in which they are applied: by action, then by rule_id.

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
    rules = [
        Rule(
            rule_id=row["rule_id"],
            action=row["action"],
            predicate=row["predicate"],
            value=CAPS.get(row["by_column"]) if _is_default_cap(row) else row["value"],
            by_column=row["by_column"],
        )
        for row in active.iter_rows(named=True)
    ]
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
            "boost": ("a factor above 0", value is not None and 0 < value < float("inf")),
            "pin": ("a rank from 1", _is_count(value)),
            "quota": ("a share above 0, at most 1", value is not None and 0 < value <= 1),
            "cap": ("how many, at least 1", _is_count(value) or row["by_column"] in CAPS),
        }.get(action, ("nothing", True))
        if not is_right or (action == "cap" and value is not None and not _is_count(value)):
            yield f"rule {name}: {action} wants {wants} as value, got {value}"
        if action == "cap" and not row["by_column"]:
            yield f"rule {name}: cap wants a product column as by_column"


def _is_count(value: float | None) -> bool:
    return value is not None and value >= 1 and value == int(value)


def compile_rules(
    connection: duckdb.DuckDBPyConnection,
    rules: Sequence[Rule],
    *,
    user_ids: pl.Series,
    product_ids: pl.Series,
    as_of: date,
    top_n: int,
) -> RuleSet | None:
    """Evaluate the rules over `marts.users` and `marts.products`; None without any rule.

    Args:
        connection: The warehouse, for writing temporary tables.
        rules: From `active_rules`.
        user_ids: The order of users, each in marts.users.
        product_ids: The order of products, each in marts.products.
        as_of: What a product's age is counted to.
        top_n: Rows a user.

    Raises:
        RulesError: naming each rule that cannot be run, that leaves some users nothing, or that
            contradicts another.
    """
    if not rules:
        return None
    _make_relations(connection, as_of)
    columns = {
        name: [row[0] for row in connection.execute(f"describe temp.rules_{name}").fetchall()]
        for name in ("product", "user")
    }
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
            evaluated.append(_evaluate(connection, rule, predicate, user_ids, product_ids))
        except duckdb.Error as error:
            problems.append(f"rule {rule.rule_id}: {str(error).splitlines()[0]}")
        except RulesError as error:
            problems.append(str(error))
    if problems:
        raise RulesError("; ".join(problems))
    available = _available(connection, product_ids)
    codes = [_codes(connection, rule, product_ids) for rule in rules]
    return _combine(rules, evaluated, codes, available, product_ids, top_n)


@dataclass(frozen=True)
class _Predicate:
    """A predicate in three parts, SQL each: of the user alone, and the rest."""

    of_user: str
    rest: str
    user_columns: tuple[str, ...]


def _make_relations(connection: duckdb.DuckDBPyConnection, as_of: date) -> None:
    """temp.rules_product and temp.rules_user: what predicates can name."""
    derived = {
        "product": "date_diff('day', added_at, $as_of::date) as age_days,"
        f" case when price is not null then ntile({PRICE_BANDS}) over ("
        "partition by price is null order by price, product_id) end as price_band,",
        "user": "date_diff('day', last_at, $as_of::date) as days_away,",
    }
    for name, expressions in derived.items():
        keys = connection.execute(
            f"select distinct unnest(json_keys(attributes)) as key from marts.{name}s"
            " where attributes is not null order by key"
        ).fetchall()
        quoted = [(key.replace("'", "''"), key.replace('"', '""')) for (key,) in keys]
        further = "".join(
            f"""json_extract_string(attributes, '$."{path}"') as "{column}","""
            for path, column in quoted
        )
        connection.execute(
            f"create or replace temp table rules_{name} as"
            f" select {expressions} {further} * exclude (attributes) from marts.{name}s",
            {"as_of": as_of},
        )


def _parse(
    connection: duckdb.DuckDBPyConnection, rule: Rule, columns: Mapping[str, Sequence[str]]
) -> _Predicate:
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


def _resolve(
    rule: Rule, node: dict[str, Any], columns: Mapping[str, Sequence[str]]
) -> tuple[str, str]:
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


def _require_column(
    rule: Rule, relation: str, name: str, columns: Mapping[str, Sequence[str]]
) -> None:
    if name in columns[relation]:
        return
    near = difflib.get_close_matches(name, columns[relation], n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
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


@dataclass(frozen=True)
class _Evaluated:
    """A rule's answers: to whom it applies, and for each kind of them about which products."""

    applies: np.ndarray
    kind_of_user: np.ndarray
    matches: np.ndarray


def _evaluate(
    connection: duckdb.DuckDBPyConnection,
    rule: Rule,
    predicate: _Predicate,
    user_ids: pl.Series,
    product_ids: pl.Series,
) -> _Evaluated:
    n_users, n_products = len(user_ids), len(product_ids)
    keys = ", ".join(f'"{column}"' for column in predicate.user_columns)
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
        " and ".join(
            f'"user"."{column}" is not distinct from kinds."{column}"'
            for column in predicate.user_columns
        )
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
    return _Evaluated(applies, kind, matches)


def _available(connection: duckdb.DuckDBPyConnection, product_ids: pl.Series) -> np.ndarray:
    found = connection.sql("select product_id from temp.rules_product where is_available").pl()
    available = np.zeros(len(product_ids), dtype=bool)
    available[positions(found["product_id"], product_ids)] = True
    return available


def _codes(
    connection: duckdb.DuckDBPyConnection, rule: Rule, product_ids: pl.Series
) -> np.ndarray | None:
    """Of a cap: `(n_products,)` int32 which value of the column each product has."""
    if rule.action != "cap":
        return None
    codes = connection.sql(
        f'select product_id, dense_rank() over (order by "{rule.by_column}") - 1 as code'
        f' from temp.rules_product where "{rule.by_column}" is not null'
    ).pl()
    found = np.full(len(product_ids), NOBODY, dtype=np.int32)
    found[positions(codes["product_id"], product_ids)] = codes["code"].to_numpy()
    return found


def _combine(
    rules: Sequence[Rule],
    evaluated: Sequence[_Evaluated],
    codes: Sequence[np.ndarray | None],
    available: np.ndarray,
    product_ids: pl.Series,
    top_n: int,
) -> RuleSet:
    keys = np.column_stack([np.where(each.applies, each.kind_of_user + 1, 0) for each in evaluated])
    group_keys, group_of_user = np.unique(keys, axis=0, return_inverse=True)
    n_groups, n_products = len(group_keys), len(product_ids)
    if n_groups * n_products > MOST_CELLS:
        raise RulesError(
            f"the rules tell {n_groups:,} groups of users apart, which with {n_products:,} products"
            f" is more than {MOST_CELLS:,}; use fewer or coarser columns of the user"
        )
    n_of_group = np.bincount(group_of_user.ravel(), minlength=n_groups)
    shape = (n_groups, n_products)
    removed_by = np.full(shape, NOBODY, dtype=np.int16)
    factor, boosted_by = np.ones(shape, np.float32), np.full(shape, NOBODY, np.int16)
    pins = np.full((n_groups, top_n), NOBODY, dtype=np.int32)
    pinned_by = np.full((n_groups, top_n), NOBODY, dtype=np.int16)
    quotas: list[tuple[int, np.ndarray]] = []
    caps: list[tuple[int, np.ndarray, np.ndarray]] = []
    problems = []
    for number, (rule, each, code) in enumerate(zip(rules, evaluated, codes, strict=True)):
        applies = group_keys[:, number] > 0
        matches = np.zeros(shape, dtype=bool)
        matches[applies] = each.matches[group_keys[applies, number] - 1]
        if rule.action in ("exclude", "require"):
            goes = matches if rule.action == "exclude" else ~matches & applies[:, None]
            had_some = (available & (removed_by == NOBODY)).any(axis=1)
            removed_by[goes & (removed_by == NOBODY)] = number
            has_some = (available & (removed_by == NOBODY)).any(axis=1)
            if (had_some & ~has_some).any():
                n_left = int(n_of_group[had_some & ~has_some].sum())
                problems.append(f"rule {rule.rule_id} leaves {n_left:,} users without any product")
        elif rule.action == "boost":
            assert rule.value is not None
            factor[matches] *= np.float32(rule.value)
            boosted_by[matches] = number
        elif rule.action == "pin":
            problems += _pin(rule, number, matches & available, product_ids, pins, pinned_by, rules)
        elif rule.action == "quota":
            quotas.append((number, matches))
        else:
            assert code is not None
            if len(each.matches) > 1:
                problems.append(
                    f"rule {rule.rule_id}: a cap cannot compare products with users; use a "
                    "condition on one of them"
                )
            caps.append((number, applies, np.where(each.matches[0], code, NOBODY)))
    shares = np.array([rules[number].value for number, _ in quotas], dtype=np.float64)
    members = np.array([each for _, each in quotas], dtype=bool).reshape(len(quotas), *shape)
    asked_for = (members.any(axis=2) * shares[:, None]).sum(axis=0)
    if (asked_for > 1 + 1e-9).any():
        names = ", ".join(rules[number].rule_id for number, _ in quotas)
        problems.append(f"rules {names}: quotas add up to {asked_for.max():.0%} of a list")
    if problems:
        raise RulesError("; ".join(problems))
    applies_of_caps = np.array([each for _, each, _ in caps], dtype=bool).reshape(
        len(caps), n_groups
    )
    code_of_caps = np.array([code for *_, code in caps], np.int32).reshape(len(caps), n_products)
    return RuleSet(
        rules=tuple(rules),
        group_of_user=group_of_user.ravel().astype(np.int32),
        digest_of_group=_digests(
            removed_by,
            factor,
            pins,
            members.swapaxes(0, 1),
            applies_of_caps.T,
            code_of_caps,
            texts=repr((rules, product_ids.to_list())),
        ),
        removed_by=removed_by,
        factor=factor,
        boosted_by=boosted_by,
        pins=pins,
        pinned_by=pinned_by,
        quota_share=shares,
        quota_rule=np.array([number for number, _ in quotas], dtype=np.int16),
        quota_members=members,
        cap_limit=np.array([rules[number].value for number, *_ in caps], dtype=np.int64),
        cap_rule=np.array([number for number, *_ in caps], dtype=np.int16),
        cap_applies=applies_of_caps,
        cap_code=code_of_caps,
    )


def _pin(
    rule: Rule,
    number: int,
    matches: np.ndarray,
    product_ids: pl.Series,
    pins: np.ndarray,
    pinned_by: np.ndarray,
    rules: Sequence[Rule],
) -> Iterator[str]:
    assert rule.value is not None
    place = int(rule.value) - 1
    if place >= pins.shape[1]:
        yield f"rule {rule.rule_id} pins to rank {place + 1} of lists of {pins.shape[1]}"
        return
    if (n := int(matches.sum(axis=1).max(initial=0))) > 1:
        yield f"rule {rule.rule_id} pins {n:,} products to one rank; name one"
        return
    groups, products = np.nonzero(matches)
    taken = pinned_by[groups, place] != NOBODY
    if taken.any():
        other = rules[pinned_by[groups, place][taken][0]].rule_id
        yield f"rules {other} and {rule.rule_id} pin two products to rank {place + 1}"
        return
    twice = (pins[groups] == products[:, None]).any(axis=1)
    if twice.any():
        yield f"rule {rule.rule_id} pins {product_ids[int(products[twice][0])]} a second time"
        return
    pins[groups, place] = products
    pinned_by[groups, place] = number


def _digests(*arrays: np.ndarray, texts: str) -> np.ndarray:
    """`(n_groups,)` int64 of what each array says to the group; the last is of all groups."""
    *of_groups, of_all = arrays
    head = hashlib.blake2b(texts.encode(), digest_size=8)
    head.update(np.ascontiguousarray(of_all).data)
    found = []
    for group in range(len(of_groups[0])):
        digest = head.copy()
        for each in of_groups:
            digest.update(np.ascontiguousarray(each[group]).tobytes())
        found.append(int.from_bytes(digest.digest(), "little", signed=True))
    return np.array(found, dtype=np.int64)
