"""What a sweep shows and writes of given reports, held to the letter: its live line and table, CSV, JSON and last page.

The rows below are what `result.json` held before a run's reports had a type. A sweep of that time is still read.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from raydis.config.files import parse
from raydis.config.presets import expand
from raydis.engine.record import RunRecord
from raydis.errors import explain
from raydis.metrics.reconstruction import Reconstruction
from raydis.metrics.scores import Scores
from raydis.metrics.standing import DEFAULT_OBJECTIVES
from raydis.metrics.table import numbers
from raydis.store import LocalStore
from raydis.sweep.printout import print_result
from raydis.sweep.progress import SweepProgress, SweepState
from raydis.sweep.result import SweepResult
from raydis.sweep.searcher import StudySearcher
from raydis.sweep.spec import SweepSpec
from raydis.sweep.study import record_of, trial_state
from raydis.sweep.summary import TrialRecord, choose_best, pareto_front, replicates, to_json, write_tables

HERE = Path(__file__).parent / "outputs"
LOST = RuntimeError("worker said\nTraceback (most recent call last):\nValueError: boom")


def rows_of(number: int) -> list[dict[str, Any]]:
    """The reports of one trial as Tune wrote them down."""
    path = HERE / f"trial-{number:04d}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


CONFIGS = [
    {"number": 0, "control": "off/1", "settings": {"method.num_units": 4, "seed": 1}},
    {"number": 1, "control": "off/2", "settings": {"method.num_units": 4, "seed": 2}},
    {"number": 2, "control": None, "settings": {"method.num_units": 5, "method.unet.multipliers": [1, 2]}},
    {"number": 3, "control": None, "settings": {"method.num_units": 6}},
    {"number": 4, "control": None, "settings": {"method.num_units": 7}},
    {"number": 5, "control": None, "settings": {"method.num_units": 8}},
    {"number": 6, "control": None, "settings": {"method.num_units": 8}},
    {"number": 7, "control": None, "settings": {"method.num_units": 8}},
]
ERRORS = {5: LOST, 7: LOST}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def spec() -> SweepSpec:
    search = {"method.num_units": {"kind": "int", "low": 4, "high": 8}}
    tree = {"name": "quickstart", "run": expand({"preset": "tiny"}), "search": search, "num_trials": 8}
    return parse(SweepSpec, tree, source="test")


@pytest.fixture
def result(spec: SweepSpec) -> SweepResult:
    """The sweep of these trials, read from what they reported last."""
    records = [record_of_rows(config, spec) for config in CONFIGS]
    front, best = pareto_front(records, spec.objectives), choose_best(records, spec.objectives)
    groups = replicates(records, spec.objectives)
    return SweepResult("s", "/runs/sweeps/s", records, front, groups, best, None, interrupted=False)


def record_of_rows(config: dict[str, Any], spec: SweepSpec) -> TrialRecord:
    """The record of a trial by its attributes in the study."""
    number, rows = config["number"], rows_of(config["number"])
    last, error = rows[-1] if rows else {}, ERRORS.get(config["number"])
    state, reason = trial_state(RunRecord.from_ray(last), error is not None, spec.objectives)
    notes = {
        "control": config["control"],
        "settings": config["settings"],
        "record": last,
        "reason": reason if error is None else explain(error).line,
        "time_s": last.get("time_total_s"),
        "checkpoint": last.get("checkpoint_uri", f"/runs/{number}") if rows else None,
    }
    return record_of(number, state, notes)


def expected(name: str) -> str:
    return (HERE / name).read_text()


@pytest.mark.parametrize("number", range(7))
def test_a_row_of_ray_is_what_it_was(number: int) -> None:
    for row in rows_of(number):
        written = RunRecord.from_ray(row).to_ray()
        assert {*written} <= {*row, *numbers(), *Reconstruction(0.0).to_dict()}
        assert {name: written[name] for name in row if name in written and name != "scores"} == {
            name: row[name] for name in row if name in written and name != "scores"
        }


def test_the_tables_of_a_sweep_are_what_they_were(result: SweepResult, tmp_path: Path) -> None:
    write_tables(LocalStore(tmp_path), "s", result.records, result.front)
    found, wanted = ((folder / "trials.csv").read_text().splitlines() for folder in (tmp_path / "s", HERE))
    columns = csv.DictReader(wanted).fieldnames or []
    # A metric that is new since then adds a column of its own, and the table of metrics orders those of metrics.
    assert {*columns} <= {*(csv.DictReader(found).fieldnames or [])}
    rows = [{name: row[name] for name in columns} for row in csv.DictReader(found)]
    assert rows == list(csv.DictReader(wanted))
    pages = (to_json(result.records, result.front), json.loads(expected("trials.json")))
    for row, was in zip(*pages, strict=True):
        scores, were = row.pop("scores"), was.pop("scores")
        assert row == was
        assert scores == (were and Scores.from_dict(were).to_dict())


def test_the_last_page_of_a_sweep_is_what_it_was(result: SweepResult, spec: SweepSpec) -> None:
    text = io.StringIO()
    print_result(result, spec, "runs", Console(file=text, width=120))
    assert text.getvalue() == expected("result.txt")


def test_the_live_lines_and_the_live_table_are_what_they_were() -> None:
    clock, out = Clock(), io.StringIO()
    progress = SweepProgress(SweepState(8, 512, DEFAULT_OBJECTIVES, clock), Console(file=out, width=100))
    lines = []
    for config in CONFIGS:
        trial = SimpleNamespace(config=config)
        progress.on_trial_start(0, [], trial)
        for row in rows_of(config["number"]):
            clock.now += 7.0
            progress.on_trial_result(0, [], trial, row)
            lines.append(progress.state.line())
        if config["number"] in ERRORS:
            progress.on_trial_error(0, [], trial)
            lines.append(progress.state.line())
    console = Console(file=out, width=100)
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
    console.print(progress.state.table())
    assert out.getvalue() == expected("live.txt")


def test_optuna_is_told_what_it_was_told(spec: SweepSpec) -> None:
    search = {"train.learning_rate": {"kind": "float", "low": 0.1, "high": 0.2}}  # 8 trials need more than 5 points
    spec = parse(SweepSpec, spec.model_dump(mode="json") | {"search": search}, source="test")
    searcher = StudySearcher(spec, study_name="s")
    for config in CONFIGS:
        searcher.suggest(str(config["number"]))
        error = config["number"] in ERRORS
        rows = rows_of(config["number"])
        searcher.on_trial_complete(str(config["number"]), None if error else (rows or [{}])[-1], error=error)
    told = [
        (
            trial.state.name,
            trial.values,
            {name: trial.user_attrs[name] for name in ("reason",) if name in trial.user_attrs},
        )
        for trial in searcher.study.trials
    ]
    assert "".join(f"{json.dumps(row)}\n" for row in told) == expected("study.jsonl")
