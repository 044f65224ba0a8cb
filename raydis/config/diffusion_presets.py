"""Presets of EncDiff and DisDiff.

`encdiff` has the sizes of EncDiff (arXiv 2402.09712), and `disdiff` those of DisDiff (arXiv 2301.13721). `diffusion`
trains the model that `disdiff` is built on. Their settings are those of the released codes, except for bf16 and for the
first stage, a PCA of patches. Behind a first stage with three channels, as published, their networks have the published
numbers of parameters. `encdiff_small`, `disdiff_small` and `diffusion_small` are the same with smaller networks, on the
images of `small`.
"""

from __future__ import annotations

from raydis.config.disdiff import (
    DisDiffConfig,
    PretrainedDiffusion,
    UnconditionalDiffusionConfig,
    UnconditionalUNetConfig,
)
from raydis.config.dyga_sd import (
    AnchorConfig,
    DygaSdConfig,
    ResidualConvolutionsConfig,
    ResidualEncoderConfig,
    UNetConfig,
)
from raydis.config.first_stage import PatchPcaStage
from raydis.config.preset_parts import FULL_DATA, SMALL_COURSE, SMALL_DATA
from raydis.config.run import MethodConfig, RunConfig
from raydis.config.train import EvaluationConfig, TrainConfig

NO_SCORES = EvaluationConfig(protocol="none")
NO_ANCHORS = AnchorConfig(mode="off")
SMALL_UNET = UnconditionalUNetConfig(
    model_dim=32, multipliers=(1, 1), num_blocks=1, attention_sizes=(8, 4), num_heads=1
)


def _published(method: MethodConfig, evaluation: EvaluationConfig) -> RunConfig:
    """Return the configuration of a method with the batch and the learning rate of both released codes."""
    return RunConfig(
        data=FULL_DATA,
        first_stage=PatchPcaStage(patch_size=4, latent_dim=12),
        method=method,
        train=TrainConfig(batch_size=128, learning_rate=2.56e-4, warmup_images=1_280_000, precision="bf16"),
        evaluation=evaluation,
    )


def _small(method: MethodConfig, evaluation: EvaluationConfig) -> RunConfig:
    """Return the configuration of a method on the images of `small`."""
    return RunConfig(
        data=SMALL_DATA,
        first_stage=PatchPcaStage(patch_size=8, latent_dim=24),
        method=method,
        train=TrainConfig(**SMALL_COURSE, batch_size=32, learning_rate=1e-3, warmup_images=3_200, max_grad_norm=1.0),
        evaluation=evaluation,
    )


DIFFUSION_PRESETS: dict[str, RunConfig] = {
    "encdiff": _published(
        DygaSdConfig(
            num_units=20,
            unit_dim=16,  # the paper says 32, but its number of parameters is that of 16
            encoder=ResidualEncoderConfig(),
            unet=UNetConfig(dropout_rate=0.0, skip_dropout_rate=0.0),
            anchors=NO_ANCHORS,
        ),
        EvaluationConfig(rungs=(480_000, 960_000, 1_920_000)),
    ),
    "encdiff_small": _small(
        DygaSdConfig(
            num_units=20,
            unit_dim=16,
            encoder=ResidualEncoderConfig(model_dim=32),
            unet=UNetConfig(**SMALL_UNET.model_dump(), skip_dropout_rate=0.0, skip_dropout_sizes=(8,)),
            anchors=NO_ANCHORS,
        ),
        EvaluationConfig(protocol="search"),
    ),
    "diffusion": _published(UnconditionalDiffusionConfig(), NO_SCORES),
    "diffusion_small": _small(UnconditionalDiffusionConfig(unet=SMALL_UNET), NO_SCORES),
    "disdiff": _published(DisDiffConfig(), EvaluationConfig(rungs=(480_000, 960_000, 1_920_000))),
    "disdiff_small": _small(
        DisDiffConfig(
            encoder=ResidualConvolutionsConfig(model_dim=32),
            concept_dim=32,
            pretrained=PretrainedDiffusion(unet=SMALL_UNET),
        ),
        EvaluationConfig(protocol="search"),
    ),
}
