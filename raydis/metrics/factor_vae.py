"""The metric FactorVAE score. M samples, N codes, F factors.

Definition (Kim and Mnih, arXiv 1802.05983; procedure and sizes as in disentanglement_lib's factor_vae.py). All samples
of a batch have the same level of one factor. The code with the smallest variance in the batch, relative to its variance
over the data, votes for that factor. A majority vote maps each code to a factor, and the score is the accuracy of this
map on new votes.

Range: 1/F (chance) to 1. The score saturates: a code only needs to vary less than all other codes while a factor is
fixed, so entangled codes may reach 1. The pruning threshold refers to unscaled codes. Dividing all codes by a constant
may therefore prune them all, which `num_active` shows.
Cost: below a CPU-second at the published sizes on 480,000 rows of 10 codes (`python -m tests.benchmarks.metrics`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_table, constant_factors, invalid_reason
from raydis.metrics.sampling import LevelIndex

_CHUNK_ELEMENTS = 1 << 17  # 1 MiB of float64, which stays in the cache


@dataclass(frozen=True, eq=False)
class FactorVaeResult:
    """The result of `factor_vae`. It has numbers only if `status` is "valid".

    Attributes:
        constant_factors: columns of `factors` that never vary. They are never the fixed factor.
        num_active: number of codes that were not pruned.
        score: accuracy on new votes, which is the published number.
        train_accuracy: accuracy on the votes that determined the majority.
        votes: (F, N), training votes by fixed factor and winning code. Pruned codes have columns of zeros.
    """

    status: Status
    reason: str | None
    constant_factors: tuple[int, ...]
    num_active: int = 0
    score: float | None = None
    train_accuracy: float | None = None
    votes: NDArray[np.int64] | None = None


def factor_vae(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    rng: np.random.Generator,
    batch_size: int = 64,
    num_variance: int = 10_000,
    num_train: int = 10_000,
    num_eval: int = 5_000,
    prune_threshold: float = 0.05,
    index: LevelIndex | None = None,
) -> FactorVaeResult:
    """Compute the FactorVAE score of a table of codes (M, N) and integer factors (M, F), a full grid or a part of one.

    Args:
        rng: draws all samples, with replacement from the given rows.
        batch_size: samples per vote.
        num_variance: samples from which the global variance of each code is estimated.
        num_train: votes that determine the map from codes to factors.
        num_eval: votes that score the map.
        prune_threshold: codes with a smaller global standard deviation are left out. Constant codes always are.
        index: `LevelIndex.of(factors)`, if it is known already.

    Returns:
        The result, which is invalid and without a score if codes are not finite or all are pruned.
        (disentanglement_lib returns 0 in the latter case.)

    Raises:
        MetricError: a table that cannot be scored (see `check_table`), or sizes out of range.
    """
    codes, factors = check_table(codes, factors)
    if min(batch_size, num_variance) < 2 or min(num_train, num_eval) < 1:
        raise MetricError("factor_vae needs batch_size and num_variance >= 2, num_train and num_eval >= 1")
    constant = constant_factors(factors)
    reason = invalid_reason(codes)
    if reason is not None:
        return FactorVaeResult("invalid", reason, constant)

    variance = codes[rng.integers(len(codes), size=num_variance)].var(axis=0, ddof=1)  # (N,)
    active = (np.sqrt(variance) >= prune_threshold) & (variance > 0)
    if not active.any():
        reason = (
            f"every unit has a standard deviation below {prune_threshold}, the largest is "
            f"{np.sqrt(variance.max()):.3g}: the representation has collapsed, or its scale is too small"
        )
        return FactorVaeResult("invalid", reason, constant)

    index = LevelIndex.of(factors) if index is None else index
    votes: list[NDArray[np.int64]] = []
    for num_votes in (num_train, num_eval):
        fixed, rows = index.draw_fixed_factor(rng, num_batches=num_votes, batch_size=batch_size)
        winner = steadiest_codes(codes, rows, variance=variance, active=active)
        votes.append(count_votes(fixed, winner, num_factors=factors.shape[1], num_codes=codes.shape[1]))
    train_accuracy, score = majority_accuracy(votes[0], votes[1])
    return FactorVaeResult("valid", None, constant, int(active.sum()), score, train_accuracy, votes[0])


def steadiest_codes(
    codes: NDArray[np.float64],
    rows: NDArray[np.integer],
    *,
    variance: NDArray[np.float64],
    active: NDArray[np.bool_],
) -> NDArray[np.intp]:
    """Return the active code with the smallest ratio of local to global variance in each batch.

    Args:
        codes: (M, N).
        rows: (num_batches, batch_size), indices into codes.
        variance: (N,), global variance, positive where active.
        active: (N,).

    Returns:
        (num_batches,), indices of codes. Of equal codes, the first wins.
    """
    winner = np.empty(len(rows), np.intp)
    size = max(1, _CHUNK_ELEMENTS // (rows.shape[1] * codes.shape[1]))
    for start in range(0, len(rows), size):
        local = codes[rows[start : start + size]].var(axis=1, ddof=1)  # (size, N)
        ratio = np.divide(local, variance, out=np.full_like(local, np.inf), where=active)
        winner[start : start + size] = ratio.argmin(axis=1)
    return winner


def count_votes(
    fixed: NDArray[np.int64], winner: NDArray[np.intp], *, num_factors: int, num_codes: int
) -> NDArray[np.int64]:
    """Return votes (F, N): how often code n won a batch in which factor k was fixed."""
    return np.bincount(fixed * num_codes + winner, minlength=num_factors * num_codes).reshape(num_factors, num_codes)


def majority_accuracy(train: NDArray[np.int64], evaluation: NDArray[np.int64]) -> tuple[float, float]:
    """Map each code to the factor it won most often; return the accuracy on training and on evaluation votes (F, N).

    Tables without a vote score 0, which is disentanglement_lib's value when every code is pruned.
    """
    factor_of_code = train.argmax(axis=0)  # (N,)

    def accuracy(votes: NDArray[np.int64]) -> float:
        return float(votes[factor_of_code, np.arange(votes.shape[1])].sum() / max(votes.sum(), 1))

    return accuracy(train), accuracy(evaluation)
