"""The tested versions: a stock pip finds each of them, and together they are what the package asks for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PINS = [Requirement(line) for line in (ROOT / "infra" / "constraints.txt").read_text().splitlines()]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"])]


def version_of(pin: Requirement) -> Version:
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    return Version(specifier.version)


def test_a_pin_names_a_release_that_every_index_may_have() -> None:
    """A local version such as `2.13.0+cpu` is on no index but its builder's."""
    assert [str(pin) for pin in PINS if version_of(pin).local is not None] == []


def test_a_build_for_cpus_satisfies_the_pin_of_torch() -> None:
    (torch,) = [pin for pin in PINS if pin.name == "torch"]
    assert Version(f"{version_of(torch)}+cpu") in torch.specifier


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_every_requirement_is_pinned_to_a_version_that_it_allows(wanted: Requirement) -> None:
    pins = {canonicalize_name(pin.name): version_of(pin) for pin in PINS}
    assert pins[canonicalize_name(wanted.name)] in wanted.specifier
