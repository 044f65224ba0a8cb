"""What was set, and what differs, over tagged unions, presets and nested defaults."""

from __future__ import annotations

import json
from typing import Any

import pytest

from raydis.config import RunConfig
from raydis.config.identity import differences, listed, settings
from raydis.config.presets import PRESETS, expand

VQ = {"kind": "vq", "checkpoint": "/stage"}


def run(**tree: Any) -> RunConfig:
    return RunConfig.model_validate(tree)


def recorded(config: RunConfig) -> Any:
    """As a file gives it back."""
    return json.loads(json.dumps(config.model_dump(mode="json")))


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({}, {}),
        ({"train": {"learning_rate": 1e-4}, "seed": 0}, {}),  # explicit, and the default
        ({"compute": {"num_workers": 2}}, {}),
        ({"train": {"learning_rate": 2e-4}}, {"train.learning_rate": 2e-4}),
        ({"evaluation": {"rungs": [64, 128]}}, {"evaluation.rungs": [64, 128]}),
        ({"method": {"anchors": {"mode": "off"}}}, {"method.anchors.mode": "off"}),
        ({"first_stage": {"kind": "patch_pca"}}, {}),
        ({"first_stage": VQ}, {"first_stage.kind": "vq", "first_stage.checkpoint": "/stage"}),
        (
            {"first_stage": {"kind": "pixel"}, "method": {"kind": "kl"}, "evaluation": {"protocol": "none"}},
            {"first_stage.kind": "pixel", "method.kind": "kl", "evaluation.protocol": "none"},
        ),
    ],
)
def test_settings_are_what_is_no_default(tree: Any, expected: Any) -> None:
    assert settings(run(**tree)) == expected


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_settings_make_the_configuration_again(preset: str) -> None:
    config = RunConfig.model_validate(expand({"preset": preset}))
    tree: dict[str, Any] = {"first_stage": {"kind": "patch_pca"}}  # the default kind
    for key, value in settings(config).items():
        *above, last = key.split(".")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    assert RunConfig.model_validate(tree) == config
    assert differences(recorded(config), config) == []


def test_keys_of_a_section_of_another_kind_are_not_compared_one_by_one() -> None:
    assert differences(recorded(run()), run(first_stage=VQ)) == ['first_stage.kind was "patch_pca", is "vq"']


def test_a_section_that_an_upgrade_adds_differs_only_where_it_is_set() -> None:
    was = recorded(run())
    del was["method"]["diffusion"], was["evaluation"]
    assert differences(was, run()) == []
    now = run(method={"diffusion": {"loss": "l2"}}, evaluation={"seed": 4})
    assert differences(was, now) == [
        'method.diffusion.loss was not there, is "l2"',
        "evaluation.seed was not there, is 4",
    ]


def test_a_default_that_an_upgrade_changes_is_told_from_a_value_that_was_set() -> None:
    was = recorded(run())
    was["train"] |= {"ema_decay": 0.99, "batch_size": 64, "max_grad_norm": 1.0}
    assert differences(was, run(train={"batch_size": 32})) == [
        "train.batch_size was 64, is 32",
        "train.max_grad_norm was 1.0, is null by default",
        "train.ema_decay was 0.99, is 0.9999 by default",
    ]


def test_where_a_run_computes_is_no_difference() -> None:
    assert differences(recorded(run()), run(compute={"num_workers": 2})) == []


def test_a_long_list_is_cut() -> None:
    assert listed([f"k{number}" for number in range(9)]) == "k0; k1; k2; k3; k4; k5 and 3 more"
