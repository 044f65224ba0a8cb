"""Building blocks of the denoising U-Net.

B batch, C channels, H W latent size, N units, D unit width, L length of a sequence.

The layout follows latent-diffusion's U-Net (MIT, arXiv 2112.10752), so that parameter counts can be compared. The U-Net
projects the time and the tokens once for all blocks, and passes the projections to them.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

L = TypeVar("L", nn.Conv2d, nn.Linear)


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """Return a group norm of 32 groups, or fewer if 32 does not divide the channels or leaves one channel a group."""
    return nn.GroupNorm(math.gcd(32, channels, max(channels // 2, 1)), channels, eps=eps)


def zero_init(layer: L) -> L:
    """Set a layer that ends a residual branch to zero, so that the untrained block is the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def drop_skip_channels(skip: Tensor, rate: float) -> Tensor:
    """Zero whole channels of a U-Net skip connection, as Skip Dropout does (arXiv 2410.23820).

    Args:
        skip: encoder features, (B, C, H, W).
        rate: probability in [0, 1) that a channel of one image is dropped.

    Returns:
        (B, C, H, W). Kept channels are divided by 1 - rate, so the mean is unchanged.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"rate={rate} must lie in [0, 1)")
    keep = torch.rand(skip.shape[:2], device=skip.device) >= rate  # (B, C)
    return skip * (keep.to(skip.dtype) / (1.0 - rate))[:, :, None, None]


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Return the sinusoidal embedding (B, dim) of timesteps (B,), cosines first (Ho et al., 2020)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps.to(frequencies.dtype)[:, None] * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim - 2 * half))


class ResBlock(nn.Module):
    """A residual block whose second norm is scaled and shifted depending on time, and perhaps on a code as well.

    `resample` is `none`, `down` or `up`: whether the block halves or doubles H and W.
    """

    def __init__(self, in_dim: int, out_dim: int, dropout_rate: float, resample: str = "none") -> None:
        super().__init__()
        self.resample = resample
        self.norm_in = group_norm(in_dim)
        self.conv_in = nn.Conv2d(in_dim, out_dim, 3, padding=1)
        self.norm_out = group_norm(out_dim)
        self.dropout = nn.Dropout(dropout_rate) if dropout_rate else nn.Identity()
        self.conv_out = zero_init(nn.Conv2d(out_dim, out_dim, 3, padding=1))
        self.shortcut = nn.Identity() if in_dim == out_dim else nn.Conv2d(in_dim, out_dim, 1)

    def forward(self, x: Tensor, time_scale_shift: Tensor, unit_scale_shift: Tensor | None = None) -> Tensor:
        """Map features (B, C_in, H, W), with scales and shifts (B, 2 * C_out), to (B, C_out, H', W').

        Those of the code apply after those of the time.
        """
        h = F.silu(self.norm_in(x))
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif self.resample == "up":
            h, x = F.interpolate(h, scale_factor=2.0), F.interpolate(x, scale_factor=2.0)
        h = self.conv_in(h)
        scale, shift = time_scale_shift[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm_out(h), 1.0 + scale)
        if unit_scale_shift is not None:
            scale, shift = unit_scale_shift[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1.0 + scale)
        h = F.silu(h)
        return self.shortcut(x) + self.conv_out(self.dropout(h))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Reshape (B, L, C) to (B, heads, L, C / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Residual self-attention over pixels, in the layout of guided-diffusion (MIT, arXiv 2105.05233)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = group_norm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = zero_init(nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, C, H, W) to (B, C, H, W)."""
        parts = self.qkv(self.norm(x).flatten(2).transpose(1, 2)).chunk(3, dim=-1)  # (B, H*W, C) each
        query, key, value = (split_heads(part, self.num_heads) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.out(attended).transpose(1, 2).unflatten(2, x.shape[2:])


def overlap(weights: Tensor, values: Tensor) -> Tensor:
    """Measure how far the tokens write to the same positions in a cross-attention.

    Token n writes weights[..., n] * values[n] to each position. Its map is the length of what it writes there, over all
    heads. The overlap of two tokens is the cosine of their maps: 0 if they write to disjoint positions, 1 if their maps
    are proportional. A token that writes nothing overlaps with none.

    Args:
        weights: attention weights, (B, heads, L, N); over N they sum to 1.
        values: (B, heads, N, C / heads).

    Returns:
        the mean over all pairs of different tokens and over the batch, a scalar in [0, 1].
    """
    num_tokens = weights.shape[-1]
    energy = torch.einsum("bhln,bhn->bln", weights.square(), values.square().sum(-1))
    maps = F.normalize((energy + torch.finfo(energy.dtype).tiny).sqrt(), dim=1, eps=1e-6)  # (B, L, N), unit length
    # The sum of all entries of the maps' Gram matrix, less its diagonal: no loop over pairs, and no (N, N) matrix.
    pairs = maps.sum(-1).square().sum(1) - maps.square().sum((1, 2))
    return pairs.mean() / (num_tokens * (num_tokens - 1))


class TokenTransformer(nn.Module):
    """A transformer: self-attention over pixels, cross-attention to the N tokens, and a gated feed-forward layer."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = group_norm(dim, eps=1e-6)
        self.proj_in = nn.Conv2d(dim, dim, 1)
        self.norm_self = nn.LayerNorm(dim)
        self.self_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.self_out = nn.Linear(dim, dim)
        self.norm_cross = nn.LayerNorm(dim)
        self.cross_q = nn.Linear(dim, dim, bias=False)
        self.cross_out = nn.Linear(dim, dim)
        self.norm_feed = nn.LayerNorm(dim)
        self.feed_in = nn.Linear(dim, 8 * dim)
        self.feed_out = nn.Linear(4 * dim, dim)
        self.proj_out = zero_init(nn.Conv2d(dim, dim, 1))

    def forward(self, x: Tensor, token_key_value: Tensor, overlaps: list[Tensor] | None = None) -> Tensor:
        """Map features (B, C, H, W), with keys and values of the tokens (B, N, 2 * C), to (B, C, H, W).

        If a list is given, the `overlap` of the tokens is appended to it.
        """
        height, heads = x.shape[2], self.num_heads
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H*W, C)

        query, key, value = (split_heads(part, heads) for part in self.self_qkv(self.norm_self(h)).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        h = h + self.self_out(attended)

        query = split_heads(self.cross_q(self.norm_cross(h)), heads)
        key, value = (split_heads(part, heads) for part in token_key_value.chunk(2, dim=-1))
        if overlaps is None:
            attended = F.scaled_dot_product_attention(query, key, value)
        else:  # the fused attention does not return its weights
            weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]), dim=-1)
            overlaps.append(overlap(weights, value))
            attended = weights @ value
        h = h + self.cross_out(attended.transpose(1, 2).flatten(2))

        content, gate = self.feed_in(self.norm_feed(h)).chunk(2, dim=-1)
        h = h + self.feed_out(content * F.gelu(gate))
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, (height, -1)))
