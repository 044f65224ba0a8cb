"""Summarise the trials of a sweep: their records, the Pareto front, the best trial, and the tables with all of them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from raydis.engine.record import RunRecord
from raydis.metrics.standing import Objective, best_of, missing
from raydis.metrics.table import METRICS
from raydis.store import Store

State = Literal["complete", "stopped", "failed", "interrupted", "running"]


@dataclass(frozen=True)
class TrialRecord:
    """The outcome of one trial so far.

    Attributes:
        number, control: the number of the trial, and the name of the control run if it was one.
        settings: dotted key of the run -> value.
        state, reason: a `complete` trial has valid, finite scores; a `stopped` one was ended early, so that others
            could go on; a `failed` one has no valid scores; an `interrupted` one has not ended, and continues with its
            sweep. Each but a complete and a `running` one has a reason.
        run: the last record of its run.
        time_s: time from the start of the trial to that record; None if there was none.
        checkpoint: folder or s3:// URI of its last checkpoint.
    """

    number: int
    control: str | None
    settings: dict[str, Any]
    state: State
    reason: str | None
    run: RunRecord
    time_s: float | None
    checkpoint: str | None

    @property
    def ended(self) -> bool:
        """Whether the trial has ended, and is not run again."""
        return self.state in ("complete", "stopped", "failed")

    def value(self, metric: str) -> float | None:
        """Return a score by name; None if the trial does not have it."""
        return self.run.values().get(metric)

    def spread(self, metric: str) -> float | None:
        """Return a score's standard deviation over its draws; None if it is unknown."""
        scores = self.run.scores
        return scores.spread.get(metric) if scores and scores.spread else None


def pareto_front(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> set[int]:
    """Return the numbers of the complete trials that no other complete trial dominates."""
    points = {
        number: np.array([goal.oriented(values[goal.metric]) for goal in objectives])
        for number, values in _rankable(records, objectives).items()
    }
    return {
        number
        for number, mine in points.items()
        if not any((theirs >= mine).all() and (theirs > mine).any() for theirs in points.values())
    }


def choose_best(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> TrialRecord | None:
    """Return the complete trial with the highest standing, the earliest among equals; None if there is none."""
    number = best_of(_rankable(records, objectives), objectives)
    return next((record for record in records if record.number == number), None)


def _rankable(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> dict[int, dict[str, float]]:
    """Return the scores of the trials that are complete and have a standing, by number."""
    found = {}
    for record in records:
        values = record.run.values()
        if record.state == "complete" and not missing(values, objectives):
            found[record.number] = values
    return found


def images_by_state(records: Sequence[TrialRecord]) -> dict[State, int]:
    """Return how many images the trials of each state have seen."""
    spent = dict[State, int]()
    for record in records:
        spent[record.state] = spent.get(record.state, 0) + (record.run.images_seen or 0)
    return spent


@dataclass(frozen=True)
class Replicates:
    """The runs of a control with several seeds, taken together.

    Attributes:
        control: name of the control.
        num_runs, num_complete: number of its runs, and of those that can be ranked.
        mean, std: mean and sample standard deviation over the complete runs, by metric; std needs two runs.
    """

    control: str
    num_runs: int
    num_complete: int
    mean: dict[str, float]
    std: dict[str, float]


def replicates(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[Replicates]:
    """Return the mean and standard deviation of each control that ran with several seeds, in their order."""
    groups: dict[str, list[TrialRecord]] = {}
    for record in records:
        name, _, seed = (record.control or "").rpartition("/")
        if name and seed:
            groups.setdefault(name, []).append(record)
    found = []
    for control, runs in groups.items():
        done = list(_rankable(runs, objectives).values())
        values = {goal.metric: [scored[goal.metric] for scored in done] for goal in objectives}
        mean = {name: float(np.mean(column)) for name, column in values.items() if done}
        std = {name: float(np.std(column, ddof=1)) for name, column in values.items() if len(done) > 1}
        found.append(Replicates(control, len(runs), len(done), mean, std))
    return found


def write_tables(store: Store, folder: str, records: Sequence[TrialRecord], front: set[int]) -> None:
    """Write trials.csv and trials.parquet, with a row for each trial and a column for each setting."""
    table = trials_table(records, front)
    parquet, text = io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(table, parquet)
    pyarrow.csv.write_csv(table, text)
    store.write(f"{folder}/trials.parquet", parquet.getvalue())
    store.write(f"{folder}/trials.csv", text.getvalue())


def trials_table(records: Sequence[TrialRecord], front: set[int]) -> pa.Table:
    """Return the records as a table, with the numbers of the default metrics and of all others that were computed.

    Settings of mixed types, or other than numbers, texts and booleans, are JSON.
    """
    scores = [record.run.scores for record in records]
    computed = {name for found in scores if found for name in found.sizes}
    shown = [metric for name, metric in METRICS.items() if metric.default or name in computed]
    names = [number.name for metric in shown for number in metric.numbers]
    columns: dict[str, list[Any]] = {
        "number": [record.number for record in records],
        "control": [record.control for record in records],
        "state": [record.state for record in records],
        "on_front": [record.number in front for record in records],
        **{name: [record.value(name) for record in records] for name in names},
        "num_active_units": [found.details.get("num_active_units") if found else None for found in scores],
        **{f"{name}_spread": [record.spread(name) for record in records] for name in names},
        "images_seen": [record.run.images_seen or 0 for record in records],
        "loss": [record.run.loss for record in records],
        "time_s": [_rounded(record.time_s) for record in records],
        "reason": [record.reason for record in records],
        "checkpoint": [record.checkpoint for record in records],
    }
    for key in dict.fromkeys(key for record in records for key in record.settings):
        columns[key] = _uniform([record.settings.get(key) for record in records])
    return pa.table(columns)


def to_json(records: Sequence[TrialRecord], front: set[int]) -> list[dict[str, Any]]:
    """Return the records as rows that JSON can hold, with all of their scores."""
    return [
        {
            "number": record.number,
            "control": record.control,
            "settings": record.settings,
            "state": record.state,
            "reason": record.reason,
            "on_front": record.number in front,
            "scores": record.run.scores.to_dict() if record.run.scores else None,
            "images_seen": record.run.images_seen or 0,
            "loss": loss if (loss := record.run.loss) is not None and math.isfinite(loss) else None,
            "time_s": _rounded(record.time_s),
            "checkpoint": record.checkpoint,
        }
        for record in records
    ]


def _rounded(time_s: float | None) -> float | None:
    return None if time_s is None else round(time_s, 3)


def _uniform(values: list[Any]) -> list[Any]:
    kinds = {type(value) for value in values if value is not None}
    plain = kinds <= {int, float} or kinds in ({str}, {bool})
    return values if plain else [None if value is None else json.dumps(value) for value in values]
