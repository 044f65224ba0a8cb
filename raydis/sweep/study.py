"""What the Optuna study of a sweep holds: its trials as records, and which of them are left to run.

The study is the memory of a sweep. Each trial keeps, as user attributes, what Optuna has no place for (see `Note`). A
trial that an interruption ended waits in the study with its settings, and is the next that `study.ask` returns.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from raydis.engine.record import RunRecord
from raydis.errors import ConfigError
from raydis.metrics.standing import Objective, missing
from raydis.sweep.domains import points
from raydis.sweep.space import control_settings
from raydis.sweep.spec import SweepSpec
from raydis.sweep.summary import State, TrialRecord


class Note:
    """The names of a trial's user attributes.

    control: the name of the control run that the trial is.
    settings: dotted key of the run -> value; written when the trial is suggested.
    record: its last record, as `RunRecord.to_ray` writes it, without what is None.
    rungs: with early stopping, its records at the rungs, each as `record`.
    time_s: its time so far, over all interruptions.
    checkpoint: folder or s3:// URI of its last checkpoint.
    reason: why it is not complete.
    repeats: number of an earlier trial with the same settings. Such a trial never runs, and counts nowhere.
    """

    control, settings, record, rungs, time_s = "control", "settings", "record", "rungs", "time_s"
    checkpoint, reason, repeats = "checkpoint", "reason", "repeats"


AGED = (
    "sweep {} was begun by an older raydis and cannot go on: begin another one with --fresh, or choose another --name"
)
EXHAUSTED = "exhausted"  # attribute of a study whose sampler found no settings that are new
STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "interrupted",
}


def open_study(spec: SweepSpec, name: str, storage: BaseStorage | None) -> optuna.Study:
    """Return the study of a sweep, which is created if it does not exist; `storage=None` keeps it in memory.

    Raises:
        ConfigError: an older raydis has begun the study; see `check_age`.
    """
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=["maximize" if goal.direction == "max" else "minimize" for goal in spec.objectives],
        load_if_exists=True,
    )
    if not study.get_trials(deepcopy=False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([goal.metric for goal in spec.objectives])  # shown by optuna-dashboard
    check_age(study)
    return study


def check_age(study: optuna.Study) -> None:
    """Raise ConfigError if an older raydis has begun a study; see `is_aged`."""
    if is_aged(study):
        raise ConfigError(AGED.format(study.study_name))


def is_aged(study: optuna.Study) -> bool:
    """Return whether an older raydis has begun a study, which has no records of its trials and no names of metrics."""
    return study.metric_names is None and bool(study.get_trials(deepcopy=False))


def release_running(study: optuna.Study) -> None:
    """Make the trials wait that a killed driver left as running. Only the holder of the sweep's lease may do this."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if Note.repeats in trial.user_attrs:
            study.tell(trial.number, state=TrialState.FAIL)
        else:
            release(study, trial._trial_id)


def release(study: optuna.Study, trial_id: int) -> None:
    """Make a trial wait until it is asked for again. It keeps its number, parameters and attributes."""
    study._storage.set_trial_state_values(trial_id, TrialState.WAITING)


def read_records(study: optuna.Study) -> list[TrialRecord]:
    """Return the records of all trials that have begun, sorted by number."""
    trials = study.get_trials(deepcopy=False)
    return [record_of(trial.number, trial.state, trial.user_attrs) for trial in trials if _has_begun(trial)]


def record_of(number: int, state: TrialState, notes: Mapping[str, Any]) -> TrialRecord:
    """Return the record of a trial that has begun, by its number, its state and its attributes."""
    record = RunRecord.from_ray(notes.get(Note.record, {}))
    reason = notes.get(Note.reason)
    if state is TrialState.WAITING:
        reason = f"interrupted after {record.images_seen or 0} images; the same command continues it"
    return TrialRecord(
        number=number,
        control=notes.get(Note.control),
        settings=notes[Note.settings],
        state=STATES[state],
        reason=reason,
        run=record,
        time_s=notes.get(Note.time_s),
        checkpoint=notes.get(Note.checkpoint),
    )


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


def read_reports(study: optuna.Study) -> dict[int, list[dict[str, Any]]]:
    """Return, by number, what the trials of a sweep with early stopping have reported: at the rungs, and last."""
    found = dict[int, list[dict[str, Any]]]()
    for trial in study.get_trials(deepcopy=False):
        notes = trial.user_attrs
        if Note.record in notes:
            found[trial.number] = [*notes.get(Note.rungs, ()), notes[Note.record]]
    return found


def known_settings(trials: Sequence[FrozenTrial]) -> dict[str, FrozenTrial]:
    """Return the trials that have ended, by `key_of` their settings, which are not run again.

    This includes trials whose process died: they have been restarted as often as the specification allows.
    """
    known = dict[str, FrozenTrial]()
    for trial in trials:
        if trial.state.is_finished() and Note.repeats not in trial.user_attrs:
            known.setdefault(key_of(trial.user_attrs[Note.settings]), trial)
    return known


def key_of(settings: dict[str, Any]) -> str:
    """Return settings as a text that is equal for equal settings."""
    return json.dumps(settings, sort_keys=True)


def num_left(study: optuna.Study, spec: SweepSpec) -> int:
    """Return how many trials of the sweep have not ended. If its space is finite, no point of it counts twice."""
    trials = study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state.is_finished() and Note.repeats not in trial.user_attrs]
    names = {trial.user_attrs.get(Note.control) for trial in ended}
    controls = sum(name not in names for name in control_settings(spec))
    sampled = spec.num_trials - sum(Note.control not in trial.user_attrs for trial in ended)
    begun = sum(
        Note.settings in trial.user_attrs and Note.control not in trial.user_attrs
        for trial in trials
        if not trial.state.is_finished()
    )
    if study.user_attrs.get(EXHAUSTED):
        sampled = 0
    elif (every := points(spec.search)) is not None:
        known = known_settings(trials)
        sampled = min(sampled, sum(key_of(point) not in known for point in every))
    return controls + max(sampled, begun)


def _has_begun(trial: FrozenTrial) -> bool:
    notes = trial.user_attrs
    waits = trial.state is TrialState.WAITING and Note.record not in notes
    return Note.settings in notes and Note.repeats not in notes and not waits
