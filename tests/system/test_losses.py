"""Sweeps that lose a trial's process, or the room on their disk: real Ray, real processes, a real full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._private.utils import get_system_memory, get_used_memory

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1200  # for a machine that is busy with other things; a quiet one takes half a minute
pytestmark = [pytest.mark.ray, pytest.mark.timeout(3 * TIMEOUT_S)]
GIB = 2**30
SPEC = """
name: small
run: {preset: tiny}
search: {train.learning_rate: {kind: float, low: 1e-4, high: 2e-3, log: true}}
num_trials: 1
max_concurrent: 1
max_failures: 0
promotion: null
"""
LARGE = "controls: [{name: large, set: {method.encoder.hidden_dims: [40000, 20000]}}]\n"  # 3 GiB of weights
# In a namespace of its own, a disk of 16 MB: the second trial finds no room, and then it does.
FULL = """
set -e
mount -t tmpfs -o size=16m tmpfs runs
python -m raydis.sweep small.yaml
dd if=/dev/zero of=runs/filler bs=64k 2> dd || true
truncate -s -196608 runs/filler
set +e
python -m raydis.sweep small.yaml --num-trials 2 > full.out 2> full.err
echo $? > full.code
rm runs/filler
python -m raydis.sweep small.yaml --num-trials 2 > again.out 2> again.err
echo $? > again.code
cp runs/sweeps/small/summary.json .
"""


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment with no Ray of the user's in sight, and the sweep file in an empty folder."""
    (tmp_path / "small.yaml").write_text(SPEC)
    with tempfile.TemporaryDirectory(prefix="rl-", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        settings = {"RAY_TMPDIR": ray_folder, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "PATH": path}
        yield inherited | settings


def call(*command: str, cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=3 * TIMEOUT_S, check=False
    )


def test_a_trial_that_rays_memory_monitor_ends_fails_alone(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "small.yaml").write_text(SPEC + LARGE)
    room = (get_used_memory() + 2.5 * GIB) / get_system_memory()  # a trial of this size needs less than 1 GiB
    done = call(
        *(sys.executable, "-m", "raydis.sweep", "small.yaml"),
        cwd=tmp_path,
        environment=environment | {"RAY_memory_usage_threshold": f"{room:.4f}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    large, small = rows(tmp_path / "runs/sweeps/small/summary.json")
    assert (large["control"], large["state"], small["state"]) == ("large", "failed", "complete")
    assert large["reason"].startswith("Ray's memory monitor ended a process because the node ran out of memory")


def test_a_full_disk_is_one_line_and_the_sweep_goes_on_once_there_is_room(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "runs").mkdir()
    done = call("unshare", "-Urm", "sh", "-c", FULL, cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    out, err = (tmp_path / "full.out").read_text(), (tmp_path / "full.err").read_text()
    assert (tmp_path / "full.code").read_text() == "11\n", out + err
    *warnings, line = err.splitlines()
    assert line.startswith("raydis: the sweep cannot go on: ")
    assert "No space left on device: make room there" in line
    assert all("cannot renew the lease, will try again: " in warning for warning in warnings)  # on a busy machine
    assert "best " in out  # the first trial's result
    assert (tmp_path / "again.code").read_text() == "0\n", (tmp_path / "again.err").read_text()
    assert [row["state"] for row in rows(tmp_path / "summary.json")] == ["complete", "complete"]


def rows(summary: Path) -> list[dict[str, Any]]:
    return json.loads(summary.read_text())["trials"]
