"""Open the units of a method one at a time, and describe what they and the residual beside them carry.

M images, N units, R residual values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from raydis.methods.diagnosis import Diagnosis, FactorTable

SPLIT_SEED = 0  # of the two halves of the images: one trains the classifiers of `accuracies`, the other tests them


class Unlocking(nn.Module):
    """How many units are open, and whether more may open. The state is in buffers, and no method waits for the device.

    The first unit opens at the first call of `advance`. After each measurement, the next call opens another one if the
    unit that opened last carries more than `min_kl`. After `max_refusals` measurements in a row in which it does not,
    no more units open.

    Args:
        num_units: N.
        min_kl: nats.
        max_refusals: at least 1.
    """

    def __init__(self, num_units: int, *, min_kl: float, max_refusals: int) -> None:
        super().__init__()
        self.num_units = num_units
        self.min_kl = min_kl
        self.max_refusals = max_refusals
        self.register_buffer("num_open", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_refusals", torch.zeros((), dtype=torch.int64))
        self.register_buffer("is_measured", torch.zeros((), dtype=torch.int64))  # 1: `kl` was not yet considered
        self.register_buffer("kl", torch.zeros(num_units))
        self.register_buffer("order", torch.arange(num_units), persistent=False)
        self.num_open: Tensor
        self.num_refusals: Tensor
        self.is_measured: Tensor
        self.kl: Tensor
        self.order: Tensor

    @property
    def is_open(self) -> Tensor:
        """Which units are open, (N,)."""
        return self.order < self.num_open

    def count(self) -> int:
        """Return the number of open units. This waits for the device."""
        return int(self.num_open)

    @torch.no_grad()
    def record(self, kl: Tensor) -> None:
        """Record a measurement: the mean KL divergence (N,) of each unit, in nats."""
        self.kl.copy_(kl)
        self.is_measured.fill_(1)

    @torch.no_grad()
    def advance(self) -> None:
        """Open the first unit; after a measurement, open the next unit or count a refusal."""
        carried = torch.where(self.order == self.num_open - 1, self.kl, 0.0).sum()  # by the unit that opened last
        may_open = (self.num_refusals < self.max_refusals) & (self.num_open < self.num_units)
        asked = (self.is_measured > 0) & (self.num_open > 0) & may_open
        opens = (self.num_open == 0) | (asked & (carried > self.min_kl))
        self.num_refusals.copy_(torch.where(opens, 0, self.num_refusals + (asked & ~opens)))
        self.num_open.add_(opens)
        self.is_measured.zero_()


def describe_residual(
    opened: Sequence[bool], kls: Sequence[float], residual_kl: float, residual: np.ndarray, table: FactorTable | None
) -> Diagnosis:
    """Return a table of the units, with a note about the residual.

    Args:
        opened, kls: whether each of the N units is open, and its mean KL divergence in nats.
        residual_kl: the same of the whole residual.
        residual: (M, R), the residuals of M images.
        table: the factors of these images; None if they are not known.
    """
    rows = tuple(("yes", round(kl, 3)) if is_open else ("no", None) for is_open, kl in zip(opened, kls, strict=True))
    told = {} if table is None else accuracies(residual, table)
    note = (
        f"A locked unit is always 0. Beside the units, a residual of {residual.shape[1]} values carries "
        f"{residual_kl:.1f} nats; no unit describes it, and no score counts it."
    )
    if told:
        named = ", ".join(f"{name} {accuracy:.2f} ({chance:.2f})" for name, (accuracy, chance) in told.items())
        note += f" From it alone, a linear classifier tells the factors with these accuracies (chance): {named}."
    details = {"residual_kl": residual_kl, "residual_accuracies": {name: list(pair) for name, pair in told.items()}}
    return Diagnosis("Open units and the residual", ("open", "divergence, nats"), rows, note, details=details)


def accuracies(residual: np.ndarray, table: FactorTable) -> dict[str, tuple[float, float]]:
    """Return how often a linear classifier tells each factor from residuals (M, R), and how often a constant does.

    The classifier is fitted by least squares to one half of the images, and both are tested on the other half. A factor
    with one level is left out, and so are all factors of fewer than four images.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(len(residual))
    train, test = np.array_split(order, 2)
    if len(test) < 2:
        return {}
    centred = (residual - residual[train].mean(0)).astype(np.float64)
    inputs = np.concatenate([centred, np.ones((len(residual), 1))], axis=1)
    found: dict[str, tuple[float, float]] = {}
    for name, levels in zip(table.names, table.levels.T, strict=True):
        values, classes = np.unique(levels, return_inverse=True)
        if len(values) < 2:
            continue
        targets = np.eye(len(values))[classes]
        weights, *_ = np.linalg.lstsq(inputs[train], targets[train], rcond=None)
        guesses = (inputs[test] @ weights).argmax(1)
        usual = targets[train].sum(0).argmax()
        found[name] = (float((guesses == classes[test]).mean()), float((classes[test] == usual).mean()))
    return found
