"""The encoder of EncDiff and DisDiff: strided convolutions and residual blocks, followed by one linear layer.

B batch, N units, D unit width, C channels, H W image size.

The layout is that of the released code of both methods (arXiv 2402.09712, 2301.13721), where it is called Encoder4. At
the published sizes, EncDiff's encoder has 1,374,292 parameters (N = 20, D = 16), and that of DisDiff 1,516,480 (N = 6,
D = 32).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from raydis.models.blocks import group_norm
from raydis.models.encoder import UnitEncoder, UnitMLP
from raydis.models.norm import GlobalBatchNorm2d

REDUCTION = 16  # side of the image divided by that of the feature map


class NormedBlock(nn.Module):
    """A residual block of a 3x3 and a 1x1 convolution, with a norm between them."""

    def __init__(self, dim: int, norm: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),  # not in place: the input is needed for the sum
            nn.Conv2d(dim, dim, 3, padding=1),
            normed(dim, norm),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        return x + self.layers(x)


def normed(dim: int, norm: str) -> nn.Module:
    """Return a norm of `dim` channels: `batch`, over the images of all workers, or `group`, of each image alone."""
    return GlobalBatchNorm2d(dim) if norm == "batch" else group_norm(dim)


def convolutions(image_channels: int, dim: int, norm: str) -> nn.Sequential:
    """Return a network from images (B, C, H, W) to feature maps (B, dim, H/16, W/16).

    As in the released code, there is no ReLU after the third convolution.
    """
    layers: list[nn.Module] = []
    for index, in_dim in enumerate((image_channels, dim, dim, dim)):
        layers += [nn.Conv2d(in_dim, dim, 4, stride=2, padding=1), normed(dim, norm)]
        if index != 2:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(
        *layers, NormedBlock(dim, norm), normed(dim, norm), nn.ReLU(inplace=True), NormedBlock(dim, norm)
    )


def num_features(image_size: int, dim: int) -> int:
    """Return the length of a flattened feature map of `convolutions`."""
    return dim * (image_size // REDUCTION) ** 2


class ResidualEncoder(UnitEncoder):
    """The convolutions, a linear layer to N scalars, and for each scalar an MLP to its token (EncDiff).

    Args:
        image_size: H = W, px; divisible by 16.
        image_channels: 1 or 3.
        model_dim: channels of all convolutions.
        norm: `batch` as published, over the images of all workers; or `group`, which treats every image on its own.
        token_hidden_dims: widths of the MLPs' hidden layers, whose activation is ELU.
    """

    def __init__(
        self,
        *,
        image_size: int,
        image_channels: int,
        num_units: int,
        unit_dim: int,
        model_dim: int,
        norm: str,
        token_hidden_dims: Sequence[int],
    ) -> None:
        super().__init__(
            convolutions(image_channels, model_dim, norm),
            nn.Linear(num_features(image_size, model_dim), num_units),
            UnitMLP(num_units, unit_dim, token_hidden_dims, "none", F.elu),
        )


class VectorEncoder(nn.Module):
    """The convolutions, and a linear layer to the N vectors of the units (DisDiff).

    The arguments are those of `ResidualEncoder`.
    """

    def __init__(
        self, *, image_size: int, image_channels: int, num_units: int, unit_dim: int, model_dim: int, norm: str
    ) -> None:
        super().__init__()
        self.num_units = num_units
        self.convolutions = convolutions(image_channels, model_dim, norm)
        self.head = nn.Linear(num_features(image_size, model_dim), num_units * unit_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [-1, 1] to codes (B, N, D)."""
        return self.head(self.convolutions(images).flatten(1)).unflatten(1, (self.num_units, -1))
