"""The starting noise of images: drawn from seeds, or an image's own details. L h w latent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raydis.errors import EditError

Shape = tuple[int, ...]


def drawn_noise(seed: int | Sequence[int], count: int, shape: Shape | None) -> Tensor | None:
    """Return starting noise (count, L, h, w), drawn on the host and so the same on every device.

    Args:
        seed: of one noise that all images share, or of one noise an image.
        shape: (L, h, w); None for a method that draws without noise, which gets None.

    Raises:
        EditError: not as many seeds as images.
    """
    seeds = [seed] * count if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise EditError(f"{len(seeds)} seeds for {count} images: give one seed, or one an image")
    if shape is None:
        return None
    noises = {each: torch.randn(shape, generator=torch.Generator().manual_seed(each)) for each in set(seeds)}
    return torch.stack([noises[each] for each in seeds])


def checked_details(details: np.ndarray, count: int, shape: Shape | None) -> Tensor:
    """Return details as starting noise (count, L, h, w). Raises EditError where they are none."""
    noise, expected = torch.as_tensor(details, dtype=torch.float32), (count, *(shape or ()))
    if noise.shape != expected or not bool(torch.isfinite(noise).all()):
        raise EditError(f"details have shape {tuple(noise.shape)}: give finite values of shape {expected}")
    return noise
