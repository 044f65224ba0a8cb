"""`python -m raydis.sweep` as a user types it: real Ray, real processes, real files."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from werkzeug.serving import make_server

from raydis.checkpoint.fetch import fetch_checkpoint
from raydis.checkpoint.open import open_checkpoint
from raydis.registry import Registry
from raydis.store import LocalStore, open_store

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1200  # for a machine that is busy with other things; a quiet one takes half a minute
pytestmark = [pytest.mark.ray, pytest.mark.timeout(TIMEOUT_S)]
SPEC = """
name: smoke
run: {preset: tiny}
search:
  method.num_units: {kind: int, low: 4, high: 6}
  method.unet.skip_dropout_rate: {kind: float, low: 0, high: 0.3}
num_trials: 1
max_failures: 0
promotion: {estimator: tree}
"""
STORAGE = "s3://lab/my runs#1/50%20"  # raw to boto3 and to people; an encoded URI to Ray
CONTROLS = """
controls:
  - {name: dyga_off, set: {method.anchors.mode: off}}
  - {name: diverges, set: {train.learning_rate: 1.0, train.weight_decay: 1000000.0}}
  - {name: too_large, set: {method.encoder.hidden_dims: [1000000000000]}}
"""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray puts its sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def start(*arguments: str, cwd: Path, ray_folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Begin the command outside of the checkout, with no Ray of the user's in sight."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    settings = {"RAY_TMPDIR": str(ray_folder), "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "raydis.sweep", *arguments],
        cwd=cwd,
        env=inherited | settings | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sweep(*arguments: str, cwd: Path, ray_folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    with start(*arguments, cwd=cwd, ray_folder=ray_folder, **environment) as process:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_a_sweep_promotes_its_best_trial_and_survives_those_that_fail(tmp_path: Path, ray_folder: Path) -> None:
    (tmp_path / "smoke.yaml").write_text(SPEC + CONTROLS)
    done = sweep("smoke.yaml", "--name", "first", "--num-trials", "2", cwd=tmp_path, ray_folder=ray_folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    folder = tmp_path / "runs/sweeps/first"

    summary = json.loads((folder / "summary.json").read_text())
    states = {row["control"] or row["number"]: row["state"] for row in summary["trials"]}
    assert {name: states[name] for name in ("diverges", "too_large")} == {"diverges": "failed", "too_large": "failed"}
    assert [states[number] for number in ("dyga_off", 3, 4)].count("complete") >= 1
    reasons = {row["control"]: row["reason"] for row in summary["trials"]}
    assert "memory" in reasons["too_large"] or "overflow" in reasons["too_large"]

    study = optuna.load_study(
        study_name="first", storage=JournalStorage(JournalFileBackend(f"{folder}/optuna.journal"))
    )
    told = {"complete": "COMPLETE", "failed": "FAIL"}
    assert [trial.state.name for trial in study.trials] == [told[row["state"]] for row in summary["trials"]]

    best = next(trial for trial in summary["trials"] if trial["number"] == summary["best"])
    assert open_checkpoint(Path(best["checkpoint"])).manifest.parent.trial == f"trial-{best['number']:04d}"
    registry = Registry(LocalStore(tmp_path / "runs"))
    ref = registry.resolve("smoke@best")
    assert ref.version == 1
    assert registry.metrics(ref)["scores"]["protocol"] == "published"
    assert registry.metrics(ref)["search_scores"] == best["scores"]
    assert summary["promotion"]["promoted"] is True
    assert (folder / "traversal.png").read_bytes().startswith(b"\x89PNG")
    assert len((folder / "trials.csv").read_text().splitlines()) == 6

    for part in ("5 trials of smoke.yaml", "best       trial", "smoke@1 promoted", "python -m raydis traverse smoke@1"):
        assert part in done.stdout
    lines = done.stdout.partition("best  ")[0].splitlines()
    assert max(len(line) for line in lines if "failed: " not in line) <= 100  # a reason is as long as it is


@pytest.fixture
def s3_endpoint() -> Iterator[str]:
    """A moto server with an empty bucket `lab`."""
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/lab", method="PUT")).close()
    yield endpoint
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.s3
def test_a_sweep_of_two_worker_trials_keeps_everything_below_one_prefix_of_s3(
    tmp_path: Path, ray_folder: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in access.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "smoke.yaml").write_text(SPEC)
    arguments = ("smoke.yaml", "--name", "remote", "--storage", STORAGE, "--set", "run.compute.num_workers=2")
    enough = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 4}'}
    done = sweep(*arguments, cwd=tmp_path, ray_folder=ray_folder, **access, **enough)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    assert not (tmp_path / "runs").exists()
    assert all(key.startswith("my runs#1/50%20/") for key in open_store("s3://lab").list())
    store = open_store(STORAGE)
    keys = set(store.list("sweeps/remote/"))
    assert {f"sweeps/remote/{name}" for name in ("spec.json", "summary.json", "trials.csv", "traversal.png")} <= keys
    best = json.loads(store.read("sweeps/remote/summary.json"))["trials"][0]
    assert best["checkpoint"].startswith(f"{STORAGE}/sweeps/remote/train/trial-0000/")
    assert fetch_checkpoint(best["checkpoint"], tmp_path / "cache").manifest.parent.trial == "trial-0000"
    assert Registry(store).resolve("smoke@best").version == 1
    assert not [key for key in keys if "probe" in key]

    (printed,) = [line for line in done.stdout.splitlines() if line.startswith("next ")]
    command = shlex.split(printed.removeprefix("next"))
    assert command[:3] == ["python", "-m", "raydis"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "RAYDIS_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, env=environment, check=True, timeout=TIMEOUT_S)
    assert (tmp_path / "traversal.png").read_bytes().startswith(b"\x89PNG")
