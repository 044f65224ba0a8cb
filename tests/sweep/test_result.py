"""The end of a sweep, decided on records alone."""

from __future__ import annotations

import dataclasses

import pytest

from raydis.engine.record import RunRecord
from raydis.errors import SweepError
from raydis.sweep.result import SweepResult, check_result
from raydis.sweep.summary import TrialRecord


def failed(number: int, reason: str) -> TrialRecord:
    return TrialRecord(number, None, {}, "failed", reason, RunRecord("failed", reason), 1.0, None)


def test_a_sweep_without_a_valid_trial_ends_with_the_reasons_of_all() -> None:
    records = [
        failed(0, "FitError: the loss became nan"),
        failed(1, "codes have collapsed"),
        failed(2, "codes have collapsed"),
    ]
    result = SweepResult("s", "/runs/sweeps/s", records, set(), [], None, None, interrupted=False)
    expected = (
        r"no trial of 3 ended with valid scores, so nothing was promoted: FitError: the loss became nan; codes have "
        r"collapsed\. The trials are in /runs/sweeps/s"
    )
    with pytest.raises(SweepError, match=expected):
        check_result(result)


def test_an_interrupted_sweep_is_no_error_even_before_its_first_valid_trial() -> None:
    result = SweepResult("s", "/runs/sweeps/s", [], set(), [], None, None, interrupted=True)
    assert check_result(result) is result
    assert check_result(dataclasses.replace(result, best=failed(0, "-"), interrupted=False)).best is not None
