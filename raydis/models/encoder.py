"""The image encoder: it maps an image to N scalars (the latent units), and each scalar to a vector (its token).

B batch, N units, D unit width, H W image size.

The layout is that of DyGA+SD's released encoder (arXiv 2410.23820), which follows EncDiff (arXiv 2402.09712). It has
23,570,324 parameters at the reference sizes (N = 20, D = 32). A token depends on the image only through the scalar of
its unit, so the tokens of a unit lie on a curve in R^D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.models.blocks import group_norm
from raydis.models.norm import GlobalBatchNorm2d


class UnitMLP(nn.Module):
    """N separate multi-layer perceptrons (MLPs) from one scalar to D numbers, computed as batched matrix products.

    Row i of each weight tensor belongs to unit i.

    Args:
        activation: of the output: `relu` or `none`.
        hidden_activation: of the hidden layers.
    """

    def __init__(
        self,
        num_units: int,
        unit_dim: int,
        hidden_dims: Sequence[int],
        activation: str,
        hidden_activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.hidden_activation = hidden_activation
        dims = [1, *hidden_dims, unit_dim]
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(num_units, a, b)) for a, b in pairwise(dims))
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(num_units, 1, b)) for b in dims[1:])
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = 1 / math.sqrt(weight.shape[1])  # as nn.Linear draws both
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, units: Tensor) -> Tensor:
        """Map units (B, N) to tokens (B, N, D)."""
        h = units.t().unsqueeze(-1)  # (N, B, 1)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h, weight)
            if layer < last:
                h = self.hidden_activation(h)
            elif self.activation == "relu":
                h = F.relu(h)
        return h.transpose(0, 1)


class UnitEncoder(nn.Module):
    """An encoder of images to N scalars, and of each scalar to a token.

    Args:
        convolutions: a network from images to feature maps.
        head: a network from flattened feature maps to N scalars.
        tokens: the MLPs from scalars to tokens.
    """

    def __init__(self, convolutions: nn.Module, head: nn.Module, tokens: UnitMLP) -> None:
        super().__init__()
        self.convolutions = convolutions
        self.head = head
        self.tokens = tokens

    def units(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [-1, 1] to unbounded scalars (B, N)."""
        return self.head(self.convolutions(images).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [-1, 1] to tokens (B, N, D)."""
        return self.tokens(self.units(images))


class Encoder(UnitEncoder):
    """Convolutions that halve the image, dense layers to N scalars, and an MLP for each scalar.

    Args:
        image_size: H = W, px; divisible by stem_stride * 2 ** (len(channels) - 1).
        image_channels: 1 or 3.
        stem_stride: 1 for a first convolution of 7x7 at full size, s > 1 for an s x s patch embedding.
        channels: output channels of each convolution; all but the first halve the size.
        hidden_dims: widths of the hidden dense layers.
        norm: `batch` as in the released code, over the images of all workers; or `group`, which treats every image on
            its own.
        token_hidden_dims, token_activation: widths of the MLPs' hidden layers, and the activation of their output.
    """

    def __init__(
        self,
        *,
        image_size: int,
        image_channels: int,
        num_units: int,
        unit_dim: int,
        stem_stride: int,
        channels: Sequence[int],
        hidden_dims: Sequence[int],
        norm: str,
        token_hidden_dims: Sequence[int],
        token_activation: str,
    ) -> None:
        stem = (7, 1, 3) if stem_stride == 1 else (stem_stride, stem_stride, 0)  # kernel, stride, padding
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise([image_channels, *channels])):
            kernel, stride, padding = stem if i == 0 else (4, 2, 1)
            layers.append(nn.Conv2d(a, b, kernel, stride, padding))
            layers += [GlobalBatchNorm2d(b) if norm == "batch" else group_norm(b), nn.ReLU(inplace=True)]
        size = image_size // stem_stride >> (len(channels) - 1)
        head: list[nn.Module] = []
        dims = [channels[-1] * size * size, *hidden_dims]
        for a, b in pairwise(dims):
            head += [nn.Linear(a, b), nn.ReLU(inplace=True)]
        super().__init__(
            nn.Sequential(*layers),
            nn.Sequential(*head, nn.Linear(dims[-1], num_units)),
            UnitMLP(num_units, unit_dim, token_hidden_dims, token_activation),
        )
