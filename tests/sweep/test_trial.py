"""A trial of one worker: what it tells Tune, and where it goes on after its process died."""

from __future__ import annotations

import errno
import getpass
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray import tune

from raydis.checkpoint.open import open_checkpoint
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.engine.device import use_threads
from raydis.engine.step import Step
from raydis.errors import ClusterError, LeaseTaken, StoreError
from raydis.sweep.trial import run_trial

PLAN = {"num_images": 96, "report_images": 32, "checkpoint_images": 64}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[dict[str, Any], Path | None]]:
    """What a trial reported: metrics, and a copy of the checkpoint, as Ray would keep it."""
    told: list[tuple[dict[str, Any], Path | None]] = []

    def report(metrics: dict[str, Any], checkpoint: Path | None = None) -> None:
        kept = checkpoint and checkpoint.rename(tmp_path / f"kept-{len(list(tmp_path.glob('kept-*'))) + 1}")
        if checkpoint:
            checkpoint.mkdir()  # Ray copies: the folder is still there for the trial to remove
        told.append((metrics, kept))

    monkeypatch.setattr(tune, "report", report)
    monkeypatch.setattr(tune, "get_checkpoint", lambda: None)
    monkeypatch.setattr(tune, "Checkpoint", SimpleNamespace(from_directory=Path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return told


def trial(**over: Any) -> dict[str, Any]:
    run = RunConfig.model_validate(expand({"preset": "tiny", "train": PLAN, **over}))
    return {
        "run": run.model_dump(mode="json"),
        "sweep": "s",
        "folder": "f",
        "number": 3,
        "control": None,
        "settings": {},
    }


@pytest.mark.usefixtures("told")
def test_a_trial_computes_with_the_threads_that_it_has_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    take = Step.__call__

    def watched(step: Step) -> Any:
        seen.append(torch.get_num_threads())
        return take(step)

    monkeypatch.setattr(Step, "__call__", watched)
    before = torch.get_num_threads()
    try:
        run_trial(trial(compute={"num_cpus": 2}, evaluation={"protocol": "none"}))
    finally:
        use_threads(before)  # as every other test computes
    assert set(seen) == {2}


def test_a_trial_reports_its_session_and_leaves_nothing_behind(told: list, tmp_path: Path) -> None:
    run_trial(trial())
    assert [metrics["images_seen"] for metrics, _ in told] == [32, 64, 96, 96]
    assert [metrics["status"] for metrics, _ in told] == ["running", "running", "running", "valid"]
    assert [kept is None for _, kept in told] == [True, False, False, False]
    last = open_checkpoint(told[-1][1])
    assert last.metrics["scores"]["status"] == "valid"
    assert last.manifest.parent is not None
    assert last.manifest.parent.trial == "trial-0003"
    left = {path.name for path in tmp_path.iterdir()}
    left.discard(f"torchinductor_{getpass.getuser()}")  # torch's cache, made where it is first wanted in a process
    assert left == {"kept-1", "kept-2", "kept-3"}


def test_a_trial_that_was_interrupted_goes_on_from_its_checkpoint(told: list, monkeypatch: pytest.MonkeyPatch) -> None:
    run_trial(trial())
    whole = told.copy()
    monkeypatch.setattr(
        tune, "get_checkpoint", lambda: SimpleNamespace(as_directory=lambda: nullcontext(str(whole[1][1])))
    )
    told.clear()
    run_trial(trial())
    assert [metrics["images_seen"] for metrics, _ in told] == [96, 96]
    assert told[-1][0]["scores"] == whole[-1][0]["scores"]


def test_data_that_cannot_be_scored_end_a_trial_before_its_first_step(told: list) -> None:
    one = dict.fromkeys(("floor_hue", "wall_hue", "object_hue", "scale", "orientation"), 1)
    run_trial(trial(data={"levels": one | {"shape": 4}}))
    ((metrics, kept),) = told
    assert (metrics["status"], metrics["images_seen"], kept) == ("failed", None, None)
    assert metrics["reason"].startswith("MetricError: 1 of 6 factors vary in these 4 rows")


@pytest.mark.parametrize("error", [ClusterError("lost"), StoreError("no answer"), LeaseTaken("elsewhere")])
def test_what_a_trial_cannot_help_is_left_to_tune_which_starts_it_again(
    told: list, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("ray.tune.integration.ray_train.TuneReportCallback", object)
    monkeypatch.setattr("raydis.train.trainer.fit_with_ray", fail)
    with pytest.raises(type(error), match=str(error)):
        run_trial(trial(compute={"num_workers": 2}))
    assert told == []
    monkeypatch.setattr("raydis.train.report.report_session", fail)
    with pytest.raises(type(error), match=str(error)):
        run_trial(trial())
    assert told == []


def test_a_full_disk_and_any_other_system_error_is_left_to_tune(told: list, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> Any:
        def report_session(*_: Any, **__: Any) -> None:
            raise OSError(number, os.strerror(number), "/a")

        return report_session

    monkeypatch.setattr("raydis.train.report.report_session", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left on device"):
        run_trial(trial())
    monkeypatch.setattr("raydis.train.report.report_session", refuse(errno.ECONNRESET))
    with pytest.raises(ConnectionResetError):
        run_trial(trial())
    assert told == []


def test_a_trial_of_an_interrupted_sweep_goes_on_from_its_newest_sound_checkpoint(told: list, tmp_path: Path) -> None:
    run_trial(trial())
    whole, kept = told.copy(), [folder.rename(tmp_path / f"old-{folder.name}") for _, folder in told if folder]
    damaged = kept[1]
    (damaged / "weights.safetensors").write_bytes(b"cut sh")
    told.clear()
    run_trial(trial() | {"checkpoints": [str(damaged), str(kept[0])]})
    assert [metrics["images_seen"] for metrics, _ in told] == [96, 96]  # from 64 on
    assert told[-1][0]["scores"] == whole[-1][0]["scores"]
    assert not damaged.exists()  # replaced, once a later one was kept
    assert not kept[0].exists()


def test_a_trial_that_had_ended_before_the_interruption_reports_its_end_again(told: list, tmp_path: Path) -> None:
    run_trial(trial())
    whole, last = told[-1][0], told[-1][1].rename(tmp_path / "checkpoint_000002")
    told.clear()
    run_trial(trial() | {"checkpoints": [str(last)]})
    ((again, kept),) = told
    assert kept is None  # the checkpoint stays where it is
    assert again["checkpoint_uri"] == str(last)
    assert open_checkpoint(last).metrics["scores"]["status"] == "valid"
    unknown = {"step", "images_per_s", "num_workers", "num_refits", "health"}
    assert {name for name in whole if whole[name] != again[name]} == unknown
    assert again["finished"] is True


def test_a_trial_without_a_sound_checkpoint_begins_again(told: list, tmp_path: Path) -> None:
    (tmp_path / "checkpoint_000000").mkdir()
    run_trial(trial() | {"checkpoints": [str(tmp_path / "checkpoint_000000"), str(tmp_path / "gone")]})
    assert [metrics["images_seen"] for metrics, _ in told] == [32, 64, 96, 96]
