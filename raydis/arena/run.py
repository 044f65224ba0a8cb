"""Run an arena: a study and a final of each entrant, one sweep after the other, then the report.

Each sweep is one of `raydis.sweep`, in a folder below that of the arena. The same call goes on with an arena that was
interrupted: a study that has ended is not repeated, nor is a final run that has ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from raydis.arena.folder import (
    LEASE_FILE,
    Part,
    Sweeps,
    arena_key,
    check_spec,
    read_pretrained,
    read_sweeps,
    sweep_name,
    write_spec,
)
from raydis.arena.look import Look, look_at, num_rows
from raydis.arena.output import write_results
from raydis.arena.pretrain import pretrain
from raydis.arena.result import ArenaResult, Entry, entry_of, result_of
from raydis.arena.spec import ArenaSpec, Entrant
from raydis.cluster.connect import ray_cluster
from raydis.errors import StoreError, SweepError
from raydis.registry import locate_checkpoints
from raydis.store import Store, open_store
from raydis.store.lease import Lease
from raydis.sweep.run import run_sweep
from raydis.sweep.spec import SweepSpec


@dataclass(frozen=True)
class _Arena:
    """An arena that runs: its spec, its store and folder there, and where it reports."""

    spec: ArenaSpec
    store: Store
    key: str
    console: Console

    def sweeps(self, entrant: str, part: Part) -> Sweeps:
        return read_sweeps(self.store, self.key, entrant, part)

    def entry(self, entrant: str) -> Entry:
        pretrained = read_pretrained(self.store, self.key, entrant)
        return entry_of(self.spec, entrant, self.sweeps(entrant, "study"), self.sweeps(entrant, "final"), pretrained)

    def run(self, sweep: SweepSpec, entrant: str, part: Part) -> bool:
        """Run the next sweep of an entrant. Return whether all of its trials have ended.

        Raises:
            StoreError: the storage failed.
        """
        name = sweep_name(entrant, part, self.sweeps(entrant, part).num_begun + 1)
        title, count = self.spec.title(entrant), sweep.total_trials
        kind = f"{count} trials" if part == "study" else f"{count} fresh seeds"
        self.console.print(f"{title}: {part}, {kind}", highlight=False, markup=False, soft_wrap=True)
        storage = str(self.store.location / self.key)
        with contextlib.suppress(SweepError):  # no trial has scores: that is a result, and its reasons are written
            result = run_sweep(sweep, name=name, storage=storage, console=self.console)
            if result.unwritten is not None:
                raise StoreError(f"{result.unwritten}. The same command goes on")
            return not result.interrupted
        return True


def run_arena(
    spec: ArenaSpec, *, name: str, storage: str, console: Console, command: Sequence[str] = ()
) -> ArenaResult:
    """Run what is left of an arena, and write its results.

    The results are in `arenas/NAME` below the storage: report.html, results.json, results.csv and results.md, which are
    written at the end, arena.json, and a folder for each sweep below `sweeps`.

    Args:
        storage: folder or s3://bucket/prefix.
        console: where progress is shown.
        command: the command that continues the arena, for the report.

    Raises:
        ConfigError: an arena of this name was begun with other terms.
        LeaseTaken: another process runs this arena.
        RaydisError: the cluster, the storage or the data failed. The same call goes on.
    """
    store, key, spec = open_store(storage), arena_key(name), _located(spec, storage)
    check_spec(store, key, spec)
    with Lease(store, f"{key}/{LEASE_FILE}", what=f"arena {name}").held(), ray_cluster():
        write_spec(store, key, spec)
        arena = _Arena(spec, store, key, console)
        complete = all(_finish(arena, entrant) for entrant in spec.entrants)
        entries = [arena.entry(entrant) for entrant in spec.entrants]
        result = result_of(spec, entries, name=name, folder=str(store.location / key))
        if complete:
            console.print("opening the final checkpoints for the report ...", highlight=False)
            write_results(store, key, result, spec, _looks(spec, entries), command)
    return result


def _finish(arena: _Arena, entrant: str) -> bool:
    """Run what is left of an entrant's pre-training, study and final. Return False if it was interrupted."""
    if arena.entry(entrant).state != "pending":
        return True
    spec = _pretrained(arena, entrant)
    if arena.sweeps(entrant, "study").summary is None and not arena.run(spec.study(entrant), entrant, "study"):
        return False
    entry = arena.entry(entrant)
    if entry.study is None or entry.study.best is None:
        return True
    left = tuple(seed for seed in spec.seeds if seed not in {run.seed for run in entry.runs})
    return arena.run(spec.final(entrant, entry.study.best, left), entrant, "final")


def _pretrained(arena: _Arena, entrant: str) -> ArenaSpec:
    """Return the spec in which an entrant borrows the model of its pre-training, which is trained now if it is not."""
    each = arena.spec.entrants[entrant]
    if each.pretraining is None:
        return arena.spec
    done = read_pretrained(arena.store, arena.key, entrant)
    if done is None:
        title = arena.spec.title(entrant)
        arena.console.print(f"{title}: pre-training", highlight=False, markup=False, soft_wrap=True)
        done = pretrain(arena.store, arena.key, entrant, each, arena.console)
    return arena.spec.model_copy(update={"entrants": arena.spec.entrants | {entrant: each.borrowing(done.checkpoint)}})


def _looks(spec: ArenaSpec, entries: list[Entry]) -> dict[str, Look]:
    """Look at the checkpoints of all final runs with scores, and draw traversals of each entrant's best and worst."""
    found: dict[str, Look] = {}
    for entry in entries:
        ranked = [run for run in entry.ranked_runs(spec.objectives) if run.checkpoint]
        drawn = {ranked[0].seed, ranked[-1].seed} if ranked else set()
        checkpoints = {str(run.checkpoint): run.seed in drawn for run in ranked}
        compute = spec.entrants[entry.name].run.compute
        found |= look_at(checkpoints, compute, num_units=num_rows(2 * len(entries)))
    return found


def _located(spec: ArenaSpec, storage: str) -> ArenaSpec:
    """Return the spec with the locations of checkpoints that it names by version or alias, from the registry."""
    entrants: dict[str, Entrant] = {}
    for name, entrant in spec.entrants.items():
        update: dict[str, Any] = {"run": locate_checkpoints(entrant.run, storage)}
        if entrant.pretraining is not None:
            run = locate_checkpoints(entrant.pretraining.run, storage)
            update["pretraining"] = entrant.pretraining.model_copy(update={"run": run})
        entrants[name] = entrant.model_copy(update=update)
    return spec.model_copy(update={"entrants": entrants})
