"""What units look like that independent component analysis (ICA) has found: a table for the report.

M images, N units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydis.methods.diagnosis import Cell, Diagnosis
from raydis.models.ica import shape_of

COLUMNS = ("negentropy", "excess kurtosis", "Gaussian")
NOTE = (
    "Negentropy is what ICA maximises: 0 for a Gaussian, 7.2e-4 for a uniform distribution. The excess kurtosis is "
    "-1.2 for a uniform distribution, 0 for a Gaussian and 3 for a Laplace distribution. ICA can find the axes of "
    "units only if at most one of them is Gaussian."
)


def describe_independence(
    units: NDArray[np.float64],
    *,
    title: str = "Independent components",
    columns: Mapping[str, Sequence[float]] | None = None,
    note: str = "",
    details: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Return a table of the distribution of each unit, given the units (M, N) of images.

    Args:
        columns: further columns, with N numbers each.
        note: what to say before the explanation of the columns.
        details: see `Diagnosis`.
    """
    found, more = shape_of(units), dict(columns or {})
    rows: list[tuple[Cell, ...]] = []
    for unit in range(units.shape[1]):
        gaussian = "yes" if found.gaussian[unit] else "no"
        numbers = [_cell(column[unit]) for column in (found.negentropy, found.kurtosis)]
        rows.append((*numbers, gaussian, *(_cell(column[unit]) for column in more.values())))
    warning = gaussian_warning(units)
    texts = [text for text in (note, NOTE, warning) if text]
    return Diagnosis(title, (*COLUMNS, *more), tuple(rows), note=" ".join(texts), details=details or {})


def gaussian_warning(units: NDArray[np.float64]) -> str:
    """Return a sentence if two or more of the units (M, N) cannot be told from Gaussians; else an empty text."""
    count = int(shape_of(units).gaussian.sum())
    if count < 2:
        return ""
    return f"{count} of {units.shape[1]} units cannot be told from Gaussians, so the axes between them are arbitrary."


def _cell(value: float) -> Cell:
    return float(value) if np.isfinite(value) else None
