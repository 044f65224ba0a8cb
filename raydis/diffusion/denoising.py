"""Denoising: add noise to latents at random times, and measure the error of what the network predicts from them.

B batch, C H W latent, T timesteps of the schedule, ab (alpha_bar) the share of the signal's variance at a time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.diffusion.samplers import usual_steps
from raydis.diffusion.schedule import alpha_bars


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return z_t = sqrt(ab_t) z_0 + sqrt(1 - ab_t) eps, where alpha_bar (B,) is the schedule's value at t."""
    alpha_bar = alpha_bar.view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * latents + (1.0 - alpha_bar).sqrt() * noise


class Denoising(nn.Module):
    """The noise schedule, the training times, the target of the network's prediction, and the loss.

    Args:
        schedule: see `alpha_bars`.
        num_timesteps: T.
        prediction: what the network predicts: `noise` as published; `velocity`, v = sqrt(ab) eps - sqrt(1 - ab) z_0;
            `sample`, z_0 itself (these three: Salimans & Ho, arXiv 2202.00512); or `flow`, eps - z_0, which on the
            schedule `straight` is the velocity of the path, and so what flow matching learns. With `noise`, an
            error in z_0 has the weight sqrt(ab / (1 - ab)). It hardly counts at times at which the latents are nearly
            noise, where only the tokens can tell what the image is. With `velocity` the weight is 1 / sqrt(1 - ab), and
            with `flow` 1 + sqrt(ab / (1 - ab)), but the output of the network must still contain all of z_t, or of the
            noise in it. With `sample` it need not, and an error in z_0 has the same weight at all times, which suits
            small networks and short runs. On the schedule `straight`, where the flow is
            (sqrt(ab) + sqrt(1 - ab)) v + (sqrt(1 - ab) - sqrt(ab)) z_t, `velocity` learns the flow too, less its share
            of z_t, and where the latents are all noise this is -z_0.
        loss: `l1` (as in DyGA+SD and EncDiff) or `l2`.
        shift: s > 0. At s = 1 training times are uniform. At s > 1 more of them are noisy: a uniform share u of the
            schedule becomes s u / (1 + (s - 1) u), as in Stable Diffusion 3 (arXiv 2403.03206, eq. 23).
        default_steps: number of sampling steps where none is asked for, in [1, T]; None for `usual_steps`.
    """

    def __init__(
        self,
        *,
        schedule: str,
        num_timesteps: int,
        loss: str,
        prediction: str = "noise",
        shift: float = 1.0,
        default_steps: int | None = None,
    ) -> None:
        super().__init__()
        if prediction not in ("noise", "velocity", "sample", "flow"):
            raise ValueError(f"unknown prediction {prediction!r}: use noise, velocity, sample or flow")
        if loss not in ("l1", "l2"):
            raise ValueError(f"unknown loss {loss!r}: use l1 or l2")
        if not 0.0 < shift < float("inf"):
            raise ValueError(f"shift={shift} must be positive and finite")
        self.schedule = schedule
        self.num_timesteps = num_timesteps
        self.distance = loss
        self.prediction = prediction
        self.shift = shift
        self.default_steps = usual_steps(num_timesteps) if default_steps is None else default_steps
        self.register_buffer(
            "alpha_bars",
            torch.tensor(alpha_bars(schedule, num_timesteps), dtype=torch.get_default_dtype()),
            persistent=False,
        )
        self.alpha_bars: Tensor

    def draw_timesteps(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Draw times (B,) from the integers in [0, T), on the generator's device: uniformly, then moved by `shift`."""
        times = torch.randint(self.num_timesteps, (batch_size,), generator=generator, device=generator.device)
        if self.shift == 1.0:
            return times
        share = (times + 0.5) / self.num_timesteps
        shifted = self.num_timesteps * self.shift * share / (1.0 + (self.shift - 1.0) * share)
        return shifted.long().clamp(max=self.num_timesteps - 1)  # rounding may reach T

    def target(self, latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
        """Return the target of the prediction for z_0 and eps (B, C, H, W) at alpha_bar (B,)."""
        alpha_bar = alpha_bar.view(-1, 1, 1, 1)
        match self.prediction:
            case "noise":
                return noise
            case "velocity":
                return alpha_bar.sqrt() * noise - (1.0 - alpha_bar).sqrt() * latents
            case "flow":
                return noise - latents
            case _:
                return latents

    def sample(self, predicted: Tensor, noisy: Tensor, alpha_bar: Tensor) -> Tensor:
        """Convert a prediction for z_t (B, C, H, W) at alpha_bar (B,) > 0 to the z_0 that it implies."""
        alpha_bar = alpha_bar.view(-1, 1, 1, 1)
        match self.prediction:
            case "noise":
                return (noisy - (1.0 - alpha_bar).sqrt() * predicted) / alpha_bar.sqrt()
            case "velocity":
                return alpha_bar.sqrt() * noisy - (1.0 - alpha_bar).sqrt() * predicted
            case "flow":  # z_t = (a + s) z_0 + s (eps - z_0)
                s = (1.0 - alpha_bar).sqrt()
                return (noisy - s * predicted) / (alpha_bar.sqrt() + s)
            case _:
                return predicted

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the mean distance between prediction and target, both (B, C, H, W), as a scalar."""
        distance = F.l1_loss if self.distance == "l1" else F.mse_loss
        return distance(predicted.to(target.dtype), target)
