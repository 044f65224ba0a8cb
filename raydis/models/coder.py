"""The encoder and the decoder of a convolutional autoencoder, in the layout of latent-diffusion (arXiv 2112.10752).

B batch, C channels, H W size, f the reduction.

The numbers of parameters are those of the published networks (MIT license). Two details differ: group norms have at
least two channels in each group, and convolutions that halve the size are padded on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from raydis.models.blocks import group_norm

norm = partial(group_norm, eps=1e-6)


class ConvBlock(nn.Module):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm_in = norm(in_dim)
        self.conv_in = nn.Conv2d(in_dim, out_dim, 3, padding=1)
        self.norm_out = norm(out_dim)
        self.conv_out = nn.Conv2d(out_dim, out_dim, 3, padding=1)
        self.shortcut = nn.Identity() if in_dim == out_dim else nn.Conv2d(in_dim, out_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        return self.shortcut(x) + self.conv_out(F.silu(self.norm_out(h)))


class PixelAttention(nn.Module):
    """Residual self-attention over pixels, with one head."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = norm(dim)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        query, key, value = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value)  # (B, 1, H*W, C)
        return x + self.out(attended.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:]))


def middle(dim: int) -> nn.Sequential:
    """Return the layers that work at the size of the latent."""
    return nn.Sequential(ConvBlock(dim, dim), PixelAttention(dim), ConvBlock(dim, dim))


def encoder(
    image_channels: int, out_dim: int, *, stem_stride: int, model_dim: int, multipliers: Sequence[int], num_blocks: int
) -> nn.Sequential:
    """Return a network from images (B, C, H, W) to (B, out_dim, H/f, W/f), f = stem_stride * 2 ** (levels - 1)."""
    layers: list[nn.Module] = [
        nn.Conv2d(image_channels, model_dim, 3, padding=1)
        if stem_stride == 1
        else nn.Conv2d(image_channels, model_dim, stem_stride, stride=stem_stride)
    ]
    dim = model_dim
    for level, multiplier in enumerate(multipliers):
        if level:
            layers.append(nn.Conv2d(dim, dim, 3, stride=2, padding=1))
        for _ in range(num_blocks):
            layers.append(ConvBlock(dim, model_dim * multiplier))
            dim = model_dim * multiplier
    return nn.Sequential(*layers, middle(dim), norm(dim), nn.SiLU(), nn.Conv2d(dim, out_dim, 3, padding=1))


def decoder(
    image_channels: int,
    latent_dim: int,
    *,
    stem_stride: int,
    model_dim: int,
    multipliers: Sequence[int],
    num_blocks: int,
) -> nn.Sequential:
    """Return a network from latents (B, latent_dim, H/f, W/f) to images (B, C, H, W).

    It mirrors `encoder`, with one more block at each level.
    """
    dim = model_dim * multipliers[-1]
    layers: list[nn.Module] = [nn.Conv2d(latent_dim, dim, 3, padding=1), middle(dim)]
    for level in reversed(range(len(multipliers))):
        for _ in range(num_blocks + 1):
            layers.append(ConvBlock(dim, model_dim * multipliers[level]))
            dim = model_dim * multipliers[level]
        if level:
            layers += [nn.Upsample(scale_factor=2.0), nn.Conv2d(dim, dim, 3, padding=1)]
    if stem_stride == 1:
        last: nn.Module = nn.Conv2d(dim, image_channels, 3, padding=1)
    else:
        last = nn.ConvTranspose2d(dim, image_channels, stem_stride, stride=stem_stride)
    return nn.Sequential(*layers, norm(dim), nn.SiLU(), last)
