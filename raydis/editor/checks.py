"""Check the images, scalars and codes that the editor is given. B images, N units, D unit width, H W C image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raydis.errors import EditError


def checked_images(images: np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """Return images as a tensor that torch may share. Raises EditError unless they are uint8 (B, *shape)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise EditError(
            f"images are {images.dtype} of shape {images.shape}: give uint8 of shape (B, {', '.join(map(str, shape))})"
        )
    # Pillow's arrays are read-only, which torch warns of
    return torch.from_numpy(np.require(images, requirements=("C", "W")))


def checked_units(
    units: np.ndarray, codes: np.ndarray | None, shape: tuple[int, int], *, are_vectors: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the scalars to draw from, and the codes into which they are written, as tensors of float32.

    Args:
        units: (B, N).
        codes: (B, N, D); None if there are none.
        shape: (N, D) of the model.
        are_vectors: whether the model's units are vectors. If not, the scalars determine the codes, which are left out.

    Raises:
        EditError: another shape, NaN or infinity, or no codes for units that are vectors.
    """
    values = torch.as_tensor(units, dtype=torch.float32)
    if values.ndim != 2 or values.shape[1] != shape[0]:
        raise EditError(f"units have shape {tuple(values.shape)}: give shape (B, {shape[0]})")
    if not bool(torch.isfinite(values).all()):
        raise EditError("units hold NaN or infinity: give finite values")
    if not are_vectors:
        return values, None
    if codes is None:
        raise EditError(
            "the units of this model are vectors, of which units hold one number each: give the codes of `encode` too"
        )
    vectors = torch.as_tensor(codes, dtype=torch.float32)
    if vectors.shape != (len(values), *shape):
        raise EditError(f"codes have shape {tuple(vectors.shape)}: give shape ({len(values)}, {shape[0]}, {shape[1]})")
    if not bool(torch.isfinite(vectors).all()):
        raise EditError("codes hold NaN or infinity: give finite values")
    return values, vectors
