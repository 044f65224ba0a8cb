"""Connect Optuna to Ray Tune: a searcher that takes its suggestions from a study, and records how each trial ended.

It replaces Ray's own OptunaSearch, which records a trial that a scheduler stopped as COMPLETE, leaves a trial with a
NaN score RUNNING for ever, and needs a search space that can be pickled. Here each trial ends in exactly one state:

    COMPLETE  it trained to the end, and its scores are valid and finite
    PRUNED    it was stopped before its end
    FAIL      it raised an error, its process died, or its scores are invalid or not finite

A trial that an interruption of the sweep ended has not ended: it is WAITING until the sweep goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from ray.tune.search import Searcher

from raydis.engine.record import RunRecord
from raydis.errors import StoreError, explain
from raydis.sweep.domains import points
from raydis.sweep.left import Left
from raydis.sweep.sampler import build_sampler
from raydis.sweep.space import as_point, control_settings, suggest_settings
from raydis.sweep.spec import SweepSpec
from raydis.sweep.study import (
    EXHAUSTED,
    Note,
    key_of,
    known_settings,
    open_study,
    read_records,
    record_of,
    release,
    release_running,
    trial_state,
)
from raydis.sweep.summary import TrialRecord

MAX_REPEATS = 100  # suggestions in a row that are known; then the sampler has nothing new


class StudySearcher(Searcher):
    """A searcher of Ray Tune that suggests run settings from an Optuna study.

    A suggestion is `{"number": int, "control": str | None, "settings": {dotted key: value}}`. Trials that an
    interruption ended are suggested first, under their numbers, with the `checkpoints` that they have left behind.
    Settings whose result is known are not suggested again: the study takes the known result.

    Args:
        spec: search space, objectives, sampler and controls. The controls run first; controls that the study already
            contains are not run again.
        study_name: unique in its storage.
        storage: storage of the study; None for memory.
        saved: called after each change of the study, and before it is made. It may raise an error that ends the sweep.
        left: returns what an interrupted trial with this number has left behind.
        checkpoint_of: returns where the checkpoint of a trial's report lies; None if it has none.
        ends_sweep: returns the error that ends the whole sweep if the error of a trial concerns all; else None.
    """

    def __init__(
        self,
        spec: SweepSpec,
        *,
        study_name: str,
        storage: BaseStorage | None = None,
        saved: Callable[[], None] = lambda: None,
        left: Callable[[int], Left] = lambda number: Left(),
        checkpoint_of: Callable[[int, Mapping[str, Any]], str | None] = lambda number, report: None,
        ends_sweep: Callable[[BaseException], Exception | None] = lambda error: None,
    ) -> None:
        super().__init__()  # without a metric, which Tune would then require in every report
        self.spec = spec
        self._saved, self._left, self._checkpoint_of, self._ends_sweep = saved, left, checkpoint_of, ends_sweep
        self._fixed = control_settings(spec)
        self._points = points(spec.search)
        self._trials: dict[str, optuna.Trial] = {}
        self._reports: dict[str, dict[str, Any]] = {}  # the last one of each trial
        self._checkpoints: dict[str, str] = {}  # the last one of each trial; not every report has one
        self._errors: dict[str, BaseException] = {}
        self._time_s: dict[str, float] = {}  # before this session
        self._failure: Exception | None = None
        self.study = study = open_study(spec, study_name, storage)
        release_running(study)
        known = study.get_trials(deepcopy=False)
        study.sampler = build_sampler(spec, num_existing=len(known))
        self._rng = np.random.default_rng([spec.seed, len(known)])
        self._known = known_settings(known)
        held = {trial.user_attrs.get(Note.control) for trial in known}
        for name, settings in self._fixed.items():
            if name not in held:
                study.enqueue_trial(as_point(spec.search, settings) or {}, user_attrs={Note.control: name})
        saved()

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the next suggestion, or Searcher.FINISHED if nothing that is not known is left to suggest."""
        for _ in range(MAX_REPEATS):
            trial = self.study.ask()
            begun = Note.settings in trial.user_attrs
            settings = trial.user_attrs[Note.settings] if begun else self._settings(trial)
            if not begun:
                trial.set_user_attr(Note.settings, settings)
            control = trial.user_attrs.get(Note.control)
            if begun or control is not None or not self._repeats(trial, settings):
                left = self._left(trial.number) if begun else Left()
                self._time_s[trial_id] = max(left.time_s, trial.user_attrs.get(Note.time_s, 0.0))
                self._trials[trial_id] = trial
                if begun and Note.record in trial.user_attrs:  # Tune may stop it before it runs again
                    self._reports[trial_id] = trial.user_attrs[Note.record]
                self._saved()
                suggestion = {"number": trial.number, "control": control, "settings": settings}
                return suggestion | ({"checkpoints": list(left.checkpoints)} if left.checkpoints else {})
            if not self._enqueue_new_point():
                break
        if self._points is None:
            self.study.set_user_attr(EXHAUSTED, True)
        self._saved()
        return Searcher.FINISHED

    def _settings(self, trial: optuna.Trial) -> dict[str, Any]:
        control = trial.user_attrs.get(Note.control)
        settings = None if control is None else self._fixed[control]
        if settings is None or as_point(self.spec.search, settings) is not None:
            return suggest_settings(trial, self.spec.search)
        # The control is not in the search space: the study keeps its scores, but the sampler ignores them.
        return settings

    def _repeats(self, trial: optuna.Trial, settings: dict[str, Any]) -> bool:
        """Return whether settings are known or running. If so, end their trial with the known result."""
        key = key_of(settings)
        running = next((each for each in self._trials.values() if key_of(each.user_attrs[Note.settings]) == key), None)
        known = self._known.get(key)
        first = known or running
        if first is None:
            return False
        trial.set_user_attr(Note.repeats, first.number)
        if known is None or known.state is not TrialState.COMPLETE:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, known.values)
        return True

    def _enqueue_new_point(self) -> bool:
        """Make a point that is neither known nor running the next suggestion. Return False if there is none.

        In a space with too many points to list, the sampler is simply asked again.
        """
        if self._points is None:
            return True
        taken = {key_of(trial.user_attrs[Note.settings]) for trial in self._trials.values()} | self._known.keys()
        new = [point for point in self._points if key_of(point) not in taken]
        if new:
            chosen = as_point(self.spec.search, new[self._rng.integers(len(new))])
            assert chosen is not None
            self.study.enqueue_trial(chosen)
        return bool(new)

    def blame(self, trial_id: str, error: BaseException) -> None:
        """Keep the error of a trial, which Tune does not pass to `on_trial_complete`."""
        self._errors[trial_id] = error

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Keep a report of a trial, and one at a rung of early stopping in the study as well.

        Raises:
            StoreError, OSError: the study cannot be written. Every further call raises the same error.
        """
        self._keep(trial_id, result)
        trial, record = self._trials.get(trial_id), RunRecord.from_ray(result)
        if trial is None or self.spec.stopping is None or record.finished or record.scores is None:
            return
        with self._lasting():
            notes = self._notes(trial_id, result, None)
            rungs = trial.user_attrs.get(Note.rungs, [])
            if all(row["images_seen"] != record.images_seen for row in rungs):  # it may repeat one after a restart
                notes[Note.rungs] = [*rungs, notes[Note.record]]
            for name, value in notes.items():
                trial.set_user_attr(name, value)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record in the study how a trial ended. `result` is its last report, if there was one.

        Raises:
            StoreError, OSError: the study cannot be written. Every further call raises the same error.
        """
        if trial_id not in self._trials:
            return
        cause = self._errors.get(trial_id)
        if self._failure is None and error and cause is not None and (fatal := self._ends_sweep(cause)) is not None:
            raise fatal  # the trial is not to blame: it waits until the sweep goes on
        if result is not None:
            self._keep(trial_id, result)
        with self._lasting():
            self._tell(trial_id, self._reports.get(trial_id), error)

    def _keep(self, trial_id: str, report: dict[str, Any]) -> None:
        """Keep a report as the last one of a trial, and its checkpoint if it has one."""
        self._reports[trial_id] = report
        if trial_id in self._trials and (found := self._checkpoint_of(self._trials[trial_id].number, report)):
            self._checkpoints[trial_id] = found

    @contextlib.contextmanager
    def _lasting(self) -> Iterator[None]:
        """Make what a `with` block writes to the study lasting, and keep a failure."""
        if self._failure is not None:  # Tune takes an error of the first call for one of the trial, and calls again
            raise self._failure
        try:
            self._saved()
            yield
            self._saved()
        except (OSError, StoreError) as failure:
            self._failure = failure
            raise

    def _tell(self, trial_id: str, report: dict[str, Any] | None, error: bool = False) -> None:
        trial, record = self._trials[trial_id], None if report is None else RunRecord.from_ray(report)
        state, reason = self._outcome(trial_id, record, error)
        for name, value in self._notes(trial_id, report, reason).items():
            trial.set_user_attr(name, value)
        scores = record.values() if record and state is TrialState.COMPLETE else {}
        values = [value for goal in self.spec.objectives if (value := scores.get(goal.metric)) is not None]
        told = self.study.tell(trial, values or None, state=state)
        del self._trials[trial_id]
        self._known.setdefault(key_of(told.user_attrs[Note.settings]), told)

    def _outcome(self, trial_id: str, record: RunRecord | None, error: bool) -> tuple[TrialState, str | None]:
        state, reason = trial_state(record, error, self.spec.objectives)
        cause = self._errors.get(trial_id)
        return state, explain(cause).line if error and cause is not None else reason

    def _notes(self, trial_id: str, report: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        """Return what Optuna has no place for, as attributes of a trial."""
        notes: dict[str, Any] = {Note.reason: reason}
        if report is not None:
            row = RunRecord.from_ray(report).to_ray()
            notes[Note.record] = {key: value for key, value in row.items() if value is not None}
            notes[Note.checkpoint] = self._checkpoints.get(trial_id)
            notes[Note.time_s] = self._time_s[trial_id] + report.get("time_total_s", 0.0)
        return {name: value for name, value in notes.items() if value is not None}

    def close(self) -> None:
        """Make the trials that have not ended wait, as after an interruption. Those that were never told are told.

        Raises:
            StoreError, OSError: the study cannot be written.
        """
        for trial_id in list(self._trials):
            self._saved()
            trial, report = self._trials[trial_id], self._reports.get(trial_id)
            if report is not None and RunRecord.from_ray(report).finished:
                self._tell(trial_id, report)
                continue
            for name, value in self._notes(trial_id, report, None).items():
                trial.set_user_attr(name, value)
            release(self.study, trial._trial_id)
            del self._trials[trial_id]
        self._saved()

    def records(self) -> list[TrialRecord]:
        """Return the records of all trials that have begun, with results that could not be written to the study."""
        records = {record.number: record for record in read_records(self.study)}
        for trial_id, trial in self._trials.items():
            report = self._reports.get(trial_id)
            record = None if report is None else RunRecord.from_ray(report)
            if record is not None and record.finished:
                state, reason = self._outcome(trial_id, record, False)
                notes = trial.user_attrs | self._notes(trial_id, report, reason)
                records[trial.number] = record_of(trial.number, state, notes)
        return [records[number] for number in sorted(records)]

    def set_search_properties(self, metric: Any, mode: Any, config: dict, **spec: Any) -> bool:
        """Ignore Tune's metric and constants, because the space and the objectives come from the spec."""
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing when Tune pickles the searcher, whose memory is the study; a connection cannot be pickled."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing when Tune asks for a snapshot, because the study has a storage of its own."""
