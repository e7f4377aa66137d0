"""The import rules of the architecture."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestration", "ml_assets", "exports")
MODULES = sorted(
    path.relative_to(REPOSITORY)
    for package in PACKAGES
    for path in (REPOSITORY / package).rglob("*.py")
)
# dbt_project -> ml_assets -> exports -> orchestration: never back.
MAY_NOT_IMPORT = {
    "ml_assets": {"exports", "orchestration"},
    "exports": {"orchestration"},
    "orchestration": set(),
}


def imported_by(module: Path) -> set[str]:
    """Top-level names of everything a module imports, at its head or inside a function."""
    names = set()
    for node in ast.walk(ast.parse((REPOSITORY / module).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def may_use_dagster(module: Path) -> bool:
    in_orchestration = module.parts[0] == "orchestration" and "landing" not in module.parts
    return in_orchestration or module.name == "assets.py"


def test_there_are_modules_to_look_at():
    assert {module.parts[0] for module in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_dagster_is_imported_only_where_assets_are_defined(module):
    if not may_use_dagster(module):
        assert not imported_by(module) & {"dagster", "dagster_dbt"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_follow_the_direction_of_the_data(module):
    assert not imported_by(module) & MAY_NOT_IMPORT[module.parts[0]]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_says_what_it_is_for(module):
    assert ast.get_docstring(ast.parse((REPOSITORY / module).read_text()))
