"""The search space in Optuna's terms."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from raydis.config.files import parse
from raydis.config.presets import expand
from raydis.sweep.space import as_point, control_settings, suggest_settings
from raydis.sweep.spec import Control, SweepSpec

SEARCH = {
    "method.num_units": {"kind": "int", "low": 4, "high": 8, "step": 2},
    "train.learning_rate": {"kind": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "method.unet.multipliers": {"kind": "choice", "values": [[1, 2], [2, 2]]},
}


@pytest.fixture
def spec() -> SweepSpec:
    controls = [{"name": "base"}, {"name": "dyga_off", "set": {"method.anchors.mode": "off", "method.num_units": 6}}]
    tree = {"name": "test", "run": expand({"preset": "tiny"}), "search": SEARCH, "controls": controls}
    return parse(SweepSpec, tree, source="sweep.yaml")


def test_suggestions_lie_in_the_space_and_reach_all_of_it(spec: SweepSpec) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [suggest_settings(study.ask(), spec.search) for _ in range(60)]
    assert {row["method.num_units"] for row in drawn} == {4, 6, 8}
    assert [row["method.unet.multipliers"] for row in drawn].count([1, 2]) in range(10, 50)
    rates = [row["train.learning_rate"] for row in drawn]
    assert min(rates) >= 1e-4
    assert max(rates) <= 1e-2
    assert sum(rate < 1e-3 for rate in rates) in range(15, 45)  # evenly in the logarithm


def test_a_control_fixes_every_searched_key_and_its_own(spec: SweepSpec) -> None:
    base, dyga_off = control_settings(spec).values()
    assert base == {"method.num_units": 4, "train.learning_rate": 1e-3, "method.unet.multipliers": [1, 2]}
    assert dyga_off == base | {"method.anchors.mode": "off", "method.num_units": 6}


def test_a_point_of_the_space_is_enqueued_as_optuna_stores_it(spec: SweepSpec) -> None:
    settings = control_settings(spec)["base"]
    point = as_point(spec.search, settings)
    assert point == {"method.num_units": 4, "train.learning_rate": 1e-3, "method.unet.multipliers": "[1, 2]"}
    study = optuna.create_study()
    study.enqueue_trial(point)
    assert suggest_settings(study.ask(), spec.search) == settings


@pytest.mark.parametrize(
    "change",
    [
        {"method.anchors.mode": "off"},
        {"method.num_units": 5},
        {"method.num_units": 10},
        {"method.num_units": 4.0},
        {"train.learning_rate": 0.5},
        {"method.unet.multipliers": [1, 1]},
    ],
)
def test_settings_outside_of_the_space_are_no_point(spec: SweepSpec, change: dict[str, Any]) -> None:
    assert as_point(spec.search, control_settings(spec)["base"] | change) is None


def test_a_control_with_seeds_is_one_run_with_each(spec: SweepSpec) -> None:
    control = Control(name="dyga_off", set={"method.anchors.mode": "off"}, seeds=(3, 5))
    several = spec.model_copy(update={"controls": (control,)})
    runs = control_settings(several)
    assert list(runs) == ["dyga_off/3", "dyga_off/5"]
    assert [(run["seed"], run["method.anchors.mode"]) for run in runs.values()] == [(3, "off"), (5, "off")]
    assert several.total_trials == several.num_trials + 2
    assert as_point(several.search, runs["dyga_off/3"]) is None  # the sampler does not search seeds
