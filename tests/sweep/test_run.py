"""The end of a sweep, decided on records alone; tests/system runs whole sweeps."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raydis.config.presets import expand
from raydis.engine.record import RunRecord
from raydis.errors import ConfigError, ResourceError, StoreError, SweepError
from raydis.store import LocalStore
from raydis.sweep import run
from raydis.sweep.progress import SweepProgress
from raydis.sweep.run import SweepResult, check_first_stages, check_result, parallel_trials, run_sweep
from raydis.sweep.spec import SweepSpec
from raydis.sweep.summary import TrialRecord
from tests.records import finished


def failed(number: int, reason: str) -> TrialRecord:
    return TrialRecord(number, None, {}, "failed", reason, RunRecord("failed", reason), 1.0, None)


def test_a_sweep_without_a_valid_trial_ends_with_the_reasons_of_all() -> None:
    records = [
        failed(0, "FitError: the loss became nan"),
        failed(1, "codes have collapsed"),
        failed(2, "codes have collapsed"),
    ]
    result = SweepResult("s", "/runs/sweeps/s", records, set(), [], None, None, interrupted=False)
    expected = (
        r"no trial of 3 ended with valid scores, so nothing was promoted: FitError: the loss became nan; codes have "
        r"collapsed\. The trials lie in /runs/sweeps/s"
    )
    with pytest.raises(SweepError, match=expected):
        check_result(result)


def test_an_interrupted_sweep_is_no_error_even_before_its_first_valid_trial() -> None:
    result = SweepResult("s", "/runs/sweeps/s", [], set(), [], None, None, interrupted=True)
    assert check_result(result) is result
    assert check_result(dataclasses.replace(result, best=failed(0, "-"), interrupted=False)).best is not None


@pytest.mark.parametrize(
    ("compute", "free", "grows", "parallel"),
    [
        ({}, 1.0, False, 8),  # trials of one worker wait in Tune's queue
        ({"num_workers": 2}, 8.0, False, 4),
        ({"num_workers": 2}, 5.0, False, 2),  # those of several start together or not at all
        ({"num_workers": 2}, 1.0, False, 1),  # full at this moment
        ({"num_workers": 2}, 0.0, True, 5),
        ({"num_workers": 64}, 0.0, True, 5),  # more than there is
    ],
)
def test_as_many_trials_run_at_once_as_there_are_places_or_may_come(
    monkeypatch: pytest.MonkeyPatch, compute: dict, free: float, grows: bool, parallel: int
) -> None:
    monkeypatch.setattr("raydis.sweep.run.free_nodes", lambda: [{"CPU": free}])
    tree = {"name": "s", "run": {"compute": compute}, "controls": [{"name": "base"}], "num_trials": 4}
    if compute.get("num_workers", 1) == 64:
        tree["run"]["train"] = {"batch_size": 512}
    spec = SweepSpec.model_validate(
        tree | {"search": {"train.learning_rate": {"kind": "float", "low": 1e-4, "high": 1e-3}}}
    )
    assert parallel_trials(spec, [{"CPU": 8.0}], grows=grows) == parallel


def test_a_trial_that_a_cluster_of_fixed_size_cannot_hold_is_refused() -> None:
    spec = SweepSpec.model_validate({"name": "s", "run": {}, "controls": [{"name": "base"}], "num_trials": 0})
    with pytest.raises(ResourceError, match=r"needs 1 worker\(s\) of 1 CPUs"):
        parallel_trials(spec, [{"CPU": 0.5}], grows=False)


@pytest.mark.parametrize(
    "part",
    [
        {"controls": [{"name": "vq", "set": {"first_stage": {"kind": "vq", "checkpoint": "vq@best"}}}]},
        {"controls": [{"name": "vq", "set": {"first_stage.checkpoint": "vq@2"}}]},
        {
            "num_trials": 1,
            "search": {"first_stage": {"kind": "choice", "values": [{"kind": "vq", "checkpoint": "vq@best"}]}},
        },
    ],
)
def test_a_name_of_the_registry_is_looked_up_for_the_base_run_alone(part: dict) -> None:
    tree = {
        "name": "s",
        "run": {"first_stage": {"kind": "vq", "checkpoint": "vq@best"}},
        "controls": [{"name": "base"}],
        "num_trials": 0,
    }
    check_first_stages(SweepSpec.model_validate(tree))
    with pytest.raises(ConfigError, match=r"names vq@\w+: give the checkpoint's folder or URI"):
        check_first_stages(SweepSpec.model_validate(tree | part))


# ---- a storage that fails


class Grid:
    """A Tuner that runs nothing, and may fail after a first trial."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __call__(self, *_: Any, run_config: Any, **__: Any) -> Grid:
        (self.progress,) = [one for one in run_config.callbacks if isinstance(one, SweepProgress)]
        return self

    def fit(self) -> Grid:
        trial = {"number": 0, "control": None, "settings": {"train.learning_rate": 0.125}}
        self.progress.state.update(trial, finished(factor_vae=0.75))
        if self.error is not None:
            raise self.error
        return self


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`sweep(grid)` runs a sweep whose trials are a stub's; `sweep.shown()` is what it printed."""
    console = Console(file=io.StringIO(), width=100)
    tree = {
        "name": "s",
        "run": expand({"preset": "tiny"}),
        "search": {"train.learning_rate": {"kind": "float", "low": 0.1, "high": 0.2}},
        "num_trials": 1,
    }
    spec = SweepSpec.model_validate(tree)

    def sweep(grid: Grid) -> SweepResult:
        monkeypatch.setattr(run, "ray_cluster", contextlib.nullcontext)
        monkeypatch.setattr(run, "cluster_nodes", lambda: [{"CPU": 2.0}])
        monkeypatch.setattr(run, "cluster_grows", lambda: False)
        monkeypatch.setattr(run, "check_data", lambda spec: None)
        monkeypatch.setattr(run, "check_storage", lambda store, key: None)
        monkeypatch.setattr(run.tune, "Tuner", grid)
        monkeypatch.setattr(run, "read_records", lambda grid, spec, scheme: [complete()])
        return run_sweep(spec, name="s", storage=str(tmp_path / "runs"), console=console)

    sweep.shown = console.file.getvalue  # type: ignore[attr-defined]
    return sweep


def complete() -> TrialRecord:
    return dataclasses.replace(failed(0, ""), state="complete", reason=None, checkpoint="/c")


def refuse(*_: Any, **__: Any) -> None:
    raise StoreError("cannot write x in the store: No space left on device: make room there")


def fill_the_disk_after_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    write = LocalStore.write

    def write_the_spec(self: LocalStore, key: str, data: bytes, **condition: Any) -> str:
        return write(self, key, data, **condition) if key.endswith("spec.json") else refuse()  # type: ignore[return-value]

    monkeypatch.setattr(LocalStore, "write", write_the_spec)


def test_a_disk_that_fills_up_under_tune_is_named_after_the_results_so_far(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk_after_the_claim(monkeypatch)
    with pytest.raises(StoreError, match="the sweep cannot go on: cannot write x in the store: No space left"):
        sweep(Grid(EOFError("Ran out of input")))
    assert "0.750" in sweep.shown()
    assert "learning_rate=0.125" in sweep.shown()


def test_a_disk_that_has_room_again_is_named_all_the_same(sweep: Any) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/runs/a")
    with pytest.raises(StoreError, match="the sweep cannot go on: cannot use /runs/a: No space left on device: make"):
        sweep(Grid(full))


def test_a_study_that_cannot_be_closed_hides_nothing(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def close(self: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run.StudySearcher, "close", close)
    fill_the_disk_after_the_claim(monkeypatch)
    with pytest.raises(StoreError, match="the sweep cannot go on: cannot write x in the store: No space left"):
        sweep(Grid(EOFError("Ran out of input")))


def test_an_error_of_tune_on_a_sound_storage_is_raised_as_it_is(sweep: Any, tmp_path: Path) -> None:
    with pytest.raises(EOFError, match="Ran out of input"):
        sweep(Grid(EOFError("Ran out of input")))
    left = {path.name for path in (tmp_path / "runs/sweeps/s").iterdir()}
    assert left == {"spec.json", "optuna.journal"}


def test_tables_that_cannot_be_written_do_not_take_the_results_along(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk_after_the_claim(monkeypatch)
    monkeypatch.setattr(run, "publish", lambda *_, **__: pytest.fail("published into a storage that is full"))
    monkeypatch.setattr(run, "choose_best", lambda records, rule: records[0])
    result = sweep(Grid())
    assert "No space left on device" in result.unwritten
    assert result.best == complete()
    assert result.published is None
