"""A sweep file is checked as a whole before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydis.config import RunConfig
from raydis.config.files import parse
from raydis.config.presets import expand
from raydis.errors import ConfigError
from raydis.sweep.settings import value_at
from raydis.sweep.spec import SweepSpec, load_spec

RUNGS: dict[str, Any] = {"run": expand({"preset": "tiny", "evaluation": {"rungs": [64, 192]}})}
UNITS = {"method.num_units": {"kind": "int", "low": 4, "high": 6}}


def spec_of(**over: Any) -> SweepSpec:
    tree = {"name": "test", "run": expand({"preset": "tiny"}), "search": UNITS}
    return parse(SweepSpec, tree | over, source="sweep.yaml")


def test_a_file_gives_a_typed_spec_with_its_preset_expanded(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "name: tried\n"
        "run: {preset: tiny, train: {learning_rate: 1e-4}}\n"
        "search:\n"
        "  method.anchors.mode: {kind: choice, values: [off, constant]}\n"
        "  train.learning_rate: {kind: float, low: 1e-5, high: 1e-3, log: true}\n"
    )
    spec = load_spec(path, ["run.train.num_images=1000", "num_trials=7"])
    assert spec.run.method.num_units == 4
    assert spec.run.train.learning_rate == 1e-4
    assert spec.run.train.num_images == 1000
    assert spec.num_trials == 7
    assert spec.search["method.anchors.mode"].values == ("off", "constant")
    assert [goal.metric for goal in spec.objectives] == ["dci_disentanglement", "factor_vae"]
    assert spec.model_name == "tried"


def test_an_override_reaches_into_a_domain_of_the_space(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "name: tried\nrun: {preset: tiny}\nsearch:\n"
        "  method.num_units: {kind: int, low: 4, high: 6}\n"
        "  first_stage.kind: {kind: choice, values: [patch_pca]}\n"
    )
    added = "search.method.unit_dim={kind: choice, values: [4, 8]}"
    spec = load_spec(path, ["search.method.num_units.high=9", added])
    assert list(spec.search) == ["method.num_units", "method.unit_dim", "first_stage.kind"]
    assert spec.search["method.num_units"].ends() == (4, 9)
    assert spec.search["method.unit_dim"].ends() == (4, 8)
    with pytest.raises(
        ConfigError, match=r"search: method\.nun_units is not a key of a run; did you mean method\.num_u"
    ):
        load_spec(path, ["search.method.nun_units={kind: int, low: 1, high: 2}"])
    with pytest.raises(ConfigError, match=r"search\.method\.unit_dim: needs the key 'kind'"):
        load_spec(path, ["search.method.unit_dim={low: 1}"])


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"serach": UNITS}, r"serach: unknown key; did you mean search\?"),
        (
            {"search": {"method.num_unit": UNITS["method.num_units"]}},
            r"search: method\.num_unit is not a key of a run; did you mean method\.num_units\?",
        ),
        (
            {"search": {"num_units": UNITS["method.num_units"]}},
            r"search: num_units is not a key of a run; did you mean method\.num_units\?",
        ),
        (
            {"search": {"zzz": UNITS["method.num_units"]}},
            r"search: zzz is not a key of a run; use a dotted key of the run, as in method\.num_units",
        ),
        (
            {"search": {"data.image_size": {"kind": "choice", "values": [16, 32]}}},
            r"data\.image_size must be the same in all trials \(scores on different data do not compare\): "
            r"set run\.data\.image_size",
        ),
        ({"search": {"evaluation.seed": {"kind": "int", "low": 0, "high": 3}}}, r"scores of different protocols"),
        (
            {"search": {"compute.num_workers": {"kind": "int", "low": 1, "high": 2}}},
            r"trials differ by their settings, not by their machines",
        ),
        ({"search": {"method.num_units": {"kind": "int", "low": 6, "high": 4}}}, r"empty range: low=6 is above high=4"),
        (
            {"search": {"method.num_units": {"kind": "int", "low": 4, "high": 9, "step": 2}}},
            r"high=9 cannot be reached",
        ),
        (
            {"search": {"method.num_units": {"kind": "int", "low": 4, "high": 8, "step": 2, "log": True}}},
            r"step=2 does not go with log=true",
        ),
        (
            {"search": {"train.learning_rate": {"kind": "float", "low": 0, "high": 1, "log": True}}},
            r"low=0\.0 has no logarithm",
        ),
        ({"search": {"method.unit_dim": {"kind": "choice", "values": [8, 8]}}}, r"values 8, 8 are not distinct"),
        ({"search": {"method.unit_dim": {"kind": "integer", "low": 1}}}, r"'integer', expected one of 'int'"),
        (
            {"search": {"method.unet": {"kind": "choice", "values": [{}]}, "method.unet.model_dim": {"kind": "int"}}},
            r"search\.method\.unet\.model_dim\.low: missing",
        ),
        ({"run": expand({"preset": "tiny", "train": {"num_image": 3}})}, r"run\.train\.num_image: .*num_images\?"),
        ({"run": expand({"preset": "tiny", "evaluation": {"protocol": "none"}})}, r"leaves no score to rank"),
        (
            {"run": expand({"preset": "tiny", "data": {"name": "image_folder", "path": "x"}})},
            r"image_folder has no factors.* `python -m raydis train`",
        ),
        (
            {"run": expand({"preset": "vq_small"})},
            r"kind=vq has no units, and so no scores .*`python -m raydis train`",
        ),
        ({"num_trials": 0}, r"there is nothing to run"),
        ({"search": {}}, r"num_trials=\d+, but search is empty"),
        ({"controls": [{"name": "a", "seeds": [1, 1]}]}, r"seeds 1, 1: each may occur only once"),
        ({"controls": [{"name": "a", "seeds": [1], "set": {"seed": 2}}]}, r"seeds and set\.seed exclude each other"),
        ({"controls": [{"name": "a", "seeds": [-1]}]}, r"controls\.0\.seeds\.0: "),
        ({"name": "../up"}, r"name: "),
        ({"controls": [{"name": "a"}, {"name": "a"}]}, r"controls names a, a: each may occur only once"),
        ({"controls": [{"name": "a", "set": {"method.x": 1}}]}, r"control a: method\.x is not a key of a run"),
        (
            {"controls": [{"name": "a", "set": {"method.num_units": 1}}]},
            r"control a: method\.num_units=1: method\.num_units: found 1, must be at least 2",
        ),
        (
            {"promotion": {"rule": "mean"}},
            r"rule=mean no longer exists.*objectives: \[\{metric: dci_disentanglement\}, \{metric: factor_vae\}\]`",
        ),
        (
            {"promotion": {"alias": "canary", "rule": "dci"}},
            r"promotion\.rule=dci no longer .*remove it and write `objectives: \[\{metric: dci_disentanglement\}\]`",
        ),
        ({"promotion": {"rule": "factor_vae"}}, r"write `objectives: \[\{metric: factor_vae\}\]`"),
        ({"promotion": {"rules": "mean"}}, r"promotion\.rules: unknown key"),
        ({"objectives": [{"metric": "mean"}]}, r"^sweep.yaml: objectives\.0\.metric: [^;]*$"),
        ({"objectives": [{"metric": "mig", "direction": "up"}]}, r"^sweep.yaml: objectives\.0\.direction: [^;]*$"),
        ({"objectives": []}, r"^sweep.yaml: objectives: found \[\], expected a list of at least 1$"),
        ({"search": {"method.unit_dim": 8}}, r"^sweep.yaml: search\.method\.unit_dim: found 8, expected a mapping$"),
        (
            {"run": {"preset": "tiny", "method": {"family": "kl"}}},
            r"run\.method\.family=kl is called method\.kind now: rename it",
        ),
        (
            {"search": {"method.family": {"kind": "choice", "values": ["dyga_sd"]}}},
            r"search: method\.family is called method\.kind now: rename it",
        ),
        (
            {"search": {"method.anchors.mode": {"kind": "choice", "values": ["off", "relative"]}}},
            r"search: .*method\.anchors\.mode=relative was removed, .*use constant",
        ),
        (
            {"controls": [{"name": "a", "set": {"method.family": "dyga_sd"}}]},
            r"control a: method\.family is called method\.kind now",
        ),
        ({"stopping": {}}, r"stopping compares trials by their scores at run\.evaluation\.rungs, which is empty"),
        (RUNGS | {"stopping": {"reduction_factor": 1}}, r"stopping\.reduction_factor: found 1, must be above 1"),
        (RUNGS | {"stopping": {"rungs": [96]}}, r"stopping\.rungs has \[96\], and run\.evaluation\.rungs=\[64, 192\]"),
        (RUNGS | {"stopping": {"rungs": [192, 64]}}, r"stopping\.rungs=\[192, 64\] must rise"),
        (RUNGS | {"stopping": {"rungs": []}}, r"stopping\.rungs: "),
        (
            {"run": expand({"preset": "tiny", "evaluation": {"rungs": [64, 512]}}), "stopping": {}},
            r"stopping compares trials after \[512\] images, and run\.train\.num_images=512: name earlier rungs",
        ),
        (
            {"run": RUNGS["run"] | {"compute": {"num_workers": 2}}, "stopping": {}},
            r"stopping works for trials with one worker, and run\.compute\.num_workers=2",
        ),
    ],
)
def test_a_wrong_spec_is_refused_with_what_to_do(over: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec_of(**over)


def test_a_corner_of_the_space_that_is_no_valid_run_is_refused() -> None:
    search = {
        "method.anchors.num_gaussians": {"kind": "int", "low": 2, "high": 8},
        "method.anchors.max_gaussians": {"kind": "int", "low": 4, "high": 16},
    }
    with pytest.raises(ConfigError, match=r"num_gaussians=8 must not exceed max_gaussians=4"):
        spec_of(search=search)


def test_a_section_and_a_key_inside_of_it_cannot_both_be_searched() -> None:
    unet = value_at(spec_of().run, "method.unet")
    search = {
        "method.unet": {"kind": "choice", "values": [unet]},
        "method.unet.model_dim": {"kind": "choice", "values": [16, 32]},
    }
    with pytest.raises(ConfigError, match=r"method\.unet\.model_dim lies inside method\.unet"):
        spec_of(search=search)


def test_a_resolved_spec_is_a_sweep_file_itself(tmp_path: Path) -> None:
    controls = [{"name": "dyga_off", "set": {"method.anchors.mode": "off"}}]
    spec = spec_of(
        search=UNITS | {"train.learning_rate": {"kind": "float", "low": 1e-5, "high": 1e-3}}, controls=controls
    )
    (tmp_path / "spec.json").write_text(spec.model_dump_json(indent=2))
    assert load_spec(tmp_path / "spec.json", []) == spec


def test_the_base_run_of_a_spec_is_a_run_config() -> None:
    assert isinstance(spec_of().run, RunConfig)
