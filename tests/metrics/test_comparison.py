"""Paired tests and Holm's correction: known answers, SciPy as oracle, and what few pairs cannot show."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from raydis.errors import MetricError
from raydis.metrics.comparison import MAX_PAIRS, holm, paired_test, pairs_needed, smallest_exact_p_value

SHAPES = ((3, 0.2), (4, 2.0), (5, 0.0), (8, 0.5), (10, 1.0))  # number of pairs, true difference
PAIRS = [np.random.default_rng(n).normal([[shift], [0.0]], size=(2, n)) for n, shift in SHAPES]


@pytest.mark.parametrize("pairs", PAIRS, ids=lambda pairs: f"{pairs.shape[1]} pairs")
def test_the_t_test_and_its_interval_are_scipys(pairs: np.ndarray) -> None:
    found, oracle = paired_test(*pairs), stats.ttest_rel(*pairs)
    interval = oracle.confidence_interval(0.95)
    assert found.t_p_value == pytest.approx(oracle.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.difference == pytest.approx((pairs[0] - pairs[1]).mean(), rel=1e-12)


@pytest.mark.parametrize("pairs", PAIRS, ids=lambda pairs: f"{pairs.shape[1]} pairs")
def test_the_exact_test_is_scipys_permutation_of_pairs(pairs: np.ndarray) -> None:
    oracle = stats.permutation_test(
        pairs, lambda a, b: np.mean(a - b), permutation_type="samples", vectorized=False, n_resamples=np.inf
    )
    assert paired_test(*pairs).exact_p_value == pytest.approx(oracle.pvalue, rel=1e-12)


def test_exact_p_values_counted_by_hand() -> None:
    # The four sums |1 +- 2 +- 4| are 7, 1, 3 and 5. The observed ones are 7, |1 + 2 - 4| = 1 and |1 - 2 + 4| = 3.
    assert paired_test([1, 2, 4], [0, 0, 0]).exact_p_value == 0.25
    assert paired_test([1, 2, 0], [0, 0, 4]).exact_p_value == 1.0
    assert paired_test([1, 0, 4], [0, 2, 0]).exact_p_value == 0.75


def test_the_order_of_the_methods_only_turns_the_sign() -> None:
    forth, back = paired_test(*PAIRS[3]), paired_test(*PAIRS[3][::-1])
    assert (forth.difference, forth.low, forth.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert (forth.t_p_value, forth.exact_p_value) == pytest.approx((back.t_p_value, back.exact_p_value))


@pytest.mark.parametrize("n", range(2, 9))
def test_the_exact_test_never_falls_below_its_smallest_value_and_reaches_it(n: int) -> None:
    clear = paired_test(np.arange(1.0, n + 1), np.zeros(n))
    assert clear.exact_p_value == smallest_exact_p_value(n) == 2 / 2**n
    assert (smallest_exact_p_value(n) <= 0.05) == (n >= 6)


def test_equal_scores_show_no_difference_and_a_constant_difference_has_no_t() -> None:
    same = paired_test([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (same.difference, same.t_p_value, same.exact_p_value) == (0.0, 1.0, 1.0)
    constant = paired_test([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
    assert (constant.t_p_value, constant.exact_p_value, constant.spread) == (None, 0.25, 0.0)
    assert constant.difference == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # Wikipedia's example of Holm's method
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
    ],
)
def test_holms_correction_of_known_values(p_values: list[float], corrected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(corrected)


def test_holm_keeps_the_order_and_lies_between_no_correction_and_bonferronis() -> None:
    values = np.random.default_rng(5).random(30) ** 3
    found = np.array(holm(list(values)))
    assert (found >= values).all()
    assert (found <= np.minimum(1.0, 30 * values)).all()
    assert (np.diff(found[np.argsort(values)]) >= 0.0).all()


def test_holm_finds_a_difference_where_there_is_none_in_at_most_five_of_a_hundred_families() -> None:
    rng = np.random.default_rng(6)
    families = [[paired_test(*rng.normal(size=(2, 5))).t_p_value or 0.0 for _ in range(6)] for _ in range(600)]
    wrong = sum(min(holm(family)) <= 0.05 for family in families)
    assert wrong <= 600 * 0.05 + 4 * (600 * 0.05 * 0.95) ** 0.5  # four standard deviations of a binomial above its mean
    assert sum(min(family) <= 0.05 for family in families) > 2 * wrong  # which is what the correction is for


@pytest.mark.parametrize("num_tests", [1, 2, 9, 18, 45])
def test_with_the_pairs_needed_the_exact_test_can_be_significant_and_with_one_less_it_cannot(num_tests: int) -> None:
    n = pairs_needed(num_tests)
    assert num_tests * smallest_exact_p_value(n) <= 0.05 < num_tests * smallest_exact_p_value(n - 1)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([1.0, 2.0], [1.0], "make no pairs"),
        ([[1.0, 2.0]], [[1.0, 2.0]], "make no pairs"),
        ([1.0], [2.0], "1 pairs of scores cannot be tested: give 2 to 20"),
        ([1.0] * (MAX_PAIRS + 1), [2.0] * (MAX_PAIRS + 1), "21 pairs"),
        ([1.0, float("nan")], [1.0, 2.0], "leave out the pairs"),
    ],
)
def test_what_cannot_be_compared_is_refused(first: list, second: list, words: str) -> None:
    with pytest.raises(MetricError, match=words):
        paired_test(first, second)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_what_is_no_p_value_is_refused(wrong: float) -> None:
    with pytest.raises(MetricError, match="is not a p value"):
        holm([0.5, wrong])
