"""The comparison with disentanglement_lib must let the same method pass, and see a different one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.benchmarks.reproduction import (
    LEVEL,
    METHODS,
    Interval,
    compare,
    configure,
    intervals,
    reference,
    windows,
)


def test_the_interval_is_that_of_students_t() -> None:
    """Two runs, 0 and 2: mean 1, variance 2, one degree of freedom, whose quantile at 0.975 is 12.706."""
    found = intervals({"a": [{"mig at 500": 0.0}, {"mig at 500": 2.0}]}, num_seeds=2)["a"]["mig at 500"]
    half = 12.7062 * math.sqrt(2.0 * (1 / 2 + 1 / 2))
    assert (found.low, found.high) == pytest.approx((1 - half, 1 + half), rel=1e-5)


def test_losses_are_compared_by_their_ratios() -> None:
    found = intervals({"a": [{"kl at 500": 0.5}, {"kl at 500": 2.0}]}, num_seeds=2)["a"]["kl at 500"]
    assert found.low * found.high == pytest.approx(1.0)
    assert found.low > 0.0


def test_all_intervals_together_hold_at_the_level() -> None:
    rng, held, num_trials, names = np.random.default_rng(0), 0, 2000, [f"mig at {step}" for step in range(10)]
    for _ in range(num_trials):
        runs = {each: [dict(zip(names, row, strict=True)) for row in rng.normal(size=(3, 10))] for each in "ab"}
        expected = intervals(runs, num_seeds=2)
        held += all(expected[each][name].holds(rng.normal(size=2).mean()) for each in "ab" for name in names)
    share = held / num_trials
    assert share > LEVEL - 4 * math.sqrt(LEVEL * (1 - LEVEL) / num_trials)  # Bonferroni is on the safe side
    assert share < 1.0


def test_a_number_that_a_run_does_not_have_is_outside(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"kl at 500": Interval(1.0, 2.0), "mig at 500": Interval(0.0, 1.0)}
    assert compare("ours", [{"kl at 500": 1.5, "mig at 500": 0.5}], expected) == 0
    assert compare("ours", [{"kl at 500": 1.5}], expected) == 1
    assert compare("ours", [{"kl at 500": 2.5, "mig at 500": 0.5}], expected) == 1
    assert capsys.readouterr().out.count("FAIL") == 2


def test_the_reference_holds_every_method_with_several_seeds() -> None:
    for method in METHODS:
        runs = reference(method, 500)
        assert len(runs) >= 3
        assert all({f"kl at {step}" for step in windows(500)} <= set(run) for run in runs)


@pytest.mark.parametrize(
    ("method", "key", "value"), [("beta_vae", "beta", 4), ("beta_tcvae", "beta", 6), ("factor_vae", "gamma", 35)]
)
def test_ours_have_the_strengths_that_the_reference_ran_with(method: str, key: str, value: float) -> None:
    config = configure(method, 0, quick=False)
    assert config.method.model_dump()[key] == value
    assert (config.train.batch_size, config.train.learning_rate) == (64, 1e-4)
    assert config.data.name == "dsprites_procedural"
