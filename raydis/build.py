"""Configuration -> objects: the one place where a family's name meets its class."""

from __future__ import annotations

from raydis.config import DygaSdConfig, PatchPcaStage, PixelStage, RunConfig
from raydis.diffusion.objective import Objective
from raydis.errors import ConfigError
from raydis.methods.dyga_sd import DygaSd
from raydis.models.anchors import Anchors
from raydis.models.autoencoders import PatchPCA, Pixel
from raydis.models.encoder import Encoder
from raydis.models.unet import UNet


def build_first_stage(config: PixelStage | PatchPcaStage, image_channels: int) -> Pixel | PatchPCA:
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


def build_method(config: RunConfig, image_channels: int) -> DygaSd:
    """The untrained method; weights come from torch's global generator, which the caller seeds.

    Raises:
        ConfigError: a first stage that images of so many channels cannot have.
    """
    match config.method:
        case DygaSdConfig() as method:
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
