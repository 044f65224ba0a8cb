"""The denoising objective: noise latents at a random time, and compare predicted with true noise.

B batch, C H W latent, T timesteps of the schedule.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.diffusion.schedule import alpha_bars


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps, with alpha_bar (B,) already looked up at t."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * latents + (1.0 - alpha_bar).sqrt() * noise


class Objective(nn.Module):
    """Schedule, distribution of training times, and distance between noises.

    Args:
        schedule: see `alpha_bars`.
        num_timesteps: T.
        loss: `l1` (as DyGA+SD and EncDiff are trained) or `l2`.
        time_power: t = floor(T * u ** time_power), u uniform; 1 is the papers' uniform draw, smaller favours
            noisy times, where the tokens have most to say.
    """

    def __init__(self, *, schedule: str, num_timesteps: int, loss: str, time_power: float = 1.0) -> None:
        super().__init__()
        if loss not in ("l1", "l2"):
            raise ValueError(f"unknown loss {loss!r}: use l1 or l2")
        self.num_timesteps = num_timesteps
        self.kind = loss
        self.time_power = time_power
        self.register_buffer("alpha_bars", torch.tensor(alpha_bars(schedule, num_timesteps)).float(), persistent=False)
        self.alpha_bars: Tensor

    def draw_timesteps(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """(B,) integers in [0, T) on the generator's device."""
        uniform = torch.rand(batch_size, generator=generator, device=generator.device)
        return (uniform**self.time_power * self.num_timesteps).long().clamp_max(self.num_timesteps - 1)

    def loss(self, predicted: Tensor, noise: Tensor) -> Tensor:
        """Mean distance of predicted and true noise, both (B, C, H, W) -> scalar."""
        distance = F.l1_loss if self.kind == "l1" else F.mse_loss
        return distance(predicted.float(), noise)
