"""One holder at a time; time passes only where a test says so."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import raydis.store.lease
from raydis.errors import StoreError
from raydis.store import LocalStore
from raydis.store.lease import (
    BEAT_S,
    STALE_S,
    WATCH_S,
    Lease,
    LeaseLost,
    LeaseTaken,
    check_lease,
    held_leases,
    is_gone_from_here,
    this_process,
)

KEY = "train/mine/lease.json"


class Time:
    """A clock that moves while somebody sleeps, and what happens meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.meanwhile: Callable[[float], None] = lambda now: None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile(self.now)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def lease(store: LocalStore, time: Time, *, gone: bool = False) -> Lease:
    return Lease(store, KEY, what="run mine", clock=lambda: time.now, sleep=time.sleep, is_gone=lambda process: gone)


def test_a_free_lease_is_taken_without_waiting(store: LocalStore, time: Time) -> None:
    first, second = lease(store, time), lease(store, time)
    first.acquire()
    first.check()
    first.release()
    second.acquire()
    assert time.now == 0.0
    with pytest.raises(LeaseLost):
        first.check()


def test_the_second_is_told_who_holds_it_as_soon_as_the_holder_moves(store: LocalStore, time: Time) -> None:
    first, second = lease(store, time), lease(store, time)
    first.acquire()
    time.meanwhile = lambda now: first.renew() if now >= BEAT_S else None
    with pytest.raises(
        LeaseTaken, match=r"^run mine in \S+ is running elsewhere: held by process \d+ on \S+ since \S+\. W"
    ):
        second.acquire()
    assert time.now == BEAT_S
    first.check()


def test_a_holder_that_does_not_move_is_followed_and_must_stop_when_it_wakes_up(store: LocalStore, time: Time) -> None:
    paused, second = lease(store, time), lease(store, time)
    paused.acquire()
    second.acquire()
    assert time.now == pytest.approx(STALE_S, abs=1.0)
    for act in (paused.renew, paused.check):
        with pytest.raises(LeaseLost, match=r"run mine in \S+ was taken over .*: held by process \d+ on"):
            act()
    paused.release()  # which must not free what is another's
    second.check()
    second.renew()


def test_hosts_whose_clocks_differ_by_years_agree(store: LocalStore, time: Time) -> None:
    first, second = lease(store, time), lease(store, time)
    first._since = "1999-01-01T00:00:00+00:00"
    first.acquire()
    time.meanwhile = lambda now: first.renew()
    with pytest.raises(LeaseTaken, match="since 1999"):
        second.acquire()


def test_a_lease_that_is_released_while_somebody_watches_is_theirs(store: LocalStore, time: Time) -> None:
    first, second = lease(store, time), lease(store, time)
    first.acquire()
    time.meanwhile = lambda now: first.release() if now == 3.0 else None
    second.acquire()
    assert time.now == 3.0


def test_a_process_that_is_known_to_have_ended_is_not_waited_for(store: LocalStore, time: Time) -> None:
    lease(store, time).acquire()
    lease(store, time, gone=True).acquire()
    assert time.now == 0.0


def test_of_many_that_find_a_lease_stale_at_the_same_moment_one_gets_it(
    store: LocalStore, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease(store, time).acquire()
    monkeypatch.setattr(raydis.store.lease, "BEAT_S", 0.02)
    monkeypatch.setattr(raydis.store.lease, "STALE_S", 3.0)
    monkeypatch.setattr(raydis.store.lease, "POLL_S", 0.05)
    held, refused, over = list[Lease](), list[LeaseTaken](), threading.Event()

    def take() -> None:
        try:
            with Lease(store, KEY, what="run mine", is_gone=lambda process: False).held() as mine:
                held.append(mine)
                over.wait(30)
                mine.check()
        except LeaseTaken as error:
            refused.append(error)
            if len(refused) == 5:
                over.set()

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 5)


def test_a_renewal_whose_answer_got_lost_is_no_loss(store: LocalStore, time: Time) -> None:
    """S3 may answer a repeated conditional write by a conflict with its own first try."""
    mine = lease(store, time)
    mine.acquire()
    tag = mine._tag
    mine.renew()
    mine._tag = tag
    mine.renew()
    mine.check()
    assert mine._tag == store.tag(KEY)


class Silent(LocalStore):
    """A store that does not answer."""

    def read(self, key: str) -> bytes:
        raise StoreError("no answer")


def test_a_store_that_does_not_answer_is_no_loss(store: LocalStore, time: Time, tmp_path: Path) -> None:
    mine = lease(store, time)
    mine.acquire()
    check_lease(Silent(tmp_path), KEY, mine.token, what="run mine")


@pytest.mark.parametrize("text", [b"", b"[]", b"not JSON"])
def test_a_record_that_is_none_is_watched_like_any_other(store: LocalStore, time: Time, text: bytes) -> None:
    store.write(KEY, text)
    lease(store, time).acquire()
    assert time.now == pytest.approx(STALE_S, abs=1.0)


def test_holding_renews_in_the_background_and_releases_after_errors_too(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raydis.store.lease, "BEAT_S", 0.01)
    mine, beaten = Lease(store, KEY, what="run mine"), threading.Event()
    renew = mine.renew

    def tell() -> None:
        renew()
        beaten.set()

    monkeypatch.setattr(mine, "renew", tell)

    def interrupt() -> None:
        with mine.held():
            assert beaten.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert json.loads(store.read(KEY)) == {}


def test_renewals_that_fail_for_long_are_told_once(
    store: LocalStore, time: Time, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mine, beats = lease(store, time), iter(["fails"] * 8 + ["works"] + ["fails"] * 7 + ["ends"])

    class Beats(threading.Event):
        """Time that passes from one renewal to the next."""

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout == BEAT_S
            time.now += BEAT_S
            self.beat = next(beats)
            return self.beat == "ends"

    ended, told = Beats(), list[float]()

    def renew() -> None:
        told.append(len(caplog.records))  # warnings before this renewal
        if ended.beat == "fails":
            raise StoreError("no answer")

    monkeypatch.setattr(mine, "renew", renew)
    mine._renew_until(ended)
    assert told == [0] * 7 + [1] * 9  # the warning after 35 s; another 35 s after the one that worked
    assert len(caplog.records) == 2
    assert caplog.messages[0] == "run mine: cannot renew the lease, will try again: no answer"


def test_which_leases_are_held_is_seen_at_once_here_and_by_their_renewals_elsewhere(
    store: LocalStore, time: Time
) -> None:
    def elsewhere(key: str, beats: int) -> None:
        store.write(key, json.dumps({"token": "t", "process": "another-boot 7 8", "beats": beats}).encode())

    Lease(store, "here", what="run mine").acquire()
    ended = "import raydis.store.lease; print(raydis.store.lease.this_process())"
    process = subprocess.run([sys.executable, "-c", ended], capture_output=True, text=True, check=True).stdout.strip()
    store.write("ended", json.dumps({"token": "t", "process": process}).encode())
    store.write("released", b"{}")
    assert held_leases(store, ["here", "ended", "released", "absent"], sleep=time.sleep) == {"here"}
    assert time.now == 0.0
    for key in ("beats", "dead", "released"):
        elsewhere(key, 1)

    def meanwhile(now: float) -> None:
        if now == BEAT_S:
            elsewhere("beats", 2)
            store.write("released", b"{}")

    time.meanwhile = meanwhile
    assert held_leases(store, ["here", "beats", "dead", "released"], sleep=time.sleep) == {"here", "beats"}
    assert time.now == WATCH_S


def test_whether_a_process_of_this_machine_lives_is_known(tmp_path: Path) -> None:
    assert not is_gone_from_here(this_process())
    code = "from raydis.store.lease import this_process; print(this_process())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert ended
    assert is_gone_from_here(ended)
    machine, pid, started = this_process().rsplit(" ", 2)
    assert is_gone_from_here(f"{machine} {pid} {int(started) + 1}")  # its number was used again
    assert not is_gone_from_here(f"another {machine} {pid} {int(started) + 1}")  # of a machine that we cannot look into
    assert not is_gone_from_here("")
