"""What a trained method tells about its inside: a table with a row for each unit, and the tokens of some images.

M images, N units, D unit width, F factors.

The engine stores the `Diagnosis` of a finished run in its checkpoint, and the report shows it. Neither knows what a
method measures: all words come from the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from torch import Tensor

Cell: TypeAlias = str | int | float | None


class FactorTable(NamedTuple):
    """The known factors of M images: integers `levels` (M, F), with one name for each column."""

    names: Sequence[str]
    levels: np.ndarray


class TokenCloud(NamedTuple):
    """The tokens of M images and the anchors that the method moves them to, for a plot.

    Attributes:
        raw, pulled: (M, N, D), the tokens before and after they were moved.
        components: (M, N), the index of each token's anchor; -1 for none.
        anchors: N tensors (K_n, D), the anchors of each unit.
    """

    raw: Tensor
    pulled: Tensor
    components: Tensor
    anchors: Sequence[Tensor]


@dataclass(frozen=True)
class Diagnosis:
    """A table of measurements with a row for each unit, and the texts around it. JSON can hold all of it.

    Attributes:
        title: heading of the section on the page.
        columns: title of each column. The report puts the number and the label of the unit before them.
        rows: N rows with a cell for each column; None for what a unit does not have. Floats must be finite.
        note: explains the columns; empty for no explanation.
        panels: a line for each of the N panels that show the tokens of a unit; empty for panels without this line.
        panels_note: explains the panels. The report needs both only if the method has a `token_cloud`.
        details: further measurements by name, which the page does not show.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    panels: tuple[str, ...] = ()
    panels_note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, texts and numbers, as JSON can hold them."""
        lists = {"columns": list(self.columns), "rows": [list(row) for row in self.rows], "panels": list(self.panels)}
        return asdict(self) | lists

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Return the diagnosis that `to_dict` stored."""
        tuples = {"columns": tuple(stored["columns"]), "panels": tuple(stored["panels"])}
        return cls(**{**stored, **tuples, "rows": tuple(map(tuple, stored["rows"]))})
