"""What networks compute in higher precision than autocast's half: statistics, and distances that would round to 0."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_single(values: Tensor) -> Tensor:
    """Return half precision as float32, and float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
