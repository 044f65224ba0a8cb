"""The denoising U-Net, which reads the tokens by cross-attention, with Skip Dropout.

B batch, C channels, H W latent size, N units, D unit width.

The architecture is that of latent-diffusion's U-Net, as DyGA+SD and EncDiff use it (arXiv 2410.23820, 2402.09712). At
the reference sizes it has 37,549,507 parameters for D = 32. Latent-diffusion projects the time and the tokens in every
block. Here one matrix projects the time for all blocks, and another the tokens. The parameters are the same, a step
needs two matrix products instead of dozens, and the projection of the tokens (`condition`) is computed once for a whole
sampling run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.models.blocks import (
    ResBlock,
    TokenTransformer,
    drop_skip_channels,
    group_norm,
    timestep_embedding,
    zero_init,
)

S = TypeVar("S")  # a stage


class Stage(nn.Module):
    """A residual block, followed by a transformer where the network attends to the tokens at this spatial size."""

    def __init__(self, block: ResBlock, transformer: TokenTransformer | None) -> None:
        super().__init__()
        self.block = block
        self.transformer = transformer


class Level(NamedTuple):
    """One spatial size of the U-Net."""

    dim: int  # channels
    attends: bool  # whether its stages attend: to the tokens, or without tokens to the pixels


def stages_of(modules: nn.ModuleList) -> list[Stage]:
    """Return the stages with their type, which a ModuleList does not keep."""
    return cast(list[Stage], list(modules))


def make_stage(
    in_dim: int,
    out_dim: int,
    *,
    attends: bool = False,
    resample: str = "none",
    num_heads: int,
    dropout_rate: float,
) -> Stage:
    """Return one stage of the U-Net, with a transformer if it attends to the tokens."""
    transformer = TokenTransformer(out_dim, num_heads) if attends else None
    return Stage(ResBlock(in_dim, out_dim, dropout_rate, resample), transformer)


def make_down(make: Callable[..., S], levels: Sequence[Level], num_blocks: int, dim: int) -> tuple[list[S], list[int]]:
    """Return the stages of the contracting half, and the channels of every skip connection that it starts.

    Args:
        make: makes a stage, as `make_stage` does, given the settings that all stages share.
        levels: from the finest to the coarsest.
        num_blocks: stages for each level.
        dim: channels of the input, which is a skip connection as well.
    """
    stages: list[S] = []
    skip_dims = [dim]
    for index, level in enumerate(levels):
        if index:
            stages.append(make(dim, dim, resample="down"))
            skip_dims.append(dim)
        for _ in range(num_blocks):
            stages.append(make(dim, level.dim, attends=level.attends))
            dim = level.dim
            skip_dims.append(dim)
    return stages, skip_dims


def make_up(make: Callable[..., S], levels: Sequence[Level], num_blocks: int, skip_dims: Sequence[int]) -> list[S]:
    """Return the stages of the expanding half, each of which takes the latest skip connection that is left.

    The arguments are those of `make_down`, and the channels that it returned.
    """
    stages: list[S] = []
    left = list(skip_dims)
    dim = levels[-1].dim
    for index, level in reversed(list(enumerate(levels))):
        for _ in range(num_blocks + 1):
            stages.append(make(dim + left.pop(), level.dim, attends=level.attends))
            dim = level.dim
        if index:
            stages.append(make(dim, dim, resample="up"))
    return stages


class UNet(nn.Module):
    """The network eps_theta(z_t, t, tokens).

    Args:
        latent_dim: channels of the latent, in and out.
        latent_size: H = W of the latent, px.
        unit_dim: width D of a token.
        model_dim: channels at the finest level.
        multipliers: channels of each level divided by `model_dim`. Each further level halves H and W.
        num_blocks: residual blocks for each level.
        attention_sizes: spatial sizes, px, at which the network attends to the tokens. The middle always does.
        num_heads: attention heads.
        dropout_rate: dropout inside residual blocks.
        skip_dropout_rate: probability that a channel of a skip connection is dropped in training.
        skip_dropout_sizes: spatial sizes, px, at which Skip Dropout acts. The released code compares sizes with
            down-sampling factors, which selects the sizes 16 and 8; here the sizes themselves are given.
    """

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
        self.skip_dropout_sizes = frozenset(skip_dropout_sizes)
        time_dim = 4 * model_dim
        self.time_in = nn.Linear(model_dim, time_dim)
        self.time_out = nn.Linear(time_dim, time_dim)
        self.conv_in = nn.Conv2d(latent_dim, model_dim, 3, padding=1)

        make = partial(make_stage, num_heads=num_heads, dropout_rate=dropout_rate)
        levels = [
            Level(model_dim * multiplier, attends=latent_size >> index in attention_sizes)
            for index, multiplier in enumerate(multipliers)
        ]
        down, skip_dims = make_down(make, levels, num_blocks, model_dim)
        dim = levels[-1].dim
        middle = [make(dim, dim, attends=True), make(dim, dim)]
        up = make_up(make, levels, num_blocks, skip_dims)
        self.down, self.middle, self.up = nn.ModuleList(down), nn.ModuleList(middle), nn.ModuleList(up)
        self.norm_out = group_norm(levels[0].dim)
        self.conv_out = zero_init(nn.Conv2d(levels[0].dim, latent_dim, 3, padding=1))

        stages = [*down, *middle, *up]
        self.time_dims = [2 * each.block.conv_in.out_channels for each in stages]
        self.token_dims = [2 * each.transformer.proj_in.out_channels for each in stages if each.transformer]
        self.time_proj = nn.Linear(time_dim, sum(self.time_dims))
        self.token_proj = nn.Linear(unit_dim, sum(self.token_dims), bias=False)

    def condition(self, tokens: Tensor) -> Tensor:
        """Project tokens (B, N, D) to their keys and values in every transformer, (B, N, sum of 2 * C)."""
        return self.token_proj(tokens)

    def forward(
        self, latents: Tensor, timesteps: Tensor, condition: Tensor, overlaps: list[Tensor] | None = None
    ) -> Tensor:
        """Predict the noise in noisy latents, or what `Denoising.prediction` names instead.

        Args:
            latents: z_t, (B, C, H, W).
            timesteps: t, (B,) integers.
            condition: `condition(tokens)`, (B, N, sum of 2 * C).
            overlaps: if a list is given, every transformer appends how far the tokens write to the same positions, a
                scalar in [0, 1]; see `raydis.models.blocks.overlap`.

        Returns:
            the prediction, (B, C, H, W).
        """
        embedding = self.time_out(F.silu(self.time_in(timestep_embedding(timesteps, self.model_dim))))
        times = iter(self.time_proj(F.silu(embedding)).split(self.time_dims, dim=-1))
        keys_values = iter(condition.split(self.token_dims, dim=-1))

        def run(stage: Stage, h: Tensor) -> Tensor:
            h = stage.block(h, next(times))
            return stage.transformer(h, next(keys_values), overlaps) if stage.transformer is not None else h

        h = self.conv_in(latents)
        skips = [h]
        for stage in stages_of(self.down):
            h = run(stage, h)
            skips.append(h)
        for stage in stages_of(self.middle):
            h = run(stage, h)
        for stage in stages_of(self.up):
            if stage.block.resample != "up":
                h = torch.cat([h, self._dropped(skips.pop())], dim=1)
            h = run(stage, h)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _dropped(self, skip: Tensor) -> Tensor:
        if self.training and self.skip_dropout_rate > 0 and skip.shape[-1] in self.skip_dropout_sizes:
            return drop_skip_channels(skip, self.skip_dropout_rate)
        return skip
