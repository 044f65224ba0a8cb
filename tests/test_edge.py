"""The edge of a command: whatever is raised, one line on standard error, an exit code, and a log for the rest."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from raydis.edge import run_command, write_log
from raydis.errors import EXIT_CODES, ConfigError, DataError, FitError, StoreError

ROOT = Path(__file__).resolve().parents[1]
NO_SPACE = OSError(errno.ENOSPC, "No space left on device", "/data/a")
SLEEPER = """
import sys, time, typer
from raydis.edge import run_command
app = typer.Typer()
@app.command()
def sleep():
    print("ready", flush=True)
    time.sleep(60)
run_command(app)
"""


class Ended(NamedTuple):
    code: Any
    out: str
    err: str


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where logs go."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`end(error)` is how a command ends that raises it."""

    def end(error: BaseException | None, *arguments: str, cause: BaseException | None = None) -> Ended:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

        @app.command()
        def work() -> None:
            typer.echo("working")
            if error is not None:
                raise error from cause

        monkeypatch.setattr(sys, "argv", ["work", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_command(app)
        return Ended(ended.value.code, *capsys.readouterr())

    return end


def log_named_in(line: str) -> str:
    found = re.search(r"\(details: (.+\.log)\)\n$", line)
    assert found, line
    return Path(found[1]).read_text()


def test_a_command_that_raises_nothing_ends_with_0(end: Any, logs: Path) -> None:
    assert end(None) == (0, "working\n", "")
    assert not list(logs.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (EOFError("Ran out of input"), 1, "EOFError: Ran out of input"),
        (NO_SPACE, 11, "cannot use /data/a: No space left on device: make room there, or choose another folder"),
        (OSError(errno.EPIPE, "Broken pipe"), 1, "BrokenPipeError: [Errno 32] Broken pipe"),  # a socket's, not ours
        (MemoryError(), 12, "out of memory (no details): use a smaller"),
        (KeyError("a\nb"), 1, r"KeyError: 'a\nb'"),
        (ExceptionGroup("two", [ValueError("a"), ValueError("b")]), 1, "ExceptionGroup: two (2 sub-exceptions)"),
        (GeneratorExit(), 1, "GeneratorExit"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_foreign_error_is_one_line_that_names_a_log_with_its_traceback(
    end: Any, error: BaseException, code: int, line: str
) -> None:
    ended = end(error)
    assert (ended.code, ended.out) == (code, "working\n")
    assert ended.err.startswith(f"raydis: {line}")
    assert ended.err.count("\n") == 1
    log = log_named_in(ended.err)
    assert "command  work\n" in log
    assert "Traceback (most recent call last)" in log
    assert "in work" in log
    assert type(error).__name__ in log


def test_an_error_of_ours_needs_no_log_unless_an_unknown_error_is_behind_it(end: Any, logs: Path) -> None:
    assert end(DataError("a.npz\nis short")) == (10, "working\n", "raydis: a.npz is short\n")
    assert end(StoreError("the disk is full"), cause=NO_SPACE) == (11, "working\n", "raydis: the disk is full\n")
    assert end(ConfigError("no number"), cause=ValueError()) == (2, "working\n", "raydis: no number\n")
    assert not list(logs.iterdir())
    assert "ZeroDivisionError" in log_named_in(end(FitError("it failed"), cause=ZeroDivisionError()).err)


def test_ctrl_c_is_130_and_no_traceback(end: Any, logs: Path) -> None:
    assert end(KeyboardInterrupt()) == (130, "working\n", "raydis: interrupted\n")
    assert not list(logs.iterdir())


def test_an_exit_that_the_command_chose_passes(end: Any) -> None:
    assert end(typer.Exit(7)) == (7, "working\n", "")
    assert end(SystemExit(8)) == (8, "working\n", "")


def test_a_usage_error_is_typers_own(end: Any) -> None:
    ended = end(None, "--nope")
    assert (ended.code, ended.out) == (2, "")
    assert "No such option: --nope" in ended.err


def test_without_a_temporary_folder_the_log_goes_to_the_cache(
    end: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    monkeypatch.setenv("RAYDIS_CACHE", str(tmp_path / "cache"))
    assert f"(details: {tmp_path}/cache/raydis-" in end(KeyError()).err


@pytest.mark.parametrize("write", ["open", "write"])
def test_a_log_that_cannot_be_written_leaves_nothing_and_hides_no_error(
    end: Any, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYDIS_CACHE", str(tmp_path / "file"))
    if write == "open":
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    else:
        full = open("/dev/full", "w")  # noqa: SIM115  # the function under test closes it
        monkeypatch.setattr("raydis.edge.open", lambda *_, **__: full, raising=False)
    ended = end(KeyError("a"))
    assert ended == (1, "working\n", "raydis: KeyError: 'a' (no folder for a log of the details could be written)\n")
    assert not list(logs.iterdir())


def test_a_log_holds_what_cannot_be_encoded() -> None:
    path = write_log(ValueError("a\udc80b"))
    assert path is not None
    assert "a\\udc80b" in path.read_text()


# ---- in a process of its own


def python(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, text=True, **streams)


def sleeping(number: int, inherited: signal.Handlers) -> subprocess.Popen[str]:
    """A command that is ready for a signal and inherits what becomes of it: nohup and a shell's `&` ignore some."""
    before = signal.signal(number, inherited)
    try:
        process = python("-c", SLEEPER)
    finally:
        signal.signal(number, before)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_with_128_and_its_number(number: int) -> None:
    process = sleeping(number, signal.SIG_DFL)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert 128 + number in EXIT_CODES
    assert err == ("raydis: interrupted\n" if number == signal.SIGINT else "raydis: terminated\n")


def test_a_signal_that_the_shell_ignores_stays_ignored() -> None:
    process = sleeping(signal.SIGHUP, signal.SIG_IGN)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.parametrize("verb", [["--help"], ["models", "list"]])
def test_a_reader_that_goes_away_ends_the_command_without_a_word(verb: list[str], tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = python("-m", "raydis", *verb, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


def test_output_onto_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = python("-m", "raydis", "models", "list", "--storage", str(tmp_path), stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 11
    assert err.startswith("raydis: a file operation failed: No space left on device")
    assert err.count("\n") == 1


def test_closed_and_full_error_streams_change_no_exit_code(tmp_path: Path) -> None:
    command = f"{sys.executable} -m raydis models show absent --storage {tmp_path}"
    for where in ("2>&-", "2>/dev/full", ">&- 2>&-"):
        assert subprocess.run(["sh", "-c", f"{command} {where}"], cwd=ROOT, check=False).returncode == 16


@pytest.mark.parametrize("module", ["raydis", "raydis.sweep"])
def test_help_lists_every_exit_code(module: str) -> None:
    environment = os.environ | {"COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    )
    lines = {line.strip() for line in done.stdout.splitlines()}
    assert {f"{code}  {meaning}" for code, meaning in EXIT_CODES.items()} <= lines
