"""Denoising U-Net conditioned on tokens by cross-attention, with Skip Dropout.

B batch, C channels, H W latent size, N units, D unit width.
Architecture of latent-diffusion's U-Net as DyGA+SD and EncDiff use it (arXiv 2410.23820, 2402.09712): at the reference
sizes it has 37,549,507 parameters for D = 32. Two projections that latent-diffusion repeats in every block, of time
and of the tokens, are one matrix each here: same parameters, two matrix products a step instead of dozens, and the
tokens' share (`condition`) is computed once for a whole sampling run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

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


class Stage(nn.Module):
    """One residual block, and a transformer behind it where this spatial size attends."""

    def __init__(self, block: ResBlock, transformer: TokenTransformer | None) -> None:
        super().__init__()
        self.block = block
        self.transformer = transformer


def stages_of(modules: nn.ModuleList) -> list[Stage]:
    """The list with its elements' type, which torch does not keep."""
    return cast(list[Stage], list(modules))


class UNet(nn.Module):
    """eps_theta(z_t, t, tokens).

    Args:
        latent_dim: channels of the latent, in and out.
        latent_size: H = W of the latent, px.
        unit_dim: width D of a token.
        model_dim: channels at the finest level.
        multipliers: channels of a level over `model_dim`; each further level halves H and W.
        num_blocks: residual blocks a level.
        attention_sizes: spatial sizes, px, that attend to the tokens; the middle always does.
        num_heads: attention heads.
        dropout_rate: dropout inside residual blocks.
        skip_dropout_rate: probability that a skip channel is dropped in training.
        skip_dropout_sizes: spatial sizes, px, whose skip connections are dropped from. The released code compares
            sizes with down-sampling factors; its effect, the sizes 16 and 8, is stated outright here.
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

        def stage(in_dim: int, out_dim: int, size: int | None) -> Stage:
            transformer = TokenTransformer(out_dim, num_heads) if size is None or size in attention_sizes else None
            return Stage(ResBlock(in_dim, out_dim, dropout_rate), transformer)

        dim, size = model_dim, latent_size
        skips = [(dim, size)]
        down: list[Stage] = []
        for level, multiplier in enumerate(multipliers):
            for _ in range(num_blocks):
                down.append(stage(dim, model_dim * multiplier, size))
                dim = model_dim * multiplier
                skips.append((dim, size))
            if level < len(multipliers) - 1:
                down.append(Stage(ResBlock(dim, dim, dropout_rate, "down"), None))
                size //= 2
                skips.append((dim, size))
        self.down = nn.ModuleList(down)
        middle = [stage(dim, dim, None), Stage(ResBlock(dim, dim, dropout_rate), None)]
        self.middle = nn.ModuleList(middle)

        up: list[Stage] = []
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(num_blocks + 1):
                up.append(stage(dim + skips.pop()[0], model_dim * multiplier, size))
                dim = model_dim * multiplier
                if level and block == num_blocks:
                    up.append(Stage(ResBlock(dim, dim, dropout_rate, "up"), None))
                    size *= 2
        self.up = nn.ModuleList(up)
        self.norm_out = group_norm(dim)
        self.conv_out = zero_init(nn.Conv2d(dim, latent_dim, 3, padding=1))

        stages = [*down, *middle, *up]
        self.time_dims = [2 * each.block.conv_in.out_channels for each in stages]
        self.token_dims = [2 * each.transformer.proj_in.out_channels for each in stages if each.transformer]
        self.time_proj = nn.Linear(time_dim, sum(self.time_dims))
        self.token_proj = nn.Linear(unit_dim, sum(self.token_dims), bias=False)

    def condition(self, tokens: Tensor) -> Tensor:
        """Keys and values of the tokens for every transformer: (B, N, D) -> (B, N, sum of 2 * C)."""
        return self.token_proj(tokens)

    def forward(self, latents: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Predict the noise in noisy latents.

        Args:
            latents: z_t, (B, C, H, W).
            timesteps: t, (B,) integers.
            condition: `condition(tokens)`, (B, N, sum of 2 * C).

        Returns:
            eps_theta, (B, C, H, W).
        """
        embedding = self.time_out(F.silu(self.time_in(timestep_embedding(timesteps, self.model_dim))))
        times = iter(self.time_proj(F.silu(embedding)).split(self.time_dims, dim=-1))
        keys_values = iter(condition.split(self.token_dims, dim=-1))

        def run(stage: Stage, h: Tensor) -> Tensor:
            h = stage.block(h, next(times))
            return stage.transformer(h, next(keys_values)) if stage.transformer is not None else h

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
