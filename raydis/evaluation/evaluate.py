"""Score codes and factors that come from anywhere, with intervals. M samples, N units, D unit width, F factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from raydis.errors import MetricError
from raydis.evaluation.agreement import NOTE, with_udr
from raydis.evaluation.draws import Draw, Plan, Progress, draw_all
from raydis.evaluation.inputs import Codes, Factors, check_codes, check_factors
from raydis.evaluation.intervals import LEAST_DRAWS, around_first, around_mean, is_complete_grid
from raydis.evaluation.result import Estimate, Evaluation, Run
from raydis.evaluation.rotation import rotate
from raydis.metrics.entry import Number
from raydis.metrics.importance import Estimator
from raydis.metrics.protocol import PUBLISHED, SEARCH, Protocol
from raydis.metrics.scoring import fitting_metrics
from raydis.metrics.table import METRICS, metrics_of, number_named, sizes_of
from raydis.metrics.udr import NUM_SAMPLES, UDR

NUM_DRAWS = 10  # the 95 % interval then reaches 2.3 standard deviations to each side; with 3 draws, it would be 12.7
MAX_BIAS = 0.05  # share of a factor's entropy by which mutual information may be too high without a note
PROTOCOLS = {protocol.name: protocol for protocol in (SEARCH, PUBLISHED)}


def evaluate(
    codes: Any,
    factors: Any = None,
    *,
    factor_names: Sequence[str] | None = None,
    unit_widths: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    ica: bool = False,
    metrics: Sequence[str] | Literal["all"] | None = None,
    protocol: Literal["search", "published"] = "search",
    estimator: Estimator | None = None,
    seed: int = 0,
    num_draws: int | None = None,
    intervals: Literal["rows", "draws"] | None = None,
    confidence: float = 0.95,
    num_jobs: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Score a representation: how well its units separate the factors of its data, with confidence intervals.

    Args:
        codes: (M, N), or (M, N, D), of which each unit is first reduced to its first principal component (the metrics
            of vectors see all); an array or a data frame. For several runs, a list or a dictionary (name -> codes).
        factors: (M, F), the levels of the factors: integers, whole floats or text. Any combinations may occur. None is
            for "udr" alone.
        factor_names: F names.
        unit_widths: N widths of units that are vectors, if these have zeros beyond them.
        ica: whether to score the independent components of the units in their place.
        metrics: names in `raydis.metrics.table.METRICS`, or "udr" of several runs; or "all" that fit the tables.
            Default: those of the protocol.
        protocol: "search" fits DCI by `hist`; "published" by `reference`, as in papers, which takes ten times as long.
        estimator: another classifier for DCI.
        seed: of the draw that gives the numbers.
        num_draws: how often each metric is computed for a run. The draws after the first serve the interval alone.
            Default: 10, or 1 for several runs, which is without intervals for single runs.
        intervals: over the "rows" (bootstrap), or only over the random "draws" of the metrics. Default: "rows", but
            "draws" for a complete grid of factors. Those of several runs are over the runs.
        confidence: of the intervals, between 0 and 1.
        num_jobs: processes. The numbers do not depend on it.
        on_progress: called as the work goes on.

    Returns:
        The scores. A metric that cannot score the codes has a reason in the place of its numbers.

    Raises:
        MetricError: tables that no metric can score, an unknown metric, or an argument out of range.
    """
    settings: Protocol = _named(protocol, PROTOCOLS, "protocol")
    table, runs = _tables(codes, factors, factor_names, unit_widths, ica_seed=seed if ica else None)
    chosen, compares = _chosen(metrics, settings, runs, table)
    settings = replace(settings, estimator=estimator or settings.estimator, metrics=chosen)
    kind = intervals or ("draws" if is_complete_grid(table.levels) else "rows")
    num_draws = num_draws if num_draws is not None else NUM_DRAWS if len(runs) == 1 else 1
    plan = _checked(Plan(settings, seed, num_draws, kind, num_jobs), confidence)
    scored = _scored(runs, table, plan, confidence, on_progress or (lambda _: None))
    return _gathered(with_udr(scored, runs, seed=seed) if compares else scored, table, plan, confidence)


def _tables(
    codes: Any,
    factors: Any,
    factor_names: Sequence[str] | None,
    unit_widths: Sequence[int] | Mapping[str, Sequence[int]] | None,
    *,
    ica_seed: int | None,
) -> tuple[Factors, list[Codes]]:
    """Return the checked factors and codes. The latter are independent components, if there is a seed for ICA."""
    table = None if factors is None else check_factors(factors, factor_names)
    num_rows = None if table is None else len(table.levels)
    runs = check_codes(codes, num_rows=num_rows, unit_widths=unit_widths)
    if table is None:
        table = Factors(np.zeros((len(runs[0].scalars), 0), np.int64), ())
    if ica_seed is None:
        return table, runs
    rotated = [rotate(run, seed=ica_seed) for run in runs]
    return replace(table, notes=(*table.notes, *(note for _, note in rotated))), [run for run, _ in rotated]


def _scored(
    runs: Sequence[Codes], table: Factors, plan: Plan, confidence: float, tell: Callable[[Progress], None]
) -> tuple[Run, ...]:
    """Return the scores of each run by the metrics of the plan."""
    if not plan.protocol.metrics:
        return tuple(Run(run.name, run.unit_names, ()) for run in runs)
    draws = draw_all(runs, table.levels, plan, tell)
    return tuple(_run_of(run, own, plan, confidence) for run, own in zip(runs, draws, strict=True))


def _gathered(runs: tuple[Run, ...], table: Factors, plan: Plan, confidence: float) -> Evaluation:
    """Return the result: the scores of all runs, and the settings that led to them."""
    sizes: dict[str, dict[str, float]] = sizes_of(plan.protocol) if plan.protocol.metrics else {}
    notes = [*table.notes, *_few_rows(len(table.levels), sizes), *_rough_bins(table, sizes)]
    if any(estimate.name == UDR.name for estimate in runs[0].estimates):
        sizes[UDR.name] = {"num_samples": NUM_SAMPLES}
        notes.append(NOTE)
    first, several = runs[0], len(runs) > 1
    over_runs = "runs" if plan.protocol.metrics else None
    return Evaluation(
        estimates=_over_runs(runs, confidence) if several else first.estimates,
        intervals=over_runs if several else plan.intervals if plan.num_draws > 1 else None,
        confidence=confidence,
        runs=runs,
        factor_names=table.names,
        num_levels=tuple(len(np.unique(column)) for column in table.levels.T),
        num_samples=len(table.levels),
        num_draws=plan.num_draws,
        protocol=plan.protocol.name,
        estimator=plan.protocol.estimator,
        sizes=sizes,
        seed=plan.seed,
        notes=tuple(notes),
    )


def _chosen(
    metrics: Sequence[str] | None, protocol: Protocol, runs: Sequence[Codes], table: Factors
) -> tuple[tuple[str, ...], bool]:
    """Return the metrics to compute, in the order of the table, and whether UDR is one of them."""
    if not table.names:
        if metrics not in (UDR.name, [UDR.name], (UDR.name,)):
            raise MetricError(
                "there are no factors: give those of the same rows, or the codes of several runs and the metric udr "
                "alone, which needs none"
            )
        return (), True
    if metrics == "all":
        fitting = [set(fitting_metrics(run.scalars, table.levels, vectors=run.vectors is not None)) for run in runs]
        return tuple(name for name in METRICS if all(name in names for names in fitting)), len(runs) > 1
    listed = (metrics,) if isinstance(metrics, str) else metrics
    if listed is None:
        return metrics_of(replace(protocol, metrics=None)), False
    others = tuple(name for name in listed if name != UDR.name)
    compares = UDR.name in listed
    return () if compares and not others else metrics_of(replace(protocol, metrics=others)), compares


def _named(name: str, known: Mapping[str, Any], what: str) -> Any:
    if name not in known:
        raise MetricError(f"there is no {what} {name!r}: choose from {', '.join(known)}")
    return known[name]


def _checked(plan: Plan, confidence: float) -> Plan:
    """Return the plan, or raise MetricError for an argument out of range."""
    _named(plan.intervals, dict.fromkeys(("rows", "draws")), "kind of intervals")
    _named(plan.protocol.estimator, dict.fromkeys(get_args(Estimator)), "estimator")
    if not 0.0 < confidence < 1.0:
        raise MetricError(f"{confidence=} must lie between 0 and 1, such as 0.95")
    if min(plan.num_draws, plan.num_jobs) < 1 or plan.seed < 0:
        raise MetricError(
            f"num_draws={plan.num_draws} and num_jobs={plan.num_jobs} must be at least 1, seed={plan.seed} at least 0"
        )
    if 1 < plan.num_draws < LEAST_DRAWS:
        raise MetricError(
            f"num_draws={plan.num_draws} is too few for intervals: give at least {LEAST_DRAWS}, or 1 for none"
        )
    return plan


def _few_rows(num_rows: int, sizes: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a note if metrics fit predictors to most rows of the table, and test them on the same rows."""
    fitted = [size["num_train"] for size in sizes.values() if {"num_train", "num_test"} <= size.keys()]
    if not fitted or max(fitted) <= num_rows:
        return []
    return [
        f"as published, predictors are fitted to {max(fitted):,.0f} samples of these {num_rows:,} rows and tested on "
        "rows that they have seen, so numbers that measure a prediction (informativeness) are too high"
    ]


def _rough_bins(table: Factors, sizes: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a note if the mutual information of binned codes is far too high, because of few rows for many cells.

    That of an independent code with B bins and a factor with K levels is (B - 1) (K - 1) / (2 M) nats on average, to
    first order in the number of rows M (Miller, 1955), instead of 0.
    """
    num_bins = max((size["num_bins"] for size in sizes.values() if "num_bins" in size), default=1)
    num_rows, shares = len(table.levels), [0.0]
    for column in table.levels.T:
        frequency = np.unique(column, return_counts=True)[1] / num_rows
        if len(frequency) > 1:
            entropy = -float((frequency * np.log(frequency)).sum())
            shares.append((num_bins - 1) * (len(frequency) - 1) / (2 * num_rows * entropy))
    if max(shares) <= MAX_BIAS:
        return []
    return [
        f"with {num_rows:,} rows and {num_bins:g} bins, a unit that knows nothing seems to know about "
        f"{100 * min(max(shares), 1.0):.0f} % of a factor, which distorts what rests on bins (MIG, modularity, MED)"
    ]


def _run_of(run: Codes, draws: Sequence[Draw], plan: Plan, confidence: float) -> Run:
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
            values = [each.values[number.name] for each in same]
            estimates.append(_estimate(number, value, *around_first(values, confidence=confidence)))
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
        if name == UDR.name:
            found.append(Estimate(name, float(np.mean(values))))
            continue
        mean, (spread, half) = float(np.mean(values)), around_mean(values, confidence=confidence)
        found.append(_estimate(number_named(name), mean, spread, half))
    return tuple(found)


def _estimate(number: Number, value: float, spread: float, half: float) -> Estimate:
    """Return a value with its interval, which is cut where it leaves the range that the number can have."""
    return Estimate(number.name, value, spread, max(value - half, number.low), min(value + half, number.high))
