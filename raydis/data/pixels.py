"""Convert pixels between storage (uint8 in [0, 255]) and the networks (floats in [-1, 1]).

B batch, C H W image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normalise(images: Tensor) -> Tensor:
    """Convert uint8 (B, H, W, C) to (B, C, H, W) in [-1, 1], x/127.5 - 1, of torch's default dtype."""
    return images.permute(0, 3, 1, 2).contiguous().to(torch.get_default_dtype()).div_(127.5).sub_(1.0)


def denormalise(images: Tensor) -> Tensor:
    """Convert (B, C, H, W) to the nearest levels, uint8 (B, H, W, C). Values outside of [-1, 1] are clipped.

    It is the inverse of `normalise` at each of the 256 levels, in float32 and float64.
    """
    return ((images + 1.0) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
