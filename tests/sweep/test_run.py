"""A sweep that ends and goes on, or whose storage fails under it; tests/system runs whole sweeps."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raydis.config.presets import expand
from raydis.engine.record import RunRecord
from raydis.errors import ConfigError, LeaseTaken, StoreError
from raydis.metrics.protocol import PUBLISHED
from raydis.registry import ModelRef
from raydis.registry.promotion import Decision, Promotion
from raydis.store import LocalStore
from raydis.store.lease import Lease
from raydis.sweep import run, search
from raydis.sweep.printout import print_result
from raydis.sweep.publish import Published
from raydis.sweep.result import SweepResult
from raydis.sweep.run import run_sweep
from raydis.sweep.searcher import StudySearcher
from raydis.sweep.spec import SweepSpec
from raydis.sweep.study import num_left
from tests.records import finished, running, scores_of

TREE = {
    "name": "s",
    "run": expand({"preset": "tiny"}),
    "search": {"train.learning_rate": {"kind": "float", "low": 0.1, "high": 0.2}},
    "num_trials": 2,
}
BOTH = {"dci_disentanglement": 0.5, "factor_vae": 0.75}


def at(seconds: float, record: RunRecord, checkpoint: int | None = None) -> dict[str, Any]:
    """A report as Tune passes it on."""
    name = None if checkpoint is None else f"checkpoint_{checkpoint:06d}"
    return record.to_ray() | {"time_total_s": seconds, "checkpoint_dir_name": name}


GOOD = at(3.0, finished(**BOTH), 1)
Act = Callable[[StudySearcher], Any]


class Tune:
    """A Tuner whose `fit` lets a function act on the searcher, as Tune would; `asked` holds the suggestions."""

    def __init__(self, act: Act) -> None:
        self.act, self.asked = act, list[Any]()

    def __call__(self, *_: Any, tune_config: Any, **__: Any) -> Tune:
        self.searcher, self.num_samples = tune_config.search_alg, tune_config.num_samples
        self.scheduler = tune_config.scheduler
        return self

    def fit(self) -> None:
        self.act(self.searcher)

    def ask(self, number: int) -> Act:
        return lambda searcher: self.asked.append(searcher.suggest(str(number)))


def finish(searcher: StudySearcher) -> None:
    """Run all trials that are left to their end."""
    for number in range(num_left(searcher.study, searcher.spec)):
        searcher.suggest(f"f{number}")
        searcher.on_trial_complete(f"f{number}", GOOD)


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`sweep(act)` runs a sweep whose trials are a function's; `sweep.shown()` is what it printed."""
    console = Console(file=io.StringIO(), width=100)
    monkeypatch.setattr(run, "ray_cluster", contextlib.nullcontext)

    def sweep(act: Act, **over: Any) -> SweepResult:
        monkeypatch.setattr(run, "cluster_nodes", lambda: [{"CPU": 2.0}])
        monkeypatch.setattr(run, "cluster_grows", lambda: False)
        monkeypatch.setattr(run, "check_data", lambda spec: None)
        monkeypatch.setattr(run, "check_storage", lambda store, key: None)
        monkeypatch.setattr(search.tune, "Tuner", sweep.tune(act))
        spec = SweepSpec.model_validate(TREE | {"promotion": None} | over)
        result = run_sweep(spec, name="s", storage=str(tmp_path / "runs"), console=console)
        print_result(result, spec, "runs", console)
        return result

    def tune(act: Act) -> Tune:
        sweep.last = Tune(act)
        return sweep.last

    sweep.tune, sweep.shown = tune, console.file.getvalue
    return sweep


def begin_two_and_stop(searcher: StudySearcher) -> None:
    """End the first trial, and interrupt the second after its first checkpoint."""
    searcher.suggest("a")
    searcher.suggest("b")
    searcher.on_trial_complete("a", GOOD)
    searcher.on_trial_result("b", at(7.0, running(128), 0))


def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs/sweeps/s"


def test_the_same_call_goes_on_with_what_is_left(sweep: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = sweep(begin_two_and_stop)
    assert first.interrupted
    assert [record.state for record in first.records] == ["complete", "interrupted"]
    assert first.records[1].reason == "interrupted after 128 images; the same command continues it"
    kept = folder(tmp_path) / "trial-0001/checkpoint_000000"
    assert [record.checkpoint for record in first.records] == [
        str(folder(tmp_path) / "trial-0000/checkpoint_000001"),
        str(kept),
    ]
    kept.mkdir(parents=True)
    (kept / "manifest.json").write_text("{}")

    asked = []

    def go_on(searcher: StudySearcher) -> None:
        asked.append(searcher.suggest("c"))
        searcher.on_trial_complete("c", GOOD)

    second = sweep(go_on)
    assert sweep.last.num_samples == 1
    assert "1 of 2 trials have ended\n" in sweep.shown()
    assert (asked[0]["number"], asked[0]["settings"]) == (1, first.records[1].settings)
    assert asked[0]["checkpoints"] == [str(kept)]
    assert not second.interrupted
    assert [record.state for record in second.records] == ["complete", "complete"]
    assert [record.time_s for record in second.records] == [3.0, 10.0]
    assert json.loads((folder(tmp_path) / "summary.json").read_text())["interrupted"] is False

    with monkeypatch.context() as without_ray:
        without_ray.setattr(run, "ray_cluster", lambda: pytest.fail("started Ray for a sweep that has ended"))
        again = sweep(finish)
    assert "this sweep has ended, and its results follow: ask for more trials with --num-trials" in sweep.shown()
    assert again == second
    more = sweep(lambda searcher: finish(searcher), num_trials=3, max_concurrent=1)
    assert [record.number for record in more.records] == [0, 1, 2]


def test_a_killed_driver_leaves_nothing_running(sweep: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(StudySearcher, "close", lambda self: None)
        sweep(begin_two_and_stop)
    log = folder(tmp_path) / "trial-0001/result.json"
    log.parent.mkdir(parents=True)
    log.write_text('{"time_total_s": 5.0}\n{"time_total_s": 6.5}\n{"time_to')
    with open(folder(tmp_path) / "optuna.journal", "ab") as journal:
        journal.write(b'{"op_code":4,"wor')  # it was killed in the middle of a line, and held the lock
    (folder(tmp_path) / "optuna.journal.lock").symlink_to("optuna.journal")
    states = []

    def look(searcher: StudySearcher) -> None:
        states.extend(trial.state.name for trial in searcher.study.trials)
        finish(searcher)

    second = sweep(look)
    assert states == ["COMPLETE", "WAITING"]
    assert [(record.state, record.time_s) for record in second.records] == [("complete", 3.0), ("complete", 9.5)]


def test_a_sweep_that_goes_on_compares_its_trials_with_those_of_the_session_before(sweep: Any) -> None:
    rungs = {"run": expand({"preset": "tiny", "evaluation": {"rungs": [128]}}), "stopping": {"reduction_factor": 3}}

    def pause_the_second(searcher: StudySearcher) -> None:
        for name, value in (("a", 0.8), ("b", 0.3)):
            searcher.suggest(name)
            report = running(128, scores=scores_of(dci_disentanglement=value, factor_vae=value))
            searcher.on_trial_result(name, at(3.0, report, 0))
        searcher.on_trial_complete("a", GOOD)

    assert sweep(pause_the_second, **rungs).interrupted
    assert sweep.last.scheduler.halving.going_on(128) == set()  # a new one
    asked = []
    second = sweep(lambda searcher: asked.append(searcher.suggest("c")) or searcher.on_trial_complete("c"), **rungs)
    halving, (waiting,) = sweep.last.scheduler.halving, asked
    assert (halving.knows(128, 0), halving.knows(128, 1), halving.going_on(128)) == (True, True, {0})
    assert waiting["number"] == 1
    assert [record.state for record in second.records] == ["complete", "stopped"]
    assert second.records[1].reason == "stopped after 128 images"
    assert "stopped  128 of 1024 images were spent on trials that were stopped early" in sweep.shown()
    with pytest.raises(ConfigError, match=r"stopping\.reduction_factor was 3\.0, is 4\.0"):
        sweep(finish, **rungs | {"stopping": {"reduction_factor": 4}})


def test_another_specification_is_refused_and_a_held_lease_too(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sweep(begin_two_and_stop)
    with pytest.raises(ConfigError, match=r"seed was 0, is 1; num_trials was 2, is 1, and may only grow\. Continue it"):
        sweep(finish, seed=1, num_trials=1)
    monkeypatch.setattr("raydis.store.lease.BEAT_S", 0.01)
    monkeypatch.setattr("raydis.store.lease.POLL_S", 0.05)
    lease = Lease(LocalStore(tmp_path / "runs"), "sweeps/s/lease.json", what="sweep s")
    with lease.held(), pytest.raises(LeaseTaken, match=r"sweep s in .* is running elsewhere: "):
        sweep(finish)


def test_a_sweep_of_an_older_raydis_is_refused_before_ray_starts(
    sweep: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sweep(begin_two_and_stop)
    (folder(tmp_path) / "optuna.journal").unlink()  # in a bucket, it was kept in memory
    (folder(tmp_path) / "trial-0000").mkdir()
    (folder(tmp_path) / "trial-0000/result.json").touch()
    monkeypatch.setattr(run, "ray_cluster", lambda: pytest.fail("started Ray"))
    with pytest.raises(ConfigError, match=r"sweep s was begun by an older raydis and cannot go on: begin another one"):
        sweep(finish)


def refuse(*_: Any, **__: Any) -> None:
    raise StoreError("cannot write x in the store: No space left on device: make room there")


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    write = LocalStore.write

    def write_little(self: LocalStore, key: str, data: bytes, **condition: Any) -> str:
        return write(self, key, data, **condition) if key.endswith(("spec.json", "lease.json")) else refuse()

    monkeypatch.setattr(LocalStore, "write", write_little)


def fail_with(error: BaseException) -> Act:
    def act(searcher: StudySearcher) -> None:
        searcher.suggest("a")
        searcher.on_trial_complete("a", GOOD)
        raise error

    return act


def test_a_disk_that_fills_up_under_tune_is_named_and_the_results_are_shown(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_the_disk(monkeypatch)
    result = sweep(fail_with(EOFError("Ran out of input")))
    assert result.unwritten.startswith("the sweep cannot go on: cannot write x in the store: No space left")
    assert [record.value("factor_vae") for record in result.records] == [0.75]
    assert "0.750" in sweep.shown()


def test_a_disk_that_has_room_again_is_named_all_the_same(sweep: Any) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/runs/a")
    result = sweep(fail_with(full))
    assert result.unwritten.startswith("the sweep cannot go on: cannot use /runs/a: No space left on device: make")


def test_a_result_that_the_study_could_not_keep_is_shown_and_its_trial_goes_on_later(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/runs/a")

    def break_the_journal(searcher: StudySearcher) -> None:
        searcher.suggest("a")
        with monkeypatch.context() as broken:
            broken.setattr(
                "raydis.sweep.journal.JournalFileBackend.append_logs", lambda *_: (_ for _ in ()).throw(full)
            )
            searcher.on_trial_result("a", GOOD)
            with pytest.raises(OSError, match="No space"):
                searcher.on_trial_complete("a", GOOD)
            searcher.on_trial_complete("a", error=True)  # so does Tune, for which the first call was the trial's error

    with monkeypatch.context() as closed:
        closed.setattr(StudySearcher, "close", lambda self: None)
        result = sweep(break_the_journal)
    assert result.unwritten.startswith("the sweep cannot go on: cannot use /runs/a: No space left on device")
    assert [record.state for record in result.records] == ["complete"]
    assert "0.750" in sweep.shown()
    again = sweep(finish)
    assert [record.state for record in again.records] == ["complete", "complete"]


def test_a_trial_that_a_full_disk_ended_is_not_to_blame_and_another_one_is(sweep: Any) -> None:
    full, bad = OSError(errno.ENOSPC, "No space left on device", "/runs/a"), RuntimeError("boom")

    def act(searcher: StudySearcher) -> None:
        searcher.suggest("a")
        searcher.blame("a", bad)
        searcher.on_trial_complete("a", error=True)
        searcher.suggest("b")
        searcher.blame("b", _task_error(full))
        searcher.on_trial_complete("b", error=True)

    result = sweep(act)
    assert [record.state for record in result.records] == ["failed"]
    assert result.records[0].reason == "RuntimeError: boom"
    assert result.unwritten.startswith("the sweep cannot go on: ")
    again = sweep(finish)
    assert [record.state for record in again.records] == ["failed", "complete"]


def _task_error(cause: Exception) -> Exception:
    """An error as Ray raises it for one of a task in another process."""
    error = RuntimeError("ray::ImplicitFunc.train()")
    error.cause = cause  # type: ignore[attr-defined]
    return error


def test_a_study_that_cannot_be_closed_hides_nothing(sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def close(self: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StudySearcher, "close", close)
    result = sweep(fail_with(EOFError("Ran out of input")))
    assert result.unwritten.startswith("the sweep cannot go on: ")


def test_an_error_of_tune_on_a_sound_storage_is_raised_as_it_is(sweep: Any, tmp_path: Path) -> None:
    with pytest.raises(EOFError, match="Ran out of input"):
        sweep(fail_with(EOFError("Ran out of input")))
    left = {path.name for path in folder(tmp_path).iterdir()}
    assert left == {"spec.json", "optuna.journal", "lease.json"}


def test_tables_that_cannot_be_written_do_not_take_the_results_along(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "publish", lambda *_, **__: pytest.fail("published into a storage that is full"))

    def fill(searcher: StudySearcher) -> None:
        finish(searcher)
        fill_the_disk(monkeypatch)

    found = sweep(fill, promotion={})
    assert found.unwritten.startswith("the sweep's tables were not written: cannot write x in the store: No space")
    assert found.best is not None
    assert found.published is None


def test_ctrl_c_while_the_winner_is_scored_keeps_the_results_and_the_same_call_publishes(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "publish", interrupt)
    result = sweep(finish, promotion={})
    assert result.interrupted
    assert "unpublished  interrupted while it was scored" in sweep.shown()
    assert "python -m raydis models register" in sweep.shown()

    promotion = Promotion(ModelRef("s", 1), Decision(True, "s@1 is the first best"))
    scores = dataclasses.replace(scores_of(**BOTH), protocol=PUBLISHED.name)
    published = Published(scores, promotion, "sweeps/s/traversal.png")
    monkeypatch.setattr(run, "publish", lambda *_, **__: published)
    again = sweep(lambda searcher: pytest.fail("ran a sweep that has ended"), promotion={})
    assert (again.published, again.interrupted) == (published, False)
    monkeypatch.setattr(run, "publish", lambda *_, **__: pytest.fail("published twice"))
    assert sweep(lambda searcher: None, promotion={}).published == published
