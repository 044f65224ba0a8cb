"""A lease on a key: one process at a time holds it, everybody sees who, and one that died is followed by the next.

The holder writes a record and renews it every few seconds. Clocks of two hosts differ, so no times are compared: who
wants a lease that is held watches by a clock of its own whether the record still changes. A holder of the same machine
need not be watched, for whether its process lives can be looked up.
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
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from raydis.errors import LeaseLost, LeaseTaken, StoreConflict, StoreError, StoreMissing
from raydis.store.base import Store

log = logging.getLogger(__name__)

BEAT_S = 5.0  # between two renewals
STALE_S = 60.0  # without a renewal, after which a holder counts as gone: longer than a store's usual hiccup
POLL_S = 1.0

Record = dict[str, Any]


class Lease:
    """The right to write below a key, for one process at a time.

    Args:
        store: with conditional writes.
        key: of the record.
        what: the lease is about, first words of its errors: `run quickstart`.
        clock, sleep: seconds that pass here, and waiting for some.
        is_gone: whether a process that `this_process` described is known to have ended.
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
        """Hold the lease for the length of a `with`: acquire it, renew it in the background, release it at the end.

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
        """Take the lease: at once where nobody holds it, else after STALE_S in which nobody has renewed it.

        Raises:
            LeaseTaken: its holder renews it.
        """
        while (tag := self.store.tag(self.key)) is not None:
            record = _record(self.store, self.key)
            if record.get("token") == self.token:  # a conditional write whose answer got lost
                self._tag = tag
                return
            free = "token" not in record or self._is_gone(str(record.get("process")))
            if (free or self._is_stale(tag, record)) and self._write(if_match=tag):
                return
        if not self._write(if_absent=True):
            self.acquire()

    def renew(self) -> None:
        """Show that the holder lives.

        Raises:
            LeaseLost: somebody else has taken over.
            StoreError: the store refused; nobody can have taken over through it.
        """
        self._beats += 1
        if not self._write(if_match=self._tag):
            check_lease(self.store, self.key, self.token, what=self.what)
            self._tag = self.store.tag(self.key) or ""

    def check(self) -> None:
        """See `check_lease`."""
        check_lease(self.store, self.key, self.token, what=self.what)

    def release(self) -> None:
        """Let the next one have it at once, unless somebody has it already."""
        with contextlib.suppress(StoreError):
            self.store.write(self.key, b"{}", if_match=self._tag)

    def _renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT_S):
            try:
                self.renew()
            except LeaseLost as error:
                log.warning("%s", error)
                return
            except StoreError as error:
                log.warning("%s: cannot renew the lease, and try again: %s", self.what, error)

    def _is_stale(self, tag: str, record: Record) -> bool:
        """Whether the record stays as it is for STALE_S; False where it was released or removed meanwhile."""
        log.warning("%s: %s; wait up to %.0f s to see whether it still is", self.what, _holder(record), STALE_S)
        began = self._clock()
        while self._clock() - began < STALE_S:
            self._sleep(POLL_S)
            if self.store.tag(self.key) == tag:
                continue
            if "token" not in (record := _record(self.store, self.key)):
                return False
            raise LeaseTaken(
                f"{self.what} in {self.store.uri} goes on elsewhere: {_holder(record)}. Wait for its end, or stop that "
                "process and repeat the command, or choose another name"
            )
        return True

    def _write(self, **condition: Any) -> bool:
        """Write our record; False where the condition does not hold."""
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
    """Ask whether a lease is still held under a token, as its holder does before it writes anything that matters.

    A store that does not answer is no proof of the contrary: nobody takes over through it either.

    Raises:
        LeaseLost: somebody else has taken over.
    """
    try:
        record = _record(store, key)
    except StoreError:
        return
    if record.get("token") != token:
        raise LeaseLost(
            f"{what} in {store.uri} was taken over while this process did not move for a while: {_holder(record)}. "
            "This process stops, and has written nothing since"
        )


def this_process() -> str:
    """Describe this process so that others of its machine know it for sure; empty where the system has no /proc."""
    try:
        _, started = _state_and_start(os.getpid())
        return f"{_machine()} {os.getpid()} {started}"
    except OSError:
        return ""


def is_gone_from_here(process: str) -> bool:
    """Return whether a process that `this_process` described is known to have ended: of this machine, and no more."""
    with contextlib.suppress(OSError, ValueError):
        machine, pid, started = process.rsplit(" ", 2)
        if machine != _machine():
            return False
        try:
            state, now_started = _state_and_start(int(pid))
        except FileNotFoundError:
            return True
        return state == "Z" or now_started != started  # ended but not yet collected, or its number was used again
    return False


def _machine() -> str:
    """This boot of this machine, and the namespace that process numbers count in: containers have their own."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _state_and_start(pid: int) -> tuple[str, str]:
    """State letter and start, in ticks since boot; proc(5). The command's name before them may hold anything."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[19]


def _record(store: Store, key: str) -> Record:
    """The record, empty where nobody holds the lease; one that is no record is somebody's whom we do not know."""
    try:
        record: object = json.loads(store.read(key))
    except StoreMissing:
        return {}
    except ValueError:
        return {"token": ""}
    return cast(Record, record) if isinstance(record, dict) else {"token": ""}


def _holder(record: Record) -> str:
    if not record.get("host"):
        return "held by nobody that is known"
    return f"held by process {record.get('pid')} on {record['host']} since {record.get('since')}"
