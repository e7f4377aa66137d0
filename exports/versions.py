"""Versions in the warehouse: the serving tables, which version is live, and the log of it all.

Belongs here: schema `serving` of the warehouse. Does not belong here: files (`files.py`), Redis
(`redis_load.py`), the order in which the three are switched (`publish.py`).

A version is everything published together: the rows of all surfaces under one version id, written
in one transaction as a candidate. Which version readers see is the state in `serving.versions`, one
row of which is 'live'; the views `serving.current_*` follow it. So a rollback is one statement:

    update serving.versions set state = if(version = '20111208T000000-9c01d2aa', 'live', 'retired')
    where (version = '20111208T000000-9c01d2aa' or state = 'live') and '20111208T000000-9c01d2aa'
        in (select version from serving.versions where state = 'retired' and removed_at is null)

Of a version that cannot be shown it changes nothing, so that there is always one that is live.

Content hash: per surface the number of rows and two sums of DuckDB's `hash()` over all rows (sums
do not depend on the order), over the surfaces a SHA-256. md5 per row costs seven times as much and
would leave no time to check copies. DuckDB may change `hash()` in another release: equal content
then gets a new version id, which costs one publish and nothing else.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from datetime import date, datetime

import duckdb

from exports import origins, pseudonyms, version_diff
from exports.errors import PublishError
from exports.origins import Ingredient
from ml_assets.promotion import Promotion
from ml_assets.warehouse import transaction


@dataclass(frozen=True)
class Surface:
    """One published table: its columns with types, its grain, and where its rows come from."""

    name: str
    columns: dict[str, str]
    grain: tuple[str, ...]
    source: str
    condition: str = "true"
    score: str | None = None

    @property
    def column_list(self) -> str:
        return ", ".join(self.columns)

    @property
    def grain_list(self) -> str:
        return ", ".join(self.grain)


SURFACES = (
    Surface(
        name="recommendations",
        columns={
            "user_id": "varchar",
            "rank": "integer",
            "product_id": "varchar",
            "score": "double",
            "cf_score": "double",
            "content_score": "double",
            "source": "varchar",
            "temperature": "varchar",
            "reason": "varchar",
            "because_product_id": "varchar",
            "probability": "double",
        },
        grain=("user_id", "rank"),
        source="ml.recommendations",
        score="score",
    ),
    Surface(
        name="similar_products",
        columns={
            "product_id": "varchar",
            "rank": "integer",
            "similar_product_id": "varchar",
            "score": "double",
            "source": "varchar",
        },
        grain=("product_id", "rank"),
        source="ml.similar_products",
        score="score",
    ),
    *(
        Surface(
            name=relation,
            columns={
                "product_id": "varchar",
                "rank": "integer",
                "other_product_id": "varchar",
                "n_together": "integer",
                "support": "double",
                "confidence": "double",
                "lift": "double",
                "log_likelihood": "double",
            },
            grain=("product_id", "rank"),
            source="marts.product_pairs",
            condition=f"relation = '{relation}'",
            score="log_likelihood",
        )
        for relation in ("bought_together", "viewed_together")
    ),
    Surface(
        name="buy_again",
        columns={
            "user_id": "varchar",
            "rank": "integer",
            "product_id": "varchar",
            "score": "double",
            "n_bought": "integer",
            "last_bought_on": "date",
            "due_on": "date",
        },
        grain=("user_id", "rank"),
        source="marts.buy_again",
        score="score",
    ),
    Surface(
        name="anchors",
        columns={
            "user_id": "varchar",
            "rank": "integer",
            "product_id": "varchar",
            "title": "varchar",
            "kind": "varchar",
            "last_at": "timestamp",
        },
        grain=("user_id", "rank"),
        source="marts.anchors",
    ),
    Surface(
        name="bought",
        columns={
            "user_id": "varchar",
            "rank": "integer",
            "product_id": "varchar",
            "last_bought_on": "date",
        },
        grain=("user_id", "rank"),
        source="marts.bought",
    ),
    Surface(
        name="popular",
        columns={
            "segment_type": "varchar",
            "segment": "varchar",
            "time_window": "varchar",
            "rank": "integer",
            "product_id": "varchar",
            "score": "double",
            "n_users": "integer",
        },
        grain=("segment_type", "segment", "time_window", "rank"),
        source="marts.popularity",
        condition="rank <= $popular_depth",
        score="score",
    ),
    Surface(
        name="on_sale",
        columns={
            "rank": "integer",
            "product_id": "varchar",
            "price": "double",
            "usual_price": "double",
            "share_saved": "double",
        },
        grain=("rank",),
        source="marts.on_sale",
        condition="rank <= $popular_depth",
        score="share_saved",
    ),
    Surface(
        name="products",
        columns={
            "product_id": "varchar",
            "title": "varchar",
            "category": "varchar",
            "brand": "varchar",
            "price": "double",
        },
        grain=("product_id",),
        source="marts.products",
    ),
)


@dataclass(frozen=True)
class Version:
    """One row of serving.versions. Times are naive UTC.

    settings are those of the recommender, as JSON; model_hash changes with the models and settings
    that lists were made by; decision and verdict tell whether the version
    may go live, and on what figures (see `ml_assets.promotion`). n_users counts users with
    recommendations, n_products the catalogue, n_rows the rows of all surfaces. removed_at is set
    once the rows are gone; then nobody can roll back to it. pseudonym_check is None where ids are
    clear, else it tells with which key they are asked (see `pseudonyms`).
    """

    version: str
    state: str
    reason: str | None
    as_of: date
    run_id: str
    created_at: datetime
    live_at: datetime | None
    code_version: str
    config_hash: str
    settings: str | None
    model_hash: str | None
    decision: str | None
    verdict: str | None
    seed: int
    top_n: int
    n_users: int
    n_products: int
    n_rows: int
    content_hash: str
    removed_at: datetime | None
    pseudonym_check: str | None


@dataclass(frozen=True)
class Fingerprint:
    """What one surface of one version holds: row count and content hash."""

    surface: str
    n_rows: int
    content_hash: str


_VERSION_COLUMNS = ", ".join(field.name for field in fields(Version))

_TABLES = """
create schema if not exists serving;
create table if not exists serving.versions (
    version varchar, state varchar, reason varchar, as_of date, run_id varchar,
    created_at timestamp, live_at timestamp, code_version varchar, config_hash varchar,
    settings varchar, model_hash varchar, decision varchar, verdict varchar,
    seed bigint, top_n integer, n_users bigint, n_products bigint, n_rows bigint,
    content_hash varchar, removed_at timestamp, pseudonym_check varchar
);
create table if not exists serving.version_surfaces (
    version varchar, surface varchar, n_rows bigint, content_hash varchar
);
create table if not exists serving.version_users (
    version varchar, user_id varchar, inputs_hash bigint, rules_hash bigint
);
create table if not exists serving.version_products (
    version varchar, product_id varchar, is_available boolean
);
create table if not exists serving.publications (
    publication_id bigint, happened_at timestamp, run_id varchar, version varchar,
    content_hash varchar, action varchar
);
"""


def ensure_schema(connection: duckdb.DuckDBPyConnection) -> None:
    """Create what is missing of the serving tables and views, so that readers always find them."""
    connection.execute(_TABLES)
    origins.create_tables(connection)
    for column in ("settings", "model_hash", "decision", "verdict", "pseudonym_check"):
        # Of a warehouse from before there were such columns.
        connection.execute(
            f"alter table serving.versions add column if not exists {column} varchar"
        )
    for surface in SURFACES:
        columns = ", ".join(f"{name} {kind}" for name, kind in surface.columns.items())
        connection.execute(
            f"create table if not exists serving.{surface.name} (version varchar, {columns})"
        )
        for name, kind in surface.columns.items():
            # Of a warehouse from before there was such a column.
            connection.execute(
                f"alter table serving.{surface.name} add column if not exists {name} {kind}"
            )
        connection.execute(
            f"create or replace view serving.current_{surface.name} as "
            f"select {surface.column_list}, version from serving.{surface.name} "
            "where version = (select version from serving.versions where state = 'live')"
        )
    version_diff.create_macros(connection)


def stage_version(
    connection: duckdb.DuckDBPyConnection,
    *,
    as_of: date,
    run_id: str,
    seed: int,
    config_hash: str,
    settings: str,
    promotion: Promotion,
    code_version: str,
    origin: Sequence[Ingredient],
    created_at: datetime,
    top_n: int,
    popular_depth: int,
) -> Version:
    """Write what ml and marts hold now as a candidate version, in one transaction.

    Content that is live already for this as_of is not written again: the live version is returned
    and the log says 'unchanged'. A version of the same id that is not live (left by a killed run,
    rejected, or retired) becomes the candidate; its rows are kept if their hash is right, else
    written anew.

    Args:
        connection: The warehouse, for writing, outside a transaction.
        as_of: The day the content describes; first part of the version id.
        run_id: The run that publishes, for versions and log.
        seed: Recorded, to repeat the run.
        config_hash: Recorded.
        settings: Recorded.
        promotion: Recorded; who calls `mark_live` has to respect it.
        code_version: Recorded.
        origin: Recorded, with the landing files, to make the version again.
        created_at: Now, naive UTC.
        top_n: Length of a user's list, recorded.
        popular_depth: Most rows per list of popular products.

    Raises:
        PublishError: if a source table is missing or lacks a column, there are no recommendations,
            a score is not finite, or the disk is full. Nothing is written then.
    """
    with _transaction(connection):
        ensure_schema(connection)
        found = source_fingerprints(connection, popular_depth)
        model_hash = _model_hash(connection)
        content_hash = combined_hash(found)
        version_id = f"{as_of:%Y%m%d}T000000-{content_hash[:8]}"
        existing = _find(connection, version_id)
        if existing is not None and existing.content_hash != content_hash:
            raise PublishError(
                f"Version {version_id} exists with other content (hash {existing.content_hash}): "
                "two contents share the first eight digits of their hash. Publish with another "
                "as_of date, or delete that version from serving.versions."
            )
        if existing is not None and existing.state == "live":
            # What it was made from first stays, unless that was before it was recorded.
            origins.keep_origin(connection, version_id, origin, replace=False)
            _log(connection, existing, "unchanged", run_id=run_id, happened_at=created_at)
            return existing
        if existing is None or version_fingerprints(connection, version_id) != found:
            _delete_rows(connection, version_id)
            for surface in SURFACES:
                _copy_rows(connection, surface, version_id, popular_depth)
        _copy_inputs(connection, version_id)
        origins.keep_origin(connection, version_id, origin, replace=True)
        staged = Version(
            version=version_id,
            state="candidate",
            reason=None,
            as_of=as_of,
            run_id=run_id,
            created_at=created_at,
            live_at=None,
            code_version=code_version,
            config_hash=config_hash,
            settings=settings,
            model_hash=model_hash,
            decision=promotion.decision,
            verdict=promotion.verdict,
            seed=seed,
            top_n=top_n,
            n_users=_count_users(connection, version_id),
            n_products={each.surface: each.n_rows for each in found}["products"],
            n_rows=sum(each.n_rows for each in found),
            content_hash=content_hash,
            removed_at=None,
            pseudonym_check=(
                pseudonyms.found_check(connection)
                if origins.has_table(connection, "raw", "pseudonym_check")
                else None
            ),
        )
        _replace_row(connection, staged, found)
        _log(connection, staged, "candidate", run_id=run_id, happened_at=created_at)
    return staged


def mark_live(
    connection: duckdb.DuckDBPyConnection,
    version: str,
    *,
    run_id: str,
    happened_at: datetime,
    action: str = "published",
) -> Version:
    """Make a version the live one and retire the one before, in one transaction.

    Calling it again changes nothing. The log gets a row with the action, 'published' or
    'rolled_back'.

    Raises:
        PublishError: if the version is unknown, rejected, or its rows are removed.
    """
    with _transaction(connection):
        wanted = get_version(connection, version)
        if wanted.removed_at is not None:
            raise PublishError(
                f"Version {version} cannot go live: its rows were removed at {wanted.removed_at}. "
                f"Versions that are kept: {_names(kept_versions(connection))}."
            )
        if wanted.state == "rejected":
            raise PublishError(
                f"Version {version} cannot go live: it was rejected ({wanted.reason}). "
                "Correct the cause and run again."
            )
        if wanted.state == "live":
            return wanted
        connection.execute(
            "update serving.versions set "
            "state = case when version = $version then 'live' else 'retired' end, "
            "live_at = case when version = $version then $happened_at else live_at end "
            "where version = $version or state = 'live'",
            {"version": version, "happened_at": happened_at},
        )
        _log(connection, wanted, action, run_id=run_id, happened_at=happened_at)
        return get_version(connection, version)


def mark_rejected(
    connection: duckdb.DuckDBPyConnection,
    version: str,
    *,
    reason: str,
    run_id: str,
    happened_at: datetime,
) -> Version:
    """Keep a candidate from ever going live, and say why. Its rows stay until the next clean-up.

    Raises:
        PublishError: if the version is not a candidate.
    """
    with _transaction(connection):
        wanted = get_version(connection, version)
        if wanted.state not in ("candidate", "rejected"):
            raise PublishError(
                f"Version {version} cannot be rejected: it is {wanted.state}, and only a candidate "
                "can. Roll back to another version to take it away from readers."
            )
        connection.execute(
            "update serving.versions set state = 'rejected', reason = $reason "
            "where version = $version",
            {"version": version, "reason": reason},
        )
        _log(connection, wanted, "rejected", run_id=run_id, happened_at=happened_at)
        return get_version(connection, version)


def require_rollback_target(connection: duckdb.DuckDBPyConnection, version: str) -> Version:
    """The version, if it may be rolled back to: it passed its checks once and is still kept."""
    wanted = get_version(connection, version)
    if wanted.removed_at is not None or wanted.state not in ("live", "retired"):
        able = [each for each in kept_versions(connection) if each.state == "retired"]
        why = "its rows are removed" if wanted.removed_at else f"it is {wanted.state}"
        raise PublishError(
            f"Cannot roll back to version {version}: {why}. "
            f"Versions to roll back to: {_names(able)}."
        )
    return wanted


def version_before(connection: duckdb.DuckDBPyConnection) -> str:
    """The kept version that was live last before the one that is.

    None that readers were taken away from by a rollback: to go back twice is to go further back.

    Raises:
        PublishError: if there is none.
    """
    found = connection.execute(
        """
        with switches as (
            select
                version,
                publication_id,
                lead(action) over (order by publication_id) is not distinct from 'rolled_back'
                    as was_left
            from serving.publications
            where action in ('published', 'rolled_back')
        )
        select version
        from serving.versions
        join switches using (version)
        where state = 'retired' and removed_at is null
        group by version
        having not arg_max(was_left, publication_id)
        order by max(publication_id) desc
        limit 1
        """
    ).fetchone()
    if found is None:
        kept = [each for each in kept_versions(connection) if each.state == "retired"]
        raise PublishError(
            "There is no version to roll back to: none was live before the one that is, none of "
            "those is kept, or a rollback took readers away from it. "
            f"Versions that can be named: {_names(kept)}."
        )
    return str(found[0])


def retire_old(
    connection: duckdb.DuckDBPyConnection, *, retain: int, happened_at: datetime
) -> list[str]:
    """Delete the rows of versions beyond the newest `retain`, the live one included.

    Newest by when they last went live, in the order of the log and not of the clock. Candidates
    that never went live and rejected versions are not kept: call this only after the switch, when
    no candidate is waiting.

    Returns:
        The versions whose rows were deleted now. Their rows in serving.versions stay.
    """
    if retain < 1:
        raise PublishError(f"retain is {retain}; keep at least 1 version, the live one.")
    with _transaction(connection):
        by_time_live = connection.execute(
            """
            select version
            from serving.versions
            left join (
                select version, max(publication_id) as publication_id
                from serving.publications
                where action in ('published', 'rolled_back')
                group by version
            ) using (version)
            where removed_at is null and state in ('live', 'retired')
            order by state = 'live' desc, publication_id desc
            """
        ).fetchall()
        keep = [version for (version,) in by_time_live[:retain]]
        removed = [each for each in kept_versions(connection) if each.version not in keep]
        for each in removed:
            _delete_rows(connection, each.version)
            connection.execute(
                "update serving.versions set removed_at = $happened_at, "
                "reason = case when state = 'candidate' "
                "then 'Never went live: its run did not finish.' else reason end, "
                "state = case when state = 'candidate' then 'rejected' else state end "
                "where version = $version",
                {"version": each.version, "happened_at": happened_at},
            )
    return [each.version for each in removed]


def get_version(connection: duckdb.DuckDBPyConnection, version: str) -> Version:
    """One row of serving.versions.

    Raises:
        PublishError: if there is none.
    """
    found = _find(connection, version)
    if found is None:
        raise PublishError(
            f"There is no version {version}. "
            f"Versions that are kept: {_names(kept_versions(connection))}."
        )
    return found


def staged_version(connection: duckdb.DuckDBPyConnection) -> Version:
    """The version that was staged last: what the steps between staging and switching work on.

    Raises:
        PublishError: if nothing was ever staged.
    """
    ensure_schema(connection)
    ((version,),) = connection.execute(
        "select max_by(version, publication_id) from serving.publications "
        "where action in ('candidate', 'unchanged')"
    ).fetchall()
    if version is None:
        raise PublishError("No version is staged. Materialize serving/candidate first.")
    return get_version(connection, version)


def live_version(connection: duckdb.DuckDBPyConnection) -> Version | None:
    """The version that readers of the warehouse see, None before the first publish."""
    return _first(connection, "state = 'live'", {})


def kept_versions(connection: duckdb.DuckDBPyConnection) -> list[Version]:
    """All versions whose rows are still there, in the order of their ids."""
    rows = connection.execute(
        f"select {_VERSION_COLUMNS} from serving.versions where removed_at is null order by version"
    ).fetchall()
    return [Version(*row) for row in rows]


def note_contents(
    connection: duckdb.DuckDBPyConnection, version: Version, found: list[Fingerprint]
) -> Version:
    """Record that a kept version holds less now, since users were erased. Its id stays.

    Args:
        connection: The warehouse, for writing.
        version: As it is recorded.
        found: What it holds, from `version_fingerprints`.
    """
    changed = replace(
        version,
        n_users=_count_users(connection, version.version),
        n_rows=sum(each.n_rows for each in found),
        content_hash=combined_hash(found),
    )
    _replace_row(connection, changed, found)
    return changed


def version_fingerprints(connection: duckdb.DuckDBPyConnection, version: str) -> list[Fingerprint]:
    """Count and hash the rows of a version as they are stored now, one a surface."""
    return [
        fingerprint(connection, surface, f"serving.{surface.name}", version=version)
        for surface in SURFACES
    ]


def staged_fingerprints(connection: duckdb.DuckDBPyConnection, version: str) -> list[Fingerprint]:
    """What was counted and hashed when the version was staged, one a surface."""
    by_name = {
        name: Fingerprint(name, n_rows, content_hash)
        for name, n_rows, content_hash in connection.execute(
            "select surface, n_rows, content_hash from serving.version_surfaces "
            "where version = $version",
            {"version": version},
        ).fetchall()
    }
    return [by_name[surface.name] for surface in SURFACES if surface.name in by_name]


def fingerprint(
    connection: duckdb.DuckDBPyConnection,
    surface: Surface,
    relation: str,
    *,
    version: str | None = None,
) -> Fingerprint:
    """Count and hash the rows of a table that has a surface's columns, in any order of rows.

    Args:
        connection: Where the relation can be queried.
        surface: Names the columns.
        relation: A table name or a subselect in brackets.
        version: Only the rows of this version; None for a relation without versions.
    """
    condition = "true" if version is None else "version = $version"
    # Two sums of differently salted hashes: one alone has 64 bits, few for a claim of equality.
    (counted,) = connection.execute(
        f"select count(*), sum(hash({surface.column_list})), "
        f"sum(hash('recmart', {surface.column_list})) from {relation} where {condition}",
        {} if version is None else {"version": version},
    ).fetchall()
    digest = hashlib.sha256(":".join(str(value) for value in counted).encode()).hexdigest()
    return Fingerprint(surface.name, counted[0], digest)


def order_sql(
    connection: duckdb.DuckDBPyConnection, surface: Surface, rows: str, **parameters: object
) -> str:
    """The ORDER BY that these rows need to come out sorted by their grain; none if they do anyway.

    Asking costs a thirtieth of writing the table, sorting what is sorted a quarter.

    Args:
        connection: Where the rows can be queried.
        surface: Names the grain.
        rows: A select.
        parameters: Of that select.
    """
    former = ", ".join(f"lag({name}) over () as former_{name}" for name in surface.grain)
    *first, last = surface.grain
    comes_before = f"{last} < former_{last}"
    for name in reversed(first):
        comes_before = f"{name} < former_{name} or ({name} = former_{name} and ({comes_before}))"
    found = connection.execute(
        f"select 1 from (select {surface.grain_list}, {former} from ({rows})) "
        f"where {comes_before} or not current_setting('preserve_insertion_order') limit 1",
        parameters,
    ).fetchall()
    return f"order by {surface.grain_list}" if found else ""


def combined_hash(found: list[Fingerprint]) -> str:
    """One hash over the surfaces of a version."""
    lines = [f"{each.surface}:{each.n_rows}:{each.content_hash}\n" for each in found]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def source_fingerprints(
    connection: duckdb.DuckDBPyConnection, popular_depth: int
) -> list[Fingerprint]:
    """Count and hash what ml and marts hold now, one a surface.

    Raises:
        PublishError: if it could not be published.
    """
    return [_source_fingerprint(connection, surface, popular_depth) for surface in SURFACES]


def source_sql(surface: Surface, popular_depth: int) -> str:
    """The select of a surface's rows from the table that it is published from."""
    # Casts, so that a rank that comes as BIGINT hashes like the INTEGER it is stored as.
    # Qualified, because DuckDB's message on a missing column then names it as missing.
    columns = ", ".join(f"input.{name}::{kind} as {name}" for name, kind in surface.columns.items())
    condition = surface.condition.replace("$popular_depth", str(int(popular_depth)))
    return f"select {columns} from {surface.source} as input where {condition}"


def _source_fingerprint(
    connection: duckdb.DuckDBPyConnection, surface: Surface, popular_depth: int
) -> Fingerprint:
    source = source_sql(surface, popular_depth)
    try:
        found = fingerprint(connection, surface, f"({source})")
    except (duckdb.CatalogException, duckdb.BinderException, duckdb.ConversionException) as error:
        raise PublishError(
            f"{surface.source} cannot be published: expected a table with the columns "
            f"{surface.column_list}. Build it first. DuckDB says: {_first_line(error)}"
        ) from error
    if surface.name == "recommendations" and found.n_rows == 0:
        raise PublishError(
            f"{surface.source} has no rows, so there is nothing to publish. "
            "Look at the checks of that table; the last published version stays live."
        )
    if surface.score is not None:
        wrong = connection.execute(
            f"select {surface.grain_list}, {surface.score} from ({source}) "
            f"where not coalesce(isfinite({surface.score}), false) order by all limit 1"
        ).fetchall()
        for *grain, score in wrong:
            raise PublishError(
                f"{surface.source} has a {surface.score} that is not a finite number, {score}, "
                f"in the row with ({surface.grain_list}) = ({', '.join(map(str, grain))}). "
                "Correct the model that scored it."
            )
    return found


def _copy_rows(
    connection: duckdb.DuckDBPyConnection, surface: Surface, version: str, popular_depth: int
) -> None:
    # Ordered once here, for every later step; and a look-up by id reads one row group instead of
    # all.
    source = source_sql(surface, popular_depth)
    connection.execute(
        f"insert into serving.{surface.name} by name "
        f"select $version as version, * from ({source}) {order_sql(connection, surface, source)}",
        {"version": version},
    )


# Beside the surfaces, for `version_diff`: what the lists of a version were made from.
_INPUTS = {
    "version_users": "select user_id, inputs_hash, rules_hash from ml.scored_users",
    "version_products": "select product_id, is_available from ml.scored_products",
}


def _copy_inputs(connection: duckdb.DuckDBPyConnection, version: str) -> None:
    for table, rows in _INPUTS.items():
        connection.execute(
            f"delete from serving.{table} where version = $version", {"version": version}
        )
        connection.execute(
            f"insert into serving.{table} select $version, * from ({rows})", {"version": version}
        )


def _model_hash(connection: duckdb.DuckDBPyConnection) -> str | None:
    try:
        ((found,),) = connection.execute(
            "select any_value(model_hash) from ml.scored_products"
        ).fetchall()
    except duckdb.CatalogException as error:
        raise PublishError(
            f"The lists cannot be published without ml.scored_products. Build it first. DuckDB "
            f"says: {_first_line(error)}"
        ) from error
    return None if found is None else str(found)


def _delete_rows(connection: duckdb.DuckDBPyConnection, version: str) -> None:
    for table in (*(surface.name for surface in SURFACES), *_INPUTS):
        connection.execute(
            f"delete from serving.{table} where version = $version", {"version": version}
        )


def _replace_row(
    connection: duckdb.DuckDBPyConnection, version: Version, found: list[Fingerprint]
) -> None:
    for table in ("versions", "version_surfaces"):
        connection.execute(
            f"delete from serving.{table} where version = $version", {"version": version.version}
        )
    values = astuple(version)
    marks = ", ".join("?" for _ in values)
    connection.execute(
        f"insert into serving.versions ({_VERSION_COLUMNS}) values ({marks})", values
    )
    for each in found:
        connection.execute(
            "insert into serving.version_surfaces values (?, ?, ?, ?)",
            (version.version, each.surface, each.n_rows, each.content_hash),
        )


def _count_users(connection: duckdb.DuckDBPyConnection, version: str) -> int:
    ((n_users,),) = connection.execute(
        "select count(distinct user_id) from serving.recommendations where version = $version",
        {"version": version},
    ).fetchall()
    return int(n_users)


def _log(
    connection: duckdb.DuckDBPyConnection,
    version: Version,
    action: str,
    *,
    run_id: str,
    happened_at: datetime,
) -> None:
    # Numbered, because a clock that is set back must not change which version is the newest.
    connection.execute(
        "insert into serving.publications "
        "select coalesce(max(publication_id), 0) + 1, ?, ?, ?, ?, ? from serving.publications",
        (happened_at, run_id, version.version, version.content_hash, action),
    )


def _find(connection: duckdb.DuckDBPyConnection, version: str) -> Version | None:
    return _first(connection, "version = $version", {"version": version})


def _first(
    connection: duckdb.DuckDBPyConnection, condition: str, parameters: dict[str, str]
) -> Version | None:
    # fetchall and not fetchone: a result that is not read to its end blocks the connection.
    rows = connection.execute(
        f"select {_VERSION_COLUMNS} from serving.versions where {condition}", parameters
    ).fetchall()
    return Version(*rows[0]) if rows else None


def _names(versions: list[Version]) -> str:
    return ", ".join(each.version for each in versions) or "none"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


# A commit that finds the disk full is a TransactionException.
_OUT_OF_SPACE = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.TransactionException)


@contextmanager
def _transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    try:
        with transaction(connection):
            yield
    except _OUT_OF_SPACE as error:
        raise PublishError(
            "The warehouse could not write the version, and nothing of it is kept: "
            f"{_first_line(error)}. Free disk space (or raise RECMART_MEMORY_LIMIT) and run again."
        ) from error
