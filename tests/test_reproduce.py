"""A version is made again from its files, equal in every hash; what has changed since is named."""

import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event

import pytest
from lines import Line, copy_of, line_in, write_files
from publishing_for_tests import NOW, make_shop, open_warehouse, stage

from exports import origins
from exports.errors import PublishError
from exports.origins import PART, Ingredient, InputFile, differing_ingredients, kind_of_run
from exports.reproduction import as_table, compare
from exports.versions import SURFACES
from ml_assets.threads import n_threads
from ml_assets.warehouse import WarehouseBusyError
from orchestration import reproduce, settings
from orchestration.landing.contract import LandingError
from orchestration.landing.ingest import ingest_folder

REPOSITORY = Path(__file__).resolve().parents[1]
INPUTS = [["raw", "events"], ["intermediate", "int_as_of"], ["marts", "signals"]]
MODELS = [
    ["ml", "item_factors"],
    ["ml", "item_neighbours"],
    ["ml", "content_neighbours"],
    ["intermediate", "int_pair_counts"],
]
HEADER = "user_id,product_id,event_type,event_ts\n"


@pytest.fixture(scope="module")
def line(small_line, tmp_path_factory):
    """A night's version; after it a file landed."""
    line = copy_of(small_line, tmp_path_factory.mktemp("reproduce"))
    line.night = line.value("select version from serving.versions")
    event = f"somebody new,{small_line.product},view,2024-03-01\n"
    assert land(line, "2024-03-01 12:00", events__new_csv=HEADER + event) is None
    return line


def land(line, received_at, **files):
    """Files arrive and are loaded; what went wrong, if anything."""
    write_files(line.settings.data, **files)
    with line.settings.warehouse.connect() as connection:
        try:
            ingest_folder(
                connection,
                line.settings.data,
                received_at=datetime.fromisoformat(received_at),
                progress=lambda _: None,
                pseudonym_key=line.settings.pseudonym_key,
            )
        except LandingError as error:
            return str(error)
    return None


@pytest.fixture
def ask(line, monkeypatch, capsys):
    """`make reproduce` as far as it goes without a run: the code, and what was said."""
    monkeypatch.setenv("RECMART_HOME", str(line.settings.home))
    monkeypatch.setenv("RECMART_DATA", str(line.settings.data))

    def asked(*arguments):
        code = reproduce.main(arguments)
        return code, "".join(capsys.readouterr())

    return asked


def bytes_of(*folders):
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_version_is_made_again_on_another_number_of_threads_and_nothing_else_is_touched(line):
    before = bytes_of(line.settings.home, line.settings.data)

    done = subprocess.run(
        [sys.executable, "-m", "orchestration.reproduce", "--version", line.night],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "RECMART_HOME": str(line.settings.home),
            "RECMART_DATA": str(line.settings.data),
            "RECMART_MEMORY_LIMIT": "1GB",
        },
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("  equal\n") == len(SURFACES)
    n = reproduce.other_number(n_threads(), n_threads())
    assert f"on {n_threads()} thread" in done.stdout
    assert f"Making it again on {n} thread" in done.stdout
    assert "- 1 file was loaded after it was made: it is left out." in done.stdout
    assert done.stdout.endswith("Everything is equal.\n")
    assert bytes_of(line.settings.home, line.settings.data) == before


def test_all_libraries_take_the_cores_they_are_given():
    count = (
        "import polars; from ml_assets.threads import n_threads;"
        "from ml_assets.warehouse import Warehouse; from pathlib import Path\n"
        "with Warehouse(Path(':memory:'), '1GB').connect() as connection:\n"
        "    print(n_threads(), polars.thread_pool_size(),"
        " *connection.execute(\"select current_setting('threads')\").fetchone())"
    )

    with reproduce.only_cores(1):
        said = subprocess.run(
            [sys.executable, "-c", count],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert said.split() == ["1", "1", "1"]


ROW = "u{},p1,view,2024-01-0{}\n"
CATALOGUE = "product_id,title\np1,lamp\n"
# What arrived when: a file without a catalogue, a file that was corrected after another name had
# taken its content, a catalogue that was sent again, an older one that came back, the same twice.
LOADS = [
    ("2024-01-05", {"events__c_csv": HEADER + ROW.format(1, 1)}),
    ("2024-01-06", {"products__a_csv": CATALOGUE, "events__b_csv": HEADER + ROW.format(1, 1)}),
    (
        "2024-01-07",
        {"products__b_csv": CATALOGUE + "p2,chair\n", "events__a_csv": HEADER + ROW.format(1, 1)},
    ),
    ("2024-01-08", {"events__c_csv": HEADER + ROW.format(2, 2) + "too,few\n"}),
    ("2024-01-09", {"products__c_csv": CATALOGUE, "events__d_csv": HEADER + ROW.format(3, 3)}),
]


@pytest.mark.parametrize("key", [None, "k" * 32])
def test_files_are_loaded_again_as_they_were_whatever_order_they_came_in(tmp_path, key):
    line, again = (
        Line(replace(line_in(tmp_path / name).settings, pseudonym_key=key))
        for name in ("once", "again")
    )
    (line.settings.data / "products").mkdir(parents=True)
    columns = ", ".join(field.name for field in fields(InputFile))
    said, known = [], []
    for day, files in LOADS:
        said.append(land(line, day, **files))
        known.append(
            [InputFile(*row) for row in line.query(f"select {columns} from raw.landing_files")]
        )
    assert "not one row of products" in said[0] and said[1:] == [None] * 4
    # In two steps: what a night's models were learned from, and then the rest.
    night, hour = known[-2:]
    folder = tmp_path / "links"

    assert reproduce.land_files(again.settings, night, [], folder, line.settings.data) == []
    assert reproduce.land_files(again.settings, hour, night, folder, line.settings.data) == []

    for table in ("events", "products", "malformed_lines", "landing_files"):
        rows = f"from raw.{table} order by all"
        assert again.query(rows) == line.query(rows), table
    assert {file.same_content_as for file in hour} > {None}


def test_an_adapters_files_are_listed_and_loaded_again(tmp_path):
    line, again = line_in(tmp_path / "once"), line_in(tmp_path / "again")
    write_files(line.settings.data, tables__a_csv="u1,p1\n", notes__a_md="about it")
    (line.settings.data / "adapter.sql").write_text(
        "create view events as select column0 as user_id, column1 as product_id, 'view' as"
        " event_type, '2024-01-01' as event_ts from read_csv('tables/a.csv', header = false);"
        "create view products as select 'p1' as product_id, 'lamp' as title"
    )
    assert land(line, "2024-01-02") is None
    with line.settings.warehouse.connect() as connection:
        connection.execute("create schema serving")
        origins.create_tables(connection)
        origins.keep_origin(connection, "v", [Ingredient("run", "threads", "2")], replace=True)
        files = origins.files_of(connection, "v")

    assert [(file.source_file, file.entity) for file in files] == [
        ("adapter.sql", "adapter"),
        ("adapter.sql#events", "events"),
        ("adapter.sql#products", "products"),
        ("tables/a.csv", "adapter"),
    ]
    assert reproduce.land_files(again.settings, files, [], tmp_path / "l", line.settings.data) == []
    for table in ("events", "landing_files", "adapter_files"):
        rows = f"from raw.{table} order by all"
        assert again.query(rows) == line.query(rows), table
    (line.settings.data / "tables" / "a.csv").write_text("u2,p1\n")
    (said,) = origins.differing_files(files, line.settings.data)
    assert said.startswith("tables/a.csv has changed since")


def test_what_a_version_was_made_from_is_in_sql(line):
    files = line.query(
        "select source_file, content_sha256, n_bytes, same_content_as from serving.version_files"
        f" where version = '{line.night}' order by source_file"
    )
    on_disk = {
        path.relative_to(line.settings.data).as_posix(): path
        for path in line.settings.data.rglob("*")
        if path.is_file()
    }
    assert {name: (sha256, size) for name, sha256, size, _ in files} == {
        name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        for name, path in on_disk.items()
        if name != "events/new.csv"
    }
    assert {row[3] for row in files} == {None, "events/events_2024-01.parquet"}
    kept = dict(
        line.query(
            "select kind || ' ' || name, value from serving.version_origins"
            f" where version = '{line.night}'"
        )
    )
    assert kept["run made_by"] == "daily_recommendations"
    assert kept["package python"].startswith("3.")
    weights = settings.EVENT_WEIGHTS.read_text()
    assert line.query(
        "select value, content from serving.version_origins where name = 'event_weights.csv'"
        f" and version = '{line.night}'"
    ) == [(hashlib.sha256(weights.encode()).hexdigest(), weights)]


def test_changed_and_missing_landing_files_are_named_each(line, ask):
    changed, missing = (
        line.settings.data / name for name in ("events/events_2024-02.csv", "products/products.csv")
    )
    former = changed.read_bytes(), missing.read_bytes()
    changed.write_bytes(former[0] + b"x")
    missing.unlink()
    try:
        code, said = ask("--version", line.night)
    finally:
        changed.write_bytes(former[0])
        missing.write_bytes(former[1])

    assert code == reproduce.REFUSED
    assert "- events/events_2024-02.csv has changed since, or was sent again with other" in said
    assert "- products/products.csv is not in " in said and "put it back from your archive" in said
    assert said.count("\n- ") == 2 and "ANYWAY" not in said


def test_a_changed_seed_and_another_package_are_named(line, ask, monkeypatch, tmp_path):
    weights = tmp_path / "event_weights.csv"
    weights.write_text(settings.EVENT_WEIGHTS.read_text().replace("view,1", "view,2"))
    monkeypatch.setattr(reproduce, "CONFIG_FILES", (weights, *settings.CONFIG_FILES[1:]))
    release = origins._release
    monkeypatch.setattr(
        origins, "_release", lambda name: "9.9" if name == "numba" else release(name)
    )

    code, said = ask("--version", line.night)

    assert code == reproduce.REFUSED
    assert "- event_weights.csv has changed since. Its text of then: select content from" in said
    assert f"- numba is 9.9; it was {release('numba')} then. Install " in said
    assert said.count("\n- ") == 2
    assert "ANYWAY=1" in said
    # As far as it goes without a run.
    _, said = ask("--version", line.night, "--anyway", "--threads", "100000")
    assert "- numba is 9.9" in said and "THREADS is 100000" in said


def test_other_code_is_named_with_what_to_check_out():
    (said,) = differing_ingredients(
        [Ingredient("code", "recmart", "a")],
        [Ingredient("code", "recmart", "b")],
        version="v",
        code_then="0.1.0+abc1234-dirty",
    )

    assert said == (
        "The code has changed since 0.1.0+abc1234-dirty (with edits that were not committed): "
        "check that commit out, or install that release."
    )


def test_an_unknown_version_and_a_wrong_number_of_threads_are_refused(line, ask):
    assert ask("--version", "20000101T000000-0") == (
        reproduce.REFUSED,
        f"There is no version 20000101T000000-0. Versions that are kept: {line.night}.\n",
    )
    assert ask() == (
        reproduce.REFUSED,
        "No version is live. Name one: make reproduce VERSION=...\n",
    )
    for n in ("100000", "0"):
        code, said = ask("--version", line.night, "--threads", n)
        assert code == reproduce.REFUSED and f"THREADS is {n}; expected is a number from 1" in said


@pytest.mark.parametrize(
    ("assets", "says"),
    [
        ([], PART),
        (MODELS, PART),
        (INPUTS, "refresh_recommendations"),
        ([*INPUTS, *MODELS[1:]], "refresh_recommendations"),
        ([*INPUTS, *MODELS], "daily_recommendations"),
    ],
)
def test_what_kind_of_run_made_a_version_follows_from_what_it_made(assets, says):
    assert kind_of_run([*assets, ["ml", "recommendations"], ["serving", "candidate"]]) == says


def test_users_erased_since_are_counted_and_why_lists_may_differ_is_said(
    line, tmp_path, monkeypatch, capsys
):
    copy = copy_of(line, tmp_path)
    with copy.settings.warehouse.connect() as connection:
        for user, erased_at in (("before", "2000-01-01"), ("after", "2999-01-01")):
            connection.execute("insert into raw.erased_users values (?, ?)", [user, erased_at])
    monkeypatch.setenv("RECMART_HOME", str(copy.settings.home))
    monkeypatch.setenv("RECMART_DATA", str(copy.settings.data))

    # Refused just before it would run.
    reproduce.main(["--version", line.night, "--threads", "100000"])

    said = capsys.readouterr().out
    assert "- 1 user was erased after it was made. Left out here too, but models" in said


def test_a_version_from_before_it_was_recorded_is_refused(tmp_path):
    with open_warehouse(tmp_path) as connection:
        make_shop(connection)
        version = stage(connection).version

    with pytest.raises(PublishError, match="was made before recmart recorded"):
        reproduce.read_steps(replace(settings.from_environment(), home=tmp_path), version)


def test_a_refreshed_version_is_made_again_after_the_one_that_learned_its_models(tmp_path):
    by_night, by_hour = kind_of_run([*INPUTS, *MODELS]), kind_of_run(INPUTS)
    found = {}
    with open_warehouse(tmp_path) as connection:
        # Models and pairs of products.
        for hour, (job, *learned) in enumerate(
            [
                (by_night, "a", "x"),
                (by_night, "b", "x"),
                (by_night, "b", "y"),
                (by_hour, "a", "x"),
                (by_hour, "b", "x"),
                (by_hour, "c", "x"),
                (by_hour, "a", "y"),
            ]
        ):
            make_shop(connection, taste=hour)
            connection.execute(f"update ml.scored_products set model_hash = '{learned[0]}'")
            found[job, *learned] = stage(
                connection,
                created_at=NOW + timedelta(hours=hour),
                origin=[
                    Ingredient("run", "made_by", job),
                    Ingredient("learned", "pairs", learned[1]),
                ],
            ).version
    home = replace(settings.from_environment(), home=tmp_path)

    def steps(version):
        return [step.version.version for step in reproduce.read_steps(home, version)]

    assert steps(found[by_night, "b", "x"]) == [found[by_night, "b", "x"]]
    for learned in (("a", "x"), ("b", "x")):
        assert steps(found[by_hour, *learned]) == [
            found[by_night, *learned],
            found[by_hour, *learned],
        ]
    for learned in (("c", "x"), ("a", "y")):
        with pytest.raises(PublishError, match="no version of daily_recommendations has the same"):
            steps(found[by_hour, *learned])


def test_a_run_that_is_at_work_is_waited_for_and_others_are_kept_out(line, capsys):
    is_at_work, has_ended = Event(), Event()

    def run():
        with line.settings.warehouse.held():
            is_at_work.set()
            time.sleep(0.5)
            has_ended.set()

    with ThreadPoolExecutor() as beside:
        done = beside.submit(run)
        assert is_at_work.wait(60)
        with reproduce.at_rest(line.settings):
            assert has_ended.is_set()
            with pytest.raises(WarehouseBusyError), line.settings.warehouse.held():
                pass
        done.result()
    assert "waiting for its end" in capsys.readouterr().out


def test_another_number_of_threads_is_taken_by_itself():
    assert [reproduce.other_number(then, 4) for then in (1, 2, 4)] == [4, 4, 2]
    assert reproduce.other_number(1, 1) == 1


@pytest.fixture
def pair(tmp_path):
    """A version that is kept, and the same content in another warehouse."""
    kept, rebuilt = tmp_path / "kept", tmp_path / "rebuilt"
    for folder in (kept, rebuilt):
        folder.mkdir()
        with open_warehouse(folder) as connection:
            make_shop(connection)
            version = stage(connection)

    def compared(**changed):
        with open_warehouse(rebuilt) as connection:
            return compare(
                connection,
                kept / "warehouse.duckdb",
                replace(version, **changed),
                popular_depth=100,
            )

    return kept, rebuilt, compared


def verdicts(compared):
    return {each.made.surface: each.verdict for each in compared if not each.is_equal}


def test_rows_that_were_tampered_with_are_reported_with_their_surface(pair):
    kept, _, compared = pair
    assert verdicts(compared()) == {}
    with open_warehouse(kept) as connection:
        connection.execute(
            "update serving.recommendations set product_id = 'p99'"
            " where user_id = 'bob' and rank = 2"
        )

    found = compared()

    assert verdicts(found) == {"recommendations": "KEPT ROWS DIFFER"}
    (surface,) = [each for each in found if not each.is_equal]
    there, here = surface.lines
    assert there.startswith("only kept: user_id='bob', rank=2, product_id='p99'")
    assert here.startswith("only rebuilt: user_id='bob', rank=2, product_id='p")
    table = as_table(found)
    assert f"recommendations: {there}" in table and table.count("  equal\n") == len(SURFACES) - 1


def test_a_rebuild_that_differs_and_a_hash_that_was_tampered_with_are_told_apart(pair):
    kept, rebuilt, compared = pair
    with open_warehouse(rebuilt) as connection:
        connection.execute("update marts.on_sale set price = price / 2 where rank = 1")
    with open_warehouse(kept) as connection:
        connection.execute(
            "update serving.version_surfaces set content_hash = 'x' where surface = 'products'"
        )

    found = compared()

    assert verdicts(found) == {"on_sale": "REBUILT DIFFERS", "products": "NOTED HASH DIFFERS"}


def test_a_version_whose_rows_are_removed_is_compared_with_what_was_noted(pair):
    _, rebuilt, compared = pair
    removed = {"removed_at": NOW}
    assert {each.verdict for each in compared(**removed)} == {"equal, rows not kept"}
    with open_warehouse(rebuilt) as connection:
        connection.execute("update marts.on_sale set price = price / 2 where rank = 1")

    assert verdicts(compared(**removed)) == {"on_sale": "REBUILT DIFFERS"}
