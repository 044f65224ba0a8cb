"""Compute the metrics of runs, once or several times each, in one process or many. M samples, N units, F factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raydis.errors import MetricError
from raydis.evaluation.inputs import Codes
from raydis.metrics.protocol import Protocol
from raydis.metrics.sampling import LevelIndex
from raydis.metrics.scoring import Outcome, derived_seed, measure
from raydis.metrics.table import METRICS, metrics_of

Draw = dict[str, Outcome]  # the outcome of each metric


@dataclass(frozen=True)
class Progress:
    """How far an evaluation has come.

    Attributes:
        done, total: the parts of the work that have ended, and that there are.
        doing: what is being computed.
    """

    done: int
    total: int
    doing: str


@dataclass(frozen=True)
class Plan:
    """The settings that all draws of an evaluation share; see `raydis.evaluate`."""

    protocol: Protocol
    seed: int
    num_draws: int
    intervals: Literal["rows", "draws"]
    num_jobs: int

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics to compute, in the order of the table."""
        return metrics_of(self.protocol)


def draw_all(
    runs: Sequence[Codes], levels: NDArray[np.int64], plan: Plan, tell: Callable[[Progress], None]
) -> list[list[Draw]]:
    """Return the draws of each run.

    Args:
        runs: the codes of each run.
        levels: (M, F).
        plan: settings.
        tell: called with the progress, before each computation in one process, and after each draw in several.
    """
    compute = _in_turn if plan.num_jobs == 1 or len(runs) * plan.num_draws == 1 else _in_processes
    drawn = list(compute(runs, levels, plan, tell))
    return [drawn[place : place + plan.num_draws] for place in range(0, len(drawn), plan.num_draws)]


def _in_turn(
    runs: Sequence[Codes], levels: NDArray[np.int64], plan: Plan, tell: Callable[[Progress], None]
) -> Iterator[Draw]:
    """Yield all draws, one after the other. A metric may still fit its predictors in several processes."""
    tasks, num_metrics = _tasks(runs, plan), len(plan.metrics)
    for place, (run, number) in enumerate(tasks):

        def start(metric: int, before: int = place * num_metrics, name: str = _name(run, number, runs, plan)) -> None:
            tell(Progress(before + metric, len(tasks) * num_metrics, f"{plan.metrics[metric]}{name}"))

        yield _draw(run.scalars, levels, number, plan, plan.num_jobs, start)


def _in_processes(
    runs: Sequence[Codes], levels: NDArray[np.int64], plan: Plan, tell: Callable[[Progress], None]
) -> Iterator[Draw]:
    """Yield all draws, each of which one of several processes computes."""
    from sklearn.utils import parallel as stubless  # pyright: ignore[reportMissingTypeStubs]  (scikit-learn has no types)

    library: Any = stubless
    tasks, of_metrics = _tasks(runs, plan), f" of {len(plan.metrics)} metrics" * (len(plan.metrics) > 1)
    # max_nbytes=None: pickle the tables instead of sharing them in /dev/shm, which is small in containers.
    processes = library.Parallel(
        n_jobs=min(plan.num_jobs, len(tasks)), backend="loky", max_nbytes=None, return_as="generator"
    )
    drawn = processes(library.delayed(_draw)(run.scalars, levels, number, plan) for run, number in tasks)
    tell(Progress(0, len(tasks), f"{len(tasks)} draws{of_metrics or f' of {plan.metrics[0]}'}"))
    for place, draw in enumerate(drawn, 1):
        run, number = tasks[min(place, len(tasks) - 1)]
        tell(Progress(place, len(tasks), f"{len(plan.metrics)} metrics{_name(run, number, runs, plan)}"))
        yield draw


def _tasks(runs: Sequence[Codes], plan: Plan) -> list[tuple[Codes, int]]:
    return [(run, number) for run in runs for number in range(1, plan.num_draws + 1)]


def _name(run: Codes, number: int, runs: Sequence[Codes], plan: Plan) -> str:
    """Return ` of RUN, draw 2 of 10`, without the parts that there is only one of."""
    of_run = f" of {run.name}" if len(runs) > 1 else ""
    return of_run + (f", draw {number} of {plan.num_draws}" if plan.num_draws > 1 else "")


def _draw(
    scalars: NDArray[np.float64],
    levels: NDArray[np.int64],
    number: int,
    plan: Plan,
    num_jobs: int = 1,
    start: Callable[[int], None] = lambda _: None,
) -> Draw:
    """Compute every metric once. The first draw is of the table itself, and its seed is that of the plan."""
    seed = plan.seed if number == 1 else derived_seed(plan.seed, f"draw {number}")
    if number > 1 and plan.intervals == "rows":
        rng = np.random.default_rng(derived_seed(plan.seed, f"rows {number}"))
        rows = rng.integers(len(scalars), size=len(scalars))
        scalars, levels = scalars[rows], levels[rows]
    outcomes: Draw = {}
    index = LevelIndex.of(levels) if any("index" in METRICS[name].options for name in plan.metrics) else None
    for place, name in enumerate(plan.metrics):
        start(place)
        try:
            outcomes[name] = measure(
                name, scalars, levels, protocol=plan.protocol, seed=seed, num_jobs=num_jobs, index=index
            )
        except MetricError as error:  # it needs what these tables lack; the others may still score them
            outcomes[name] = Outcome("invalid", str(error))
    return outcomes
