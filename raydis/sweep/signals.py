"""Let SIGTERM and SIGHUP end a search in good order, as Ctrl-C does."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stopped_like_ctrl_c() -> Iterator[None]:
    """Pass SIGTERM and SIGHUP to the present handler of SIGINT during a `with` block, after the caller's handlers.

    Ray Tune ends its loop at SIGINT: trials stop, and their results are kept. The caller's handlers are those of
    `raydis.edge`, which note the signal for the exit code and raise KeyboardInterrupt. A signal that has no handler
    keeps its default. The handler of SIGINT is restored at the end, as Tune leaves its own, which ignores Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if number != signal.SIGINT and callable(handler):
            signal.signal(number, _forward(handler))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forward(handler: Callable[[int, Any], Any]) -> Callable[[int, Any], None]:
    def forward(number: int, frame: Any) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            handler(number, frame)
        on_interrupt = signal.getsignal(signal.SIGINT)
        if not callable(on_interrupt):
            raise KeyboardInterrupt
        on_interrupt(signal.SIGINT, frame)

    return forward
