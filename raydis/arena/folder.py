"""The folder of an arena, `arenas/NAME` below its storage: its spec, and the sweeps of its entrants.

A sweep's name is ENTRANT.PART.NUMBER. An interrupted sweep is never continued in place: what it has not finished runs
in a sweep with the next number.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raydis.arena.recover import ended_trials
from raydis.arena.spec import ArenaSpec, Entrant
from raydis.checkpoint.migrate import migrate_config
from raydis.config.identity import differences, listed
from raydis.config.tree import flattened
from raydis.errors import ConfigError
from raydis.store import Store, StoreMissing
from raydis.sweep.files import SPEC_FILE as SWEEP_FILE
from raydis.sweep.files import SUMMARY_FILE

SPEC_FILE = "arena.json"
LEASE_FILE = "lease.json"
FREE = ("max_concurrent", "max_failures", "focus")  # keys that may change when an arena is continued
FREE_OF_ENTRANT = ("title", "note", "speed")
ENDED = ("complete", "failed")  # states of trials that are not repeated

Part = Literal["study", "final"]


@dataclass(frozen=True)
class Sweeps:
    """What the sweeps of one part of an entrant have done so far.

    Attributes:
        num_begun: number of sweeps that were begun.
        rows: the trials that have ended, as summary.json holds them, of all sweeps in order.
        summary: the summary of the last sweep in which all trials have ended; None if there is none.
    """

    num_begun: int
    rows: tuple[dict[str, Any], ...]
    summary: dict[str, Any] | None


@dataclass(frozen=True)
class Pretrained:
    """The finished training of a model that all runs of an entrant borrow.

    Attributes:
        checkpoint: folder or s3:// URI.
        images_seen: training images.
        train_s, cpu_s: wall-clock and CPU time of the training; None if it is not recorded.
    """

    checkpoint: str
    images_seen: int
    train_s: float | None
    cpu_s: float | None


def arena_key(name: str) -> str:
    """Return the key of an arena's folder below the storage."""
    return f"arenas/{name}"


def sweep_name(entrant: str, part: Part, number: int) -> str:
    """Return the name of one of an entrant's sweeps."""
    return f"{entrant}.{part}.{number}"


def read_sweeps(store: Store, key: str, entrant: str, part: Part) -> Sweeps:
    """Return what the sweeps of one part of an entrant have done so far; `key` is that of the arena's folder."""
    number, rows, last = 1, list[dict[str, Any]](), None
    while store.exists(f"{(folder := f'{key}/sweeps/{sweep_name(entrant, part, number)}')}/{SWEEP_FILE}"):
        number += 1
        try:
            summary = json.loads(store.read(f"{folder}/{SUMMARY_FILE}"))
        except StoreMissing:  # its driver was killed
            rows += ended_trials(store, folder)
            continue
        rows += [row for row in summary["trials"] if row["state"] in ENDED]
        last = last if summary["interrupted"] else summary
    return Sweeps(number - 1, tuple(rows), last)


def read_pretrained(store: Store, key: str, entrant: str) -> Pretrained | None:
    """Return the finished pre-training of an entrant; None if there is none."""
    try:
        return Pretrained(**json.loads(store.read(f"{key}/pretraining/{entrant}.json")))
    except StoreMissing:
        return None


def write_pretrained(store: Store, key: str, entrant: str, done: Pretrained) -> None:
    """Record that the pre-training of an entrant is finished."""
    store.write(f"{key}/pretraining/{entrant}.json", json.dumps(asdict(done), indent=2).encode())


def check_spec(store: Store, key: str, spec: ArenaSpec) -> None:
    """Check that an arena that was begun is continued with the same terms. Further entrants may join.

    Raises:
        ConfigError: it was begun with other terms. The message names them.
    """
    try:
        found = json.loads(store.read(f"{key}/{SPEC_FILE}"))
    except StoreMissing:
        return
    old, new = _terms(found), _terms(spec.model_dump(mode="json"))
    both = old["entrants"].keys() & new["entrants"].keys()
    for terms in (old, new):
        terms["entrants"] = {name: each for name, each in terms["entrants"].items() if name in both}
    before, after = dict(flattened(old)), dict(flattened(new))
    differing = [
        f"{name} was {before.get(name)}, is {after.get(name)}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]
    for name in new["entrants"]:
        differing += _run_differences(f"entrants.{name}", found["entrants"][name], spec.entrants[name])
    if differing:
        raise ConfigError(
            f"{key} in {store.uri} was begun with other terms: {listed(differing)}. Choose another "
            "--name, or repeat the command that began it"
        )


def write_spec(store: Store, key: str, spec: ArenaSpec) -> None:
    """Write the spec, together with entrants that only an earlier one had, whose sweeps the folder still holds."""
    tree = spec.model_dump(mode="json")
    with contextlib.suppress(StoreMissing):
        tree["entrants"] = json.loads(store.read(f"{key}/{SPEC_FILE}"))["entrants"] | tree["entrants"]
    store.write(f"{key}/{SPEC_FILE}", json.dumps(tree, indent=2).encode())


def _terms(tree: dict[str, Any]) -> dict[str, Any]:
    """Return what must stay equal besides the runs of the entrants: the spec without what may change."""
    entrants = {}
    for name, entrant in tree["entrants"].items():
        terms = {key: value for key, value in entrant.items() if key not in (*FREE_OF_ENTRANT, "run")}
        if entrant["pretraining"] is not None:
            terms["pretraining"] = {key: value for key, value in entrant["pretraining"].items() if key != "run"}
        entrants[name] = terms
    return {key: value for key, value in tree.items() if key not in FREE} | {"entrants": entrants}


def _run_differences(name: str, was: dict[str, Any], now: Entrant) -> list[str]:
    """Return how the runs of an entrant differ from those it was begun with, perhaps by another version of raydis."""
    found = [f"{name}.run.{line}" for line in differences(migrate_config(was["run"]), now.run)]
    if was["pretraining"] is not None and now.pretraining is not None:
        before = migrate_config(was["pretraining"]["run"])
        found += [f"{name}.pretraining.run.{line}" for line in differences(before, now.pretraining.run)]
    return found
