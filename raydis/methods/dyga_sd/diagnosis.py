"""Lay out the measurements of `Anchoring` as the table that the report shows, and read those of older checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raydis.methods.contract import Diagnosis
from raydis.metrics.telling import UnitLabel

COLUMNS = {
    "num_components": "Gaussians",
    "moved_share": "tokens moved",
    "distance_moved": "by",
    "distance_to_anchor": "way to anchor",
    "responsibility": "responsibility",
}
OF_FACTOR = {"num_levels": "levels of the factor", "factor_share": "factor told", "component_share": "Gaussians told"}
NOTE = (
    "Distances are in units of the unit's spread. Factor told: the share of the entropy of the unit's first factor "
    "that the Gaussian tells; Gaussians told: the same of the Gaussians' entropy. A unit without these numbers tells "
    "no factor, has no Gaussians, or its tokens no longer vary."
)
PANELS_NOTE = (
    "Each panel shows the raw tokens of a unit in their first two principal components, coloured by the Gaussian that "
    "they most probably belong to. Crosses are the means of the Gaussians, and a grey line leads from a token to where "
    "it was pulled."
)


def lay_out(measured: Mapping[str, Any], labels: Sequence[UnitLabel]) -> Diagnosis:
    """Return the table of the units and their anchors.

    Args:
        measured: as `Anchoring.to_dict` returns it.
        labels: the factors that each of the N units describes. The columns about the unit's factor are left out if no
            label is known.
    """
    columns = COLUMNS | (OF_FACTOR if any(map(str, labels)) else {})
    units = [{**unit, **_of_factor(unit, label)} for unit, label in zip(measured["units"], labels, strict=True)]
    return Diagnosis(
        title="Units and their anchors",
        columns=tuple(columns.values()),
        rows=tuple(tuple(unit.get(name) for name in columns) for unit in units),
        note=NOTE,
        panels=tuple(map(_panel, units)),
        panels_note=PANELS_NOTE,
        details=measured,
    )


def read_version_1(stored: Mapping[str, Any], labels: Sequence[UnitLabel]) -> Diagnosis:
    """Return the table of measurements as format version 1 stored them.

    They are those of `Anchoring`, but older code called `num_components` `num_gaussians`, which is the number that a
    fit starts with. Some of it also chose the factor of a unit by another definition.
    """
    means, units = stored.get("means") or {}, stored["units"]
    return lay_out({**stored, "means": _renamed(means), "units": [_renamed(unit) for unit in units]}, labels)


def _renamed(counts: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_components" if name == "num_gaussians" else name: value for name, value in counts.items()}


def _of_factor(unit: Mapping[str, Any], label: UnitLabel) -> dict[str, Any]:
    """Return how well the Gaussians tell the label's first factor; None if another factor was measured."""
    told = label.factors[0][0] if label.factors else None
    return {name: unit.get(name) if told and unit.get("factor") == told else None for name in OF_FACTOR}


def _panel(unit: Mapping[str, Any]) -> str:
    values = f" for {unit['num_levels']} values" if unit["num_levels"] else ""
    return f"{unit['num_components']} Gaussians{values}"
