"""Penalties for a decoder that does not keep lengths: how far its Jacobian J is from that of an isometry.

B batch, N units.

Both take one direction for each point instead of the whole Jacobian: J v is a derivative in forward mode and J' J v one
in backward mode.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raydis.models.precision import at_least_single

Decoder = Callable[[Tensor], Tensor]


def relaxed_distortion(decoder: Decoder, points: Tensor, directions: Tensor) -> Tensor:
    """Return the relaxed distortion of a decoder, a scalar: the mean of |J'J v|^2 / (the mean of |J v|^2)^2 - 1 / N.

    It is that of IRVAE (Lee et al., ICLR 2022) without the smallest value that it can have, so that it is 0, up to the
    chance of the directions, where J'J is the same multiple of the identity at all points. The scale does not matter.

    Args:
        decoder: a function of (B, N).
        points: (B, N), where to measure.
        directions: (B, N), standard normal.
    """
    slope = torch.func.jvp(decoder, (points,), (directions,))[1]
    pull_back = torch.func.vjp(decoder, points)[1]
    slope, returned = at_least_single(slope), at_least_single(pull_back(slope)[0])
    norm = slope.flatten(1).square().sum(1).mean()
    return returned.square().sum(1).mean() / norm.square() - 1.0 / points.shape[1]


def decoder_isometry(decoder: Decoder, points: Tensor, directions: Tensor) -> Tensor:
    """Return the mean of (|J u| - 1)^2 over unit vectors u along the directions, a scalar.

    This is the decoder's part of Isometric Autoencoders (Gropp et al., arXiv 2006.09289). Arguments as in
    `relaxed_distortion`.
    """
    unit = directions / directions.norm(dim=1, keepdim=True)
    slope = torch.func.jvp(decoder, (points,), (unit,))[1]
    return (at_least_single(slope).flatten(1).norm(dim=1) - 1.0).square().mean()
