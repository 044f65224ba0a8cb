"""A lease on a key of a store: a lock that one process at a time holds, and that others take over if its holder dies.

The holder writes a record that says who it is, and renews the record every few seconds. The clocks of two hosts may
differ, so no times are compared: a process that wants a lease watches the record for STALE_S by its own clock, and
takes over if it has not changed. On the same machine, it looks up instead whether the holder's process still lives.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from raydis.errors import LeaseLost, LeaseTaken, StoreConflict, StoreError, StoreMissing
from raydis.store.base import Store

log = logging.getLogger(__name__)

BEAT_S = 5.0  # time between two renewals
STALE_S = 60.0  # time without a renewal after which a holder counts as dead: longer than a store is usually unavailable
WARN_S = STALE_S / 2  # time without a renewal after which the holder warns, once until it succeeds again
POLL_S = 1.0
WATCH_S = 2 * BEAT_S + POLL_S  # time in which a reader sees a renewal of a living holder

Record = dict[str, Any]


class Lease:
    """The right of one process at a time to write to something, such as the folder of a run.

    Args:
        store: the store of the record; it needs conditional writes.
        key: the key of the record.
        what: what the lease protects, such as `run quickstart`; error messages begin with it.
        clock, sleep: functions that return the time and wait, in seconds.
        is_gone: returns whether a process, as described by `this_process`, is known to have ended.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        *,
        what: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        is_gone: Callable[[str], bool] | None = None,
    ) -> None:
        self.store, self.key, self.what = store, key, what
        self.token = secrets.token_hex(16)
        self._clock, self._sleep, self._is_gone = clock, sleep, is_gone or is_gone_from_here
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._beats = 0
        self._tag = ""

    @contextlib.contextmanager
    def held(self) -> Generator[Lease]:
        """Hold the lease during a `with` block: acquire it, renew it in the background, and release it at the end.

        Raises:
            LeaseTaken: see `acquire`.
        """
        self.acquire()
        ended = threading.Event()
        beating = threading.Thread(target=self._renew_until, args=(ended,), daemon=True)
        beating.start()
        try:
            yield self
        finally:
            ended.set()
            beating.join()
            self.release()

    def acquire(self) -> None:
        """Take the lease: at once if no process holds it, else after STALE_S without a renewal.

        Raises:
            LeaseTaken: its holder has renewed it.
        """
        while (tag := self.store.tag(self.key)) is not None:
            record = _record(self.store, self.key)
            if record.get("token") == self.token:  # our conditional write has succeeded, but its answer was lost
                self._tag = tag
                return
            free = "token" not in record or self._is_gone(str(record.get("process")))
            if (free or self._is_stale(tag, record)) and self._write(if_match=tag):
                return
        if not self._write(if_absent=True):
            self.acquire()

    def renew(self) -> None:
        """Renew the record, which shows other processes that the holder lives.

        Raises:
            LeaseLost: another process has taken the lease over.
            StoreError: the store failed. The lease may still be held.
        """
        self._beats += 1
        if not self._write(if_match=self._tag):
            check_lease(self.store, self.key, self.token, what=self.what)
            self._tag = self.store.tag(self.key) or ""

    def check(self) -> None:
        """Raise LeaseLost if another process has taken the lease over; see `check_lease`."""
        check_lease(self.store, self.key, self.token, what=self.what)

    def release(self) -> None:
        """Release the lease, unless another process has taken it over, so that the next process gets it at once."""
        with contextlib.suppress(StoreError):
            self.store.write(self.key, b"{}", if_match=self._tag)

    def _renew_until(self, ended: threading.Event) -> None:
        renewed, warned = self._clock(), False
        while not ended.wait(BEAT_S):
            try:
                self.renew()
                renewed, warned = self._clock(), False
            except LeaseLost as error:
                log.warning("%s", error)
                return
            except StoreError as error:
                if not warned and self._clock() - renewed > WARN_S:
                    log.warning("%s: cannot renew the lease, will try again: %s", self.what, error)
                    warned = True

    def _is_stale(self, tag: str, record: Record) -> bool:
        """Watch the record, and return whether it has not changed for STALE_S.

        Return False if the lease was released in the meantime. Raises LeaseTaken if it was renewed.
        """
        log.warning("%s: %s; waiting up to %.0f s for a sign of that process", self.what, _holder(record), STALE_S)
        began = self._clock()
        while self._clock() - began < STALE_S:
            self._sleep(POLL_S)
            if self.store.tag(self.key) == tag:
                continue
            if "token" not in (record := _record(self.store, self.key)):
                return False
            raise LeaseTaken(
                f"{self.what} in {self.store.uri} is running elsewhere: {_holder(record)}. Wait for its end, or stop "
                "that process and repeat the command, or choose another name"
            )
        return True

    def _write(self, **condition: Any) -> bool:
        """Write this holder's record, and return whether the condition held."""
        record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": self._since,
            "process": this_process(),
            "token": self.token,
            "beats": self._beats,
        }
        try:
            self._tag = self.store.write(self.key, json.dumps(record, indent=2).encode(), **condition)
        except StoreConflict:
            return False
        return True


def check_lease(store: Store, key: str, token: str, *, what: str) -> None:
    """Raise LeaseLost unless the lease is still held under a token. Its holder calls this before important writes.

    If the store does not answer, the lease counts as held, because no other process can take it over then.

    Raises:
        LeaseLost: another process has taken the lease over.
    """
    try:
        record = _record(store, key)
    except StoreError:
        return
    if record.get("token") != token:
        raise LeaseLost(
            f"{what} in {store.uri} was taken over while this process was suspended or offline: {_holder(record)}. "
            "This process stops. It has written nothing since then"
        )


def held_leases(store: Store, keys: Iterable[str], *, sleep: Callable[[float], None] = time.sleep) -> set[str]:
    """Return those of some keys whose lease is held by a process that lives.

    A process of this machine is looked up. One of another machine lives if it renews its record within WATCH_S, for
    which this function waits then.
    """
    records = {key: record for key in keys if "token" in (record := _record(store, key))}
    here = {key for key, record in records.items() if _is_of_this_machine(str(record.get("process")))}
    held = {key for key in here if not is_gone_from_here(str(records[key]["process"]))}
    watched = {key: record for key, record in records.items() if key not in here}
    for _ in range(round(WATCH_S / POLL_S)):
        if not watched:
            break
        sleep(POLL_S)
        for key, before in list(watched.items()):
            if (now := _record(store, key)) != before:
                del watched[key]
                held |= {key} if "token" in now else set()
    return held


def this_process() -> str:
    """Return a text that identifies this process among all others; empty if the system has no /proc."""
    try:
        _, started = _state_and_start(os.getpid())
        return f"{_machine()} {os.getpid()} {started}"
    except OSError:
        return ""


def is_gone_from_here(process: str) -> bool:
    """Return whether a process, as described by `this_process`, ran on this machine and has ended."""
    with contextlib.suppress(OSError, ValueError):
        machine, pid, started = process.rsplit(" ", 2)
        if machine != _machine():
            return False
        try:
            state, now_started = _state_and_start(int(pid))
        except FileNotFoundError:
            return True
        return state == "Z" or now_started != started  # a zombie, or another process with the same id
    return False


def _is_of_this_machine(process: str) -> bool:
    try:
        return process.startswith(f"{_machine()} ")
    except OSError:
        return False


def _machine() -> str:
    """Identify the machine, its present boot, and the namespace of process ids, which differs between containers."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _state_and_start(pid: int) -> tuple[str, str]:
    """Return the state letter of a process and its start in ticks since boot, from /proc/PID/stat; see proc(5).

    The command name before these fields ends at the last parenthesis, and may contain any characters.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]


def _record(store: Store, key: str) -> Record:
    """Return the record under a key; empty if no process holds the lease.

    Bytes that are not a record count as that of an unknown holder.
    """
    try:
        record: object = json.loads(store.read(key))
    except StoreMissing:
        return {}
    except ValueError:
        return {"token": ""}
    return cast(Record, record) if isinstance(record, dict) else {"token": ""}


def _holder(record: Record) -> str:
    if not record.get("host"):
        return "held by an unknown process"
    return f"held by process {record.get('pid')} on {record['host']} since {record.get('since')}"
