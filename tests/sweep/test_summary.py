"""The trials of a sweep as records: front, choice, tables."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from raydis.engine.record import RunRecord
from raydis.errors import FitError
from raydis.metrics.scores import Scores
from raydis.metrics.standing import Objective
from raydis.store import LocalStore
from raydis.sweep.progress import SweepState
from raydis.sweep.summary import (
    TrialRecord,
    choose_best,
    pareto_front,
    replicates,
    to_json,
    write_tables,
)
from tests.records import finished, running

FAILED = RunRecord.of_failure(FitError("the loss became nan"))
BOTH = (Objective(metric="dci_disentanglement"), Objective(metric="factor_vae"))


def run(dci: float, factor_vae: float) -> RunRecord:
    both = {"dci_disentanglement": dci, "factor_vae": factor_vae}
    return finished(**both, dci_completeness=0.5, dci_informativeness=0.5)


def record(number: int, dci: float = 0.0, factor_vae: float = 0.0, **over: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "number": number,
        "control": None,
        "settings": {"method.num_units": 4 + number},
        "state": "complete",
        "reason": None,
        "run": run(dci, factor_vae),
        "time_s": 1.5,
        "checkpoint": f"/runs/trial-{number:04d}/checkpoint_000000",
    }
    return TrialRecord(**values | over)


def test_the_front_holds_the_trials_that_none_dominates() -> None:
    records = [record(0, 0.5, 0.5), record(1, 0.6, 0.4), record(2, 0.4, 0.4), record(3, 0.5, 0.5), record(4, 0.6, 0.3)]
    assert pareto_front(records, BOTH) == {0, 1, 3}


def test_replicates_are_the_complete_runs_of_a_control_taken_together() -> None:
    records = [
        record(0, 0.9, 0.9),
        record(1, 0.2, 0.5, control="off/1"),
        record(2, 0.4, 0.7, control="off/2"),
        record(3, control="off/3", state="failed", run=FAILED),
        record(4, 0.3, 0.6, control="on/1"),
        record(5, 0.8, 0.8, control="single"),
        record(6, control="dead/1", state="failed", run=FAILED),
    ]
    off, on, dead = replicates(records, BOTH)
    assert (off.control, off.num_runs, off.num_complete) == ("off", 3, 2)
    assert off.mean == pytest.approx({"dci_disentanglement": 0.3, "factor_vae": 0.6})
    assert off.std == pytest.approx({"dci_disentanglement": 0.02**0.5, "factor_vae": 0.02**0.5})
    assert (on.control, on.num_complete, on.std) == ("on", 1, {})
    assert (dead.num_complete, dead.mean) == (0, {})


def test_a_failed_trial_is_never_on_the_front() -> None:
    records = [record(0, 0.5, 0.5), record(1, 0.9, 0.9, state="failed"), record(2, state="stopped", run=running(32))]
    assert pareto_front(records, BOTH) == {0}
    assert pareto_front(records[1:], BOTH) == set()


def test_the_front_follows_the_direction_of_each_objective() -> None:
    goals = (Objective(metric="dci_disentanglement", direction="min"), Objective(metric="factor_vae"))
    assert pareto_front([record(0, 0.5, 0.5), record(1, 0.4, 0.6), record(2, 0.3, 0.2)], goals) == {1, 2}


DCI, FVAE = ({"metric": "dci_disentanglement"}, {"metric": "factor_vae"})


@pytest.mark.parametrize(
    ("objectives", "best"),
    [
        ([DCI, FVAE], 0),
        ([DCI], 1),
        ([FVAE], 2),
        ([DCI | {"direction": "min"}], 2),
        ([FVAE | {"direction": "min"}], 1),
        ([DCI, FVAE | {"direction": "min"}], 1),
        ([DCI | {"direction": "min"}, FVAE], 2),
    ],
)
def test_the_live_line_and_the_summary_name_the_same_best_trial_and_it_is_on_the_front(
    objectives: list[dict[str, Any]], best: int
) -> None:
    goals = [Objective.model_validate(goal) for goal in objectives]
    records = [record(0, 0.5, 0.6), record(1, 0.6, 0.4), record(2, 0.1, 0.95), record(3, 0.5, 0.6)]
    chosen = choose_best(records, goals)
    assert chosen is not None
    assert chosen.number == best
    assert best in pareto_front(records, goals)
    state = SweepState(4, 512, goals)
    for row in reversed(records):  # whichever ends first
        config = {"number": row.number, "control": None, "settings": row.settings}
        state.update(config, row.run)
    live = state.best()
    assert live is not None
    assert live.number == best


def test_only_complete_trials_can_be_the_best() -> None:
    records = [record(0, 0.9, 0.9, state="failed"), record(1, 0.9, 0.9, state="stopped"), record(2, 0.1, 0.1)]
    best = choose_best(records, BOTH)
    assert best is not None
    assert best.number == 2
    assert choose_best(records[:2], BOTH) is None


def test_a_trial_without_an_objectives_metric_is_no_zero_but_left_out() -> None:
    goals = [Objective(metric="mig", direction="min")]  # these records have no MIG, which as 0 would be the best
    runs = [record(0, 0.5, 0.5, control="on/1"), record(1, 0.6, 0.6, control="on/2")]
    assert choose_best(runs, goals) is None
    assert pareto_front(runs, goals) == set()
    [row] = replicates(runs, goals)
    assert (row.num_runs, row.num_complete, row.mean) == (2, 0, {})


def test_tables_hold_a_row_a_trial_and_a_column_a_setting(tmp_path: Path) -> None:
    records = [
        record(0, 0.5, 0.5),
        record(1, 0.6, 0.7, settings={"method.num_units": 5, "method.unet.multipliers": [1, 2], "x.mixed": "a"}),
        record(2, run=FAILED, state="failed", reason="FitError: the loss became nan, at 1", settings={"x.mixed": 3}),
    ]
    scores = records[1].run.scores
    assert scores is not None
    scores = replace(scores, num_draws=3, spread={"factor_vae": 0.02, "mig": 0.01})
    records[1] = replace(records[1], run=replace(records[1].run, scores=scores))
    write_tables(LocalStore(tmp_path), "sweeps/s", records, {1})
    table = pyarrow.parquet.read_table(tmp_path / "sweeps/s/trials.parquet").to_pylist()
    assert [row["method.num_units"] for row in table] == [4, 5, None]
    assert [row["method.unet.multipliers"] for row in table] == [None, "[1, 2]", None]
    assert [row["x.mixed"] for row in table] == [None, '"a"', "3"]
    assert [row["factor_vae"] for row in table] == [0.5, 0.7, None]
    assert [row["factor_vae_spread"] for row in table] == [None, 0.02, None]
    assert [row["on_front"] for row in table] == [False, True, False]
    rows = list(csv.DictReader((tmp_path / "sweeps/s/trials.csv").read_text().splitlines()))
    assert rows[2]["reason"] == "FitError: the loss became nan, at 1"
    assert rows[1]["dci_disentanglement"] == "0.6"


def test_rows_survive_json_and_keep_all_scores() -> None:
    rows = json.loads(
        json.dumps(to_json([record(0, run=replace(run(0.5, 0.5), loss=float("nan")))], {0}), allow_nan=False)
    )
    assert rows[0]["loss"] is None
    assert rows[0]["on_front"] is True
    assert Scores.from_dict(rows[0]["scores"]) == run(0.5, 0.5).scores
