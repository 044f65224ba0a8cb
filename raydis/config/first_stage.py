"""Configuration of first stages: maps from images to the latents that a diffusion model works on.

A separate run trains a learned first stage (see `raydis.config.autoencoder`). The diffusion run then names its
checkpoint.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raydis.config.section import Model, Size


class PixelStage(Model):
    """No first stage: the diffusion model works on the pixels themselves."""

    kind: Literal["pixel"] = "pixel"


class PatchPcaStage(Model):
    """Closed-form first stage: principal component analysis (PCA) of non-overlapping image patches."""

    kind: Literal["patch_pca"] = "patch_pca"
    patch_size: int = Field(
        default=4, ge=2, le=16, description="Side of a patch, px. The latent is smaller by this factor."
    )
    latent_dim: int = Field(default=12, ge=1, description="Principal components kept: the channels of the latent.")
    whitening: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="Channel l is divided by std_l**whitening. With 1, all channels have unit variance.",
    )


class AutoencoderNetwork(Model):
    """Convolutional encoder and decoder of latent-diffusion (arXiv 2112.10752); the default is its f=4."""

    stem_stride: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Stride of the first and last convolution. 1: a 3x3 convolution at full size, as published; s > 1: "
        "an embedding of s x s patches.",
    )
    model_dim: int = Field(default=32, ge=2, description="Channels at the finest level.")
    multipliers: tuple[Size, ...] = Field(
        default=(1, 2, 4),
        min_length=1,
        description="Channels of each level, divided by model_dim. Each level but the first halves the size.",
    )
    num_blocks: int = Field(
        default=2, ge=1, description="Residual blocks per level of the encoder. The decoder has one more per level."
    )
    latent_dim: int = Field(default=3, ge=1, description="Channels of the latent.")

    @property
    def reduction(self) -> int:
        """The reduction f: side of the image divided by side of the latent."""
        return self.stem_stride << (len(self.multipliers) - 1)

    def check_image_size(self, image_size: int, section: str) -> None:
        """Raise ValueError if the image size is no multiple of `reduction`. `section` is the name of this section."""
        if image_size % self.reduction:
            raise ValueError(
                f"data.image_size={image_size} cannot be divided by {self.reduction}: change {section}.stem_stride or "
                f"give {section}.multipliers fewer levels"
            )


class VqNetwork(AutoencoderNetwork):
    """Autoencoder whose decoder rounds each pixel of the latent to the nearest of a set of embeddings."""

    num_embeddings: int = Field(default=2048, ge=2, description="Vectors in the codebook.")


class KlNetwork(AutoencoderNetwork):
    """Autoencoder whose encoder returns a Gaussian. The latent is its mean."""


class LearnedStage(Model):
    """First stage that a separate run has trained, with `method.kind: vq` or `kl` and the same network settings."""

    checkpoint: str = Field(
        description="Checkpoint of that run: a folder, an s3:// URI, or name@alias of the registry. It must have been "
        "trained at this image size, but may have seen other images. Checkpoints of the diffusion run contain it."
    )


class VqStage(VqNetwork, LearnedStage):
    """Vector-quantised autoencoder. The diffusion model works on the latent before quantisation."""

    kind: Literal["vq"] = "vq"


class KlStage(KlNetwork, LearnedStage):
    """Autoencoder with a Gaussian latent. The diffusion model works on the mean."""

    kind: Literal["kl"] = "kl"


FirstStageConfig = Annotated[PixelStage | PatchPcaStage | VqStage | KlStage, Field(discriminator="kind")]
