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
    """Schedule, training times, what the network predicts, and the distance to it.

    Args:
        schedule: see `alpha_bars`.
        num_timesteps: T.
        prediction: `noise` as published; `velocity`, v = sqrt(ab) eps - sqrt(1 - ab) z_0; or `sample`, z_0 itself (all
            three: Salimans & Ho, arXiv 2202.00512). Noise weighs an error in z_0 by sqrt(ab / (1 - ab)): where the
            tokens alone must say what the picture is, it hardly counts. Velocity weighs it by 1 / sqrt(1 - ab), but
            the network must still carry all of z_t to its end. A network that predicts the sample need not, and an
            error in z_0 counts alike at all times: what a small network and a short run need.
        loss: `l1` (as DyGA+SD and EncDiff are trained) or `l2`.
    """

    def __init__(self, *, schedule: str, num_timesteps: int, loss: str, prediction: str = "noise") -> None:
        super().__init__()
        if prediction not in ("noise", "velocity", "sample"):
            raise ValueError(f"unknown prediction {prediction!r}: use noise, velocity or sample")
        if loss not in ("l1", "l2"):
            raise ValueError(f"unknown loss {loss!r}: use l1 or l2")
        self.num_timesteps = num_timesteps
        self.kind = loss
        self.prediction = prediction
        self.register_buffer(
            "alpha_bars",
            torch.tensor(alpha_bars(schedule, num_timesteps), dtype=torch.get_default_dtype()),
            persistent=False,
        )
        self.alpha_bars: Tensor

    def draw_timesteps(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """(B,) integers in [0, T), uniform, on the generator's device."""
        return torch.randint(self.num_timesteps, (batch_size,), generator=generator, device=generator.device)

    def target(self, latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        """What the network is to predict for z_0 and eps (B, C, H, W) at alpha_bar (B,)."""
        alpha_bar = alpha_bar.view(-1, 1, 1, 1)
        match self.prediction:
            case "noise":
                return noise
            case "velocity":
                return alpha_bar.sqrt() * noise - (1.0 - alpha_bar).sqrt() * latents
            case _:
                return latents

    def sample(self, predicted: Tensor, noisy: Tensor, alpha_bar: Tensor) -> Tensor:
        """The z_0 that a prediction for z_t (B, C, H, W) at alpha_bar (B,) > 0 amounts to."""
        alpha_bar = alpha_bar.view(-1, 1, 1, 1)
        match self.prediction:
            case "noise":
                return (noisy - (1.0 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()
            case "velocity":
                return alpha_bar.sqrt() * noisy - (1.0 - alpha_bar).sqrt() * predicted
            case _:
                return predicted

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Mean distance of prediction and target, both (B, C, H, W) -> scalar."""
        distance = F.l1_loss if self.kind == "l1" else F.mse_loss
        return distance(predicted.to(target.dtype), target)
