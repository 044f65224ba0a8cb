"""The arrows between raydis' folders point one way, and each framework stays in its own folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "raydis"
RANKS = {
    "errors": 0,
    "edge": 0,
    "section": 0,
    "stageconfig": 0,
    "trainconfig": 0,
    "config": 0,
    "configfile": 0,
    "identity": 0,
    "presets": 0,
    "yamltext": 0,
    "store": 1,
    "models": 1,
    "diffusion": 1,
    "metrics": 1,
    "data": 2,
    "registry": 2,
    "methods": 2,
    "build": 3,
    "engine": 4,
    "train": 5,
    "serve": 5,
    "report": 5,
    "sweep": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,  # hands out `Editor` and `RunConfig` at their first use; importing the package reads none of them
}
ONLY_IN = {
    "ray": {"train", "sweep", "serve"},
    "optuna": {"sweep"},
    "boto3": {"store/s3.py"},
    "botocore": {"store/s3.py"},
    "fastapi": {"serve"},
    "matplotlib": {"report"},
    "yaml": {"yamltext"},
}
NEVER_IN = {
    "torch": {
        "metrics",
        "store",
        "registry",
        "config",
        "configfile",
        "identity",
        "errors",
        "edge",
        "section",
        "stageconfig",
        "trainconfig",
    }
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """`engine` for raydis/engine/fit.py, `build` for raydis/build.py."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_room_has_a_rank() -> None:
    assert {room(path) for path in MODULES} <= set(RANKS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_lower_ranks_or_its_own_room(path: Path) -> None:
    mine = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "raydis" or len(parts) == 1:
            continue
        theirs = parts[1] if parts[1] in RANKS else "__init__"
        assert theirs == mine or RANKS[theirs] < RANKS[mine] or RANKS[theirs] == RANKS[mine] == 0, f"imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_frameworks_stay_in_their_rooms(path: Path) -> None:
    places = {room(path), str(path.relative_to(PACKAGE))}
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in ONLY_IN or places & ONLY_IN[top], f"{top} belongs to {sorted(ONLY_IN[top])}"
        assert not places & NEVER_IN.get(top, set()), f"{top} does not belong here"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_store_takes_uris_apart(path: Path) -> None:
    texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    assert room(path) == "store" or not texts & {"s3:", "s3://", "file:", "file://", "://"}


def test_files_stay_readable_in_one_sitting() -> None:
    long = {str(path.relative_to(PACKAGE)): lines for path in MODULES if (lines := path.read_text().count("\n")) > 400}
    assert not long
