"""One sweep from spec to promoted model: claim a folder, search, keep the results, publish the best."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import signal
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.logger import JsonLoggerCallback
from rich.console import Console

from raydis.cluster.connect import fetch_result, ray_cluster
from raydis.cluster.resources import Node, choose_device, cluster_grows, cluster_nodes, free_nodes, max_parallel_runs
from raydis.cluster.storage import check_storage
from raydis.config import DataConfig
from raydis.errors import ConfigError, RaydisError, ResourceError, StoreError, SweepError, explain, final_error
from raydis.registry import locate_first_stage, names_version
from raydis.store import Store, StoreConflict, open_store
from raydis.sweep.progress import SweepProgress, SweepState
from raydis.sweep.publish import Published, publish
from raydis.sweep.searcher import StudySearcher, journal
from raydis.sweep.spec import NAME, SweepSpec
from raydis.sweep.summary import (
    Replicates,
    TrialRecord,
    choose_best,
    pareto_front,
    read_records,
    replicates,
    to_json,
    write_tables,
)
from raydis.sweep.trial import run_trial, trial_name, trial_resources

log = logging.getLogger(__name__)

STUDY_FILE = "optuna.journal"
SPEC_FILE = "spec.json"
PROBE_FILE = "probe"
PROBE_BYTES = 1 << 16


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        name, folder: of the sweep; the folder is a path or s3:// URI.
        records: of all trials that ran, by number.
        front: numbers of the trials on the Pareto front.
        replicates: of each control that ran with several seeds, mean and standard deviation.
        best: the trial of highest standing by the spec's objectives.
        published: what became of it; None without promotion, after an interruption, and where it failed.
        unpublished: why publishing it failed, if it did.
        unwritten: why the tables could not be written, if they could not.
        interrupted: some trials never ended.
    """

    name: str
    folder: str
    records: list[TrialRecord]
    front: set[int]
    replicates: list[Replicates]
    best: TrialRecord | None
    published: Published | None
    interrupted: bool
    unpublished: str | None = None
    unwritten: str | None = None


def default_name(spec: SweepSpec) -> str:
    """Name of a sweep that the user did not name: the spec's, and the time."""
    return f"{spec.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def run_sweep(spec: SweepSpec, *, name: str, storage: str, console: Console) -> SweepResult:
    """Run all trials of a sweep, write its tables, and publish the best trial.

    Results lie in `sweeps/NAME` below the storage: spec.json, trials.csv and .parquet, summary.json, the Optuna study
    (local storage only), a folder a trial.

    Args:
        storage: folder or s3://bucket/prefix.
        console: where progress is shown.

    Raises:
        ConfigError: a name that is not allowed, or that a sweep has.
        ResourceError: the cluster cannot hold a trial.
        DataError: the data set cannot be opened.
        SweepError: no trial ended with valid scores.
        StoreError: the storage refused while trials ran; what they had found is printed.
    """
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"sweep name {name[:80]!r} is not allowed: up to 64 letters, digits, '.', '_' and '-'")
    store = open_store(storage)
    key = f"sweeps/{name}"
    if store.exists(f"{key}/{SPEC_FILE}"):
        raise _taken(store, key)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # tracebacks of trials are in their error.txt
    logging.getLogger("optuna").setLevel(logging.WARNING)  # it announces every study on standard error
    with ray_cluster():
        nodes, grows = cluster_nodes(), cluster_grows()
        compute = choose_device(spec.run.compute, nodes, grows=grows)
        check_first_stages(spec)
        run = locate_first_stage(spec.run, storage).model_copy(update={"compute": compute})
        spec = spec.model_copy(update={"run": run})
        parallel = parallel_trials(spec, nodes, grows=grows)
        check_data(spec)
        _claim(store, key, spec)
        check_storage(store, f"{key}/{SPEC_FILE}")
        searcher = StudySearcher(spec, study_name=name, storage=_study_storage(store, key))
        grid = _search(spec, searcher, name=name, store=store, parallel=parallel, console=console)
        records = read_records(grid, spec, store.location)
        interrupted = len(records) < spec.total_trials or any(record.state == "stopped" for record in records)
        front = pareto_front(records, spec.objectives)
        best = choose_best(records, spec.objectives)
        result = SweepResult(
            name=name,
            folder=str(store.location / key),
            records=records,
            front=front,
            replicates=replicates(records, spec.objectives),
            best=best,
            published=None,
            interrupted=interrupted,
        )
        try:  # before anything else can fail
            write_tables(store, key, records, front)
            _write_summary(store, key, result)
        except StoreError as error:  # shown, for it took hours; nothing can be published into such a storage
            return replace(result, unwritten=str(error))
        if best is not None and spec.promotion is not None and not interrupted:
            console.print(f"scoring the best trial by the {spec.promotion.protocol} protocol ...", highlight=False)
            try:
                published = publish(best, spec, spec.promotion, storage=store.uri, folder=key)
                result = replace(result, published=published)
            except (RaydisError, RayError) as error:
                result = replace(result, unpublished=explain(error).line)
            _write_summary(store, key, result)
    return check_result(result)


def parallel_trials(spec: SweepSpec, nodes: Sequence[Node], *, grows: bool) -> int:
    """Return how many trials a cluster may be given at once.

    Trials of one worker wait in Tune's queue, so that all places count, whoever has them now. Workers of one run start
    together or not at all: runs of several get the places that are free. A cluster with an autoscaler has its nodes yet
    to come, and it is the spec that says how many trials ask for them.

    Raises:
        ResourceError: not even one, in a cluster that does not grow.
    """
    if grows:
        log.warning("the cluster grows: trials wait for its nodes; max_concurrent says how many may ask at once")
        return spec.total_trials
    places = max_parallel_runs(spec.run.compute, nodes)
    if spec.run.compute.num_workers == 1:
        return places
    with contextlib.suppress(ResourceError):  # full at this moment
        return min(places, max_parallel_runs(spec.run.compute, free_nodes()))
    return 1


def check_result(result: SweepResult) -> SweepResult:
    """The result, unless all trials ended and none of them has valid scores. Raises SweepError."""
    if result.best is None and not result.interrupted:
        reasons = sorted({record.reason for record in result.records if record.reason})
        raise SweepError(
            f"no trial of {len(result.records)} ended with valid scores, so nothing was promoted: "
            f"{'; '.join(reasons)[:400]}. The trials lie in {result.folder}"
        )
    return result


def check_data(spec: SweepSpec) -> None:
    """Open the data set on the cluster, once, before any trial does. Raises DataError."""
    fetch_result(ray.remote(_open_data).remote(spec.run.data))


def _open_data(config: DataConfig) -> int:
    from raydis.data import open_dataset

    return len(open_dataset(config))


def _search(
    spec: SweepSpec, searcher: StudySearcher, *, name: str, store: Store, parallel: int, console: Console
) -> tune.ResultGrid:
    """Run the trials; Ctrl-C ends them early and in good order."""
    state = SweepState(spec.total_trials, spec.run.train.num_images, spec.objectives)
    with SweepProgress(state, console) as progress:
        tuner = tune.Tuner(
            tune.with_resources(run_trial, trial_resources(spec.run)),
            param_space={
                "run": spec.run.model_dump(mode="json"),
                "sweep": name,
                "folder": str(store.location / "sweeps" / name),
            },
            tune_config=tune.TuneConfig(
                search_alg=searcher,
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
                    signal.signal(signal.SIGINT, on_interrupt)  # Tune leaves its own, which would swallow a Ctrl-C
                searcher.close()
        except Exception as error:
            console.print(state.table())
            _check_room(store, f"sweeps/{name}/{PROBE_FILE}", error)
            raise


def _check_room(store: Store, key: str, error: Exception) -> None:
    """Raise StoreError where a full disk or a failing storage is behind an error of Tune.

    Where the error does not say so, the store does: a file is written to it, for a full disk takes the name of a file
    and refuses the bytes.
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


def check_first_stages(spec: SweepSpec) -> None:
    """Only the base run's first stage may be a name of the registry: it is looked up once, for all trials alike."""
    fixed = [control.set for control in spec.controls]
    chosen = [{key: value} for key, domain in spec.search.items() for value in domain.ends()]
    for key, value in (item for settings in [*fixed, *chosen] for item in settings.items()):
        checkpoint = value.get("checkpoint") if isinstance(value, dict) else value
        if key in ("first_stage", "first_stage.checkpoint") and names_version(str(checkpoint)):
            raise ConfigError(f"{key} of a control or choice names {checkpoint}: give the checkpoint's folder or URI")


def _claim(store: Store, key: str, spec: SweepSpec) -> None:
    """Write the spec under the sweep's name, unless another sweep was faster."""
    try:
        store.write(f"{key}/{SPEC_FILE}", spec.model_dump_json(indent=2).encode(), if_absent=True)
    except StoreConflict as error:
        raise _taken(store, key) from error


def _taken(store: Store, key: str) -> ConfigError:
    return ConfigError(f"{key} exists in {store.uri}: choose another --name")


def _study_storage(store: Store, key: str) -> Any:
    folder = store.location.folder
    return journal(folder / key / STUDY_FILE) if folder else None


def _write_summary(store: Store, key: str, result: SweepResult) -> None:
    store.write(f"{key}/summary.json", json.dumps(_summary(result), indent=2).encode())


def _summary(result: SweepResult) -> dict[str, Any]:
    """summary.json: all that the tables say, and what was promoted."""
    published = result.published
    return {
        "name": result.name,
        "folder": result.folder,
        "interrupted": result.interrupted,
        "best": result.best.number if result.best else None,
        "front": sorted(result.front),
        "unpublished": result.unpublished,
        "promotion": published
        and {
            "model": published.promotion.ref.name,
            "version": published.promotion.ref.version,
            "promoted": published.promotion.decision.promote,
            "reason": published.promotion.decision.reason,
            "scores": published.scores.to_dict(),
        },
        "replicates": [asdict(row) for row in result.replicates],
        "trials": to_json(result.records, result.front),
    }
