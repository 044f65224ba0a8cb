"""Two workers, which are real processes of a gloo group, against one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydis.config import RunConfig
from raydis.data import Loader, open_dataset
from raydis.engine.fit import Training, fit
from raydis.methods.contract import Draws
from raydis.models.autoencoders import PatchPCA
from raydis.presets import expand

CPU = torch.device("cpu")
LOCAL_BATCH_SIZE = 16
Tensors = dict[str, Tensor]

# No draws of a worker's own, and refits after the second and the fourth of five steps.
PLAN = {
    "unet": {"dropout_rate": 0.0, "skip_dropout_rate": 0.0},
    "anchors": {"mode": "relative", "refit_images": 64},
}
GROUP, BATCH = ({**PLAN, "encoder": {"norm": norm}} for norm in ("group", "batch"))
DROPPED = {**BATCH, "unet": {"dropout_rate": 0.1, "skip_dropout_rate": 0.2}}
RUNS: dict[str, dict[str, Any]] = {
    "group": {"method": GROUP},
    "batch": {"method": BATCH},
    "parts": {"method": GROUP, "compute": {"max_batch_size": 5}},
    "dropped": {"method": DROPPED, "compute": {"max_batch_size": 8}},
}


def config_of(**sections: Any) -> RunConfig:
    train = {"batch_size": 2 * LOCAL_BATCH_SIZE, "num_images": 160, "report_images": 160, "max_grad_norm": 1.0}
    return RunConfig.model_validate(expand({"preset": "tiny", "train": train, **sections}))


def start(config: RunConfig, **place: int) -> Training:
    return Training(config, open_dataset(config.data), device=CPU, **place)


def train(config: RunConfig, **place: int) -> Tensors:
    """All tensors of a finished run, and its loss.

    Its U-Net's branches do not start at 0, where five steps would hardly reach the encoder.
    """
    training = start(config, **place)
    generator = torch.Generator().manual_seed(0)
    for weight in training.method.unet.parameters():
        if weight.dim() == 4 and not weight.any():
            nn.init.normal_(weight, std=0.2, generator=generator)
    (progress,) = fit(training)
    assert (progress.num_refits, progress.num_workers) == (2, place.get("world_size", 1))
    average = {f"average.{name}": tensor for name, tensor in training.calibrated().state_dict().items()}
    return training.state().tensors | average | {"loss": torch.tensor(progress.loss, dtype=torch.float64)}


def trained_as_one_of_two(rank: int) -> Tensors:
    return {
        f"{run}.{name}": tensor
        for run, sections in RUNS.items()
        for name, tensor in train(config_of(**sections), rank=rank, world_size=2).items()
    }


@pytest.fixture(scope="module")
def trained(run_in_two_workers: Callable[[str, str], tuple[Tensors, Tensors]]) -> tuple[Tensors, Tensors]:
    return run_in_two_workers(__file__, "trained_as_one_of_two")


def of_run(found: Tensors, run: str) -> Tensors:
    return {name.removeprefix(f"{run}."): tensor for name, tensor in found.items() if name.startswith(f"{run}.")}


def test_workers_take_turns_in_the_order_of_one() -> None:
    dataset = open_dataset(config_of().data)
    alone = Loader(dataset, batch_size=32, seed=0)
    workers = [Loader(dataset, batch_size=32, seed=0, rank=rank, world_size=2) for rank in range(2)]
    for step in range(12):  # an epoch ends within the eleventh
        shares = [worker.indices(step) for worker in workers]
        assert [len(share) for share in shares] == [LOCAL_BATCH_SIZE] * 2
        assert np.array_equal(np.concatenate(shares), alone.indices(step))


@pytest.mark.parametrize("run", ["group", "batch", "parts"])
def test_two_workers_equal_one_with_twice_their_batch(trained: tuple[Tensors, Tensors], run: str) -> None:
    first, second = (of_run(found, run) for found in trained)
    alone = train(config_of(method=RUNS[run]["method"]))  # in one part
    assert bool(alone["method.anchors.fitted"])
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        # Adam moves a weight by 1e-3 a step whatever its gradient's size, so rounding shows where that is nearly 0.
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-4, msg=lambda text, name=name: name + text)
    torch.testing.assert_close(first["loss"], alone["loss"], rtol=1e-5, atol=0)
