"""The result of an arena: how each entrant's study and final ended, the table, and the tests.

A run without valid scores has no numbers. It is never counted as a score of 0, nor left out without being named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from raydis.arena.folder import Pretrained, Sweeps
from raydis.arena.spec import ArenaSpec
from raydis.metrics.comparison import PairedTest, holm, paired_test
from raydis.metrics.entry import Number
from raydis.metrics.scores import Scores
from raydis.metrics.standing import Objective, missing, standing
from raydis.metrics.table import numbers

State = Literal["complete", "incomplete", "failed", "pending"]


@dataclass(frozen=True)
class FinalRun:
    """One final run of an entrant.

    Attributes:
        seed: of its training.
        scores: by the `published` protocol; None for a run that failed.
        reason: why the run has no valid scores; None if it has.
        images_seen: training images.
        time_s: wall-clock time of the whole run, with its start and scoring; None if it is unknown.
        checkpoint: folder or s3:// URI; None if there is none.
    """

    seed: int
    scores: Scores | None
    reason: str | None
    images_seen: int
    time_s: float | None
    checkpoint: str | None

    @property
    def values(self) -> dict[str, float]:
        """The numbers by name; empty for a run without valid scores."""
        return dict(self.scores.values) if self.scores and self.reason is None else {}


@dataclass(frozen=True)
class Study:
    """The search for an entrant's best setting.

    Attributes:
        num_trials, num_ranked: trials that ended, and those with scores that could be ranked.
        images_seen, time_s: of all trials together.
        best: the settings of the best trial; None if no trial could be ranked.
        best_values: the numbers of that trial by the `search` protocol. They chose it, so they are too high on average.
        reasons: why trials have no scores, each once.
    """

    num_trials: int
    num_ranked: int
    images_seen: int
    time_s: float
    best: dict[str, Any] | None
    best_values: dict[str, float]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """What became of one entrant.

    Attributes:
        state: `complete` if all final runs have valid scores, `incomplete` if only some have, `failed` if none has or
            the study found no setting, `pending` if the arena has not got to its end.
        study: None if it has not ended.
        runs: final runs that have ended, in the order of the seeds.
        pretrained: the training of the model that all of its runs borrow; None if they borrow none.
    """

    name: str
    state: State
    study: Study | None
    runs: tuple[FinalRun, ...]
    pretrained: Pretrained | None = None

    @property
    def reasons(self) -> list[str]:
        """Why there is no number, or fewer than there should be; each reason once."""
        found = [run.reason for run in self.runs if run.reason] or (
            list(self.study.reasons) if self.study and self.study.best is None else []
        )
        return list(dict.fromkeys(found))

    def scored(self) -> dict[int, dict[str, float]]:
        """Return the numbers of the runs with valid scores, by seed."""
        return {run.seed: run.values for run in self.runs if run.values}

    def column(self, metric: str) -> list[float]:
        """Return a number of all runs that have it, in the order of the seeds."""
        return [values[metric] for values in self.scored().values() if metric in values]

    def mean(self, metric: str) -> float | None:
        """Return the mean over the runs with valid scores; None if there is none."""
        column = self.column(metric)
        return float(np.mean(column)) if column else None

    def std(self, metric: str) -> float | None:
        """Return the sample standard deviation over the runs with valid scores; None for fewer than two."""
        column = self.column(metric)
        return float(np.std(column, ddof=1)) if len(column) > 1 else None

    def worst(self, metric: str) -> float | None:
        """Return the number of the worst run with valid scores; None if there is none."""
        column = self.column(metric)
        return (min if numbers()[metric].direction == "max" else max)(column) if column else None

    def ranked_runs(self, objectives: Sequence[Objective]) -> list[FinalRun]:
        """Return the runs that have a standing, the best first."""
        found = [(standing(run.values, objectives), run) for run in self.runs if run.values]
        ranked = sorted([each for each in found if each[0] is not None], key=lambda each: -(each[0] or 0.0))
        return [run for _, run in ranked]


@dataclass(frozen=True)
class Comparison:
    """A paired test of two entrants by one metric, over the seeds with which both have valid scores.

    Attributes:
        first, second: entrants; `test.difference` is first - second.
        test: None if fewer than two seeds are common.
        corrected_p_value: `test.t_p_value`, corrected by Holm's procedure for the number of all tests of the arena;
            None if that is undefined.
    """

    first: str
    second: str
    metric: str
    test: PairedTest | None
    corrected_p_value: float | None


@dataclass(frozen=True)
class ArenaResult:
    """The result of an arena.

    Attributes:
        name, folder: the arena's name and folder; the folder is a path or s3:// URI.
        entries: all entrants, ordered by the mean standing of their final runs; those without come last.
        comparisons: of the focus with each other entrant, or of all pairs, by each objective.
        interrupted: whether some entrants are `pending`.
    """

    name: str
    folder: str
    entries: tuple[Entry, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def interrupted(self) -> bool:
        return any(entry.state == "pending" for entry in self.entries)

    @property
    def computed(self) -> dict[str, Number]:
        """The numbers that some final run has, by name, in the order of the table of metrics."""
        found = {name for entry in self.entries for run in entry.runs for name in run.values}
        return {name: number for name, number in numbers().items() if name in found}

    @property
    def num_tests(self) -> int:
        """The number of tests that Holm's procedure corrects for."""
        return sum(each.corrected_p_value is not None for each in self.comparisons)


def entry_of(spec: ArenaSpec, name: str, study: Sweeps, final: Sweeps, pretrained: Pretrained | None = None) -> Entry:
    """Return what became of an entrant, from what its sweeps have done."""
    found = None if study.summary is None else _study(study.summary)
    runs = sorted((_run(row, spec.objectives) for row in final.rows), key=lambda run: spec.seeds.index(run.seed))
    num_scored = sum(run.reason is None for run in runs)
    state: State = "pending"
    if found is not None and found.best is None:
        state = "failed"
    elif len(runs) == len(spec.seeds):
        state = "complete" if num_scored == len(runs) else "incomplete" if num_scored else "failed"
    return Entry(name, state, found, tuple(runs), pretrained)


def result_of(spec: ArenaSpec, entries: Sequence[Entry], *, name: str, folder: str) -> ArenaResult:
    """Return the result of an arena, with its entrants in order and the tests."""
    ranked = sorted(entries, key=lambda entry: _rank(entry, spec.objectives))
    return ArenaResult(name, folder, tuple(ranked), compare(spec, ranked))


def compare(spec: ArenaSpec, entries: Sequence[Entry]) -> tuple[Comparison, ...]:
    """Return the paired tests by each objective, corrected for the number of all of them.

    Entrants without any valid score are not tested.
    """
    present = [entry for entry in entries if entry.scored()]
    pairs = [
        (entry, other)
        for position, entry in enumerate(present)
        for other in present[position + 1 :]
        if spec.focus is None or spec.focus in (entry.name, other.name)
    ]
    if spec.focus is not None:
        pairs = [(one, other) if one.name == spec.focus else (other, one) for one, other in pairs]
    found = [
        (one, other, goal.metric, _test(one, other, goal.metric)) for goal in spec.objectives for one, other in pairs
    ]
    p_values = {
        position: test.t_p_value
        for position, (*_, test) in enumerate(found)
        if test is not None and test.t_p_value is not None
    }
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return tuple(
        Comparison(one.name, other.name, metric, test, corrected.get(position))
        for position, (one, other, metric, test) in enumerate(found)
    )


def _test(one: Entry, other: Entry, metric: str) -> PairedTest | None:
    ours, theirs = one.scored(), other.scored()
    seeds = [seed for seed in ours if seed in theirs]
    if len(seeds) < 2:
        return None
    return paired_test([ours[seed][metric] for seed in seeds], [theirs[seed][metric] for seed in seeds])


def _rank(entry: Entry, objectives: Sequence[Objective]) -> tuple[bool, bool, float]:
    """Return a key that sorts the better entrant first, an incomplete one after all complete ones."""
    standings = [found for run in entry.runs if (found := standing(run.values, objectives)) is not None]
    return not standings, entry.state != "complete", -float(np.mean(standings)) if standings else 0.0


def _study(summary: dict[str, Any]) -> Study:
    rows = summary["trials"]
    best = next((row for row in rows if row["number"] == summary["best"]), None)
    return Study(
        num_trials=len(rows),
        num_ranked=sum(row["state"] == "complete" for row in rows),
        images_seen=sum(row["images_seen"] for row in rows),
        time_s=sum(row["time_s"] or 0.0 for row in rows),
        best=best and best["settings"],
        best_values=Scores.from_dict(best["scores"]).values if best else {},
        reasons=tuple(dict.fromkeys(row["reason"] for row in rows if row["reason"])),
    )


def _run(row: dict[str, Any], objectives: Sequence[Objective]) -> FinalRun:
    scores = Scores.from_dict(row["scores"]) if row["scores"] else None
    reason = row["reason"]
    if row["state"] == "complete":
        reason = missing(scores.values if scores else {}, objectives) or None
    elif scores is not None and scores.status != "valid":
        reason = f"{scores.status.replace('_', ' ')}: {reason}"
    return FinalRun(
        seed=int(row["control"].rpartition("/")[2]),
        scores=scores,
        reason=reason,
        images_seen=row["images_seen"],
        time_s=row["time_s"],
        checkpoint=row["checkpoint"],
    )
