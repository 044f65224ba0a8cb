"""The noise that drawing starts from: random numbers of a seed, or an image's own details. L h w latent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raydis.errors import EditError

Shape = tuple[int, ...]


def drawn_noise(seed: int | Sequence[int], count: int, shape: Shape | None) -> Tensor | None:
    """Return starting noise (count, L, h, w). It is drawn on the host, and so is the same for every device.

    Args:
        seed: one seed for all images, which then have the same noise, or one seed for each image.
        count: number of images.
        shape: (L, h, w); None for a method that draws without noise, for which the result is None.

    Raises:
        EditError: another number of seeds than of images.
    """
    seeds = [seed] * count if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise EditError(f"{len(seeds)} seeds for {count} images: give one seed, or one an image")
    if shape is None:
        return None
    noises = {each: torch.randn(shape, generator=torch.Generator().manual_seed(each)) for each in set(seeds)}
    return torch.stack([noises[each] for each in seeds])


def checked_details(details: np.ndarray, count: int, shape: Shape | None) -> Tensor:
    """Return details as a tensor (count, L, h, w). Raises EditError for another shape or values that are not finite."""
    noise, expected = torch.as_tensor(details, dtype=torch.float32), (count, *(shape or ()))
    if noise.shape != expected:
        raise EditError(f"details have shape {tuple(noise.shape)}: give shape {expected}")
    if not bool(torch.isfinite(noise).all()):
        raise EditError("details hold NaN or infinity: give finite values")
    return noise
