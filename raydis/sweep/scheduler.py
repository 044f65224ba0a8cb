"""Early stopping for Ray Tune by several objectives: a scheduler that can be used without the rest of raydis.

Tune's own schedulers compare trials by one metric. This one places them by non-dominated sorting; see
`raydis.sweep.halving` for the rule, and for when not to use it. Objectives and rungs are its only required settings:

    from raydis.sweep.scheduler import ParetoHalvingScheduler

    scheduler = ParetoHalvingScheduler({"accuracy": "max", "latency": "min"}, rungs=[1, 3, 9])
    tuner = tune.Tuner(train, tune_config=tune.TuneConfig(scheduler=scheduler, num_samples=30))
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from ray.tune.experiment import Trial
from ray.tune.result import SHOULD_CHECKPOINT
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter

from raydis.metrics.entry import Direction
from raydis.sweep.halving import SuccessiveHalving

Compared = Sequence[float] | Literal["invalid"] | None  # what a report says; see `ParetoHalvingScheduler.compared`


class ParetoHalvingScheduler(FIFOScheduler):
    """Stop or pause the trials of Ray Tune that are not among the best at a rung, by all of their objectives.

    A trial that does not go on is paused if its report at the rung came with a checkpoint, and is stopped otherwise. It
    continues from this checkpoint if it later comes to be among the best at its rung and a place is free; it is then
    preferred to new trials. When no trial is running and no new one will come, paused trials are stopped.

    Args:
        objectives: key in a trial's reports -> `max` or `min`. A report without one of the keys is not compared.
        rungs: rising values of `progress` at which trials are compared.
        reduction_factor: about one trial in so many goes on from a rung.
        progress: key of a report's progress, which rises, such as a number of images seen.
        pause: whether trials are paused rather than stopped.

    Raises:
        ConfigError: there are no objectives or no rungs, the rungs do not rise, or the factor is not above 1.
    """

    def __init__(
        self,
        objectives: Mapping[str, Direction],
        rungs: Sequence[float],
        *,
        reduction_factor: float = 2.0,
        progress: str = "training_iteration",
        pause: bool = True,
    ) -> None:
        super().__init__()
        self.objectives = dict(objectives)
        self.halving = SuccessiveHalving[Any](list(self.objectives.values()), rungs, reduction_factor)
        self._progress, self._pause = progress, pause
        self._paused: dict[str, float] = {}  # id of a trial -> rung, in the order in which they were paused
        self._resuming: set[str] = set()  # ids of trials that have a place again, and wait for Tune to start them
        self._left_at: dict[Any, float] = {}  # what an earlier session left at a rung, until Tune adds it: its rung

    # ---- what a subclass may change

    def identity(self, trial: Trial) -> Any:
        """Return what a trial is recorded under at the rungs."""
        return trial.trial_id

    def compared(self, report: Mapping[str, Any]) -> Compared:
        """Return what a report says of its trial.

        Returns:
            The values of the objectives; `invalid` if one is not finite, for which the trial gets the last place at the
            rung; None if the report is not to be compared, and the trial goes on.
        """
        values = [report.get(name) for name in self.objectives]
        numbers = [float(value) for value in values if value is not None]
        if len(numbers) < len(values):
            return None
        return numbers if all(map(math.isfinite, numbers)) else "invalid"

    def spared(self, trial: Trial) -> bool:
        """Return whether a trial always goes on. It is compared all the same."""
        return False

    # ---- what Tune calls

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Ignore the metric of Tune, because the objectives are known."""
        return True

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return whether a trial goes on, is paused or is stopped after a report."""
        rung = self.observe(self.identity(trial), result)
        if rung is None or self.spared(trial) or self.identity(trial) in self.halving.going_on(rung):
            return TrialScheduler.CONTINUE
        if not (self._pause and result.get(SHOULD_CHECKPOINT)):
            return TrialScheduler.STOP
        self._paused[trial.trial_id] = rung
        _leave_place(tune_controller, trial)
        self._promote(tune_controller)
        return TrialScheduler.PAUSE

    def observe(self, identity: Any, report: Mapping[str, Any]) -> float | None:
        """Record a report at the rung that it has reached. Return the rung; None if there is nothing to compare."""
        progress, compared = report.get(self._progress), self.compared(report)
        rung = None if progress is None else self.halving.rung_at(progress)
        if rung is None or compared is None or self.halving.knows(rung, identity):
            return None
        self.halving.record(rung, identity, None if compared == "invalid" else compared)
        return rung

    def replay(self, identity: Any, reports: Iterable[Mapping[str, Any]]) -> None:
        """Record what a trial reported in an earlier session of its experiment, in the order of its reports.

        If its last report was the one at its rung, the trial was paused there, or had not gone far. When Tune adds it
        again, it is paused unless it now is among the best at the rung.
        """
        rung, progress_there = None, -math.inf
        for report in reports:
            reached, progress = self.observe(identity, report), report.get(self._progress)
            if reached is not None:
                rung, progress_there = reached, report[self._progress]
            elif progress is not None and progress > progress_there:
                rung = None
        if rung is not None:
            self._left_at[identity] = rung

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Pause a new trial before it starts if an earlier session left it at a rung, and it is not to go on."""
        rung = self._left_at.pop(self.identity(trial), None)
        if rung is None or not self._pause or self.spared(trial):
            return
        if self.identity(trial) not in self.halving.going_on(rung):
            self._paused[trial.trial_id] = rung
            _leave_place(tune_controller, trial)
            trial.set_status(Trial.PAUSED)  # Tune reads it after this call

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Give the place of a trial that has ended to a paused one."""
        self._promote(tune_controller, leaving=trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Give the place of a trial that has failed to a paused one."""
        self.on_trial_remove(tune_controller, trial)
        self._promote(tune_controller, leaving=trial)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Forget a trial that was paused or about to start."""
        self._paused.pop(trial.trial_id, None)
        self._resuming.discard(trial.trial_id)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the trial to start next: a paused one that has a place again, or a new one."""
        if tune_controller.search_alg.is_finished():
            while self._promote(tune_controller):
                pass
            self._stop_paused_if_alone(tune_controller)
        trials: list[Trial] = tune_controller.get_trials()
        self._resuming -= {trial.trial_id for trial in trials if trial.status == Trial.RUNNING}
        waiting = [trial for trial in trials if trial.status in (Trial.PENDING, Trial.PAUSED)]
        resuming = (trial for trial in waiting if trial.trial_id in self._resuming)
        new = (trial for trial in waiting if trial.status == Trial.PENDING)
        return next(resuming, None) or next(new, None)

    def is_paused(self, trial: Trial) -> bool:
        """Return whether a trial is paused and does not have a place again."""
        return trial.trial_id in self._paused

    def debug_string(self) -> str:
        """Return how many trials are paused, for Tune's console."""
        return f"Using ParetoHalving: {len(self._paused)} trials paused"

    def _promote(self, tune_controller: Any, leaving: Trial | None = None) -> bool:
        """Give a free place to the best paused trial that may go on. Return whether there were both."""
        if not self._paused or not _has_place(tune_controller, leaving):
            return False
        # Tune pauses a trial after it has saved it. Until then, the trial counts as running.
        ready = {trial.trial_id: trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PAUSED}
        trials = {self.identity(ready[name]): ready[name] for name in self._paused if name in ready}
        chosen = self.halving.next_promotion({key: self._paused[trial.trial_id] for key, trial in trials.items()})
        if chosen is None:
            return False
        trial = trials[chosen]
        del self._paused[trial.trial_id]
        self._resuming.add(trial.trial_id)
        _take_place(tune_controller, trial)
        return True

    def _stop_paused_if_alone(self, tune_controller: Any) -> None:
        """Stop the paused trials if no other trial is left, because none of them can be promoted any more."""
        live = {trial.trial_id: trial for trial in tune_controller.get_live_trials()}
        if all(name in self._paused and trial.status == Trial.PAUSED for name, trial in live.items()):
            for trial in [live[name] for name in self._paused if name in live]:
                _take_place(tune_controller, trial)  # so that the searcher is told of its end
                tune_controller.stop_trial(trial)


# Tune's ConcurrencyLimiter takes a paused trial for a running one, so that no new trial would start in its place, and
# it tells the searcher the end of those trials only that it counts. While a trial is paused, it is taken off its count.


def _limiter(tune_controller: Any) -> ConcurrencyLimiter | None:
    searcher = getattr(tune_controller.search_alg, "searcher", None)
    return searcher if isinstance(searcher, ConcurrencyLimiter) else None


def _leave_place(tune_controller: Any, trial: Trial) -> None:
    if (limiter := _limiter(tune_controller)) is not None:
        limiter.live_trials.discard(trial.trial_id)


def _take_place(tune_controller: Any, trial: Trial) -> None:
    if (limiter := _limiter(tune_controller)) is not None:
        limiter.live_trials.add(trial.trial_id)


def _has_place(tune_controller: Any, leaving: Trial | None) -> bool:
    """Return whether another trial may run, once `leaving` has left. Without a limit, resources decide."""
    limiter = _limiter(tune_controller)
    if limiter is None:
        return True
    gone = set() if leaving is None else {leaving.trial_id}
    return len(limiter.live_trials - gone) < limiter.max_concurrent
