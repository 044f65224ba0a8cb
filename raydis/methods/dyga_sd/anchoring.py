"""Whether Dynamic Gaussian Anchoring acts: how far tokens move, and how well a unit's Gaussians tell its factor.

M images, N units, D unit width, K components, F factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydis.methods.contract import FactorTable
from raydis.metrics.mig import mutual_information
from raydis.metrics.telling import UnitLabel
from raydis.models.anchors import Anchors
from raydis.models.mixture import COLLAPSED, NORMALISATION_EPS

STILL = 1e-4  # of a unit's spread: a token that moves less has not moved


@dataclass(frozen=True)
class UnitAnchoring:
    """One unit's anchors on the images looked at. Distances are in units of the unit's spread.

    The spread is the root-mean-square distance of its raw tokens to their mean. A unit that has collapsed has no
    measure for distances, and its components tell nothing: it and one without a mixture have None where None may stand.

    Attributes:
        num_gaussians: components of its mixture; 0 where it has none.
        spread: in the tokens' own scale.
        collapsed: whether the tokens do not vary, by the bound of the fit; they may have ceased to since.
        moved_share: of the tokens, those that the shift moves by more than 1e-4.
        distance_moved: root-mean-square length of the shift.
        distance_to_anchor: root-mean-square distance of raw tokens to their anchors; 1 would be that to the mean.
        responsibility: mean posterior probability of the chosen component.
        factor: the first factor that the unit tells by its label, by name; None where it tells none.
        num_levels: levels of that factor on these images.
        factor_share: mutual information of component and factor over the factor's entropy; 1: a Gaussian has one level.
        component_share: the same over the components' entropy; 1: a level has one Gaussian.
    """

    unit: int
    num_gaussians: int
    spread: float
    collapsed: bool
    moved_share: float | None = None
    distance_moved: float | None = None
    distance_to_anchor: float | None = None
    responsibility: float | None = None
    factor: str | None = None
    num_levels: int | None = None
    factor_share: float | None = None
    component_share: float | None = None


@dataclass(frozen=True)
class Anchoring:
    """All units, and means over those that have anchors and have not collapsed (None where there is none).

    Attributes:
        num_images: images looked at.
        num_anchored_units: units that the means are over.
        num_collapsed_units: units with a mixture that have collapsed since its fit.
        means: by field of `UnitAnchoring`.
    """

    num_images: int
    num_anchored_units: int
    num_collapsed_units: int
    means: dict[str, float | None]
    units: tuple[UnitAnchoring, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return asdict(self) | {"units": [asdict(unit) for unit in self.units]}


@torch.no_grad()
def diagnose_anchors(
    anchors: Anchors, tokens: Iterable[Tensor], table: FactorTable | None, labels: Sequence[UnitLabel]
) -> Anchoring:
    """Measure anchors on raw tokens (b, N, D), which come in parts: densities take K times their memory.

    Args:
        table: factors of the same images; None where there are none.
        labels: what each of the N units tells.
    """
    columns: dict[str, list[Tensor]] = {"raw": [], "shifted": [], "component": [], "responsibility": []}
    for part in tokens:
        assignment = anchors.assign(part)
        columns["raw"].append(part)
        columns["shifted"].append(anchors(part))
        columns["component"].append(assignment.component)
        columns["responsibility"].append(assignment.responsibility)
    raw, shifted, component, responsibility = (torch.cat(column) for column in columns.values())
    spread = _root_mean_square(raw - raw.mean(0))  # (N,)
    extent = (raw.amax((0, 2)) - raw.amin((0, 2))).double() + NORMALISATION_EPS
    collapsed = (spread / extent).square() <= COLLAPSED
    measured = {  # of collapsed units these are quotients by next to nothing, which nobody reads
        "moved_share": ((shifted - raw).norm(dim=-1) > STILL * spread).double().mean(0),
        "distance_moved": _root_mean_square(shifted - raw) / spread,
        "distance_to_anchor": _root_mean_square(raw - anchors.nearest(component)) / spread,
        "responsibility": responsibility.double().mean(0),
    }
    chosen = component.cpu().numpy()
    counts = anchors.alive.sum(-1).tolist()
    units = []
    for unit, active in enumerate(anchors.active.tolist()):
        facts: dict[str, Any] = {
            "unit": unit,
            "num_gaussians": counts[unit],
            "spread": float(spread[unit]),
            "collapsed": bool(collapsed[unit]),
        }
        if active and not facts["collapsed"]:
            facts |= {name: float(column[unit]) for name, column in measured.items()}
            facts |= _told_factor(chosen[:, unit], labels[unit], table)
        units.append(UnitAnchoring(**facts))
    anchored = [unit for unit in units if unit.moved_share is not None]
    names = ("num_gaussians", *measured, "num_levels", "factor_share", "component_share")
    return Anchoring(
        num_images=len(raw),
        num_anchored_units=len(anchored),
        num_collapsed_units=sum(unit.collapsed and unit.num_gaussians > 0 for unit in units),
        means={name: _mean([getattr(unit, name) for unit in anchored]) for name in names},
        units=tuple(units),
    )


def _told_factor(component: np.ndarray, label: UnitLabel, table: FactorTable | None) -> dict[str, Any]:
    """How well the components (M,) of a unit tell the factor that the unit tells, as fields of `UnitAnchoring`."""
    if table is None or not label.factors:
        return {}
    factor, _ = label.factors[0]
    levels = table.levels[:, table.names.index(factor)]
    information = _information(component, levels)
    entropy, entropy_of_component = _information(levels, levels), _information(component, component)
    return {
        "factor": factor,
        "num_levels": len(np.unique(levels)),
        "factor_share": information / entropy if entropy else 0.0,
        "component_share": information / entropy_of_component if entropy_of_component else 0.0,
    }


def _information(a: np.ndarray, b: np.ndarray) -> float:
    return mutual_information(a, b, int(a.max()) + 1, int(b.max()) + 1)


def _root_mean_square(vectors: Tensor) -> Tensor:
    """Of the lengths of vectors (M, N, D): (N,)."""
    return vectors.double().square().sum(-1).mean(0).sqrt()


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
