"""dbt runs what was parsed last, but only where that was parsed as the line runs it."""

import os
from dataclasses import replace

import pytest
from dbt.contracts.graph.manifest import Manifest
from dbt.contracts.graph.nodes import SeedNode

# Parses the project, if it was not.
import orchestration.dbt_assets  # noqa: F401
from orchestration import parsed_dbt
from orchestration.parsed_dbt import DATABASE, PARSED, PROJECT, is_ours


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
