"""Noise schedules of the forward process q(z_t | z_0) = N(sqrt(ab_t) z_0, (1 - ab_t) I), t = 0..T-1."""

from __future__ import annotations

import math

import numpy as np


def alpha_bars(name: str, num_timesteps: int = 1000) -> np.ndarray:
    """Cumulative products ab_t of 1 - beta_t, float64, shape (T,), strictly decreasing.

    `ldm_linear` is latent-diffusion's "linear" with EncDiff's ends: sqrt(beta) runs linearly from
    sqrt(0.0015) to sqrt(0.0155) for T = 1000 (arXiv 2112.10752 code). Any other T scales its betas by 1000 / T, up to
    0.999, as guided-diffusion's "linear" does (arXiv 2105.05233 code), so that z_(T-1) is next to noise for all T, as
    sampling takes it to be: unscaled, 100 steps would end at ab = 0.48. `cosine` is Nichol & Dhariwal's with s = 0.008
    and beta clipped at 0.999 (arXiv 2102.09672, equation 17).
    """
    if name == "ldm_linear":
        betas = np.linspace(math.sqrt(0.0015), math.sqrt(0.0155), num_timesteps) ** 2
        betas = np.minimum(betas * (1000 / num_timesteps), 0.999)
    elif name == "cosine":
        steps = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps + 0.008
        squares = np.cos(steps / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1.0 - squares[1:] / squares[:-1], 0.999)
    else:
        raise ValueError(f"unknown schedule {name!r}: use ldm_linear or cosine")
    return np.cumprod(1.0 - betas)
