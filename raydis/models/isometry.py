"""Penalties for a decoder that does not keep lengths: how far its Jacobian J is from that of an isometry.

B batch, N units.

Both take one direction v for each point instead of the whole Jacobian. J v is the derivative of J' u, which is linear
in u, so that it takes no differentiation in forward mode, which is slower for transposed convolutions.
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
        points: (B, N), where to measure. No gradient flows to them.
        directions: (B, N), standard normal.
    """
    with torch.enable_grad():
        drawn, points, slope = _push(decoder, points, directions)
        (returned,) = torch.autograd.grad(drawn, points, slope, create_graph=True)
        slope, returned = at_least_single(slope), at_least_single(returned)
        norm = slope.flatten(1).square().sum(1).mean()
        return returned.square().sum(1).mean() / norm.square() - 1.0 / points.shape[1]


def decoder_isometry(decoder: Decoder, points: Tensor, directions: Tensor) -> Tensor:
    """Return the mean of (|J u| - 1)^2 over unit vectors u along the directions, a scalar.

    This is the decoder's part of Isometric Autoencoders (Gropp et al., arXiv 2006.09289). Arguments as in
    `relaxed_distortion`.
    """
    with torch.enable_grad():
        _, _, slope = _push(decoder, points, directions / directions.norm(dim=1, keepdim=True))
        return (at_least_single(slope).flatten(1).norm(dim=1) - 1.0).square().mean()


def _push(decoder: Decoder, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images of the points, the points as the leaf of a graph, and J v, which has a graph as well."""
    points = points.detach().requires_grad_()
    drawn = decoder(points)
    weights = torch.zeros_like(drawn, requires_grad=True)
    (pulled,) = torch.autograd.grad(drawn, points, weights, create_graph=True)
    (slope,) = torch.autograd.grad(pulled, weights, directions.to(pulled.dtype), create_graph=True)
    return drawn, points, slope
