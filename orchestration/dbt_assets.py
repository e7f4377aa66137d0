"""The dbt project as assets, its tests as asset checks."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_dbt import (
    DagsterDbtTranslator,
    DagsterDbtTranslatorSettings,
    DbtCliResource,
    DbtProject,
    dbt_assets,
)
from packaging.version import Version

from ml_assets.assets import failed_if_missing
from ml_assets.threads import n_threads
from ml_assets.warehouse import Warehouse, require_table
from orchestration.gates import import_early
from orchestration.settings import DBT, DBT_PROJECT_DIR, Settings

project = DbtProject(project_dir=DBT_PROJECT_DIR, profiles_dir=DBT_PROJECT_DIR)


def _is_parsed(project: DbtProject) -> bool:
    """Whether the manifest is there and younger than every file it was made from.

    Folders count too: a renamed or removed file is seen there alone.
    """
    parsed = project.manifest_path.with_name("partial_parse.msgpack")
    if not (project.manifest_path.exists() and parsed.exists()):
        return False
    parsed_at = project.manifest_path.stat().st_mtime
    sources = (
        path
        for path in project.project_dir.rglob("*")
        if path.suffix in {"", ".sql", ".yml", ".csv"}
        and not {"target", "logs"} & set(path.relative_to(project.project_dir).parts)
    )
    return all(path.stat().st_mtime <= parsed_at for path in sources)


# A fresh clone, or a model that was edited: the assets must be those of the files as they are.
if not _is_parsed(project):
    subprocess.run(
        [
            DBT,
            "parse",
            "--quiet",
            "--project-dir",
            DBT_PROJECT_DIR,
            "--profiles-dir",
            DBT_PROJECT_DIR,
        ],
        check=True,
    )


class InstalledDbt(DbtCliResource):
    """dbt as it is installed beside us, without asking it for its version before every run.

    `dbt --version` looks for newer releases on the network: seconds each time, and far more where
    the network drops packets.
    """

    @property
    def _cli_version(self) -> Version:
        return Version(metadata.version("dbt-core"))

    def _initialize_dbt_core_adapter(self, args: Sequence[str]) -> None:
        """None: we ask the warehouse ourselves, and dagster-dbt's own takes a second to import."""


class DbtConfig(dg.Config):
    """What a run of the dbt models can be told.

    Attributes:
        as_of: A day as YYYY-MM-DD: nothing after it is read. Empty: the latest event's day.
        variables: Further variables of dbt_project.yml, as JSON.
    """

    as_of: str = ""
    variables: str = "{}"


# What a generic test says, by its arguments; {bounds} are those of accepted_range.
_SAYS = {
    "unique_combination": "No two rows agree in {columns}.",
    "unique": "No two rows agree in {column_name}.",
    "not_null": "No row is without {column_name}.",
    "relationships": "Each {column_name} is a {field} of {to}.",
    "accepted_values": "Each {column_name} is one of {values}.",
    "accepted_range": "Each {column_name} is a number{bounds}.",
}


def said_by_test(node: Mapping[str, Any]) -> str:
    """What has to hold for a test to pass, or what it means if not: the comment above its SQL.

    Args:
        node: The test in manifest.json.
    """
    metadata = node.get("test_metadata")
    if not metadata:
        comment = takewhile(lambda line: line.startswith("--"), node["raw_code"].splitlines())
        return " ".join(line.removeprefix("--").strip() for line in comment)
    given = metadata["kwargs"]
    bounds = [
        f" {word} {given[name]}"
        for word, name in (("from", "min_value"), ("to", "max_value"))
        if name in given
    ]
    texts = {
        name: ", ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in given.items()
    }
    texts["to"] = re.sub(r"^ref\('(\w+)'\)$", r"\1", given.get("to", ""))
    return _SAYS[metadata["name"]].format(**texts, bounds="".join(bounds))


class Translator(DagsterDbtTranslator):
    """The checks say what they are about."""

    def get_asset_check_spec(
        self,
        asset_spec: dg.AssetSpec,
        manifest: Mapping[str, Any],
        unique_id: str,
        project: DbtProject | None,
    ) -> dg.AssetCheckSpec | None:
        """Of a test, if it is a check of this asset."""
        spec = super().get_asset_check_spec(asset_spec, manifest, unique_id, project)
        return spec and spec._replace(description=said_by_test(manifest["nodes"][unique_id]))


@dbt_assets(
    manifest=project.manifest_path,
    project=project,
    dagster_dbt_translator=Translator(
        settings=DagsterDbtTranslatorSettings(enable_source_tests_as_checks=True)
    ),
)
def dbt_models(
    context: dg.AssetExecutionContext,
    config: DbtConfig,
    dbt: DbtCliResource,
    settings: dg.ResourceParam[Settings],
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[Any]:
    """Run the models and their tests in order; a failing test stops what is built on it."""
    variables = variables_of(config)
    _require_what_is_left_out(warehouse, context)
    # The profile reads these.
    os.environ["RECMART_HOME"] = str(settings.home)
    os.environ["RECMART_MEMORY_LIMIT"] = settings.memory_limit
    os.environ["RECMART_THREADS"] = str(n_threads())
    # Unit tests judge the SQL, not the data: they run with the test suite, not every night.
    arguments = ["build", "--exclude-resource-type", "unit_test"]
    if not context.selected_asset_check_keys:
        arguments += ["--exclude-resource-type", "test"]
    # A test that also reads a table which this run leaves as it was would compare two days.
    arguments += ["--indirect-selection", "buildable"]
    if variables:
        arguments += ["--vars", json.dumps(variables)]
    # One folder: of its own for each run, as by default, they would fill the disk.
    target = settings.home / "dbt"
    target.mkdir(parents=True, exist_ok=True)
    # Nobody reads it; where there is none, dagster-dbt makes a copy that everybody may read.
    (target / "partial_parse.msgpack").touch()
    invocation = dbt.cli(
        arguments,
        context=context,
        raise_on_error=False,
        target_path=target,
    )
    import_early()
    # Held back until dbt has let go of the warehouse, so that rows can be counted.
    events = []
    try:
        for event in invocation.stream():
            events.append(event)
            progress = _progress(event)
            if progress:
                context.log.info(progress)
    except BaseException:
        # A step that ends here (Dagster's own disk is full) must not leave dbt working alone: it
        # has the warehouse in its hands, and the next run would be turned away.
        invocation.process.kill()
        invocation.process.wait()
        raise
    n_rows = _row_counts(warehouse, context)
    for event in events:
        if isinstance(event, dg.Output | dg.AssetMaterialization) and event.metadata is not None:
            key = _asset_path(context, event)
            if key in n_rows:
                metadata: dict[str, Any] = {**event.metadata, "dagster/row_count": n_rows[key]}
                event = event.with_metadata(metadata)
        yield event
    if not invocation.is_successful():
        raise dg.Failure(description=_failures(invocation), allow_retries=False)


def variables_of(config: DbtConfig) -> dict[str, Any]:
    """What dbt is given in place of what stands in dbt_project.yml.

    Raises:
        dg.Failure: if it is no JSON, or names a variable that nothing would read.
    """
    try:
        variables = json.loads(config.variables)
    except json.JSONDecodeError:
        variables = None
    if not isinstance(variables, dict):
        raise dg.Failure(
            description=f"variables is {config.variables}: expected is a JSON object, such as "
            '{"half_life_days": 30}.',
            allow_retries=False,
        )
    if variables:
        # Import here: most runs are given none.
        from dbt.clients.yaml_helper import load_yaml_text

        known = load_yaml_text((DBT_PROJECT_DIR / "dbt_project.yml").read_text())["vars"]
        if unknown := sorted(variables.keys() - known.keys()):
            raise dg.Failure(
                description=f"variables names {', '.join(unknown)}, which dbt_project.yml does not "
                f"have: expected are {', '.join(sorted(known))}.",
                allow_retries=False,
            )
    if config.as_of:
        variables["as_of"] = config.as_of
    return variables


def _require_what_is_left_out(warehouse: Warehouse, context: dg.AssetExecutionContext) -> None:
    """A run of some models reads the others as they are: they have to be there."""
    selected = context.selected_asset_keys
    read = {key for each in selected for key in dbt_models.asset_deps[each]}
    left_out = read & dbt_models.keys - selected
    if left_out:
        with warehouse.connect() as connection, failed_if_missing():
            for key in sorted(left_out):
                require_table(connection, ".".join(key.path))


def _progress(event: Any) -> str | None:
    if isinstance(event, dg.Output):
        return f"built {event.output_name.replace('__', '.', 1)}"
    if isinstance(event, dg.AssetCheckResult) and not event.passed:
        outcome = "failed" if event.severity is dg.AssetCheckSeverity.ERROR else "warns"
        return f"test {event.check_name} {outcome}"
    return None


def _asset_path(context: dg.AssetExecutionContext, event: Any) -> str:
    if isinstance(event, dg.AssetMaterialization):
        return ".".join(event.asset_key.path)
    return ".".join(context.asset_key_for_output(event.output_name).path)


def _row_counts(warehouse: Warehouse, context: dg.AssetExecutionContext) -> dict[str, int]:
    counts = {}
    with warehouse.connect() as connection:
        tables = connection.execute(
            # Not views: counting one would run it.
            "select table_schema || '.' || table_name from information_schema.tables"
            " where table_type = 'BASE TABLE'"
        ).fetchall()
        for (table,) in tables:
            if dg.AssetKey(table.split(".")) in context.selected_asset_keys:
                row = connection.execute(f"select count(*) from {table}").fetchone()
                counts[table] = int(row[0]) if row else 0
    return counts


def _failures(invocation: Any) -> str:
    """What failed in dbt, a line each, for the person who has to mend it."""
    try:
        results = invocation.get_artifact("run_results.json")["results"]
    except (OSError, KeyError, ValueError):
        error = invocation.get_error()
        return f"dbt did not start: {error}. The whole output is in the step's logs."
    lines = [
        failed_node(
            result,
            invocation.manifest["nodes"].get(result["unique_id"], {}),
            invocation.target_path,
        )
        for result in results
        if result["status"] in {"error", "fail", "runtime error"}
    ]
    return "\n".join([*lines, "dbt stopped; the last published version stays live."])


# What is wrong, where, and the line.
_LINES_OF_SEED = 4


def failed_node(result: dict[str, Any], node: dict[str, Any], target: Path) -> str:
    """One failed model, seed or test: the table, the figure and the next step.

    Args:
        result: An element of dbt's run_results.json.
        node: The same node in manifest.json.
        target: dbt's target folder.
    """
    kind, _, name = result["unique_id"].split(".")[:3]
    source = node.get("original_file_path", "")
    query = target / "compiled" / node.get("package_name", "") / source
    if node.get("test_metadata"):
        # Tests of a YAML file are compiled one by one into a folder of its name.
        query /= node["path"]
    if kind == "test" and result["status"] == "fail":
        tables = [each.split(".")[-1] for each in node["depends_on"]["nodes"]]
        return (
            f"{' and '.join(tables)}, test {name}: {result['failures']} rows break it, 0 are "
            f"expected. {said_by_test(node)} To see them run {query}."
        )
    said = (result["message"] or result["status"]).strip()
    if kind == "seed":
        # What follows is how DuckDB was told to read it.
        first = "\n".join(said.splitlines()[:_LINES_OF_SEED])
        return f"{kind} {name}: {first}\nMend dbt_project/{source}."
    return f"{kind} {name}: {said}\nMend dbt_project/{source}; as it was run: {query}."
