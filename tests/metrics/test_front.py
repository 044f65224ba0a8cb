"""Fronts and crowding distances, against their definitions and against Optuna."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest

from raydis.errors import MetricError
from raydis.metrics.front import crowding_distances, front_ranks


def draw(seed: int, count: int, num_objectives: int, levels: int | None) -> np.ndarray:
    """Points with many ties if `levels` is small, and with none if it is None."""
    rng = np.random.default_rng(seed)
    shape = (count, num_objectives)
    return rng.normal(size=shape) if levels is None else rng.integers(levels, size=shape) / 4


def dominates(mine: np.ndarray, theirs: np.ndarray) -> bool:
    return all(a >= b for a, b in zip(mine, theirs, strict=True)) and any(
        a > b for a, b in zip(mine, theirs, strict=True)
    )


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("levels", [2, 4, None])
def test_a_point_is_dominated_by_one_of_the_front_before_its_own_and_by_none_of_its_own(
    num_objectives: int, levels: int | None
) -> None:
    points = draw(1, 40, num_objectives, levels)
    ranks = front_ranks(points)
    for number, rank in enumerate(ranks):
        above = [ranks[other] for other in range(40) if dominates(points[other], points[number])]
        assert max(above, default=-1) == rank - 1


@pytest.mark.parametrize("levels", [3, None])
def test_front_0_is_what_optuna_calls_the_best_trials(levels: int | None) -> None:
    points = draw(2, 30, 2, levels)
    study = optuna.create_study(directions=["maximize", "maximize"])
    study.add_trials([optuna.trial.create_trial(values=list(map(float, point))) for point in points])
    assert {trial.number for trial in study.best_trials} == set(np.flatnonzero(front_ranks(points) == 0))


def test_with_one_objective_the_fronts_are_the_values_in_falling_order() -> None:
    assert front_ranks([[0.2], [0.9], [0.5], [0.9]]).tolist() == [2, 0, 1, 0]


def test_crowding_distances_of_a_front_known_by_hand() -> None:
    front = [[0.0, 10.0], [1.0, 8.0], [3.0, 4.0], [4.0, 0.0]]
    # (3 - 0) / 4 + (10 - 4) / 10 and (4 - 1) / 4 + (8 - 0) / 10
    assert crowding_distances(front).tolist() == [math.inf, 1.35, 1.55, math.inf]


def test_equal_points_have_equal_distances_and_an_objective_that_does_not_vary_adds_nothing() -> None:
    assert crowding_distances([[0.5, 0.5]] * 3).tolist() == [0.0, 0.0, 0.0]
    distances = crowding_distances([[0.0, 1.0], [0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
    assert distances.tolist() == [math.inf, 2.0, 2.0, math.inf]
    assert crowding_distances([[0.0, 7.0], [0.5, 7.0], [1.0, 7.0]]).tolist() == [math.inf, 1.0, math.inf]


@pytest.mark.parametrize("levels", [3, None])
def test_units_zeros_and_orders_change_no_front_and_no_distance(levels: int | None) -> None:
    points = draw(3, 30, 3, levels)
    columns, rows = [2, 0, 1], np.random.default_rng(0).permutation(30)
    scaled = points * [2.0, 1024.0, 0.25] + [0.0, 4096.0, -8.0]  # powers of 2 and a large zero: hardly any rounding
    for order in (front_ranks, crowding_distances):
        expected = order(points)
        assert order(points[:, columns]).tolist() == expected.tolist()
        assert order(points[rows]).tolist() == expected[rows].tolist()
    assert front_ranks(scaled).tolist() == front_ranks(points).tolist()
    # A value near 4096 is known to 5e-13, and a range here is at least 0.25 * 1024: each of the terms to 1e-14.
    assert np.allclose(crowding_distances(scaled), crowding_distances(points), rtol=0, atol=1e-10)


def test_no_points_have_no_fronts() -> None:
    assert front_ranks(np.empty((0, 2))).tolist() == []
    assert crowding_distances(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([0.1, 0.2], "points have shape (2,): give a row for each point, a column for each objective"),
        (np.empty((3, 0)), "points have shape (3, 0): give a row for each point, a column for each objective"),
        ([[0.1, math.nan]], "a point has a value that is not finite: leave it out"),
    ],
)
def test_what_are_no_points_is_refused(points: object, message: str) -> None:
    for order in (front_ranks, crowding_distances):
        with pytest.raises(MetricError) as error:
            order(points)
        assert str(error.value) == message
