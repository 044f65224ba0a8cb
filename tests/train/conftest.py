"""Runs that are small enough for a test."""

from __future__ import annotations

from typing import Any

import pytest

from raydis.config import RunConfig
from raydis.config.files import merge, parse
from raydis.config.presets import expand


@pytest.fixture
def tiny_run() -> Any:
    """Makes a run that takes a second or so; keyword arguments are sections to merge in."""

    def make(**over: Any) -> RunConfig:
        return parse(RunConfig, merge(expand({"preset": "tiny"}), over), source="test")

    return make
