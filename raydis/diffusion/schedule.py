"""Noise schedules of diffusion models: ab_t in q(z_t | z_0) = N(sqrt(ab_t) z_0, (1 - ab_t) I) for t = 0..T-1."""

from __future__ import annotations

import math

import numpy as np


def alpha_bars(name: str, num_timesteps: int = 1000) -> np.ndarray:
    """Return the cumulative products ab_t of 1 - beta_t, float64, shape (T,), strictly decreasing.

    `ldm_linear` is the schedule "linear" of latent-diffusion with EncDiff's limits: for T = 1000, sqrt(beta) grows
    linearly from sqrt(0.0015) to sqrt(0.0155) (code of arXiv 2112.10752). For another T, the betas are multiplied by
    1000 / T and limited to 0.999, as in guided-diffusion's "linear" (code of arXiv 2105.05233). Sampling assumes that
    z_(T-1) is nearly noise; without this factor, a schedule of 100 steps would end at ab = 0.48.

    `cosine` is the schedule of Nichol & Dhariwal with s = 0.008 and beta limited to 0.999 (arXiv 2102.09672, equation
    17).

    `straight` is the straight path of flow matching (arXiv 2210.02747) and rectified flow (arXiv 2209.03003),
    x_t = (1 - tau) z_0 + tau eps, at the middle of each of T equal steps: tau = (t + 1/2) / T. Divided by
    sqrt((1 - tau)^2 + tau^2), x_t is a z_t with ab = (1 - tau)^2 / ((1 - tau)^2 + tau^2). The network reads this z_t,
    which has unit variance, and all samplers work on it. A DDIM step is then an Euler step along the straight path.

    Raises:
        ValueError: an unknown name.
    """
    if name == "ldm_linear":
        betas = np.linspace(math.sqrt(0.0015), math.sqrt(0.0155), num_timesteps) ** 2
        betas = np.minimum(betas * (1000 / num_timesteps), 0.999)
    elif name == "cosine":
        steps = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps + 0.008
        squares = np.cos(steps / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1.0 - squares[1:] / squares[:-1], 0.999)
    elif name == "straight":
        noise = (np.arange(num_timesteps) + 0.5) / num_timesteps
        return (1.0 - noise) ** 2 / ((1.0 - noise) ** 2 + noise**2)
    else:
        raise ValueError(f"unknown schedule {name!r}: use ldm_linear, cosine or straight")
    return np.cumprod(1.0 - betas)


def shift_coefficients(alpha_bars: np.ndarray) -> np.ndarray:
    """Return the factors (T,) by which the fields of DisDiff shift the predicted noise in training.

    With a_t = ab_t / ab_(t-1) and ab_(-1) = 1 they are -sqrt(a_t) (1 - ab_(t-1)) / sqrt(1 - ab_t), as in the released
    code of arXiv 2301.13721. They equal -sqrt(a_t (1 - ab_t)) / beta_t times the variance of the posterior q(z_(t-1) |
    z_t, z_0), which is how PDAE (arXiv 2212.12990) weights the gradient that its decoder predicts. The first is 0.
    """
    before = np.concatenate([[1.0], alpha_bars[:-1]])
    return -np.sqrt(alpha_bars / before) * (1.0 - before) / np.sqrt(1.0 - alpha_bars)
