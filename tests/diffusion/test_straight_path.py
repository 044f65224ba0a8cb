"""Flow matching: samplers on the schedule `straight` follow the velocity eps - z_0 of x = (1 - tau) z_0 + tau eps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from raydis.diffusion.denoising import Denoising
from raydis.diffusion.samplers import SAMPLERS, Sampler, ddim_invert, leading_timesteps, sample
from tests.double import double_precision

T = 1000
MEAN, DEVIATION = 0.7, 0.4
Velocity = Callable[[Tensor, Tensor], Tensor]  # x (B, C, H, W) on the straight path and tau (B, 1, 1, 1)


def noise() -> Tensor:
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def flow() -> Denoising:
    with double_precision():
        return Denoising(schedule="straight", num_timesteps=T, loss="l2", prediction="flow")


def predicting(velocity: Velocity, denoising: Denoising) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the prediction of z_0 by a network that knows the velocity."""

    def predict(z: Tensor, t: Tensor) -> Tensor:
        tau = ((t.to(z) + 0.5) / T).view(-1, 1, 1, 1)
        x = z * ((1 - tau).square() + tau.square()).sqrt()
        return denoising.sample(velocity(x, tau), z, denoising.alpha_bars[t])

    return predict


def of_a_point(x: Tensor, tau: Tensor) -> Tensor:
    """The velocity for data of the single point MEAN, which is linear in x."""
    return (x - MEAN) / tau


def of_a_gaussian(x: Tensor, tau: Tensor) -> Tensor:
    """The velocity E[eps - z_0 | x] for data N(MEAN, DEVIATION^2), which is linear in x."""
    variance = ((1 - tau) * DEVIATION).square() + tau.square()
    return (tau - (1 - tau) * DEVIATION**2) / variance * (x - (1 - tau) * MEAN) - MEAN


def crooked(x: Tensor, tau: Tensor) -> Tensor:
    return torch.sin(3.0 * x) + tau * x.flip(-1)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 20, 250])
def test_ddim_takes_the_steps_of_euler_along_the_straight_path(num_steps: int) -> None:
    denoising, start = flow(), noise()
    found = sample("ddim", predicting(crooked, denoising), start, denoising.alpha_bars, num_steps)

    taus = [(time + 0.5) / T for time in leading_timesteps(T, num_steps)] + [0.0]
    x = start * ((1 - taus[0]) ** 2 + taus[0] ** 2) ** 0.5
    for tau, following in pairwise(taus):
        x = x + (following - tau) * crooked(x, torch.full((len(x), 1, 1, 1), tau, dtype=x.dtype))

    # Rounding errors of 1e-16 at each step grow by the field's Lipschitz constant of at most 4: by e^4 = 55.
    torch.testing.assert_close(found, x, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 3, 20])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_velocity_towards_a_point_leads_there_from_any_noise(sampler: Sampler, num_steps: int) -> None:
    denoising = flow()
    found = sample(sampler, predicting(of_a_point, denoising), noise(), denoising.alpha_bars, num_steps)
    torch.testing.assert_close(found, torch.full_like(found, MEAN), rtol=0.0, atol=1e-11)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("unipc", 2)])
def test_samplers_follow_a_linear_field_with_an_error_that_falls_by_their_order(sampler: Sampler, order: int) -> None:
    denoising, start = flow(), noise()

    def error(num_steps: int) -> float:
        found = sample(sampler, predicting(of_a_gaussian, denoising), start, denoising.alpha_bars, num_steps)
        return float((found - exact(start, first=found_first(sampler, num_steps))).abs().max())

    errors = [error(num_steps) for num_steps in (40, 160, 640)]
    assert all(fine < coarse / 4 ** (order - 0.25) for coarse, fine in pairwise(errors)), errors


def found_first(sampler: Sampler, num_steps: int) -> float:
    """Return the share of noise at which a sampler starts: ddim steps evenly, the others start where ab >= 5e-4."""
    if sampler == "ddim":
        return (leading_timesteps(T, num_steps)[0] + 0.5) / T
    return (int((flow().alpha_bars >= 5e-4).sum()) - 0.5) / T


def exact(start: Tensor, *, first: float) -> Tensor:
    """Return where the flow of the Gaussian takes z = start at tau = first: it keeps the quantile of every value."""
    length = ((1 - first) ** 2 + first**2) ** 0.5
    spread = (((1 - first) * DEVIATION) ** 2 + first**2) ** 0.5
    return MEAN + DEVIATION * (start * length - (1 - first) * MEAN) / spread


def test_inversion_finds_the_noise_that_a_linear_field_came_from() -> None:
    denoising, start = flow(), noise()
    predict = predicting(of_a_gaussian, denoising)

    def error(num_steps: int) -> float:
        latents = exact(start, first=found_first("ddim", num_steps))
        return float((ddim_invert(predict, latents, denoising.alpha_bars, num_steps) - start).abs().max())

    errors = [error(num_steps) for num_steps in (40, 160, 640)]
    assert all(fine < coarse / 3 for coarse, fine in pairwise(errors)), errors
