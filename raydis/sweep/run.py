"""Run one sweep: begin or continue it, run the trials that are left, write the results, and publish the best trial."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace

from ray.exceptions import RayError
from rich.console import Console

from raydis.cluster.connect import ray_cluster
from raydis.cluster.resources import choose_device, cluster_grows, cluster_nodes
from raydis.cluster.storage import check_storage
from raydis.errors import ConfigError, RaydisError, StoreError, explain
from raydis.registry import locate_checkpoints
from raydis.store import Store, open_store
from raydis.store.lease import Lease
from raydis.sweep.difference import as_recorded
from raydis.sweep.files import LEASE_FILE, SPEC_FILE
from raydis.sweep.folder import check_spec, read_spec, sweep_key, write_spec
from raydis.sweep.journal import read_study, study_storage
from raydis.sweep.preflight import check_checkpoints, check_data, parallel_trials
from raydis.sweep.publish import publish
from raydis.sweep.read import has_trials, stored_result
from raydis.sweep.result import (
    SweepResult,
    check_result,
    read_published,
    read_summary,
    result_of,
    write_summary,
)
from raydis.sweep.search import search, searcher_of
from raydis.sweep.searcher import StudySearcher
from raydis.sweep.spec import SweepSpec
from raydis.sweep.study import AGED, check_age, num_left
from raydis.sweep.summary import TrialRecord, write_tables

HAS_ENDED = (
    "this sweep has ended, and its results follow: ask for more trials with --num-trials, begin another sweep with "
    "--fresh, or choose another --name"
)


def run_sweep(spec: SweepSpec, *, name: str, storage: str, console: Console) -> SweepResult:
    """Run what is left of a sweep, write its tables, and publish the best trial.

    The results are in `sweeps/NAME` below the storage: spec.json, trials.csv, trials.parquet, summary.json, the Optuna
    study, and a folder for each trial. The same call continues a sweep that was interrupted: trials that have ended are
    not repeated, and the others go on from their last checkpoints.

    Args:
        storage: folder or s3://bucket/prefix.
        console: where progress is shown.

    Raises:
        ConfigError: the name is not allowed, or a sweep of this name was begun with another specification.
        LeaseTaken: another process runs this sweep.
        ResourceError: the cluster cannot hold a trial.
        DataError: the data set cannot be opened.
        SweepError: no trial ended with valid scores.
        StoreError: the storage failed before the first trial. If it fails later, the result says so (`unwritten`).
    """
    store, key = open_store(storage), sweep_key(name)
    spec = _located(spec, store, name)
    check_spec(store, name, spec)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it prints tracebacks, which are in error.txt as well
    logging.getLogger("optuna").setLevel(logging.WARNING)  # it prints a message for every study to standard error
    lease = Lease(store, f"{key}/{LEASE_FILE}", what=f"sweep {name}")
    with contextlib.ExitStack() as stack:
        if read_spec(store, name) is not None:  # ask before Ray starts, which takes seconds
            stack.enter_context(lease.held())
            if (ended := _ended(spec, store, name)) is not None:
                console.print(HAS_ENDED, highlight=False, soft_wrap=True)
                return check_result(ended)
            stack.enter_context(ray_cluster())
            spec, parallel = _feasible(spec)
        else:
            stack.enter_context(ray_cluster())
            spec, parallel = _feasible(spec)  # before anything is written
            stack.enter_context(lease.held())
        result = _run(spec, lease, name=name, parallel=parallel, console=console)
    return check_result(result)


def _located(spec: SweepSpec, store: Store, name: str) -> SweepSpec:
    """Return the spec with the locations of the checkpoints that it names by version or alias."""
    check_checkpoints(spec)
    run = as_recorded(spec.run, read_spec(store, name) or {})
    return spec.model_copy(update={"run": locate_checkpoints(run, store.uri)})


def _ended(spec: SweepSpec, store: Store, name: str) -> SweepResult | None:
    """Return the result of a sweep of which nothing is left to do; None if something is. This does not need Ray.

    Raises:
        ConfigError: the sweep cannot go on, because an older raydis has begun it.
    """
    study = read_study(store, name)
    if study is None:
        if has_trials(store, name):  # in a bucket, there was no study
            raise ConfigError(AGED.format(name))
        return None
    check_age(study)
    result = stored_result(store, spec, study)
    written = read_summary(store, sweep_key(name)).get("interrupted") is False
    return result if written and not result.interrupted and result.unpublished is None else None


def _feasible(spec: SweepSpec) -> tuple[SweepSpec, int]:
    """Return the spec with the device of the cluster, and how many of its trials the cluster holds at once.

    Raises:
        ResourceError, DataError: see `run_sweep`.
    """
    nodes, grows = cluster_nodes(), cluster_grows()
    compute = choose_device(spec.run.compute, nodes, grows=grows)
    spec = spec.model_copy(update={"run": spec.run.model_copy(update={"compute": compute})})
    parallel = parallel_trials(spec, nodes, grows=grows)
    check_data(spec)
    return spec, parallel


def _run(spec: SweepSpec, lease: Lease, *, name: str, parallel: int, console: Console) -> SweepResult:
    store, key = lease.store, sweep_key(name)
    check_spec(store, name, spec)  # again, as the first check was made without the lease
    write_spec(store, name, spec)
    check_storage(store, f"{key}/{SPEC_FILE}")
    journal, parts = study_storage(store, key, mend=True)

    def saved() -> None:
        lease.check()
        if parts is not None:
            parts.flush()

    searcher = searcher_of(spec, journal, name=name, store=store, saved=saved)
    failure, interrupted = _search(spec, searcher, name=name, store=store, parallel=parallel, console=console)
    records = searcher.records()
    result = result_of(
        records, spec, name=name, folder=str(store.location / key), interrupted=interrupted or failure is not None
    )
    if failure is not None:
        return replace(result, unwritten=str(failure))
    try:  # before anything else can fail
        if parts is not None:
            parts.write_whole()
        return _finish(result, spec, store, console)
    except StoreError as error:  # do not lose the results of hours: print them
        return replace(result, unwritten=f"the sweep's tables were not written: {error}")


def _search(
    spec: SweepSpec, searcher: StudySearcher, *, name: str, store: Store, parallel: int, console: Console
) -> tuple[StoreError | None, bool]:
    """Run the trials that are left. Return the failure of the storage that ended the search, and whether some wait."""
    earlier: Sequence[TrialRecord] = searcher.records()
    left = num_left(searcher.study, spec)
    if ended := sum(record.ended for record in earlier):
        console.print(f"{ended} of {ended + left} trials have ended", highlight=False, soft_wrap=True)
    stopped = False
    try:
        if left:
            search(spec, searcher, earlier, name=name, store=store, parallel=parallel, console=console)
    except KeyboardInterrupt:  # before Tune took over the signals, or a second one
        stopped = True
    except StoreError as error:
        return error, True
    return None, stopped or num_left(searcher.study, spec) > 0


def _finish(result: SweepResult, spec: SweepSpec, store: Store, console: Console) -> SweepResult:
    """Write the tables of a sweep, and publish its best trial if all trials have ended and it is not published yet."""
    key = sweep_key(result.name)
    write_tables(store, key, result.records, result.front)
    before = read_published(store, key, result, spec)
    result = replace(result, published=before)
    write_summary(store, key, result)
    if result.best is None or spec.promotion is None or result.interrupted or before is not None:
        return result
    console.print(f"scoring the best trial by the {spec.promotion.protocol} protocol ...", highlight=False)
    try:
        published = publish(result.best, spec, spec.promotion, storage=store.uri, folder=key)
        result = replace(result, published=published)
    except (RaydisError, RayError) as error:
        result = replace(result, unpublished=explain(error).line)
    except KeyboardInterrupt:
        return replace(result, unpublished="interrupted while it was scored", interrupted=True)
    write_summary(store, key, result)
    return result
