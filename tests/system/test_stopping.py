"""A sweep that stops trials early: real Ray, real processes, real files."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raydis.engine.record import RunRecord
from raydis.sweep.halving import SuccessiveHalving
from tests.system.test_sweep import TIMEOUT_S, ray_folder, start, sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(TIMEOUT_S)]
__all__ = ["ray_folder"]  # a fixture
RUNGS, REDUCTION_FACTOR = (64, 192), 3
OBJECTIVES = ("dci_disentanglement", "factor_vae")
ENOUGH = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2}'}
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


def arrivals(folder: Path) -> Iterator[tuple[int, int, list[float] | None]]:
    """The trials of a sweep in the order in which they reached its rungs, the rungs, and the objectives there."""
    whole_lines = (folder / "optuna.journal").read_text().rpartition("\n")[0].splitlines()
    for entry in map(json.loads, whole_lines):
        for row in entry.get("user_attr", {}).get("rungs", [])[-1:]:
            record = RunRecord.from_ray(row)
            assert record.scores is not None
            values = record.values()
            valid = record.scores.status == "valid"
            rung = max(rung for rung in RUNGS if rung <= (record.images_seen or 0))
            yield entry["trial_id"], rung, [values[name] for name in OBJECTIVES] if valid else None


def going_on(folder: Path) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    """By rung, the trials that are to go on by all that is known now, and those that were to go on at any time."""
    halving, ever = (
        SuccessiveHalving[int](["max", "max"], RUNGS, REDUCTION_FACTOR),
        {rung: set[int]() for rung in RUNGS},
    )
    for number, rung, values in arrivals(folder):
        halving.record(rung, number, values)
        ever[rung] |= halving.going_on(rung)
    return {rung: halving.going_on(rung) for rung in RUNGS}, ever


def trials_of(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(f"{folder}/optuna.journal"))
    return optuna.load_study(study_name=folder.name, storage=storage).trials


def check_end(folder: Path, *, killed: bool = False) -> list[dict[str, Any]]:
    """Check that a sweep has ended as its rungs say, in its summary and in its study. Return its trials.

    Args:
        killed: whether a driver was killed, perhaps after a trial had written its checkpoint at a rung and before the
            report was recorded. The trial goes on from this checkpoint, and is not compared at the rung.
    """
    trials = json.loads((folder / "summary.json").read_text())["trials"]
    states = Counter(row["state"] for row in trials)
    assert states["complete"] + states["stopped"] == len(trials) == 10
    assert states["stopped"] >= 1
    assert next(row for row in trials if row["control"] == "base")["state"] == "complete"
    now, ever = going_on(folder)
    for rung in RUNGS:
        beyond = {row["number"] for row in trials if row["images_seen"] > rung and row["control"] is None}
        controls = {row["number"] for row in trials if row["control"] is not None}
        uncompared = beyond - {number for number, reached, _ in arrivals(folder) if reached == rung}
        assert killed or not uncompared
        assert now[rung] - controls <= beyond <= ever[rung] | uncompared  # at once, or after a pause
    told = {"complete": "COMPLETE", "stopped": "PRUNED"}
    for trial, row in zip(trials_of(folder), trials, strict=True):
        assert trial.state.name == told[row["state"]]
        if row["state"] == "stopped":
            assert row["images_seen"] in RUNGS
            assert row["reason"] == f"stopped after {row['images_seen']} images"
            assert RunRecord.from_ray(trial.user_attrs["record"]).images_seen == row["images_seen"]
    return trials


def test_a_sweep_trains_only_its_best_trials_and_its_control_to_the_end(tmp_path: Path, ray_folder: Path) -> None:
    (tmp_path / "halved.yaml").write_text(SPEC)
    done = sweep("halved.yaml", "--name", "first", cwd=tmp_path, ray_folder=ray_folder, **ENOUGH)
    assert done.returncode == 0, done.stdout + done.stderr
    check_end(tmp_path / "runs/sweeps/first")
    assert "images were spent on trials that were stopped early" in done.stdout


def test_a_sweep_that_was_killed_after_its_first_decisions_goes_on_with_its_rungs(
    tmp_path: Path, ray_folder: Path
) -> None:
    (tmp_path / "halved.yaml").write_text(SPEC)
    folder = tmp_path / "runs/sweeps/halved"
    with start("halved.yaml", cwd=tmp_path, ray_folder=ray_folder, **ENOUGH) as driver:
        try:
            while not (held := held_up(folder)):
                assert driver.poll() is None, driver.communicate()
                time.sleep(0.1)
        finally:
            driver.kill()
    before = {trial.number: trial for trial in trials_of(folder)}
    known = list(arrivals(folder))
    ended = {number: reports(folder, number) for number, trial in before.items() if trial.state.is_finished()}
    assert {"COMPLETE", "RUNNING"} <= {trial.state.name for trial in before.values()}

    done = sweep("halved.yaml", cwd=tmp_path, ray_folder=ray_folder, **ENOUGH)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ended)} of 10 trials have ended\n" in done.stdout
    trials = check_end(folder, killed=True)
    assert {number: reports(folder, number) for number in ended} == ended  # they have not run again
    assert all(row["settings"] == before[row["number"]].user_attrs["settings"] for row in trials[: len(before)])
    found = list(arrivals(folder))
    assert found[: len(known)] == known
    assert len({(number, rung) for number, rung, _ in found}) == len(found)  # no rung counts a trial twice
    assert all(trials[number]["images_seen"] >= rung for number, rung in held.items())


def held_up(folder: Path) -> dict[int, int]:
    """The trials that are not to go on now, and their rung; empty until a trial has ended as well."""
    if not (folder / "trial-0000/result.json").exists():
        return {}
    trials, rungs = trials_of(folder), {number: rung for number, rung, _ in arrivals(folder)}
    if not any(trial.state.is_finished() for trial in trials):
        return {}
    now, _ = going_on(folder)
    live = [trial.number for trial in trials if not trial.state.is_finished() and "control" not in trial.user_attrs]
    return {number: rungs[number] for number in live if number in rungs and number not in now[rungs[number]]}


def reports(folder: Path, number: int) -> str:
    """What a trial has reported, in all sessions of its sweep."""
    return (folder / f"trial-{number:04d}/result.json").read_text()
