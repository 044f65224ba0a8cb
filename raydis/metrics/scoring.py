"""Score a representation: compute all metrics from a table of codes and factors.

M samples, N units, D unit width, F factors.

A metric depends on random samples of the table. As in published results, each number comes from one draw of these
samples, with the configured seed. NUM_DRAWS - 1 further draws with other seeds show how much the samples matter: the
`spread` of a number is its standard deviation over all draws. It does not contain the randomness of training, which
only several training runs can show. The cost is about that of DCI times the number of draws. For the quickstart (12
units, 21 levels) it is 6.5 CPU-seconds instead of 2.5 with `hist`, at the end of a trial of 200 seconds, and 90 instead
of 30 with `reference`, shared between `num_jobs` processes. Two draws would not be enough, because they often agree by
chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_table
from raydis.metrics.entry import Option
from raydis.metrics.importance import Estimator
from raydis.metrics.protocol import Protocol
from raydis.metrics.representation import all_scalars, per_unit_pca
from raydis.metrics.sampling import LevelIndex
from raydis.metrics.scores import Scores, unscored
from raydis.metrics.table import METRICS, check_needs, metrics_of, sizes_of

NUM_DRAWS = 3


@dataclass(frozen=True)
class Outcome:
    """The result of one metric.

    Attributes:
        status, reason: "invalid" and the reason if the codes cannot be scored.
        values: its numbers by name; empty unless the status is "valid".
        details: additional results, as plain numbers and lists; see `Scores.details`.
    """

    status: Status
    reason: str | None
    values: dict[str, float] = field(default_factory=dict[str, float])
    details: dict[str, Any] = field(default_factory=dict[str, Any])


def measure(
    name: str,
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    protocol: Protocol,
    seed: int,
    num_jobs: int = 1,
    groups: ArrayLike | None = None,
    shared: Mapping[Option, Any] | None = None,
) -> Outcome:
    """Compute one metric by a protocol.

    Args:
        name: key in METRICS.
        codes: (M, N), one scalar per unit; for a metric that needs vectors (M, S), all scalars of all units.
        factors: (M, F), integers.
        protocol: sample sizes and estimator. It need not compute the metric.
        seed: of the generator for this metric.
        num_jobs: processes for metrics that can use several. It does not change any number.
        groups: (S,), the unit of each column of codes; None for one scalar per unit.
        shared: options that metrics of the same codes and factors share. They do not change any number.

    Returns:
        The metric's numbers; an invalid outcome without numbers if the metric cannot score the codes, or if one of its
        numbers is not finite.

    Raises:
        MetricError: a table that cannot be scored, such as one that lacks what the metric `needs`.
    """
    metric, sizes = METRICS[name], sizes_of(replace(protocol, metrics=(name,)))[name]
    check_needs(name, codes, factors)
    options: dict[Option, Any] = {
        "estimator": protocol.estimator,
        "num_jobs": num_jobs,
        "groups": groups,
        **(shared or {}),
    }
    result = metric.function(
        codes,
        factors,
        rng=np.random.default_rng(seed),
        **sizes,
        **{option: options[option] for option in metric.options if option in options},
    )
    if result.status != "valid":
        return Outcome(result.status, result.reason)
    values = {number.name: float(getattr(result, number.field)) for number in metric.numbers}
    if broken := [f"{number} is {value}" for number, value in values.items() if not math.isfinite(value)]:
        return Outcome("invalid", f"{', '.join(broken)}: the metric {name} has no finite value for these codes")
    return Outcome(
        "valid", None, values, {kept: _plain(getattr(result, attribute)) for kept, attribute in metric.details.items()}
    )


def score(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    protocol: Protocol,
    data_fingerprint: str,
    widths: Sequence[int] | None = None,
    estimator: Estimator | None = None,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
    num_jobs: int = 1,
) -> Scores:
    """Compute the protocol's metrics of a representation, and the spread of each number over several draws.

    Each metric uses a new generator with the same seed, so that no number depends on the other metrics.

    Args:
        codes: (M, N), or (M, N, D), of which each unit is first reduced to its first principal component.
        factors: (M, F), integers.
        protocol: the metrics and their sample sizes. "all" leaves out those that the table lacks something for,
            and for units that are scalars those of vectors.
        data_fingerprint: identifies the data set and the rows that are scored.
        widths: N widths of units that are vectors, whose codes (M, N, D) are zero beyond them; None for scalars.
        estimator: DCI's classifier; None takes the protocol's. With another estimator than `reference`, the scores
            of the published protocol name it, and cannot be compared with those of `reference`.
        seed: of the draw that gives the numbers. Use the same for every model of a study.
        num_draws: draws of every metric. All after the first have seeds derived from `seed`, and only give `spread`.
        num_jobs: processes for DCI's fits. It does not change any number.

    Returns:
        Valid scores, or invalid ones without numbers if a metric finds the codes invalid: they are not finite, have
        collapsed, or all lie below FactorVAE's `prune_threshold`.

    Raises:
        MetricError: a table that cannot be scored, or num_draws below 1.
    """
    if num_draws < 1:
        raise MetricError(f"{num_draws=} must be at least 1: the first draw gives the numbers")
    scalars, vectors = per_unit_pca(codes), None if widths is None else all_scalars(codes, widths)
    fitting = protocol.metrics
    if fitting == "all":
        fitting = fitting_metrics(scalars, factors, vectors=vectors is not None)
    protocol = replace(protocol, metrics=fitting, estimator=estimator or protocol.estimator)
    index = _index(factors, protocol)
    draw = partial(_draw, scalars, vectors, factors, protocol=protocol, num_jobs=num_jobs, index=index)
    first = draw(seed=seed)
    blank = unscored(
        "invalid",
        first.reason,
        protocol=protocol,
        num_images=len(scalars),
        data_fingerprint=data_fingerprint,
        seed=seed,
    )
    if first.status != "valid":
        return blank
    seeds = [derived_seed(seed, f"draw {number}") for number in range(2, num_draws + 1)]
    spread = _spread([first, *(draw(seed=each) for each in seeds)])
    found = {"values": first.values, "details": first.details, "num_draws": num_draws, "spread": spread}
    return replace(blank, status="valid", **found)


def fitting_metrics(codes: ArrayLike, factors: ArrayLike, *, vectors: bool = False) -> tuple[str, ...]:
    """Return the metrics whose needs codes (M, N) and factors (M, F) meet, in the order of the table.

    Args:
        codes: (M, N), one scalar per unit.
        factors: (M, F).
        vectors: whether the units are vectors. For scalars, the metrics of vectors repeat what others say.

    Raises:
        MetricError: the table cannot be scored by any metric of factors (see `check_table`).
    """
    check_table(codes, factors)
    found: list[str] = []
    for name, metric in METRICS.items():
        if "vectors" in metric.needs and not vectors:
            continue
        try:
            check_needs(name, codes, factors)
        except MetricError:
            continue
        found.append(name)
    return tuple(found)


def derived_seed(seed: int, stream: str) -> int:
    """Return the seed of a named stream of random numbers, independent of those of `seed` and of other streams."""
    return int(np.random.SeedSequence([seed, *stream.encode()]).generate_state(1)[0])


def _index(factors: ArrayLike, protocol: Protocol) -> LevelIndex | None:
    """Return the index of levels that several metrics and all draws share; None if they need none, or cannot use it."""
    levels = np.asarray(factors)
    used = any("index" in METRICS[name].options for name in metrics_of(protocol))
    if not used or levels.ndim != 2 or levels.dtype.kind not in "iub" or not levels.size:
        return None  # the metrics say what is wrong
    return LevelIndex.of(levels.astype(np.int64, copy=False))


def _draw(
    scalars: NDArray[np.float64],
    vectors: tuple[NDArray[np.float64], NDArray[np.intp]] | None,
    factors: ArrayLike,
    *,
    protocol: Protocol,
    seed: int,
    num_jobs: int,
    index: LevelIndex | None,
) -> Outcome:
    """Compute the metrics once. Return all numbers, or the first invalid outcome.

    Args:
        scalars: (M, N), one scalar per unit.
        vectors: (M, S) and (S,), all scalars of units that are vectors, and the unit of each; None for scalar units.
        factors: (M, F).
        protocol, seed, num_jobs, index: see `measure`.
    """
    shared: dict[Option, Any] = {"index": index, "known_fits": {}}
    run = partial(measure, factors=factors, protocol=protocol, seed=seed, num_jobs=num_jobs, shared=shared)
    values: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name in metrics_of(protocol):
        whole = vectors if "vectors" in METRICS[name].needs else None
        outcome = run(name, scalars) if whole is None else run(name, whole[0], groups=whole[1])
        # If one metric cannot score a representation, it is invalid as a whole: scores have all numbers or none.
        if outcome.status != "valid":
            return outcome
        values |= outcome.values
        details |= outcome.details
    return Outcome("valid", None, values, details)


def _spread(draws: Sequence[Outcome]) -> dict[str, float] | None:
    """Return the standard deviation of each number over the draws; None for one draw, or if a draw has no numbers."""
    if len(draws) < 2 or any(drawn.status != "valid" for drawn in draws):
        return None
    return {name: float(np.std([drawn.values[name] for drawn in draws], ddof=1)) for name in draws[0].values}


def _plain(value: Any) -> Any:
    """Return an array as nested lists, and a number as it is."""
    return np.asarray(value).tolist()
