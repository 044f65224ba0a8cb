"""The part of a checkpoint that only a resumed training needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a registry reads checkpoints without importing torch
    from torch import Tensor


@dataclass(frozen=True)
class TrainingState:
    """What a run needs besides the averaged weights to continue its training.

    Attributes:
        tensors: such as optimiser moments and weights without averaging; any dtype of safetensors, bool and int too.
        values: such as counters. They are stored as JSON, so keys become text and tuples become lists.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]
