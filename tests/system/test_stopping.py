"""A sweep that stops trials early: real Ray, real processes, real files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raydis.engine.record import RunRecord
from raydis.sweep.halving import SuccessiveHalving
from tests.system.test_sweep import TIMEOUT_S, ray_folder, sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(TIMEOUT_S)]
__all__ = ["ray_folder"]  # a fixture
RUNGS = (64, 192)
SPEC = """
name: halved
run:
  preset: tiny
  train: {num_images: 512, report_images: 64}
  evaluation: {rungs: [64, 192]}
search:
  method.num_units: {kind: int, low: 3, high: 8}
  train.learning_rate: {kind: float, low: 0.0001, high: 0.01, log: true}
num_trials: 9
sampler: random
controls: [{name: base}]
max_concurrent: 2
promotion: null
stopping: {reduction_factor: 3}
"""


def rung_scores(folder: Path, number: int) -> Iterator[tuple[int, list[float] | None]]:
    """The rungs that a trial has reached, and its objectives there."""
    for line in (folder / f"trial-{number:04d}/result.json").read_text().splitlines():
        record = RunRecord.from_ray(json.loads(line))
        if record.scores is not None and not record.finished:
            values = record.values()
            valid = record.scores.status == "valid"
            reached = max(rung for rung in RUNGS if rung <= (record.images_seen or 0))
            yield reached, [values[name] for name in ("dci_disentanglement", "factor_vae")] if valid else None


def test_a_sweep_trains_only_its_best_trials_and_its_control_to_the_end(tmp_path: Path, ray_folder: Path) -> None:
    (tmp_path / "halved.yaml").write_text(SPEC)
    enough = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2}'}
    done = sweep("halved.yaml", "--name", "first", cwd=tmp_path, ray_folder=ray_folder, **enough)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs/sweeps/first"
    trials = json.loads((folder / "summary.json").read_text())["trials"]
    states = Counter(row["state"] for row in trials)
    assert states["complete"] + states["stopped"] == len(trials) == 10
    assert states["stopped"] >= 1
    assert next(row for row in trials if row["control"] == "base")["state"] == "complete"

    # Whoever is among the best of all that reached a rung has gone on from it, at once or after a pause.
    halving = SuccessiveHalving[int](["max", "max"], RUNGS, 3)
    for row in trials:
        for rung, values in rung_scores(folder, row["number"]):
            halving.record(rung, row["number"], values)
    for rung in RUNGS:
        assert all(trials[number]["images_seen"] > rung for number in halving.going_on(rung))
    for row in trials:
        if row["state"] == "stopped":
            assert row["images_seen"] in RUNGS
            assert row["reason"] == f"stopped after {row['images_seen']} images"

    study = optuna.load_study(
        study_name="first", storage=JournalStorage(JournalFileBackend(f"{folder}/optuna.journal"))
    )
    told = {"complete": "COMPLETE", "stopped": "PRUNED"}
    assert [trial.state.name for trial in study.trials] == [told[row["state"]] for row in trials]
    for trial, row in zip(study.trials, trials, strict=True):
        if row["state"] == "stopped":
            assert RunRecord.from_ray(trial.user_attrs["record"]).images_seen == row["images_seen"]
    assert "images were spent on trials that were stopped early" in done.stdout
