"""What Optuna is told, without a cluster."""

from __future__ import annotations

import math
import ssl
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage
from ray.cloudpickle import cloudpickle

from raydis.config.files import parse
from raydis.config.presets import expand
from raydis.engine.record import RunRecord
from raydis.errors import FitError
from raydis.store import LocalStore
from raydis.sweep.journal import study_storage
from raydis.sweep.searcher import StudySearcher
from raydis.sweep.settings import configure
from raydis.sweep.spec import SweepSpec
from tests.records import finished, running, scores_of

GOOD = finished(dci_disentanglement=0.4, factor_vae=0.7).to_ray()


def spec_of(**over: Any) -> SweepSpec:
    search = {
        "method.num_units": {"kind": "int", "low": 4, "high": 8},
        "method.unet.skip_dropout_rate": {"kind": "float", "low": 0.0, "high": 0.5},
        "method.unit_dim": {"kind": "choice", "values": [4, 8]},
    }
    tree = {"name": "test", "run": expand({"preset": "tiny"}), "search": search}
    return parse(SweepSpec, tree | over, source="sweep.yaml")


def journal(folder: Path, name: str) -> BaseStorage:
    return study_storage(LocalStore(folder), name)[0]


def states(searcher: StudySearcher) -> list[str]:
    return [trial.state.name for trial in searcher.study.trials]


@pytest.mark.parametrize(
    ("result", "error", "state", "reason"),
    [
        (GOOD, False, "COMPLETE", None),
        (finished(dci_disentanglement=0.4, factor_vae=math.nan).to_ray(), False, "FAIL", "factor_vae is nan"),
        (finished(factor_vae=0.7).to_ray(), False, "FAIL", "dci_disentanglement is None"),
        (RunRecord("invalid", "all codes are constant").to_ray(), False, "FAIL", "all codes are constant"),
        (RunRecord("not_ready", "no unit is open").to_ray(), False, "FAIL", "no unit is open"),
        (RunRecord("unscored").to_ray(), False, "FAIL", "unscored"),
        (RunRecord.of_failure(FitError("nan")).to_ray(), False, "FAIL", "FitError: nan"),
        ({}, False, "PRUNED", "stopped after 0 images"),
        (running(128).to_ray(), False, "PRUNED", "stopped after 128 images"),
        (running(128).to_ray(), True, "FAIL", "it ended without a result: see its error.txt"),
        (None, True, "FAIL", "it ended without a result: see its error.txt"),
    ],
)
def test_a_trial_ends_in_the_state_that_is_true(result: Any, error: bool, state: str, reason: str | None) -> None:
    searcher = StudySearcher(spec_of(), study_name="a")
    searcher.suggest("t0")
    searcher.on_trial_complete("t0", result, error)
    trial = searcher.study.trials[0]
    assert trial.state.name == state
    assert trial.user_attrs.get("reason") == reason
    assert trial.values == ([0.4, 0.7] if state == "COMPLETE" else None)


def test_a_trial_is_told_once() -> None:
    searcher = StudySearcher(spec_of(), study_name="a")
    searcher.suggest("t0")
    searcher.on_trial_complete("t0", GOOD)
    searcher.on_trial_complete("t0", None, error=True)
    searcher.on_trial_complete("unknown", GOOD)
    assert states(searcher) == ["COMPLETE"]


def test_a_trial_that_is_stopped_early_keeps_its_last_scores_in_the_study() -> None:
    searcher = StudySearcher(spec_of(), study_name="a")
    for name in ("paused", "stopped", "interrupted"):
        searcher.suggest(name)
    report = running(4000, scores=scores_of(dci_disentanglement=0.3, factor_vae=0.6)).to_ray()
    searcher.on_trial_result("paused", report)
    searcher.on_trial_complete("paused")  # of a trial that is paused, Tune passes no report
    searcher.on_trial_complete("stopped", report)
    searcher.on_trial_result("interrupted", report)
    searcher.close()
    assert states(searcher) == ["PRUNED", "PRUNED", "WAITING"]
    assert [record.state for record in searcher.records()] == ["stopped", "stopped", "interrupted"]
    for trial in searcher.study.trials:
        assert trial.user_attrs.get("reason") == (None if trial.number == 2 else "stopped after 4000 images")
        assert RunRecord.from_ray(trial.user_attrs["record"]).values() == {
            "dci_disentanglement": 0.3,
            "factor_vae": 0.6,
        }


def test_nothing_is_left_running_when_the_sweep_closes() -> None:
    searcher = StudySearcher(spec_of(), study_name="a")
    for number in range(4):
        searcher.suggest(f"t{number}")
    searcher.on_trial_complete("t1", GOOD)
    searcher.close()
    assert states(searcher) == ["WAITING", "COMPLETE", "WAITING", "WAITING"]


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_a_mixed_run_of_outcomes_keeps_the_sampler_going(sampler: str) -> None:
    controls = [{"name": "base"}, {"name": "dyga_off", "set": {"method.anchors.mode": "off"}}]
    spec = spec_of(sampler=sampler, controls=controls)
    searcher = StudySearcher(spec, study_name="a")
    for number in range(40):
        suggestion = searcher.suggest(f"t{number}")
        assert suggestion["number"] == number
        run = configure(spec.run, suggestion["settings"])
        values = {"dci_disentanglement": run.method.num_units / 10, "factor_vae": 1 - run.method.unet.skip_dropout_rate}
        bad = finished(dci_disentanglement=0.4, factor_vae=math.nan)
        outcome = (finished(**values), bad, running(), None)[0 if number % 5 else number // 5 % 4]
        searcher.on_trial_complete(f"t{number}", outcome and outcome.to_ray(), error=outcome is None)
    counts = Counter(states(searcher))
    assert counts == {"COMPLETE": 34, "FAIL": 4, "PRUNED": 2}


def test_controls_go_first_and_one_outside_of_the_space_teaches_the_sampler_nothing() -> None:
    controls = [{"name": "base"}, {"name": "dyga_off", "set": {"method.anchors.mode": "off"}}]
    searcher = StudySearcher(spec_of(controls=controls), study_name="a")
    first, second, third = (searcher.suggest(name) for name in "abc")
    base = {"method.num_units": 4, "method.unet.skip_dropout_rate": 0.1, "method.unit_dim": 8}
    assert (first["control"], first["settings"]) == ("base", base)
    assert (second["control"], second["settings"]) == ("dyga_off", base | {"method.anchors.mode": "off"})
    assert third["control"] is None
    assert [trial.params for trial in searcher.study.trials[:2]] == [base, {}]


def test_equal_seeds_suggest_equal_settings_and_a_second_start_goes_on_instead_of_repeating(tmp_path: Path) -> None:
    def start(name: str) -> list[dict[str, Any]]:
        searcher = StudySearcher(spec_of(seed=3), study_name="a", storage=journal(tmp_path, name))
        drawn = [searcher.suggest(str(number)) for number in range(3)]
        for number in range(3):
            searcher.on_trial_complete(str(number), GOOD)
        return [row["settings"] for row in drawn]

    first, again, second = start("one"), start("two"), start("one")
    assert first == again
    assert not [row for row in second if row in first]


def test_a_second_start_does_not_enqueue_a_control_again(tmp_path: Path) -> None:
    spec, storage = spec_of(controls=[{"name": "base"}]), journal(tmp_path, "study")
    first = StudySearcher(spec, study_name="a", storage=storage)
    assert first.suggest("t0")["control"] == "base"
    first.on_trial_complete("t0", GOOD)
    assert StudySearcher(spec, study_name="a", storage=storage).suggest("t1")["control"] is None


def test_the_study_can_be_read_from_its_file_while_the_sweep_runs(tmp_path: Path) -> None:
    searcher = StudySearcher(spec_of(), study_name="mine", storage=journal(tmp_path, "study"))
    searcher.suggest("t0")
    searcher.suggest("t1")
    searcher.on_trial_complete("t0", GOOD)
    study = optuna.load_study(study_name="mine", storage=journal(tmp_path, "study"))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING"]
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MAXIMIZE"]


def test_one_objective_and_a_minimum_are_told_as_such() -> None:
    objectives = [{"metric": "dci_completeness", "direction": "min"}]
    searcher = StudySearcher(spec_of(objectives=objectives), study_name="a")
    searcher.suggest("t0")
    searcher.on_trial_complete("t0", finished(dci_completeness=0.25).to_ray())
    assert searcher.study.directions[0].name == "MINIMIZE"
    assert searcher.study.trials[0].value == 0.25


def test_tune_can_pickle_a_searcher_that_holds_a_connection() -> None:
    """As that of a sweep in a bucket does. Tune pickles it, and raydis never reads the pickle."""
    connection = ssl.create_default_context()
    with pytest.raises(TypeError):
        cloudpickle.dumps(connection)
    searcher = StudySearcher(spec_of(), study_name="test", saved=lambda: setattr(connection, "check_hostname", True))
    assert isinstance(cloudpickle.loads(cloudpickle.dumps(searcher)), StudySearcher)


def test_an_interrupted_trial_keeps_its_last_checkpoint_if_a_later_report_has_none() -> None:
    searcher = StudySearcher(
        spec_of(), study_name="test", checkpoint_of=lambda number, report: report.get("checkpoint_dir_name")
    )
    searcher.suggest("a")
    for images, name in ((64, "checkpoint_000000"), (128, "checkpoint_000001"), (192, None)):
        searcher.on_trial_result("a", running(images).to_ray() | {"checkpoint_dir_name": name})
    searcher.close()
    (record,) = searcher.records()
    assert (record.state, record.run.images_seen, record.checkpoint) == ("interrupted", 192, "checkpoint_000001")
