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
    """Schedule, distribution of training times, what the network predicts, and the distance to it.

    Args:
        schedule: see `alpha_bars`.
        num_timesteps: T.
        prediction: `noise` as published, or `velocity`, v = sqrt(ab) eps - sqrt(1 - ab) z_0 (Salimans & Ho, arXiv
            2202.00512). Noise weighs an error in z_0 by sqrt(ab / (1 - ab)): where the tokens alone must say what the
            picture is, it hardly counts. Velocity weighs all times alike, which a small network and a short run need.
        loss: `l1` (as DyGA+SD and EncDiff are trained) or `l2`.
        time_power: t = floor(T * u ** time_power), u uniform; 1 is the papers' uniform draw, smaller favours
            noisy times, where the tokens have most to say.
    """

    def __init__(
        self, *, schedule: str, num_timesteps: int, loss: str, prediction: str = "noise", time_power: float = 1.0
    ) -> None:
        super().__init__()
        if prediction not in ("noise", "velocity"):
            raise ValueError(f"unknown prediction {prediction!r}: use noise or velocity")
        if loss not in ("l1", "l2"):
            raise ValueError(f"unknown loss {loss!r}: use l1 or l2")
        self.num_timesteps = num_timesteps
        self.kind = loss
        self.prediction = prediction
        self.time_power = time_power
        self.register_buffer("alpha_bars", torch.tensor(alpha_bars(schedule, num_timesteps)).float(), persistent=False)
        self.alpha_bars: Tensor

    def draw_timesteps(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """(B,) integers in [0, T) on the generator's device."""
        uniform = torch.rand(batch_size, generator=generator, device=generator.device)
        return (uniform**self.time_power * self.num_timesteps).long().clamp_max(self.num_timesteps - 1)

    def target(self, latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        """What the network is to predict for z_0 and eps (B, C, H, W) at alpha_bar (B,)."""
        if self.prediction == "noise":
            return noise
        alpha_bar = alpha_bar.view(-1, 1, 1, 1)
        return alpha_bar.sqrt() * noise - (1.0 - alpha_bar).sqrt() * latents

    def noise(self, predicted: Tensor, noisy: Tensor, alpha_bar: Tensor) -> Tensor:
        """The noise that a prediction for z_t (B, C, H, W) at alpha_bar (B,) amounts to."""
        if self.prediction == "noise":
            return predicted
        alpha_bar = alpha_bar.view(-1, 1, 1, 1)
        return alpha_bar.sqrt() * predicted + (1.0 - alpha_bar).sqrt() * noisy

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Mean distance of prediction and target, both (B, C, H, W) -> scalar."""
        distance = F.l1_loss if self.kind == "l1" else F.mse_loss
        return distance(predicted.float(), target)
