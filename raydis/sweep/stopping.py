"""Early stopping in a sweep: how `ParetoHalvingScheduler` reads the reports of raydis' trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial

from raydis.engine.record import RunRecord
from raydis.metrics.standing import missing
from raydis.sweep.scheduler import Compared, ParetoHalvingScheduler
from raydis.sweep.spec import StoppingConfig, SweepSpec


class SweepScheduler(ParetoHalvingScheduler):
    """The scheduler of a sweep with early stopping. It compares the scores of trials at the rungs, and spares controls.

    A control is there to be compared with at the whole budget, so it always goes on. A trial whose units are not ready
    at a rung is not compared there within the grace of the spec. A trial whose scores are invalid gets the last place.

    Args:
        spec: the sweep.
        stopping: its section `stopping`.
    """

    def __init__(self, spec: SweepSpec, stopping: StoppingConfig) -> None:
        super().__init__(
            {goal.metric: goal.direction for goal in spec.objectives},
            stopping.rungs or spec.run.evaluation.rungs,
            reduction_factor=stopping.reduction_factor,
            progress="images_seen",
            pause=stopping.pause,
        )
        self._goals, self._grace_images = spec.objectives, stopping.grace_images

    def identity(self, trial: Trial) -> int:
        """Return the number of a trial, which it keeps when its sweep is continued."""
        return trial.config["number"]

    def compared(self, report: Mapping[str, Any]) -> Compared:
        """Return the scores of a report at a rung; see `ParetoHalvingScheduler.compared`."""
        record = RunRecord.from_ray(report)
        if record.finished or record.scores is None:
            return None
        within_grace = self._grace_images is None or (record.images_seen or 0) <= self._grace_images
        if record.scores.status == "not_ready" and within_grace:
            return None
        values = record.values()
        return "invalid" if missing(values, self._goals) else [values[goal.metric] for goal in self._goals]

    def spared(self, trial: Trial) -> bool:
        """Return whether a trial is a control."""
        return trial.config["control"] is not None
