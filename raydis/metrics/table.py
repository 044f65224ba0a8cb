"""The table METRICS of all metrics of codes and factors that raydis computes.

Scores, objectives of a sweep, tables, reports and promotion take the names, titles and ranges of numbers from it. To
add a metric, write its function in a file of its own and add one entry to METRICS; `tests/contracts/test_metric.py`
then tests it.

Metrics are computed and shown in the order of the table. The evaluation stops at the first metric that cannot score the
codes, so cheap metrics come before expensive ones.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from raydis.errors import MetricError
from raydis.metrics.checks import Status
from raydis.metrics.dci import dci
from raydis.metrics.factor_vae import factor_vae
from raydis.metrics.grouped import grouped_dci, leakage
from raydis.metrics.mig import mig
from raydis.metrics.protocol import Protocol

Direction = Literal["max", "min"]
Need = Literal["discrete_factors", "two_units", "vectors"]
Option = Literal["estimator", "num_jobs", "groups"]


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
        options: further arguments that the function takes: the protocol's `estimator`, `num_jobs` processes, or
            `groups`, the unit of each column of the codes.
        needs: requirements that `measure` checks: factors that are integer levels, of which two vary, and at least two
            units. A metric that needs `vectors` gets all scalars of all units as codes. It is computed only for methods
            whose units are vectors.
        details: additional results that scores store: name -> attribute of the result, a number or an array.
    """

    function: Callable[..., Result]
    numbers: tuple[Number, ...]
    sizes: Mapping[str, float] = field(default_factory=dict[str, float])
    options: tuple[Option, ...] = ()
    needs: tuple[Need, ...] = ("discrete_factors",)
    details: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def headline(self) -> Number:
        """The number that represents the metric where only one is shown."""
        return self.numbers[0]


METRICS: dict[str, Metric] = {
    "factor_vae": Metric(
        function=factor_vae,
        numbers=(Number("factor_vae", field="score", short="fvae", title="FactorVAE score"),),
        sizes={
            "num_variance": 10_000,
            "num_train": 10_000,
            "num_eval": 5_000,
            "batch_size": 64,
            "prune_threshold": 0.05,  # standard deviation, in raw code values, below which a unit is left out
        },
        details={"num_active_units": "num_active"},
    ),
    "dci": Metric(
        function=dci,
        numbers=(
            Number("dci_disentanglement", field="disentanglement", short="dci", title="DCI disentanglement"),
            Number("dci_completeness", field="completeness", short="completeness", title="DCI completeness"),
            Number(
                "dci_informativeness", field="informativeness", short="informativeness", title="DCI informativeness"
            ),
        ),
        sizes={"num_train": 10_000, "num_test": 5_000},
        options=("estimator", "num_jobs"),
        details={"importance": "importance"},
    ),
    "mig": Metric(
        function=mig,
        numbers=(Number("mig", field="score", short="mig", title="MIG"),),
        sizes={"num_samples": 10_000, "num_bins": 20},
        needs=("discrete_factors", "two_units"),
    ),
    "scalar_factor_vae": Metric(
        function=factor_vae,
        numbers=(Number("scalar_factor_vae", field="score", short="fvae*", title="FactorVAE score of all scalars"),),
        sizes={
            "num_variance": 10_000,
            "num_train": 10_000,
            "num_eval": 5_000,
            "batch_size": 64,
            "prune_threshold": 0.05,  # the scalars of a unit have a mean variance of 1, see `all_scalars`
        },
        needs=("discrete_factors", "vectors"),
        details={"num_active_scalars": "num_active"},
    ),
    "grouped_dci": Metric(
        function=grouped_dci,
        numbers=(
            Number("grouped_disentanglement", field="disentanglement", short="gdci", title="Grouped disentanglement"),
            Number("grouped_completeness", field="completeness", short="gcompleteness", title="Grouped completeness"),
            Number("scalar_disentanglement", field="scalar_disentanglement", short="dci*", title="DCI of all scalars"),
            Number(
                "scalar_completeness",
                field="scalar_completeness",
                short="completeness*",
                title="DCI completeness of all scalars",
            ),
            Number(
                "scalar_informativeness",
                field="informativeness",
                short="informativeness*",
                title="DCI informativeness of all scalars",
            ),
        ),
        sizes={"num_train": 10_000, "num_test": 5_000},
        options=("estimator", "num_jobs", "groups"),
        needs=("discrete_factors", "vectors"),
        details={"grouped_importance": "importance"},
    ),
    "leakage": Metric(
        function=leakage,
        numbers=(
            Number("unit_gap", field="gap", short="gap", title="Gap between units"),
            Number("unit_leakage", field="leakage", short="leakage", title="Leakage between units", direction="min"),
        ),
        sizes={"num_train": 10_000, "num_test": 5_000},
        options=("estimator", "groups"),
        needs=("discrete_factors", "two_units", "vectors"),
        details={"unit_accuracy": "accuracy"},
    ),
}


def computed(*, vectors: bool) -> dict[str, Metric]:
    """Return the metrics that are computed for units that are vectors, or for units that are scalars, by name."""
    return {name: metric for name, metric in METRICS.items() if vectors or "vectors" not in metric.needs}


def numbers(*, vectors: bool = True) -> dict[str, Number]:
    """Return the numbers of all metrics by name, in the order of the table; see `computed` for `vectors`."""
    return {number.name: number for metric in computed(vectors=vectors).values() for number in metric.numbers}


def number_named(name: str) -> Number:
    """Return a number by its name.

    Raises:
        MetricError: no metric has this number. The message suggests the nearest name.
    """
    known = numbers()
    if name in known:
        return known[name]
    near = METRICS[name].headline.name if name in METRICS else _nearest(name)
    hint = f"; did you mean {near}?" if near else "."
    raise MetricError(f"no metric gives a number named {name}{hint} The known names are {', '.join(known)}")


def _nearest(name: str) -> str | None:
    return next(iter(difflib.get_close_matches(name, numbers(), n=1, cutoff=0.5)), None)


def sizes_of(protocol: Protocol) -> dict[str, dict[str, float]]:
    """Return the sample sizes of all metrics under a protocol, by metric and argument, as scores store them.

    Raises:
        MetricError: the protocol overrides a size that no metric has.
    """
    sizes = {name: dict(metric.sizes) for name, metric in METRICS.items()}
    for name, changed in protocol.overrides.items():
        known = sizes.get(name, {})
        if unknown := changed.keys() - known.keys():
            raise MetricError(
                f"protocol {protocol.name} overrides {', '.join(sorted(unknown))} of {name}, which it does not have: "
                f"its sizes are {', '.join(known) or 'none'}"
            )
        known.update(changed)
    return sizes
