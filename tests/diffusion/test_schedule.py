from __future__ import annotations

import numpy as np
import pytest
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from raydis.diffusion.schedule import alpha_bars, shift_coefficients


@pytest.mark.parametrize(
    ("name", "time", "expected"),
    [
        ("ldm_linear", 0, 0.9985),
        ("ldm_linear", 499, 0.1510774),
        ("ldm_linear", 999, 6.686652e-4),
        ("cosine", 0, 0.9999587),
        ("cosine", 499, 0.4938436),
        ("cosine", 999, 2.428767e-9),
    ],
)
def test_alpha_bars_have_the_reference_values(name: str, time: int, expected: float) -> None:
    assert alpha_bars(name)[time] == pytest.approx(expected, rel=2e-7)


@pytest.mark.parametrize("name", ["ldm_linear", "cosine", "straight"])
@pytest.mark.parametrize("num_timesteps", [2, 50, 1000])
def test_alpha_bars_fall_strictly_between_one_and_zero(name: str, num_timesteps: int) -> None:
    values = alpha_bars(name, num_timesteps)
    assert values.shape == (num_timesteps,)
    assert values.dtype == np.float64
    assert values[0] < 1.0
    assert (np.diff(values) < 0).all()
    assert values[-1] > 0.0


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("ldm_linear", {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0155}),
        ("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
@pytest.mark.parametrize("num_timesteps", [100, 1000])
def test_betas_equal_those_of_diffusers(name: str, theirs: dict, num_timesteps: int) -> None:
    if name == "ldm_linear":
        theirs = {**theirs, **{end: theirs[end] * 1000 / num_timesteps for end in ("beta_start", "beta_end")}}
    values = alpha_bars(name, num_timesteps)
    betas = 1.0 - values / np.concatenate([[1.0], values[:-1]])
    scheduler = DDPMScheduler(num_train_timesteps=num_timesteps, **theirs)
    np.testing.assert_allclose(betas, scheduler.betas.numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["ldm_linear", "cosine"])
@pytest.mark.parametrize("num_timesteps", [2, 50, 100, 250, 999, 1000, 4000])
def test_the_last_latents_are_next_to_noise_whatever_their_number(name: str, num_timesteps: int) -> None:
    assert alpha_bars(name, num_timesteps)[-1] < 7e-4


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'sqrt': use ldm_linear, cosine or straight"):
        alpha_bars("sqrt")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ldm_linear", [0.0, -0.0273455, -0.9172048, -0.9918775]),
        ("cosine", [0.0, -0.00441528, -0.7081396, -0.0316227]),
    ],
)
def test_the_factors_of_disdiffs_fields_are_the_published_ones(name: str, expected: list[float]) -> None:
    values = alpha_bars(name)
    found = shift_coefficients(values)
    np.testing.assert_allclose(found[[0, 1, 499, 999]], expected, rtol=2e-6)  # as many digits as were published
    # PDAE's form: the variance of the posterior over beta_t, for all times but the first
    ratios = values[1:] / values[:-1]
    betas, variances = 1.0 - ratios, (1.0 - ratios) * (1.0 - values[:-1]) / (1.0 - values[1:])
    np.testing.assert_allclose(found[1:], -np.sqrt(ratios * (1.0 - values[1:])) / betas * variances, rtol=1e-9)


@pytest.mark.parametrize("num_timesteps", [2, 1000])
def test_the_straight_path_mixes_sample_and_noise_in_equal_steps(num_timesteps: int) -> None:
    values = alpha_bars("straight", num_timesteps)
    noise_to_signal = np.sqrt((1.0 - values) / values)
    share_of_noise = noise_to_signal / (1.0 + noise_to_signal)  # tau, for z = (1 - tau) z_0 + tau eps up to its length
    np.testing.assert_allclose(share_of_noise, (np.arange(num_timesteps) + 0.5) / num_timesteps, rtol=1e-9)
    np.testing.assert_allclose(values + values[::-1], 1.0, rtol=1e-12)  # the path from noise to sample is the same path
