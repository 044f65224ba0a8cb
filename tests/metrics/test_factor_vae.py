from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from raydis.errors import MetricError
from raydis.metrics.factor_vae import FactorVaeResult, factor_vae, majority_accuracy
from raydis.metrics.sampling import LevelIndex

SMALL = {"num_variance": 2000, "num_train": 1500, "num_eval": 1000}
SIZES = (6, 5, 4, 2)


def run(codes: np.ndarray, factors: np.ndarray, *, seed: int = 0, **sizes: float) -> FactorVaeResult:
    return factor_vae(codes, factors, rng=np.random.default_rng(seed), **{**SMALL, **sizes})


def identity_table() -> np.ndarray:
    """disentanglement_lib's test data: ten factors uniform on 1..10, observed as they are."""
    return np.random.default_rng(0).integers(1, 11, size=(50_000, 10))


def test_identity_data_score_as_disentanglement_lib_asserts() -> None:
    factors = identity_table()
    result = run(factors, factors, batch_size=5, num_variance=2500, num_train=3000, num_eval=2000, prune_threshold=0.0)
    assert result.score is not None
    assert result.train_accuracy is not None
    assert result.train_accuracy == pytest.approx(0.9993, abs=0.003)
    assert result.score == pytest.approx(0.9995, abs=0.003)
    assert result.num_active == 10


def test_aligned_codes_score_one_at_the_published_sizes(synthetic: Callable) -> None:
    codes, factors = synthetic("permuted")
    result = factor_vae(codes, factors, rng=np.random.default_rng(0))
    assert result.status == "valid"
    assert result.score == 1.0
    assert result.num_active == 10


@pytest.mark.parametrize("kind", ["noise", "rotated"])
def test_votes_equal_those_of_a_plain_loop_over_the_same_draws(synthetic: Callable, kind: str) -> None:
    codes, factors = synthetic(kind, SIZES)
    codes[:, 2] *= 0.01  # pruned
    result = run(codes, factors, seed=3)

    rng = np.random.default_rng(3)
    variance = codes[rng.integers(len(codes), size=SMALL["num_variance"])].var(axis=0, ddof=1)
    fixed, rows = LevelIndex.of(factors).draw_fixed_factor(rng, num_batches=SMALL["num_train"], batch_size=64)
    votes = np.zeros((len(SIZES), codes.shape[1]), int)
    for k, batch in zip(fixed, rows, strict=True):
        ratio = {n: codes[batch, n].var(ddof=1) / variance[n] for n in range(codes.shape[1]) if n != 2}
        votes[k, min(ratio, key=ratio.__getitem__)] += 1
    np.testing.assert_array_equal(result.votes, votes)
    assert result.num_active == codes.shape[1] - 1
    assert result.train_accuracy == votes.max(axis=0).sum() / votes.sum()


def test_the_score_agrees_with_the_published_sampling_of_factor_vectors(synthetic: Callable) -> None:
    codes, factors = synthetic("rotated", SIZES)
    result = run(codes, factors, num_variance=10_000, num_train=4000, num_eval=2000)

    random = np.random.RandomState(0)
    variance = codes.var(axis=0, ddof=1)

    def published_votes(number: int) -> np.ndarray:
        votes = np.zeros((len(SIZES), codes.shape[1]), int)
        for _ in range(number):
            k = random.randint(len(SIZES))
            vectors = np.stack([random.randint(size, size=64) for size in SIZES])
            vectors[k] = vectors[k, 0]
            local = codes[np.ravel_multi_index(tuple(vectors), SIZES)].var(axis=0, ddof=1)
            votes[k, (local / variance).argmin()] += 1
        return votes

    train, evaluation = published_votes(4000), published_votes(2000)
    score = evaluation[train.argmax(axis=0), np.arange(codes.shape[1])].sum() / 2000
    assert 0.3 < score < 0.95  # informative: neither chance nor saturated
    assert result.score == pytest.approx(score, abs=0.05)  # standard deviation of the difference: at most 0.016
    np.testing.assert_allclose(result.votes, train, atol=120)  # 3 deviations of a count's difference, or more


def test_codes_of_other_images_score_at_chance(synthetic: Callable) -> None:
    codes, factors = synthetic("perfect", (10, 10, 10, 8))
    result = run(np.random.default_rng(1).permutation(codes), factors, num_train=10_000, num_eval=5000)
    assert result.score == pytest.approx(1 / 4, abs=0.03)


def test_affine_maps_of_units_leave_the_votes_unchanged(synthetic: Callable) -> None:
    codes, factors = synthetic("rotated", SIZES)
    moved = codes * [4.0, -2.0, 1.0, 8.0, 0.5, -1.0, 2.0, 16.0] + 3.0
    np.testing.assert_array_equal(run(codes, factors).votes, run(moved, factors).votes)


def test_permuting_units_permutes_the_votes(synthetic: Callable) -> None:
    codes, factors = synthetic("rotated", SIZES)
    order = np.random.default_rng(0).permutation(codes.shape[1])
    result, permuted = run(codes, factors), run(codes[:, order], factors)
    assert result.votes is not None
    np.testing.assert_array_equal(result.votes[:, order], permuted.votes)
    assert permuted.score == result.score


def test_redundant_codes_cost_nothing(synthetic: Callable) -> None:
    codes, factors = synthetic("perfect", SIZES)
    assert run(np.tile(codes[:, :4], 2), factors).score == 1.0


def test_any_table_of_rows_can_be_scored_not_only_a_grid(synthetic: Callable) -> None:
    codes, factors = synthetic("perfect", SIZES)
    rows = np.random.default_rng(0).integers(len(codes), size=700)
    assert run(codes[rows], factors[rows] * 10 - 3).score == 1.0


def test_a_constant_factor_is_left_out_and_named(synthetic: Callable) -> None:
    codes, factors = synthetic("perfect", SIZES)
    result = run(codes, np.insert(factors, 1, 9, axis=1))
    assert result.constant_factors == (1,)
    assert result.score == 1.0
    assert result.votes is not None
    assert result.votes.sum(axis=1)[1] == 0


def test_codes_below_the_threshold_are_pruned_and_counted(synthetic: Callable) -> None:
    codes, factors = synthetic("perfect", SIZES)
    codes[:, 0] *= 0.04
    codes[:, 5] = 2.0
    result = run(codes, factors)
    assert result.num_active == codes.shape[1] - 2
    assert result.votes is not None
    assert result.votes[:, [0, 5]].sum() == 0
    assert run(codes, factors, prune_threshold=0.0).num_active == codes.shape[1] - 1


@pytest.mark.parametrize(
    ("scale", "reason"), [(0.0, "all 8 units are constant"), (0.01, "deviation below 0.05, the largest is 0.0")]
)
def test_a_representation_without_active_codes_is_invalid(synthetic: Callable, scale: float, reason: str) -> None:
    codes, factors = synthetic("perfect", SIZES)
    result = run(codes * scale, factors)
    assert (result.status, result.score, result.train_accuracy, result.votes) == ("invalid", None, None, None)
    assert result.num_active == 0
    assert result.reason is not None
    assert reason in result.reason


def test_votes_of_a_representation_that_was_pruned_altogether_score_zero_as_published() -> None:
    none = np.zeros((4, 8), int)
    assert majority_accuracy(none, none) == (0.0, 0.0)


def test_each_code_counts_for_the_factor_it_won_most_often() -> None:
    train = np.array([[6, 1], [2, 1]])
    evaluation = np.array([[3, 0], [2, 5]])
    assert majority_accuracy(train, evaluation) == (0.7, 0.3)  # the second code's tie goes to the first factor


def test_one_nan_makes_the_result_invalid(synthetic: Callable) -> None:
    codes, factors = synthetic("perfect", SIZES)
    codes[5, 3] = np.nan
    result = run(codes, factors)
    assert (result.status, result.score) == ("invalid", None)
    assert result.reason is not None
    assert "units [3] of 8 hold NaN" in result.reason


def test_a_batch_of_one_sample_is_refused(synthetic: Callable) -> None:
    with pytest.raises(MetricError, match="batch_size and num_variance >= 2"):
        run(*synthetic("perfect", SIZES), batch_size=1)
