"""The networks of DisDiff (arXiv 2301.13721): a U-Net without a condition, and a second decoder for its features.

B batch, N units, D unit width, C channels, H W latent size, T width of the embedded time.

The U-Net predicts the noise. It is trained first, and frozen afterwards. The second decoder reads the features of its
contracting half, and the code of one unit, and predicts the *field* of this unit: an estimate of the gradient of log
p(code | z_t) in z_t, up to a factor that depends on t. The layout is that of the released code. At the published sizes
(latents of 3 channels and 16 px), the U-Net has 29,422,467 parameters and both together 52,161,158 (N does not matter,
D = 32).

The published decoder computes the fields one after the other. Here the units are part of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.models.blocks import ResBlock, SelfAttention, group_norm, timestep_embedding, zero_init
from raydis.models.unet import Level, make_down, make_up

SQUARINGS, DEGREE = 10, 10  # of `orthogonal`


def orthogonal(matrix: Tensor) -> Tensor:
    """Return exp(A - A^T) for a square matrix A (E, E): an orthogonal matrix, in the precision of A.

    A Taylor polynomial of A / 2**10 is squared ten times, in double precision. torch.matrix_exp chooses its polynomial
    by the norm of A, for which it reads a value back from the device, and a CUDA graph allows no such thing. Up to a
    spectral norm of 512 of A - A^T (a fresh A has about 32), the error of the polynomial is below 1e-11.
    """
    skew = (matrix - matrix.t()).double() / 2.0**SQUARINGS
    identity = torch.eye(len(matrix), dtype=skew.dtype, device=skew.device)
    power = identity
    for degree in range(DEGREE, 0, -1):  # Horner's rule
        power = torch.addmm(identity, skew, power, alpha=1.0 / degree)
    for _ in range(SQUARINGS):
        power = power @ power
    return power.to(matrix.dtype)


class AttentionStage(nn.Module):
    """A residual block, followed by self-attention where the network attends at this spatial size."""

    def __init__(self, block: ResBlock, attention: SelfAttention | None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, time: Tensor, code: Tensor | None = None) -> Tensor:
        """Map features, given the scales and shifts of the time and perhaps of a code; see `ResBlock`."""
        h = self.block(x, time, code)
        return h if self.attention is None else self.attention(h)


def make_attention_stage(
    in_dim: int,
    out_dim: int,
    *,
    attends: bool = False,
    resample: str = "none",
    num_heads: int,
    dropout_rate: float,
) -> AttentionStage:
    """Return one stage, with self-attention if it attends."""
    attention = SelfAttention(out_dim, num_heads) if attends else None
    return AttentionStage(ResBlock(in_dim, out_dim, dropout_rate, resample), attention)


def stages_of(modules: nn.ModuleList) -> list[AttentionStage]:
    """Return the stages with their type, which a ModuleList does not keep."""
    return cast(list[AttentionStage], list(modules))


class Features(NamedTuple):
    """What the contracting half of the U-Net hands on.

    Attributes:
        time: the embedded time, (B, T).
        bottleneck: (B, C, h, w) at the coarsest level.
        skips: the skip connections, from the finest level to the coarsest.
        times: the scales and shifts of the time for the stages that follow, in order.
    """

    time: Tensor
    bottleneck: Tensor
    skips: tuple[Tensor, ...]
    times: tuple[Tensor, ...]


class UnconditionalUNet(nn.Module):
    """The network eps_theta(z_t, t), without a condition.

    Args:
        latent_dim: channels of the latent, in and out.
        latent_size: H = W of the latent, px.
        model_dim: channels at the finest level.
        multipliers: channels of each level divided by `model_dim`. Each further level halves H and W.
        num_blocks: residual blocks for each level.
        attention_sizes: spatial sizes, px, with self-attention. The middle always has it.
        num_heads: attention heads.
        dropout_rate: dropout inside residual blocks.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        latent_size: int,
        model_dim: int,
        multipliers: Sequence[int],
        num_blocks: int,
        attention_sizes: Sequence[int],
        num_heads: int,
        dropout_rate: float,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.model_dim = model_dim
        self.time_dim = 4 * model_dim
        self.num_blocks = num_blocks
        self.make = partial(make_attention_stage, num_heads=num_heads, dropout_rate=dropout_rate)
        self.levels = [
            Level(model_dim * multiplier, attends=latent_size >> index in attention_sizes)
            for index, multiplier in enumerate(multipliers)
        ]
        self.time_in = nn.Linear(model_dim, self.time_dim)
        self.time_out = nn.Linear(self.time_dim, self.time_dim)
        self.conv_in = nn.Conv2d(latent_dim, model_dim, 3, padding=1)
        down, self.skip_dims = make_down(self.make, self.levels, num_blocks, model_dim)
        middle, up = self.expanding_half()
        self.down, self.middle, self.up = nn.ModuleList(down), nn.ModuleList(middle), nn.ModuleList(up)
        self.norm_out = group_norm(self.levels[0].dim)
        self.conv_out = zero_init(nn.Conv2d(self.levels[0].dim, latent_dim, 3, padding=1))
        self.time_dims = widths([*down, *middle, *up])
        self.time_proj = nn.Linear(self.time_dim, sum(self.time_dims))

    def expanding_half(self) -> tuple[list[AttentionStage], list[AttentionStage]]:
        """Return fresh stages for the middle and for the expanding half."""
        dim = self.levels[-1].dim
        middle = [self.make(dim, dim, attends=True), self.make(dim, dim)]
        return middle, make_up(self.make, self.levels, self.num_blocks, self.skip_dims)

    def contract(self, latents: Tensor, timesteps: Tensor) -> Features:
        """Return the features of z_t (B, C, H, W) at the integer times t (B,)."""
        time = self.time_out(F.silu(self.time_in(timestep_embedding(timesteps, self.model_dim))))
        times = self.time_proj(F.silu(time)).split(self.time_dims, dim=-1)
        h = self.conv_in(latents)
        skips = [h]
        for stage, scale_shift in zip(stages_of(self.down), times, strict=False):
            h = stage(h, scale_shift)
            skips.append(h)
        return Features(time, h, tuple(skips), times[len(self.down) :])

    def expand(self, features: Features) -> Tensor:
        """Return the prediction (B, C, H, W) from the features."""
        h, skips, times = features.bottleneck, list(features.skips), iter(features.times)
        for stage in stages_of(self.middle):
            h = stage(h, next(times))
        for stage in stages_of(self.up):
            if stage.block.resample != "up":
                h = torch.cat([h, skips.pop()], dim=1)
            h = stage(h, next(times))
        return self.conv_out(F.silu(self.norm_out(h)))

    def forward(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Predict the noise in z_t (B, C, H, W) at the integer times t (B,), or what else the method asks for."""
        return self.expand(self.contract(latents, timesteps))


def widths(stages: Sequence[AttentionStage]) -> list[int]:
    """Return the number of scales and shifts that each stage takes."""
    return [2 * stage.block.conv_in.out_channels for stage in stages]


class Condition(NamedTuple):
    """What the second decoder computes from the codes alone, once for a whole sampling run.

    Attributes:
        concepts: embeddings of the units' numbers, (N, T).
        codes: scales and shifts of the codes for all stages, (N, B, sum of 2 * C).
    """

    concepts: Tensor
    codes: Tensor


class ShiftDecoder(nn.Module):
    """The second decoder: it maps the features of z_t and the code of one unit to the field of this unit.

    In each residual block, the code scales and shifts the norm after the time does. The decoder learns which unit it
    works for from an embedding that is added to the time: a row of an orthogonal matrix, so that the embeddings of the
    units stay orthonormal.

    Args:
        unet: the U-Net whose features it reads, and whose sizes it has.
        num_units: N.
        unit_dim: D.
        concept_dim: size of the orthogonal matrix, at least N.
    """

    def __init__(self, unet: UnconditionalUNet, *, num_units: int, unit_dim: int, concept_dim: int) -> None:
        super().__init__()
        self.num_units = num_units
        middle, up = unet.expanding_half()
        self.middle, self.up = nn.ModuleList(middle), nn.ModuleList(up)
        self.norm_out = group_norm(unet.levels[0].dim)
        self.conv_out = zero_init(nn.Conv2d(unet.levels[0].dim, unet.latent_dim, 3, padding=1))
        self.widths = widths([*middle, *up])
        self.time_proj = nn.Linear(unet.time_dim, sum(self.widths))
        self.code_proj = nn.Linear(unet.time_dim, sum(self.widths))
        self.code_in = nn.Linear(unit_dim, unet.time_dim)
        self.concept_in = nn.Linear(concept_dim, unet.time_dim)
        self.concept_matrix = nn.Parameter(torch.randn(concept_dim, concept_dim))

    def concepts(self) -> Tensor:
        """Return the embeddings (N, concept_dim) of the units' numbers, which are orthonormal."""
        with torch.autocast(self.concept_matrix.device.type, enabled=False):
            return orthogonal(self.concept_matrix)[: self.num_units]

    def condition(self, codes: Tensor) -> Condition:
        """Return the condition of codes (B, N, D)."""
        codes = self.code_proj(F.silu(self.code_in(codes.transpose(0, 1))))
        return Condition(self.concept_in(self.concepts()), codes)

    def forward(self, features: Features, condition: Condition) -> Tensor:
        """Return the fields of all units, (N, B, C, H, W)."""
        units, count = self.num_units, len(features.time)
        time = features.time + condition.concepts.unsqueeze(1)  # (N, B, T)
        times = iter(self.time_proj(F.silu(time)).flatten(0, 1).split(self.widths, dim=-1))
        codes = iter(condition.codes.flatten(0, 1).split(self.widths, dim=-1))
        skips = list(features.skips)
        h = features.bottleneck.expand(units, *features.bottleneck.shape).flatten(0, 1)
        for stage in stages_of(self.middle):
            h = stage(h, next(times), next(codes))
        for stage in stages_of(self.up):
            if stage.block.resample != "up":
                skip = skips.pop()
                both = [h.unflatten(0, (units, count)), skip.expand(units, *skip.shape)]
                h = torch.cat(both, dim=2).flatten(0, 1)
            h = stage(h, next(times), next(codes))
        return self.conv_out(F.silu(self.norm_out(h))).unflatten(0, (units, count))
