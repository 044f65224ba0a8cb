from __future__ import annotations

import itertools

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from raydis.diffusion.ddim import ddim_sample, sampling_timesteps
from raydis.diffusion.schedule import alpha_bars

LEVELS = torch.tensor(alpha_bars("ldm_linear")).float()


def start(batch_size: int = 2) -> Tensor:
    return torch.randn(batch_size, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def toy_noise(z: Tensor, t: Tensor) -> Tensor:
    """A nonlinear eps_theta that mixes pixels and depends on time."""
    return torch.tanh(z + z.roll(1, -1) * 0.5) * torch.cos(t.view(-1, 1, 1, 1) / 300.0) + 0.1 * z


def test_a_hundred_steps_visit_the_released_codes_timesteps() -> None:
    assert sampling_timesteps(1000, 100) == list(range(991, 0, -10))


@pytest.mark.parametrize("num_timesteps", [2, 3, 10, 100, 1000])
def test_timesteps_fall_and_stay_in_the_schedule_for_any_number_of_steps(num_timesteps: int) -> None:
    for num_steps in range(1, num_timesteps):
        times = sampling_timesteps(num_timesteps, num_steps)
        assert len(times) == num_steps
        assert all(now > after for now, after in itertools.pairwise(times))
        assert times[-1] >= 1
        assert times[0] < num_timesteps
    assert sampling_timesteps(num_timesteps, num_timesteps) == list(reversed(range(num_timesteps)))


@pytest.mark.parametrize(("num_steps", "first"), [(1, 999), (7, 858), (99, 990), (300, 997), (999, 999)])
def test_sampling_starts_where_a_whole_stride_would_pass_the_end(num_steps: int, first: int) -> None:
    assert sampling_timesteps(1000, num_steps)[0] == first


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_more_steps_than_the_schedule_has_or_none_are_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=rf"num_steps={num_steps} must lie in \[1, 1000\]"):
        sampling_timesteps(1000, num_steps)


@pytest.mark.parametrize(
    ("num_steps", "spacing"),
    # diffusers, too, rounds a stride down once for all times: `leading` is compared where that changes nothing
    [(2, "leading"), (20, "leading"), (100, "leading"), (1, "trailing"), (1000, "trailing")],
)
def test_sampling_equals_the_ddim_of_diffusers(num_steps: int, spacing: str) -> None:
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.0015,
        beta_end=0.0155,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(num_steps)
    assert scheduler.timesteps.tolist() == sampling_timesteps(1000, num_steps)
    theirs = start()
    for t in scheduler.timesteps:
        theirs = scheduler.step(toy_noise(theirs, t.expand(2)), t, theirs, eta=0.0).prev_sample
    ours = ddim_sample(toy_noise, start(), LEVELS, num_steps)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 7, 10, 100, 1000])
def test_the_true_noise_of_a_single_point_leads_back_to_it(num_steps: int) -> None:
    point = torch.full((1, 3, 4, 4), 0.7)

    def true_noise(z: Tensor, t: Tensor) -> Tensor:
        level = LEVELS[t].view(-1, 1, 1, 1)
        return (z - level.sqrt() * point) / (1 - level).sqrt()

    sampled = ddim_sample(true_noise, start(), LEVELS, num_steps)
    torch.testing.assert_close(sampled, point.expand_as(sampled), rtol=0, atol=1e-5)


def test_more_steps_come_closer_to_the_exact_flow_of_gaussian_data() -> None:
    """For data N(0, s^2) the flow only scales: z_0 = s z_T / sqrt(ab_T s^2 + 1 - ab_T)."""
    variance = 0.25

    def true_noise(z: Tensor, t: Tensor) -> Tensor:
        level = LEVELS[t].view(-1, 1, 1, 1)
        return (1 - level).sqrt() * z / (level * variance + 1 - level)

    def error(num_steps: int) -> float:
        first = LEVELS[sampling_timesteps(1000, num_steps)[0]]
        exact = start() * variance**0.5 / (first * variance + 1 - first).sqrt()
        return (ddim_sample(true_noise, start(), LEVELS, num_steps) - exact).abs().max().item()

    errors = [error(num_steps) for num_steps in (10, 50, 250)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.05


def test_sampling_is_repeatable_to_the_bit_and_leaves_its_noise_alone() -> None:
    noise = start()
    first = ddim_sample(toy_noise, noise, LEVELS, 20)
    assert torch.equal(noise, start())
    assert torch.equal(first, ddim_sample(toy_noise, noise, LEVELS, 20))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    noise = start(4)
    together = ddim_sample(toy_noise, noise, LEVELS, 20)
    alone = torch.cat([ddim_sample(toy_noise, each[None], LEVELS, 20) for each in noise])
    torch.testing.assert_close(together, alone)


def test_the_network_is_called_once_a_step_with_one_time_an_image_and_no_gradient() -> None:
    calls: list[list[int]] = []

    def predict(z: Tensor, t: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not t.is_floating_point()
        calls.append(t.tolist())
        return torch.zeros_like(z)

    ddim_sample(predict, start(), LEVELS, 4)
    assert calls == [[751, 751], [501, 501], [251, 251], [1, 1]]
