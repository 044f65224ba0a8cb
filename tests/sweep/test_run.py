"""A sweep whose storage fails under it; tests/system runs whole sweeps."""

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
from raydis.errors import StoreError
from raydis.store import LocalStore
from raydis.sweep import result, run, search
from raydis.sweep.progress import SweepProgress
from raydis.sweep.result import SweepResult
from raydis.sweep.run import run_sweep
from raydis.sweep.spec import SweepSpec
from raydis.sweep.summary import TrialRecord
from tests.records import finished


def failed(number: int, reason: str) -> TrialRecord:
    return TrialRecord(number, None, {}, "failed", reason, RunRecord("failed", reason), 1.0, None)


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
        monkeypatch.setattr(search.tune, "Tuner", grid)
        monkeypatch.setattr(run, "read_records", lambda *_: [complete()])
        return run_sweep(spec, name="s", storage=str(tmp_path / "runs"), console=console)

    sweep.shown = console.file.getvalue
    return sweep


def complete() -> TrialRecord:
    return dataclasses.replace(failed(0, ""), state="complete", reason=None, checkpoint="/c")


def refuse(*_: Any, **__: Any) -> None:
    raise StoreError("cannot write x in the store: No space left on device: make room there")


def fill_the_disk_after_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    write = LocalStore.write

    def write_the_spec(self: LocalStore, key: str, data: bytes, **condition: Any) -> str:
        return write(self, key, data, **condition) if key.endswith("spec.json") else refuse()

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
    monkeypatch.setattr(result, "choose_best", lambda records, rule: records[0])
    found = sweep(Grid())
    assert "No space left on device" in found.unwritten
    assert found.best == complete()
    assert found.published is None
