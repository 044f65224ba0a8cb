from __future__ import annotations

import pytest
import torch

from raydis.config import ComputeConfig
from raydis.engine.device import resolve_device
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
