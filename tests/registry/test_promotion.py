from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydis.checkpoint.open import open_checkpoint
from raydis.errors import RegistryError
from raydis.metrics.scores import Scores
from raydis.metrics.standing import DEFAULT_OBJECTIVES, Objective
from raydis.metrics.table import numbers
from raydis.registry import ModelRef, Registry
from raydis.registry.promotion import ScoredVersion, decide, move_if_better, promote
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
    "num_draws": 3,
    "spread": dict.fromkeys(numbers(), 0.01),
}
BOTH = DEFAULT_OBJECTIVES
DCI = (Objective(metric="dci_disentanglement"),)
UNKNOWN: dict[str, Any] = {"num_draws": 1, "spread": None}


def spread(std: float) -> dict[str, float]:
    return dict.fromkeys(numbers(), std)


def scored(number: int, dci: float | None = 0.5, factor_vae: float | None = 0.5, **changes: Any) -> ScoredVersion:
    values = {**VALID, "dci_disentanglement": dci, "factor_vae": factor_vae, **changes}
    return ScoredVersion(ModelRef("m", number), Scores.from_dict(values))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(LocalStore(tmp_path / "store"))


def test_the_first_valid_version_is_promoted_whatever_its_spread() -> None:
    for changes in ({}, UNKNOWN):
        decision = decide(scored(1, **changes), None, objectives=BOTH)
        assert decision.promote
        assert decision.reason == "m@1 (mean of dci_disentanglement and factor_vae 0.5000) is the first best"


def test_a_version_that_is_better_by_more_than_the_margin_wins_and_the_reason_says_what_it_rests_on() -> None:
    decision = decide(
        scored(2, 0.8, 0.6, spread=spread(0.03)), scored(1, 0.5, 0.7, spread=spread(0.04)), objectives=BOTH
    )
    assert not decision.promote  # 2 * (0.03^2 + 0.04^2)^0.5 = 0.1 exactly, and the difference is no more than that
    decision = decide(
        scored(2, 0.8, 0.6, spread=spread(0.03)), scored(1, 0.5, 0.6, spread=spread(0.04)), objectives=BOTH
    )
    assert decision.promote
    assert decision.reason == (
        "mean of dci_disentanglement and factor_vae is 0.7000 for m@2 and 0.5500 for m@1. The difference of +0.1500 is "
        "more than the margin of 0.1000, 2 standard deviations of what chance in the metrics' draws does to it "
        "(0.0300 and 0.0400 for the two scores)"
    )


@pytest.mark.parametrize("dci", [0.3, 0.4999, 0.5, 0.5001, 0.528])
def test_a_version_that_is_worse_equal_or_better_within_the_margin_leaves_the_old_best(dci: float) -> None:
    decision = decide(scored(2, dci), scored(1), objectives=DCI)  # the margin is 2 * 2^0.5 * 0.01 = 0.0283
    assert not decision.promote
    assert f"The difference of {dci - 0.5:+.4f} is not more than the margin of 0.0283, " in decision.reason
    assert decision.reason.endswith(". m@1 stays best")


def test_equal_scores_keep_the_old_best_even_where_no_draw_moves_them() -> None:
    assert not decide(scored(2, spread=spread(0.0)), scored(1, spread=spread(0.0)), objectives=BOTH).promote
    assert decide(scored(2, 0.501, spread=spread(0.0)), scored(1, spread=spread(0.0)), objectives=BOTH).promote


@pytest.mark.parametrize(
    ("objectives", "promoted"),
    [
        ([{"metric": "dci_disentanglement"}], True),
        ([{"metric": "factor_vae"}], False),
        ([{"metric": "factor_vae", "direction": "min"}], True),
        ([{"metric": "dci_disentanglement", "direction": "min"}], False),
        ([{"metric": "dci_disentanglement"}, {"metric": "factor_vae"}], False),
        ([{"metric": "dci_disentanglement"}, {"metric": "factor_vae", "direction": "min"}], True),
    ],
)
def test_the_objectives_and_their_directions_say_which_version_is_better(objectives: Any, promoted: bool) -> None:
    goals = [Objective.model_validate(goal) for goal in objectives]
    assert decide(scored(2, dci=0.6, factor_vae=0.3), scored(1), objectives=goals).promote is promoted


def test_a_metric_that_is_better_when_low_is_named_as_it_is_counted() -> None:
    goals = [Objective(metric="factor_vae", direction="min")]
    decision = decide(scored(2, factor_vae=0.3), scored(1, factor_vae=0.5), objectives=goals)
    assert decision.reason.startswith("1 - factor_vae is 0.7000 for m@2 and 0.5000 for m@1. The difference of +0.2000 ")


@pytest.mark.parametrize(("ours", "theirs", "unknown"), [({}, UNKNOWN, "m@1"), (UNKNOWN, {}, "m@2")])
def test_a_spread_that_is_unknown_is_taken_from_the_other_version_and_the_reason_says_so(
    ours: dict[str, Any], theirs: dict[str, Any], unknown: str
) -> None:
    decision = decide(scored(2, 0.52, **ours), scored(1, **theirs), objectives=DCI)
    assert not decision.promote
    assert f"(0.0100 for both scores, because that of {unknown} is unknown)" in decision.reason
    assert decide(scored(2, 0.53, **ours), scored(1, **theirs), objectives=DCI).promote


def test_without_any_known_spread_no_difference_counts() -> None:
    decision = decide(scored(2, 0.9, **UNKNOWN), scored(1, 0.1, **UNKNOWN), objectives=DCI)
    assert not decision.promote
    assert "the spread of neither score is known" in decision.reason
    assert decision.reason.endswith("python -m raydis models promote m@2 --alias best --storage runs")


def test_of_two_equal_models_chance_promotes_one_in_twenty_nine() -> None:
    """0.0345 comes from two million pairs that were simulated with numpy alone."""
    draws = np.random.default_rng(0).normal(0.5, 0.01, size=(4000, 2, 3))
    promoted = 0
    for ours, theirs in draws:
        new = scored(2, float(ours[0]), spread=spread(float(ours.std(ddof=1))))
        old = scored(1, float(theirs[0]), spread=spread(float(theirs.std(ddof=1))))
        promoted += decide(new, old, objectives=DCI).promote
    assert promoted / len(draws) == pytest.approx(0.0345, abs=4 * (0.0345 * 0.9655 / 4000) ** 0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_score_that_is_no_number_is_never_promoted(value: float | None) -> None:
    for incumbent in (None, scored(1, dci=0.0)):
        decision = decide(scored(2, dci=value), incumbent, objectives=BOTH)
        assert not decision.promote
        assert decision.reason == f"m@2 cannot be ranked: dci_disentanglement is {value}"


@pytest.mark.parametrize("status", ["invalid", "no_factors"])
def test_an_evaluation_that_is_not_valid_is_never_promoted_whatever_its_numbers(status: str) -> None:
    decision = decide(scored(2, 1.0, 1.0, status=status, reason="codes are not finite"), None, objectives=BOTH)
    assert not decision.promote
    assert decision.reason == f"m@2 has no valid scores ({status}: codes are not finite)"


def test_a_version_without_scores_is_never_promoted() -> None:
    decision = decide(ScoredVersion(ModelRef("m", 2), None), None, objectives=BOTH)
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
    decision = decide(
        scored(2, 1.0, 1.0, **change), scored(1), objectives=BOTH, alias="canary", storage="s3://bucket/runs"
    )
    assert not decision.promote
    assert decision.reason == (
        f"m@2 does not compare with m@1: {reason}. To point canary to it all the same: "
        "python -m raydis models promote m@2 --alias canary --storage s3://bucket/runs"
    )


def test_the_command_that_forces_an_alias_names_the_storage_of_its_registry(
    registry: Registry, make_checkpoint: Make
) -> None:
    for number, estimator in enumerate(("hist", "tree")):
        checkpoint = open_checkpoint(
            make_checkpoint(f"c{number}", VALID | {"estimator": estimator, "dci_disentanglement": 0.5})
        )
        decision = promote(registry, checkpoint, "m", objectives=DCI).decision
    assert decision.reason.endswith(f"models promote m@2 --alias best --storage {shlex.quote(registry.store.uri)}")


def test_another_seed_of_the_draws_compares() -> None:
    assert decide(scored(2, 0.6, seed=1), scored(1), objectives=BOTH).promote


def test_an_incumbent_without_scores_is_not_pushed_aside_in_silence() -> None:
    decision = decide(scored(2), ScoredVersion(ModelRef("m", 1), None), objectives=BOTH)
    assert not decision.promote
    assert "m@2 does not compare with m@1: m@1 was never evaluated" in decision.reason


def test_promotion_registers_always_and_moves_the_alias_only_for_the_better(
    registry: Registry, make_checkpoint: Make
) -> None:
    values = (0.5, 0.4, 0.6, None)
    folders = [make_checkpoint(f"c{n}", VALID | {"dci_disentanglement": v}) for n, v in enumerate(values)]
    promotions = [promote(registry, open_checkpoint(folder), "m", objectives=DCI) for folder in folders]
    assert [promotion.ref.version for promotion in promotions] == [1, 2, 3, 4]
    assert [promotion.decision.promote for promotion in promotions] == [True, False, True, False]
    assert registry.resolve("m@best") == ModelRef("m", 3)


def test_a_registered_version_can_be_considered_again_under_another_alias(
    registry: Registry, make_checkpoint: Make
) -> None:
    promote(registry, open_checkpoint(make_checkpoint("c", VALID | {"dci_disentanglement": 0.5})), "m", objectives=DCI)
    assert move_if_better(registry, ModelRef("m", 1), alias="canary", objectives=DCI).promote
    assert move_if_better(registry, ModelRef("m", 1), alias="canary", objectives=DCI).reason == "m@1 is canary"
    assert registry.aliases("m") == {"best": 1, "canary": 1}


def test_a_promotion_that_finds_the_alias_moved_decides_anew(
    registry: Registry, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(name: str, alias: str, version: int, *, expected: Any) -> None:
        monkeypatch.undo()
        registry.set_alias(name, alias, better)
        move(name, alias, version, expected=expected)

    good, better, candidate = (
        registry.register(open_checkpoint(make_checkpoint(f"c{v}", VALID | {"dci_disentanglement": v})), "m")
        for v in (0.5, 0.9, 0.7)
    )
    registry.set_alias("m", "best", good)
    move = registry.move_alias
    monkeypatch.setattr(registry, "move_alias", overtaken)
    decision = move_if_better(registry, ModelRef("m", candidate), objectives=DCI)
    assert decision.reason.startswith("dci_disentanglement is 0.7000 for m@3 and 0.9000 for m@2. ")
    assert decision.reason.endswith(". m@2 stays best")
    assert registry.aliases("m") == {"best": better}


def test_scores_that_cannot_be_read_are_named(registry: Registry, make_checkpoint: Make) -> None:
    with pytest.raises(RegistryError, match=r"the scores of m@1 in .* cannot be read: .*colour"):
        promote(registry, open_checkpoint(make_checkpoint("c", {"colour": 1})), "m", objectives=BOTH)
