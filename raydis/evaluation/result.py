"""The result of `evaluate`: scores with their intervals, the importance of units, and the settings that led to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raydis.evaluation.intervals import Kind
from raydis.metrics.entry import Number
from raydis.metrics.importance import Estimator
from raydis.metrics.table import number_named
from raydis.metrics.udr import UDR

IMPORTANCE = "importance"  # the detail of a metric that is a matrix of units by factors (see `Scores.details`)

MINOR = 0.1  # share of the best unit's importance


@dataclass(frozen=True)
class Estimate:
    """One number of a metric, with its interval.

    Attributes:
        name: of the number, as in `raydis.metrics.table`.
        value: the number; None if the metric cannot score the codes.
        spread: standard deviation over the draws of a run after the first, or over several runs; None if it is unknown.
        low, high: bounds of the confidence interval, within the number's range; None without a spread.
        reason: why there is no value; None if there is one.
    """

    name: str
    value: float | None
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    @property
    def number(self) -> Number:
        """Title, range and direction of the number."""
        return UDR if self.name == UDR.name else number_named(self.name)


@dataclass(frozen=True)
class Run:
    """The scores of one run's codes.

    Attributes:
        name: of the run.
        unit_names: N names.
        estimates: one for each number.
        details: additional results of the metrics, as plain numbers and lists.
    """

    name: str
    unit_names: tuple[str, ...]
    estimates: tuple[Estimate, ...]
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def importance(self) -> NDArray[np.float64] | None:
        """The importance of each unit for each factor, (N, F), each column with sum 1 or 0; None if not computed."""
        found = self.details.get(IMPORTANCE)
        return None if found is None else np.asarray(found, np.float64)


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`. `str` returns it as a table for the terminal, at most 100 characters wide.

    Attributes:
        estimates: the scores: those of the run, or the mean over several runs.
        intervals: the kind of the intervals of `estimates`, over "draws", "rows" or "runs" (see
            `raydis.evaluation.intervals`); None if there are none.
        confidence: of the intervals.
        runs: the runs one by one.
        factor_names: F names; none if only runs were compared, without factors.
        num_levels: for each factor, how many levels occur.
        num_samples: rows of codes that were scored.
        num_draws: how often each metric was computed for a run.
        protocol, estimator, sizes, seed: settings of the metrics, as in `raydis.metrics.scores`.
        notes: sentences about what was translated or left out.
    """

    estimates: tuple[Estimate, ...]
    intervals: Kind | None
    confidence: float
    runs: tuple[Run, ...]
    factor_names: tuple[str, ...]
    num_levels: tuple[int, ...]
    num_samples: int
    num_draws: int
    protocol: str
    estimator: Estimator
    sizes: Mapping[str, Mapping[str, float]]
    seed: int
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float:
        """Return the value of a number; NaN if its metric cannot score the codes.

        Raises:
            KeyError: the number was not computed. The message names those that were.
        """
        for estimate in self.estimates:
            if estimate.name == name:
                return math.nan if estimate.value is None else estimate.value
        raise KeyError(f"{name} was not computed: there are {', '.join(each.name for each in self.estimates)}")

    @property
    def values(self) -> dict[str, float]:
        """The numbers that have a value, by name."""
        return {each.name: each.value for each in self.estimates if each.value is not None}

    @property
    def importance(self) -> NDArray[np.float64] | None:
        """The importance of each unit of the first run for each factor, (N, F); None if it was not computed."""
        return self.runs[0].importance

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, texts and numbers, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the scores and the importance as text."""
        from raydis.evaluation.text import as_text

        return as_text(self)

    def _repr_markdown_(self) -> str:
        """Return what a notebook shows."""
        from raydis.evaluation.formats import to_markdown

        return to_markdown(self)


def by_importance(importance: NDArray[np.float64], *, num_most: int | None = None) -> list[int]:
    """Return the units of a matrix (N, F) in the order in which it is shown.

    A unit stands with the factor for which it is most important, the more important unit first. Units that matter
    little beside the best one for their factor (MINOR) come last. A representation that keeps each factor in one unit
    thus shows as a diagonal.

    Args:
        importance: (N, F).
        num_most: how many units to return, the most important ones; default: all.
    """
    strongest, weight = importance.argmax(axis=1), importance.max(axis=1)
    kept = sorted(range(len(importance)), key=lambda unit: -weight[unit])[:num_most]
    is_minor = weight <= MINOR * importance.max(axis=0)[strongest]
    return sorted(kept, key=lambda unit: (is_minor[unit], is_minor[unit] or strongest[unit], -weight[unit]))
