"""The one definition of what is best."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raydis.metrics.standing import Objective, best_of, describe, missing, standing, standing_spread, with_spread

HIGH = Objective(metric="dci_disentanglement")
LOW = Objective(metric="mig", direction="min")


def values(dci: Any, mig: Any) -> dict[str, Any]:
    return {"dci_disentanglement": dci, "mig": mig, "factor_vae": 0.9}


def test_the_standing_of_one_objective_is_its_value_turned_so_that_higher_is_better() -> None:
    assert standing(values(0.6, 0.25), [HIGH]) == 0.6
    assert standing(values(0.6, 0.25), [LOW]) == 0.75
    assert standing(values(0.6, 0.0), [LOW]) == 1.0


def test_the_standing_of_several_objectives_is_the_mean_of_their_turned_values() -> None:
    assert standing(values(0.5, 0.25), [HIGH, LOW]) == 0.625


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.5"])
def test_a_value_that_is_no_finite_number_gives_no_standing_and_is_named(value: Any) -> None:
    assert standing(values(0.5, value), [HIGH, LOW]) is None
    assert missing(values(0.5, value), [HIGH, LOW]) == f"mig is {value}"
    assert standing(values(0.5, value), [HIGH]) == 0.5
    assert standing({}, [HIGH]) is None


def test_the_best_has_the_highest_standing_and_is_the_first_of_equals() -> None:
    trials = {"a": values(0.5, 0.5), "b": values(0.7, 0.5), "c": values(0.7, 0.5), "d": values(None, 0.0)}
    assert best_of(trials, [HIGH]) == "b"
    assert best_of(trials, [LOW]) == "d"
    assert best_of({"d": values(None, 0.0)}, [HIGH]) is None
    assert best_of({}, [HIGH]) is None


def test_the_best_is_never_dominated() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        trials = {number: values(*rng.integers(5, size=2) / 4) for number in range(8)}
        best = best_of(trials, [HIGH, LOW])
        assert best is not None
        dci, low = trials[best]["dci_disentanglement"], trials[best]["mig"]
        others = [(other["dci_disentanglement"], other["mig"]) for other in trials.values()]
        assert not [pair for pair in others if pair != (dci, low) and pair[0] >= dci and pair[1] <= low]


def test_the_spread_of_a_standing_is_the_largest_that_the_metrics_allow() -> None:
    spread = {"dci_disentanglement": 0.03, "mig": 0.01}
    assert standing_spread(spread, [LOW]) == 0.01
    assert standing_spread(spread, [HIGH, LOW]) == pytest.approx(0.02)
    together = np.random.default_rng(0).normal(size=10_000)  # draws that move both metrics at once
    together /= together.std()
    assert np.std((0.03 * together + 0.01 * together) / 2) == pytest.approx(0.02)


@pytest.mark.parametrize("spread", [None, {}, {"dci_disentanglement": 0.03}])
def test_a_spread_that_is_unknown_stays_unknown(spread: dict[str, float] | None) -> None:
    assert standing_spread(spread, [HIGH, LOW]) is None


def test_a_standing_is_described_in_words() -> None:
    assert describe([HIGH]) == "dci_disentanglement"
    assert (
        describe([HIGH, Objective(metric="factor_vae"), LOW]) == "mean of dci_disentanglement, factor_vae and 1 - mig"
    )


def test_a_number_is_written_with_its_spread_where_that_is_known() -> None:
    assert with_spread(0.5554, 0.0123) == "0.555 ± 0.012"
    assert with_spread(0.5554, 0.0) == "0.555 ± 0.000"
    assert with_spread(0.5554, None) == "0.555"
