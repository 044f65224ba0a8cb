"""What every entry of METRICS has to fulfil. A metric joins by being in the table, plus one line in CHANCE if needed.

M samples, N units, F factors. The tables are small grids of factors, repeated, with codes of known quality.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from raydis.errors import MetricError
from raydis.metrics.protocol import SEARCH
from raydis.metrics.scores import FORMER_NUMBERS
from raydis.metrics.scoring import Outcome, measure
from raydis.metrics.table import METRICS, Number, numbers, sizes_of

SIZES = (5, 4, 3)
# What pure noise scores, as a share of the way from the number's worst value to its best, where that is not 0.
CHANCE = {
    "factor_vae": 1 / len(SIZES),  # each unit wins a factor as often as any other
    "scalar_factor_vae": 1 / len(SIZES),
    "scalar_informativeness": float(np.mean([1 / size for size in SIZES])),
    "unit_leakage": 1.0,  # no unit knows anything, so nothing leaks
    "dci_informativeness": float(np.mean([1 / size for size in SIZES])),  # guesses among equally frequent levels
}
NUM_SEEDS = 8
PROTOCOL = replace(SEARCH, estimator="tree")  # all estimators share one code path; this one is the quickest

Kind = Literal["perfect", "mixed", "noise"]
Table = tuple[NDArray[np.float64], NDArray[np.int64]]

every_metric = pytest.mark.parametrize("name", METRICS)


def table(kind: Kind, *, repeats: int = 1) -> Table:
    """Codes (M, N) and factors (M, F): a unit for each factor and two that hold noise, or seven that do.

    Args:
        kind: `perfect`: the units hold their factors' levels. `mixed`: with noise, and the first two are rotated into
            one another by 30 degrees. `noise`: no unit knows anything.
        repeats: rows of each cell of the grid.
    """
    rng = np.random.default_rng(0)
    factors = np.tile(np.indices(SIZES).reshape(len(SIZES), -1).T, (repeats, 1)).astype(np.int64)
    if kind == "noise":
        return rng.normal(size=(len(factors), len(SIZES) + 4)), factors
    codes = (factors - factors.mean(axis=0)) / factors.std(axis=0)
    if kind == "mixed":
        codes += 0.3 * rng.normal(size=codes.shape)
        codes[:, :2] = codes[:, :2] @ (np.array([[3**0.5, 1.0], [-1.0, 3**0.5]]) / 2)
    return np.column_stack([codes, rng.normal(size=(len(codes), 2))]), factors


def outcome(name: str, codes: NDArray[np.float64], factors: NDArray[np.generic], *, seed: int = 0) -> Outcome:
    """One metric at the sizes of the table."""
    return measure(name, codes, factors, protocol=PROTOCOL, seed=seed)


def values(name: str, codes: NDArray[np.float64], factors: NDArray[np.int64], *, seed: int = 0) -> dict[str, float]:
    """The numbers of one metric for codes that can be scored."""
    found = outcome(name, codes, factors, seed=seed)
    assert (found.status, found.reason) == ("valid", None)
    return found.values


def of_many_seeds(name: str, codes: NDArray[np.float64], factors: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Each number at NUM_SEEDS seeds."""
    found = [values(name, codes, factors, seed=seed) for seed in range(NUM_SEEDS)]
    return {number: np.array([each[number] for each in found]) for number in found[0]}


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
    assert sizes_of(SEARCH).keys() == METRICS.keys()
    assert set(FORMER_NUMBERS) <= set(numbers())  # or scores that a checkpoint keeps lose their meaning


@every_metric
def test_an_entry_is_complete(name: str) -> None:
    metric = METRICS[name]
    assert metric.headline in metric.numbers
    assert all(-math.inf < number.low < number.high < math.inf for number in metric.numbers)
    found = outcome(name, *table("mixed"))
    assert list(found.values) == [number.name for number in metric.numbers]
    assert found.details.keys() == metric.details.keys()
    assert json.loads(json.dumps([found.values, found.details], allow_nan=False)) == [found.values, found.details]


@every_metric
@pytest.mark.parametrize("kind", ["perfect", "mixed", "noise"])
def test_every_number_lies_within_its_range(name: str, kind: Kind) -> None:
    for seed in (0, 1):
        for number, value in values(name, *table(kind), seed=seed).items():
            assert numbers()[number].low <= value <= numbers()[number].high


@every_metric
def test_units_in_another_order_have_the_same_score(name: str) -> None:
    """The same seed draws the same rows. A classifier may still decide between equal splits by the order of units."""
    codes, factors = table("mixed", repeats=20)
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
    codes, factors = table("mixed", repeats=20)
    order = np.random.default_rng(1).permutation(len(codes))
    permuted = of_many_seeds(name, codes[order], factors[order])
    for number, drawn in of_many_seeds(name, codes, factors).items():
        error = math.sqrt((drawn.var(ddof=1) + permuted[number].var(ddof=1)) / NUM_SEEDS)
        assert abs(drawn.mean() - permuted[number].mean()) <= 4 * error + 1e-9


@every_metric
def test_codes_of_other_rows_have_another_score(name: str) -> None:
    """The control of the test above: a metric that ignored which row is which would pass it."""
    codes, factors = table("perfect", repeats=20)
    shuffled = values(name, np.random.default_rng(1).permutation(codes), factors)
    headline = METRICS[name].headline
    assert share_of_range(headline, values(name, codes, factors)[headline.name]) > 0.9
    assert share_of_range(headline, shuffled[headline.name]) < 0.6


@every_metric
def test_the_seed_alone_decides_the_numbers(name: str) -> None:
    codes, factors = table("mixed", repeats=2)
    codes.flags.writeable = factors.flags.writeable = False
    before = np.random.get_state()[1].copy()  # noqa: NPY002  # the global generator is the subject
    first = outcome(name, codes, factors, seed=5)
    np.random.default_rng().random()
    assert outcome(name, codes.copy(), factors.copy(), seed=5) == first
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002  # the global generator is the subject


@every_metric
def test_perfect_codes_score_near_the_best_value(name: str) -> None:
    for number, value in values(name, *table("perfect", repeats=20)).items():
        assert share_of_range(numbers()[number], value) > 0.95, number


@every_metric
def test_pure_noise_scores_near_chance(name: str) -> None:
    for number, value in values(name, *table("noise", repeats=1000)).items():
        assert share_of_range(numbers()[number], value) == pytest.approx(CHANCE.get(number, 0.0), abs=0.06), number


@every_metric
def test_tables_that_can_never_be_scored_are_refused_with_what_to_do(name: str) -> None:
    codes, factors = table("mixed")
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
    codes, factors = table("mixed")
    codes[7, 1] = bad
    assert outcome(name, codes, factors) == Outcome(
        "invalid", "units [1] of 5 hold NaN, infinity or values beyond float32"
    )


@every_metric
def test_codes_that_have_collapsed_are_invalid(name: str) -> None:
    codes, factors = table("mixed")
    found = outcome(name, np.full_like(codes, 0.5), factors)
    assert (found.status, found.values, found.details) == ("invalid", {}, {})
    assert found.reason == "all 5 units are constant: the representation has collapsed"


@every_metric
def test_a_constant_factor_among_others_changes_no_range(name: str) -> None:
    codes, factors = table("perfect", repeats=20)
    found = values(name, codes, np.column_stack([factors, np.full(len(factors), 3)]))
    headline = METRICS[name].headline
    assert share_of_range(headline, found[headline.name]) > 0.9
