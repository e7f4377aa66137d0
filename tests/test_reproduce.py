"""A version is made again from its files, equal in every hash; what has changed since is named."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import dagster as dg
import pytest
from lines import line_in, why_it_failed, write_files
from publishing_for_tests import make_shop, open_warehouse, stage

from exports import origins
from exports.errors import PublishError
from exports.origins import PART, Ingredient, differing_ingredients, made_by
from exports.reproduction import as_table, compare
from exports.versions import SURFACES
from orchestration import reproduce, settings
from orchestration.landing.synthetic_shop import write_shop
from orchestration.schedules import LEARNED

REPOSITORY = Path(__file__).resolve().parents[1]
INPUTS = [["raw", "events"], ["intermediate", "int_as_of"], ["marts", "signals"]]
MODELS = [["ml", "item_factors"], ["ml", "item_neighbours"], ["ml", "content_neighbours"]]
HEADER = "user_id,product_id,event_type,event_ts\n"


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """A night's version, and one of an hour later with the night's models; then a file landed."""
    line = line_in(tmp_path_factory.mktemp("reproduce"))
    write_shop(
        line.settings.data,
        n_users=60,
        n_products=40,
        n_events=3_000,
        n_days=60,
        start=date(2024, 1, 1),
        seed=3,
        file_format="mixed",
        dirt={"exact_duplicates": 0.01, "future_dates": 0.01, "late_files": 0.05},
    )
    # What a version needs, and no more: gates, copies and reports change none.
    candidate = dg.AssetSelection.assets(["serving", "candidate"])
    needed = candidate.upstream().required_multi_asset_neighbors()
    result = line.run(needed, has_gates=False)
    assert result.success, why_it_failed(result)
    last, product = line.query("select max(event_at), min(product_id) from staging.stg_events")[0]
    events = f"{HEADER}somebody new,{product},view,{last}\n"
    write_files(line.settings.data, events__new_csv=events)
    # The same again under another name, and a catalogue with one line more.
    write_files(line.settings.data, events__again_csv=events)
    write_files(line.settings.data, products__z_csv="product_id,title\nlate,Late lamp\n")
    result = line.run(needed - LEARNED, job_name="refresh_recommendations", has_gates=False)
    assert result.success, why_it_failed(result)
    line.night, line.hour = (
        version
        for (version,) in line.query("select version from serving.versions order by created_at")
    )
    return line


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


def test_a_refreshed_version_and_the_one_it_has_its_models_from_are_made_again_on_one_thread(line):
    before = bytes_of(line.settings.home, line.settings.data)

    done = subprocess.run(
        [sys.executable, "-m", "orchestration.reproduce", "--threads", "1", "--version", line.hour],
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
    assert done.stdout.count("  equal\n") == 2 * len(SURFACES)
    assert f"Version {line.night}:" in done.stdout and f"Version {line.hour}:" in done.stdout
    assert "Making it again on 1 thread." in done.stdout
    assert done.stdout.endswith("Everything is equal.\n")
    assert bytes_of(line.settings.home, line.settings.data) == before


def test_what_a_version_was_made_from_is_in_sql(line):
    files = line.query(
        "select source_file, content_sha256, n_bytes, same_content_as from serving.version_files"
        f" where version = '{line.hour}' order by source_file"
    )
    on_disk = {
        path.relative_to(line.settings.data).as_posix(): path
        for path in line.settings.data.rglob("*")
        if path.is_file()
    }
    assert {name: (sha256, size) for name, sha256, size, _ in files} == {
        name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        for name, path in on_disk.items()
        if name.split("/")[0] in ("events", "products", "users")
    }
    assert {row[3] for row in files} == {None, "events/again.csv"}
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
    changed, missing = (line.settings.data / "events" / name for name in ("new.csv", "again.csv"))
    former = changed.read_text()
    changed.write_text(former + former.splitlines()[1])
    missing.unlink()
    try:
        code, said = ask("--version", line.hour)
    finally:
        changed.write_text(former)
        missing.write_text(former)

    assert code == reproduce.REFUSED
    assert "- events/new.csv has changed since, or was sent again with other content" in said
    assert "- events/again.csv is not in " in said and "put it back from your archive" in said
    assert said.count("\n- ") == 2


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
        "There is no version 20000101T000000-0. Versions that are kept: "
        f"{', '.join(sorted((line.night, line.hour)))}.\n",
    )
    assert ask() == (
        reproduce.REFUSED,
        "No version is live. Name one: make reproduce VERSION=...\n",
    )
    code, said = ask("--version", line.night, "--threads", "100000")
    assert code == reproduce.REFUSED and "THREADS is 100000; expected is a number from 1" in said


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
    assert made_by([*assets, ["ml", "recommendations"], ["serving", "candidate"]]) == says


def test_a_version_from_before_it_was_recorded_is_refused(tmp_path):
    with open_warehouse(tmp_path) as connection:
        make_shop(connection)
        version = stage(connection).version

    with pytest.raises(PublishError, match="was made before recmart recorded"):
        reproduce.read_steps(replace(settings.from_environment(), home=tmp_path), version)


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

    def compared():
        with open_warehouse(rebuilt) as connection:
            return compare(connection, kept / "warehouse.duckdb", version, popular_depth=100)

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
