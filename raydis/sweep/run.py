"""One sweep from spec to promoted model: claim a folder, search, keep the results, publish the best."""

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
from raydis.registry import locate_first_stage
from raydis.store import open_store
from raydis.sweep.folder import SPEC_FILE, claim, study_storage, taken
from raydis.sweep.preflight import check_data, check_first_stages, parallel_trials
from raydis.sweep.publish import publish
from raydis.sweep.result import SweepResult, check_result, result_of, write_summary
from raydis.sweep.search import search
from raydis.sweep.searcher import StudySearcher
from raydis.sweep.spec import NAME, SweepSpec
from raydis.sweep.summary import read_records, write_tables


def default_name(spec: SweepSpec) -> str:
    """Return the name of a sweep that the user did not name: the spec's, and the time."""
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
        raise taken(store, key)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # tracebacks of trials are in their error.txt
    logging.getLogger("optuna").setLevel(logging.WARNING)  # it announces every study on standard error
    with ray_cluster():
        spec, parallel = _fit_to_cluster(spec, storage)
        claim(store, key, spec)
        check_storage(store, f"{key}/{SPEC_FILE}")
        searcher = StudySearcher(spec, study_name=name, storage=study_storage(store, key))
        grid = search(spec, searcher, name=name, store=store, parallel=parallel, console=console)
        records = read_records(grid, spec, store.location)
        result = result_of(records, spec, name=name, folder=str(store.location / key))
        try:  # before anything else can fail
            write_tables(store, key, records, result.front)
            write_summary(store, key, result)
        except StoreError as error:  # shown, for it took hours; nothing can be published into such a storage
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
    """Return the spec with its device and its first stage's place, and how many trials may run at once."""
    nodes, grows = cluster_nodes(), cluster_grows()
    compute = choose_device(spec.run.compute, nodes, grows=grows)
    check_first_stages(spec)
    run = locate_first_stage(spec.run, storage).model_copy(update={"compute": compute})
    spec = spec.model_copy(update={"run": run})
    parallel = parallel_trials(spec, nodes, grows=grows)
    check_data(spec)
    return spec, parallel
