"""The outermost function of every command: it turns any exception into one line on standard error and an exit code.

The codes are `raydis.errors.EXIT_CODES`. Commands print no traceback. If one line cannot describe the exception fully,
the traceback is written to a file, and the line names that file.
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

from raydis.errors import CLOSED_PIPE, EXIT_CODES, INTERRUPTED, OK, USAGE, RaydisError, explain
from raydis.version import __version__

EXIT_CODE_HELP = "\n".join(["Exit codes", *(f"{code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())])


STDOUT = 1  # its file descriptor
_TOLD = RaydisError | OSError | None  # causes that the message of a RaydisError already describes fully


class _Carried(Exception):
    """A wrapper that hides an error from typer, which would treat an EOFError as a user who quit and print one word."""


def run_command(app: typer.Typer) -> NoReturn:
    """Run a command line and end the process with its exit code.

    Typer handles usage errors and `typer.Exit`. Every other exception is printed as one line on standard error.
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
            # typer and rich exit with code 1 if they cannot print
            code = CLOSED_PIPE if isinstance(ended.__context__, BrokenPipeError) else ended.code
        except _Carried as carried:
            error = carried.__cause__
        except BaseException as raised:
            error = raised
    if isinstance(error, KeyboardInterrupt):
        _print_line("terminated" if received else "interrupted")
        code = INTERRUPTED
    elif isinstance(error, BrokenPipeError) and _reader_is_gone():
        with contextlib.suppress(OSError):  # else the interpreter flushes at exit, fails again and prints a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        code = CLOSED_PIPE
    elif error is not None:
        explained = explain(error)
        _print_line(explained.line + _rest(error))
        code = explained.exit_code
    sys.exit(128 + received[-1] if received else code)  # the signal ended it, whatever exception arrived here


def _rest(error: BaseException) -> str:
    """Return a note with the path of the traceback; empty for an error that its line describes fully."""
    if isinstance(error, RaydisError) and (isinstance(error.__cause__, _TOLD) or error.exit_code == USAGE):
        return ""
    path = write_log(error)
    return f" (details: {path})" if path else " (no folder for a log of the details could be written)"


def write_log(error: BaseException) -> Path | None:
    """Write traceback, command and versions to a new file and return its path; None if no folder is writable."""
    facts = [
        f"command  {' '.join(sys.argv)}",
        f"raydis   {__version__}, Python {platform.python_version()}, {platform.platform()}",
        "",
        *traceback.format_exception(error),
    ]
    for folder in (tempfile.gettempdir, _cache_folder):
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError if there is no home folder
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
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt within the block, as Ctrl-C does.

    The list that it yields receives the numbers of the signals that arrive. A signal that is ignored, as SIGHUP under
    `nohup`, stays ignored.
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
    """Return whether standard output is a pipe without a reader; the broken pipe may also have been another one."""
    poll = select.poll()
    poll.register(STDOUT, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _print_line(line: str) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"raydis: {line}", file=sys.stderr, flush=True)
