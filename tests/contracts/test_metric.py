"""What every entry of METRICS has to fulfil.

A metric joins by being in the table, plus a line in CHANCE, ANSWERS, SPARE_UNITS_COUNT or NOISE_IS_GOOD if what it says
of noise or of perfect codes is not the usual. M samples, N units, F factors. The tables are small grids of factors,
repeated, with codes of known quality.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from raydis.config.train import MetricName
from raydis.errors import MetricError
from raydis.metrics.entry import Number
from raydis.metrics.protocol import SEARCH, Protocol
from raydis.metrics.scores import FORMER_NUMBERS
from raydis.metrics.scoring import Outcome, measure
from raydis.metrics.table import METRICS, numbers, sizes_of

SIZES = (5, 4, 3)
GUESSING = float(np.mean([1 / size for size in SIZES]))  # among equally frequent levels
# What pure noise scores, as a share of the way from the number's worst value to its best, where that is not 0. None: an
# accident of the noise, because the number divides tiny pieces of information by each other.
CHANCE: dict[str, float | None] = {
    "factor_vae": 1 / len(SIZES),  # each unit wins a factor as often as any other
    "dci_informativeness": GUESSING,
    "modularity": None,
    "explicitness": 0.5,
    "beta_vae": 1 / len(SIZES),
    "irs": 1 - 2.576 / 3.9,  # quantile 0.99 of |N(0, 1)|, and its largest value among 10,000
    "info_modularity": None,
    "info_compactness": None,
    "med_informativeness": GUESSING,
    "dci_explicitness": 0.95,  # the simplest probe guesses as well as the largest, up to the accidents of test rows
    "dci_size": len(SIZES) / (len(SIZES) + 4),
    "self_mig": 1.0,  # noise units are independent
    "sample_efficiency": 1.0,  # guessing needs no labels
    "scalar_factor_vae": 1 / len(SIZES),
    "scalar_informativeness": GUESSING,
    "unit_leakage": 1.0,  # no unit knows anything, so nothing leaks
}
# Information I that two independent columns seem to share in n drawn rows, as a share of the least entropy: with at
# most five levels each, 2 n I is chi-squared with at most 16 degrees of freedom, and exceeds 76 once in 10^9 draws.
ACCIDENT = 76 / (2 * 10_000) / math.log(3)
# Accuracy of a guess between two equally frequent levels, of 5,000 rows: six standard deviations.
GUESS = 6 * math.sqrt(0.25 / 5_000)
# What perfect codes score at least and at most, as such a share, where that is not exactly 1. The width of an answer is
# the accident of the rows that a seed draws.
ANSWERS: dict[str, tuple[float, float]] = {
    "mig": (1 - ACCIDENT, 1),
    "self_mig": (1 - ACCIDENT, 1),
    "modularity": (1 - ACCIDENT**2, 1),
    # shares 1, a and a of ACCIDENT a, whose entropy is at most 2 a (1 + ln 1/a) of ln 3
    "med_disentanglement": (1 - 2 * ACCIDENT * (1 - math.log(ACCIDENT)) / math.log(3), 1),
    "med_completeness": (1 - 2 * ACCIDENT * (1 - math.log(ACCIDENT)) / math.log(3), 1),
    "sap_continuous": (1 - 38 / 10_000, 1),  # n r^2 is chi-squared, one degree of freedom
    "sap": (0.5 - GUESS, 0.5 + GUESS),  # of factors of two levels, which a unit that knows nothing guesses
    "info_explicitness": (1 - 1e-3, 1),  # where 100 iterations have come, of a regression that ends at infinite weights
    # The losses of a tree at depths 1, 2, 3 are 3/5, 1/5, 0 for five levels if it halves them, or 3/5, 2/5, 1/5 if it
    # splits off one level each time, which is as good for its criterion; 1/2, 0 or 1/2, 1/4 for four, 1/3 for three.
    "dci_explicitness": (0.9780 - 2 * GUESS / 31, 0.9870 + 2 * GUESS / 31),
}
# Units of noise lower what these say of codes that are perfect otherwise.
SPARE_UNITS_COUNT = {"modularity_explicitness", "irs", "infomec", "med", "dci_es", "tad"}
NOISE_IS_GOOD = {"self_mig", "dci_es", "sample_efficiency"}  # as the pages of these metrics warn
NUM_SEEDS = 8
SMALL = {"num_train": 2000, "num_test": 1000}
FULL_SIZES = replace(SEARCH, estimator="tree", metrics="all")
PROTOCOL = replace(
    SEARCH,
    estimator="tree",  # all estimators share one code path; this one is the quickest
    metrics="all",
    overrides={
        "sap": SMALL,
        "modularity_explicitness": SMALL,
        "med": SMALL,
        "beta_vae": {"num_train": 2000, "num_eval": 2000},
        "infomec": {"max_samples": 1000},  # of 1,200 rows: what uses all rows owes the same number in any order
        "sample_efficiency": {"num_many": 400, "num_test": 2000},
        "leakage": SMALL,
    },
)

Kind = Literal["clear", "mixed", "noise"]
Table = tuple[NDArray[np.float64], NDArray[np.int64]]

every_metric = pytest.mark.parametrize("name", METRICS)


def table(kind: Kind, *, repeats: int = 1, name: str = "") -> Table:
    """Codes (M, N) and factors (M, F): a unit for each factor and two that hold noise, or seven that do.

    Args:
        kind: `clear`: the units hold their factors' levels. `mixed`: with noise, and the first two are rotated into
            one another by 30 degrees. `noise`: no unit knows anything.
        repeats: rows of each cell of the grid.
        name: of the metric. One of binary factors gets three random ones.
    """
    rng = np.random.default_rng(0)
    factors = np.tile(np.indices(SIZES).reshape(len(SIZES), -1).T, (repeats, 1)).astype(np.int64)
    if name and "binary_factors" in METRICS[name].needs:
        factors = rng.integers(2, size=(len(factors), 3))
    if kind == "noise":
        return rng.normal(size=(len(factors), len(SIZES) + 4)), factors
    codes = (factors - factors.mean(axis=0)) / factors.std(axis=0)
    if kind == "mixed":
        codes += 0.3 * rng.normal(size=codes.shape)
        codes[:, :2] = codes[:, :2] @ (np.array([[3**0.5, 1.0], [-1.0, 3**0.5]]) / 2)
    return np.column_stack([codes, rng.normal(size=(len(codes), 2))]), factors


def outcome(
    name: str,
    codes: NDArray[np.float64],
    factors: NDArray[np.generic],
    *,
    seed: int = 0,
    protocol: Protocol = PROTOCOL,
) -> Outcome:
    """One metric at the sizes of the table."""
    return measure(name, codes, factors, protocol=protocol, seed=seed)


def values(
    name: str,
    codes: NDArray[np.float64],
    factors: NDArray[np.int64],
    *,
    seed: int = 0,
    protocol: Protocol = PROTOCOL,
) -> dict[str, float]:
    """The numbers of one metric for codes that can be scored."""
    found = outcome(name, codes, factors, seed=seed, protocol=protocol)
    assert (found.status, found.reason) == ("valid", None)
    return found.values


def of_many_seeds(name: str, codes: NDArray[np.float64], factors: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Each number at NUM_SEEDS seeds."""
    found = [values(name, codes, factors, seed=seed) for seed in range(NUM_SEEDS)]
    return {number: np.array([each[number] for each in found]) for number in found[0]}


def perfect(name: str) -> Table:
    """Codes that hold the levels of their factors, with two spare units if the metric allows them.

    No accident is in the table: each unit is independent of the other units and of their factors, to the last row.
    """
    if "binary_factors" in METRICS[name].needs:  # any two columns of a Hadamard matrix are independent
        factors = np.array([[(row & column).bit_count() % 2 for column in range(1, 41)] for row in range(64)] * 4)
        return factors.astype(np.float64), factors.astype(np.int64)
    grid = np.indices((4, 5, *((2, 2, 2) if name == "sap" else SIZES))).reshape(5, -1).T.astype(np.int64)
    factors = grid[:, 2:]
    codes = (grid - grid.mean(axis=0)) / grid.std(axis=0)
    if name == "infomec":
        # Nearest neighbours need values that differ, or noise decides. These rise with a number of each row, of which
        # its levels are the remainders by 5, 4 and 3. So the levels of any other factor alternate along each level.
        codes += 1e-6 * (factors @ [36, 45, 40] % 60 + 60 * (grid[:, 0] * 5 + grid[:, 1]))[:, None]
    return codes[:, 2:] if name in SPARE_UNITS_COUNT else codes, factors


def answer(number: str) -> tuple[float, float]:
    """The least and the largest share of its range that a number has for perfect codes, but for rounding."""
    low, high = ANSWERS.get(number, (1.0, 1.0))
    return low - 1e-8, high + 1e-8


def share_of_range(number: Number, value: float) -> float:
    """A value between the worst (0) and the best (1) that its number can have."""
    share = (value - number.low) / (number.high - number.low)
    return share if number.direction == "max" else 1.0 - share


def test_names_are_unique_and_tables_can_print_them() -> None:
    known = [number for metric in METRICS.values() for number in metric.numbers]
    for label in ("name", "short", "title"):
        found = [getattr(number, label) for number in known]
        assert all(found)
        assert len(set(found)) == len(found)
    details = [name for metric in METRICS.values() for name in metric.details]
    assert len(set(details)) == len(details)
    assert all(number.name.isidentifier() for number in known)
    assert sizes_of(PROTOCOL).keys() == METRICS.keys()
    assert METRICS.keys() == set(get_args(MetricName)), "config/train.py names the metrics for the configuration"
    assert set(FORMER_NUMBERS) <= set(numbers())  # or scores that a checkpoint keeps lose their meaning


@every_metric
def test_an_entry_is_complete(name: str) -> None:
    metric = METRICS[name]
    assert metric.headline in metric.numbers
    assert all(-math.inf < number.low < number.high < math.inf for number in metric.numbers)
    found = outcome(name, *table("mixed", name=name))
    assert list(found.values) == [number.name for number in metric.numbers]
    assert found.details.keys() == metric.details.keys()
    assert json.loads(json.dumps([found.values, found.details], allow_nan=False)) == [found.values, found.details]


@every_metric
@pytest.mark.parametrize("kind", ["clear", "mixed", "noise"])
def test_every_number_lies_within_its_range(name: str, kind: Kind) -> None:
    for seed in (0, 1):
        for number, value in values(name, *table(kind, name=name), seed=seed).items():
            assert numbers()[number].low <= value <= numbers()[number].high


@every_metric
def test_units_in_another_order_have_the_same_score(name: str) -> None:
    """The same seed draws the same rows. A classifier may still decide between equal splits by the order of units."""
    codes, factors = table("mixed", repeats=20, name=name)
    order = np.random.default_rng(1).permutation(codes.shape[1])
    permuted = values(name, codes[:, order], factors)
    for number, value in values(name, codes, factors).items():
        width = numbers()[number].high - numbers()[number].low
        assert permuted[number] == pytest.approx(value, abs=0.03 * width)


@every_metric
def test_rows_in_another_order_have_the_same_score(name: str) -> None:
    """Codes and factors move together, so a metric that uses every row, whatever its seed, gives the same number.

    A metric that draws rows draws others from the permuted table. Its mean over seeds must stay, within four standard
    errors.
    """
    codes, factors = table("mixed", repeats=20, name=name)
    order = np.random.default_rng(1).permutation(len(codes))
    permuted = of_many_seeds(name, codes[order], factors[order])
    for number, drawn in of_many_seeds(name, codes, factors).items():
        error = math.sqrt((drawn.var(ddof=1) + permuted[number].var(ddof=1)) / NUM_SEEDS)
        assert abs(drawn.mean() - permuted[number].mean()) <= 4 * error + 1e-9


@every_metric
def test_codes_of_other_rows_have_another_score(name: str) -> None:
    """The control of the test above: a metric that ignored which row is which would pass it."""
    codes, factors = perfect(name)
    headline = METRICS[name].headline
    right = values(name, codes, factors, protocol=FULL_SIZES)[headline.name]
    shuffled = values(name, np.random.default_rng(1).permutation(codes), factors, protocol=FULL_SIZES)[headline.name]
    if name not in NOISE_IS_GOOD:
        assert share_of_range(headline, shuffled) < share_of_range(headline, right) - 0.2
    elif "discrete_factors" in METRICS[name].needs:
        assert shuffled != right


@every_metric
def test_the_seed_alone_decides_the_numbers(name: str) -> None:
    codes, factors = table("mixed", repeats=2, name=name)
    codes.flags.writeable = factors.flags.writeable = False
    before = np.random.get_state()[1].copy()  # noqa: NPY002  # the global generator is the subject
    first = outcome(name, codes, factors, seed=5)
    np.random.default_rng().random()
    assert outcome(name, codes.copy(), factors.copy(), seed=5) == first
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002  # the global generator is the subject


@every_metric
def test_perfect_codes_have_the_score_that_can_be_worked_out(name: str) -> None:
    for seed in (0, 1, 2):
        for number, value in values(name, *perfect(name), seed=seed, protocol=FULL_SIZES).items():
            low, high = answer(number)
            assert low <= share_of_range(numbers()[number], value) <= high, number


@every_metric
def test_pure_noise_scores_near_chance(name: str) -> None:
    for number, value in values(name, *table("noise", repeats=1000, name=name)).items():
        if (chance := CHANCE.get(number, 0.0)) is not None:
            assert share_of_range(numbers()[number], value) == pytest.approx(chance, abs=0.06), number


@every_metric
def test_tables_that_can_never_be_scored_are_refused_with_what_to_do(name: str) -> None:
    codes, factors = table("mixed", name=name)
    with pytest.raises(MetricError, match="59 rows of codes but 60 of factors: row i of both must be one sample"):
        outcome(name, codes[1:], factors)
    with pytest.raises(
        MetricError, match=r"one row of codes and factors cannot be scored: give .* at least two samples"
    ):
        outcome(name, codes[:1], factors[:1])
    if "discrete_factors" in METRICS[name].needs:
        with pytest.raises(MetricError, match=r"0 of 3 factors vary .*at least two must: score more levels"):
            outcome(name, codes, np.zeros_like(factors))
        with pytest.raises(MetricError, match=r"1 of 3 factors vary .*at least two must: score more levels"):
            outcome(name, codes, factors * [0, 1, 0])
        with pytest.raises(MetricError, match="factors of type float64 are not levels: give the integer index"):
            outcome(name, codes, factors.astype(np.float64))
    if "two_units" in METRICS[name].needs:
        with pytest.raises(MetricError, match="at least two units"):
            outcome(name, codes[:, :1], factors)


@every_metric
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_codes_that_are_not_finite_are_invalid_and_named(name: str, bad: float) -> None:
    codes, factors = table("mixed", name=name)
    codes[7, 1] = bad
    assert outcome(name, codes, factors) == Outcome(
        "invalid", "units [1] of 5 hold NaN, infinity or values beyond float32"
    )


@every_metric
def test_codes_that_have_collapsed_are_invalid(name: str) -> None:
    codes, factors = table("mixed", name=name)
    found = outcome(name, np.full_like(codes, 0.5), factors)
    assert (found.status, found.values, found.details) == ("invalid", {}, {})
    assert found.reason == "all 5 units are constant: the representation has collapsed"


@every_metric
def test_a_constant_factor_among_others_changes_no_range(name: str) -> None:
    codes, factors = perfect(name)
    others = factors[:, :39]  # TAD has at most 40 attributes, the best of which count half each
    found = values(name, codes, np.column_stack([others, np.full(len(factors), 3)]), protocol=FULL_SIZES)
    headline, (low, high) = METRICS[name].headline, answer(METRICS[name].headline.name)
    left_out = (factors.shape[1] - others.shape[1]) / factors.shape[1]
    assert low - left_out <= share_of_range(headline, found[headline.name]) <= high - left_out
