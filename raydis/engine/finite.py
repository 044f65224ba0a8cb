"""Check that all weights are finite before a checkpoint is written, since a finite loss does not imply it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raydis.errors import FitError

if TYPE_CHECKING:
    from raydis.engine.state import Training


def check_finite(training: Training) -> None:
    """Check weights, averaged weights and optimiser moments before they replace a checkpoint.

    All workers must call this together. If one raises, all do. Buffers outside of the trained networks may hold
    infinities (a mixture marks absent components by -inf), but no NaN.

    Raises:
        FitError: a tensor is not finite, on this worker or on another.
    """
    broken = not_finite(trained_tensors(training)) or with_nan(fitted_tensors(training))
    if training.workers.all_true(not broken):
        return
    where = f"{broken[0]} holds values" if broken else "another worker has weights"
    more = f" (and {len(broken) - 1} more tensors do)" if len(broken) > 1 else ""
    raise FitError(
        f"{where} that are not finite after step {training.step} ({training.images_seen} images){more}: "
        "lower train.learning_rate or set train.max_grad_norm. The last checkpoint stays as it was"
    )


def trained_tensors(training: Training) -> dict[str, Tensor]:
    """Return the floating-point tensors that optimisers change, by name: weights, averaged weights, and moments."""
    found: dict[str, Tensor] = {}
    for owner, method in (("raw", training.method), ("averaged", training.average)):
        prefixes = {id(module): name for name, module in method.named_modules()}
        for module in (module for move in method.moves for module in move.modules):
            for name, tensor in module.state_dict().items():
                found[f"{owner} weight {prefixes[id(module)]}.{name}"] = tensor
    for move, optimizer in training.optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            found |= {f"optimiser moment {move}.{index}.{name}": moment for name, moment in moments.items()}
    return {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}


def fitted_tensors(training: Training) -> dict[str, Tensor]:
    """Return the floating-point buffers of the method and of its average, by name."""
    return {
        f"{owner} buffer {name}": tensor
        for owner, method in (("raw", training.method), ("averaged", training.average))
        for name, tensor in method.named_buffers()
        if tensor.is_floating_point()
    }


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or an infinity.

    We first sum each tensor, which is ten times as fast as `isfinite` on each number. The sum is finite unless the
    tensor is not, or the sum overflows. Only tensors whose sum is not finite are then checked number by number.
    """
    if not tensors:
        return []
    device = next(iter(tensors.values())).device
    sums = torch.stack([tensor.detach().sum().to(device, torch.float32) for tensor in tensors.values()])
    suspects = (~sums.isfinite()).tolist()
    return [
        name
        for (name, tensor), suspect in zip(tensors.items(), suspects, strict=True)
        if suspect and not bool(tensor.isfinite().all())
    ]


def with_nan(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN."""
    return [name for name in not_finite(tensors) if bool(tensors[name].isnan().any())]
