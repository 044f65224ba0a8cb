"""Which trials go on: known cases, invariants, and Ray Tune's ASHA as the oracle for one objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from raydis.errors import ConfigError
from raydis.metrics.front import front_ranks
from raydis.sweep.halving import SuccessiveHalving

RUNG = 100


def at_one_rung(points: Any, factor: float, directions: Sequence[Any] = ()) -> set[int]:
    """Return which of the trials 0, 1, ... go on, after all of them have reached the rung."""
    table = np.asarray(points, dtype=np.float64)
    halving = SuccessiveHalving[int](directions or ["max"] * table.shape[1], [RUNG], factor)
    for trial, point in enumerate(table):
        halving.record(RUNG, trial, point.tolist())
    return halving.going_on(RUNG)


def drawn(seed: int, count: int, num_objectives: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, num_objectives))


# ---- known cases


def test_the_first_trial_at_a_rung_goes_on_and_the_second_only_if_it_is_better() -> None:
    assert at_one_rung([[0.3]], 3) == {0}
    assert at_one_rung([[0.3], [0.4]], 3) == {1}
    assert at_one_rung([[0.3], [0.3]], 3) == {0, 1}


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_of_a_multiple_of_the_factor_exactly_that_share_goes_on(factor: int) -> None:
    for count in (factor, 2 * factor, 6 * factor):
        values = np.random.default_rng(count).permutation(count)
        assert at_one_rung(values[:, None], factor) == set(np.argsort(values)[-count // factor :])


def test_an_objective_to_be_minimised_counts_the_other_way_round() -> None:
    points = [[0.9, 5.0], [0.8, 1.0], [0.1, 9.0], [0.2, 8.0], [0.3, 7.0], [0.4, 6.0]]
    assert at_one_rung(points, 3, ["max", "min"]) == {0, 1}


def test_the_front_is_cut_by_crowding_distance() -> None:
    front = [[0.0, 1.0], [0.1, 0.95], [0.2, 0.9], [0.6, 0.6], [0.95, 0.1], [1.0, 0.0]]
    assert at_one_rung(front, 2) == {0, 3, 5}  # the two ends, and the one whose neighbours are farthest


def test_a_trial_without_scores_has_the_last_place_until_others_make_room() -> None:
    halving = SuccessiveHalving[str](["max"], [RUNG], 3)
    halving.record(RUNG, "collapsed", None)
    assert halving.going_on(RUNG) == {"collapsed"}
    halving.record(RUNG, "poor", [0.1])
    assert halving.going_on(RUNG) == {"poor"}
    halving.record(RUNG, "poorer", [0.05])
    assert halving.going_on(RUNG) == {"poor"}


def test_a_rung_is_reached_by_as_much_progress_and_the_highest_counts() -> None:
    halving = SuccessiveHalving[str](["max"], [1000, 3000, 9000], 3)
    assert [halving.rung_at(seen) for seen in (999, 1000, 2999, 3008, 50_000)] == [None, 1000, 1000, 3000, 9000]


def test_a_paused_trial_is_promoted_once_worse_ones_have_reached_its_rung_and_higher_rungs_come_first() -> None:
    halving = SuccessiveHalving[str](["max"], [1, 3], 3)
    for trial, value in {"best": 0.9, "second": 0.8, "third": 0.7}.items():
        halving.record(1, trial, [value])
    assert halving.going_on(1) == {"best"}
    waiting = {"third": 1.0, "second": 1.0}
    assert halving.next_promotion(waiting) is None
    for number in range(3):
        halving.record(1, f"poor{number}", [0.1 * number])
    assert halving.next_promotion(waiting) == "second"
    assert halving.next_promotion({"third": 1.0}) is None
    halving.record(3, "best", [0.9])
    assert halving.next_promotion(waiting | {"best": 3.0}) == "best"


# ---- invariants


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("factor", [1.5, 2, 3, 4])
def test_no_trial_goes_on_while_one_of_a_better_front_does_not(num_objectives: int, factor: float) -> None:
    """So a trial that no other dominates is never stopped while a dominated one goes on."""
    points = drawn(0, 40, num_objectives)
    halving = SuccessiveHalving[int](["max"] * num_objectives, [RUNG], factor)
    for trial, point in enumerate(points):
        halving.record(RUNG, trial, point.tolist())
        ranks, going = front_ranks(points[: trial + 1]), halving.going_on(RUNG)
        worst_going = max(ranks[other] for other in going)
        assert all(other in going for other in range(trial + 1) if ranks[other] < worst_going)


@pytest.mark.parametrize("num_objectives", [2, 3])
def test_neither_the_order_of_the_objectives_nor_their_scale_nor_the_order_of_arrival_changes_a_decision(
    num_objectives: int,
) -> None:
    points = drawn(1, 30, num_objectives)
    expected = at_one_rung(points, 3)
    assert 0 < len(expected) < 30
    assert at_one_rung(points[:, ::-1], 3) == expected
    assert at_one_rung(points * np.array([1e-3, 1e3, 7.0])[:num_objectives] - 5, 3) == expected
    arrival = np.random.default_rng(0).permutation(30)
    assert {int(arrival[place]) for place in at_one_rung(points[arrival], 3)} == expected
    assert at_one_rung(-points, 3, ["min"] * num_objectives) == expected


def test_a_copied_objective_changes_no_decision() -> None:
    values = drawn(2, 30, 1)
    assert at_one_rung(np.hstack([values, values]), 3) == at_one_rung(values, 3)


# ---- Ray Tune's ASHA


def asha(factor: float) -> AsyncHyperBandScheduler:
    return AsyncHyperBandScheduler(
        time_attr="seen", metric="score", mode="max", max_t=10**9, grace_period=1, reduction_factor=factor
    )


def stops(scheduler: AsyncHyperBandScheduler, trial: int, seen: float, score: float) -> bool:
    handle = SimpleNamespace(trial_id=str(trial))
    if str(trial) not in scheduler._trial_info:
        scheduler.on_trial_add(None, handle)
    return scheduler.on_trial_result(None, handle, {"seen": seen, "score": score}) == TrialScheduler.STOP


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_with_one_objective_a_rung_decides_as_tunes_asha_unless_a_trial_lies_within_its_interpolation(
    factor: int,
) -> None:
    theirs, ours = asha(factor), SuccessiveHalving[int](["max"], [1], factor)
    scores = np.random.default_rng(factor).permutation(400) / 400
    num_within = 0
    for trial, score in enumerate(scores):
        ours.record(1, trial, [score])
        stopped = trial not in ours.going_on(1)
        expected = stops(theirs, trial, 1, score)
        place = (1 - 1 / factor) * (trial - 1)  # of Tune's cut-off among the earlier trials, from the lowest
        if trial and abs(place - round(place)) > 1e-9:
            low, high = np.sort(scores[:trial])[[math.floor(place), math.ceil(place)]]
            if low < score < high:
                num_within += 1
                assert stopped
                continue
        assert stopped == expected
    assert num_within < 20


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_whole_sweep_of_one_objective_is_that_of_tunes_asha_without_interpolation(
    factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = np.nanpercentile
    monkeypatch.setattr(np, "nanpercentile", lambda values, q: exact(values, q, method="higher"))
    rungs = [1, factor, factor**2]
    theirs, ours = asha(factor), SuccessiveHalving[int](["max"], rungs, factor)
    rng = np.random.default_rng(factor)
    reached = dict.fromkeys(rungs, 0)
    left = [(trial, 0) for trial in range(100)]
    while left:
        trial, level = left.pop(rng.integers(len(left)))  # trials reach their rungs in any order
        score = float(rng.normal())
        ours.record(rungs[level], trial, [score])
        goes_on = trial in ours.going_on(rungs[level])
        assert goes_on != stops(theirs, trial, rungs[level], score)
        reached[rungs[level]] += 1
        if goes_on and level + 1 < len(rungs):
            left.append((trial, level + 1))
    assert reached[1] == 100 > reached[factor] > reached[factor**2] > 1


# ---- bad input


@pytest.mark.parametrize(
    ("directions", "rungs", "factor", "message"),
    [
        ([], [1], 3, "successive halving needs an objective: name at least one"),
        (["max"], [], 3, "rungs=[]: name one or more, positive and rising"),
        (["max"], [2, 1], 3, "rungs=[2, 1]: name one or more, positive and rising"),
        (["max"], [0, 1], 3, "rungs=[0, 1]: name one or more, positive and rising"),
        (["max"], [1], 1, "reduction_factor=1 stops no trial: choose one above 1"),
        (["max"], [1], math.nan, "reduction_factor=nan stops no trial: choose one above 1"),
    ],
)
def test_settings_that_decide_nothing_are_refused(directions: Any, rungs: Any, factor: float, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SuccessiveHalving(directions, rungs, factor)
    assert str(error.value) == message


@pytest.mark.parametrize("values", [[0.1], [0.1, math.nan], [0.1, 0.2, 0.3]])
def test_values_that_cannot_be_compared_are_refused(values: list[float]) -> None:
    halving = SuccessiveHalving[int](["max", "max"], [1], 3)
    with pytest.raises(ConfigError, match="give a finite one for each of 2 objectives"):
        halving.record(1, 0, values)
