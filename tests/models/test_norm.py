"""A batch norm of two workers against torch's own over all their images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from raydis.models.norm import GlobalBatchNorm2d

CHANNELS, STEPS = 5, 3
Tensors = dict[str, Tensor]


def perturb(norm: nn.BatchNorm2d) -> None:
    generator = torch.Generator().manual_seed(1)
    for weight in norm.parameters():
        nn.init.normal_(weight, generator=generator)


def whole_batch(step: int) -> tuple[Tensor, Tensor]:
    """Inputs of two workers, whose means differ and lie far from 0, and what their outputs are multiplied by."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(2, 4, CHANNELS, 3, 2, generator=generator)
    x = x + torch.tensor([1.0, 300.0]).view(2, 1, 1, 1, 1) + 10.0 * torch.arange(CHANNELS).view(CHANNELS, 1, 1)
    return x, torch.randn(x.shape, generator=generator)


def normalise(norm: nn.BatchNorm2d, x: Tensor, factor: Tensor) -> Tensors:
    """Output, gradients and buffers of a mean over images."""
    x = x.clone().requires_grad_()
    y = norm(x)
    norm.zero_grad()
    (y * factor).flatten(1).sum(1).mean().backward()
    assert x.grad is not None
    gradients = {f"grad.{name}": weight.grad for name, weight in norm.named_parameters() if weight.grad is not None}
    found = {"y": y.detach(), "x.grad": x.grad, **gradients, **dict(norm.named_buffers())}
    return {name: tensor.clone() for name, tensor in found.items()}


def one_of_two(rank: int) -> Tensors:
    norm, found = GlobalBatchNorm2d(CHANNELS), {}
    perturb(norm)
    for step in range(STEPS):
        x, factor = (part[rank] for part in whole_batch(step))
        found |= {f"{step}.{name}": tensor for name, tensor in normalise(norm, x, factor).items()}
    if rank == 0:  # alone, where it must not wait for the other
        found["eval"] = norm.eval()(x)
    norm.train()
    found["half"] = norm(x.bfloat16())
    return {name: tensor.detach() for name, tensor in found.items()}


@pytest.fixture(scope="module")
def pair(run_in_two_workers: Callable[[str, str], tuple[Tensors, Tensors]]) -> tuple[Tensors, Tensors]:
    return run_in_two_workers(__file__, "one_of_two")


def test_two_workers_normalise_by_the_moments_of_all_their_images(pair: tuple[Tensors, Tensors]) -> None:
    norm = nn.BatchNorm2d(CHANNELS).double()
    perturb(norm)
    for step in range(STEPS):
        x, factor = (part.double() for part in whole_batch(step))
        expected = normalise(norm, x.flatten(0, 1), factor.flatten(0, 1))
        for rank, found in enumerate(pair):
            own = {name: tensor.double() for name, tensor in found.items()}
            shares = {name: expected[name].chunk(2)[rank] for name in ("y", "x.grad")}
            torch.testing.assert_close(own[f"{step}.y"], shares["y"], rtol=1e-5, atol=1e-5)
            # a worker's loss is the mean over its half of the images
            torch.testing.assert_close(own[f"{step}.x.grad"], 2 * shares["x.grad"], rtol=1e-4, atol=1e-6)
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                torch.testing.assert_close(own[f"{step}.{name}"], expected[name].double(), rtol=1e-5, atol=1e-5)
        for name in ("grad.weight", "grad.bias"):  # which DDP averages
            mean = (pair[0][f"{step}.{name}"] + pair[1][f"{step}.{name}"]) / 2
            torch.testing.assert_close(mean.double(), expected[name], rtol=1e-5, atol=1e-4)


def test_eval_mode_takes_the_running_statistics_and_waits_for_nobody(pair: tuple[Tensors, Tensors]) -> None:
    found = pair[0]
    norm = nn.BatchNorm2d(CHANNELS)
    perturb(norm)
    for name, buffer in norm.named_buffers():
        buffer.copy_(found[f"{STEPS - 1}.{name}"])
    torch.testing.assert_close(found["eval"], norm.eval()(whole_batch(STEPS - 1)[0][0]))


def test_running_statistics_are_equal_to_the_bit(pair: tuple[Tensors, Tensors]) -> None:
    first, second = pair
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(first[f"{STEPS - 1}.{name}"], second[f"{STEPS - 1}.{name}"])


def test_half_precision_stays_what_it_is(pair: tuple[Tensors, Tensors]) -> None:
    for found in pair:
        assert found["half"].dtype == torch.bfloat16
        torch.testing.assert_close(found["half"].float(), found[f"{STEPS - 1}.y"], rtol=0.02, atol=0.05)


def test_outside_of_a_group_it_is_torchs_own() -> None:
    ours, torchs = GlobalBatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)
    perturb(ours)
    torchs.load_state_dict(ours.state_dict())
    for step in range(STEPS):
        x, factor = (part.flatten(0, 1) for part in whole_batch(step))
        expected = normalise(torchs, x, factor)
        for name, tensor in normalise(ours, x, factor).items():
            assert torch.equal(tensor, expected[name]), name
    assert torch.equal(ours.eval()(x), torchs.eval()(x))
