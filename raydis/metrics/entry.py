"""What an entry of the table of metrics holds: the function of a metric, its numbers, sizes and needs."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from raydis.metrics.checks import Status

Direction = Literal["max", "min"]
Need = Literal["discrete_factors", "binary_factors", "two_units", "vectors"]
Option = Literal["estimator", "num_jobs", "index", "known_fits", "groups"]


class Result(typing.Protocol):
    """The attributes that the results of all metrics share."""

    @property
    def status(self) -> Status:
        """The status: "valid", or "invalid" if the codes cannot be scored."""
        ...

    @property
    def reason(self) -> str | None:
        """The reason why there are no numbers; None if there are."""
        ...


@dataclass(frozen=True)
class Number:
    """One of the numbers that a metric returns.

    Attributes:
        name: key in scores, objectives, tables and reports to Ray. Unique among all metrics.
        field: attribute of the function's result that holds the number.
        short: heading of a narrow column.
        title: name in a report.
        low, high: the smallest and the largest possible value, both finite.
        direction: whether larger or smaller values are better.
    """

    name: str
    field: str
    short: str
    title: str
    low: float = 0.0
    high: float = 1.0
    direction: Direction = "max"


@dataclass(frozen=True)
class Metric:
    """A metric, with everything that the rest of raydis needs to know about it.

    Attributes:
        function: called as `function(codes, factors, rng=..., **sizes, **options)` with codes (M, N), factors (M, F)
            and a generator of its own. It raises MetricError for a table that can never be scored, and returns an
            invalid result for codes of a failed model.
        numbers: the numbers that it returns. Learning curves show the first one.
        sizes: sample sizes by argument of the function. Scores can be compared only if they are equal.
        options: further arguments that the function takes: the protocol's `estimator`, `num_jobs` processes, `groups`,
            the unit of each column of codes, or what several metrics share: the `index` of the factors' levels, and the
            `known_fits` of classifiers.
        needs: requirements that `measure` checks: factors that are integer levels, of which two vary; factors with two
            levels each; at least two units. A metric that needs `vectors` gets all scalars of units that are vectors
            as columns; units that are scalars count as vectors of one.
        details: additional results that scores store: name -> attribute of the result, a number or an array.
        default: whether it is computed if the protocol does not choose its metrics.
    """

    function: Callable[..., Result]
    numbers: tuple[Number, ...]
    sizes: Mapping[str, float] = field(default_factory=dict[str, float])
    options: tuple[Option, ...] = ()
    needs: tuple[Need, ...] = ("discrete_factors",)
    details: Mapping[str, str] = field(default_factory=dict[str, str])
    default: bool = False

    @property
    def headline(self) -> Number:
        """The number that represents the metric where only one is shown."""
        return self.numbers[0]
