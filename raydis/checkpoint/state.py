"""The state of a training that a checkpoint holds beside the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a registry reads checkpoints without torch
    from torch import Tensor


@dataclass(frozen=True)
class TrainingState:
    """What a training adds to the weights so that it can go on.

    Attributes:
        tensors: optimiser moments, raw weights, random states; any dtype that safetensors knows, bool and int too.
        values: counters and the like. Stored as JSON: keys become text and tuples lists.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]
