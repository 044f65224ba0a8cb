"""The interface between the training loop and a method, and between a trained method and whoever uses it.

The training loop (`raydis.engine`) knows nothing of a method but what stands here: the random numbers that a step
needs, the losses and which weights follow them, and hooks that run before, after and between steps. The editor, the
service and the report know `UnitMethod`.

Letters: B batch, N units, D unit width, C H W image, L h w latent.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from raydis.diffusion.samplers import Sampler
from raydis.metrics.telling import UnitLabel
from raydis.models.autoencoders import Autoencoder

Draws: TypeAlias = dict[str, Tensor]
Losses: TypeAlias = dict[str, Tensor]


class Batch(NamedTuple):
    """One worker's share of a training step. The first axis of every tensor is B.

    Attributes:
        images: (B, C, H, W) in [-1, 1].
        draws: the method's own random numbers, by name; see `Method.draw`.
        others: a second batch of images, independent of the first, for a method with `second_batch`; else None.
        latents: (B, L, h, w), raw latents of `images`, where `Method.autoencoder` is not None.
    """

    images: Tensor
    draws: Draws
    others: Tensor | None = None
    latents: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, in a fixed order; `Batch.of` restores the batch."""
        optional = {"others": self.others, "latents": self.latents}
        kept = {name: tensor for name, tensor in optional.items() if tensor is not None}
        return {"images": self.images} | {f"draws.{name}": drawn for name, drawn in self.draws.items()} | kept

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Batch:
        """Return the batch whose `tensors()` these are."""
        draws = {name.removeprefix("draws."): drawn for name, drawn in tensors.items() if name.startswith("draws.")}
        return cls(tensors["images"], draws, tensors.get("others"), tensors.get("latents"))

    def split(self, num_parts: int) -> list[Batch]:
        """Return equal parts along the first axis; B is a multiple of `num_parts`."""
        names, tensors = zip(*self.tensors().items(), strict=True)
        rows = zip(*(tensor.chunk(num_parts) for tensor in tensors), strict=True)
        return [Batch.of(dict(zip(names, row, strict=True))) for row in rows]


@dataclass(frozen=True)
class Move:
    """One part of a training step: a loss, and the weights that are moved along its gradient.

    A step makes the moves of a method one after the other, each with an optimiser of its own (AdamW).

    Attributes:
        name: what `Method.forward` is asked for, and what the optimiser's state is stored under.
        modules: hold the weights that this move changes. It needs no gradient of any other.
        learning_rate_scale: factor of `train.learning_rate`.
        betas: of AdamW.
        weight_decay: of AdamW; None takes `train.weight_decay`.
        couples: whether the loss of an image depends on the others of its batch, as a total correlation does. The loss
            of the whole batch is then no mean over parts, so that every worker computes it from the whole batch.
    """

    name: str
    modules: Sequence[nn.Module]
    learning_rate_scale: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float | None = None
    couples: bool = False

    @property
    def weights(self) -> list[nn.Parameter]:
        """The parameters of all modules, in order."""
        return [weight for module in self.modules for weight in module.parameters()]


class Method(nn.Module, abc.ABC):
    """A trainable method. Everything that changes its results is in its state dict.

    Attributes:
        start_images: images that `start` is given; None for as many as one float tensor may hold, see `Training`.
        refit_images: images between two calls of `refit`; None where there is nothing to refit.
        refit_samples: images that `refit` is given.
        second_batch: whether a step takes a second, independent batch; see `Batch.others`.
    """

    start_images: int | None = None
    refit_images: int | None = None
    refit_samples: int = 0
    second_batch: bool = False

    @property
    @abc.abstractmethod
    def moves(self) -> Sequence[Move]:
        """The moves of a step, in order; none for a method in closed form, which is trained when it is started."""

    @property
    def averaged_modules(self) -> Sequence[nn.Module]:
        """The modules that the moving average of the weights follows. By default: all that a move changes."""
        return [module for move in self.moves for module in move.modules]

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return the random numbers of one step for B = batch_size images, on the generator's device.

        They are drawn for the whole batch, so that workers and parts share them out: every first axis is B.
        """
        return {}

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the losses of a move: scalars by name, of which `loss` is descended and the others are reported.

        Each is a mean over the images of the batch, so that the mean over equal parts is that of the whole, unless
        the move couples them.
        """
        raise TypeError(f"{type(self).__name__} has no moves, and so no loss")

    @property
    def autoencoder(self) -> Autoencoder | None:
        """The frozen first stage that a run of its own has trained: the engine fills it before the first step."""
        return None

    def start(self, parts: Iterable[Tensor], generator: torch.Generator) -> None:
        """Fit what has a closed form to a sample of the images, (b, C, H, W) in [-1, 1] part by part."""

    def begin_step(self, share: float) -> None:
        """Called before each step with the fraction of the budget that has been used, in [0, 1)."""

    def end_step(self) -> None:
        """Called after each step's last move, on the device alone: it must not read anything back to the host."""

    def refit(self, parts: Iterable[Tensor], generator: torch.Generator) -> dict[int, str]:
        """Fit what gradients do not reach to a sample of the images.

        Returns:
            the units that were left out, with the reason of each.
        """
        return {}

    @property
    def refitted(self) -> nn.Module | None:
        """The module whose state `refit`, `begin_step` and `end_step` write; workers and the average copy it."""
        return None

    def calibrate(self, parts: Iterable[Tensor]) -> None:
        """Measure on a sample of the images what a finished checkpoint says of itself."""

    def health(self) -> dict[str, int]:
        """Return counts of what has gone wrong in the method so far, by name; all zero where it is well."""
        return {}

    def reconstruct(self, images: Tensor) -> Tensor | None:
        """Return images (B, C, H, W) encoded and decoded again, in [-1, 1]; None where that says nothing."""
        return None


class FactorTable(NamedTuple):
    """What is known of the factors of some images: one name a column of `levels` (M, F), integers."""

    names: Sequence[str]
    levels: np.ndarray


class TokenCloud(NamedTuple):
    """The tokens of M images, and what the method pulls them to.

    Attributes:
        raw, pulled: (M, N, D), before and after the pull.
        components: (M, N), the index of what each token is pulled to; -1 for nothing.
        anchors: N tensors (K_n, D), what a unit's tokens are pulled to.
    """

    raw: Tensor
    pulled: Tensor
    components: Tensor
    anchors: Sequence[Tensor]


class UnitMethod(Method):
    """A method with latent units: it encodes images to one number a unit, and most draw images from them.

    Attributes:
        num_units: N.
        unit_dim: D, width of the vector that a unit's number becomes.
    """

    num_units: int
    unit_dim: int
    unit_quantiles: Tensor  # buffer (N, Q): evenly spaced quantiles of each unit's number over the data

    def register_quantiles(self, num_units: int, count: int = 21) -> None:
        """Add the buffer that `calibrate` fills."""
        self.register_buffer("unit_quantiles", torch.zeros(num_units, count))

    @abc.abstractmethod
    def units(self, images: Tensor) -> Tensor:
        """Return the units' numbers (B, N) of images (B, C, H, W) in [-1, 1].

        They are deterministic, and do not depend on the other images of the batch.
        """

    def lift(self, units: Tensor) -> Tensor:
        """Return the codes (B, N, D) of the units' numbers (B, N): what is scored, and what images are drawn from."""
        return units.unsqueeze(-1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the codes (B, N, D) of images (B, C, H, W) in [-1, 1]."""
        return self.lift(self.units(images))

    @property
    def noise_shape(self) -> tuple[int, int, int] | None:
        """Shape (L, h, w) of the noise that drawing starts from; None where drawing is deterministic."""
        return None

    @property
    def max_steps(self) -> int | None:
        """The most sampling steps that drawing can take; None where it takes none."""
        return None

    @abc.abstractmethod
    def decode(self, codes: Tensor, noise: Tensor | None, num_steps: int | None, sampler: Sampler | None) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] of codes (B, N, D).

        Args:
            noise: (B, *noise_shape), or None where that is None.
            num_steps, sampler: None where `max_steps` is.
        """

    def invert(self, codes: Tensor, images: Tensor, num_steps: int) -> Tensor | None:
        """Return the noise (B, *noise_shape) that draws images under their codes (B, N, D); None for none."""
        return None

    def facts(self, units: Tensor) -> dict[str, Tensor]:
        """Return what the method states of units (B, N) beside their numbers: tensors (B, N) by name."""
        return {}

    def diagnose(
        self, parts: Iterable[Tensor], table: FactorTable | None, labels: Sequence[UnitLabel]
    ) -> dict[str, Any] | None:
        """Return what a trained method measures of its own working, JSON-able; None where it measures nothing.

        Args:
            parts: images (b, C, H, W) in [-1, 1].
            table: the factors of these images, where they are known.
            labels: what each of the N units tells.
        """
        return None

    def token_cloud(self, images: Tensor) -> TokenCloud | None:
        """Return the tokens of images (M, C, H, W) with what pulls them, to be drawn; None where nothing does."""
        return None

    def unit_counts(self) -> dict[str, list[int]]:
        """Return counts that describe each unit once trained, by name, such as the components of its mixture."""
        return {}

    @torch.no_grad()
    def calibrate(self, parts: Iterable[Tensor]) -> None:
        """Measure the quantiles of every unit's number."""
        units, quantiles = torch.cat([self.units(images) for images in parts]), self.unit_quantiles
        levels = torch.linspace(0.0, 1.0, quantiles.shape[1], dtype=quantiles.dtype, device=units.device)
        quantiles.copy_(torch.quantile(units.to(quantiles.dtype), levels, dim=0).t())
