from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from raydis.diffusion.denoising import Denoising, add_noise


def make(loss: str = "l1", num_timesteps: int = 1000, shift: float = 1.0) -> Denoising:
    return Denoising(schedule="ldm_linear", num_timesteps=num_timesteps, loss=loss, shift=shift)


def draws(count: int, *, seed: int = 0, **settings: float) -> Tensor:
    return make(**settings).draw_timesteps(count, torch.Generator().manual_seed(seed))


def test_noising_equals_that_of_diffusers() -> None:
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 6, 3, 4, 4)
    timesteps = torch.tensor([0, 1, 10, 499, 998, 999])
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0155)
    ours = add_noise(latents, noise, make().alpha_bars[timesteps])
    torch.testing.assert_close(ours, scheduler.add_noise(latents, noise, timesteps))


def test_alpha_bar_one_keeps_the_latents_and_zero_leaves_the_noise() -> None:
    latents, noise = torch.randn(2, 2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    noisy = add_noise(latents, noise, torch.tensor([1.0, 0.0]))
    assert torch.equal(noisy[0], latents[0])
    assert torch.equal(noisy[1], noise[1])


def test_losses_are_the_mean_absolute_and_the_mean_squared_error() -> None:
    predicted, noise = torch.tensor([1.0, -2.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert make("l1").loss(predicted, noise).item() == 1.0
    assert make("l2").loss(predicted, noise).item() == 2.5


def test_predicting_zero_costs_the_mean_of_a_folded_normal() -> None:
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert make("l1").loss(torch.zeros_like(noise), noise).item() == pytest.approx(math.sqrt(2 / math.pi), abs=0.004)


def test_a_bfloat16_prediction_is_compared_in_single_precision() -> None:
    noise = torch.tensor([1.0 + 2**-12])  # not a bfloat16: the distance would vanish there
    loss = make("l1").loss(torch.ones(1, dtype=torch.bfloat16), noise)
    assert loss.dtype == torch.float32
    assert loss.item() == 2**-12


def test_training_times_are_uniform_over_all_steps() -> None:
    times = draws(100_000, num_timesteps=10)
    counts = torch.bincount(times, minlength=10)
    assert len(counts) == 10
    # 5 standard deviations of a binomial count with p = 1/10
    assert (counts - 10_000).abs().max() < 5 * math.sqrt(100_000 * 0.09)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shifted_times_are_those_of_diffusers(shift: float) -> None:
    uniform, shifted = draws(1000, num_timesteps=500), draws(1000, num_timesteps=500, shift=shift)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)  # sigmas of 1000, 999, ..., 1
    middles = scheduler.sigmas[1000 - (2 * uniform + 1)].double()  # of each of our 500 intervals
    difference = 500 * middles - shifted
    assert difference.min() > -1e-4  # rounding, where a middle lies on the border of an interval
    assert difference.max() < 1 + 1e-4


def test_a_shift_of_three_moves_the_median_time_to_three_quarters() -> None:
    times = draws(100_000, num_timesteps=1000, shift=3.0)
    assert times.min() >= 0
    assert times.max() < 1000
    # 5 standard deviations of a binomial share with p = 1/2
    assert abs((times < 750).double().mean().item() - 0.5) < 5 * math.sqrt(0.25 / 100_000)


def test_a_large_shift_stays_in_range() -> None:
    assert draws(10_000, num_timesteps=1000, shift=100.0).max() == 999


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan])
def test_a_shift_must_be_positive(shift: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        make(shift=shift)


def test_equal_generators_give_equal_times_and_others_do_not() -> None:
    assert torch.equal(draws(64), draws(64))
    assert not torch.equal(draws(64), draws(64, seed=1))


def test_the_schedule_moves_with_the_module_but_is_not_saved() -> None:
    denoising = make()
    assert denoising.alpha_bars.dtype == torch.float32
    assert dict(denoising.named_buffers()).keys() == {"alpha_bars"}
    assert not denoising.state_dict()


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown loss 'huber': use l1 or l2"):
        make("huber")


@pytest.mark.parametrize("prediction", ["noise", "velocity", "sample", "flow"])
def test_a_true_prediction_gives_the_true_latents_back_at_every_time(prediction: str) -> None:
    denoising = Denoising(schedule="ldm_linear", num_timesteps=1000, loss="l1", prediction=prediction)
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 1000, 3, 2, 2, generator=generator)
    alpha_bar = denoising.alpha_bars

    target = denoising.target(latents, noise, alpha_bar)

    recovered = denoising.sample(target, add_noise(latents, noise, alpha_bar), alpha_bar)
    # a noise prediction is divided by sqrt(ab), down to 0.026: so are its rounding errors
    torch.testing.assert_close(recovered, latents, atol=5e-5, rtol=0.0)


def test_velocity_is_noise_where_there_is_no_noise_and_the_negated_latent_where_there_is_nothing_else() -> None:
    denoising = Denoising(schedule="ldm_linear", num_timesteps=1000, loss="l2", prediction="velocity")
    latents, noise = torch.full((2, 1, 1, 1), 3.0), torch.full((2, 1, 1, 1), 5.0)

    velocity = denoising.target(latents, noise, torch.tensor([1.0, 0.0]))

    assert velocity.flatten().tolist() == [5.0, -3.0]


def test_the_flow_is_the_difference_of_noise_and_latents_at_every_time_and_exact_even_where_all_is_noise() -> None:
    denoising = Denoising(schedule="straight", num_timesteps=10, loss="l2", prediction="flow")
    latents, noise = torch.full((3, 1, 1, 1), 3.0), torch.full((3, 1, 1, 1), 5.0)
    alpha_bar = torch.tensor([1.0, 0.5, 0.0])

    flow = denoising.target(latents, noise, alpha_bar)

    assert flow.flatten().tolist() == [2.0, 2.0, 2.0]
    # a noise prediction would be divided by zero at the last time
    assert denoising.sample(flow, add_noise(latents, noise, alpha_bar), alpha_bar).flatten().tolist() == [3.0, 3.0, 3.0]


def test_an_error_in_the_sample_weighs_one_plus_the_ratio_of_signal_and_noise_with_flow() -> None:
    denoising = Denoising(schedule="straight", num_timesteps=4, loss="l1", prediction="flow")
    noisy, alpha_bar = torch.zeros(4, 1, 1, 1), denoising.alpha_bars
    off_by_one = denoising.sample(torch.ones(4, 1, 1, 1), noisy, alpha_bar).abs().flatten()
    expected = 1.0 + (alpha_bar / (1.0 - alpha_bar)).sqrt()  # = 1 / tau = 8, 8/3, 8/5, 8/7
    torch.testing.assert_close(1.0 / off_by_one, expected)
    torch.testing.assert_close(expected, 8.0 / torch.tensor([1.0, 3.0, 5.0, 7.0]))


def test_a_true_sample_is_the_latent() -> None:
    denoising = Denoising(schedule="ldm_linear", num_timesteps=1000, loss="l2", prediction="sample")
    latents, noise = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(denoising.target(latents, noise, torch.rand(4)), latents)


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown prediction 'x0': use noise, velocity, sample or flow"):
        Denoising(schedule="cosine", num_timesteps=10, loss="l1", prediction="x0")


def test_on_the_straight_path_the_flow_is_the_velocity_and_a_share_of_the_noisy_latents() -> None:
    latents, noise = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flow, velocity = (
        Denoising(schedule="straight", num_timesteps=8, loss="l2", prediction=prediction)
        for prediction in ("flow", "velocity")
    )
    ab = flow.alpha_bars.double()[torch.tensor([0, 3, 5, 7])]
    signal, spread = (part.view(-1, 1, 1, 1) for part in (ab.sqrt(), (1.0 - ab).sqrt()))
    noisy = add_noise(latents, noise, ab)
    combined = (signal + spread) * velocity.target(latents, noise, ab) + (spread - signal) * noisy
    torch.testing.assert_close(combined, flow.target(latents, noise, ab), rtol=0, atol=1e-12)
