"""`python -m raydis.arena` as a user types it: real Ray, an interruption in the middle, and the same command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydis.checkpoint.open import open_checkpoint

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1200  # for a machine that is busy with other things; a quiet one takes a minute
pytestmark = [pytest.mark.ray, pytest.mark.timeout(2 * TIMEOUT_S)]
FILE = """
name: duel
focus: ours
num_trials: 2
seeds: [11, 12]
estimator: tree
max_failures: 0
run:
  data:
    name: shapes3d_procedural
    image_size: 16
    levels: {floor_hue: 3, wall_hue: 3, object_hue: 3, scale: 2, shape: 2, orientation: 3}
  train: {num_images: 640, ema_decay: 0.9, report_images: 320}
  evaluation: {estimator: tree, rungs: [320]}
entrants:
  closed: {run: {preset: pca_ica_small, method: {num_units: 6}}, search: {}}
  ours: {title: Ours, run: {preset: tiny}}
  diverges: {run: {preset: tiny, train: {learning_rate: 1.0, weight_decay: 1000000.0}}, search: {}}
"""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray puts its sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="ra-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def start(cwd: Path, ray_folder: Path) -> subprocess.Popen[str]:
    """Start the command outside of the checkout, with no Ray of the user's in sight."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    settings = {"RAY_TMPDIR": str(ray_folder), "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "raydis.arena", "duel.yaml"],
        cwd=cwd,
        env=inherited | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupted_arena_goes_on_and_ends_with_a_report(tmp_path: Path, ray_folder: Path) -> None:
    (tmp_path / "duel.yaml").write_text(FILE)
    folder = tmp_path / "runs/arenas/duel"
    process = start(tmp_path, ray_folder)
    deadline = time.monotonic() + TIMEOUT_S
    while not list(folder.glob("sweeps/ours.study.1/trial-*")):  # the closed form is complete, the next study runs
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130, out + err
    assert not (folder / "report.html").exists()
    before = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("sweeps/closed.*/summary.json")}
    assert set(before) == {"closed.study.1", "closed.final.1"}

    process = start(tmp_path, ray_folder)
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, out + err
    assert not err
    after = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("sweeps/closed.*/summary.json")}
    assert after == before
    assert (folder / "sweeps/ours.study.2/summary.json").exists()
    for line in ("closed: study", "closed: final"):
        assert line not in out
    assert max(map(len, out.partition("opening the final")[0].splitlines())) <= 100

    entrants = {each["name"]: each for each in json.loads((folder / "results.json").read_text())["entrants"]}
    assert {name: each["state"] for name, each in entrants.items()} == {
        "closed": "complete",
        "ours": "complete",
        "diverges": "failed",
    }
    assert "became nan" in entrants["diverges"]["reasons"][0]
    for name in ("closed", "ours"):
        assert [run["seed"] for run in entrants[name]["runs"]] == [11, 12]
        for run in entrants[name]["runs"]:
            assert run["scores"]["protocol"] == "published"
            assert run["scores"]["seed"] != 0  # that of the study's trials
            assert run["num_parameters"] > 0
            assert run["cpu_s"] > 0.0
            assert open_checkpoint(Path(run["checkpoint"])).manifest.seed == run["seed"]
    assert entrants["ours"]["runs"][0]["images_seen"] == 640
    assert [point["images_seen"] for point in entrants["ours"]["runs"][0]["curve"]] == [320, 640]
    page = (folder / "report.html").read_text()
    assert page.count('<div class="strip">') == 2 * (6 + 4)  # best and worst seed: the units of both entrants
