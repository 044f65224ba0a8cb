"""Change one unit of each latent of a batch: the intervention that `proto_vae.py` and `dot_vae.py` train with.

B batch, N units. All functions take their random numbers as arguments, so that workers can share them, and none of them
reads a value back from the device.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from raydis.methods.contract import Draws

Source: TypeAlias = Literal["batch", "prior"]  # another image of the batch, or N(0, 1)


def draw_intervention(batch_size: int, num_units: int, source: Source, generator: torch.Generator) -> Draws:
    """Return the random numbers of a step: keys (B, N) that choose a unit, and what chooses its value, (B,)."""
    device = generator.device
    keys = torch.rand(batch_size, num_units, generator=generator, device=device)
    draw = torch.randn if source == "prior" else torch.rand
    return {"unit_keys": keys, "values": draw(batch_size, generator=generator, device=device)}


def choose_units(allowed: Tensor, keys: Tensor) -> Tensor:
    """Return for each row of keys (B, N) in [0, 1) one of the units that `allowed` (N,) marks: integers (B,).

    Each is chosen with the same probability. If none is allowed, the result is 0.
    """
    return keys.masked_fill(~allowed, -1.0).argmax(1)


def choose_partners(keys: Tensor) -> Tensor:
    """Return for each key (B,) in [0, 1) the index of another row of the batch; of the same row only if B = 1."""
    count = len(keys)
    offsets = (keys * max(count - 1, 1)).long() + 1
    return (torch.arange(count, device=keys.device) + offsets) % count


def intervene(latents: Tensor, units: Tensor, draws: Draws, source: Source) -> Tensor:
    """Return latents (B, N) in which row b has another value of units[b]. The other coordinates are the same tensors.

    Args:
        latents: (B, N).
        units: (B,), the unit that changes in each row.
        draws: of `draw_intervention`.
        source: "batch" takes the value that another row has there, which follows the distribution of the codes;
            "prior" takes the drawn values, from N(0, 1).
    """
    chosen = F.one_hot(units, latents.shape[1]).bool()
    values = draws["values"]
    others = latents[choose_partners(values)] if source == "batch" else values[:, None]
    return torch.where(chosen, others, latents)
