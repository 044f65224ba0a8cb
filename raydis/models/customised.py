"""A generator of images from content and style: the style customises the distribution of the content by an affine map.

B batch, d_c content width, d_s style width, K channels, C H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

REDUCTION = 16  # four convolutions, each of which doubles
Variant = Literal["single", "multiple"]


def standardise(content: Tensor) -> Tensor:
    """Return content (B, d_c) with mean 0 and variance 1 over the d_c values of each image."""
    return F.layer_norm(content, content.shape[1:])


class Customisation(nn.Module):
    """The map f(h, s) = sigma(s) h + mu(s), with sigma and mu linear in the style s. It starts near the identity.

    Args:
        style_dim: d_s.
        width: number of channels K of h.
    """

    def __init__(self, style_dim: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Linear(style_dim, width)
        self.shift = nn.Linear(style_dim, width)
        nn.init.ones_(self.scale.bias)
        nn.init.zeros_(self.shift.bias)

    def forward(self, hidden: Tensor, style: Tensor) -> Tensor:
        """Map features (B, K) or (B, K, h, w) and styles (B, d_s) to features of the same shape."""
        scale, shift = (
            each.view(*each.shape, *[1] * (hidden.dim() - 2)) for each in (self.scale(style), self.shift(style))
        )
        return hidden * scale + shift


class CustomisedGenerator(nn.Module):
    """Two dense layers, and four transposed 4 x 4 convolutions, of which the last gives the image.

    It follows LORD's generator (arXiv 1906.11796), but is much cheaper: it has fewer channels, one transposed
    convolution in place of each upsampling and 3 x 3 convolution, and no tail of 5 x 5 and 7 x 7 convolutions at full
    size.

    Args:
        image_size: H = W, px, a multiple of 16.
        image_channels: C.
        content_dim, style_dim: d_c and d_s.
        variant: "single" customises the content alone, and "multiple" the features after every convolution but the
            last, each channel of an image standardised before (adaptive instance normalisation, AdaIN).
        hidden_dim: width of the first dense layer.
        channels: after the first three convolutions.
    """

    def __init__(
        self,
        *,
        image_size: int,
        image_channels: int,
        content_dim: int,
        style_dim: int,
        variant: Variant,
        hidden_dim: int,
        channels: Sequence[int],
    ) -> None:
        super().__init__()
        side, first = image_size // REDUCTION, channels[0]
        self.dense = nn.Sequential(
            *(nn.Linear(content_dim, hidden_dim), nn.LeakyReLU(0.2)),
            *(nn.Linear(hidden_dim, first * side**2), nn.LeakyReLU(0.2), nn.Unflatten(1, (first, side, side))),
        )
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(*dims, 4, stride=2, padding=1) for dims in pairwise((first, *channels))
        )
        self.last = nn.ConvTranspose2d(channels[-1], image_channels, 4, stride=2, padding=1)
        widths = (content_dim,) if variant == "single" else tuple(channels)
        self.variant = variant
        self.customisations = nn.ModuleList(Customisation(style_dim, width) for width in widths)

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """Map standardised contents (B, d_c) and styles (B, d_s) to images (B, C, H, W) in [-1, 1]."""
        single = self.variant == "single"
        hidden = self.dense(self.customisations[0](content, style) if single else content)
        for index, convolution in enumerate(self.convolutions):
            hidden = F.leaky_relu(convolution(hidden), 0.2)
            if not single:
                hidden = self.customisations[index](F.instance_norm(hidden), style)
        return self.last(hidden).tanh()
