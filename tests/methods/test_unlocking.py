"""Units open one at a time, each after the last one carries enough, and never close; and what the residual tells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raydis.methods.contract import FactorTable
from raydis.methods.unlocking import Unlocking, accuracies, describe_residual


def opened(unlocking: Unlocking) -> list[bool]:
    return unlocking.is_open.tolist()


def test_the_first_unit_opens_without_a_measurement_and_no_other_does() -> None:
    unlocking = Unlocking(3, min_kl=0.1, max_refusals=2)
    assert (unlocking.count(), opened(unlocking)) == (0, [False, False, False])
    for _ in range(3):
        unlocking.advance()
        assert opened(unlocking) == [True, False, False]


def test_a_unit_opens_after_each_measurement_in_which_the_last_one_carries_enough() -> None:
    unlocking = Unlocking(3, min_kl=0.1, max_refusals=2)
    unlocking.advance()
    counts = []
    for kl in ([0.2, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 0.2], [9.0, 9.0, 9.0]):
        unlocking.record(torch.tensor(kl))
        unlocking.advance()
        unlocking.advance()  # one measurement opens one unit
        counts.append(unlocking.count())
    assert counts == [2, 3, 3, 3]


def test_after_two_refusals_in_a_row_no_unit_opens_any_more() -> None:
    unlocking = Unlocking(4, min_kl=0.1, max_refusals=2)
    unlocking.advance()
    found = []
    for carried in (0.05, 0.2, 0.05, 0.1, 5.0):  # by the unit that opened last; 0.1 does not exceed the threshold
        unlocking.record(torch.full((4,), carried))
        unlocking.advance()
        found.append((unlocking.count(), int(unlocking.num_refusals)))
    assert found == [(1, 1), (2, 0), (2, 1), (2, 2), (2, 2)]


def test_a_measurement_before_the_first_unit_opens_is_not_counted() -> None:
    unlocking = Unlocking(2, min_kl=0.1, max_refusals=1)
    unlocking.record(torch.zeros(2))
    unlocking.advance()
    unlocking.advance()
    assert (unlocking.count(), int(unlocking.num_refusals)) == (1, 0)


def test_the_state_dict_holds_how_far_the_unlocking_has_come() -> None:
    first, second = Unlocking(3, min_kl=0.1, max_refusals=2), Unlocking(3, min_kl=0.1, max_refusals=2)
    first.advance()
    first.record(torch.ones(3))
    second.load_state_dict(first.state_dict())
    for unlocking in (first, second):
        unlocking.advance()
    assert second.count() == first.count() == 2


def test_a_linear_classifier_tells_what_the_residual_holds_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    levels = np.stack([rng.integers(0, 3, 4000), rng.integers(0, 2, 4000), np.zeros(4000, int)], axis=1)
    residual = np.stack([np.eye(3)[levels[:, 0]] @ [0.0, 1.0, 5.0], rng.normal(size=4000)], axis=1)
    residual = np.concatenate([residual, np.eye(3)[levels[:, 0]]], axis=1)
    found = accuracies(residual, FactorTable(("held", "absent", "constant"), levels))
    assert set(found) == {"held", "absent"}
    assert found["held"][0] == 1.0
    assert found["held"][1] == pytest.approx(1 / 3, abs=0.05)  # 2,000 tested: a deviation of 0.011
    assert found["absent"][0] == pytest.approx(0.5, abs=0.06)


def test_a_diagnosis_says_what_the_residual_carries() -> None:
    levels = np.arange(40)[:, None] % 2
    found = describe_residual(
        [True, False], [1.23456, 7.0], 3.21, levels.astype(np.float32), FactorTable(("shape",), levels)
    )
    assert found.rows == (("yes", 1.235), ("no", None))
    assert "a residual of 1 values carries 3.2 nats" in found.note
    assert "shape 1.00 (" in found.note
    unknown = describe_residual([True], [1.0], 3.21, np.zeros((40, 1)), None)
    assert "classifier" not in unknown.note
    assert describe_residual([True], [1.0], 3.21, np.zeros((3, 1)), FactorTable(("shape",), levels[:3])).rows


@pytest.mark.parametrize("seed", range(5))
def test_no_unit_ever_closes_and_units_open_in_order(seed: int) -> None:
    unlocking, generator = Unlocking(6, min_kl=0.5, max_refusals=2), torch.Generator().manual_seed(seed)
    before = opened(unlocking)
    for _ in range(20):
        if torch.rand((), generator=generator) < 0.5:
            unlocking.record(torch.rand(6, generator=generator))
        unlocking.advance()
        after = opened(unlocking)
        assert all(now or not then for then, now in zip(before, after, strict=True))
        assert sum(after) - sum(before) in (0, 1)
        assert after == sorted(after, reverse=True)
        before = after
