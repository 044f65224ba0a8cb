"""Sweeps that are interrupted in every way, and the same command after it: real Ray, real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raydis.registry import Registry
from raydis.store import LocalStore

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1200  # for a machine that is busy with other things; a quiet one takes half a minute
pytestmark = [pytest.mark.ray, pytest.mark.timeout(4 * TIMEOUT_S)]
SPEC = """
name: kill
run:
  preset: tiny
  train: {num_images: 4000, report_images: 500, checkpoint_images: 1000}
search:
  train.learning_rate: {kind: float, low: 1e-4, high: 1e-2, log: true}
num_trials: 3
max_concurrent: 1
promotion: {estimator: tree}
"""
ENDLESS = """
name: endless
run: {preset: tiny, train: {num_images: 100_000_000, report_images: 64, checkpoint_images: 640}}
controls: [{name: base}]
num_trials: 0
promotion: null
"""
FOUR_POINTS = """
name: few
run:
  preset: tiny
  train: {num_images: 64, report_images: 64}
  method: {anchors: {mode: off}}
search:
  method.unet.skip_dropout_rate: {kind: choice, values: [0.1, 0.2]}
  train.learning_rate: {kind: choice, values: [1e-3, 2e-3]}
num_trials: 8
max_concurrent: 1
promotion: null
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start(arguments)` begins the command in an empty folder, with no Ray of the user's in sight."""
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        settings = {"RAY_TMPDIR": ray_folder, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
        processes: list[subprocess.Popen[str]] = []

        def start(*arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "raydis.sweep", *arguments],
                cwd=tmp_path,
                env=inherited | settings,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=heed_signals,
            )
            processes.append(process)
            return process

        yield start
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def heed_signals() -> None:
    """Undo that a shell lets its background jobs ignore SIGINT, and nohup SIGHUP: children inherit it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, err


def states(folder: Path) -> list[str]:
    """The states of all trials in the study of a sweep."""
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
    return [trial.state.name for trial in optuna.load_study(study_name=folder.name, storage=storage).trials]


def reports(folder: Path, number: int) -> list[int]:
    """The images that a trial had seen at each of its reports."""
    lines = (folder / f"trial-{number:04d}/result.json").read_text().splitlines()
    return [json.loads(line)["images_seen"] for line in lines]


def test_after_kill_9_the_same_command_goes_on_and_nothing_runs_twice(tmp_path: Path, start: Any) -> None:
    (tmp_path / "kill.yaml").write_text(SPEC)
    folder = tmp_path / "runs/sweeps/kill"
    first = start("kill.yaml")
    wait_until(lambda: (folder / "trial-0001/checkpoint_000001/manifest.json").exists(), first)
    first.kill()
    first.communicate()
    assert states(folder)[:2] == ["COMPLETE", "RUNNING"]

    code, out, err = finish(start("kill.yaml"))
    assert (code, err) == (0, ""), out + err
    assert "1 of 3 trials have ended\n" in out
    assert states(folder) == ["COMPLETE"] * 3
    summary = json.loads((folder / "summary.json").read_text())
    # A whole run leaves checkpoint 4. One that went on from a checkpoint at which it was interrupted leaves 4 too, or 5
    # if the last one was damaged, and one that began again at least 6.
    kept = [Path(trial["checkpoint"]) for trial in summary["trials"]]
    assert [path.name for path in kept[::2]] == ["checkpoint_000004"] * 2
    assert kept[1].name in ("checkpoint_000004", "checkpoint_000005")
    assert list(kept[1].parent.glob("checkpoint_*")) == [kept[1]]  # no other one is left
    assert reports(folder, 1)[-1] == 4000
    assert summary["interrupted"] is False
    assert Registry(LocalStore(tmp_path / "runs")).resolve("kill@best").version == 1

    code, out, err = finish(start("kill.yaml"))
    assert (code, err) == (0, "")
    assert "this sweep has ended, and its results follow: ask for more trials with --num-trials" in out
    assert "kill@1 promoted" in out
    assert json.loads((folder / "summary.json").read_text()) == summary
    code, _, err = finish(start("kill.yaml", "--set", "run.train.learning_rate=0.5"))
    assert code == 2
    assert "run.train.learning_rate was " in err


def test_a_second_process_is_refused_and_every_signal_ends_a_sweep_in_good_order(tmp_path: Path, start: Any) -> None:
    (tmp_path / "endless.yaml").write_text(ENDLESS)
    folder = tmp_path / "runs/sweeps/endless"
    number = -1
    for stop, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):

        def newest() -> int:
            found = [int(path.name.rpartition("_")[2]) for path in folder.glob("trial-0000/checkpoint_*")]
            return max(found, default=-1)

        process = start("endless.yaml")
        wait_until(lambda before=number: newest() > before + 1, process)  # at least one is complete
        if number == -1:
            refused, _, err = finish(start("endless.yaml"))
            assert refused == 11
            assert f"sweep endless in {tmp_path}/runs is running elsewhere: " in err
            assert f"process {process.pid} " in err
            assert err.splitlines()[-1].startswith("raydis: ")
        process.send_signal(stop)
        returned, out, err = finish(process)
        assert returned == code, out + err
        assert err == ""
        assert "trial 0 interrupted: interrupted after " in out
        assert "0 of 1 trials ended; the same command goes on" in out
        assert states(folder) == ["WAITING"]
        row = json.loads((folder / "summary.json").read_text())["trials"][0]
        assert (row["state"], Path(row["checkpoint"]).parent) == ("interrupted", folder / "trial-0000")
        number = newest()
    seen = reports(folder, 0)
    assert min(seen[len(seen) // 2 :]) > 640


def test_ctrl_c_while_the_winner_is_scored_shows_the_results(tmp_path: Path, start: Any) -> None:
    (tmp_path / "kill.yaml").write_text(SPEC)
    short = ("kill.yaml", "--num-trials", "1", "--set", "run.train.num_images=500")
    process = start(*short, "--set", "promotion.estimator=reference")
    for line in process.stdout:
        if line.startswith("scoring the best trial"):
            break
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, err) == (130, ""), out + err
    assert "unpublished  interrupted while it was scored" in out
    assert "python -m raydis models register " in out
    code, out, err = finish(start(*short))
    assert (code, err) == (0, ""), out + err
    assert "kill@1 promoted" in out


def test_a_space_of_four_points_is_searched_once(tmp_path: Path, start: Any) -> None:
    (tmp_path / "few.yaml").write_text(FOUR_POINTS)
    code, out, err = finish(start("few.yaml"))
    assert (code, err) == (0, ""), out + err
    trials = json.loads((tmp_path / "runs/sweeps/few/summary.json").read_text())["trials"]
    assert len({json.dumps(trial["settings"], sort_keys=True) for trial in trials}) == len(trials) == 4
    assert "RUNNING" not in states(tmp_path / "runs/sweeps/few")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "search: {method.unet.skip_dropout_rate: {kind: float, low: 0, high: 1}, method: {unet: "
            "{skip_dropout_rate: {kind: float, low: 0, high: 0.5}}}}",
            "search: method.unet.skip_dropout_rate and method.unet.skip_dropout_rate (below method) name the same",
        ),
        (
            "search: {method.unet.model_dim: {kind: choice, values: [16]}, method.unet: {kind: choice, values: [{}]}}",
            "search: method.unet.model_dim lies inside method.unet, which is searched as a whole",
        ),
        ("promotion: {alias: '3'}", "promotion.alias: 3 consists of digits alone, which name a version"),
    ],
)
def test_a_spec_that_would_lose_a_key_or_a_version_is_refused_before_anything_starts(
    change: str, message: str, tmp_path: Path, start: Any
) -> None:
    lines = SPEC.partition("search:")[0] if change.startswith("search") else SPEC.partition("promotion:")[0]
    (tmp_path / "bad.yaml").write_text(f"{lines}{change}\n")
    code, _, err = finish(start("bad.yaml"))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
