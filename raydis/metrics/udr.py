"""The metric UDR: whether models of different seeds find the same units. It needs no factors. R runs, M samples.

Definition (unsupervised disentanglement ranking, Duan et al., arXiv 1905.12614; formulas as in disentanglement_lib).
Models of the same setting, trained with different seeds, encode the same images. For each pair, C holds how strongly
unit a of one model goes with unit b of the other:

- `spearman`: the magnitude of the rank correlation;
- `lasso`: the magnitude of the coefficients of a linear regression with an L1 penalty of 0.1, from the standardised
  units of the one to those of the other.

    pair score = (mean over columns of max^2 / sum + mean over rows of max^2 / sum) / 2

and the score of a model is the median of its pair scores. Constant units have no correlation and are left out. (The
paper leaves out units by their KL divergence from the prior, which only some methods have.)

Range: 0 to 1. Models that fail alike also agree, for example on the brightness of an image, and models with an
arbitrary but fixed order of principal components always do. Rank correlation misses folded units. It ranks models of
several runs, so it is no entry of METRICS, whose metrics score one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]  (it has no types)

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_codes, invalid_reason
from raydis.metrics.entry import Number
from raydis.metrics.probes import standardise

Correlation = Literal["spearman", "lasso"]
LASSO_PENALTY = 0.1
NUM_SAMPLES = 10_000
UDR = Number("udr", field="scores", short="udr", title="UDR")


@dataclass(frozen=True, eq=False)
class UdrResult:
    """The result of `udr`. It has numbers only if `status` is "valid".

    Attributes:
        scores: (R,), the score of each model.
        pairs: (R, R), the score of each pair, with 1 on the diagonal.
    """

    status: Status
    reason: str | None
    scores: NDArray[np.float64] | None = None
    pairs: NDArray[np.float64] | None = None


def udr(
    runs: Sequence[ArrayLike],
    *,
    rng: np.random.Generator,
    correlation: Correlation = "spearman",
    num_samples: int = NUM_SAMPLES,
) -> UdrResult:
    """Compute UDR of several models.

    Args:
        runs: at least two tables of codes (M, N). Row i of all must belong to the same image; N may differ.
        rng: draws the rows, with replacement.
        correlation: see above.
        num_samples: number of rows.

    Returns:
        The result, which is invalid and without numbers if the codes of a run are not finite or all constant.

    Raises:
        MetricError: fewer than two runs, tables of unequal length or that are no tables, or fewer than two samples.
    """
    if len(runs) < 2:
        raise MetricError(f"udr compares runs, found {len(runs)}: give the codes of at least two seeds")
    from scipy.stats import rankdata  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]  (slow)

    tables = [check_codes(codes) for codes in runs]
    if len(lengths := {len(codes) for codes in tables}) > 1:
        raise MetricError(f"runs of {sorted(lengths)} rows: row i of every run must be the codes of the same image")
    if num_samples < 2:
        raise MetricError(f"{num_samples=} must be at least 2")
    rows = rng.integers(len(tables[0]), size=num_samples)
    drawn = [codes[rows] for codes in tables]
    for number, codes in enumerate(drawn):
        if (reason := invalid_reason(codes)) is not None:
            return UdrResult("invalid", f"run {number}: {reason}")
    varying = [codes[:, (codes != codes[0]).any(axis=0)] for codes in drawn]
    if correlation == "spearman":
        varying = [np.asarray(rankdata(codes, axis=0), np.float64) for codes in varying]
    scaled = [standardise(codes, codes) for codes in varying]
    pairs = np.ones((len(runs), len(runs)))
    for a, first in enumerate(scaled):
        for b, second in enumerate(scaled):
            if a < b or (a != b and correlation == "lasso"):  # a regression has a direction, a correlation has none
                pairs[a, b] = pair_score(_strengths(first, second, correlation))
                if correlation == "spearman":
                    pairs[b, a] = pairs[a, b]
    others = ~np.eye(len(runs), dtype=bool)
    scores = np.array([np.median(pairs[a][others[a]]) for a in range(len(runs))])
    return UdrResult("valid", None, scores, pairs)


def pair_score(strengths: ArrayLike) -> float:
    """Return the score of a pair from C (N_a, N_b), whose entries lie in [0, 1] (coefficients above 1 count 1)."""
    strengths = np.minimum(np.asarray(strengths, np.float64), 1.0)
    sides: list[float] = []
    for axis in (0, 1):
        largest, total = strengths.max(axis=axis), strengths.sum(axis=axis)
        sides.append(float(np.divide(largest**2, total, out=np.zeros_like(total), where=total > 0).mean()))
    return sum(sides) / 2


def _strengths(
    first: NDArray[np.float64], second: NDArray[np.float64], correlation: Correlation
) -> NDArray[np.float64]:
    """Return C (N_a, N_b) of standardised codes, or ranks, (M, N_a) and (M, N_b)."""
    if correlation == "spearman":
        return np.abs(first.T @ second) / len(first)
    if correlation != "lasso":
        raise MetricError(f"unknown correlation {correlation!r}: use 'spearman' or 'lasso'")
    from sklearn.linear_model import Lasso  # pyright: ignore[reportMissingTypeStubs]  (scikit-learn has no types)

    with threadpool_limits(limits=1):
        model: Any = Lasso(alpha=LASSO_PENALTY)
        model.fit(first, second)
    return np.abs(np.asarray(model.coef_)).reshape(second.shape[1], -1).T
