from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydis.config import RunConfig
from raydis.config.files import apply_overrides, field_paths, parse, read_yaml
from raydis.config.former import FORMER, former_keys, replacement
from raydis.config.presets import expand
from raydis.errors import ConfigError
from raydis.sweep.spec import SweepSpec, load_spec

FAMILY = "method.family=vq is called method.kind now: rename it"
RELATIVE = (
    "method.anchors.mode=relative was removed, because its shift differed from that of constant by 0.5 % (median)"
)
CODES = "{}.num_codes=64 is called {}.num_embeddings now: rename it"
RULE = "remove it and write `objectives: [{metric: dci_disentanglement}, {metric: factor_vae}]` at the top"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"method": {"family": "vq", "model_dim": 8}}, FAMILY),
        ({"method": {"anchors": {"mode": "relative"}}}, f"{RELATIVE}: use constant"),
        ({"method": {"kind": "vq", "num_codes": 64}}, CODES.format("method", "method")),
        ({"first_stage": {"kind": "vq", "num_codes": 64}}, CODES.format("first_stage", "first_stage")),
    ],
)
def test_a_former_key_of_a_run_is_refused_with_what_to_write(
    tmp_path: Path, tree: dict[str, Any], message: str
) -> None:
    (tmp_path / "run.yaml").write_text(str(tree))
    with pytest.raises(ConfigError) as caught:
        parse(RunConfig, expand(read_yaml(tmp_path / "run.yaml")), source="run.yaml")
    assert str(caught.value) == f"run.yaml: {message}"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [("method.family=vq", FAMILY), ("method.anchors.mode=relative", RELATIVE)],
)
def test_a_former_key_that_is_set_on_the_command_line_is_refused_with_what_to_write(
    assignment: str, message: str
) -> None:
    for preset in ({}, {"preset": "tiny"}):
        with pytest.raises(ConfigError) as caught:
            parse(RunConfig, expand(apply_overrides(preset, [assignment])), source="--set")
        assert str(caught.value).startswith(f"--set: {message}")


@pytest.mark.parametrize(
    ("line", "assignments", "message"),
    [
        ("run: {preset: tiny, method: {family: vq}}", [], f"run.{FAMILY}"),
        ("run: {preset: tiny}", ["run.method.family=vq"], f"run.{FAMILY}"),
        ("run: {preset: tiny}", ["run.method.anchors.mode=relative"], f"run.{RELATIVE}"),
        ("run: {preset: tiny}\nsearch: {method.family: {kind: choice, values: [a]}}", [], "search: method.family is"),
        (
            "run: {preset: tiny}\nsearch: {method: {family: {kind: choice, values: [a]}}}",
            [],
            "search: method.family is called method.kind now",
        ),
        (
            "run: {preset: tiny}\nsearch: {method.anchors.mode: {kind: choice, values: [off, relative]}}",
            [],
            RELATIVE,
        ),
        (
            "run: {preset: tiny}\ncontrols: [{name: a, set: {method.family: vq}}]",
            [],
            "control a: method.family is called method.kind now",
        ),
        ("run: {preset: tiny}\npromotion: {rule: mean}", [], "promotion.rule=mean no longer exists"),
        ("run: {preset: tiny}", ["promotion.rule=mean"], RULE),
        ("run: {preset: tiny}", ["promotion.rule=dci"], "write `objectives: [{metric: dci_disentanglement}]` at"),
        ("run: {preset: tiny}", ["promotion.rule=factor_vae"], "write `objectives: [{metric: factor_vae}]` at"),
    ],
)
def test_a_former_key_of_a_sweep_file_is_refused_with_what_to_write(
    tmp_path: Path, line: str, assignments: list[str], message: str
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(f"name: x\n{line}\n")
    with pytest.raises(ConfigError, match=r"sweep\.yaml: ") as caught:
        load_spec(path, assignments)
    assert message in str(caught.value)
    assert "unknown key" not in str(caught.value)


def test_what_is_a_mapping_no_longer_or_never_was_is_left_for_the_parser() -> None:
    for tree in ({}, {"method": None}, {"method": "family"}, {"run": [1]}, {"method": {"anchors": {"mode": "off"}}}):
        assert former_keys(tree) == []


def test_only_what_is_no_longer_known_is_in_the_table() -> None:
    known = {*field_paths(RunConfig), *field_paths(SweepSpec)}
    assert [former.key for former in FORMER if former.value is None and former.key in known] == []
    assert replacement("method.kind") is None
