"""The configuration of a training run, in sections, and the checks across sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from raydis.config.autoencoder import KlConfig, VqConfig
from raydis.config.compute import ComputeConfig
from raydis.config.cs_dismo import CsDismoConfig
from raydis.config.data import DataConfig
from raydis.config.disdiff import DisDiffConfig, UnconditionalDiffusionConfig
from raydis.config.dyga_sd import DygaSdConfig
from raydis.config.first_stage import FirstStageConfig, KlStage, LearnedStage, PatchPcaStage, PixelStage, VqStage
from raydis.config.ica import AeIcaConfig, HlleIcaConfig, IsoAeIcaConfig
from raydis.config.pca_ica import PcaIcaConfig
from raydis.config.section import Model
from raydis.config.train import EvaluationConfig, TrainConfig
from raydis.config.tree import is_tree
from raydis.config.units import UnitsConfig
from raydis.config.vae import VaeConfig


def _with_kind(tree: Any) -> Any:
    """Add the kind of DyGA+SD to a method section that has none."""
    return {"kind": "dyga_sd", **tree} if is_tree(tree) else tree


MethodConfig = Annotated[
    Annotated[
        DygaSdConfig
        | VaeConfig
        | CsDismoConfig
        | PcaIcaConfig
        | AeIcaConfig
        | IsoAeIcaConfig
        | HlleIcaConfig
        | VqConfig
        | KlConfig
        | DisDiffConfig
        | UnconditionalDiffusionConfig,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_with_kind),
]


STAGE, PRETRAINED = "first_stage.checkpoint", "method.pretrained.checkpoint"
BORROWED = (STAGE, PRETRAINED)  # keys of checkpoints of other runs
M = TypeVar("M", bound=Model)


def _replaced(section: M, path: Sequence[str], value: str) -> M:
    """Return a section with another value at a path of field names."""
    below = value if len(path) == 1 else _replaced(getattr(section, path[0]), path[1:], value)
    return section.model_copy(update={path[0]: below})


class RunConfig(Model):
    """Configuration of a training run."""

    data: DataConfig = DataConfig()
    first_stage: FirstStageConfig = PatchPcaStage()
    method: MethodConfig = DygaSdConfig()
    units: UnitsConfig = UnitsConfig()
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

    def checkpoints(self) -> dict[str, str]:
        """Return the checkpoints of other runs that this run takes weights from, by the dotted key of each."""
        found = {STAGE: self.first_stage.checkpoint} if isinstance(self.first_stage, LearnedStage) else {}
        borrowed = self.method.borrowed
        return found if borrowed is None or borrowed.checkpoint is None else found | {PRETRAINED: borrowed.checkpoint}

    def with_checkpoints(self, checkpoints: Mapping[str, str]) -> Self:
        """Return the same run with other checkpoints at some of the keys of `checkpoints()`."""
        run = self
        for key, checkpoint in checkpoints.items():
            run = _replaced(run, key.split("."), checkpoint)
        return run

    @property
    def hardware(self) -> ComputeConfig:
        """The section `compute`, with what the method itself needs: memory, and no GPU if it trains on CPUs only."""
        needs: dict[str, Any] = {"memory_bytes": max(self.compute.memory_bytes, self.method.memory_bytes(self))}
        if self.method.cpu_only:
            needs |= {"device": "cpu", "num_gpus": 0.0}
        return self.compute.model_copy(update=needs)

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
        self.units.check(self)
        if self.train.batch_size % self.compute.num_workers:
            raise ValueError(
                f"train.batch_size={self.train.batch_size} must be a multiple of "
                f"compute.num_workers={self.compute.num_workers}"
            )
        return self
