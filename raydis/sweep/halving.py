"""Decide which trials go on: asynchronous successive halving by several objectives. This file knows nothing of Ray.

A rung is an amount of progress, such as a number of images seen, at which trials are compared. When a trial reaches a
rung, it is placed among all trials that have been scored there: by non-dominated front, and within a front by crowding
distance (see `raydis.metrics.front`). With reduction factor R, it goes on if at most (N - 2) / R of the N trials at the
rung, itself included, have a better place; the first one always goes on. About one trial in R therefore goes on, and no
trial has to wait for others. A trial that does not go on may still do so later, once enough trials with worse places
have reached its rung.

With one objective this is ASHA (Li et al., arXiv 1810.05934). Ray Tune's AsyncHyperBandScheduler decides alike, except
that its cut-off may lie between two trials, because it interpolates: a trial between these two may go on there, and
does not here. With several objectives, the sorting is ours to have chosen; no paper describes this combination.

What this rests on: a trial that is better at a rung is usually better at the end. Where learning curves cross, it stops
the wrong trials.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from raydis.errors import ConfigError
from raydis.metrics.entry import Direction
from raydis.metrics.front import crowding_distances, front_ranks

K = TypeVar("K", bound=Hashable)
UNSCORED = None  # of a trial that has no valid scores at a rung: every trial with scores has a better place


class SuccessiveHalving(Generic[K]):
    """The trials that have reached each rung, and which of them go on.

    Args:
        directions: for each objective, `max` if larger values are better, `min` if smaller ones are.
        rungs: rising amounts of progress.
        reduction_factor: R > 1; about one trial in R goes on from a rung.

    Raises:
        ConfigError: there are no objectives or no rungs, the rungs do not rise, or R is not above 1.
    """

    def __init__(self, directions: Sequence[Direction], rungs: Sequence[float], reduction_factor: float) -> None:
        if not directions:
            raise ConfigError("successive halving needs an objective: name at least one")
        if not rungs or list(rungs) != sorted(set(rungs)) or rungs[0] <= 0:
            raise ConfigError(f"rungs={list(rungs)}: name one or more, positive and rising")
        if not reduction_factor > 1:
            raise ConfigError(f"reduction_factor={reduction_factor} stops no trial: choose one above 1")
        self.rungs = tuple(rungs)
        self.reduction_factor = float(reduction_factor)
        self._signs = np.array([1.0 if direction == "max" else -1.0 for direction in directions])
        self._points: dict[float, dict[K, np.ndarray | None]] = {rung: {} for rung in self.rungs}
        self._going: dict[float, set[K]] = {}  # of rungs where nothing has changed since

    def rung_at(self, progress: float) -> float | None:
        """Return the highest rung that this progress has reached; None before the first."""
        return max((rung for rung in self.rungs if rung <= progress), default=None)

    def knows(self, rung: float, trial: K) -> bool:
        """Return whether a trial has been recorded at a rung."""
        return trial in self._points[rung]

    def record(self, rung: float, trial: K, values: Sequence[float] | None) -> None:
        """Record the values of a trial's objectives at a rung. A second record at the same rung replaces the first.

        Args:
            values: one finite value for each objective; None for a trial without valid scores.

        Raises:
            ConfigError: there is not one finite value for each objective.
        """
        point = None
        if values is not None:
            point = np.asarray(values, dtype=np.float64)
            if point.shape != self._signs.shape or not np.isfinite(point).all():
                raise ConfigError(f"values {list(values)}: give a finite one for each of {len(self._signs)} objectives")
            point = point * self._signs
        self._points[rung][trial] = point
        self._going.pop(rung, None)

    def going_on(self, rung: float) -> set[K]:
        """Return the trials that go on from a rung, by what is known now."""
        if rung not in self._going:
            self._going[rung] = self._choose(self._points[rung])
        return self._going[rung]

    def next_promotion(self, paused: Mapping[K, float]) -> K | None:
        """Return which paused trial should go on now: one at the highest rung, the first paused there; else None.

        Args:
            paused: the rung at which each paused trial waits, in the order in which they were paused.
        """
        for rung in reversed(self.rungs):
            for trial, waits_at in paused.items():
                if waits_at == rung and trial in self.going_on(rung):
                    return trial
        return None

    def _choose(self, points: Mapping[K, np.ndarray | None]) -> set[K]:
        most_ahead = max(len(points) - 2, 0) / self.reduction_factor
        scored = {trial: point for trial, point in points.items() if point is not None}
        going: set[K] = set()
        num_ahead = 0
        if scored:
            trials, table = list(scored), np.array(list(scored.values()))
            ranks = front_ranks(table)
            for rank in range(ranks.max() + 1):
                if num_ahead > most_ahead:
                    break
                members = np.flatnonzero(ranks == rank)
                distances = crowding_distances(table[members])
                for member, distance in zip(members, distances, strict=True):
                    if num_ahead + np.count_nonzero(distances > distance) <= most_ahead:
                        going.add(trials[member])
                num_ahead += len(members)
        if num_ahead <= most_ahead:
            going |= points.keys() - scored.keys()
        return going
