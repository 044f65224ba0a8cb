from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from raydis.engine.counters import FlopCounter


def step(network: nn.Module, images: Tensor) -> None:
    network(images).square().mean().backward()


def attend(network: nn.Module, images: Tensor) -> None:
    tokens = network(images).flatten(2)
    torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).sum().backward()


@pytest.mark.parametrize("work", [step, attend])
def test_flops_are_those_of_torchs_own_counter(work: Callable[[nn.Module, Tensor], None]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 4, stride=2))
    images = torch.randn(2, 3, 16, 16)
    with FlopCounter() as ours:
        work(network, images)
    with FlopCounterMode(display=False) as theirs:
        work(network, images)
    assert ours.num_flops == theirs.get_total_flops() > 0


def test_a_matrix_product_has_two_operations_for_each_multiply_add() -> None:
    with FlopCounter() as counter:
        torch.ones(3, 5) @ torch.ones(5, 7)
    assert counter.num_flops == 2 * 3 * 5 * 7


def test_a_loss_may_contain_gradients() -> None:
    """As the penalty of an isometric decoder does, on which torch's own counter fails."""
    layer, points = nn.Linear(3, 4, bias=False), torch.randn(2, 3, requires_grad=True)

    def loss() -> Tensor:
        (slope,) = torch.autograd.grad(layer(points).sum(), points, create_graph=True)
        return slope.square().sum()

    with FlopCounter() as counter:
        loss().backward()
    assert counter.num_flops == 3 * (2 * 2 * 3 * 4)  # forward, its gradient, and the derivative of that by the weights
