"""A Ray cluster of this test session's own, and runs small enough for it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from raydis.config import RunConfig
from raydis.config.files import merge, parse
from raydis.config.presets import expand
from raydis.train.cluster import set_environment

CHECKOUT = Path(__file__).resolve().parents[2]
NUM_CPUS = 4  # logical: waiting processes may outnumber the cores


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """Ray on this machine; gives a text that stands in the environment of each of its processes, and of no other.

    Its sockets need a short path, and no address of the user's may lead elsewhere. Its workers compute in float64.
    """
    folder = tempfile.mkdtemp(prefix="rt-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAYDIS_TEST_MARK", folder)
        patch.setenv("RAY_OVERRIDE_RESOURCES", f'{{"CPU": {NUM_CPUS}}}')
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(CHECKOUT))
        set_environment()
        assert not ray.is_initialized()
        ray.init(
            "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"worker_process_setup_hook": "tests.double.compute_in_double"},
        )
        yield folder
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tiny_run() -> Any:
    """Makes a run that takes a second or so; keyword arguments are sections to merge in."""

    def make(**over: Any) -> RunConfig:
        return parse(RunConfig, merge(expand({"preset": "tiny"}), over), source="test")

    return make
