"""Rules at the borders: what must hold before a step may use the one before.

Each rule is a number that one DuckDB scan computes; Great Expectations judges the numbers and
writes its Data Docs. Rows never leave the warehouse, so a gate costs the same memory for a
million rows as for a thousand, and no customer's id gets into the documents.
"""

import importlib
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb

# Of each gate: of thirty runs the index takes a third of a second, of a year's three minutes.
RESULTS_KEPT = 30


@dataclass(frozen=True)
class Rule:
    """A number and the range it must be in.

    Attributes:
        name: An identifier, used as the check's name.
        sql: A scalar expression over the gate's relations.
        description: What holds when the rule does, as a sentence.
        remedy: What to look at when it does not.
        minimum: Lowest value allowed; None for no bound.
        maximum: Likewise.
    """

    name: str
    sql: str
    description: str
    remedy: str
    minimum: float | None = None
    maximum: float | None = 0


@dataclass(frozen=True)
class Gate:
    """Rules about one table.

    Attributes:
        name: Names the Great Expectations suite.
        relations: A `with` clause that the rules read from.
        rules: What must hold.
    """

    name: str
    relations: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Verdict:
    """What a rule saw.

    Attributes:
        rule: The rule.
        value: The number.
        passed: Whether it is in range, according to Great Expectations.
    """

    rule: Rule
    value: float
    passed: bool


ACCEPTED_EVENTS = Gate(
    name="accepted_events",
    relations="""
        with counts as (
            select
                count(*) as n_rows,
                count(*) filter (user_id is null or trim(user_id) = '') as n_without_user,
                count(*) filter (product_id is null or trim(product_id) = '') as n_without_product,
                count(*) filter (event_at is null) as n_without_time,
                count(*) filter (not coalesce(quantity > 0 and isfinite(quantity), false))
                    as n_bad_quantities,
                count(*) filter (price is not null and not (price >= 0 and isfinite(price)))
                    as n_bad_prices,
                count(*) filter (event_type not in (select event_type from staging.event_weights))
                    as n_without_weight
            from staging.stg_events
        ),
        arrived as (
            select coalesce(sum(n_rows + n_malformed), 0)::double as n_arrived
            from raw.landing_files where entity = 'events'
        ),
        rejected as (
            select count(*)::double as n_rejected from staging.rejected_rows where entity = 'events'
        )
    """,
    rules=(
        Rule(
            "some_events_are_accepted",
            "(select n_rows from counts)",
            "At least one event is valid.",
            "every row was refused: count staging.rejected_rows by reason",
            minimum=1,
            maximum=None,
        ),
        Rule(
            "arrived_is_accepted_plus_rejected",
            "(select n_arrived - n_rejected from arrived, rejected) - (select n_rows from counts)",
            "Every row that arrived is either accepted or rejected with a reason.",
            "a model lost or repeated rows: look at marts.row_accounting",
            minimum=0,
        ),
        Rule(
            "rejected_share",
            "(select n_rejected / greatest(n_arrived, 1) from arrived, rejected)",
            "At most half of what arrived is rejected.",
            "the export looks broken: count staging.rejected_rows by reason",
            minimum=0,
            maximum=0.5,
        ),
        Rule(
            "every_event_has_a_user",
            "(select n_without_user from counts)",
            "Accepted events name a user.",
            "base_events lets rows without a user pass",
        ),
        Rule(
            "every_event_has_a_product",
            "(select n_without_product from counts)",
            "Accepted events name a product.",
            "base_events lets rows without a product pass",
        ),
        Rule(
            "every_event_has_a_time",
            "(select n_without_time from counts)",
            "Accepted events have a time.",
            "base_events lets rows without a readable time pass",
        ),
        Rule(
            "quantities_are_positive",
            "(select n_bad_quantities from counts)",
            "Quantities are finite and above 0.",
            "base_events lets bad quantities pass",
        ),
        Rule(
            "prices_are_not_negative",
            "(select n_bad_prices from counts)",
            "Prices are finite and not negative.",
            "base_events lets bad prices pass",
        ),
        Rule(
            "every_event_type_has_a_weight",
            "(select n_without_weight from counts)",
            "Every event type has a weight.",
            "add the event type to dbt_project/seeds/event_weights.csv",
        ),
    ),
)

SIGNALS = Gate(
    name="signals",
    relations="""
        with counts as (
            select
                count(*) as n_rows,
                count(*) filter (not (weight > 0 and isfinite(weight))) as n_bad_weights,
                count(*) - count(distinct (user_id, product_id)) as n_repeated,
                count(*) filter (user_id not in (select user_id from marts.users))
                    as n_without_user,
                count(*) filter (product_id not in (select product_id from marts.products))
                    as n_without_product,
                count(*) filter (last_at >= (select as_of + interval 1 day from
                    intermediate.int_as_of)) as n_from_the_future
            from marts.signals
        )
    """,
    rules=(
        Rule(
            "there_are_signals",
            "(select n_rows from counts)",
            "At least one user wants at least one product.",
            "no event carries a weight above 0: look at dbt_project/seeds/event_weights.csv and "
            "marts.row_accounting",
            minimum=1,
            maximum=None,
        ),
        Rule(
            "weights_are_positive",
            "(select n_bad_weights from counts)",
            "Weights are finite and above 0.",
            "look at the half-lives and weights in dbt_project/seeds/event_weights.csv",
        ),
        Rule(
            "one_row_per_user_and_product",
            "(select n_repeated from counts)",
            "A user and a product appear together once.",
            "the grain of marts.signals is broken",
        ),
        Rule(
            "every_user_is_known",
            "(select n_without_user from counts)",
            "Signals come from users of marts.users.",
            "marts.users lost users that have events",
        ),
        Rule(
            "every_product_is_known",
            "(select n_without_product from counts)",
            "Signals are about products of marts.products.",
            "marts.products lost products that have events",
        ),
        Rule(
            "nothing_after_as_of",
            "(select n_from_the_future from counts)",
            "No signal is younger than as_of.",
            "a model reads events after as_of",
        ),
    ),
)


def recommendations_gate(version: str, top_n: int) -> Gate:
    """The promises of a published list, checked on the version's own rows in `serving`.

    The queries share nothing with the code that made the lists.

    Args:
        version: A version written to the serving tables by us, never a user's text.
        top_n: Rows a user must have, unless the shop has fewer products left for them.
    """
    return Gate(
        name="recommendations",
        relations=f"""
            with lists as (
                select * from serving.recommendations where version = '{version}'
            ),
            per_user as (
                select
                    user_id,
                    count(*) as n_rows,
                    count(distinct product_id) as n_products,
                    min(rank) as first_rank,
                    max(rank) as last_rank
                from lists group by user_id
            ),
            available as (
                select product_id from marts.products where is_available
            ),
            bought as (
                select user_id, count(*) as n_bought
                from marts.signals
                where n_purchases > 0 and product_id in (from available)
                group by user_id
            ),
            expected as (
                select
                    user_id,
                    least({int(top_n)}, (select count(*) from available) - coalesce(n_bought, 0))
                        as n_expected
                from marts.users left join bought using (user_id)
            ),
            -- Bought, and so long ago that a rule lets it come back.
            returned as (
                select ledger.user_id, ledger.product_id
                from ml.rule_ledger as ledger
                inner join ml.rules_in_force as rules using (rule_id)
                inner join marts.bought as bought
                    on ledger.user_id = bought.user_id and ledger.product_id = bought.product_id
                where
                    ledger.new_rank is not null
                    and rules.action = 'repeat'
                    and coalesce(rules.by_column, 'purchase') = 'purchase'
                    and date_diff(
                        'day', bought.last_bought_on, (select as_of from intermediate.int_as_of)
                    ) >= rules.value
            ),
            steps as (
                select
                    score > lag(score) over (partition by user_id order by rank) as is_rising
                from lists
            )
        """,
        rules=(
            Rule(
                "there_are_recommendations",
                "(select count(*) from lists)",
                "The version has rows.",
                "no user or no available product: look at marts.users and marts.products",
                minimum=1,
                maximum=None,
            ),
            Rule(
                "every_user_has_a_full_list",
                "(select count(*) from expected left join per_user using (user_id)"
                " left join (select user_id, count(*) as n_returned from returned group by user_id)"
                " using (user_id)"
                " where coalesce(n_rows, 0) > n_expected + coalesce(n_returned, 0)"
                " or coalesce(n_rows, 0) < n_expected"
                " and not exists (from ml.rules_in_force where restricts))",
                f"Every user has exactly {top_n} rows, or all that shop and rules leave them.",
                "the fallback chain left lists short or made them too long",
            ),
            Rule(
                "no_unknown_users",
                "(select count(*) from lists anti join marts.users using (user_id))",
                "Lists are for users of marts.users.",
                "a user was removed while the run went on",
            ),
            Rule(
                "ranks_have_no_gaps",
                "(select count(*) from per_user where first_rank <> 1 or last_rank <> n_rows)",
                "Ranks run from 1 without gaps.",
                "rows were lost between ranking and writing",
            ),
            Rule(
                "no_product_twice",
                "(select count(*) from per_user where n_products <> n_rows)",
                "No product is on a list twice.",
                "the fallback chain repeated a product",
            ),
            Rule(
                "no_bought_products",
                "(select count(*) from lists semi join"
                " (select user_id, product_id from marts.signals where n_purchases > 0"
                " except from returned) as owned"
                " on lists.user_id = owned.user_id and lists.product_id = owned.product_id)",
                "Nobody is shown what they bought, unless a rule says that it comes back.",
                "bought products were not masked",
            ),
            Rule(
                "no_unavailable_products",
                "(select count(*) from lists anti join available using (product_id))",
                "Every product is in the catalogue and available.",
                "unavailable products were not masked",
            ),
            Rule(
                "scores_are_finite",
                "(select count(*) from lists where not coalesce(isfinite(score), false))",
                "Every score is a finite number.",
                "a model produced NaN or infinity",
            ),
            Rule(
                "scores_never_rise",
                "(select count(*) from steps where is_rising)",
                "Scores never rise with rank.",
                "the lists are not sorted by score",
            ),
        ),
    )


def placements_gate(version: str) -> Gate:
    """The promises of the published lists beside the recommendations, on the rows in `serving`.

    The queries share nothing with the code that made the lists.

    Args:
        version: A version written to the serving tables by us, never a user's text.
    """
    proposed = {
        "similar": ("similar_products", "product_id", "similar_product_id", "score"),
        "together": ("bought_together", "product_id", "other_product_id", "log_likelihood"),
        "viewed": ("viewed_together", "product_id", "other_product_id", "log_likelihood"),
        "again": ("buy_again", "user_id", "product_id", "score"),
        "popular": (
            "popular",
            "concat_ws(chr(31), segment_type, segment, time_window)",
            "product_id",
            "score",
        ),
        "sale": ("on_sale", "'all'", "product_id", "share_saved"),
    }
    lists = " union all ".join(
        f"select '{kind}' as kind, {list_id} as list_id, rank, {product} as product_id,"
        f" {score} as score from serving.{table} where version = '{version}'"
        for kind, (table, list_id, product, score) in proposed.items()
    )
    return Gate(
        name="placements",
        relations=f"""
            with lists as ({lists}),
            per_list as (
                select
                    kind,
                    list_id,
                    count(*) as n_rows,
                    count(distinct product_id) as n_products,
                    min(rank) as first_rank,
                    max(rank) as last_rank
                from lists group by kind, list_id
            ),
            steps as (
                select
                    score > lag(score) over (partition by kind, list_id order by rank) as is_rising
                from lists
            ),
            owned as (
                select user_id, product_id from marts.signals where n_purchases > 0
            ),
            again as (
                select user_id, product_id from serving.buy_again where version = '{version}'
            ),
            bought as (
                select user_id, product_id from serving.bought where version = '{version}'
            ),
            anchors as (
                select user_id, product_id from serving.anchors where version = '{version}'
            )
        """,
        rules=(
            Rule(
                "placements_hold_what_can_be_bought",
                "(select count(*) from lists anti join"
                " (select product_id from marts.products where is_available) as available"
                " using (product_id))",
                "Every product of every list is in the catalogue and available.",
                "marts.products changed under the lists, or one of them forgot to ask it",
            ),
            Rule(
                "placements_have_no_gaps",
                "(select count(*) from per_list where first_rank <> 1 or last_rank <> n_rows)",
                "Ranks of every list run from 1 without gaps.",
                "rows were lost between ranking and writing",
            ),
            Rule(
                "placements_repeat_no_product",
                "(select count(*) from per_list where n_products <> n_rows)",
                "No product is on a list twice.",
                "the grain of the list's table is broken",
            ),
            Rule(
                "placements_scores_never_rise",
                "(select count(*) from steps where is_rising)",
                "Scores of a list never rise with rank.",
                "the lists are not sorted by score",
            ),
            Rule(
                "no_product_beside_itself",
                "(select count(*) from lists"
                " where kind in ('similar', 'together', 'viewed') and list_id = product_id)",
                "No product is proposed beside itself.",
                "the product itself was not masked",
            ),
            Rule(
                "only_bought_products_are_due_again",
                "(select count(*) from again anti join owned using (user_id, product_id))",
                "What is proposed to be bought again was bought.",
                "marts.buy_again and marts.signals disagree on returns",
            ),
            Rule(
                "all_that_was_bought_is_known_to_readers",
                "(select count(*) from owned anti join bought using (user_id, product_id))"
                " + (select count(*) from bought anti join owned using (user_id, product_id))",
                "What readers leave out of a page is all that the user bought, and only that.",
                "marts.bought and marts.signals disagree on returns",
            ),
            Rule(
                "anchors_were_touched",
                "(select count(*) from anchors anti join marts.signals"
                " using (user_id, product_id))",
                'Nobody is told "because you viewed" of what they did not touch.',
                "marts.anchors and marts.signals disagree",
            ),
        ),
    )


def import_early() -> None:
    """Import what later steps need beside what the run is doing now.

    Great Expectations takes five seconds of one core, the compiled loops one. While dbt works in a
    process of its own, nobody needs them.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

    def work() -> None:
        for module in ("ml_assets.lists", "exports.redis_load", "great_expectations"):
            importlib.import_module(module)

    threading.Thread(target=work, daemon=True).start()


def judge(
    connection: duckdb.DuckDBPyConnection, *gates: Gate, docs_root: Path
) -> list[list[Verdict]]:
    """Compute every rule's number in one query a gate and let Great Expectations judge them.

    Args:
        connection: The warehouse.
        gates: The rules, no two of one name.
        docs_root: Folder for Great Expectations' project, with its Data Docs.
    """
    values: dict[str, float] = {}
    for gate in gates:
        columns = ", ".join(f"{rule.sql}::double as {rule.name}" for rule in gate.rules)
        numbers = connection.execute(f"{gate.relations} select {columns}").fetchone()
        assert numbers is not None
        values |= zip((rule.name for rule in gate.rules), numbers, strict=True)
    assert len(values) == sum(len(gate.rules) for gate in gates)
    with _mended_project(docs_root / "gx"):
        for gate in gates:
            _forget_old_results(docs_root / "gx" / "uncommitted", gate.name)
        passed = _expect(gates, values, docs_root)
    return [
        [Verdict(rule, values[rule.name], passed[rule.name]) for rule in gate.rules]
        for gate in gates
    ]


@contextmanager
def _mended_project(folder: Path) -> Iterator[None]:
    """Great Expectations' project, without the definitions that a killed run may have cut short.

    It writes them in place and cannot read them when they are half there. Each run writes its own;
    the results of former runs stay.
    """
    mark = folder / ".being-written"
    if mark.exists():
        for name in ("checkpoints", "expectations", "validation_definitions"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("great_expectations.yml", "uncommitted/config_variables.yml"):
            (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    yield
    mark.unlink()


def _forget_old_results(folder: Path, name: str) -> None:
    """Leave the latest results of a gate, since every run renders an index of all there are.

    What each run saw is kept by Dagster too, with the check.
    """
    for results in (folder / "validations", folder / "data_docs" / "local_site" / "validations"):
        # One folder a run, below one of the run's name, and itself named by the time.
        runs = sorted((results / name).glob("*/*"), key=lambda run: run.name)
        for run in runs[: max(0, len(runs) - RESULTS_KEPT + 1)]:
            shutil.rmtree(run, ignore_errors=True)
            with suppress(OSError):
                run.parent.rmdir()


def _expect(gates: Sequence[Gate], values: dict[str, float], docs_root: Path) -> dict[str, bool]:
    """Whether each value is in its rule's range."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    # Imported here: great_expectations takes seconds to import, and most processes never judge.
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
    )

    context = gx.get_context(mode="file", project_root_dir=docs_root)
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_or_update_pandas(name="warehouse")
    validations = []
    for gate in gates:
        suite = gx.ExpectationSuite(
            name=gate.name,
            expectations=[
                gx.expectations.ExpectColumnValuesToBeBetween(
                    column=rule.name,
                    min_value=rule.minimum,
                    max_value=rule.maximum,
                    meta={"notes": f"{rule.description} If not: {rule.remedy}."},
                )
                for rule in gate.rules
            ],
        )
        asset = source.add_dataframe_asset(name=gate.name)
        validation = gx.ValidationDefinition(
            name=gate.name,
            data=asset.add_batch_definition_whole_dataframe("counts"),
            suite=context.suites.add_or_update(suite),
        )
        validations.append(context.validation_definitions.add_or_update(validation))
    checkpoint = gx.Checkpoint(
        name="-".join(gate.name for gate in gates),
        validation_definitions=validations,
    )
    result = context.checkpoints.add_or_update(checkpoint).run(
        batch_parameters={"dataframe": pd.DataFrame([values])}
    )
    # Not by a checkpoint's action, which makes the index of the whole site again for each gate.
    context.build_data_docs(
        resource_identifiers=[
            *result.run_results,
            *(ExpectationSuiteIdentifier(name=gate.name) for gate in gates),
        ]
    )
    return {
        outcome.expectation_config.kwargs["column"]: bool(outcome.success)
        for judged in result.run_results.values()
        for outcome in judged.results
    }
