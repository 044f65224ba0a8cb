"""Measure what Dynamic Gaussian Anchoring does in a trained model.

M images, N units, D unit width, K components, F factors.

For each unit we measure how far its tokens move, how near they are to their anchors, and how much the components of its
Gaussian mixture tell about the factor that the unit describes.
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

STILL = 1e-4  # in units of the spread; a token that moves less counts as unmoved


@dataclass(frozen=True)
class UnitAnchoring:
    """The anchors of one unit on the given images. Distances are in units of the spread.

    The spread is the root-mean-square distance of the unit's raw tokens to their mean. Where tokens do not vary, no
    distance can be measured in these units. A unit without a mixture, and one that has collapsed, has None for all
    attributes that allow it.

    Attributes:
        num_components: number of components of the mixture; 0 without a mixture.
        spread: in the scale of the tokens.
        collapsed: whether the tokens do not vary, by the threshold of the fit. They may have stopped varying since.
        moved_share: share of the tokens that the shift moves by more than 1e-4.
        distance_moved: root-mean-square length of the shift.
        distance_to_anchor: root-mean-square distance of raw tokens to their anchors; to their mean it would be 1.
        responsibility: mean posterior probability of the chosen component.
        factor: name of the first factor in the unit's label; None if there is none.
        num_levels: number of levels of that factor in these images.
        factor_share: mutual information of component and factor, divided by the entropy of the factor. It is 1 if the
            component determines the level.
        component_share: the same divided by the entropy of the component. It is 1 if the level determines the
            component.
    """

    unit: int
    num_components: int
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
    """The anchors of all units, and means over the units that have anchors and have not collapsed.

    Attributes:
        num_images: number of images.
        num_anchored_units: number of units that the means are taken over.
        num_collapsed_units: number of units with a mixture that have collapsed since its fit.
        means: by attribute of `UnitAnchoring`; None where there is nothing to average.
        units: one entry for each unit.
    """

    num_images: int
    num_anchored_units: int
    num_collapsed_units: int
    means: dict[str, float | None]
    units: tuple[UnitAnchoring, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, as JSON can hold them."""
        return asdict(self) | {"units": [asdict(unit) for unit in self.units]}


@torch.no_grad()
def diagnose_anchors(
    anchors: Anchors, tokens: Iterable[Tensor], table: FactorTable | None, labels: Sequence[UnitLabel]
) -> Anchoring:
    """Measure the anchors on the tokens of some images.

    Args:
        anchors: of the trained model.
        tokens: raw tokens (b, N, D), in parts because the densities take K times their memory.
        table: factors of the same images; None if they are not known.
        labels: the factors that each of the N units describes.
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
    measured = {  # for collapsed units these are quotients by nearly 0, and are not used
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
            "num_components": counts[unit],
            "spread": float(spread[unit]),
            "collapsed": bool(collapsed[unit]),
        }
        if active and not facts["collapsed"]:
            facts |= {name: float(column[unit]) for name, column in measured.items()}
            facts |= _factor_shares(chosen[:, unit], labels[unit], table)
        units.append(UnitAnchoring(**facts))
    anchored = [unit for unit in units if unit.moved_share is not None]
    names = ("num_components", *measured, "num_levels", "factor_share", "component_share")
    return Anchoring(
        num_images=len(raw),
        num_anchored_units=len(anchored),
        num_collapsed_units=sum(unit.collapsed and unit.num_components > 0 for unit in units),
        means={name: _mean([getattr(unit, name) for unit in anchored]) for name in names},
        units=tuple(units),
    )


def _factor_shares(component: np.ndarray, label: UnitLabel, table: FactorTable | None) -> dict[str, Any]:
    """Return what the components (M,) of a unit tell about its first factor, as attributes of `UnitAnchoring`."""
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
    """Return the root-mean-square length (N,) of vectors (M, N, D)."""
    return vectors.double().square().sum(-1).mean(0).sqrt()


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
