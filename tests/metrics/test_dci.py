from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.ensemble import GradientBoostingClassifier

from raydis.errors import MetricError
from raydis.metrics.dci import (
    DciResult,
    completeness,
    dci,
    disentanglement,
    per_factor_completeness,
    per_unit_disentanglement,
)
from raydis.metrics.importance import Estimator

DIAGONAL = 5.0 * np.eye(5)
SIZES = (3, 3, 2)
REPEATS = 100
SMALL = {"num_train": 400, "num_test": 200}


def run(codes: np.ndarray, factors: np.ndarray, estimator: Estimator = "tree", **sizes: int) -> DciResult:
    return dci(codes, factors, rng=np.random.default_rng(0), estimator=estimator, **{**SMALL, **sizes})


@pytest.mark.parametrize(
    ("importance", "expected_d", "expected_c"),
    [
        pytest.param(DIAGONAL, 1.0, 1.0, id="diagonal"),
        pytest.param([[1, 0], [0, 1], [0, 0]], 1.0, 1.0, id="empty codes"),
        pytest.param(np.zeros((10, 10)), 0.0, 0.0, id="zero"),
        pytest.param(np.ones((4, 3)), 0.0, 0.0, id="uniform"),
        pytest.param(np.vstack([DIAGONAL, DIAGONAL]), 1.0, 1 - np.log(2) / np.log(10), id="redundant codes"),
        pytest.param(DIAGONAL[:2], 1.0, 1.0, id="missed factors"),
        pytest.param(np.hstack([DIAGONAL, DIAGONAL]), 1 - np.log(2) / np.log(10), 1.0, id="one code two factors"),
        pytest.param([[0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.1, 0.2, 0.7], [0, 0, 0]], 0.319545, 0.460752, id="mixed"),
    ],
)
def test_importance_matrices_have_the_published_scores(
    importance: np.ndarray, expected_d: float, expected_c: float
) -> None:
    assert disentanglement(importance) == pytest.approx(expected_d, abs=1e-6)
    assert completeness(importance) == pytest.approx(expected_c, abs=1e-6)
    assert completeness(importance) == pytest.approx(disentanglement(np.transpose(importance)), abs=1e-12)


def test_each_unit_and_each_factor_has_its_own_score() -> None:
    importance = np.array([[0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.1, 0.2, 0.7], [0, 0, 0]])
    np.testing.assert_allclose(per_unit_disentanglement(importance), [0.418328, 0.270153, 0.270153, 0.0], atol=1e-6)
    expected = 1 - entropy(importance + 1e-11, base=4)
    np.testing.assert_allclose(per_factor_completeness(importance), expected, atol=1e-12)


def test_a_single_code_is_complete_and_a_single_factor_is_disentangled_by_convention() -> None:
    assert completeness([[0.2, 0.3, 0.5]]) == 1.0
    assert disentanglement([[0.2], [0.8]]) == 1.0


@pytest.mark.parametrize(
    ("kind", "expected_d", "expected_c", "accuracy"),
    [
        ("mixed30", 0.641, 0.721, 0.992),
        pytest.param("perfect", 0.976, 0.972, 0.986, marks=pytest.mark.slow),
        pytest.param("permuted", 0.977, 0.972, 0.987, marks=pytest.mark.slow),
        pytest.param("noisy", 0.659, 0.628, 0.379, marks=pytest.mark.slow),
        pytest.param("noise", 0.001, 0.001, 0.120, marks=pytest.mark.slow),
    ],
)
def test_hist_reads_the_known_values_on_full_size_codes(
    synthetic: Callable, kind: str, expected_d: float, expected_c: float, accuracy: float
) -> None:
    result = dci(*synthetic(kind), rng=np.random.default_rng(0), estimator="hist")
    assert result.disentanglement == pytest.approx(expected_d, abs=0.015)
    assert result.completeness == pytest.approx(expected_c, abs=0.015)
    assert result.informativeness == pytest.approx(accuracy, abs=0.02)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("kind", "expected_d", "expected_c", "accuracy"),
    [("perfect", 0.997, 0.997, 0.996), ("mixed30", 0.637, 0.717, 0.991)],
)
def test_the_reference_reads_the_published_values_on_full_size_codes(
    synthetic: Callable, kind: str, expected_d: float, expected_c: float, accuracy: float
) -> None:
    result = dci(*synthetic(kind), rng=np.random.default_rng(0), estimator="reference")
    assert result.disentanglement == pytest.approx(expected_d, abs=0.01)
    assert result.completeness == pytest.approx(expected_c, abs=0.01)
    assert result.informativeness == pytest.approx(accuracy, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "expected_d", "expected_c", "accuracy"),
    [
        ("permuted", 0.993, 0.991, 0.995),
        ("mixed30", 0.605, 0.686, 0.970),
        ("noisy", 0.412, 0.382, 0.360),
    ],
)
def test_one_tree_reads_the_known_values_on_full_size_codes(
    synthetic: Callable, kind: str, expected_d: float, expected_c: float, accuracy: float
) -> None:
    result = dci(*synthetic(kind), rng=np.random.default_rng(0), estimator="tree")
    assert result.disentanglement == pytest.approx(expected_d, abs=0.03)
    assert result.completeness == pytest.approx(expected_c, abs=0.03)
    assert result.informativeness == pytest.approx(accuracy, abs=0.02)


def test_the_reference_equals_disentanglement_libs_loop_over_the_same_draws(synthetic: Callable) -> None:
    codes, factors = synthetic("mixed30", SIZES, repeats=REPEATS)
    result = run(codes, factors, "reference", num_train=200, num_test=100)

    rng = np.random.default_rng(0)
    train, test = rng.integers(len(codes), size=200), rng.integers(len(codes), size=100)
    seeds = rng.integers(2**31, size=len(SIZES))
    models = [
        GradientBoostingClassifier(random_state=int(seed)).fit(codes[train], factors[train, j])
        for j, seed in enumerate(seeds)
    ]
    importance = np.stack([model.feature_importances_ for model in models], axis=1)
    weights = importance.sum(axis=1) / importance.sum()
    expected_d = (weights * (1 - entropy(importance.T + 1e-11, base=len(SIZES)))).sum()
    weights = importance.sum(axis=0) / importance.sum()
    expected_c = (weights * (1 - entropy(importance + 1e-11, base=codes.shape[1]))).sum()

    np.testing.assert_array_equal(result.importance, importance)
    assert result.disentanglement == pytest.approx(expected_d, abs=1e-12)
    assert result.completeness == pytest.approx(expected_c, abs=1e-12)
    accuracies = [model.score(codes[test], factors[test, j]) for j, model in enumerate(models)]
    assert result.informativeness == np.mean(accuracies)


def identity_table(num_factors: int, num_levels: int) -> np.ndarray:
    """disentanglement_lib's test data: factors uniform on 1..K, observed as they are."""
    return np.random.default_rng(0).integers(1, num_levels + 1, size=(20_000, num_factors))


@pytest.mark.parametrize(("estimator", "num_factors"), [("hist", 2), ("tree", 10)])
def test_identity_codes_are_perfect(estimator: Estimator, num_factors: int) -> None:
    factors = identity_table(num_factors, 10)
    result = run(factors, factors, estimator, num_train=1000, num_test=1000)
    assert result.disentanglement == pytest.approx(1.0, abs=0.01)
    assert result.completeness == pytest.approx(1.0, abs=0.01)
    assert result.informativeness == pytest.approx(1.0, abs=0.01)


def test_identity_codes_whose_rows_are_shuffled_score_near_zero() -> None:
    factors = identity_table(10, 10)
    codes = np.random.default_rng(1).permuted(factors, axis=1)
    result = run(codes, factors, "tree", num_train=3000, num_test=1000)
    assert result.disentanglement == pytest.approx(0.0, abs=0.1)
    assert result.completeness == pytest.approx(0.0, abs=0.1)
    assert result.informativeness == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("estimator", ["reference", "tree"])
def test_copies_of_all_codes_share_importance_at_random(estimator: Estimator) -> None:
    factors = identity_table(3, 3)
    result = run(np.hstack([factors, factors]), factors, estimator)
    assert result.disentanglement == pytest.approx(1.0, abs=0.01)
    # Equal shares would give 1 - log 2 / log 6; a single tree has few ties to break, so its shares are less equal.
    assert result.completeness is not None
    assert 1 - np.log(2) / np.log(6) - 0.01 <= result.completeness <= 0.9


def test_hist_credits_the_first_of_exact_copies_alone() -> None:
    factors = identity_table(4, 4)
    result = run(np.hstack([factors, factors]), factors, "hist")
    assert result.importance is not None
    np.testing.assert_allclose(result.importance, np.vstack([np.eye(4), np.zeros((4, 4))]), atol=0.01)


def test_a_code_that_serves_two_factors_lowers_disentanglement_but_not_completeness() -> None:
    factors = identity_table(4, 4)
    codes = factors[:, [0, 2]].astype(float)
    codes[:, 0] += 10 * factors[:, 1]
    codes[:, 1] += 10 * factors[:, 3]
    result = run(codes, factors, num_train=2000)
    assert result.disentanglement == pytest.approx(0.5, abs=0.01)  # each code serves two of four: 1 - log 2 / log 4
    assert result.completeness == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("estimator", ["hist", "tree"])
def test_monotone_maps_of_units_leave_dci_unchanged(synthetic: Callable, estimator: Estimator) -> None:
    codes, factors = synthetic("mixed30", SIZES, repeats=REPEATS)
    mapped = np.where(np.arange(codes.shape[1]) % 2, -3.0 * codes, np.exp(codes)) + 1.0
    expected, result = run(codes, factors, estimator), run(mapped, factors, estimator)
    np.testing.assert_allclose(result.importance, expected.importance, atol=0.03)
    assert result.disentanglement == pytest.approx(expected.disentanglement, abs=0.03)
    assert result.informativeness == pytest.approx(expected.informativeness, abs=0.02)


@pytest.mark.parametrize("estimator", ["hist", "tree"])
def test_permuting_units_permutes_the_importances(synthetic: Callable, estimator: Estimator) -> None:
    codes, factors = synthetic("mixed30", SIZES, repeats=REPEATS)
    order = np.random.default_rng(0).permutation(codes.shape[1])
    expected, result = run(codes, factors, estimator), run(codes[:, order], factors, estimator)
    assert expected.importance is not None
    np.testing.assert_allclose(result.importance, expected.importance[order], atol=0.03)
    assert result.disentanglement == pytest.approx(expected.disentanglement, abs=0.03)


def test_codes_of_other_images_score_at_chance(synthetic: Callable) -> None:
    codes, factors = synthetic("perfect")
    result = run(np.random.default_rng(1).permutation(codes), factors, num_train=4000, num_test=2000)
    chance = np.mean([1 / 10, 1 / 10, 1 / 10, 1 / 8, 1 / 4, 1 / 15])
    assert result.disentanglement == pytest.approx(0.0, abs=0.05)
    assert result.completeness == pytest.approx(0.0, abs=0.05)
    assert result.informativeness == pytest.approx(chance, abs=0.02)


@pytest.mark.parametrize("estimator", ["hist", "tree"])
def test_processes_give_the_very_numbers_of_one_process(synthetic: Callable, estimator: Estimator) -> None:
    codes, factors = synthetic("mixed30", SIZES, repeats=REPEATS)
    serial, parallel = run(codes, factors, estimator), run(codes, factors, estimator, num_jobs=2)
    np.testing.assert_array_equal(parallel.importance, serial.importance)
    assert parallel.informativeness == serial.informativeness


def test_one_job_starts_no_pool(synthetic: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("sklearn.utils.parallel.Parallel")
    assert run(*synthetic("perfect", SIZES, repeats=REPEATS)).status == "valid"


def test_a_constant_factor_is_left_out_and_named(synthetic: Callable) -> None:
    codes, factors = synthetic("mixed30", SIZES, repeats=REPEATS)
    expected = run(codes, factors)
    result = run(codes, np.insert(factors, len(SIZES), 7, axis=1))
    assert result.constant_factors == (len(SIZES),)
    assert result.importance is not None
    assert result.importance.shape == (codes.shape[1], len(SIZES) + 1)
    assert not result.importance[:, -1].any()
    assert result.per_factor_completeness is not None
    assert result.per_factor_completeness[-1] == 0.0
    assert result.disentanglement == expected.disentanglement
    assert result.completeness == expected.completeness
    assert result.informativeness == expected.informativeness


def test_a_level_too_rare_to_be_drawn_leaves_its_factor_without_importance() -> None:
    rng = np.random.default_rng(0)
    factors = np.column_stack([rng.integers(3, size=(5000, 2)), np.zeros(5000, int)])
    factors[0, 2] = 1
    result = run(factors + 0.0, factors, num_train=50, num_test=50)
    assert result.importance is not None
    assert not result.importance[:, 2].any()
    assert result.constant_factors == ()
    assert result.informativeness == 1.0


def test_a_dead_unit_among_living_ones_costs_nothing() -> None:
    factors = identity_table(4, 4)
    result = run(np.insert(factors, 2, 5, axis=1), factors)
    assert result.disentanglement == pytest.approx(1.0, abs=1e-6)
    assert result.completeness == pytest.approx(1.0, abs=1e-6)
    assert result.per_unit_disentanglement is not None
    assert result.per_unit_disentanglement[2] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "units [1] of 7 hold NaN"), (np.inf, "units [1] of 7 hold NaN"), (None, "collapsed")]
)
def test_a_failed_representation_is_invalid_and_has_no_numbers(
    synthetic: Callable, value: float | None, reason: str
) -> None:
    codes, factors = synthetic("perfect", SIZES, repeats=REPEATS)
    if value is None:
        codes[:] = 0.0
    else:
        codes[3, 1] = value
    result = run(codes, factors)
    assert result.status == "invalid"
    assert result.reason is not None
    assert reason in result.reason
    numbers = (result.disentanglement, result.completeness, result.informativeness, result.importance)
    assert numbers == (None, None, None, None)


def test_the_result_names_estimator_and_sizes(synthetic: Callable) -> None:
    result = run(*synthetic("perfect", SIZES, repeats=REPEATS))
    assert (result.estimator, result.num_train, result.num_test) == ("tree", 400, 200)


@pytest.mark.parametrize("argument", ["num_train", "num_test", "num_jobs"])
def test_sizes_must_be_positive(synthetic: Callable, argument: str) -> None:
    with pytest.raises(MetricError, match=f"{argument}=0"):
        run(*synthetic("perfect", SIZES, repeats=REPEATS), **{argument: 0})
