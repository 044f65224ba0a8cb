"""Configuration -> objects: the one place where a family's name meets its class."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from raydis.config import DygaSdConfig, RunConfig
from raydis.diffusion.objective import Objective
from raydis.errors import ConfigError
from raydis.methods.autoencoder import AutoencoderMethod
from raydis.methods.contract import Method
from raydis.methods.dyga_sd import DygaSd
from raydis.models.anchors import Anchors
from raydis.models.autoencoders import Autoencoder, FirstStage, KlAutoencoder, PatchPCA, Pixel, VqAutoencoder
from raydis.models.critics import PatchDiscriminator, PerceptualDistance
from raydis.models.encoder import Encoder
from raydis.models.unet import UNet
from raydis.stageconfig import (
    FirstStageConfig,
    KlConfig,
    KlNetwork,
    KlStage,
    PatchPcaStage,
    PixelStage,
    VqConfig,
    VqNetwork,
    VqStage,
)


def build_autoencoder(config: VqNetwork | KlNetwork, image_channels: int) -> Autoencoder:
    """The untrained network of a learned first stage, to be trained or to be filled from a checkpoint."""
    match config:
        case VqNetwork():
            sizes = {*VqNetwork.model_fields, "commitment"}  # which one that is filled does not have
            return VqAutoencoder(image_channels, **config.model_dump(include=sizes))
        case KlNetwork():
            return KlAutoencoder(image_channels, **config.model_dump(include=set(KlNetwork.model_fields)))


def build_first_stage(config: FirstStageConfig, image_channels: int) -> FirstStage:
    """The unfitted first stage.

    Raises:
        ConfigError: more components than a patch of that many channels has values.
    """
    match config:
        case PixelStage():
            return Pixel(image_channels)
        case PatchPcaStage():
            try:
                return PatchPCA(image_channels, config.patch_size, config.latent_dim, config.whitening)
            except ValueError as error:  # the configuration does not know the channels
                raise ConfigError(f"first_stage.{error}: lower it or raise first_stage.patch_size") from error
        case VqStage() | KlStage():
            return build_autoencoder(config, image_channels)


def build_method(config: RunConfig, image_channels: int) -> Method:
    """The untrained method; weights come from torch's global generator, which the caller seeds.

    Raises:
        ConfigError: a first stage that images of so many channels cannot have, or no perceptual weights in their file.
    """
    match config.method:
        case DygaSdConfig() as method:
            return _build_dyga_sd(config, method, image_channels)
        case VqConfig() as method:
            return _build_autoencoder_method(config, method, method.codebook_weight, image_channels)
        case KlConfig() as method:
            return _build_autoencoder_method(config, method, method.kl_weight, image_channels)


def _build_dyga_sd(config: RunConfig, method: DygaSdConfig, image_channels: int) -> DygaSd:
    stage = build_first_stage(config.first_stage, image_channels)
    return DygaSd(
        encoder=Encoder(
            image_size=config.data.image_size,
            image_channels=image_channels,
            num_units=method.num_units,
            unit_dim=method.unit_dim,
            **method.encoder.model_dump(),
        ),
        unet=UNet(
            latent_dim=stage.latent_dim,
            latent_size=config.latent_size,
            unit_dim=method.unit_dim,
            **method.unet.model_dump(),
        ),
        anchors=Anchors(
            method.num_units,
            method.unit_dim,
            mode=method.anchors.mode,
            max_gaussians=method.anchors.max_gaussians,
            shift_rate=method.anchors.shift_rate,
            inertia=method.anchors.inertia,
        ),
        first_stage=stage,
        objective=Objective(**method.diffusion.model_dump()),
        latent_size=config.latent_size,
        refit=method.anchors,
    )


def _build_autoencoder_method(
    config: RunConfig, method: VqConfig | KlConfig, latent_weight: float, image_channels: int
) -> AutoencoderMethod:
    network, discriminator = build_autoencoder(method, image_channels), None
    if method.discriminator_weight:
        discriminator = PatchDiscriminator(image_channels, method.discriminator_channels)
    return AutoencoderMethod(
        autoencoder=network,
        latent_size=config.data.image_size // method.reduction,
        latent_weight=latent_weight,
        discriminator=discriminator,
        discriminator_weight=method.discriminator_weight,
        discriminator_start=method.discriminator_start_images / config.train.num_images,
        perceptual=_open_perceptual(method.perceptual_weights),
        perceptual_weight=method.perceptual_weight,
    )


def _open_perceptual(path: str | None) -> PerceptualDistance | None:
    if path is None:
        return None
    try:
        return PerceptualDistance(load_file(Path(path).expanduser()))
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(
            f"method.perceptual_weights={path} does not hold VGG16's weights ({error}): give a .safetensors file of "
            "torchvision's vgg16, or null"
        ) from error
