"""Connect Optuna to Ray Tune: a searcher that takes its suggestions from a study, and records how each trial ended.

It replaces Ray's own OptunaSearch, which records a trial that a scheduler stopped as COMPLETE, leaves a trial with a
NaN score RUNNING for ever, and needs a search space that can be pickled. Here each trial ends in exactly one state:

    COMPLETE  it trained to the end, and its scores are valid and finite
    PRUNED    it was stopped before its end
    FAIL      it raised an error, its process died, or its scores are invalid or not finite
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from raydis.engine.record import RunRecord
from raydis.metrics.standing import Objective, missing
from raydis.sweep.space import as_point, control_settings, suggest_settings
from raydis.sweep.spec import SweepSpec

MAX_STARTUP_TRIALS = 10
NSGA2_POPULATION = 20


class StudySearcher(Searcher):
    """A searcher of Ray Tune that suggests run settings from an Optuna study.

    A suggestion is `{"number": int, "control": str | None, "settings": {dotted key: value}}`.

    Args:
        spec: search space, objectives, sampler and controls. The controls run first; controls that the study already
            contains are not run again.
        study_name: unique in its storage.
        storage: storage of the study; None for memory.
    """

    def __init__(self, spec: SweepSpec, *, study_name: str, storage: BaseStorage | None = None) -> None:
        super().__init__()  # without a metric, which Tune would then require in every report
        self.spec = spec
        self._fixed = control_settings(spec)
        self._trials: dict[str, optuna.Trial] = {}
        self._reports: dict[str, dict[str, Any]] = {}  # the last one of each trial
        self.stopped: set[int] = set()  # numbers of the trials that a scheduler stopped early
        study = optuna.create_study(
            study_name=study_name,
            storage=storage,
            directions=["maximize" if goal.direction == "max" else "minimize" for goal in spec.objectives],
            load_if_exists=True,
        )
        known = study.get_trials(deepcopy=False)
        study.sampler = build_sampler(spec, num_existing=len(known))
        held = {trial.user_attrs.get("control") for trial in known}
        for name, settings in self._fixed.items():
            if name not in held:
                study.enqueue_trial(as_point(spec.search, settings) or {}, user_attrs={"control": name})
        self.study = study

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Return the next suggestion."""
        trial = self.study.ask()
        self._trials[trial_id] = trial
        control = trial.user_attrs.get("control")
        settings = None if control is None else self._fixed[control]
        if settings is None or as_point(self.spec.search, settings) is not None:
            settings = suggest_settings(trial, self.spec.search)
        # Otherwise the control is not in the search space: the study keeps its scores, but the sampler ignores them.
        return {"number": trial.number, "control": control, "settings": settings}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep a report of a trial."""
        self._reports[trial_id] = result

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record in the study how a trial ended. `result` is its last report, if there was one.

        Tune gives no report of a paused trial that is stopped. The study keeps the last report of a stopped trial.
        """
        trial = self._trials.pop(trial_id, None)
        if trial is None:
            return
        report = self._reports.pop(trial_id, None) if result is None else result
        record = None if report is None else RunRecord.from_ray(report)
        state, reason = trial_state(record, error, self.spec.objectives)
        if reason is not None:
            trial.set_user_attr("reason", reason)
        if state is TrialState.PRUNED and record is not None and record.images_seen:
            trial.set_user_attr("record", {key: value for key, value in record.to_ray().items() if value is not None})
            self.stopped.add(trial.number)
        scores = record.values() if record and state is TrialState.COMPLETE else {}
        values = [value for goal in self.spec.objectives if (value := scores.get(goal.metric)) is not None]
        self.study.tell(trial, values or None, state=state)

    def close(self) -> None:
        """Record the trials that have not ended as stopped, as after an interruption."""
        for trial_id in list(self._trials):
            self.on_trial_complete(trial_id, result={})

    def set_search_properties(self, metric: Any, mode: Any, config: dict, **spec: Any) -> bool:
        """Ignore Tune's metric and constants, because the space and the objectives come from the spec."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Do nothing when Tune asks for a snapshot, because the study has a storage of its own."""


def trial_state(
    record: RunRecord | None, error: bool, objectives: Sequence[Objective]
) -> tuple[TrialState, str | None]:
    """Return Optuna's state of a trial that has ended, and the reason if it is not COMPLETE.

    Args:
        record: the last record of the trial; None if there was none.
        error: whether the trial raised an error or its process died.
    """
    if error or record is None:
        return TrialState.FAIL, "it ended without a result: see its error.txt"
    if not record.finished:
        return TrialState.PRUNED, f"stopped after {record.images_seen or 0} images"
    if record.state != "valid":
        return TrialState.FAIL, record.reason or record.state
    if reason := missing(record.values(), objectives):
        return TrialState.FAIL, reason
    return TrialState.COMPLETE, None


def build_sampler(spec: SweepSpec, *, num_existing: int) -> BaseSampler:
    """Return the spec's sampler, seeded by the spec's seed and the number of existing trials.

    A sweep that is started again therefore does not repeat its first suggestions.
    """
    seed = int(np.random.SeedSequence([spec.seed, num_existing]).generate_state(1)[0])
    match spec.sampler:
        case "random":
            return RandomSampler(seed=seed)
        case "nsga2":
            return NSGAIISampler(population_size=NSGA2_POPULATION, seed=seed)
        case "tpe":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return TPESampler(
                    n_startup_trials=min(MAX_STARTUP_TRIALS, max(3, spec.num_trials // 3)),
                    multivariate=True,
                    group=True,
                    seed=seed,
                )


def journal(path: Path) -> BaseStorage:
    """Return the storage of a study in one file, which `optuna-dashboard PATH` can show while the sweep runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))
