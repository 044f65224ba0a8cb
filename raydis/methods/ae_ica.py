"""An autoencoder whose codes are rotated by independent component analysis (ICA), with or without an isometric decoder.

B batch, N units, C H W image.

An autoencoder has no reason to prefer any axes in the space of its codes. ICA chooses them after training: it is fitted
to the codes of a sample of the images before a checkpoint is written, and its map becomes a fixed linear layer between
encoder and decoder, which leaves the reconstructions as they are.

If the images are the image of independent, non-Gaussian factors under a locally isometric map, then the factors are an
orthogonal rotation of any code whose decoder is an isometry, and ICA finds this rotation (Horan et al., NeurIPS 2021).
Their text on autoencoders could not be read, so this is a reconstruction. Which penalty makes the decoder isometric is
our choice; see `raydis.models.isometry`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from raydis.diffusion.samplers import Sampler
from raydis.methods.contract import Batch, Diagnosis, Draws, FactorTable, Losses, Move, UnitLabel, UnitMethod
from raydis.methods.independence import describe_independence
from raydis.models.conv_vae import ConvDecoder, ConvEncoder
from raydis.models.ica_head import IcaHead
from raydis.models.isometry import decoder_isometry, relaxed_distortion
from raydis.models.precision import at_least_single

OVERSHOOT = 0.2  # how far beyond a pair of codes a point between them may lie, as a share of their distance (IRVAE)


class AeIca(UnitMethod):
    """Minimise the squared error of the reconstruction, and rotate the codes afterwards.

    Args:
        encoder: a network with one head of N numbers.
        decoder: a network from N numbers to pixels in [-1, 1].
        num_units: N.
        max_iterations, tolerance: of ICA.
    """

    unit_dim = 1

    def __init__(
        self,
        *,
        encoder: ConvEncoder,
        decoder: ConvDecoder,
        num_units: int,
        max_iterations: int = 1000,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.num_units = num_units
        self.ica = IcaHead(num_units, max_iterations=max_iterations, tolerance=tolerance)
        self.register_quantiles(num_units)

    @property
    def moves(self) -> Sequence[Move]:
        """One move, which trains both networks by Adam without weight decay."""
        return [Move("autoencoder", [self.encoder, self.decoder], weight_decay=0.0)]

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the squared error of the reconstruction, summed over an image."""
        return {"loss": self.error(batch.images, self.encoder(batch.images)[0])}

    def error(self, images: Tensor, codes: Tensor) -> Tensor:
        """Return the squared error of images (B, C, H, W) and the decoded codes (B, N), summed over an image."""
        drawn = self.decoder(codes)
        return (drawn.to(images.dtype) - images).square().sum() / len(images)

    @torch.no_grad()
    def calibrate(self, parts: Iterable[Tensor]) -> None:
        """Fit the rotation to the codes, and measure the ranges of the units."""
        codes = torch.cat([at_least_single(self.encoder(images)[0]) for images in parts])
        self.ica.fit(codes)
        self.measure_quantiles(self.ica(codes))

    def not_ready(self) -> str | None:
        """Return why the rotation could not be fitted, or None."""
        return self.ica.not_ready()

    @torch.no_grad()
    def units(self, images: Tensor) -> Tensor:
        """Return the independent components (B, N) of images (B, C, H, W) in [-1, 1]."""
        return self.ica(at_least_single(self.encoder(images)[0]))

    @torch.no_grad()
    def decode(
        self, codes: Tensor, noise: Tensor | None = None, steps: int | None = None, sampler: Sampler | None = None
    ) -> Tensor:
        """Return the images (B, C, H, W) in [-1, 1] that codes (B, N, 1) decode to."""
        return at_least_single(self.decoder(self.ica.inverse(codes.squeeze(-1)))).clamp(-1.0, 1.0)

    def diagnose(
        self, parts: Iterable[Tensor], table: FactorTable | None, labels: Sequence[UnitLabel]
    ) -> Diagnosis | None:
        """Describe the distributions of the units."""
        units = torch.cat([self.units(images) for images in parts])
        return describe_independence(units.cpu().double().numpy())


class IsoAeIca(AeIca):
    """As `AeIca`, with a penalty for a decoder that is not an isometry.

    The penalty is measured between random pairs of codes of a batch, each with one random direction.

    Args:
        isometry: `relaxed`: the relaxed distortion, for which the scale of the codes does not matter; `decoder`: the
            deviation of lengths from 1.
        isometry_weight: weight of the penalty.
        The others as in `AeIca`.
    """

    def __init__(
        self,
        *,
        encoder: ConvEncoder,
        decoder: ConvDecoder,
        num_units: int,
        max_iterations: int = 1000,
        tolerance: float = 1e-6,
        isometry: Literal["relaxed", "decoder"] = "relaxed",
        isometry_weight: float = 1.0,
    ) -> None:
        super().__init__(
            encoder=encoder, decoder=decoder, num_units=num_units, max_iterations=max_iterations, tolerance=tolerance
        )
        self.isometry = isometry
        self.isometry_weight = isometry_weight

    @property
    def moves(self) -> Sequence[Move]:
        """One move. It pairs the codes of a batch, and the relaxed distortion is a ratio of two means."""
        return [Move("autoencoder", [self.encoder, self.decoder], weight_decay=0.0, couples=True)]

    def draw(self, batch_size: int, generator: torch.Generator) -> Draws:
        """Return for each image a direction (B, N), standard normal, and a share (B, 1) between 0 and 1."""
        device = generator.device
        return {
            "direction": torch.randn(batch_size, self.num_units, generator=generator, device=device),
            "share": torch.rand(batch_size, 1, generator=generator, device=device),
        }

    def forward(self, batch: Batch, move: str) -> Losses:
        """Return the squared error of the reconstruction + isometry_weight * penalty."""
        codes = self.encoder(batch.images)[0]
        error, penalty = self.error(batch.images, codes), self.distortion(codes.detach(), batch.draws)
        return {"loss": error + self.isometry_weight * penalty, "reconstruction": error, "distortion": penalty}

    def distortion(self, codes: Tensor, draws: Draws) -> Tensor:
        """Return the penalty at points between pairs of codes (B, N), a scalar.

        The codes are constants here: a network of ReLUs is linear around almost every point, so its Jacobian there does
        not change with the point.
        """
        codes = at_least_single(codes)
        share, direction = draws["share"], draws["direction"].to(codes.dtype)
        if self.isometry == "relaxed":
            share = share * (1.0 + 2.0 * OVERSHOOT) - OVERSHOOT
        points = codes + share.to(codes.dtype) * (codes.roll(1, 0) - codes)
        penalty = relaxed_distortion if self.isometry == "relaxed" else decoder_isometry
        return penalty(self.decoder, points, direction)
