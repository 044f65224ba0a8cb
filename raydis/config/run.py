"""The configuration of a training run, in sections, and the checks across sections."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from raydis.config.autoencoder import KlConfig, VqConfig
from raydis.config.compute import ComputeConfig
from raydis.config.cs_dismo import CsDismoConfig
from raydis.config.data import DataConfig
from raydis.config.dyga_sd import DygaSdConfig
from raydis.config.first_stage import FirstStageConfig, KlStage, PatchPcaStage, PixelStage, VqStage
from raydis.config.pca_ica import PcaIcaConfig
from raydis.config.section import Model
from raydis.config.train import EvaluationConfig, TrainConfig
from raydis.config.tree import is_tree
from raydis.config.vae import VaeConfig


def _with_kind(tree: Any) -> Any:
    """Add the kind of DyGA+SD to a method section that has none."""
    return {"kind": "dyga_sd", **tree} if is_tree(tree) else tree


MethodConfig = Annotated[
    Annotated[
        DygaSdConfig | VaeConfig | CsDismoConfig | PcaIcaConfig | VqConfig | KlConfig,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_with_kind),
]


class RunConfig(Model):
    """Configuration of a training run."""

    data: DataConfig = DataConfig()
    first_stage: FirstStageConfig = PatchPcaStage()
    method: MethodConfig = DygaSdConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    seed: int = Field(default=0, ge=0, description="Seed of weights, data order and noise.")

    @property
    def latent_size(self) -> int:
        """Side of the first stage's latent, px."""
        match self.first_stage:
            case PixelStage():
                return self.data.image_size
            case PatchPcaStage(patch_size=reduction):
                return self.data.image_size // reduction
            case VqStage() | KlStage() as stage:
                return self.data.image_size // stage.reduction

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        match self.first_stage:
            case PatchPcaStage(patch_size=patch_size) if self.data.image_size % patch_size:
                raise ValueError(
                    f"first_stage.patch_size={patch_size} must divide data.image_size={self.data.image_size}"
                )
            case VqStage() | KlStage() as stage:
                stage.check_image_size(self.data.image_size, "first_stage")
            case _:
                pass
        self.method.check(self)
        if not self.method.uses_first_stage and not isinstance(self.first_stage, PatchPcaStage | PixelStage):
            raise ValueError(
                f"method.kind={self.method.kind} works on the pixels themselves: remove "
                f"first_stage.kind={self.first_stage.kind}"
            )
        if not self.method.has_blocks and self.compute.compile in ("blocks", "full"):
            raise ValueError(
                f"compute.compile={self.compute.compile} compiles the U-Net's blocks, and method.kind="
                f"{self.method.kind} has no U-Net: set compute.compile=off or compute.compile=graph"
            )
        if not self.method.scored and self.evaluation.protocol != "none":
            raise ValueError(
                f"method.kind={self.method.kind} has no units to score: set evaluation.protocol=none instead of "
                f"{self.evaluation.protocol}"
            )
        if self.train.batch_size % self.compute.num_workers:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} must be a multiple of "
                f"compute.num_workers={self.compute.num_workers}"
            )
        return self
