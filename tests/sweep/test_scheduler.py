"""What the scheduler tells Tune, with a controller that keeps Tune's books but starts nothing."""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher

from raydis.config.files import parse
from raydis.config.presets import expand
from raydis.engine.record import RunRecord
from raydis.metrics.protocol import SEARCH
from raydis.metrics.scores import unscored
from raydis.sweep.scheduler import ParetoHalvingScheduler
from raydis.sweep.spec import SweepSpec
from raydis.sweep.stopping import SweepScheduler
from tests.records import finished, running, scores_of

CONTINUE, PAUSE, STOP = TrialScheduler.CONTINUE, TrialScheduler.PAUSE, TrialScheduler.STOP


class Listing(Searcher):
    """A searcher that suggests `total` trials and remembers which of them it was told have ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[str] = []

    def suggest(self, trial_id: str) -> dict[str, Any]:
        return {}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.ended.append(trial_id)


class Controller:
    """Tune's books: trials and their status, and a searcher behind Tune's own limit of concurrent trials."""

    def __init__(self, scheduler: ParetoHalvingScheduler, total: int, at_once: int) -> None:
        self.scheduler, self.total = scheduler, total
        self.searcher = Listing()
        self.limiter = ConcurrencyLimiter(self.searcher, max_concurrent=at_once)
        self.search_alg = SimpleNamespace(searcher=self.limiter, is_finished=lambda: len(self.trials) == self.total)
        self.trials: list[Any] = []

    def get_trials(self) -> list[Any]:
        return self.trials

    def get_live_trials(self) -> set[Any]:
        return {trial for trial in self.trials if trial.status not in (Trial.TERMINATED, Trial.ERROR)}

    def stop_trial(self, trial: Any) -> None:
        if trial.status == Trial.RUNNING:
            self.scheduler.on_trial_complete(self, trial, {})
        else:
            self.scheduler.on_trial_remove(self, trial)
        self.limiter.on_trial_complete(trial.trial_id)
        trial.status = Trial.TERMINATED

    def step(self) -> list[str]:
        """Ask for new trials and start what the scheduler chooses, until nothing more starts. Return what started."""
        started: list[str] = []
        while True:
            while len(self.trials) < self.total and self.limiter.suggest(name := f"t{len(self.trials)}") is not None:
                config = {"number": len(self.trials), "control": None}
                self.trials.append(Book(name, config))
                self.scheduler.on_trial_add(self, self.trials[-1])  # as Tune does, which reads the status after it
                if self.trials[-1].status == Trial.PENDING:
                    break
            trial = self.scheduler.choose_trial_to_run(self)
            assert trial is self.scheduler.choose_trial_to_run(self)  # Tune may ask twice
            if trial is None:
                return started
            trial.status = Trial.RUNNING
            started.append(trial.trial_id)

    def report(self, name: str, seen: int, *, saved: bool = True, **values: Any) -> str:
        trial = next(trial for trial in self.trials if trial.trial_id == name)
        assert trial.status == Trial.RUNNING
        decision = self.scheduler.on_trial_result(self, trial, {"seen": seen, "should_checkpoint": saved, **values})
        if decision == PAUSE:
            trial.status = Trial.PAUSED
        elif decision == STOP:
            self.stop_trial(trial)
        return decision

    def end(self, name: str) -> None:
        self.stop_trial(next(trial for trial in self.trials if trial.trial_id == name))

    def status(self) -> dict[str, str]:
        return {trial.trial_id: trial.status for trial in self.trials}


class Book:
    """What the scheduler reads of a trial."""

    def __init__(self, trial_id: str, config: dict[str, Any]) -> None:
        self.trial_id, self.config, self.status = trial_id, config, Trial.PENDING

    def set_status(self, status: str) -> None:
        self.status = status


def of_one_objective(**more: Any) -> ParetoHalvingScheduler:
    return ParetoHalvingScheduler({"score": "max"}, [10, 30], reduction_factor=3, progress="seen", **more)


def test_a_paused_trial_gives_its_place_to_a_new_one_and_is_told_to_the_searcher_only_when_it_ends() -> None:
    tune = Controller(of_one_objective(), total=4, at_once=2)
    assert tune.step() == ["t0", "t1"]
    assert tune.report("t0", 10, score=0.5) == CONTINUE  # the first
    assert tune.report("t1", 10, score=0.4) == PAUSE
    assert tune.step() == ["t2"]
    assert tune.report("t2", 10, score=0.3) == PAUSE
    assert tune.step() == ["t3"]
    assert tune.searcher.ended == []
    assert tune.report("t3", 10, score=0.2) == PAUSE
    tune.step()
    assert tune.status() == {"t0": "RUNNING", "t1": "PAUSED", "t2": "PAUSED", "t3": "PAUSED"}
    tune.end("t0")
    assert tune.step() == []
    assert set(tune.status().values()) == {"TERMINATED"}
    assert tune.searcher.ended == ["t0", "t1", "t2", "t3"]
    assert not tune.limiter.live_trials


def test_a_promoted_trial_is_preferred_to_a_new_one_and_waits_for_a_free_place() -> None:
    tune = Controller(of_one_objective(), total=7, at_once=2)
    tune.step()
    tune.report("t0", 10, score=0.9)
    tune.report("t1", 10, score=0.8)
    assert tune.status()["t1"] == "PAUSED"
    for number in range(2, 5):  # with the third that is worse, the second best of five may go on
        assert tune.step() == [f"t{number}"]
        assert tune.report(f"t{number}", 10, score=0.1 * number) == PAUSE
    assert tune.step() == ["t1"]
    assert len(tune.limiter.live_trials) == 2
    assert tune.status().get("t5") is None  # no place for a new one
    assert tune.report("t1", 10, score=0.0) == CONTINUE  # it repeats a rung after a restart, and is not compared again
    assert tune.report("t0", 30, score=0.9) == CONTINUE
    assert tune.report("t1", 30, score=0.95) == CONTINUE
    tune.end("t1")
    assert tune.step() == ["t5"]


def test_when_no_trial_is_left_to_suggest_the_paused_ones_that_may_go_on_do() -> None:
    tune = Controller(of_one_objective(), total=5, at_once=5)
    tune.step()
    for number, score in enumerate([0.9, 0.8, 0.1, 0.2, 0.3]):
        tune.report(f"t{number}", 10, score=score)
    assert tune.step() == ["t1"]
    assert tune.status() == {"t0": "RUNNING", "t1": "RUNNING", "t2": "PAUSED", "t3": "PAUSED", "t4": "PAUSED"}


def test_a_trial_that_is_still_being_saved_is_not_promoted() -> None:
    tune = Controller(of_one_objective(), total=5, at_once=5)
    tune.step()
    for number, score in enumerate([0.9, 0.8, 0.1, 0.2]):
        tune.report(f"t{number}", 10, score=score)
    tune.trials[1].status = Trial.RUNNING
    tune.report("t4", 10, score=0.3)
    assert tune.step() == []
    tune.trials[1].status = Trial.PAUSED
    assert tune.step() == ["t1"]


@pytest.mark.parametrize(("pause", "saved"), [(False, True), (True, False)])
def test_a_trial_is_stopped_if_it_may_not_or_cannot_be_paused(pause: bool, saved: bool) -> None:
    tune = Controller(of_one_objective(pause=pause), total=2, at_once=2)
    tune.step()
    tune.report("t0", 10, score=0.5)
    assert tune.report("t1", 10, score=0.4, saved=saved) == STOP
    assert tune.searcher.ended == ["t1"]


def test_a_failed_trial_gives_its_place_to_a_paused_one() -> None:
    tune = Controller(of_one_objective(), total=9, at_once=2)
    tune.step()
    tune.report("t0", 10, score=0.9)
    for number in range(1, 4):
        tune.report(f"t{number}", 10, score=0.9 - 0.1 * number)
        tune.step()
    tune.report("t4", 10, score=0.1)  # of five, the second best may go on: t1
    assert tune.scheduler.is_paused(tune.trials[1]) is False
    assert tune.step() == ["t1"]
    tune.scheduler.on_trial_error(tune, tune.trials[1])
    tune.limiter.on_trial_complete("t1", error=True)
    tune.trials[1].status = Trial.ERROR
    assert tune.step() == ["t5"]


def test_reports_between_rungs_without_scores_or_not_finite_ones() -> None:
    tune = Controller(of_one_objective(), total=3, at_once=3)
    tune.step()
    assert tune.report("t0", 9, score=0.1) == CONTINUE
    assert tune.report("t0", 10) == CONTINUE
    assert tune.report("t0", 11, score=None) == CONTINUE
    assert tune.report("t1", 10, score=0.9) == CONTINUE
    assert tune.report("t0", 29, score=0.8) == PAUSE
    assert tune.report("t2", 10, score=math.nan) == PAUSE


def test_tune_may_pickle_it_while_trials_are_paused() -> None:
    tune = Controller(of_one_objective(), total=2, at_once=2)
    tune.step()
    tune.report("t0", 10, score=0.5)
    tune.report("t1", 10, score=0.4)
    again = pickle.loads(pickle.dumps(tune.scheduler))
    assert again.is_paused(tune.trials[1])
    assert again.halving.going_on(10) == {"t0"}


# ---- a continued sweep


def seen(*reports: tuple[int, float | None]) -> list[dict[str, Any]]:
    return [{"seen": progress, "score": score} for progress, score in reports]


def test_a_trial_that_was_left_at_a_rung_waits_until_it_is_among_the_best_there() -> None:
    scheduler = of_one_objective()
    scheduler.replay("t0", seen((10, 0.9), (20, None)))
    scheduler.replay("t1", seen((10, 0.8), (10, 0.8)))  # it repeated its report after a restart
    scheduler.replay("t2", seen((5, 0.1)))
    tune = Controller(scheduler, total=6, at_once=2)
    assert tune.step() == ["t0", "t2"]  # t0 had passed its rung
    assert tune.status()["t1"] == "PAUSED"
    assert tune.limiter.live_trials == {"t0", "t2"}
    assert tune.report("t0", 10, score=0.9) == CONTINUE  # from an older checkpoint, and not compared again
    assert tune.report("t2", 10, score=0.3) == PAUSE
    assert tune.step() == ["t3"]
    assert tune.report("t3", 10, score=0.2) == PAUSE
    assert tune.step() == ["t4"]
    assert tune.report("t4", 10, score=0.1) == PAUSE  # of five, the second best may go on
    assert tune.step() == ["t1"]
    assert tune.report("t1", 10, score=0.8) == CONTINUE
    assert tune.searcher.ended == []


def test_the_trials_of_earlier_sessions_count_at_their_rungs() -> None:
    scheduler = of_one_objective()
    for number, score in enumerate([0.9, 0.8, 0.7]):  # they have ended
        scheduler.replay(f"old{number}", seen((10, score), (30, score), (60, score)))
    tune = Controller(scheduler, total=2, at_once=2)
    tune.step()
    assert tune.report("t0", 10, score=0.75) == PAUSE
    assert tune.report("t1", 10, score=0.85) == CONTINUE
    assert tune.report("t1", 30, score=0.1) == PAUSE


def test_a_trial_that_was_left_among_the_best_goes_on_at_once() -> None:
    scheduler = of_one_objective()
    for number, score in enumerate([0.9, 0.1, 0.2, 0.3, 0.8]):
        scheduler.replay(f"t{number}", seen((10, score)))
    tune = Controller(scheduler, total=5, at_once=5)
    assert tune.step() == ["t0", "t4"]


def test_trials_that_were_left_at_a_rung_are_stopped_when_nothing_else_is_left() -> None:
    scheduler = of_one_objective()
    scheduler.replay("other", seen((10, 0.9), (30, 0.9), (60, None)))
    for number in range(2):
        scheduler.replay(f"t{number}", seen((10, 0.1)))
    tune = Controller(scheduler, total=2, at_once=1)
    assert tune.step() == []
    assert set(tune.status().values()) == {"TERMINATED"}
    assert tune.searcher.ended == ["t0", "t1"]


def test_without_pauses_every_trial_that_was_left_goes_on() -> None:
    scheduler = of_one_objective(pause=False)
    for number, score in enumerate([0.9, 0.1]):
        scheduler.replay(f"t{number}", seen((10, score)))
    assert Controller(scheduler, total=2, at_once=2).step() == ["t0", "t1"]


def test_a_trial_is_not_asked_again_when_tune_adds_it_after_a_failure() -> None:
    scheduler = of_one_objective()
    for number, score in enumerate([0.9, 0.8]):
        scheduler.replay(f"t{number}", seen((10, score)))
    tune = Controller(scheduler, total=5, at_once=2)
    assert tune.step() == ["t0", "t2"]
    tune.report("t2", 10, score=0.1)
    tune.step()
    tune.report("t3", 10, score=0.1)
    tune.step()
    tune.report("t4", 10, score=0.1)
    assert tune.step() == ["t1"]
    scheduler.on_trial_add(tune, tune.trials[1])
    assert tune.status()["t1"] == "RUNNING"


def test_tune_keeps_its_books_by_the_status_that_the_scheduler_gives_a_new_trial() -> None:
    """`add_trial` of Tune's own controller, without the processes behind it."""
    scheduler: Any = of_one_objective()
    controller: Any = TuneController.__new__(TuneController)
    sets = ("pending_trials", "running_trials", "paused_trials", "stopped_trials", "failed_trials", "live_trials")
    vars(controller).update({f"_{name}": set() for name in (*sets, "trials_to_cache")})
    vars(controller).update(_trials=[], _pending_trials_list=[], _placeholder_resolvers={}, _scheduler_alg=scheduler)
    vars(controller).update(
        _resources_to_pending_trials=defaultdict(set), _wrapped=lambda: controller, _search_alg=None
    )
    trials = [Trial("stub", trial_id=name, stub=True) for name in ("t0", "t1")]
    for trial, score in zip(trials, (0.9, 0.8), strict=True):
        scheduler.replay(trial.trial_id, seen((10, score)))
    for trial in trials:
        controller.add_trial(trial)
    assert (controller._pending_trials, controller._paused_trials) == ({trials[0]}, {trials[1]})
    assert controller._pending_trials_list == [trials[0]]
    controller._set_trial_status(trials[1], Trial.PENDING)  # as when the scheduler chooses it to run
    assert controller._pending_trials_list == trials


# ---- in a sweep


def sweep_of(**stopping: Any) -> SweepScheduler:
    tree = {"name": "t", "run": expand({"preset": "tiny", "evaluation": {"rungs": [64, 192]}}), "num_trials": 9}
    search = {"method.num_units": {"kind": "int", "low": 4, "high": 8}}
    spec = parse(SweepSpec, tree | {"search": search, "stopping": {"reduction_factor": 3} | stopping}, source="t")
    assert spec.stopping is not None
    return SweepScheduler(spec, spec.stopping)


def decide(scheduler: SweepScheduler, number: int, record: RunRecord, control: str | None = None) -> str:
    trial: Any = Book(f"t{number}", {"number": number, "control": control})
    controller = Controller(scheduler, total=99, at_once=99)
    controller.trials = [trial]
    trial.status = Trial.RUNNING
    return scheduler.on_trial_result(controller, trial, record.to_ray() | {"should_checkpoint": True})


def scored(images_seen: int, dci: float, factor_vae: float) -> RunRecord:
    return running(images_seen, scores=scores_of(dci_disentanglement=dci, factor_vae=factor_vae))


def without_scores(images_seen: int, status: Any) -> RunRecord:
    empty = unscored(status, "no unit is open", protocol=SEARCH, num_images=324, data_fingerprint="shapes")
    return running(images_seen, scores=empty)


def test_a_sweep_compares_all_objectives_of_its_spec_and_spares_controls() -> None:
    scheduler = sweep_of()
    assert decide(scheduler, 0, scored(64, 0.5, 0.5)) == CONTINUE
    assert decide(scheduler, 1, scored(64, 0.4, 0.4)) == PAUSE
    assert decide(scheduler, 2, scored(64, 0.4, 0.4), control="base") == CONTINUE
    assert decide(scheduler, 3, scored(64, 0.3, 0.9)) == CONTINUE
    assert decide(scheduler, 0, running(128)) == CONTINUE
    assert decide(scheduler, 4, finished(dci_disentanglement=0.0, factor_vae=0.0)) == CONTINUE


@pytest.mark.parametrize(("grace_images", "at_192"), [(None, CONTINUE), (192, CONTINUE), (100, PAUSE)])
def test_a_trial_that_is_not_ready_has_a_grace_and_an_invalid_one_has_none(
    grace_images: int | None, at_192: str
) -> None:
    scheduler = sweep_of(grace_images=grace_images)
    for rung in (64, 192):
        assert decide(scheduler, 0, scored(rung, 0.1, 0.1)) == CONTINUE
    assert decide(scheduler, 1, without_scores(64, "not_ready")) == CONTINUE
    assert decide(scheduler, 1, without_scores(192, "not_ready")) == at_192
    assert decide(scheduler, 2, without_scores(64, "invalid")) == PAUSE
