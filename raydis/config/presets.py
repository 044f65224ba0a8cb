"""Presets: named configurations of a run, whose keys a YAML file or the command line can override.

`reference` has the sizes of the published system (arXiv 2410.23820). These are the defaults of `raydis.config`, with a
tenth of the published training budget, and with bf16 instead of the release's fp32. `small` trains in minutes on a
laptop CPU. `flow_small`, on which the quickstart builds, is its variant with flow matching, more units and more levels
of the factors. `tiny` is for tests and learns nothing. `vq` and `kl` train the learned first stages at the published
size; `vq_small`, `kl_small` and the other presets in `_small` train on the images of `small`, in minutes on one core.
Those in `_published` train a variational autoencoder (VAE) as disentanglement_lib does. `diffusion_presets.py` holds
the presets of EncDiff and DisDiff.
"""

from __future__ import annotations

import copy
import functools

from raydis.config.autoencoder import KlConfig, VqConfig
from raydis.config.cs_dismo import CsDismoConfig
from raydis.config.data import DataConfig
from raydis.config.diffusion_presets import DIFFUSION_PRESETS
from raydis.config.dyga_sd import AnchorConfig, DiffusionConfig, DygaSdConfig, EncoderConfig, UNetConfig
from raydis.config.files import merge
from raydis.config.first_stage import PatchPcaStage, PixelStage
from raydis.config.ica import AeIcaConfig, HlleIcaConfig, IsoAeIcaConfig
from raydis.config.pca_ica import PcaIcaConfig
from raydis.config.preset_parts import FLOW, FULL_DATA, MEDIUM_DATA, SMALL_COURSE, SMALL_DATA
from raydis.config.run import RunConfig
from raydis.config.train import EvaluationConfig, TrainConfig
from raydis.config.tree import Tree, is_tree
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
)
from raydis.errors import ConfigError

# section -> the key that names its variant; a section stands after the one that contains it
TAGS = {"data": "name", "first_stage": "kind", "method": "kind", "method.encoder": "kind"}

REFERENCE = RunConfig(
    data=FULL_DATA,
    first_stage=PatchPcaStage(patch_size=4, latent_dim=12),
    method=DygaSdConfig(),
    train=TrainConfig(precision="bf16"),  # the release trains in fp32
    # EncDiff's published curve on 3D Shapes (FactorVAE / DCI by images): 0.48 M 0.77/0.53, 0.96 M 0.97/0.73,
    # 1.92 M 1.00/0.93, 3.36 M 1.00/0.95. After a tenth of the budget, DCI has more than half of its final value.
    evaluation=EvaluationConfig(rungs=(480_000, 960_000, 1_920_000)),
)

SMALL_METHOD = DygaSdConfig(
    num_units=12,
    unit_dim=16,
    encoder=EncoderConfig(
        stem_stride=8, channels=(64, 128), hidden_dims=(128,), norm="group", token_hidden_dims=(64, 64)
    ),
    unet=UNetConfig(
        model_dim=32,
        multipliers=(1, 1),
        num_blocks=1,
        attention_sizes=(8, 4),
        num_heads=1,
        dropout_rate=0.0,
        skip_dropout_rate=0.2,
        skip_dropout_sizes=(8,),
    ),
    diffusion=DiffusionConfig(prediction="sample"),
    anchors=AnchorConfig(num_gaussians=6, max_gaussians=16, fit_samples=1_500, refit_images=5_000),
)

SMALL = RunConfig(
    data=SMALL_DATA,
    first_stage=PatchPcaStage(patch_size=8, latent_dim=24),
    method=SMALL_METHOD,
    train=TrainConfig(
        **SMALL_COURSE,
        batch_size=32,
        learning_rate=2e-3,
        learning_rate_schedule="cosine",
        warmup_images=3_200,
        max_grad_norm=1.0,
    ),
    evaluation=EvaluationConfig(protocol="search"),
)

FLOW_SMALL = SMALL.model_copy(
    update={
        "data": MEDIUM_DATA,
        "method": SMALL_METHOD.model_copy(
            update={
                "num_units": 20,
                "unet": SMALL_METHOD.unet.model_copy(update={"skip_dropout_rate": 0.0}),
                "anchors": SMALL_METHOD.anchors.model_copy(update={"mode": "off"}),
                "diffusion": FLOW,
                "overlap_weight": 0.1,
            }
        ),
        "train": SMALL.train.model_copy(update={"num_images": 60_000, "learning_rate": 1e-3}),
    }
)

TINY = RunConfig(
    data=DataConfig(
        name="shapes3d_procedural",
        image_size=16,
        levels={"floor_hue": 3, "wall_hue": 3, "object_hue": 3, "scale": 2, "shape": 2, "orientation": 3},
    ),
    first_stage=PatchPcaStage(patch_size=4, latent_dim=6),
    method=DygaSdConfig(
        num_units=4,
        unit_dim=8,
        encoder=EncoderConfig(
            stem_stride=4, channels=(16, 32), hidden_dims=(32,), norm="group", token_hidden_dims=(16,)
        ),
        unet=UNetConfig(
            model_dim=16,
            multipliers=(1, 2),
            num_blocks=1,
            attention_sizes=(2,),
            num_heads=2,
            dropout_rate=0.0,
            skip_dropout_rate=0.1,
            skip_dropout_sizes=(4,),
        ),
        anchors=AnchorConfig(num_gaussians=2, max_gaussians=4, fit_samples=200, refit_images=128),
    ),
    train=TrainConfig(
        num_images=512,
        batch_size=32,
        learning_rate=1e-3,
        ema_decay=0.9,
        report_images=128,
        checkpoint_images=256,
    ),
    evaluation=EvaluationConfig(protocol="search", estimator="tree"),
)


def _first_stage(method: VqConfig | KlConfig) -> RunConfig:
    """Return the configuration that trains a first stage at the published size."""
    return RunConfig(
        data=FULL_DATA,
        first_stage=PixelStage(),
        method=method,
        train=TrainConfig(
            batch_size=256,
            learning_rate=4.5e-4,
            weight_decay=0.0,
            ema_decay=0.999,
            max_grad_norm=1.0,
            warmup_images=48_000,
        ),
        evaluation=EvaluationConfig(protocol="none"),
    )


def _small_first_stage(method: VqConfig | KlConfig) -> RunConfig:
    """Return the configuration that trains a first stage on the images of `small`."""
    return RunConfig(
        data=SMALL_DATA,
        first_stage=PixelStage(),
        method=method,
        train=TrainConfig(
            **SMALL_COURSE,
            batch_size=16,
            learning_rate=2e-3,
            learning_rate_schedule="cosine",
            warmup_images=1_600,
            weight_decay=0.0,
            max_grad_norm=1.0,
        ),
        evaluation=EvaluationConfig(protocol="none"),
    )


def _small_rival(method: VaeConfig | CsDismoConfig | PcaIcaConfig | AeIcaConfig | IsoAeIcaConfig) -> RunConfig:
    """Return the configuration that trains a method without a first stage on the images of `small`.

    disentanglement_lib takes 300,000 steps at a learning rate of 1e-4. At this rate, a thousand steps learn hardly more
    than the mean image. Our rate was chosen by the reconstruction quality of beta-VAE (beta = 1) after 5,000 images in
    batches of 64: 7.9 dB with 1e-4, 8.4 dB with 5e-4 and 9.0 dB with 1e-3. Batches of 32 give more steps.
    """
    return RunConfig(
        data=SMALL_DATA,
        first_stage=PixelStage(),
        method=method,
        train=TrainConfig(**SMALL_COURSE, batch_size=32, learning_rate=1e-3),
        evaluation=EvaluationConfig(protocol="search"),
    )


def _published_vae(method: VaeConfig) -> RunConfig:
    """Return the configuration of disentanglement_lib's study, on the whole rendered scene (arXiv 1811.12359).

    The study takes 300,000 steps, and does not average the weights over time.
    """
    return RunConfig(
        data=FULL_DATA,
        first_stage=PixelStage(),
        method=method,
        train=TrainConfig(num_images=300_000 * 64, batch_size=64, learning_rate=1e-4, ema_decay=0.0),
        evaluation=EvaluationConfig(protocol="published"),
    )


VECTOR_EVALUATION = EvaluationConfig(
    protocol="search", metrics=("factor_vae", "dci", "mig", "scalar_factor_vae", "grouped_dci", "leakage")
)

PRESETS: dict[str, RunConfig] = {
    "reference": REFERENCE,
    "small": SMALL,
    "tiny": TINY,
    "flow_small": FLOW_SMALL,
    "vq": _first_stage(VqConfig()),
    "kl": _first_stage(KlConfig()),
    "vq_small": _small_first_stage(
        VqConfig(stem_stride=4, model_dim=32, multipliers=(1, 2), num_blocks=1, latent_dim=4)
    ),
    "kl_small": _small_first_stage(
        KlConfig(stem_stride=4, model_dim=32, multipliers=(1, 2), num_blocks=1, latent_dim=8)
    ),
    "beta_vae_small": _small_rival(BetaVaeConfig(beta=4.0)),
    "annealed_vae_small": _small_rival(AnnealedVaeConfig()),
    "dip_vae_i_small": _small_rival(DipVaeIConfig()),
    "dip_vae_ii_small": _small_rival(DipVaeIIConfig()),
    "beta_tcvae_small": _small_rival(BetaTcVaeConfig()),
    "proto_vae_small": _small_rival(ProtoVaeConfig()),
    "dot_vae_small": _small_rival(DotVaeConfig()),
    "factor_vae_small": _small_rival(FactorVaeConfig(gamma=10.0, discriminator_dims=(256, 256, 256))),
    "cs_dismo_small": _small_rival(CsDismoConfig()).model_copy(update={"evaluation": VECTOR_EVALUATION}),
    "beta_vae_published": _published_vae(BetaVaeConfig()),
    "annealed_vae_published": _published_vae(AnnealedVaeConfig()),
    "dip_vae_i_published": _published_vae(DipVaeIConfig()),
    "dip_vae_ii_published": _published_vae(DipVaeIIConfig()),
    "beta_tcvae_published": _published_vae(BetaTcVaeConfig()),
    "factor_vae_published": _published_vae(FactorVaeConfig()),
    "pca_ica_small": _small_rival(PcaIcaConfig()),
    "ae_ica_small": _small_rival(AeIcaConfig()),
    "iso_ae_ica_small": _small_rival(IsoAeIcaConfig()),
    "hlle_ica_small": RunConfig(  # of other images, because Hessian eigenmaps need continuous factors
        data=DataConfig(name="blobs", image_size=32),
        first_stage=PixelStage(),
        method=HlleIcaConfig(num_units=3),
        train=TrainConfig(**SMALL_COURSE, batch_size=32, learning_rate=1e-3),
        evaluation=EvaluationConfig(protocol="search"),
    ),
    **DIFFUSION_PRESETS,
}


def expand(tree: Tree) -> Tree:
    """Replace a `preset: NAME` entry by that preset, overridden by the other entries of `tree`.

    If `tree` chooses another variant of a section (another data.name, first_stage.kind or method.kind), the section
    starts from that variant's defaults, so that settings of two variants are not mixed.

    Raises:
        ConfigError: no such preset.
    """
    if "preset" not in tree:
        return copy.deepcopy(tree)
    name = tree["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}: use one of {', '.join(PRESETS)}")
    base = as_tree(PRESETS[name])
    over = {key: value for key, value in tree.items() if key != "preset"}
    for key, tag in TAGS.items():
        wanted, found = _section(over, key), _section(base, key)
        chosen = None if wanted is None else wanted.get(tag)
        if chosen is not None and found is not None and chosen != found.get(tag):
            kept = {"image_size": found["image_size"]} if key == "data" else {}
            found.clear()
            found.update(kept)
    return merge(base, over)


def as_tree(preset: RunConfig) -> Tree:
    """Return the values that a preset sets, and the variant of each section even if it is the default."""
    tree = preset.model_dump(mode="json", exclude_unset=True)
    for key, tag in TAGS.items():
        section = _section(tree, key)
        variant = None if section is None else getattr(functools.reduce(getattr, key.split("."), preset), tag, None)
        if section is not None and variant is not None:  # the encoder of some methods has no variants
            section[tag] = variant
    return tree


def _section(tree: Tree, key: str) -> Tree | None:
    """Return the section at a dotted key; None if the tree has none there."""
    node: object = tree
    for name in key.split("."):
        node = node.get(name) if is_tree(node) else None
    return node if is_tree(node) else None
