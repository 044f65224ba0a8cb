"""What the folder of a sweep says while the sweep runs, after a kill, and at its end."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import optuna
import pytest

from raydis.cli import main
from raydis.errors import ConfigError, LeaseTaken
from raydis.metrics.protocol import PUBLISHED
from raydis.registry import ModelRef
from raydis.registry.promotion import Decision, Promotion
from raydis.store import LocalStore, Location
from raydis.store.lease import Lease
from raydis.sweep.folder import write_spec
from raydis.sweep.journal import study_storage
from raydis.sweep.publish import Published
from raydis.sweep.read import read_sweep, rebuild, running_sweeps, sweep_names, write_tables_of
from raydis.sweep.result import write_summary
from raydis.sweep.searcher import StudySearcher
from tests.records import finished, running, scores_of
from tests.sweep.test_difference import spec_of

RECORD = finished(dci_disentanglement=0.5, factor_vae=0.75)
GOOD = RECORD.to_ray() | {"time_total_s": 3.0, "checkpoint_dir_name": "checkpoint_000001"}
SPEC = spec_of(search={"train.learning_rate": {"kind": "float", "low": 0.1, "high": 0.2}}, num_trials=2, controls=[])


class Bucket(LocalStore):
    """A store that says that it is a bucket, so that the study is kept in parts."""

    @property
    def location(self) -> Location:
        return Location.parse("s3://lab/runs")


@pytest.fixture(params=[LocalStore, Bucket])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LocalStore:
    return request.param(tmp_path / "runs")


def lease(store: LocalStore) -> Lease:
    return Lease(store, "sweeps/s/lease.json", what="sweep s")


@pytest.fixture
def searcher(store: LocalStore) -> StudySearcher:
    return begin(store)


def begin(store: LocalStore) -> StudySearcher:
    """Return the searcher of a sweep whose first trial has ended. The second one's report is not in the study yet."""
    write_spec(store, "s", SPEC)
    storage, parts = study_storage(store, "sweeps/s")
    found = StudySearcher(
        SPEC,
        study_name="s",
        storage=storage,
        saved=parts.flush if parts else lambda: None,
        checkpoint_of=lambda number, report: f"/runs/trial-{number:04d}/checkpoint_000001",
    )
    found.suggest("a")
    found.suggest("b")
    found.on_trial_complete("a", GOOD)
    line = json.dumps(running(128).to_ray() | {"time_total_s": 2.0})
    store.write("sweeps/s/trial-0001/result.json", f'{line}\n{{"images_se'.encode())
    return found


def test_a_sweep_is_read_while_it_runs_after_a_kill_and_at_its_end(store: LocalStore, searcher: StudySearcher) -> None:
    assert sweep_names(store) == ["s"]
    with lease(store).held():
        assert running_sweeps(store, ["s", "t"]) == {"s"}
        sweep = read_sweep(store, "s", running=True)
    assert (sweep.state, sweep.num_ended, sweep.num_left, sweep.spec) == ("running", 1, 1, SPEC)
    first, second = sweep.result.records
    assert (first.state, first.run.scores) == ("complete", RECORD.scores)
    assert (second.state, second.run.images_seen, second.time_s) == ("running", 128, 2.0)
    assert (sweep.result.best, sweep.result.interrupted) == (first, True)

    assert running_sweeps(store, ["s"]) == set()
    killed = read_sweep(store, "s", running=False)
    assert (killed.state, killed.num_ended, killed.num_left) == ("interrupted", 1, 1)
    assert killed.result.records[1].reason == "interrupted after 128 images; the same command continues it"

    searcher.on_trial_complete("b", GOOD)
    ended = read_sweep(store, "s", running=False)
    assert (ended.state, ended.num_ended, ended.num_left) == ("unpublished", 2, 0)
    assert ended.result.unpublished == "it has not been scored yet; the same command goes on"
    assert read_sweep(store, "s", running=True).state == "running"


def test_tables_are_rebuilt_from_the_study_and_keep_what_was_published(
    store: LocalStore, searcher: StudySearcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuild(store, "s")
    summary = json.loads(store.read("sweeps/s/summary.json"))
    assert [row["state"] for row in summary["trials"]] == ["complete", "interrupted"]
    assert (summary["interrupted"], summary["best"]) == (True, 0)
    assert store.read("sweeps/s/trials.csv").count(b"\n") == 3
    assert store.exists("sweeps/s/trials.parquet")
    assert store.exists("sweeps/s/optuna.journal")  # also where the study is kept in parts

    searcher.on_trial_complete("b", GOOD)
    rebuilt = rebuild(store, "s")
    promotion = Promotion(ModelRef("s", 1), Decision(True, "s@1 is the first best"))
    scores = dataclasses.replace(scores_of(dci_disentanglement=0.5, factor_vae=0.75), protocol=PUBLISHED.name)
    published = Published(scores, promotion, "sweeps/s/traversal.png")
    write_summary(store, "sweeps/s", dataclasses.replace(rebuilt, published=published, unpublished=None))
    whole = store.read("sweeps/s/summary.json")
    store.delete("sweeps/s/trials.csv")
    assert rebuild(store, "s").published == published
    assert store.read("sweeps/s/summary.json") == whole
    assert store.exists("sweeps/s/trials.csv")
    assert read_sweep(store, "s", running=False).state == "ended"

    monkeypatch.setattr("raydis.store.lease.BEAT_S", 0.01)
    monkeypatch.setattr("raydis.store.lease.POLL_S", 0.05)
    with lease(store).held(), pytest.raises(LeaseTaken, match=r"sweep s in .* is running elsewhere: "):
        rebuild(store, "s")
    write_tables_of(rebuilt, LocalStore(tmp_path), "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"summary.json", "trials.csv", "trials.parquet"}


def test_what_cannot_be_read_is_named(store: LocalStore) -> None:
    with pytest.raises(ConfigError, match=r"no sweep s in .*: `python -m raydis sweeps list` shows those that exist"):
        rebuild(store, "s")
    assert not store.exists("sweeps/s/lease.json")
    write_spec(store, "s", SPEC)
    begun = read_sweep(store, "s", running=True)
    assert (begun.state, begun.num_left, begun.result.records) == ("running", 2, [])
    store.write("sweeps/s/trial-0000/result.json", b"")
    with pytest.raises(ConfigError, match=r"sweep s was begun by an older raydis, whose studies have no records"):
        read_sweep(store, "s", running=False)
    write_spec(store, "t", SPEC)
    storage, parts = study_storage(store, "sweeps/t")
    optuna.create_study(study_name="t", storage=storage, directions=["maximize", "maximize"]).ask()
    if parts is not None:
        parts.flush()
    with pytest.raises(ConfigError, match=r"sweep t was begun by an older raydis"):
        read_sweep(store, "t", running=False)
    store.write("sweeps/u/spec.json", b"[")
    with pytest.raises(ConfigError, match=r"sweeps/u/spec.json in .* is damaged"):
        read_sweep(store, "u", running=False)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["raydis", "sweeps", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_commands_list_show_and_rebuild(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "list") == 0
    assert capsys.readouterr().out == "no sweeps in runs; `python -m raydis.sweep` runs one\n"
    store = LocalStore(tmp_path / "runs")
    begun = begin(store)
    store.write("sweeps/old/spec.json", b"[")
    with lease(store).held():
        assert call(monkeypatch, "list") == 0
        listed = capsys.readouterr().out
        assert call(monkeypatch, "show", "s") == 0
        shown = capsys.readouterr().out
    head, row, damaged = [line.rstrip() for line in listed.splitlines()]
    assert (head.split(), row.split()[:5]) == (["sweep", "state", "trials", "best"], ["s", "running", "1", "of", "2"])
    assert row.endswith("trial 0, dci 0.500, fvae 0.750")
    assert damaged.startswith("sweeps/old/spec.json in ")
    assert "\nrunning  1 of 2 trials ended\n" in shown
    assert "\nbest     trial 0, dci 0.500, fvae 0.750 (search protocol" in shown
    assert "trials.csv" not in shown  # there is none

    assert call(monkeypatch, "rebuild", "s", "-o", "copy") == 0
    assert capsys.readouterr().out.startswith("trials.csv, trials.parquet and summary.json of 2 trials are in ")
    assert json.loads((tmp_path / "copy/summary.json").read_text())["trials"][0]["state"] == "complete"
    begun.on_trial_complete("b", GOOD)
    assert call(monkeypatch, "rebuild", "s") == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path}/runs/sweeps/s\n")
    assert call(monkeypatch, "show", "s") == 0
    assert "\nunpublished  it has not been scored yet; the same command goes on\n" in capsys.readouterr().out
    assert call(monkeypatch, "show", "t") == 2
    assert capsys.readouterr().err.startswith("raydis: no sweep t in ")
