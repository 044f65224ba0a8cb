"""Fixtures shared by all tests.

A test process computes on one thread, as a raydis worker with one CPU does; RAYDIS_TEST_THREADS=2 runs the same tests
on two, and none of them may depend on it.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed
from safetensors.torch import load_file, save_file
from torch import Tensor

NUM_THREADS = int(os.environ.get("RAYDIS_TEST_THREADS", "1"))
WORKERS_TIMEOUT_S = 240  # for a machine that is busy with other things
Tensors = dict[str, Tensor]


def pytest_configure() -> None:
    torch.set_num_threads(NUM_THREADS)


@pytest.fixture(autouse=True)
def no_ray_by_accident(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts Ray without saying so: some of Ray's functions start a cluster when they are called."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and not request.node.get_closest_marker("ray") and ray.is_initialized():
        ray.shutdown()
        pytest.fail("this test started Ray: replace the function that did, or mark the test `ray`")


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


def work(function: Callable[[int], Tensors], rank: int, meeting_place: str) -> Tensors:
    """A function's tensors, of one of two workers of a gloo group."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting_place}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=WORKERS_TIMEOUT_S),
    )
    try:
        return function(rank)
    finally:
        torch.distributed.destroy_process_group()


def work_as_the_second(file: str, name: str, meeting_place: str, output: str) -> None:
    torch.set_num_threads(NUM_THREADS)
    save_file(work(runpy.run_path(file)[name], 1, meeting_place), output)


@pytest.fixture(scope="session")
def run_in_two_workers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Tensors, Tensors]]:
    """Calls a function of a test file with its rank in two processes, this one being the first: what both return."""

    def run(file: str, name: str) -> tuple[Tensors, Tensors]:
        folder = tmp_path_factory.mktemp("workers")
        meeting_place, output = str(folder / "meeting"), str(folder / "second.safetensors")
        arguments = (file, name, meeting_place, output)
        script = f"import runpy; runpy.run_path({__file__!r})['work_as_the_second'](*{arguments!r})"
        second = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).resolve().parents[1])
        try:
            first = work(runpy.run_path(file)[name], 0, meeting_place)
            assert second.wait(timeout=WORKERS_TIMEOUT_S) == 0
        finally:
            second.kill()
            second.wait()
        return first, load_file(output)

    return run
