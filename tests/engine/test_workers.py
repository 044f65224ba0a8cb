"""Two workers, which are real processes of a gloo group, against one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch import Tensor, nn

from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import Loader, open_dataset
from raydis.engine.fit import fit
from raydis.engine.group import Workers
from raydis.engine.state import Training
from raydis.engine.step import Step
from raydis.methods.contract import Batch
from tests.double import ROUNDING, double_precision

CPU = torch.device("cpu")
LOCAL_BATCH_SIZE = 16
Tensors = dict[str, Tensor]

# No draws of a worker's own, one Gaussian a unit, for which of several optima EM finds can hang on rounding, and refits
# after the second and the fourth of five steps.
PLAN = {
    "unet": {"dropout_rate": 0.0, "skip_dropout_rate": 0.0},
    "anchors": {"mode": "constant", "refit_images": 64, "num_gaussians": 1, "num_splits": 0},
}
GROUP, BATCH = ({**PLAN, "encoder": {"norm": norm}} for norm in ("group", "batch"))
DROPPED = {
    **BATCH,
    "unet": {"dropout_rate": 0.1, "skip_dropout_rate": 0.2},
    "anchors": {"mode": "constant", "refit_images": 64},
}
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
    return Training(config, open_dataset(config.data), device=CPU, workers=Workers(**place))


def train(config: RunConfig, **place: int) -> Tensors:
    """All tensors of a finished run in float64, and its loss.

    Its U-Net's branches do not start at 0, where five steps would hardly reach the encoder.
    """
    with double_precision():
        return trained(start(config, **place), **place)


def trained(training: Training, **place: int) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    for weight in training.method.unet.parameters():
        if weight.dim() == 4 and not weight.any():
            nn.init.normal_(weight, std=0.2, generator=generator)
    (progress,) = fit(training)
    assert (progress.num_refits, progress.num_workers) == (2, place.get("world_size", 1))
    average = {f"average.{name}": tensor for name, tensor in training.calibrated().state_dict().items()}
    return training.state().tensors | average | {"loss": torch.tensor(progress.loss, dtype=torch.float64)}


class Counting(Workers):
    """Workers that count how often they average tensors, and how many these are."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        self.sent: list[int] = []

    def average(self, tensors: Sequence[Tensor]) -> None:
        self.sent.append(len(tensors))
        super().average(tensors)


def exchanges(max_batch_size: int, rank: int) -> Tensor:
    """How many gradients two workers send each other in one step: a number for each exchange."""
    config, workers = config_of(method=GROUP, compute={"max_batch_size": max_batch_size}), Counting(rank, 2)
    Step(Training(config, open_dataset(config.data), device=CPU, workers=workers))()
    return torch.tensor(workers.sent)


def work_as_one_of_two(rank: int) -> Tensors:
    place = {"rank": rank, "world_size": 2}
    torch.manual_seed(rank)
    started = start(config_of(seed=rank), **place)  # as if the workers did not agree
    found = {f"start.{name}": tensor for name, tensor in started.method.state_dict().items()}
    found |= {f"exchanges.{size}": exchanges(size, rank) for size in (4, 16)}
    for run, sections in RUNS.items():
        found |= {f"{run}.{name}": tensor for name, tensor in train(config_of(**sections), **place).items()}
        found[f"{run}.random"] = torch.rand(8)
    return found


@pytest.fixture(scope="module")
def pair(run_in_two_workers: Callable[[str, str], tuple[Tensors, Tensors]]) -> tuple[Tensors, Tensors]:
    """What each of two workers returns of `work_as_one_of_two`."""
    return run_in_two_workers(__file__, "work_as_one_of_two")


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
def test_two_workers_equal_one_with_twice_their_batch(pair: tuple[Tensors, Tensors], run: str) -> None:
    first, second = (of_run(found, run) for found in pair)
    alone = train(config_of(method=RUNS[run]["method"]))  # in one part
    assert bool(alone["method.anchors.fitted"])
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        assert tensor.dtype != torch.float32 or name.endswith(".step"), name  # AdamW's counts
        largest = float(tensor.double().abs().nan_to_num(posinf=0.0).max())
        torch.testing.assert_close(
            first[name], tensor, rtol=0, atol=ROUNDING * max(largest, 1.0), msg=lambda text, name=name: name + text
        )


def test_the_norm_of_a_run_counts_in_its_numbers(pair: tuple[Tensors, Tensors]) -> None:
    """Else the test above could not see a batch norm that is wrong."""
    group, batch = (float(pair[0][f"{norm}.loss"]) for norm in ("group", "batch"))
    assert abs(group - batch) > 1e-4


def test_workers_agree_on_everything_but_the_channels_they_drop(pair: tuple[Tensors, Tensors]) -> None:
    first, second = (of_run(found, "dropped") for found in pair)
    assert not torch.equal(first.pop("random"), second.pop("random"))
    assert bool(first["method.anchors.fitted"])
    assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []


def test_workers_start_from_the_first_ones_weights_and_first_stage(pair: tuple[Tensors, Tensors]) -> None:
    first, second = (of_run(found, "start") for found in pair)
    alone = start(config_of(seed=0)).method.state_dict()
    assert float(alone["first_stage.scale"].std()) > 0  # it was fitted
    for found in (first, second):
        assert [name for name, tensor in alone.items() if not torch.equal(tensor, found[name])] == []


def test_gradients_are_exchanged_once_however_many_parts_they_add_up_from(pair: tuple[Tensors, Tensors]) -> None:
    (move,) = start(config_of(method=GROUP)).method.moves
    for found in pair:
        assert found["exchanges.4"].tolist() == found["exchanges.16"].tolist() == [len(move.weights)]


@pytest.mark.parametrize(("max_batch_size", "sizes"), [(None, [32]), (32, [32]), (31, [16] * 2), (5, [4] * 8)])
def test_a_worker_takes_its_share_in_the_fewest_equal_parts_that_fit(
    max_batch_size: int | None, sizes: list[int]
) -> None:
    training, seen = start(config_of(compute={"max_batch_size": max_batch_size})), []

    def record(module: nn.Module, arguments: tuple[Batch, str]) -> None:
        batch, _ = arguments
        assert {len(drawn) for drawn in batch.draws.values()} == {len(batch.images)}
        seen.append(batch.images)

    training.method.register_forward_pre_hook(record)
    Step(training)()
    assert [len(images) for images in seen] == sizes
    assert torch.equal(torch.cat(seen), training.loader.batch(0))
