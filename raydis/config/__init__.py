"""Every setting of a run, as frozen pydantic models, one file a section.

A `RunConfig` holds all that decides a run's result: data, first stage, method, training, evaluation, seed. Most names
carry their unit: `_size` px, `_images` images seen, `_dim` numbers of a vector or channels, prefix `num_` a count.
Budgets are counted in images seen, so that runs with different batch sizes compare. Nothing here imports torch or ray.
"""

from __future__ import annotations

from raydis.config.compute import ComputeConfig
from raydis.config.data import DataConfig
from raydis.config.first_stage import FirstStageConfig, PatchPcaStage, PixelStage
from raydis.config.run import MethodConfig, RunConfig
from raydis.config.section import Model
from raydis.config.train import EvaluationConfig, TrainConfig

__all__ = [
    "ComputeConfig",
    "DataConfig",
    "EvaluationConfig",
    "FirstStageConfig",
    "MethodConfig",
    "Model",
    "PatchPcaStage",
    "PixelStage",
    "RunConfig",
    "TrainConfig",
]
