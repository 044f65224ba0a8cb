"""DDIM sampling (Song et al., arXiv 2010.02502) with eta = 0: from noise to latents, without further randomness.

B batch, C H W latent, S sampling steps, T timesteps of the schedule.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def sampling_timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """Evenly spaced times, falling: 100 of 1000 gives 991, 981, ..., 1, as latent-diffusion spaces them.

    That code rounds the stride down where S does not divide T, so that 300 of 1000 would start at 898, as if its
    latents were noise alone; here each time is rounded on its own and 300 start at 997. A single step starts at T - 1:
    at time 1 it would return the noise that it was given. All T steps visit every time, 0 too.
    """
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps={num_steps} must lie in [1, {num_timesteps}]")
    if num_steps == 1:
        return [num_timesteps - 1]
    first = 0 if num_steps == num_timesteps else 1
    return [num_timesteps * step // num_steps + first for step in reversed(range(num_steps))]


@torch.no_grad()
def ddim_sample(
    predict_noise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, alpha_bars: Tensor, num_steps: int
) -> Tensor:
    """Integrate from z_T = noise to z_0.

    Args:
        predict_noise: eps_theta(z_t (B, C, H, W), t (B,)).
        noise: z_T, (B, C, H, W).
        alpha_bars: (T,).
        num_steps: S, calls of `predict_noise`.

    Returns:
        (B, C, H, W). The last step lands at ab = 1, the prediction of z_0 itself; latent-diffusion stops at ab_0.
    """
    z = noise
    times = sampling_timesteps(len(alpha_bars), num_steps)
    # Looked up on the host once: the loop then launches no copies and waits for nothing.
    levels = alpha_bars[torch.tensor(times, device=alpha_bars.device)].tolist()
    for time, now, after in zip(times, levels, [*levels[1:], 1.0], strict=True):
        predicted = predict_noise(z, torch.full((len(z),), time, device=z.device))
        clean = (z - (1.0 - now) ** 0.5 * predicted) / now**0.5
        z = after**0.5 * clean + (1.0 - after) ** 0.5 * predicted
    return z
