"""Run the trials of a sweep that are left with Ray Tune."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.storages import BaseStorage
from ray import tune
from ray.tune.logger import JsonLoggerCallback
from rich.console import Console

from raydis.errors import StoreError, final_error
from raydis.store import Store
from raydis.sweep.controller import tolerant_tune
from raydis.sweep.left import last_index, left_behind
from raydis.sweep.progress import SweepProgress, SweepState
from raydis.sweep.searcher import StudySearcher
from raydis.sweep.signals import stopped_like_ctrl_c
from raydis.sweep.spec import SweepSpec
from raydis.sweep.stopping import SweepScheduler
from raydis.sweep.study import num_left, read_reports
from raydis.sweep.summary import TrialRecord
from raydis.sweep.trial import CHECKPOINT_URI, run_trial, trial_name, trial_resources

PROBE_FILE = "probe"
PROBE_BYTES = 1 << 16


def searcher_of(
    spec: SweepSpec, storage: BaseStorage, *, name: str, store: Store, saved: Callable[[], None]
) -> StudySearcher:
    """Return the searcher of a sweep, whose trials lie in `sweeps/NAME` of a store.

    Args:
        storage: storage of the study.
        saved: see StudySearcher.
    """
    folder = f"sweeps/{name}"

    def checkpoint_of(number: int, report: Mapping[str, Any]) -> str | None:
        if uri := report.get(CHECKPOINT_URI):
            return str(uri)
        last = report.get("checkpoint_dir_name")
        return str(store.location / f"{folder}/{trial_name(number)}/{last}") if last else None

    return StudySearcher(
        spec,
        study_name=name,
        storage=storage,
        saved=saved,
        left=lambda number: left_behind(store, f"{folder}/{trial_name(number)}"),
        checkpoint_of=checkpoint_of,
        ends_sweep=functools.partial(storage_failure, store, f"{folder}/{PROBE_FILE}"),
    )


def search(
    spec: SweepSpec,
    searcher: StudySearcher,
    earlier: Sequence[TrialRecord],
    *,
    name: str,
    store: Store,
    parallel: int,
    console: Console,
) -> None:
    """Run the trials that are left. Ctrl-C, SIGTERM and SIGHUP end the search early, and the trials then wait.

    Args:
        searcher: it knows which trials are left, and records how each of them ends.
        earlier: the trials that have ended, for the progress that is shown.
        parallel: most trials that the cluster holds at once.

    Raises:
        StoreError: the storage failed.
    """
    left = num_left(searcher.study, spec)
    total = sum(record.ended for record in earlier) + left
    state = SweepState(total, spec.run.train.num_images, spec.objectives, earlier=earlier)
    scheduler = _scheduler_of(spec, searcher)
    with SweepProgress(state, console, scheduler) as progress, stopped_like_ctrl_c(), tolerant_tune():
        tuner = tune.Tuner(
            tune.with_resources(run_trial, trial_resources(spec.run)),
            param_space={
                "run": spec.run.model_dump(mode="json"),
                "sweep": name,
                "folder": str(store.location / "sweeps" / name),
            },
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=left,
                max_concurrent_trials=min(spec.max_concurrent or parallel, parallel),
                reuse_actors=True,
                trial_name_creator=_name_of,
                trial_dirname_creator=_folder_of,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=(store.location / "sweeps").pyarrow_uri,
                failure_config=tune.FailureConfig(max_failures=spec.max_failures),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                callbacks=[progress, JsonLoggerCallback()],
                verbose=0,
            ),
        )
        try:
            try:
                tuner.fit()
            finally:
                searcher.close()
        except Exception as error:
            if (failure := storage_failure(store, f"sweeps/{name}/{PROBE_FILE}", error)) is not None:
                raise failure from error
            raise


def _scheduler_of(spec: SweepSpec, searcher: StudySearcher) -> SweepScheduler | None:
    """Return the scheduler of a sweep with early stopping, which knows what trials reported in earlier sessions."""
    if spec.stopping is None:
        return None
    scheduler = SweepScheduler(spec, spec.stopping)
    for number, reports in read_reports(searcher.study).items():
        scheduler.replay(number, reports)
    return scheduler


def storage_failure(store: Store, probe: str, error: BaseException) -> StoreError | None:
    """Return a StoreError if a full disk or a failing storage has caused an error of Tune or of a trial; else None.

    The error itself may not say so. Therefore write a file with content to the store: on a full disk, an empty file can
    still be created.

    Args:
        probe: key of that file, which is deleted again.
    """
    full = (final_error(cause) for cause in _causes(error) if isinstance(cause, OSError))
    final = next((found for found in full if found is not None), None)
    if final is None:
        try:
            store.write(probe, bytes(PROBE_BYTES))
            store.delete(probe)
        except StoreError as refused:
            final = refused
    return None if final is None else StoreError(f"the sweep cannot go on: {final}")


def _causes(error: BaseException | None) -> Sequence[BaseException]:
    """Return an error and all that have caused it, in this process or in another one (`cause` of Ray's errors)."""
    found = list[BaseException]()
    left = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseException) and one not in found:
            found.append(one)
            left += [one.__cause__, getattr(one, "cause", None)]
    return found


def _name_of(trial: Any) -> str:
    return trial_name(trial.config["number"])


def _folder_of(trial: Any) -> str:
    """Return the name of a trial's folder, and let its checkpoints be numbered from where it was interrupted.

    Tune sets the folder when a trial starts, and asks every trial for it at the end. A trial that early stopping had
    paused before an interruption may be stopped before it starts again.
    """
    trial.storage.trial_dir_name = _name_of(trial)
    trial.storage.current_checkpoint_index = last_index(trial.config.get("checkpoints", ()))
    return _name_of(trial)
