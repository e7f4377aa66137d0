"""Ending runs with SIGKILL, and looking at what readers see then.

Belongs here: the children that are killed, the moments, the look at table, snapshot and Redis. Does
not belong here: how often (`test_crash.py` a dozen times, `stress.py` hundreds of times).

Nothing of the product knows of this. A child puts the killing between the product's own functions
before it starts the run, or is killed from outside after a while.
"""

import hashlib
import importlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import redis
from publishing_for_tests import NOW, make_shop, publish_version, stage

from exports import files, versions
from exports.lists import KINDS, POINTER, decode, key, manifest_key, published_score, rows_sql
from exports.reader import Reader
from ml_assets.warehouse import Warehouse

# Where each step begins and ends, as functions at the place from which they are called.
LINE_STEPS = {
    "ingest": ("orchestration.landing_assets:ingest_folder",),
    "dbt": ("dagster_dbt:DbtCliResource.cli", "orchestration.dbt_assets:_row_counts"),
    "training": ("ml_assets.models:fit_model", "ml_assets.content:tfidf"),
    "scoring": ("ml_assets.lists:make_lists",),
    "gates": ("orchestration.gates:_expect",),
}
PUBLISH_STEPS = {
    "table write": ("exports.versions:stage_version",),
    "file write": (
        "exports.files:_write_snapshot",
        "exports.files:_write_parquet",
        "exports.files:_write_manifest",
        "exports.files:_put_in_place",
    ),
    "Redis load": ("exports.redis_load:_send_lists", "exports.redis_load:_verify"),
    "pointer switch": (
        "exports.versions:mark_live",
        "exports.files:switch_snapshot",
        "exports.redis_load:switch_redis",
    ),
    "clean-up": (
        "exports.versions:retire_old",
        "exports.files:remove_version_files",
        "exports.redis_load:remove_versions",
    ),
}
RANDOM = "random moment"

_LINE_MODULES = (
    "orchestration.landing_assets",
    "orchestration.dbt_assets",
    "orchestration.backtest_assets",
    "orchestration.checks",
    "orchestration.schedules",
    "orchestration.io_manager",
    "ml_assets.backtest",
    "ml_assets.content",
    "ml_assets.curves",
    "ml_assets.explain",
    "ml_assets.lists",
    "ml_assets.report",
    "exports.publish",
    "great_expectations",
)


@dataclass(frozen=True)
class Moment:
    """When a run is killed: before or after a function, or after some seconds.

    Attributes:
        step: A step of `LINE_STEPS` or `PUBLISH_STEPS`, or `RANDOM`.
        function: module:name; None for a random moment.
        is_before: The function has not begun; else it has just returned.
        seconds: Of a random moment.
    """

    step: str
    function: str | None = None
    is_before: bool = True
    seconds: float = 0.0

    def __str__(self) -> str:
        """For whoever has to repeat it."""
        if self.function is None:
            return f"after {self.seconds:.3f} s"
        return f"{'before' if self.is_before else 'after'} {self.function}"


def moments(
    steps: Mapping[str, tuple[str, ...]], n: int, *, longest_seconds: float, seed: int
) -> list[Moment]:
    """Moments to kill at: every boundary in turn, and as many at random, in a random order."""
    chosen = random.Random(seed)
    boundaries = [
        Moment(step, function, is_before)
        for step, functions in steps.items()
        for function in functions
        for is_before in (True, False)
    ]
    chosen.shuffle(boundaries)
    n_boundaries = n - n // 2
    found = [boundaries[each % len(boundaries)] for each in range(n_boundaries)]
    found += [Moment(RANDOM, seconds=chosen.uniform(0, longest_seconds)) for _ in range(n // 2)]
    chosen.shuffle(found)
    return found


# --- children -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How a child ended: killed, or by itself with a code; `said` is the end of its output."""

    was_killed: bool
    code: int
    seconds: float
    said: str


def children(*preload: str) -> Any:
    """Where children come from: forked from a process that has imported what they need.

    A program has one such process: the first call that leads to a child decides.
    """
    # The process does not take over our sys.path, and passes over what it cannot import in silence.
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [*paths, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kills", "publish_preloaded", *preload])
    return context


def run_child(
    context: Any, log: Path, moment: Moment | None, work: Callable[..., None], *arguments: Any
) -> Ended:
    """Run a function in a process group of its own and kill the group at the moment, if any."""
    began = context.Event()
    child = context.Process(target=_child, args=(log, moment, began, work, arguments))
    started = time.monotonic()
    child.start()
    if moment is not None and moment.function is None:
        if not began.wait(120):
            raise TimeoutError(f"the child has not begun; see {log}")
        child.join(moment.seconds)
        if child.is_alive():
            os.killpg(child.pid, signal.SIGKILL)
    child.join(600)
    if child.is_alive():
        os.killpg(child.pid, signal.SIGKILL)
        raise TimeoutError(f"the child does not end; see {log}")
    _wait_for_group(child.pid)
    return Ended(
        was_killed=child.exitcode == -signal.SIGKILL,
        code=child.exitcode,
        seconds=time.monotonic() - started,
        said=log.read_text(errors="replace")[-3000:],
    )


def _wait_for_group(pid: int, seconds: float = 10.0) -> None:
    """Until what the child started has ended too: a killed dbt lets go of the warehouse last."""
    until = time.monotonic() + seconds
    while _members(pid):
        if time.monotonic() > until:
            raise TimeoutError(f"the child is gone, and of its group there is {_members(pid)}")
        time.sleep(0.01)


def _members(group: int) -> list[str]:
    """Names of the living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name stands in brackets and may have any sign in it.
            head, _, rest = path.read_text().rpartition(")")
            state, _, of_group, *_ = rest.split()
            if int(of_group) == group and state not in "ZX":
                found.append(head.partition("(")[2])
    return found


def _child(
    log: Path, moment: Moment | None, began: Any, work: Callable[..., None], arguments: tuple
) -> None:
    os.setsid()
    with log.open("w") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    if moment is not None and moment.function is not None:
        _kill_at(moment.function, is_before=moment.is_before)
    work(began, *arguments)


def _kill_at(function: str, *, is_before: bool) -> None:
    module, _, path = function.partition(":")
    owner = importlib.import_module(module)
    *outer, name = path.split(".")
    for each in outer:
        owner = getattr(owner, each)
    original = getattr(owner, name)

    def killing(*arguments: Any, **named: Any) -> None:
        if not is_before:
            original(*arguments, **named)
        # The whole group: dbt too.
        os.killpg(0, signal.SIGKILL)

    setattr(owner, name, killing)


def preload_line() -> None:
    """Import what the whole line needs, but for the definitions: they read the environment."""
    for module in _LINE_MODULES:
        importlib.import_module(module)


def run_line(began: Any, environment: dict[str, str]) -> None:
    """`make demo`: the daily job, in this process."""
    os.environ.update(environment)
    began.set()
    sys.argv = ["demo"]
    from orchestration import demo
    from orchestration.processes import end_process

    end_process(demo.main())


def publish_taste(
    began: Any, home: Path, redis_url: str, taste: int, n_users: int, happened_at: datetime = NOW
) -> None:
    """Make another version of a small shop and publish it."""
    warehouse_of_home = Warehouse(home / "warehouse.duckdb", "1GB", patience_seconds=0)
    with warehouse_of_home.connect() as warehouse:
        make_shop(warehouse, taste=taste, users=tuple(f"u{n}" for n in range(n_users)))
        began.set()
        publish_version(
            warehouse,
            # By its name in the module, where the killing is.
            stage(warehouse, created_at=happened_at),
            home / "published",
            redis_url,
            run_id=f"run-{taste}",
            happened_at=happened_at,
        )


# --- what readers see ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """The version on each surface; None where nothing is published yet."""

    warehouse: str | None
    snapshot: str | None
    redis: str | None

    @property
    def is_same(self) -> bool:
        """Whether all surfaces show the same version."""
        return self.warehouse == self.snapshot == self.redis


@dataclass
class Witness:
    """Looks at the surfaces of one home, and remembers what each version held at first sight.

    Attributes:
        home: With warehouse.duckdb and published/.
        redis_url: The server.
        contents: By version, surface and place a digest of all rows.
    """

    home: Path
    redis_url: str
    contents: dict[tuple[str, str], str] = field(default_factory=dict)

    def look(self) -> Shown:
        """Which version each surface shows.

        Raises:
            AssertionError: if a surface shows anything but one whole version: rows counted and
                hashed as when it was staged, and equal to those that any surface ever showed
                under the version's name.
        """
        with self._warehouse() as warehouse, redis.Redis.from_url(self.redis_url) as client:
            shown = Shown(
                self._in_tables(warehouse),
                self._in_snapshot(warehouse),
                self._in_redis(warehouse, client),
            )
            self._ask_readers(warehouse, shown)
        return shown

    @contextmanager
    def _warehouse(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with Warehouse(self.home / "warehouse.duckdb", "1GB").connect() as connection:
            versions.ensure_schema(connection)
            yield connection

    def _in_tables(self, warehouse: duckdb.DuckDBPyConnection) -> str | None:
        live = warehouse.execute(
            "select version, content_hash, n_rows from serving.versions where state = 'live'"
        ).fetchall()
        assert len(live) <= 1, f"several versions are live: {live}"
        if not live:
            for surface in versions.SURFACES:
                rows = warehouse.execute(
                    f"select count(*) from serving.current_{surface.name}"
                ).fetchall()
                assert rows == [(0,)], f"{surface.name} shows rows of no version"
            return None
        ((version, content_hash, n_rows),) = live
        found = []
        for surface in versions.SURFACES:
            relation = f"serving.current_{surface.name}"
            named = warehouse.execute(f"select distinct version from {relation}").fetchall()
            assert named in ([], [(version,)]), f"{relation} shows {named}, live is {version}"
            self._remember(warehouse, surface, relation, version)
            found.append(versions.fingerprint(warehouse, surface, relation))
        assert found == versions.staged_fingerprints(warehouse, version)
        assert versions.combined_hash(found) == content_hash
        assert sum(each.n_rows for each in found) == n_rows
        return version

    def _in_snapshot(self, warehouse: duckdb.DuckDBPyConnection) -> str | None:
        link = self.home / "published" / "current.duckdb"
        if not link.is_symlink():
            return None
        with duckdb.connect(str(link.resolve(strict=True)), read_only=True) as snapshot:
            ((version, content_hash),) = snapshot.execute(
                "select version, content_hash from serving.versions"
            ).fetchall()
            found = []
            for surface in versions.SURFACES:
                relation = f"serving.current_{surface.name}"
                self._remember(snapshot, surface, relation, version)
                found.append(versions.fingerprint(snapshot, surface, relation))
        assert found == versions.staged_fingerprints(warehouse, version)
        assert versions.combined_hash(found) == content_hash
        assert version == files.current_snapshot(self.home / "published")
        files.verify_version_files(self.home / "published", version, contents=True)
        return version

    def _remember(
        self,
        connection: duckdb.DuckDBPyConnection,
        surface: versions.Surface,
        relation: str,
        version: str,
    ) -> None:
        """Every row, in plain SQL and Python's own hash: not the hash the product goes by."""
        rows = connection.execute(
            f"select {surface.column_list} from {relation} order by {surface.grain_list}"
        ).fetchall()
        digest = hashlib.sha256(repr(rows).encode()).hexdigest()
        first = self.contents.setdefault((version, surface.name), digest)
        assert first == digest, f"{relation} of version {version} is not what it was at first"

    def _in_redis(self, warehouse: duckdb.DuckDBPyConnection, client: redis.Redis) -> str | None:
        pointer: Any = client.get(POINTER)
        if pointer is None:
            return None
        version = pointer.decode()
        manifest: Any = client.get(manifest_key(version))
        assert manifest is not None, f"{POINTER} names {version}, which has no manifest"
        told = json.loads(manifest)
        for kind in KINDS:
            expected: dict[str, list[tuple]] = {}
            for list_id, _, product_id, score, source, reason in warehouse.execute(
                f"select * from ({rows_sql(kind, has_versions=True)}) order by list_id, rank",
                {"version": version},
            ).fetchall():
                item = (product_id, published_score(score), source, reason)
                expected.setdefault(list_id, []).append(item)
            values: Any = client.hgetall(key(version, kind))
            found = {
                list_id.decode(): [
                    (item.product_id, item.score, item.source, item.reason)
                    for item in decode(value)
                ]
                for list_id, value in values.items()
            }
            assert told["n_lists"][kind] == len(found), f"{kind} of {version}: lists are missing"
            assert found == expected, f"{kind} of {version} is not what the table holds"
        return version

    def _ask_readers(self, warehouse: duckdb.DuckDBPyConnection, shown: Shown) -> None:
        """The product's own reader says of each surface what SQL says of that version."""
        for version, source in (
            (shown.redis, {"redis_url": self.redis_url}),
            (shown.snapshot, {"snapshot": self.home / "published" / "current.duckdb"}),
        ):
            if version is None:
                continue
            with Reader(**source) as reader:
                for user, products in warehouse.execute(
                    "select user_id, list(product_id order by rank) from serving.recommendations"
                    " where version = $version group by user_id order by user_id limit 3",
                    {"version": version},
                ).fetchall():
                    asked = reader.recommend(user, k=len(products) + 1)
                    assert [each.product_id for each in asked] == products

    def leftovers(self) -> set[str]:
        """What the surfaces still hold beside the versions that are kept: nothing, after a run."""
        with self._warehouse() as warehouse:
            kept = {each.version for each in versions.kept_versions(warehouse)}
        with redis.Redis.from_url(self.redis_url) as client:
            in_redis = {name.decode().split(":")[1] for name in client.scan_iter("recmart:*:*")}
        published = self.home / "published"
        on_disk = {path.name for path in (published / "versions").iterdir()}
        beside = {path.name for path in published.iterdir()} - {"versions", "current.duckdb"}
        return (in_redis | on_disk | beside) - kept


@dataclass
class Tally:
    """What came of a loop of kills.

    Attributes:
        kills: By step the number of kills; a run that ended before its moment is none.
        survived: Of those, after how many every surface showed one whole version.
        n_split: After how many not all surfaces showed the same one.
        n_next: Runs after a kill, or after several in a row, that had to succeed.
        n_mended: Of those, how many did, with the new version on every surface and nothing left.
        problems: What did not hold, in words.
    """

    kills: dict[str, int] = field(default_factory=dict)
    survived: dict[str, int] = field(default_factory=dict)
    n_split: int = 0
    n_next: int = 0
    n_mended: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def n_kills(self) -> int:
        """Over all steps."""
        return sum(self.kills.values())

    @property
    def n_survived(self) -> int:
        """Over all steps."""
        return sum(self.survived.values())

    def killed(self, moment: Moment, witness: Witness, may_show: set[str | None]) -> Shown | None:
        """Look after a kill; remember what is wrong and go on. May show anything if it is empty."""
        self.kills[moment.step] = self.kills.get(moment.step, 0) + 1
        self.survived.setdefault(moment.step, 0)
        try:
            shown = witness.look()
            seen = {shown.warehouse, shown.snapshot, shown.redis}
            assert seen <= may_show or not may_show, f"{seen} is shown, not one of {may_show}"
        except Exception as error:
            self.problems.append(f"killed {moment}: {error!r}")
            return None
        self.survived[moment.step] += 1
        self.n_split += not shown.is_same
        return shown

    def mended(self, ended: Ended, witness: Witness) -> Shown | None:
        """Look after the next run."""
        self.n_next += 1
        try:
            assert ended.code == 0, f"the next run failed: {ended.said}"
            shown = witness.look()
            assert shown.is_same and shown.redis is not None, f"not the same everywhere: {shown}"
            left = witness.leftovers()
            assert not left, f"left over: {left}"
        except Exception as error:
            self.problems.append(f"after a kill: {error!r}")
            return None
        self.n_mended += 1
        return shown


def kill_publishing(
    context: Any,
    witness: Witness,
    *,
    n_kills: int,
    seed: int,
    n_users: int,
    progress: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Kill runs that publish, from the table write on; every third one is followed by a whole one.

    The home has to have a published version.
    """
    tally = Tally()
    log = witness.home / "child.log"
    taste = 1000
    started = time.monotonic()
    whole = run_child(
        context, log, None, publish_taste, witness.home, witness.redis_url, taste, n_users
    )
    assert whole.code == 0, whole.said
    longest = time.monotonic() - started
    chosen = random.Random(seed)
    waiting = moments(PUBLISH_STEPS, 2 * n_kills, longest_seconds=0.8 * longest, seed=seed)
    before: Shown | None = witness.look()
    while tally.n_kills < n_kills and waiting:
        moment = waiting.pop()
        taste += 1
        arguments = (publish_taste, witness.home, witness.redis_url, taste, n_users)
        ended = run_child(context, log, moment, *arguments)
        if not ended.was_killed:
            assert ended.code == 0, ended.said
            before = witness.look()
            continue
        may_show: set[str | None] = set()
        if before is not None:
            with witness._warehouse() as warehouse:
                staged = versions.staged_version(warehouse).version
            may_show = {before.warehouse, before.snapshot, before.redis, staged}
        before = tally.killed(moment, witness, may_show)
        if chosen.random() < 1 / 3 or tally.n_kills == n_kills:
            before = tally.mended(run_child(context, log, None, *arguments), witness)
        progress(f"{tally.n_kills} of {n_kills} kills while publishing")
    return tally
