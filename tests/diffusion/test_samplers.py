from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from raydis.diffusion.denoising import Denoising
from raydis.diffusion.samplers import (
    SAMPLERS,
    Sampler,
    ddim_invert,
    ddim_sample,
    dpmpp_sample,
    karras_timesteps,
    last_timestep,
    leading_timesteps,
    linspace_timesteps,
    sample,
    solver_steps,
    unipc_sample,
)
from raydis.diffusion.schedule import alpha_bars

# diffusers 0.42 hands torch tensors to numpy 2 in a way that numpy is giving up
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LEVELS = torch.tensor(alpha_bars("ldm_linear")).float()
THEIRS = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0155}
Predict = Callable[[Tensor, Tensor], Tensor]


def start(batch_size: int = 2) -> Tensor:
    return torch.randn(batch_size, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def level(t: Tensor) -> Tensor:
    return LEVELS.to(t.device)[t].view(-1, 1, 1, 1)


def mixture_sample(z: Tensor, t: Tensor) -> Tensor:
    """The exact E[z_0 | z_t] for data of five Gaussians, of standard deviation 0.3 around random means."""
    means = torch.randn(5, *z.shape[1:], generator=torch.Generator().manual_seed(7)).to(z)
    ab, variance = level(t).to(z), 0.09
    spread = ab * variance + 1 - ab
    offsets = z[:, None] - ab.sqrt()[:, None] * means  # (B, 5, C, H, W)
    weights = (-offsets.square().sum((2, 3, 4)) / (2 * spread[:, 0, 0])).softmax(1)
    points = means + ab.sqrt()[:, None] * variance / spread[:, None] * offsets
    return (weights[:, :, None, None, None] * points).sum(1)


def noise_of(predict: Predict, z: Tensor, t: Tensor) -> Tensor:
    """The noise that the prediction of the sample amounts to."""
    return (z - level(t).sqrt() * predict(z, t)) / (1 - level(t)).sqrt()


def gaussian_sample(variance: float) -> Predict:
    """The exact E[z_0 | z_t] for data N(0, variance), under which the flow only scales."""
    return lambda z, t: level(t).sqrt() * variance / (level(t) * variance + 1 - level(t)) * z


# ---- times


def test_a_hundred_leading_steps_visit_the_released_codes_timesteps() -> None:
    assert leading_timesteps(1000, 100) == list(range(991, 0, -10))


@pytest.mark.parametrize("schedule", ["ldm_linear", "cosine"])
@pytest.mark.parametrize("num_timesteps", [2, 3, 10, 100])
def test_times_fall_and_stay_in_the_schedule_for_any_number_of_steps(schedule: str, num_timesteps: int) -> None:
    levels = torch.tensor(alpha_bars(schedule, num_timesteps)).float()
    for num_steps in range(1, num_timesteps + 1):
        leading, linspace = leading_timesteps(num_timesteps, num_steps), linspace_timesteps(levels, num_steps)
        karras = karras_timesteps(levels, num_steps)
        for times in (leading, linspace, karras):
            assert len(times) == num_steps
            assert all(now > after for now, after in itertools.pairwise(times))
            assert 0 <= times[-1] <= times[0] < num_timesteps
        assert linspace[0] == karras[0] == last_timestep(levels, num_steps)
        if 1 < num_steps < num_timesteps:
            assert (leading[-1] >= 1, linspace[-1], karras[-1]) == (True, 0, 0)
    assert leading == linspace == karras == list(reversed(range(num_timesteps)))


@pytest.mark.parametrize(("num_steps", "first"), [(1, 999), (7, 858), (99, 990), (300, 997), (999, 999)])
def test_leading_times_start_where_a_whole_stride_would_pass_the_end(num_steps: int, first: int) -> None:
    assert leading_timesteps(1000, num_steps)[0] == first


def test_sampling_starts_at_the_end_of_a_schedule_that_keeps_some_signal_and_before_the_end_of_one_that_does_not() -> (
    None
):
    cosine = torch.tensor(alpha_bars("cosine")).float()
    assert [last_timestep(LEVELS, num_steps) for num_steps in (1, 20, 1000)] == [999, 999, 999]
    assert [last_timestep(cosine, num_steps) for num_steps in (1, 20, 985, 990, 1000)] == [984, 984, 984, 989, 999]
    assert cosine[985] < 5e-4 <= cosine[984]


@pytest.mark.parametrize("num_steps", [2, 5, 10, 20])
def test_karras_times_are_those_of_diffusers(num_steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(**THEIRS, use_karras_sigmas=True)
    scheduler.set_timesteps(num_steps)
    assert karras_timesteps(LEVELS, num_steps) == scheduler.timesteps.tolist()


def test_karras_levels_that_share_a_time_take_the_next_free_ones() -> None:
    scheduler = DPMSolverMultistepScheduler(**THEIRS, use_karras_sigmas=True)
    scheduler.set_timesteps(100)
    assert scheduler.timesteps.tolist()[-8:] == [4, 3, 2, 2, 1, 1, 0, 0]
    assert karras_timesteps(LEVELS, 100)[-8:] == [7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("num_steps", [0, 1001])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_more_steps_than_the_schedule_has_or_none_are_refused(sampler: Sampler, num_steps: int) -> None:
    with pytest.raises(ValueError, match=rf"num_steps={num_steps} must lie in \[1, 1000\]"):
        sample(sampler, mixture_sample, start(), LEVELS, num_steps)


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'euler': use ddim, dpmpp_2m, dpmpp_2m_karras, unipc"):
        sample("euler", mixture_sample, start(), LEVELS, 2)


# ---- against diffusers


def run_theirs(scheduler: object, predict: Predict) -> Tensor:
    """Sample with a scheduler of diffusers that is told the noise."""
    z = start()
    for t in scheduler.timesteps:
        z = scheduler.step(noise_of(predict, z, t.expand(2)), t, z).prev_sample
    return z


@pytest.mark.parametrize(
    ("num_steps", "spacing"),
    # diffusers, too, rounds a stride down once for all times: `leading` is compared where that changes nothing
    [(2, "leading"), (20, "leading"), (100, "leading"), (1, "trailing"), (1000, "trailing")],
)
def test_ddim_equals_that_of_diffusers(num_steps: int, spacing: str) -> None:
    scheduler = DDIMScheduler(
        **THEIRS, clip_sample=False, set_alpha_to_one=True, steps_offset=1, timestep_spacing=spacing
    )
    scheduler.set_timesteps(num_steps)
    assert scheduler.timesteps.tolist() == leading_timesteps(1000, num_steps)
    ours = sample("ddim", mixture_sample, start(), LEVELS, num_steps)
    torch.testing.assert_close(ours, run_theirs(scheduler, mixture_sample), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 10, 20, 50])
@pytest.mark.parametrize(
    ("solve", "theirs"), [(dpmpp_sample, DPMSolverMultistepScheduler), (unipc_sample, UniPCMultistepScheduler)]
)
def test_solvers_of_order_two_equal_those_of_diffusers_at_equal_times(
    solve: Callable, theirs: type, num_steps: int
) -> None:
    scheduler = theirs(**THEIRS, solver_order=2)
    scheduler.set_timesteps(num_steps)
    ours = solve(mixture_sample, start(), solver_steps(LEVELS, scheduler.timesteps.tolist()))
    torch.testing.assert_close(ours, run_theirs(scheduler, mixture_sample), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_steps", [5, 10, 20])
def test_karras_sampling_differs_from_diffusers_by_the_rounding_of_its_levels_alone(num_steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(**THEIRS, use_karras_sigmas=True)
    scheduler.set_timesteps(num_steps)
    ours = sample("dpmpp_2m_karras", mixture_sample, start(), LEVELS, num_steps)
    theirs = run_theirs(scheduler, mixture_sample)
    assert (ours - theirs).square().mean().sqrt() < 0.02 * theirs.std()


# ---- what every sampler does


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 100, 1000])
def test_data_of_a_single_point_is_found_from_any_noise(sampler: Sampler, num_steps: int) -> None:
    point = torch.full((1, 3, 4, 4), 0.7)
    sampled = sample(sampler, lambda z, t: point.expand_as(z), start(), LEVELS, num_steps)
    torch.testing.assert_close(sampled, point.expand_as(sampled), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_single_step_is_the_networks_answer_to_noise(sampler: Sampler) -> None:
    sampled = sample(sampler, mixture_sample, start(), LEVELS, 1)
    torch.testing.assert_close(sampled, mixture_sample(start(), torch.tensor([999, 999])))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("error", "num_steps", "bound"), [(0.0, 50, 0.05), (0.0, 200, 0.01), (0.02, 20, 0.2)])
def test_a_schedule_that_ends_in_pure_noise_is_sampled_from_a_network_that_errs_about_the_noise(
    sampler: Sampler, error: float, num_steps: int, bound: float
) -> None:
    """Of data N(0, 1), under which the flow stands still, so that the exact noise at z_t is s z_t."""
    denoising = Denoising(schedule="cosine", num_timesteps=1000, loss="l1")
    assert denoising.alpha_bars[-1] < 1e-8
    errors = error * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))

    def predict(z: Tensor, t: Tensor) -> Tensor:
        level = denoising.alpha_bars[t]
        return denoising.sample((1 - level).sqrt().view(-1, 1, 1, 1) * z + errors, z, level)

    sampled = sample(sampler, predict, start(), denoising.alpha_bars, num_steps)
    assert (sampled - start()).square().mean().sqrt() < bound


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_is_repeatable_to_the_bit_and_leaves_its_noise_alone(sampler: Sampler) -> None:
    noise = start()
    first = sample(sampler, mixture_sample, noise, LEVELS, 20)
    assert torch.equal(noise, start())
    assert torch.equal(first, sample(sampler, mixture_sample, noise, LEVELS, 20))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    noise = start(4)
    together = sample(sampler, mixture_sample, noise, LEVELS, 20)
    alone = torch.cat([sample(sampler, mixture_sample, each[None], LEVELS, 20) for each in noise])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "times"),
    [
        ("ddim", [751, 501, 251, 1]),
        ("dpmpp_2m", [999, 666, 333, 0]),
        ("dpmpp_2m_karras", [999, 749, 234, 0]),
        ("unipc", [999, 666, 333, 0]),
    ],
)
def test_the_network_is_called_once_a_step_with_one_time_an_image_and_no_gradient(
    sampler: Sampler, times: list[int]
) -> None:
    calls: list[list[int]] = []

    def predict(z: Tensor, t: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not t.is_floating_point()
        calls.append(t.tolist())
        return torch.zeros_like(z)

    sample(sampler, predict, start(), LEVELS, 4)
    assert calls == [[time, time] for time in times]


@pytest.mark.parametrize(("solve", "order"), [(ddim_sample, 1), (dpmpp_sample, 2), (unipc_sample, 3)])
def test_twice_the_steps_divide_the_distance_from_the_exact_flow_by_two_to_the_solvers_order(
    solve: Callable, order: int
) -> None:
    """UniC raises the order of its predictor by one. The last step, from time 0 to s = 0, is the same for all."""
    levels = torch.sigmoid(torch.linspace(8.0, -7.0, 961, dtype=torch.float64))  # steps of equal length in l
    variance, noise = 0.25, start().double()
    total = levels * variance + 1 - levels

    def predict(z: Tensor, t: Tensor) -> Tensor:
        return (levels.sqrt() * variance / total)[t].view(-1, 1, 1, 1) * z

    def error(num_steps: int) -> float:
        exact = predict(noise * (total[0] / total[-1]).sqrt(), torch.zeros(2, dtype=torch.long))
        steps = solver_steps(levels, linspace_timesteps(levels, num_steps + 1))
        return (solve(predict, noise, steps) - exact).abs().max().item()

    errors = [error(num_steps) for num_steps in (80, 160)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.2)


# ---- inversion


def reconstruction_error(predict: Predict, latents: Tensor, num_steps: int) -> float:
    noise = ddim_invert(predict, latents, LEVELS, num_steps)
    found = sample("ddim", predict, noise, LEVELS, num_steps)
    return ((found - latents).square().mean() / latents.square().mean()).sqrt().item()


def test_inversion_and_sampling_reconstruct_with_an_error_that_falls_with_the_steps() -> None:
    latents = sample("dpmpp_2m", mixture_sample, start(), LEVELS, 200)
    errors = {steps: reconstruction_error(mixture_sample, latents, steps) for steps in (10, 20, 50, 100)}
    bounds = {10: 0.15, 20: 0.07, 50: 0.02, 100: 0.005}
    assert all(errors[steps] < bounds[steps] for steps in bounds), errors


def test_inversion_follows_the_exact_flow_of_gaussian_data_backwards() -> None:
    variance = 0.25
    latents = start().double() * variance**0.5
    first = LEVELS[leading_timesteps(1000, 250)[0]]
    exact = latents * ((first * variance + 1 - first) / variance).sqrt()
    found = ddim_invert(gaussian_sample(variance), latents, LEVELS, 250)
    assert (found - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_inversion_reconstructs_better_than_that_of_diffusers(num_steps: int) -> None:
    latents = sample("dpmpp_2m", mixture_sample, start(), LEVELS, 200)
    scheduler = DDIMInverseScheduler(**THEIRS, clip_sample=False, steps_offset=1)
    scheduler.set_timesteps(num_steps)
    assert scheduler.timesteps.tolist() == leading_timesteps(1000, num_steps)[::-1]
    z = latents
    for t in scheduler.timesteps:
        z = scheduler.step(noise_of(mixture_sample, z, t.expand(2)), t, z).prev_sample
    theirs = (sample("ddim", mixture_sample, z, LEVELS, num_steps) - latents).norm() / latents.norm()
    assert reconstruction_error(mixture_sample, latents, num_steps) < 0.7 * theirs.item()


def test_what_the_prediction_is_blind_to_is_not_kept() -> None:
    point = torch.full((1, 3, 4, 4), 0.7)
    noise = ddim_invert(lambda z, t: point.expand_as(z), start(), LEVELS, 20)
    assert bool(noise.isfinite().all())
    found = sample("ddim", lambda z, t: point.expand_as(z), noise, LEVELS, 20)
    torch.testing.assert_close(found, point.expand_as(found), rtol=0, atol=1e-4)


def test_inversion_calls_the_network_once_a_step_at_the_times_of_ddim_rising() -> None:
    calls: list[int] = []

    def predict(z: Tensor, t: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        calls.append(int(t[0]))
        return torch.zeros_like(z)

    latents = start()
    ddim_invert(predict, latents, LEVELS, 4)
    assert calls == [1, 251, 501, 751]
    assert torch.equal(latents, start())
