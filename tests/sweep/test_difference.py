"""With which specifications a sweep goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydis.config.presets import expand
from raydis.errors import ConfigError
from raydis.store import LocalStore
from raydis.sweep.difference import as_recorded, spec_differences
from raydis.sweep.folder import check_spec, default_name, read_spec, write_spec
from raydis.sweep.spec import SweepSpec

UNITS = {"kind": "int", "low": 4, "high": 6}
CONTROL = {"name": "off", "set": {"method.anchors.mode": "off"}}
TREE: dict[str, Any] = {
    "name": "s",
    "run": expand({"preset": "tiny"}),
    "search": {"method.num_units": UNITS},
    "num_trials": 4,
    "controls": [CONTROL],
}


def spec_of(**over: Any) -> SweepSpec:
    return SweepSpec.model_validate(TREE | over)


def found(**over: Any) -> list[str]:
    return spec_differences(spec_of().model_dump(mode="json"), spec_of(**over))


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"num_trials": 40},
        {"max_concurrent": 2, "max_failures": 5},
        {"promotion": None},
        {"controls": [CONTROL, {"name": "on"}]},
        {"run": expand({"preset": "tiny", "compute": {"num_cpus": 2}})},
    ],
)
def test_more_of_the_same_may_be_asked_for(over: dict[str, Any]) -> None:
    assert found(**over) == []


@pytest.mark.parametrize(
    ("over", "lines"),
    [
        ({"num_trials": 3}, ["num_trials was 4, is 3, and may only grow"]),
        ({"seed": 1, "sampler": "random"}, ["seed was 0, is 1", 'sampler was "tpe", is "random"']),
        (
            {"search": {"method.num_units": UNITS | {"high": 8}}},
            ["search.method.num_units.high was 6, is 8"],
        ),
        ({"run": expand({"preset": "tiny", "seed": 9})}, ["run.seed was 0, is 9"]),
        ({"controls": []}, ["controls.off was {"]),
        ({"controls": [{"name": "off"}]}, ['controls.off.set.method.anchors.mode was "off", is not there']),
    ],
)
def test_whatever_else_differs_is_named(over: dict[str, Any], lines: list[str]) -> None:
    assert len(found(**over)) == len(lines)
    for line, start in zip(found(**over), lines, strict=True):
        assert line.startswith(start)


def test_a_key_that_an_older_raydis_did_not_know_differs_only_if_it_is_set() -> None:
    was = spec_of().model_dump(mode="json")
    del was["sampler"]
    assert spec_differences(was, spec_of()) == []


def test_an_alias_that_moved_stays_the_version_that_the_sweep_began_with() -> None:
    def run(checkpoint: str) -> Any:
        stage = {"kind": "vq", "checkpoint": checkpoint, "stem_stride": 2, "multipliers": [1, 2], "latent_dim": 4}
        return spec_of(run=expand({"preset": "tiny", "first_stage": stage}))

    before = "/runs/registry/stage/versions/3"
    was = run(before).model_dump(mode="json")
    for asked, kept in (
        ("stage@best", before),
        ("other@best", "other@best"),
        ("stage@4", "stage@4"),
        ("/a/folder", "/a/folder"),
    ):
        assert list(as_recorded(run(asked).run, was).checkpoints().values()) == [kept]


def test_without_a_name_the_last_sweep_of_the_specs_name_goes_on_and_fresh_begins_one(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for number in ("s", "s-2", "s-3"):
        assert default_name(store, spec_of(), fresh=True) == number
        write_spec(store, number, spec_of())
        assert default_name(store, spec_of()) == number
    assert read_spec(store, "other") is None
    with pytest.raises(
        ConfigError, match=r"sweep s in .* was begun with another specification: seed was 0, is 1\. Con"
    ):
        check_spec(store, "s", spec_of(seed=1))
    store.write("sweeps/s/spec.json", b"{")
    with pytest.raises(ConfigError, match=r"spec\.json in .* is damaged"):
        check_spec(store, "s", spec_of())
