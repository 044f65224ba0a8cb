"""Run one sweep: reserve a folder, run the trials, write the results, and publish the best trial."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from datetime import UTC, datetime

from ray.exceptions import RayError
from rich.console import Console

from raydis.cluster.connect import ray_cluster
from raydis.cluster.resources import choose_device, cluster_grows, cluster_nodes
from raydis.cluster.storage import check_storage
from raydis.errors import ConfigError, RaydisError, StoreError, explain
from raydis.registry import locate_checkpoints
from raydis.store import open_store
from raydis.sweep.files import SPEC_FILE
from raydis.sweep.folder import claim, study_storage, taken
from raydis.sweep.preflight import check_checkpoints, check_data, parallel_trials
from raydis.sweep.publish import publish
from raydis.sweep.result import SweepResult, check_result, result_of, write_summary
from raydis.sweep.search import search
from raydis.sweep.searcher import StudySearcher
from raydis.sweep.spec import NAME, SweepSpec
from raydis.sweep.summary import read_records, write_tables


def default_name(spec: SweepSpec) -> str:
    """Return the default name of a sweep: the name in its spec, and the time in UTC."""
    return f"{spec.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def run_sweep(spec: SweepSpec, *, name: str, storage: str, console: Console) -> SweepResult:
    """Run all trials of a sweep, write its tables, and publish the best trial.

    The results are in `sweeps/NAME` below the storage: spec.json, trials.csv, trials.parquet, summary.json, the Optuna
    study (local storage only), and a folder for each trial.

    Args:
        storage: folder or s3://bucket/prefix.
        console: where progress is shown.

    Raises:
        ConfigError: the name is not allowed, or another sweep has it.
        ResourceError: the cluster cannot hold a trial.
        DataError: the data set cannot be opened.
        SweepError: no trial ended with valid scores.
        StoreError: the storage failed while trials ran. Their results so far are printed.
    """
    if not re.fullmatch(NAME, name):
        raise ConfigError(f"sweep name {name[:80]!r} is not allowed: up to 64 letters, digits, '.', '_' and '-'")
    store = open_store(storage)
    key = f"sweeps/{name}"
    if store.exists(f"{key}/{SPEC_FILE}"):
        raise taken(store, key)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it prints tracebacks, which are in error.txt as well
    logging.getLogger("optuna").setLevel(logging.WARNING)  # it prints a message for every study to standard error
    with ray_cluster():
        spec, parallel = _fit_to_cluster(spec, storage)
        claim(store, key, spec)
        check_storage(store, f"{key}/{SPEC_FILE}")
        searcher = StudySearcher(spec, study_name=name, storage=study_storage(store, key))
        grid = search(spec, searcher, name=name, store=store, parallel=parallel, console=console)
        records = read_records(grid, spec, store.location, searcher.stopped)
        result = result_of(records, spec, name=name, folder=str(store.location / key))
        try:  # before anything else can fail
            write_tables(store, key, records, result.front)
            write_summary(store, key, result)
        except StoreError as error:  # do not lose the results of hours: print them; publishing would fail as well
            return replace(result, unwritten=str(error))
        if result.best is not None and spec.promotion is not None and not result.interrupted:
            console.print(f"scoring the best trial by the {spec.promotion.protocol} protocol ...", highlight=False)
            try:
                published = publish(result.best, spec, spec.promotion, storage=store.uri, folder=key)
                result = replace(result, published=published)
            except (RaydisError, RayError) as error:
                result = replace(result, unpublished=explain(error).line)
            write_summary(store, key, result)
    return check_result(result)


def _fit_to_cluster(spec: SweepSpec, storage: str) -> tuple[SweepSpec, int]:
    """Return the spec with its device and the location of its first stage, and how many trials may run at once."""
    nodes, grows = cluster_nodes(), cluster_grows()
    compute = choose_device(spec.run.compute, nodes, grows=grows)
    check_checkpoints(spec)
    run = locate_checkpoints(spec.run, storage).model_copy(update={"compute": compute})
    spec = spec.model_copy(update={"run": run})
    parallel = parallel_trials(spec, nodes, grows=grows)
    check_data(spec)
    return spec, parallel
