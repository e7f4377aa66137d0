"""Processes of the line; dbt runs what was parsed last, but only if it was as the line runs it."""

import gc
import os
import subprocess
from dataclasses import replace

import pytest
from dbt.contracts.graph.manifest import Manifest
from dbt.contracts.graph.nodes import SeedNode

# Parses the project, if it was not.
import orchestration.dbt_assets  # noqa: F401
from orchestration import parsed_dbt
from orchestration.parsed_dbt import DATABASE, PARSED, PROJECT, is_ours
from orchestration.processes import imported_at_once
from orchestration.settings import PARSED_DBT


def parsed(**changes):
    """The project as it was parsed last, with other values in one of its seeds."""
    manifest = Manifest.from_msgpack(PARSED.read_bytes())
    for node in manifest.nodes.values():
        node.database = DATABASE
        if isinstance(node, SeedNode):
            node.root_path = str(PROJECT)
    name = "seed.recmart.event_weights"
    manifest.nodes[name] = replace(manifest.nodes[name], **changes)
    return manifest


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, True),
        # dbt parse --project-dir dbt_project
        ({"root_path": "dbt_project"}, False),
        # RECMART_WAREHOUSE=trial.duckdb dbt parse
        ({"database": "trial"}, False),
    ],
    ids=["by the line", "with a relative path", "on another file"],
)
def test_what_was_parsed_otherwise_is_parsed_again(changes, expected):
    assert is_ours(parsed(**changes)) is expected


def test_parsed_again_it_is_as_the_line_runs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(parsed_dbt, "PARSED", tmp_path / PARSED.name)
    monkeypatch.setenv("RECMART_WAREHOUSE", str(tmp_path / "trial.duckdb"))
    parsed_dbt.parse()
    assert is_ours(Manifest.from_msgpack((tmp_path / PARSED.name).read_bytes()))
    assert os.environ["RECMART_WAREHOUSE"] == str(tmp_path / "trial.duckdb")


def test_the_warehouse_is_closed_when_dbt_ends(tmp_path):
    folders = {"project": PROJECT, "profiles": PROJECT}
    arguments = [f"--{name}-dir={folder}" for name, folder in folders.items()]
    arguments += [f"--target-path={tmp_path / 'dbt'}", "--quiet"]
    # A table that is made, and one whose source is not there.
    for name, code in (("event_weights", 0), ("base_events", 1)):
        done = subprocess.run(
            [PARSED_DBT, "build", "--select", name, *arguments],
            env={**os.environ, "RECMART_HOME": str(tmp_path)},
        )

        assert done.returncode == code
        # What is not in the file would stand beside it, to be read again by the next.
        assert [path.name for path in tmp_path.glob("warehouse.*")] == ["warehouse.duckdb"]


def test_garbage_is_looked_for_again_even_after_an_import_that_failed():
    with pytest.raises(ImportError), imported_at_once():
        assert not gc.isenabled()
        import orchestration.there_is_no_such_module  # noqa: F401

    assert gc.isenabled()
