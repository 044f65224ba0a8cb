"""The order of an arena's sweeps, and how it goes on after an interruption; tests/system runs a whole arena."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from raydis.arena import pretrain, run
from raydis.arena.folder import Pretrained
from raydis.arena.look import Look
from raydis.arena.result import ArenaResult
from raydis.arena.run import run_arena
from raydis.arena.spec import ArenaSpec, load_arena
from raydis.errors import ConfigError, LeaseTaken, ResourceError, StoreError, SweepError
from raydis.store import LocalStore
from raydis.store.lease import Lease
from raydis.sweep.spec import SweepSpec
from tests.arena.conftest import BORROWER, LARGE, final_rows, row, summary, write_sweep

DCI = {"ours": 0.8, "rival": 0.5, "closed": 0.3}


class Sweeps:
    """Stands in for `run_sweep`: it writes what a sweep writes, and may be interrupted, fail, or find nothing.

    Attributes:
        asked: the sweeps that were run: name -> settings of the control runs, by their name.
        interrupt: name of the sweep that is interrupted after its first trial.
        useless: entrants none of whose trials has scores.
        broken: name of the sweep in which the cluster fails.
        full: name of the sweep whose last results find no room.
    """

    def __init__(self, store: LocalStore) -> None:
        self.store = store
        self.asked: dict[str, dict[str, Any]] = {}
        self.specs: dict[str, SweepSpec] = {}
        self.interrupt, self.broken, self.full, self.useless = "", "", "", set[str]()

    def __call__(self, spec: SweepSpec, *, name: str, storage: str, console: Console) -> Any:
        assert storage == str(self.store.location / "arenas/duel")
        entrant, part, number = name.split(".")
        runs = {each: settings for control in spec.controls for each, settings in control.runs().items()}
        self.asked[name], self.specs[name] = runs, spec
        if name == self.broken:
            write_sweep(self.store, entrant, part, int(number), None)
            raise ResourceError("the cluster is gone")
        dci = None if entrant in self.useless else DCI[entrant]
        if part == "study":
            rows = [row(trial, dci and dci - trial / 10) for trial in range(spec.total_trials)]
        else:
            rows = final_rows(entrant, {settings["seed"]: dci and dci + settings["seed"] / 1000
                                        for settings in runs.values()})  # fmt: skip
        interrupted = name == self.interrupt
        if interrupted:
            rows = rows[:1]
        write_sweep(self.store, entrant, part, int(number), summary(rows, interrupted=interrupted))
        if dci is None:
            raise SweepError("no trial ended with valid scores")
        full = "the sweep cannot go on: the disk is full" if name == self.full else None
        return SimpleNamespace(interrupted=interrupted, unwritten=full)


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sweeps:
    stub = Sweeps(LocalStore(tmp_path / "runs"))
    monkeypatch.setattr(run, "ray_cluster", contextlib.nullcontext)
    monkeypatch.setattr(run, "run_sweep", stub)
    monkeypatch.setattr(run, "look_at", looked)
    return stub


def looked(checkpoints: dict[str, bool], compute: Any, *, num_units: int) -> dict[str, Look]:
    return {checkpoint: Look(10, 2.0, 1.5, (), (), 4, "drawn" if drawn else None)
            for checkpoint, drawn in checkpoints.items()}  # fmt: skip


@pytest.fixture
def arena(sweeps: Sweeps, spec: ArenaSpec) -> Callable[[], ArenaResult]:
    """Run the arena, or what is left of it."""
    console = Console(file=io.StringIO())
    return lambda: run_arena(spec, name="duel", storage=str(sweeps.store.location), console=console)


STUDIES_AND_FINALS = [
    "ours.study.1",
    "ours.final.1",
    "rival.study.1",
    "rival.final.1",
    "closed.study.1",
    "closed.final.1",
]


def test_each_entrant_has_a_study_and_then_its_best_setting_is_trained_with_every_fresh_seed(
    arena: Callable[[], ArenaResult], sweeps: Sweeps
) -> None:
    result = arena()
    assert list(sweeps.asked) == STUDIES_AND_FINALS
    assert sweeps.asked["ours.final.1"] == {
        f"ours/{seed}": {"method.num_units": 4, "seed": seed} for seed in (11, 12, 13)
    }
    assert [(each.name, each.state) for each in result.entries] == [
        ("ours", "complete"), ("rival", "complete"), ("closed", "complete"),
    ]  # fmt: skip
    folder = Path(result.folder)
    assert {path.name for path in folder.iterdir() if path.suffix} == {
        "report.html", "results.json", "results.csv", "results.md", "arena.json", "lease.json",
    }  # fmt: skip
    stored = json.loads((folder / "results.json").read_text())
    assert [each["name"] for each in stored["entrants"]] == ["ours", "rival", "closed"]
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + 9
    drawn = [run["checkpoint"] for run in stored["entrants"][0]["runs"]]
    assert drawn == ["/runs/ours/11", "/runs/ours/12", "/runs/ours/13"]


def test_a_finished_arena_is_not_run_again_and_only_its_report_is_written(
    arena: Callable[[], ArenaResult], sweeps: Sweeps
) -> None:
    before = arena()
    sweeps.asked.clear()
    (Path(before.folder) / "report.html").unlink()
    assert arena() == before
    assert sweeps.asked == {}
    assert (Path(before.folder) / "report.html").exists()


def test_an_interrupted_study_begins_anew_and_an_interrupted_final_runs_the_seeds_that_are_left(
    arena: Callable[[], ArenaResult], sweeps: Sweeps
) -> None:
    sweeps.interrupt = "rival.study.1"
    result = arena()
    assert result.interrupted
    assert list(sweeps.asked) == STUDIES_AND_FINALS[:3]
    assert not (Path(result.folder) / "report.html").exists()
    sweeps.asked.clear()
    sweeps.interrupt = "rival.final.1"
    assert arena().interrupted
    assert list(sweeps.asked) == ["rival.study.2", "rival.final.1"]
    sweeps.asked.clear()
    result = arena()
    assert list(sweeps.asked) == ["rival.final.2", "closed.study.1", "closed.final.1"]
    assert list(sweeps.asked["rival.final.2"]) == ["rival/12", "rival/13"]
    assert not result.interrupted
    assert result.entries[0].column("dci_disentanglement") == pytest.approx([0.811, 0.812, 0.813])
    assert result.entries[1].column("dci_disentanglement") == pytest.approx([0.511, 0.512, 0.513])


def test_a_cluster_that_fails_ends_the_command_and_the_next_one_goes_on(
    arena: Callable[[], ArenaResult], sweeps: Sweeps
) -> None:
    sweeps.broken = "ours.final.1"
    with pytest.raises(ResourceError, match="the cluster is gone"):
        arena()
    sweeps.asked.clear()
    sweeps.broken = ""
    assert not arena().interrupted
    assert list(sweeps.asked) == ["ours.final.2", *STUDIES_AND_FINALS[2:]]


def test_a_storage_that_fails_under_a_sweep_ends_the_command_with_the_reason(
    arena: Callable[[], ArenaResult], sweeps: Sweeps
) -> None:
    sweeps.full = "ours.study.1"
    with pytest.raises(StoreError, match=r"the sweep cannot go on: the disk is full\. The same command goes on"):
        arena()
    assert list(sweeps.asked) == STUDIES_AND_FINALS[:1]


def test_an_entrant_without_scores_is_a_result_and_has_no_final(
    arena: Callable[[], ArenaResult], sweeps: Sweeps
) -> None:
    sweeps.useless = {"rival"}
    result = arena()
    assert "rival.final.1" not in sweeps.asked
    assert [(each.name, each.state) for each in result.entries] == [
        ("ours", "complete"), ("closed", "complete"), ("rival", "failed"),
    ]  # fmt: skip
    sweeps.asked.clear()
    arena()
    assert sweeps.asked == {}
    table = (Path(result.folder) / "results.md").read_text().splitlines()
    assert table[-1].startswith("| rival | 0 of 3 | failed |")
    assert "0.000" not in table[-1]


def test_no_final_shares_seed_or_draws_with_a_study(arena: Callable[[], ArenaResult], sweeps: Sweeps) -> None:
    arena()
    studies = [spec for name, spec in sweeps.specs.items() if ".study." in name]
    finals = [spec for name, spec in sweeps.specs.items() if ".final." in name]
    assert {spec.run.seed for spec in studies} == {0}
    assert not {0} & {
        settings["seed"] for spec in finals for each in spec.controls for settings in each.runs().values()
    }
    assert not {spec.run.evaluation.seed for spec in studies} & {spec.run.evaluation.seed for spec in finals}
    assert {spec.run.evaluation.protocol for spec in finals} == {"published"}


def test_a_model_that_an_entrant_borrows_is_trained_once_and_before_its_study(
    sweeps: Sweeps, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_arena(path, [*LARGE, BORROWER])
    trained: list[str] = []

    def train(config: Any, *, storage: str, name: str, on_report: Any) -> Any:
        assert config == spec.entrants["ours"].pretraining.run  # type: ignore[union-attr]
        assert storage == str(sweeps.store.location / "arenas/duel")
        trained.append(name)
        return SimpleNamespace(checkpoint="/runs/first")

    monkeypatch.setattr(pretrain, "run", train)
    metrics = {"train_s": 3.0, "cpu_s": 2.5}
    monkeypatch.setattr(pretrain, "fetch_checkpoint", lambda uri, cache: SimpleNamespace(metrics=metrics))
    sweeps.interrupt = "ours.study.1"
    console = Console(file=io.StringIO())
    assert run_arena(spec, name="duel", storage=str(sweeps.store.location), console=console).interrupted
    result = run_arena(spec, name="duel", storage=str(sweeps.store.location), console=console)
    assert trained == ["ours.pretraining"]
    for name in ("ours.study.1", "ours.study.2", "ours.final.1"):
        assert sweeps.specs[name].run.checkpoints() == {"method.pretrained.checkpoint": "/runs/first"}
    assert result.entries[0].pretrained == Pretrained("/runs/first", 320, 3.0, 2.5)
    page = (Path(result.folder) / "report.html").read_text()
    assert "320 + 640" in page  # what the stub says of a run
    assert "2.5 s + 1.5 s" in page
    assert "All runs of ours borrow a model that was trained once." in page


def test_another_arena_under_the_same_name_is_refused_before_anything_runs(
    arena: Callable[[], ArenaResult], sweeps: Sweeps, spec: ArenaSpec
) -> None:
    arena()
    sweeps.asked.clear()
    other = spec.model_copy(update={"num_trials": 7})
    with pytest.raises(ConfigError, match="num_trials was 3, is 7"):
        run_arena(other, name="duel", storage=str(sweeps.store.location), console=Console(file=io.StringIO()))
    assert sweeps.asked == {}


def test_two_commands_do_not_run_one_arena_at_once(
    arena: Callable[[], ArenaResult], sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(self: Lease) -> None:
        raise LeaseTaken("arena duel is running elsewhere")

    monkeypatch.setattr(Lease, "acquire", taken)
    with pytest.raises(LeaseTaken, match="arena duel is running elsewhere"):
        arena()
    assert sweeps.asked == {}
