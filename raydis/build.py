"""Build the method that a configuration asks for, with its networks.

`build_method` has one `case` for each method. The networks take plain arguments and know nothing of the configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from safetensors import SafetensorError
from safetensors.torch import load_file

from raydis.config import RunConfig
from raydis.config.autoencoder import KlConfig, VqConfig
from raydis.config.cs_dismo import CsDismoConfig
from raydis.config.disdiff import DisDiffConfig, UnconditionalDiffusionConfig, UnconditionalNetwork
from raydis.config.dyga_sd import DygaSdConfig, ResidualEncoderConfig
from raydis.config.first_stage import (
    FirstStageConfig,
    KlNetwork,
    KlStage,
    PatchPcaStage,
    PixelStage,
    VqNetwork,
    VqStage,
)
from raydis.config.ica import AeIcaConfig, HlleIcaConfig, IcaSection, IsoAeIcaConfig
from raydis.config.pca_ica import PcaIcaConfig
from raydis.config.vae import (
    AnnealedVaeConfig,
    BetaTcVaeConfig,
    BetaVaeConfig,
    DipVaeIConfig,
    DipVaeIIConfig,
    DotVaeConfig,
    FactorVaeConfig,
    ProtoVaeConfig,
    VaeConfig,
    VaeSection,
)
from raydis.diffusion.denoising import Denoising
from raydis.errors import ConfigError
from raydis.methods.ae_ica import AeIca, IsoAeIca
from raydis.methods.autoencoder import AutoencoderMethod
from raydis.methods.contract import Method, UnitMethod
from raydis.methods.cs_dismo import CsDismo
from raydis.methods.disdiff import Disdiff
from raydis.methods.dot_vae import DotVae
from raydis.methods.dyga_sd import DygaSd
from raydis.methods.factor_vae import FactorVae
from raydis.methods.hlle_ica import HlleIca
from raydis.methods.ica_units import IcaUnits
from raydis.methods.pca_ica import PcaIca
from raydis.methods.proto_vae import ProtoVae
from raydis.methods.unconditional_diffusion import UnconditionalDiffusion
from raydis.methods.vae import AnnealedVae, BetaTcVae, BetaVae, DipVae, Vae
from raydis.models.anchors import Anchors
from raydis.models.autoencoders import Autoencoder, FirstStage, KlAutoencoder, PatchPCA, Pixel, VqAutoencoder
from raydis.models.conv_vae import ConvDecoder, ConvEncoder, PairEncoder, SplitEncoder, dense_network, glorot
from raydis.models.critics import ImageDiscriminator, PatchDiscriminator, PerceptualDistance
from raydis.models.encoder import Encoder
from raydis.models.residual_encoder import ResidualEncoder, VectorEncoder
from raydis.models.shift_unet import ShiftDecoder, UnconditionalUNet
from raydis.models.unet import UNet


class _VaeNetworks(TypedDict):
    encoder: ConvEncoder
    decoder: ConvDecoder
    num_units: int


def build_autoencoder(config: VqNetwork | KlNetwork, image_channels: int) -> Autoencoder:
    """Return the network of a learned first stage, to be trained, or to load the weights of a checkpoint."""
    match config:
        case VqNetwork():
            sizes = {*VqNetwork.model_fields, "commitment"}  # the latter is a setting of training alone
            return VqAutoencoder(image_channels, **config.model_dump(include=sizes))
        case KlNetwork():
            return KlAutoencoder(image_channels, **config.model_dump(include=set(KlNetwork.model_fields)))


def build_first_stage(config: FirstStageConfig, image_channels: int) -> FirstStage:
    """Return the first stage that the configuration asks for, before it is fitted.

    Raises:
        ConfigError: it asks for more components than a patch of images with that many channels has values.
    """
    match config:
        case PixelStage():
            return Pixel(image_channels)
        case PatchPcaStage():
            try:
                return PatchPCA(image_channels, config.patch_size, config.latent_dim, config.whitening)
            except ValueError as error:  # the configuration does not know the number of channels
                raise ConfigError(f"first_stage.{error}: lower it or raise first_stage.patch_size") from error
        case VqStage() | KlStage():
            return build_autoencoder(config, image_channels)


def build_method(config: RunConfig, image_channels: int) -> Method:
    """Return the untrained method. Its weights come from torch's global generator, which the caller seeds.

    Raises:
        ConfigError: images with that many channels cannot have the first stage, the file of perceptual weights does not
            hold them, or `units.rotation` does not go with the method's units.
    """
    method = _build_method(config, image_channels)
    if config.units.rotation == "ica":
        assert isinstance(method, UnitMethod)  # the configuration refuses other methods
        if method.units_are_vectors:
            raise ConfigError(
                f"units.rotation=ica rotates numbers, and the units of method.kind={config.method.kind} are vectors: "
                "set units.rotation=none"
            )
        return IcaUnits(method)
    return method


def _build_method(config: RunConfig, image_channels: int) -> Method:
    match config.method:
        case DygaSdConfig() as method:
            return _build_dyga_sd(config, method, image_channels)
        case CsDismoConfig() as method:
            sizes = {"image_size": config.data.image_size, "image_channels": image_channels}
            return CsDismo(**sizes, **method.model_dump(exclude={"kind"}))
        case PcaIcaConfig() as method:
            return PcaIca(
                image_shape=(image_channels, config.data.image_size, config.data.image_size),
                fit_images=min(method.fit_images, config.train.num_images),
                **method.model_dump(exclude={"kind", "fit_images"}),
            )
        case DisDiffConfig() as method:
            return _build_disdiff(config, method, image_channels)
        case UnconditionalDiffusionConfig() as method:
            return _build_diffusion(config, method, image_channels)
        case AeIcaConfig() as method:
            return AeIca(**_ica_arguments(config, method, image_channels))
        case IsoAeIcaConfig(isometry=isometry, isometry_weight=weight) as method:
            return IsoAeIca(**_ica_arguments(config, method, image_channels), isometry=isometry, isometry_weight=weight)
        case HlleIcaConfig() as method:
            return HlleIca(
                **_ica_arguments(config, method, image_channels),
                image_shape=(image_channels, config.data.image_size, config.data.image_size),
                num_neighbors=method.neighbors,
                fit_images=min(method.fit_images, config.train.num_images),
                pca_dims=method.pca_dims,
            )
        case VaeSection() as method:
            return _build_vae(config, method, image_channels)
        case VqConfig() as method:
            return _build_autoencoder_method(config, method, method.codebook_weight, image_channels)
        case KlConfig() as method:
            return _build_autoencoder_method(config, method, method.kl_weight, image_channels)


def _build_dyga_sd(config: RunConfig, method: DygaSdConfig, image_channels: int) -> DygaSd:
    stage = build_first_stage(config.first_stage, image_channels)
    encoder = ResidualEncoder if isinstance(method.encoder, ResidualEncoderConfig) else Encoder
    return DygaSd(
        encoder=encoder(
            image_size=config.data.image_size,
            image_channels=image_channels,
            num_units=method.num_units,
            unit_dim=method.unit_dim,
            **method.encoder.model_dump(exclude={"kind"}),
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
        denoising=Denoising(**method.diffusion.model_dump()),
        latent_size=config.latent_size,
        refit=method.anchors,
        overlap_weight=method.overlap_weight,
    )


def _build_diffusion(config: RunConfig, method: UnconditionalNetwork, image_channels: int) -> UnconditionalDiffusion:
    """Return a diffusion model without a condition, to be trained, or to load the weights of a checkpoint."""
    stage = build_first_stage(config.first_stage, image_channels)
    return UnconditionalDiffusion(
        unet=UnconditionalUNet(latent_dim=stage.latent_dim, latent_size=config.latent_size, **method.unet.model_dump()),
        first_stage=stage,
        denoising=Denoising(**method.diffusion.model_dump()),
        latent_size=config.latent_size,
    )


def _build_disdiff(config: RunConfig, method: DisDiffConfig, image_channels: int) -> Disdiff:
    diffusion = _build_diffusion(config, method.pretrained, image_channels)
    sizes = {"num_units": method.num_units, "unit_dim": method.unit_dim}
    return Disdiff(
        encoder=VectorEncoder(
            image_size=config.data.image_size, image_channels=image_channels, **sizes, **method.encoder.model_dump()
        ),
        decoder=ShiftDecoder(diffusion.unet, concept_dim=method.concept_dim, **sizes),
        diffusion=diffusion,
        unit_dim=method.unit_dim,
        weight=method.disentanglement_weight,
        weighting=method.weighting,
    )


def _build_vae(config: RunConfig, method: VaeConfig, image_channels: int) -> Vae | DotVae:
    if isinstance(method, DotVaeConfig):
        return _build_dot_vae(config, method, image_channels)
    size, num_units = config.data.image_size, method.num_units
    networks: _VaeNetworks = {
        "encoder": ConvEncoder(size, image_channels, (num_units,) * 2, method.hidden_dim).apply(glorot),
        "decoder": ConvDecoder(size, image_channels, num_units, method.hidden_dim).apply(glorot),
        "num_units": num_units,
    }
    weights = method.model_dump(exclude={"kind", "num_units", "hidden_dim", "discriminator_dims", "embedding_dim"})
    match method:
        case BetaVaeConfig():
            return BetaVae(**networks, **weights)
        case AnnealedVaeConfig():
            return AnnealedVae(**networks, **weights)
        case FactorVaeConfig():
            discriminator = dense_network(num_units, method.discriminator_dims, 2).apply(glorot)
            return FactorVae(**networks, **weights, discriminator=discriminator)
        case DipVaeIConfig():
            return DipVae(**networks, **weights, covariance_of="mean")
        case DipVaeIIConfig():
            return DipVae(**networks, **weights, covariance_of="sample")
        case BetaTcVaeConfig():
            return BetaTcVae(**networks, **weights)
        case ProtoVaeConfig():
            pairs = PairEncoder(size, image_channels, method.embedding_dim, method.hidden_dim)
            return ProtoVae(**networks, **weights, pair_encoder=pairs)


def _build_dot_vae(config: RunConfig, method: DotVaeConfig, image_channels: int) -> DotVae:
    size, parts = config.data.image_size, (method.num_units, method.residual_dim)
    return DotVae(
        encoder=SplitEncoder(size, image_channels, parts, method.hidden_dim),
        decoder=ConvDecoder(size, image_channels, sum(parts), method.hidden_dim),
        discriminator=ImageDiscriminator(size, image_channels),
        unlock_images=method.unlock_images(config.train.num_images),
        **method.model_dump(exclude={"kind", "hidden_dim", "unlock_share"}),
    )


def _ica_arguments(config: RunConfig, method: IcaSection, image_channels: int) -> dict[str, Any]:
    """Return what the methods have in common that rotate learned codes: networks with N numbers between them."""
    size, num_units = config.data.image_size, method.num_units
    return {
        "encoder": ConvEncoder(size, image_channels, (num_units,), method.hidden_dim),
        "decoder": ConvDecoder(size, image_channels, num_units, method.hidden_dim),
        "num_units": num_units,
        "max_iterations": method.max_iterations,
        "tolerance": method.tolerance,
    }


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
