"""Read the folder of a sweep, also while the sweep runs, and from another machine. Nothing here starts Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import optuna

from raydis.checkpoint.migrate import migrate_config
from raydis.config.files import parse
from raydis.engine.record import RunRecord
from raydis.errors import ConfigError
from raydis.store import Store, StoreMissing
from raydis.store.lease import Lease, held_leases
from raydis.sweep.files import LEASE_FILE, SPEC_FILE
from raydis.sweep.folder import read_spec, sweep_key
from raydis.sweep.journal import read_study, study_storage
from raydis.sweep.left import RESULT_FILE, elapsed, last_report
from raydis.sweep.result import SweepResult, read_published, read_summary, result_of, write_summary
from raydis.sweep.spec import SweepSpec
from raydis.sweep.study import is_aged, num_left, read_records
from raydis.sweep.summary import TrialRecord, write_tables
from raydis.sweep.trial import trial_name


@dataclass(frozen=True)
class StoredSweep:
    """What the folder of a sweep holds.

    Attributes:
        spec: the specification that it was begun with.
        result: the result of its trials so far, each with its last report.
        num_left: number of trials that have not ended.
        running: whether a process runs it.
    """

    spec: SweepSpec
    result: SweepResult
    num_left: int
    running: bool

    @property
    def state(self) -> Literal["running", "interrupted", "unpublished", "ended"]:
        """What becomes of the sweep: `interrupted` and `unpublished` ones go on with the command that began them."""
        if self.running:
            return "running"
        return "interrupted" if self.num_left else "unpublished" if self.result.unpublished is not None else "ended"

    @property
    def num_ended(self) -> int:
        """The number of trials that have ended."""
        return sum(record.ended for record in self.result.records)


def sweep_names(store: Store) -> list[str]:
    """Return the names of all sweeps in a store, sorted."""
    keys = (key.split("/") for key in store.list("sweeps/"))
    return sorted(parts[1] for parts in keys if parts[2:] == [SPEC_FILE])


def running_sweeps(store: Store, names: Sequence[str]) -> set[str]:
    """Return those of some sweeps that a process runs now. This may take seconds; see `held_leases`."""
    keys = {f"{sweep_key(name)}/{LEASE_FILE}": name for name in names}
    return {keys[key] for key in held_leases(store, keys)}


def read_sweep(store: Store, name: str, *, running: bool) -> StoredSweep:
    """Return what the folder of a sweep holds.

    Args:
        running: whether a process runs it; see `running_sweeps`.

    Raises:
        ConfigError: there is no such sweep, its specification is damaged, or an older raydis has begun it.
    """
    key, tree = sweep_key(name), read_spec(store, name)
    if tree is None:
        raise ConfigError(f"no sweep {name} in {store.uri}: `python -m raydis sweeps list` shows those that exist")
    spec = parse(SweepSpec, tree | {"run": migrate_config(dict(tree.get("run", {})))}, source=f"{key}/{SPEC_FILE}")
    study = read_study(store, name)
    if is_aged(study) if study is not None else has_trials(store, name):
        raise ConfigError(
            f"sweep {name} was begun by an older raydis, whose studies have no records of trials: read trials.csv and "
            f"summary.json in {store.location / key}"
        )
    if study is None:  # it has just begun
        result = result_of([], spec, name=name, folder=str(store.location / key), interrupted=True)
        return StoredSweep(spec, result, spec.total_trials, running)
    return StoredSweep(spec, stored_result(store, spec, study, running=running), num_left(study, spec), running)


def has_trials(store: Store, name: str) -> bool:
    """Return whether trials of a sweep have begun, by their folders."""
    return any(True for _ in store.list(f"{sweep_key(name)}/{trial_name(0)}/"))


def stored_result(store: Store, spec: SweepSpec, study: optuna.Study, *, running: bool = False) -> SweepResult:
    """Return the result of the trials of a sweep so far, each with its last report.

    Args:
        spec: the specification by which they are compared.
        study: that of the sweep.
        running: whether a process runs it. Otherwise, trials that run by the study were interrupted.
    """
    key = sweep_key(study.study_name)
    records = [_with_progress(store, study.study_name, record, running) for record in read_records(study)]
    folder, interrupted = str(store.location / key), num_left(study, spec) > 0
    result = result_of(records, spec, name=study.study_name, folder=folder, interrupted=interrupted)
    published = read_published(store, key, result, spec)
    if result.best is None or spec.promotion is None or interrupted or published is not None:
        return replace(result, published=published)
    reason = read_summary(store, key).get("unpublished")
    return replace(result, unpublished=reason or "it has not been scored yet; the same command goes on")


def _with_progress(store: Store, name: str, record: TrialRecord, running: bool) -> TrialRecord:
    """Return the record of a trial with its last report, which the study has only of some."""
    if record.ended:
        return record
    try:
        log = store.read(f"{sweep_key(name)}/{trial_name(record.number)}/{RESULT_FILE}")
    except StoreMissing:
        log = b""
    run = RunRecord.from_ray(last_report(log))
    if (run.images_seen or 0) > (record.run.images_seen or 0):
        record = replace(record, run=run, time_s=elapsed(log))
    if running:
        return record
    seen = record.run.images_seen or 0
    reason = f"interrupted after {seen} images; the same command continues it"
    return replace(record, state="interrupted", reason=reason)


def rebuild(store: Store, name: str) -> SweepResult:
    """Write the tables of a sweep anew from its study, into its own folder, and return its result.

    Raises:
        ConfigError: see `read_sweep`.
        LeaseTaken: a process runs the sweep. `write_tables_of` can write the tables elsewhere.
    """
    key = sweep_key(name)
    read_sweep(store, name, running=False)  # a wrong name gets no lease
    with Lease(store, f"{key}/{LEASE_FILE}", what=f"sweep {name}").held():
        result = read_sweep(store, name, running=False).result
        write_tables_of(result, store, key)
        _, parts = study_storage(store, key)
        if parts is not None:
            parts.write_whole()
    return result


def write_tables_of(result: SweepResult, store: Store, key: str) -> None:
    """Write trials.csv, trials.parquet and summary.json below a key of any store."""
    write_tables(store, key, result.records, result.front)
    write_summary(store, key, result)
