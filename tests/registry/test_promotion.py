from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydis.errors import RegistryError
from raydis.metrics.protocol import Scores
from raydis.registry.promotion import ScoredVersion, decide, move_if_better, promote
from raydis.registry.registry import ModelRef, Registry
from raydis.store import LocalStore

Make = Callable[..., Path]
VALID: dict[str, Any] = {
    "protocol": "published",
    "sizes": {"dci_num_train": 10_000},
    "estimator": "reference",
    "seed": 0,
    "num_images": 480_000,
    "data_fingerprint": "abc",
    "status": "valid",
}


def scored(number: int, dci: float | None = 0.5, factor_vae: float | None = 0.5, **changes: Any) -> ScoredVersion:
    values = {**VALID, "dci_disentanglement": dci, "factor_vae": factor_vae, **changes}
    return ScoredVersion(ModelRef("m", number), Scores.from_dict(values))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(LocalStore(tmp_path / "store"))


def test_the_first_valid_version_is_promoted() -> None:
    decision = decide(scored(1), None)
    assert decision.promote
    assert decision.reason == "m@1 (mean 0.5000) is the first best"


def test_the_better_version_wins_and_the_reason_holds_both_numbers() -> None:
    decision = decide(scored(2, 0.8, 0.6), scored(1, 0.5, 0.7))
    assert decision.promote
    assert decision.reason == "mean 0.7000 of m@2 against 0.6000 of m@1"


@pytest.mark.parametrize("dci", [0.4, 0.5])
def test_a_worse_or_equal_version_leaves_the_old_best(dci: float) -> None:
    decision = decide(scored(2, dci), scored(1))
    assert not decision.promote
    assert "against 0.5000 of m@1, which stays best" in decision.reason


@pytest.mark.parametrize(("rule", "promoted"), [("dci", True), ("factor_vae", False), ("mean", False)])
def test_the_rule_says_which_number_counts(rule: Any, promoted: bool) -> None:
    assert decide(scored(2, dci=0.6, factor_vae=0.3), scored(1), rule=rule).promote is promoted


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_score_that_is_no_number_is_never_promoted(value: float | None) -> None:
    for incumbent in (None, scored(1, dci=0.0)):
        decision = decide(scored(2, dci=value), incumbent)
        assert not decision.promote
        assert decision.reason == f"m@2 has dci_disentanglement {value}, which is no score"


@pytest.mark.parametrize("status", ["invalid", "no_factors"])
def test_an_evaluation_that_is_not_valid_is_never_promoted_whatever_its_numbers(status: str) -> None:
    decision = decide(scored(2, 1.0, 1.0, status=status, reason="codes are not finite"), None)
    assert not decision.promote
    assert decision.reason == f"m@2 has no valid scores ({status}: codes are not finite)"


def test_a_version_without_scores_is_never_promoted() -> None:
    decision = decide(ScoredVersion(ModelRef("m", 2), None), None)
    assert not decision.promote
    assert "m@2 was never evaluated: run it with evaluation.protocol" in decision.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol": "search"}, "protocol is search, not published"),
        ({"estimator": "hist"}, "estimator is hist, not reference"),
        ({"data_fingerprint": "def"}, "data_fingerprint is def, not abc"),
        ({"num_images": 10_000}, "num_images is 10000, not 480000"),
        ({"sizes": {"dci_num_train": 500}}, "dci_num_train is 500, not 10000"),
    ],
)
def test_scores_of_another_meaning_are_not_promoted_but_can_be_forced(change: dict[str, Any], reason: str) -> None:
    decision = decide(scored(2, 1.0, 1.0, **change), scored(1), alias="canary")
    assert not decision.promote
    assert decision.reason == (
        f"m@2 does not compare with m@1: {reason}. To point canary to it all the same: "
        "python -m raydis models promote m@2 --alias canary"
    )


def test_another_seed_of_the_draws_compares() -> None:
    assert decide(scored(2, 0.6, seed=1), scored(1)).promote


def test_an_incumbent_without_scores_is_not_pushed_aside_in_silence() -> None:
    decision = decide(scored(2), ScoredVersion(ModelRef("m", 1), None))
    assert not decision.promote
    assert "m@2 does not compare with m@1: m@1 was never evaluated" in decision.reason


def test_promotion_registers_always_and_moves_the_alias_only_for_the_better(
    registry: Registry, make_checkpoint: Make
) -> None:
    values = (0.5, 0.4, 0.6, None)
    folders = [make_checkpoint(f"c{n}", VALID | {"dci_disentanglement": v}) for n, v in enumerate(values)]
    promotions = [promote(registry, folder, "m", rule="dci") for folder in folders]
    assert [promotion.ref.version for promotion in promotions] == [1, 2, 3, 4]
    assert [promotion.decision.promote for promotion in promotions] == [True, False, True, False]
    assert registry.resolve("m@best") == ModelRef("m", 3)


def test_a_registered_version_can_be_considered_again_under_another_alias(
    registry: Registry, make_checkpoint: Make
) -> None:
    promote(registry, make_checkpoint("c", VALID | {"dci_disentanglement": 0.5}), "m", rule="dci")
    assert move_if_better(registry, ModelRef("m", 1), alias="canary", rule="dci").promote
    assert move_if_better(registry, ModelRef("m", 1), alias="canary", rule="dci").reason == "m@1 is canary"
    assert registry.aliases("m") == {"best": 1, "canary": 1}


def test_a_promotion_that_finds_the_alias_moved_decides_anew(
    registry: Registry, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(name: str, alias: str, version: int, *, expected: Any) -> None:
        monkeypatch.undo()
        registry.set_alias(name, alias, better)
        move(name, alias, version, expected=expected)

    good, better, candidate = (
        registry.register(make_checkpoint(f"c{v}", VALID | {"dci_disentanglement": v}), "m") for v in (0.5, 0.9, 0.7)
    )
    registry.set_alias("m", "best", good)
    move = registry.move_alias
    monkeypatch.setattr(registry, "move_alias", overtaken)
    decision = move_if_better(registry, ModelRef("m", candidate), rule="dci")
    assert decision.reason == "dci 0.7000 of m@3 against 0.9000 of m@2, which stays best"
    assert registry.aliases("m") == {"best": better}


def test_scores_that_cannot_be_read_are_named(registry: Registry, make_checkpoint: Make) -> None:
    with pytest.raises(RegistryError, match=r"the scores of m@1 in .* cannot be read: .*colour"):
        promote(registry, make_checkpoint("c", {"colour": 1}), "m")
