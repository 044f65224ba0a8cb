"""Configuration of the methods `vq` and `kl`, which train an autoencoder as a first stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from raydis.config.first_stage import AutoencoderNetwork, KlNetwork, PixelStage, VqNetwork
from raydis.config.method import MethodSection
from raydis.config.section import Size

if TYPE_CHECKING:
    from raydis.config.run import RunConfig


class ReconstructionConfig(AutoencoderNetwork, MethodSection):
    """The loss terms of an autoencoder besides the mean absolute error of its reconstructions."""

    scored: ClassVar[bool] = False

    discriminator_weight: float = Field(
        default=0.0, ge=0.0, description="Weight of a patch discriminator's adversarial loss; 0: no discriminator."
    )
    discriminator_channels: tuple[Size, ...] = Field(
        default=(64, 128, 256),
        min_length=1,
        description="Channels of the discriminator's convolutions, each of which halves the size.",
    )
    discriminator_start_images: int = Field(
        default=0, ge=0, description="Training images after which the adversarial loss is switched on."
    )
    perceptual_weights: str | None = Field(
        default=None,
        description="A .safetensors file with VGG16's convolutions under torchvision's names, for a perceptual loss; "
        "null: no such loss. Nothing is downloaded.",
    )
    perceptual_weight: float = Field(default=1.0, gt=0.0, description="Weight of the perceptual loss.")

    def check(self, run: RunConfig) -> None:
        self.check_image_size(run.data.image_size, "method")
        if not isinstance(run.first_stage, PixelStage):
            raise ValueError(
                f"method.kind={run.method.kind} trains a first stage and works on the pixels themselves: "
                f"set first_stage.kind=pixel instead of {run.first_stage.kind}"
            )
        if self.perceptual_weights is not None and run.data.image_size < 16:
            raise ValueError(
                f"VGG16 halves its input four times, for which data.image_size={run.data.image_size} is too small: "
                "use at least 16 px, or remove method.perceptual_weights"
            )
        if self.discriminator_weight and run.data.image_size >> len(self.discriminator_channels) < 1:
            raise ValueError(
                f"method.discriminator_channels={list(self.discriminator_channels)} halve an image of "
                f"data.image_size={run.data.image_size} px too often: give it fewer"
            )
        if self.discriminator_weight and self.discriminator_start_images >= run.train.num_images:
            raise ValueError(
                f"method.discriminator_start_images={self.discriminator_start_images} is not reached within "
                f"train.num_images={run.train.num_images}: lower it, or set method.discriminator_weight=0"
            )


class VqConfig(VqNetwork, ReconstructionConfig):
    """VQ-GAN (arXiv 2012.09841), trained as a first stage. Without a discriminator it is a VQ-VAE."""

    kind: Literal["vq"] = "vq"
    codebook_weight: float = Field(default=1.0, gt=0.0, description="Weight of the codebook loss.")
    commitment: float = Field(
        default=0.25,
        ge=0.0,
        description="Weight, within the codebook loss, of the term that pulls latents to embeddings (beta of equation "
        "3 in arXiv 1711.00937).",
    )


class KlConfig(KlNetwork, ReconstructionConfig):
    """Autoencoder with a small KL penalty towards a standard normal distribution, trained as a first stage."""

    kind: Literal["kl"] = "kl"
    kl_weight: float = Field(
        default=1e-6,
        ge=0.0,
        description="Weight of the Kullback-Leibler (KL) divergence relative to the reconstruction error, both summed "
        "per image as published.",
    )
