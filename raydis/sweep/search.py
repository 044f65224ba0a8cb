"""Run the trials of a sweep with Ray Tune."""

from __future__ import annotations

import signal
import threading
from typing import Any

from ray import tune
from ray.tune.logger import JsonLoggerCallback
from rich.console import Console

from raydis.errors import StoreError, final_error
from raydis.store import Store
from raydis.sweep.progress import SweepProgress, SweepState
from raydis.sweep.searcher import StudySearcher
from raydis.sweep.spec import SweepSpec
from raydis.sweep.stopping import SweepScheduler
from raydis.sweep.trial import run_trial, trial_name, trial_resources

PROBE_FILE = "probe"
PROBE_BYTES = 1 << 16


def search(
    spec: SweepSpec, searcher: StudySearcher, *, name: str, store: Store, parallel: int, console: Console
) -> tune.ResultGrid:
    """Run the trials and return their results. Ctrl-C ends the search early, and the results so far are returned.

    Raises:
        StoreError: the storage failed.
    """
    state = SweepState(spec.total_trials, spec.run.train.num_images, spec.objectives)
    scheduler = SweepScheduler(spec, spec.stopping) if spec.stopping else None
    with SweepProgress(state, console, scheduler) as progress:
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
                num_samples=spec.total_trials,
                max_concurrent_trials=min(spec.max_concurrent or parallel, parallel),
                reuse_actors=True,
                trial_name_creator=_name_of,
                trial_dirname_creator=_name_of,
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
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            try:
                return tuner.fit()
            finally:
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGINT, on_interrupt)  # Tune leaves its own handler, which ignores Ctrl-C
                searcher.close()
        except Exception as error:
            console.print(state.table())
            _check_room(store, f"sweeps/{name}/{PROBE_FILE}", error)
            raise


def _check_room(store: Store, key: str, error: Exception) -> None:
    """Raise StoreError if a full disk or a failing storage has caused an error of Tune.

    The error itself may not say so. Therefore write a file with content to the store: on a full disk, an empty file can
    still be created.
    """
    final = final_error(error)
    try:
        store.write(key, bytes(PROBE_BYTES))
        store.delete(key)
    except StoreError as refused:
        final = refused
    if final is not None:
        raise StoreError(f"the sweep cannot go on: {final}") from error


def _name_of(trial: Any) -> str:
    return trial_name(trial.config["number"])
