from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from raydis.models.isometry import decoder_isometry, relaxed_distortion
from tests.double import double_precision

NUM_UNITS, COUNT = 3, 40_000


def orthonormal(scales: tuple[float, ...] = (1.0, 1.0, 1.0)) -> nn.Linear:
    """A linear decoder to 12 values whose columns are orthogonal and have the given lengths."""
    layer = nn.Linear(NUM_UNITS, 12)
    nn.init.orthogonal_(layer.weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.weight.mul_(torch.tensor(scales))
    return layer


def drawn(count: int = COUNT) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, NUM_UNITS, generator=generator), torch.randn(count, NUM_UNITS, generator=generator)


@pytest.mark.parametrize("scale", [1.0, 0.1, 7.0])
def test_the_relaxed_distortion_of_a_scaled_isometry_is_zero(scale: float) -> None:
    """|J'Jv|^2 is c^2 |v|^2 and |Jv|^2 is c |v|^2: the ratio of their means is 1 / mean |v|^2, and that is N."""
    points, directions = drawn()
    mean = directions.square().sum(1).mean()
    found = relaxed_distortion(orthonormal((scale,) * 3), points, directions)
    assert found.item() == pytest.approx(1.0 / float(mean) - 1.0 / NUM_UNITS, abs=1e-6)
    assert abs(found.item()) < 4 * (2 / (NUM_UNITS * COUNT)) ** 0.5  # of the mean of |v|^2


def test_the_relaxed_distortion_grows_with_unequal_scales_as_its_definition_says() -> None:
    """For J'J = diag(g): (sum g^2) / (sum g)^2 - 1 / N."""
    points, directions = drawn()
    found = relaxed_distortion(orthonormal((1.0, 3.0, 1.0)), points, directions).item()
    assert found == pytest.approx((1 + 81 + 1) / (1 + 9 + 1) ** 2 - 1 / 3, abs=0.02)


@pytest.mark.parametrize(("scales", "expected"), [((1.0, 1.0, 1.0), 0.0), ((3.0, 3.0, 3.0), 4.0), ((0.5,) * 3, 0.25)])
def test_the_decoder_isometry_is_the_squared_deviation_of_lengths_from_1(
    scales: tuple[float, ...], expected: float
) -> None:
    assert decoder_isometry(orthonormal(scales), *drawn(100)).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("penalty", [relaxed_distortion, decoder_isometry])
def test_value_and_gradient_are_those_of_the_whole_jacobian(penalty: Callable[..., Tensor]) -> None:
    with double_precision():
        torch.manual_seed(0)
        decoder = nn.Sequential(nn.Linear(NUM_UNITS, 8), nn.Tanh(), nn.Linear(8, 6))
        points, directions = drawn(5)

        def plain() -> Tensor:
            jacobians = torch.stack([torch.func.jacrev(decoder)(point) for point in points])
            if penalty is decoder_isometry:
                unit = directions / directions.norm(dim=1, keepdim=True)
                return ((jacobians @ unit[:, :, None]).norm(dim=(1, 2)) - 1.0).square().mean()
            slope = jacobians @ directions[:, :, None]
            returned = jacobians.mT @ slope
            norm = slope.square().sum((1, 2)).mean()
            return returned.square().sum((1, 2)).mean() / norm.square() - 1.0 / NUM_UNITS

        results = []
        for function in (plain, lambda: penalty(decoder, points, directions)):
            decoder.zero_grad()
            value = function()
            value.backward()
            weight = decoder[0].weight
            assert isinstance(weight, Tensor)
            assert weight.grad is not None
            results.append((value.detach(), weight.grad.clone()))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
