"""The files that a host of repositories reads agree with the project."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import raydis

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"])]


def workflow() -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())


@pytest.fixture(scope="module")
def lowest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Requirement]:
    """The constraints that the workflow's own script writes, by package."""
    folder = tmp_path_factory.mktemp("lowest")
    (folder / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (script,) = [
        step["run"] for step in workflow()["jobs"]["lowest-versions"]["steps"] if step.get("shell") == "python"
    ]
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
    pins = [Requirement(line) for line in (folder / "lowest.txt").read_text().splitlines()]
    return {pin.name: pin for pin in pins}


def test_ci_runs_on_every_python_that_the_project_names() -> None:
    job = workflow()["jobs"]["tested-versions"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=3.11"
    assert job["steps"][-1] == {"run": ".ci/run"}


@pytest.mark.parametrize("wanted", [wanted for wanted in WANTED if ">=" in str(wanted.specifier)], ids=str)
def test_ci_also_tests_the_lowest_version_of_each_package(wanted: Requirement, lowest: dict[str, Requirement]) -> None:
    (bound,) = [each.version for each in wanted.specifier if each.operator == ">="]
    assert lowest[wanted.name].specifier.contains(bound)
    (pin,) = lowest[wanted.name].specifier
    assert pin.operator == "=="
    assert wanted.specifier.contains(pin.version.removesuffix(".*"))


def test_hooks_run_what_the_environment_has_installed() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-format", "ruff-check", "pyright"]
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    tools = {wanted.name for wanted in WANTED}
    assert {hook["entry"].split()[0] for hook in repository["hooks"]} <= tools


def test_the_citation_names_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / ".github" / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == raydis.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["message"]
    for work in (citation, *citation["references"]):  # what version 1.2.0 of the format requires
        assert {"title", "authors", "type"} <= set(work)


def test_a_wheel_has_every_file_that_the_package_reads() -> None:
    """setuptools leaves out whatever is no Python and not declared."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert not settings["include-package-data"]
    declared = {
        path
        for package, patterns in settings["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    read = {
        path for path in (ROOT / "raydis").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".md")
    }
    assert read == declared != set()
