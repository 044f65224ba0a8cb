"""What the training loop asks of a method: one loss, the draws behind it, and three moments outside of the step.

B batch, C H W image, L h w latent.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raydis.errors import MetricError
from raydis.models.autoencoders import Autoencoder


class Draws(NamedTuple):
    """The random part of one training step, drawn for the whole batch so that workers can share it out."""

    timesteps: Tensor  # (B,)
    noise: Tensor  # (B, L, h, w)


class Method(nn.Module, abc.ABC):
    """A trainable method. Everything that changes its results is in its state dict.

    `forward(images, draws, latents=None)` is the loss of a batch, images (B, C, H, W) in [-1, 1]: a mean over the
    batch, so the mean over workers or parts of a batch is the loss of all of it. `latents` (B, L, h, w) are the
    raw ones of `autoencoder`, given where it is not None.
    """

    refit_images: int | None = None  # images between two calls of `refit`; None: there is nothing to refit
    refit_samples: int = 0  # images whose tensors `refit` is given

    @property
    def autoencoder(self) -> Autoencoder | None:
        """The frozen first stage that a run of its own has trained: its latents of all images are computed once."""
        return None

    @property
    @abc.abstractmethod
    def trained_modules(self) -> Sequence[nn.Module]:
        """What the optimiser changes and the average of the weights follows."""

    @abc.abstractmethod
    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Times and noise of one step for B = batch_size images, on the generator's device."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> codes (B, N, D), what is scored.

        Deterministic, and blind to batch mates but for DyGA+SD's `anchors.mode=release`.

        Raises:
            MetricError: the method has no units.
        """
        raise MetricError(f"{type(self).__name__} has no units to score: set evaluation.protocol=none")

    def start(self, images: Tensor) -> None:
        """Fit what has a closed form to a sample of the images, before the first step."""

    def refit(self, parts: Iterable[Tensor], generator: torch.Generator) -> dict[int, str]:
        """Fit what gradients do not reach to a sample of the images, which come in parts.

        Returns:
            the units that were left out, and why.
        """
        return {}

    def copy_refitted(self, other: Method) -> None:
        """Take over from another instance what `refit` and `pass_share` have changed there."""

    def refitted(self) -> list[Tensor]:
        """The buffers that `refit` writes, for rank 0 to send to the other workers."""
        return []

    def pass_share(self, share: float) -> None:
        """Hear before each step which share of the budget is spent, in [0, 1)."""

    def end_step(self) -> None:
        """Take in, over all workers, what the step's forward passes have gathered; reads nothing back to the host."""

    def calibrate(self, parts: Iterable[Tensor]) -> None:
        """Measure on a sample of the images, in parts, what a finished checkpoint tells of itself."""

    @property
    def num_unanchored_units(self) -> int:
        """Units that the last refit left out; 0 before the first."""
        return 0
