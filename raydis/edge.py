"""The outermost edge of a command: every exception becomes one line on standard error and an exit code.

The codes are `raydis.errors.EXIT_CODES`. A traceback is not printed: where the line cannot tell everything, it names a
file that holds the rest.
"""

from __future__ import annotations

import contextlib
import os
import platform
import select
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import typer

import raydis
from raydis.errors import CLOSED_PIPE, EXIT_CODES, INTERRUPTED, OK, USAGE, RaydisError, explain

EXIT_CODE_HELP = "\n".join(["Exit codes", *(f"{code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())])


STDOUT = 1  # its file descriptor
_TOLD = RaydisError | OSError | None  # causes of which an error of ours says all there is to know


class _Carried(Exception):
    """An error on its way through typer, which takes an EOFError for a user who quit and prints one word."""


def run_command(app: typer.Typer) -> NoReturn:
    """Run a command line and end the process with its exit code.

    Usage errors and `typer.Exit` are typer's own business; every other exception is one line on standard error.
    """
    command = typer.main.get_command(app)
    invoke = command.invoke

    def carry(ctx: Any) -> Any:
        try:
            return invoke(ctx)
        except (EOFError, OSError, KeyboardInterrupt) as error:
            raise _Carried from error

    command.invoke = carry
    error, code = None, OK
    with _stop_signals() as received:
        try:
            command()
        except SystemExit as ended:
            # typer and rich end the process with 1 where they cannot print
            code = CLOSED_PIPE if isinstance(ended.__context__, BrokenPipeError) else ended.code
        except _Carried as carried:
            error = carried.__cause__
        except BaseException as raised:
            error = raised
    if isinstance(error, KeyboardInterrupt):
        _print_line("terminated" if received else "interrupted")
        code = INTERRUPTED
    elif isinstance(error, BrokenPipeError) and _reader_is_gone():
        with contextlib.suppress(OSError):  # or the interpreter would write again as it ends, and print a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        code = CLOSED_PIPE
    elif error is not None:
        explained = explain(error)
        _print_line(explained.line + _rest(error))
        code = explained.exit_code
    sys.exit(128 + received[-1] if received else code)  # what ended it was the signal, however that came up to here


def _rest(error: BaseException) -> str:
    """Where the traceback lies, for an error whose line does not tell everything."""
    if isinstance(error, RaydisError) and (isinstance(error.__cause__, _TOLD) or error.exit_code == USAGE):
        return ""
    path = write_log(error)
    return f" (details: {path})" if path else " (no folder for a log of the details could be written)"


def write_log(error: BaseException) -> Path | None:
    """Write the traceback and what is needed to understand it to a new file; None where no folder can be written."""
    facts = [
        f"command  {' '.join(sys.argv)}",
        f"raydis   {raydis.__version__}, Python {platform.python_version()}, {platform.platform()}",
        "",
        *traceback.format_exception(error),
    ]
    for folder in (tempfile.gettempdir, _cache_folder):
        with contextlib.suppress(OSError, RuntimeError):  # the latter where there is no home
            handle, path = tempfile.mkstemp(prefix="raydis-", suffix=".log", dir=folder())
            try:
                with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                    file.write("\n".join(facts))
            except OSError:
                os.unlink(path)
                raise
            return Path(path)
    return None


def _cache_folder() -> Path:
    folder = Path(os.environ.get("RAYDIS_CACHE") or Path.home() / ".cache" / "raydis")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Within the block SIGTERM and SIGHUP interrupt as Ctrl-C does; the list holds those that came.

    Where a signal is ignored, as SIGHUP under `nohup`, it stays so.
    """
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM, signal.SIGHUP] if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.signal(number, stop) for number in numbers if signal.getsignal(number) == signal.SIG_DFL}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more: another pipe or socket may have broken instead."""
    poll = select.poll()
    poll.register(STDOUT, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _print_line(line: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"raydis: {line}", file=sys.stderr, flush=True)
