"""Configuration of first stages: which latent of an image a diffusion model works on.

A learned first stage is trained by a run of its own, see `raydis.config.autoencoder`; a diffusion run then names its
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
    """Closed-form first stage: PCA of non-overlapping image patches."""

    kind: Literal["patch_pca"] = "patch_pca"
    patch_size: int = Field(default=4, ge=2, le=16, description="Side of a patch, px; the latent is that much smaller.")
    latent_dim: int = Field(default=12, ge=1, description="Principal components kept, the channels of the latent.")
    whitening: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="Channel l is divided by std_l**whitening; 1 gives all of them unit variance.",
    )


class AutoencoderNetwork(Model):
    """Convolutional encoder and decoder of latent-diffusion (arXiv 2112.10752); the defaults are its f=4."""

    stem_stride: int = Field(
        default=1,
        ge=1,
        le=16,
        description="First and last convolution: 1 is 3x3 at full size as published, s > 1 an s x s patch embedding.",
    )
    model_dim: int = Field(default=32, ge=2, description="Channels at the finest level.")
    multipliers: tuple[Size, ...] = Field(
        default=(1, 2, 4), min_length=1, description="Channels of a level / model_dim; all but the first halve."
    )
    num_blocks: int = Field(
        default=2, ge=1, description="Residual blocks a level of the encoder; the decoder has 1 more."
    )
    latent_dim: int = Field(default=3, ge=1, description="Channels of the latent.")

    @property
    def reduction(self) -> int:
        """Side of the image / side of the latent, f."""
        return self.stem_stride << (len(self.multipliers) - 1)

    def check_image_size(self, image_size: int, section: str) -> None:
        """Raises ValueError where images of this size cannot be reduced so far; `section` is this one's name."""
        if image_size % self.reduction:
            raise ValueError(
                f"data.image_size={image_size} cannot be divided by {self.reduction}: change {section}.stem_stride or "
                f"give {section}.multipliers fewer levels"
            )


class VqNetwork(AutoencoderNetwork):
    """Its latent is rounded to the nearest of a set of embeddings when it is decoded."""

    num_embeddings: int = Field(default=2048, ge=2, description="Embeddings K of the codebook.")


class KlNetwork(AutoencoderNetwork):
    """Its latent is the mean of a Gaussian."""


class LearnedStage(Model):
    """First stage that a run of its own has trained, with `method.kind: vq` or `kl` and this very network."""

    checkpoint: str = Field(
        description="Of that run: a folder, s3:// URI or name@alias of the registry. Its images must have been as "
        "large as these, but may have been others. A run's own checkpoints contain it."
    )


class VqStage(VqNetwork, LearnedStage):
    """Vector-quantised autoencoder; the diffusion model works on the latent before quantisation."""

    kind: Literal["vq"] = "vq"


class KlStage(KlNetwork, LearnedStage):
    """Autoencoder with a Gaussian latent; the diffusion model works on its mean."""

    kind: Literal["kl"] = "kl"


FirstStageConfig = Annotated[PixelStage | PatchPcaStage | VqStage | KlStage, Field(discriminator="kind")]
