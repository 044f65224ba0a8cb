"""The settings of a training run, as frozen pydantic models. Each section has a file of its own.

A `RunConfig` holds everything that determines the result of a run: data, first stage, method, training, evaluation and
seed. Most names show their unit: `_size` stands for pixels, `_images` for training images, `_dim` for the length of a
vector or a number of channels, and the prefix `num_` for a count. Budgets count training images instead of steps, so
that runs with different batch sizes can be compared. Nothing in this folder imports torch or Ray.
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
