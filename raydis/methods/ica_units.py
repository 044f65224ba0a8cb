"""Units of any method, rotated to independent components after training (`units.rotation=ica`).

B batch, N units, C H W image.

Training is that of the method itself, step for step. Before a checkpoint, independent component analysis (ICA) is
fitted to the units of a sample of the images. The new units are the independent components. They are scored as plain
numbers, and an image is drawn from them by undoing the rotation, so that edits work as before. Where the method maps
each of its units to a vector, the vectors serve for drawing only: a rotation mixes the units that they belong to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from raydis.diffusion.samplers import Sampler
from raydis.methods.contract import Batch, Diagnosis, Draws, FactorTable, Losses, Method, Move, UnitLabel, UnitMethod
from raydis.methods.independence import describe_independence
from raydis.models.autoencoders import Autoencoder
from raydis.models.ica_head import IcaHead


class IcaUnits(UnitMethod):
    """A method whose units are the independent components of another method's units.

    What a method reports about its units (`facts`, `unit_counts`, `token_cloud`) belongs to the units before the
    rotation, and is left out.

    Args:
        inner: the method that is trained.
    """

    unit_dim = 1

    def __init__(self, inner: UnitMethod) -> None:
        super().__init__()
        self.inner = inner
        self.num_units = inner.num_units
        self.couples_codes = inner.couples_codes
        self.start_images = inner.start_images
        self.refit_images = inner.refit_images
        self.refit_samples = inner.refit_samples
        self.second_batch = inner.second_batch
        self.ica = IcaHead(inner.num_units)
        self.register_quantiles(inner.num_units)

    # ---- training: that of the inner method

    @property
    def moves(self) -> Sequence[Move]:
        return self.inner.moves

    @property
    def averaged_modules(self) -> Sequence[nn.Module]:
        return self.inner.averaged_modules

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        return self.inner.draw(batch_size, generator)

    def forward(self, batch: Batch, move: str) -> Losses:
        return self.inner(batch, move)

    @property
    def autoencoder(self) -> Autoencoder | None:
        return self.inner.autoencoder

    @property
    def pretrained(self) -> Method | None:
        return self.inner.pretrained

    def start(self, parts: Iterable[Tensor], generator: torch.Generator) -> None:
        self.inner.start(parts, generator)

    def begin_step(self, share: float) -> None:
        self.inner.begin_step(share)

    def end_step(self) -> None:
        self.inner.end_step()

    def refit(self, parts: Iterable[Tensor], generator: torch.Generator) -> dict[int, str]:
        return self.inner.refit(parts, generator)

    @property
    def refitted(self) -> nn.Module | None:
        return self.inner.refitted

    def health(self) -> dict[str, int]:
        return self.inner.health()

    def reconstruct(self, images: Tensor) -> Tensor | None:
        return self.inner.reconstruct(images)

    @torch.no_grad()
    def calibrate(self, parts: Iterable[Tensor]) -> None:
        """Calibrate the inner method, fit the rotation to its units, and measure the ranges of the new units."""
        self.inner.calibrate(parts)
        units = torch.cat([self.inner.units(images) for images in parts])
        self.ica.fit(units)
        self.measure_quantiles(self.ica(units))

    # ---- units, and what is drawn from them

    @torch.no_grad()
    def units(self, images: Tensor) -> Tensor:
        """Return the independent components (B, N) of images (B, C, H, W) in [-1, 1]."""
        return self.ica(self.inner.units(images))

    def not_ready(self) -> str | None:
        return self.inner.not_ready() or self.ica.not_ready()

    @property
    def noise_shape(self) -> tuple[int, int, int] | None:
        return self.inner.noise_shape

    @property
    def max_steps(self) -> int | None:
        return self.inner.max_steps

    @property
    def default_steps(self) -> int | None:
        return self.inner.default_steps

    @torch.no_grad()
    def decode(
        self, codes: Tensor, noise: Tensor | None = None, steps: int | None = None, sampler: Sampler | None = None
    ) -> Tensor:
        """Draw images from codes (B, N, 1) by the inner method, after undoing the rotation."""
        return self.inner.decode(self.inner_codes(codes), noise, steps, sampler)

    def invert(self, codes: Tensor, images: Tensor, steps: int | None) -> Tensor | None:
        return self.inner.invert(self.inner_codes(codes), images, steps)

    def inner_codes(self, codes: Tensor) -> Tensor:
        """Return the codes of the inner method that belong to codes (B, N, 1)."""
        return self.inner.lift(self.ica.inverse(codes.squeeze(-1)))

    def diagnose(
        self, parts: Iterable[Tensor], table: FactorTable | None, labels: Sequence[UnitLabel]
    ) -> Diagnosis | None:
        """Describe the distributions of the components."""
        units = torch.cat([self.units(images) for images in parts])
        return describe_independence(units.cpu().double().numpy())
