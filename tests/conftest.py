"""Fixtures shared by all tests. A test process computes on one thread, as a raydis worker on CPU does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real reference files (golden images, Sprites, CRDs), which are not ours to ship.

    RAYDIS_SHARED_DATA names it, and must then be right; else it is looked for beside the checkout, and without it the
    tests that compare with real files say so and are skipped.
    """
    named = os.environ.get("RAYDIS_SHARED_DATA")
    folder = Path(named or Path(__file__).resolve().parents[2] / "shared" / "data")
    if named and not folder.is_dir():
        pytest.fail(f"RAYDIS_SHARED_DATA={named} is no folder: correct it, or unset it to skip these tests")
    if not folder.is_dir():
        pytest.skip(f"no reference data in {folder}: set RAYDIS_SHARED_DATA to the folder that holds sprites/")
    return folder
