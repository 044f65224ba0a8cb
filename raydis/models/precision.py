"""Compute in single precision where autocast's half precision is too coarse, as for losses and statistics."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_single(values: Tensor) -> Tensor:
    """Return values of half precision as float32, and float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
