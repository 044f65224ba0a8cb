"""The same networks written the plain way, as published code writes them: the yardstick of the training benchmark.

B batch, C channels, H W latent size, N units, D unit width, E width of the time embedding.
A loop over the units' MLPs, projections of time and tokens in every block, einsum attention with its matrix in memory
(after latent-diffusion, MIT, arXiv 2112.10752). `copy_unet` and `copy_encoder` carry weights over from ours, so that
a test can hold both to the same output.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.models.encoder import Encoder
from raydis.models.unet import UNet


def norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """32 groups at the published widths, fewer at small ones."""
    return nn.GroupNorm(math.gcd(32, max(channels // 2, 1)), channels, eps=eps)


class PlainResBlock(nn.Module):
    """Residual block with its own projection of the time embedding."""

    def __init__(self, in_dim: int, out_dim: int, time_dim: int, dropout_rate: float, resample: str = "none") -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(norm(in_dim), nn.SiLU(), nn.Conv2d(in_dim, out_dim, 3, padding=1))
        self.time_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * out_dim))
        self.out_norm = norm(out_dim)
        self.out_layers = nn.Sequential(nn.SiLU(), nn.Dropout(dropout_rate), nn.Conv2d(out_dim, out_dim, 3, padding=1))
        self.shortcut = nn.Conv2d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C_in, H, W), (B, E) -> (B, C_out, H', W')."""
        h = self.in_layers[2](self._resampled(self.in_layers[1](self.in_layers[0](x))))
        scale, shift = self.time_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers(self.out_norm(h) * (1 + scale) + shift)
        return self.shortcut(self._resampled(x)) + h


class PlainAttention(nn.Module):
    """Attention from pixels to a context, its matrix in memory."""

    def __init__(self, dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, L, C), (B, M, C') -> (B, L, C)."""
        batch, length, dim = x.shape
        heads, width = self.num_heads, dim // self.num_heads

        def folded(part: Tensor) -> Tensor:
            part = part.reshape(batch, -1, heads, width).permute(0, 2, 1, 3)
            return part.reshape(batch * heads, -1, width)

        query, key, value = folded(self.to_q(x)), folded(self.to_k(context)), folded(self.to_v(context))
        weights = (torch.einsum("bid,bjd->bij", query, key) * width**-0.5).softmax(dim=-1)
        out = torch.einsum("bij,bjd->bid", weights, value).reshape(batch, heads, length, width)
        return self.to_out(out.permute(0, 2, 1, 3).reshape(batch, length, dim))


class PlainTransformer(nn.Module):
    """Self-attention, cross-attention and gated feed-forward over the pixels of a feature map."""

    def __init__(self, dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = norm(dim, eps=1e-6)
        self.proj_in = nn.Conv2d(dim, dim, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.self_attention = PlainAttention(dim, dim, num_heads)
        self.cross_attention = PlainAttention(dim, context_dim, num_heads)
        self.feed_in = nn.Linear(dim, 8 * dim)
        self.feed_out = nn.Linear(4 * dim, dim)
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(B, C, H, W), (B, N, D) -> (B, C, H, W)."""
        batch, dim, height, width = x.shape
        h = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, height * width, dim)
        normed = self.norms[0](h)
        h = self.self_attention(normed, normed) + h
        h = self.cross_attention(self.norms[1](h), tokens) + h
        content, gate = self.feed_in(self.norms[2](h)).chunk(2, dim=-1)
        h = self.feed_out(content * F.gelu(gate)) + h
        return self.proj_out(h.reshape(batch, height, width, dim).permute(0, 3, 1, 2)) + x


class PlainUNet(nn.Module):
    """eps_theta(z_t, t, tokens); arguments as `raydis.models.unet.UNet`."""

    def __init__(
        self,
        *,
        latent_dim: int,
        latent_size: int,
        unit_dim: int,
        model_dim: int,
        multipliers: Sequence[int],
        num_blocks: int,
        attention_sizes: Sequence[int],
        num_heads: int,
        dropout_rate: float,
        skip_dropout_rate: float,
        skip_dropout_sizes: Sequence[int],
    ) -> None:
        super().__init__()
        self.model_dim = model_dim
        self.skip_dropout_rate = skip_dropout_rate
        self.skip_dropout_sizes = tuple(skip_dropout_sizes)
        time_dim = 4 * model_dim
        self.time_embed = nn.Sequential(nn.Linear(model_dim, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))

        def block(in_dim: int, out_dim: int, resample: str = "none") -> PlainResBlock:
            return PlainResBlock(in_dim, out_dim, time_dim, dropout_rate, resample)

        def blocks(in_dim: int, out_dim: int) -> list[nn.Module]:
            attends = size in attention_sizes
            return [block(in_dim, out_dim), *([PlainTransformer(out_dim, unit_dim, num_heads)] if attends else [])]

        self.conv_in = nn.Conv2d(latent_dim, model_dim, 3, padding=1)
        self.input_blocks = nn.ModuleList()
        dim, size, skip_dims = model_dim, latent_size, [model_dim]
        for level, multiplier in enumerate(multipliers):
            for _ in range(num_blocks):
                self.input_blocks.append(nn.ModuleList(blocks(dim, model_dim * multiplier)))
                dim = model_dim * multiplier
                skip_dims.append(dim)
            if level != len(multipliers) - 1:
                self.input_blocks.append(nn.ModuleList([block(dim, dim, "down")]))
                skip_dims.append(dim)
                size //= 2
        self.middle = nn.ModuleList([block(dim, dim), PlainTransformer(dim, unit_dim, num_heads), block(dim, dim)])
        self.output_blocks = nn.ModuleList()
        for level, multiplier in list(enumerate(multipliers))[::-1]:
            for i in range(num_blocks + 1):
                layers = blocks(dim + skip_dims.pop(), model_dim * multiplier)
                dim = model_dim * multiplier
                if level and i == num_blocks:
                    layers.append(block(dim, dim, "up"))
                    size *= 2
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(norm(dim), nn.SiLU(), nn.Conv2d(dim, latent_dim, 3, padding=1))

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """(B, C, H, W), (B,), (B, N, D) -> (B, C, H, W)."""
        half = self.model_dim // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        angles = timesteps[:, None].float() * frequencies.to(timesteps.device)[None]
        embedding = self.time_embed(torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1))

        def run(layers: nn.ModuleList, h: Tensor) -> Tensor:
            for layer in layers:
                h = layer(h, embedding if isinstance(layer, PlainResBlock) else tokens)
            return h

        h = self.conv_in(latents)
        skips = [h]
        for layers in self.input_blocks:
            h = run(layers, h)
            skips.append(h)
        h = run(self.middle, h)
        for layers in self.output_blocks:
            skip = skips.pop()
            if skip.shape[-1] in self.skip_dropout_sizes:
                skip = F.dropout2d(skip, self.skip_dropout_rate, self.training)
            h = run(layers, torch.cat([h, skip], dim=1))
        return self.out(h)


class PlainEncoder(nn.Module):
    """Our convolutions and dense head, then a loop over the units' own MLPs."""

    def __init__(
        self, convolutions: nn.Module, head: nn.Module, dims: Sequence[int], num_units: int, relu: bool
    ) -> None:
        super().__init__()
        self.convolutions, self.head = convolutions, head
        self.mlps = nn.ModuleList()
        for _ in range(num_units):
            layers = [layer for a, b in pairwise(dims) for layer in (nn.Linear(a, b), nn.ReLU())]
            self.mlps.append(nn.Sequential(*(layers if relu else layers[:-1])))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> tokens (B, N, D)."""
        units = self.head(self.convolutions(images).flatten(1))
        return torch.stack([mlp(units[:, i : i + 1]) for i, mlp in enumerate(self.mlps)], dim=1)


def _copy(target: nn.Module, source: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


@torch.no_grad()
def copy_unet(plain: PlainUNet, ours: UNet) -> None:
    """Give the plain U-Net our weights: joint projections are cut into each block's own."""
    _copy(plain.conv_in, ours.conv_in)
    _copy(plain.time_embed[0], ours.time_in)
    _copy(plain.time_embed[2], ours.time_out)
    _copy(plain.out[0], ours.norm_out)
    _copy(plain.out[2], ours.conv_out)
    stages = [*ours.down, *ours.middle, *ours.up]
    blocks = [module for module in plain.modules() if isinstance(module, PlainResBlock)]
    weights, biases = ours.time_proj.weight.split(ours.time_dims), ours.time_proj.bias.split(ours.time_dims)
    for block, stage, weight, bias in zip(blocks, stages, weights, biases, strict=True):
        _copy(block.in_layers[0], stage.block.norm_in)
        _copy(block.in_layers[2], stage.block.conv_in)
        _copy(block.out_norm, stage.block.norm_out)
        _copy(block.out_layers[2], stage.block.conv_out)
        _copy(block.shortcut, stage.block.shortcut)
        block.time_layers[1].load_state_dict({"weight": weight, "bias": bias})
    transformers = [module for module in plain.modules() if isinstance(module, PlainTransformer)]
    sources = [stage.transformer for stage in stages if stage.transformer is not None]
    keys_values = ours.token_proj.weight.split(ours.token_dims)
    for target, source, key_value in zip(transformers, sources, keys_values, strict=True):
        for name in ("norm", "proj_in", "feed_in", "feed_out", "proj_out"):
            _copy(getattr(target, name), getattr(source, name))
        for layer_norm, name in zip(target.norms, ("norm_self", "norm_cross", "norm_feed"), strict=True):
            _copy(layer_norm, getattr(source, name))
        _copy(target.self_attention.to_out, source.self_out)
        _copy(target.cross_attention.to_q, source.cross_q)
        _copy(target.cross_attention.to_out, source.cross_out)
        attention = target.self_attention
        parts = source.self_qkv.weight.chunk(3)
        for layer, part in zip((attention.to_q, attention.to_k, attention.to_v), parts, strict=True):
            layer.weight.copy_(part)
        for layer, part in zip(
            (target.cross_attention.to_k, target.cross_attention.to_v), key_value.chunk(2), strict=True
        ):
            layer.weight.copy_(part)


@torch.no_grad()
def plain_encoder(ours: Encoder) -> PlainEncoder:
    """The plain encoder with our weights (copies)."""
    mlps = ours.tokens
    num_units = len(mlps.weights[0])
    dims = [1, *(weight.shape[2] for weight in mlps.weights)]
    plain = PlainEncoder(
        copy.deepcopy(ours.convolutions), copy.deepcopy(ours.head), dims, num_units, mlps.activation == "relu"
    )
    for unit, mlp in enumerate(plain.mlps):
        layers = [layer for layer in mlp if isinstance(layer, nn.Linear)]
        for layer, weight, bias in zip(layers, mlps.weights, mlps.biases, strict=True):
            layer.weight.copy_(weight[unit].t())
            layer.bias.copy_(bias[unit, 0])
    return plain
