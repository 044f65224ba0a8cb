"""What the image is made of exists, reaches the builder, and runs as the user that the manifests name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "infra" / "Dockerfile").read_text()


def instructions(name: str) -> list[str]:
    """Arguments of all instructions of a name, continued lines joined."""
    lines = re.sub(r"\\\n", " ", TEXT).splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.startswith(f"{name} ")]


def copied() -> list[str]:
    """Paths of the repository that enter the image or its build."""
    own = [arguments.split() for arguments in instructions("COPY") if not arguments.startswith("--from")]
    return [source for arguments in own for source in arguments[:-1]]


@pytest.mark.parametrize("source", copied())
def test_what_is_copied_exists_and_is_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    rules = (ROOT / "infra" / "Dockerfile.dockerignore").read_text().splitlines()
    assert rules[0] == "*"
    assert f"!{source}" in rules


def test_the_package_comes_after_its_dependencies_so_that_those_are_cached() -> None:
    order = [TEXT.index(step) for step in ("COPY pyproject.toml", "-r requirements.txt", "COPY raydis raydis")]
    assert order == sorted(order)
    assert "-c constraints.txt" in TEXT


def test_the_image_does_not_run_as_root_nor_from_an_unnamed_base() -> None:
    assert instructions("USER") == ["1000:1000"]
    assert TEXT.index("FROM ${BASE} AS runtime") < TEXT.index("USER 1000:1000")
    (base,) = [argument.removeprefix("BASE=") for argument in instructions("ARG") if argument.startswith("BASE=")]
    assert base.partition(":")[2] not in ("", "latest")
    assert {argument.split()[0] for argument in instructions("FROM")} == {"${BASE}"}


def test_the_working_directory_has_what_the_commands_of_the_documents_name() -> None:
    assert instructions("WORKDIR")[-1] == "/home/raydis"
    assert {"sweeps", "serve_configs"} <= set(copied())
