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
    """Folder of the real reference files (golden images, Sprites): RAYDIS_SHARED_DATA, else beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RAYDIS_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.fail(f"reference data not found in {folder}: set RAYDIS_SHARED_DATA to the folder that holds sprites/")
    return folder
