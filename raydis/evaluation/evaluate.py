"""Compute the metrics of codes and factors that come from anywhere, with intervals. M samples, N units, F factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raydis.errors import MetricError
from raydis.evaluation.inputs import Codes, check_codes, check_factors
from raydis.evaluation.intervals import Chance, is_complete_grid, of_one_run, of_runs, within
from raydis.evaluation.result import Estimate, Evaluation, Run
from raydis.metrics.importance import Estimator
from raydis.metrics.protocol import PUBLISHED, SEARCH, Protocol
from raydis.metrics.scoring import Outcome, derived_seed, measure
from raydis.metrics.table import METRICS, number_named, sizes_of

NUM_DRAWS = 10  # Student's 95 % interval is 2.3 standard deviations wide; with 3 draws, it would be 4.3
PROTOCOLS = {protocol.name: protocol for protocol in (SEARCH, PUBLISHED)}

Draw = dict[str, Outcome]  # the outcome of each metric


@dataclass(frozen=True)
class Progress:
    """How far an evaluation has come.

    Attributes:
        done, total: computations of a metric that have ended, and that there are.
        doing: what is being computed.
    """

    done: int
    total: int
    doing: str


@dataclass(frozen=True)
class _Plan:
    """The settings of an evaluation that every draw shares."""

    metrics: tuple[str, ...]
    protocol: Protocol
    seed: int
    num_draws: int
    over: Literal["rows", "draws"]
    num_jobs: int


def evaluate(
    codes: Any,
    factors: Any,
    *,
    factor_names: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    protocol: Literal["search", "published"] = "search",
    estimator: Estimator | None = None,
    seed: int = 0,
    num_draws: int | None = None,
    intervals: Literal["rows", "draws"] | None = None,
    confidence: float = 0.95,
    num_jobs: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Score a representation: how well its units separate the factors, with confidence intervals.

    >>> import numpy as np, raydis
    >>> factors = np.indices((5, 4, 3)).reshape(3, -1).T  # all combinations of three factors
    >>> result = raydis.evaluate(factors * [1.0, -2.0, 3.0], factors, metrics=["mig"], num_draws=2)
    >>> bool(result["mig"] > 0.95)
    True

    Args:
        codes: (M, N), or (M, N, D), of which each unit is first reduced to its first principal component. For several
            training runs, a list or a dictionary (name -> codes) of such arrays. A data frame works as well.
        factors: (M, F), the level of each factor: integers, whole floats or text. Any set of combinations may occur.
        factor_names: F names.
        metrics: names in `raydis.metrics.table.METRICS`; default: all.
        protocol: "search" fits DCI by `hist`, "published" by `reference`, which takes ten times as long. Both score all
            given rows.
        estimator: another classifier for DCI.
        seed: of the draw that gives the numbers.
        num_draws: how often each metric is computed for a run; all draws after the first serve the interval. Default:
            10, or 1 if several runs are given.
        intervals: whether an interval contains the chance in the rows (bootstrap) or only that in the metrics' own
            random "draws". Default: "rows", except for a complete grid of factors, which is no sample of anything.
            Several runs have intervals over the runs instead.
        confidence: of the intervals, between 0 and 1.
        num_jobs: processes. The numbers do not depend on it.
        on_progress: called before each computation.

    Returns:
        The scores. A metric that cannot score the codes has a reason in the place of its numbers.

    Raises:
        MetricError: tables that cannot be scored, an unknown metric, or an argument out of range.
    """
    chosen = _chosen(metrics)
    if protocol not in PROTOCOLS:
        raise MetricError(f"there is no protocol {protocol!r}: use {' or '.join(PROTOCOLS)}")
    if intervals not in (None, "rows", "draws"):
        raise MetricError(f"intervals={intervals!r} must be 'rows' or 'draws'")
    if not 0.0 < confidence < 1.0:
        raise MetricError(f"confidence={confidence} must lie between 0 and 1, such as 0.95")
    table = check_factors(factors, factor_names)
    runs = check_codes(codes, num_rows=len(table.levels))
    num_draws = num_draws if num_draws is not None else NUM_DRAWS if len(runs) == 1 else 1
    if min(num_draws, num_jobs) < 1 or seed < 0:
        raise MetricError(f"{num_draws=} and {num_jobs=} must be at least 1, and {seed=} at least 0")
    settings = PROTOCOLS[protocol]
    plan = _Plan(
        metrics=chosen,
        protocol=replace(settings, estimator=estimator or settings.estimator),
        seed=seed,
        num_draws=num_draws,
        over=intervals or ("draws" if is_complete_grid(table.levels) else "rows"),
        num_jobs=num_jobs,
    )
    draws = list(_all_draws(runs, table.levels, plan, on_progress or (lambda _: None)))
    per_run = [draws[place : place + num_draws] for place in range(0, len(draws), num_draws)]
    scored = tuple(_run_of(run, own, confidence) for run, own in zip(runs, per_run, strict=True))
    first, several = scored[0], len(scored) > 1
    chance: Chance | None = "runs" if several else plan.over if num_draws > 1 else None
    sizes = sizes_of(plan.protocol)
    return Evaluation(
        estimates=_over_runs(scored, confidence) if several else first.estimates,
        chance=chance,
        confidence=confidence,
        runs=scored,
        factor_names=table.names,
        num_levels=tuple(len(np.unique(column)) for column in table.levels.T),
        num_samples=len(table.levels),
        num_draws=num_draws,
        protocol=plan.protocol.name,
        estimator=plan.protocol.estimator,
        sizes={name: sizes[name] for name in chosen},
        seed=seed,
        notes=table.notes,
    )


def _chosen(metrics: Sequence[str] | None) -> tuple[str, ...]:
    """Return the metrics to compute, in the order of the table."""
    if metrics is None:
        return tuple(METRICS)
    for name in metrics:
        if name not in METRICS:
            raise MetricError(f"there is no metric {name!r}: choose from {', '.join(METRICS)}")
    if not metrics:
        raise MetricError(f"no metric was chosen: choose from {', '.join(METRICS)}")
    return tuple(name for name in METRICS if name in metrics)


def _all_draws(
    runs: Sequence[Codes], levels: NDArray[np.int64], plan: _Plan, tell: Callable[[Progress], None]
) -> Iterator[Draw]:
    """Yield the draws of the first run, then those of the next, and tell how far the work has come."""
    tasks = [(run, number) for run in runs for number in range(1, plan.num_draws + 1)]
    if plan.num_jobs == 1 or len(tasks) == 1:  # a single draw shares its processes out among the fits
        for place, (run, number) in enumerate(tasks):
            doing = _doing(run, number, runs, plan)
            total = len(tasks) * len(plan.metrics)

            def start(metric: int, place: int = place, doing: str = doing, total: int = total) -> None:
                done = place * len(plan.metrics) + metric
                tell(Progress(done, total, f"{plan.metrics[metric]}{doing}"))

            yield _draw(run.scalars, levels, number, plan, plan.num_jobs, start)
        return
    from sklearn.utils import parallel as stubless  # pyright: ignore[reportMissingTypeStubs]  (scikit-learn has no types)

    library: Any = stubless

    # max_nbytes=None: pickle the tables instead of sharing them in /dev/shm, which is small in containers.
    workers = library.Parallel(n_jobs=plan.num_jobs, backend="loky", max_nbytes=None, return_as="generator")
    jobs = (library.delayed(_draw)(run.scalars, levels, number, plan) for run, number in tasks)
    tell(Progress(0, len(tasks), f"{len(tasks)} draws of {len(plan.metrics)} metrics"))
    for place, (drawn, (run, number)) in enumerate(zip(workers(jobs), tasks, strict=True), 1):
        tell(Progress(place, len(tasks), f"draws of {len(plan.metrics)} metrics{_doing(run, number, runs, plan)}"))
        yield drawn


def _doing(run: Codes, number: int, runs: Sequence[Codes], plan: _Plan) -> str:
    """Return ` of RUN, draw 2 of 10`, without the parts that there is only one of."""
    of_run = f" of {run.name}" if len(runs) > 1 else ""
    return of_run + (f", draw {number} of {plan.num_draws}" if plan.num_draws > 1 else "")


def _draw(
    scalars: NDArray[np.float64],
    levels: NDArray[np.int64],
    number: int,
    plan: _Plan,
    num_jobs: int = 1,
    start: Callable[[int], None] = lambda _: None,
) -> Draw:
    """Compute every metric once. The first draw is of the table itself, and its seed is that of the plan."""
    seed = plan.seed if number == 1 else derived_seed(plan.seed, f"draw {number}")
    if number > 1 and plan.over == "rows":
        rng = np.random.default_rng(derived_seed(plan.seed, f"rows {number}"))
        rows = rng.integers(len(scalars), size=len(scalars))
        scalars, levels = scalars[rows], levels[rows]
    outcomes: Draw = {}
    for place, name in enumerate(plan.metrics):
        start(place)
        try:
            outcomes[name] = measure(name, scalars, levels, protocol=plan.protocol, seed=seed, num_jobs=num_jobs)
        except MetricError as error:  # it needs what these tables lack; the others may still score them
            outcomes[name] = Outcome("invalid", str(error))
    return outcomes


def _run_of(run: Codes, draws: Sequence[Draw], confidence: float) -> Run:
    """Return the scores of one run from its draws.

    Raises:
        MetricError: no metric can score the codes.
    """
    first = draws[0]
    if not any(outcome.status == "valid" for outcome in first.values()):
        raise MetricError(f"no metric can score {run.name}: {next(iter(first.values())).reason}")
    estimates: list[Estimate] = []
    details: dict[str, Any] = {}
    for metric, outcome in first.items():
        details |= outcome.details
        same = [draw[metric] for draw in draws]
        complete = len(same) > 1 and all(each.status == "valid" for each in same)
        for number in METRICS[metric].numbers:
            if outcome.status != "valid":
                estimates.append(Estimate(number.name, None, reason=outcome.reason))
                continue
            value = outcome.values[number.name]
            if not complete:
                estimates.append(Estimate(number.name, value))
                continue
            spread, half = of_one_run([each.values[number.name] for each in same], confidence=confidence)
            low, high = within(value, half, (number.low, number.high))
            estimates.append(Estimate(number.name, value, spread, low, high))
    return Run(run.name, run.unit_names, tuple(estimates), details)


def _over_runs(runs: Sequence[Run], confidence: float) -> tuple[Estimate, ...]:
    """Return the mean of each number over the runs. A number that a run lacks has none."""
    found: list[Estimate] = []
    for same in zip(*(run.estimates for run in runs), strict=True):
        name = same[0].name
        values = [each.value for each in same if each.value is not None]
        if len(values) < len(runs):
            run, without = next((run, each) for run, each in zip(runs, same, strict=True) if each.value is None)
            found.append(Estimate(name, None, reason=f"{run.name}: {without.reason}"))
            continue
        number = number_named(name)
        spread, half = of_runs(values, confidence=confidence)
        mean = float(np.mean(values))
        found.append(Estimate(name, mean, spread, *within(mean, half, (number.low, number.high))))
    return tuple(found)
