"""How commands end that are stopped, or that Ray fails: real processes, one line, and an exit code that means it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600  # for a machine that is busy with other things; a quiet one takes half a minute
pytestmark = [pytest.mark.ray, pytest.mark.timeout(2 * TIMEOUT_S)]
SPEC = """
name: long
run: {preset: tiny, train: {num_images: 100_000_000, report_images: 64}}
controls: [{name: base}]
num_trials: 0
max_failures: 0
promotion: null
"""
TRAIN = ["raydis", "train", "--preset", "tiny", "--set", "train.num_images=100000000"]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray puts its sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="re-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def start(*arguments: str, cwd: Path, ray_folder: Path) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    settings = {"RAY_TMPDIR": str(ray_folder), "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env=inherited | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("command", "begun", "shown", "lines"),
    [
        (
            ["raydis.sweep", "long.yaml", "--name", "a"],
            "sweeps/a/trial-0000/checkpoint_*",
            "0 of 1 trials ended; the same command goes on",
            [],
        ),
        (TRAIN, "train/*/checkpoint_*", "", ["raydis: terminated"]),
    ],
    ids=["sweep", "train"],
)
def test_sigterm_ends_a_running_command_with_143_and_no_stack(
    command: list[str], begun: str, shown: str, lines: list[str], tmp_path: Path, ray_folder: Path
) -> None:
    (tmp_path / "long.yaml").write_text(SPEC)
    process = start(*command, cwd=tmp_path, ray_folder=ray_folder)
    deadline = time.monotonic() + TIMEOUT_S
    while not list((tmp_path / "runs").glob(begun)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.terminate()
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 143, err
    assert [line for line in err.splitlines() if "images  loss" not in line] == lines
    assert shown in out


@pytest.mark.parametrize("command", [["raydis.sweep", "long.yaml"], TRAIN], ids=["sweep", "train"])
def test_a_ray_that_cannot_start_is_one_line_and_12(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text(SPEC)
    for folder, words in ((Path("/dev/null"), "Not a directory"), (Path("/tmp", "x" * 100), "too long")):
        process = start(*command, cwd=tmp_path, ray_folder=folder)
        _, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 12, err
        assert words in err
        assert err.startswith("raydis: ")
        assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
