"""The types of a training step: the batch that a method receives, and the moves that it makes.

B batch, C H W image, L h w latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

Draws: TypeAlias = dict[str, Tensor]
Losses: TypeAlias = dict[str, Tensor]


class Batch(NamedTuple):
    """The input of a training step on one worker. The first axis of every tensor is B.

    Attributes:
        images: (B, C, H, W) in [-1, 1].
        draws: the random numbers of the method, by name; see `Method.draw`.
        others: a second batch of images, independent of the first, if the method sets `second_batch`; else None.
        latents: (B, L, h, w), latents of `images` without the scale, if `Method.autoencoder` is not None; else None.
    """

    images: Tensor
    draws: Draws
    others: Tensor | None = None
    latents: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, in a fixed order. `Batch.of` restores the batch from them."""
        optional = {"others": self.others, "latents": self.latents}
        kept = {name: tensor for name, tensor in optional.items() if tensor is not None}
        return {"images": self.images} | {f"draws.{name}": drawn for name, drawn in self.draws.items()} | kept

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Batch:
        """Return the batch that these `tensors()` were taken from."""
        draws = {name.removeprefix("draws."): drawn for name, drawn in tensors.items() if name.startswith("draws.")}
        return cls(tensors["images"], draws, tensors.get("others"), tensors.get("latents"))

    def split(self, num_parts: int) -> list[Batch]:
        """Return equal parts along the first axis. B must be a multiple of `num_parts`."""
        names, tensors = zip(*self.tensors().items(), strict=True)
        rows = zip(*(tensor.chunk(num_parts) for tensor in tensors), strict=True)
        return [Batch.of(dict(zip(names, row, strict=True))) for row in rows]


@dataclass(frozen=True)
class Move:
    """One part of a training step: a loss, and the modules whose weights follow its gradient.

    A step makes the moves of a method one after the other. Each move has an AdamW optimiser of its own.

    Attributes:
        name: the argument `move` of `Method.forward`, and the name under which the optimiser's state is stored.
        modules: the modules whose weights this move changes. The move must not need gradients of other weights.
        learning_rate_scale: factor by which `train.learning_rate` is multiplied.
        betas: of AdamW.
        weight_decay: of AdamW; None stands for `train.weight_decay`.
        couples: whether the loss of an image depends on the other images of its batch, as a total correlation does.
            The loss of a batch is then not a mean over its parts, and every worker computes it from the whole batch.
    """

    name: str
    modules: Sequence[nn.Module]
    learning_rate_scale: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float | None = None
    couples: bool = False

    @property
    def weights(self) -> list[nn.Parameter]:
        """The parameters of all modules, in order."""
        return [weight for module in self.modules for weight in module.parameters()]
