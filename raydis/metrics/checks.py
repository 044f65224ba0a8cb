"""Checks of the input that all metrics share. M samples, N codes, F factors.

Input that can never be scored raises MetricError. Codes of a failed model (NaN, infinity, or all constant) do not: the
metric returns `status="invalid"`, a reason, and None for each of its numbers.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError

Status = Literal["valid", "invalid"]

# scikit-learn's trees convert codes to float32, in which a larger value would become infinity.
LARGEST_CODE = float(np.finfo(np.float32).max)


def check_table(codes: ArrayLike, factors: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return codes as float64 (M, N) and factors as int64 (M, F), after checking them.

    At least two factors must vary, because metrics of disentanglement measure how codes separate factors. With a single
    varying factor, the FactorVAE score and DCI would be 1 for any codes.

    Raises:
        MetricError: wrong number of axes, fewer than two rows, no columns, unequal lengths, codes that are not
            numbers, factors that are not integers, fewer than two varying factors.
    """
    codes, factors = np.asarray(codes), np.asarray(factors)
    check_shape("codes", codes)
    check_shape("factors", factors)
    check_lengths(codes, factors)
    codes = check_codes(codes)
    if factors.dtype.kind not in "iub":
        raise MetricError(f"factors of type {factors.dtype} are not levels: give the integer index of each value")
    factors = factors.astype(np.int64, copy=False)
    check_varying(factors)
    return codes, factors


def check_lengths(codes: NDArray[Any], factors: NDArray[Any]) -> None:
    """Raise MetricError if codes and factors have different numbers of rows."""
    if len(codes) != len(factors):
        raise MetricError(f"{len(codes)} rows of codes but {len(factors)} of factors: row i of both must be one sample")


def check_codes(codes: ArrayLike) -> NDArray[np.float64]:
    """Return codes as float64 (M, N), after checking them, for metrics that need no factors.

    Raises:
        MetricError: wrong number of axes, fewer than two rows, no columns, or codes that are not numbers.
    """
    codes = np.asarray(codes)
    check_shape("codes", codes)
    if len(codes) < 2:
        raise MetricError("one row of codes and factors cannot be scored: give the rows of at least two samples")
    if codes.dtype.kind not in "fiub":
        raise MetricError(f"codes of type {codes.dtype} are not real numbers: give an array of floats or integers")
    return codes.astype(np.float64, copy=False)


def check_shape(name: str, array: NDArray[Any]) -> None:
    """Raise MetricError unless an array has two axes, neither of which is empty."""
    if array.ndim != 2 or 0 in array.shape:
        hint = "; reduce units to scalars with per_unit_pca first" if name == "codes" and array.ndim == 3 else ""
        raise MetricError(f"{name} of shape {array.shape} are not a table of samples by columns{hint}")


def check_varying(factors: NDArray[np.int64]) -> None:
    """Raise MetricError if fewer than two columns of (M, F) vary."""
    num_varying = len(varying_factors(factors))
    if num_varying < 2:
        raise MetricError(
            f"{num_varying} of {factors.shape[1]} factors vary in these {len(factors)} rows, but at least two must: "
            "score more levels of the data set"
        )


def varying_factors(factors: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the columns of (M, F) with more than one level."""
    return np.flatnonzero((factors != factors[0]).any(axis=0))


def constant_factors(factors: NDArray[np.int64]) -> tuple[int, ...]:
    """Return the columns of (M, F) with a single level. Metrics leave them out and list them in their result."""
    return tuple(np.flatnonzero((factors == factors[0]).all(axis=0)).tolist())


def invalid_reason(codes: NDArray[np.float64]) -> str | None:
    """Return why codes (M, N) cannot be scored; None if they can."""
    broken = np.flatnonzero(~(np.abs(codes) <= LARGEST_CODE).all(axis=0))  # NaN compares false
    if len(broken):
        return f"units {broken.tolist()} of {codes.shape[1]} hold NaN, infinity or values beyond float32"
    if not (codes != codes[0]).any():
        return f"all {codes.shape[1]} units are constant: the representation has collapsed"
    return None
