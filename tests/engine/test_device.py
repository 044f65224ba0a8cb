from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from raydis.config import ComputeConfig
from raydis.engine.device import num_threads, resolve_device
from raydis.errors import ResourceError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)


@pytest.mark.parametrize("gpus", [False], indirect=True)
@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize("compute", [{"device": "cuda"}, {"num_gpus": 0.5}, {"device": "cuda", "num_gpus": 1}])
def test_a_gpu_that_is_not_there_is_an_error_not_a_slow_run(compute: dict) -> None:
    with pytest.raises(ResourceError, match=r"asks for a GPU, but torch .* sees none: set compute\.device=cpu"):
        resolve_device(ComputeConfig(**compute))


@pytest.mark.parametrize(
    ("gpus", "compute", "expected"),
    [
        (False, {}, "cpu"),
        (False, {"device": "cpu", "num_gpus": 1}, "cpu"),
        (True, {}, "cuda"),
        (True, {"device": "cuda"}, "cuda"),
        (True, {"device": "cpu"}, "cpu"),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_auto_takes_a_gpu_where_there_is_one_and_cpu_never_does(compute: dict, expected: str) -> None:
    assert resolve_device(ComputeConfig(**compute)).type == expected


@pytest.mark.parametrize(("num_cpus", "expected"), [(0.25, 1), (1, 1), (1.9, 1), (2, 2), (7.5, 7)])
def test_a_process_runs_as_many_threads_as_it_has_reserved_whole_cpus(num_cpus: float, expected: int) -> None:
    assert num_threads(num_cpus) == expected


def test_threads_are_those_of_torch_and_of_numpys_linear_algebra() -> None:
    script = (
        "import numpy, threadpoolctl, torch\n"
        "from raydis.engine.device import use_threads\n"
        "use_threads(3)\n"
        "numpy.ones((2, 2)) @ numpy.ones((2, 2))\n"
        "pools = [pool for pool in threadpoolctl.threadpool_info() if pool['user_api'] == 'blas']\n"
        "assert pools\n"
        "print(torch.get_num_threads(), *{pool['num_threads'] for pool in pools})"
    )
    ours = {"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4", "OPENBLAS_CORETYPE": "Haswell"}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | ours, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "3"]
