"""The interface of a method: what the training loop calls, and what the users of a trained method call.

B batch, N units, D unit width, C H W image, L h w latent.

`Method` is the interface to the training loop (`raydis.engine`): the random numbers that a step needs, the losses, the
weights that each loss trains, and hooks that run before, after and between steps. `UnitMethod` adds what scoring, the
editor, the service and the report need: encoding to units, and drawing images from them. No code outside this folder,
the configuration and `build.py` depends on more than these two classes and the types in their signatures. The types
of a step are defined in `batch.py` and those of a diagnosis in `diagnosis.py`; other code imports both from here. A
method whose units are vectors inherits from `VectorUnitMethod` in `vector_units.py`.

Some things have no place in the contract yet. All moves are made in every step, because a CUDA graph repeats the same
work: a method switches a loss off by multiplying it by a buffer that `begin_step` writes, as the first stages do with
the losses of their discriminator. A `Batch` does not contain the indices of its images, because no method may depend on
which image it sees.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raydis.diffusion.samplers import Sampler, usual_steps
from raydis.methods.batch import Batch, Draws, Losses, Move
from raydis.methods.diagnosis import Diagnosis, FactorTable, TokenCloud
from raydis.metrics.telling import UnitLabel
from raydis.models.autoencoders import Autoencoder


class Method(nn.Module, abc.ABC):
    """A trainable method. Its state dict must hold everything that affects its results.

    Attributes:
        start_images: number of images that `start` receives; None for as many as `Training` allows in one tensor.
        refit_images: number of training images between two calls of `refit`; None if `refit` is never called.
        refit_samples: number of images that `refit` receives.
        second_batch: whether a step takes a second, independent batch; see `Batch.others`.
    """

    start_images: int | None = None
    refit_images: int | None = None
    refit_samples: int = 0
    second_batch: bool = False

    @property
    @abc.abstractmethod
    def moves(self) -> Sequence[Move]:
        """The moves of a step, in order. A method with a closed form has none, and is trained in `start`."""

    @property
    def averaged_modules(self) -> Sequence[nn.Module]:
        """The modules whose weights are averaged over time; by default all modules that a move changes."""
        return [module for move in self.moves for module in move.modules]

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return the random numbers of one step for B = batch_size images, on the generator's device.

        They are drawn for the whole batch and then split over workers and parts, so every first axis must be B.
        """
        return {}

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the losses of a move as scalars by name: `loss` is minimised, the others are reported.

        Each must be a mean over the images of the batch, so that the mean over equal parts is the value for the whole
        batch, unless the move couples the images.
        """
        raise TypeError(f"{type(self).__name__} has no moves, and so no loss")

    @property
    def autoencoder(self) -> Autoencoder | None:
        """The first stage, if a separate run has trained it. The engine loads its weights before the first step."""
        return None

    @property
    def pretrained(self) -> Method | None:
        """The frozen model that a separate run has trained, if the method is built on one.

        The engine loads its state before the first step, from the checkpoint that the setting
        `method.pretrained.checkpoint` names, and with it that of its first stage.
        """
        return None

    def start(self, parts: Iterable[Tensor], generator: torch.Generator) -> None:
        """Fit what has a closed form, before the first step. The arguments are those of `refit`."""

    def begin_step(self, share: float) -> None:
        """Prepare the next step. `share`, in [0, 1), is the fraction of the training budget that has been used."""

    def end_step(self) -> None:
        """Complete a step after its last move. This hook must not read values back from the device."""

    def refit(self, parts: Iterable[Tensor], generator: torch.Generator) -> dict[int, str]:
        """Fit again, between two steps, what gradients do not train.

        Args:
            parts: a sample of the images, in parts (b, C, H, W) in [-1, 1], which may be iterated over repeatedly.
            generator: for the random numbers of the fit.

        Returns:
            the units for which the fit failed, with the reason for each.
        """
        return {}

    @property
    def refitted(self) -> nn.Module | None:
        """The module whose state `refit`, `begin_step` and `end_step` change. Other workers receive copies of it."""
        return None

    def calibrate(self, parts: Iterable[Tensor]) -> None:
        """Measure on a sample of the images what a checkpoint records about the method. `parts` as in `refit`."""

    def health(self) -> dict[str, int]:
        """Return counts of what has gone wrong in the method so far, by name; zero means that nothing has."""
        return {}

    def reconstruct(self, images: Tensor) -> Tensor | None:
        """Return images (B, C, H, W) encoded and decoded again, in [-1, 1]; None if the method cannot.

        A method with units need not define this: its images are drawn from their codes by `decode`.
        """
        return None


class UnitMethod(Method):
    """A method with latent units: it encodes an image to one scalar for each unit, and draws images from units.

    Attributes:
        num_units: N.
        unit_dim: D, width of the vector that the scalar of a unit is mapped to.
        units_are_vectors: whether a code holds more than the scalar of its unit; see `VectorUnitMethod`.
        couples_codes: whether the codes of an image depend on the other images of its batch. The service refuses this.
    """

    num_units: int
    unit_dim: int
    units_are_vectors: bool = False
    couples_codes: bool = False
    unit_quantiles: Tensor  # buffer (N, Q): evenly spaced quantiles of each unit's scalar over the data

    @property
    def unit_widths(self) -> tuple[int, ...]:
        """The width of each of the N units, at most D. The rest of a unit's code is zero."""
        return (self.unit_dim,) * self.num_units

    def register_quantiles(self, num_units: int, count: int = 21) -> None:
        """Register the buffer `unit_quantiles`, which `calibrate` fills; `__init__` calls this."""
        self.register_buffer("unit_quantiles", torch.zeros(num_units, count))

    @abc.abstractmethod
    def units(self, images: Tensor) -> Tensor:
        """Return the scalars (B, N) of the units for images (B, C, H, W) in [-1, 1].

        They must be deterministic, and must not depend on the other images of the batch.
        """

    def lift(self, units: Tensor) -> Tensor:
        """Map scalars (B, N) to codes (B, N, D), which are scored, and from which images are drawn."""
        return units.unsqueeze(-1)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the codes (B, N, D) of images (B, C, H, W) in [-1, 1]."""
        return self.represent(images)[1]

    @torch.no_grad()
    def represent(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the `units` (B, N) and the codes (B, N, D) of images (B, C, H, W) in [-1, 1] in one pass."""
        units = self.units(images)
        return units, self.lift(units)

    @torch.no_grad()
    def write(self, codes: Tensor, units: Tensor) -> Tensor:
        """Return codes (B, N, D) with other scalars, `units` (B, N). What a code holds beside its scalar stays."""
        return self.lift(units)

    def not_ready(self) -> str | None:
        """Return why the units cannot be scored yet, or None. `units` must return finite numbers nevertheless."""
        return None

    @property
    def noise_shape(self) -> tuple[int, int, int] | None:
        """Shape (L, h, w) of the noise that drawing starts from; None if drawing takes no noise.

        The residual of a latent, which no unit describes, is such noise too: a standard normal draw for a seed, or what
        `invert` finds in an image.
        """
        return None

    @property
    def max_steps(self) -> int | None:
        """The largest number of sampling steps for drawing; None if drawing takes no steps."""
        return None

    @property
    def default_steps(self) -> int | None:
        """The number of sampling steps where none is asked for; None if drawing takes no steps."""
        return None if self.max_steps is None else usual_steps(self.max_steps)

    @abc.abstractmethod
    def decode(self, codes: Tensor, noise: Tensor | None, steps: int | None, sampler: Sampler | None) -> Tensor:
        """Draw images (B, C, H, W) in [-1, 1] from codes (B, N, D).

        Args:
            codes: as `encode` or `write` returns them.
            noise: (B, *noise_shape); None if `noise_shape` is None.
            steps, sampler: None if `max_steps` is None.
        """

    def invert(self, codes: Tensor, images: Tensor, steps: int | None) -> Tensor | None:
        """Return the noise (B, *noise_shape) from which images are drawn, given their codes (B, N, D).

        `steps` is None if `max_steps` is None. Return None if drawing takes no noise.
        """
        return None

    def facts(self, units: Tensor) -> dict[str, Tensor]:
        """Return further facts about units (B, N) that the service and the editor pass on: tensors (B, N) by name."""
        return {}

    def diagnose(
        self, parts: Iterable[Tensor], table: FactorTable | None, labels: Sequence[UnitLabel]
    ) -> Diagnosis | None:
        """Measure how a trained method works inside. Return a table for the report; None if nothing is measured.

        Args:
            parts: images (b, C, H, W) in [-1, 1].
            table: the factors of these images; None if they are not known.
            labels: the factors that each of the N units describes.
        """
        return None

    def read_diagnosis(self, stored: Mapping[str, Any], labels: Sequence[UnitLabel]) -> Diagnosis:
        """Return the diagnosis that a checkpoint stores. Override this to read what older versions of a method stored.

        Args:
            stored: the result of `Diagnosis.to_dict`, or in a checkpoint of format version 1 the method's own form.
            labels: as for `diagnose`, but as the report shows them.
        """
        return Diagnosis.from_dict(stored)

    def token_cloud(self, images: Tensor) -> TokenCloud | None:
        """Return the tokens of images (M, C, H, W) and their anchors; None if the method has no anchors.

        The report plots them beside the method's diagnosis.
        """
        return None

    def unit_counts(self) -> dict[str, list[int]]:
        """Return counts that describe each unit after training, by name, such as its number of components."""
        return {}

    @torch.no_grad()
    def calibrate(self, parts: Iterable[Tensor]) -> None:
        """Measure the quantiles of each unit's scalar."""
        self.measure_quantiles(torch.cat([self.units(images) for images in parts]))

    def measure_quantiles(self, units: Tensor) -> None:
        """Write the quantiles of scalars (M, N) into `unit_quantiles`."""
        quantiles = self.unit_quantiles
        levels = torch.linspace(0.0, 1.0, quantiles.shape[1], dtype=quantiles.dtype, device=units.device)
        quantiles.copy_(torch.quantile(units.to(quantiles.dtype), levels, dim=0).t())
