"""The metric DCI-ES: explicitness and size, which complete DCI. N codes, F factors.

Definition (Eastwood et al., arXiv 2210.00364). Probes of growing capacity predict each factor from all codes. With l(c)
the smallest test loss of a probe of capacity at most c, capacities from a to b, and the loss l0 of the best constant
guess:

    E = mean over factors of 1 - 2 area / ((b - a) l0), area = integral from a to b of l(c) - l(b)
    S = F / N, at most 1

As in their code for trees, a probe is a decision tree and its capacity its depth (1 to 32); the loss is 1 - accuracy,
and l0 = (K - 1) / K for a factor of K levels. Here one tree a factor is grown to the largest depth and cut at the
others, which is a tree of that depth wherever the best split is unique, at a twelfth of the cost.

Range: E lies in [-1, 1]. It is 1 if the simplest probe is as good as the largest, 0 if the loss falls along a straight
line. It says how easily codes are read, not how much they hold: pure noise scores 1 or a little less, because no depth
helps. Read it together with informativeness. S, in (0, 1], is a fact about the table, not about what the codes hold:
spare units lower it. Cost with 10 codes and 57 levels: about a CPU-second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.checks import Status, check_table, constant_factors, invalid_reason, varying_factors

DEPTHS = (1, 2, 3, 4, 8, 10, 12, 14, 16, 18, 20, 32)


@dataclass(frozen=True, eq=False)
class DciEsResult:
    """The result of `dci_es`. It has numbers only if `status` is "valid".

    Attributes:
        constant_factors: columns of `factors` that never vary. They are left out, also of S.
        explicitness: E.
        size: S.
        losses: test loss (F, number of depths) of each factor at each of DEPTHS; 0 for constant factors.
    """

    status: Status
    reason: str | None
    constant_factors: tuple[int, ...]
    explicitness: float | None = None
    size: float | None = None
    losses: NDArray[np.float64] | None = None


def dci_es(
    codes: ArrayLike, factors: ArrayLike, *, rng: np.random.Generator, num_train: int = 10_000, num_test: int = 5_000
) -> DciEsResult:
    """Compute explicitness and size of codes (M, N) and integer factors (M, F).

    Args:
        rng: draws the training and the test rows, independently and with replacement, and one seed per factor.
        num_train: rows to which the trees are fitted.
        num_test: rows on which their loss is measured.

    Returns:
        The result, which is invalid and without numbers if codes are not finite or all are constant.

    Raises:
        MetricError: a table that cannot be scored (see `check_table`), or sizes below 1.
    """
    codes, factors = check_table(codes, factors)
    if min(num_train, num_test) < 1:
        raise MetricError(f"{num_train=} and {num_test=} must each be at least 1")
    constant, varying = constant_factors(factors), varying_factors(factors)
    if (reason := invalid_reason(codes)) is not None:
        return DciEsResult("invalid", reason, constant)
    train, test = (rng.integers(len(codes), size=size) for size in (num_train, num_test))
    seeds: NDArray[np.int64] = rng.integers(2**31, size=len(factors[0]))
    losses, found = np.zeros((factors.shape[1], len(DEPTHS))), list[float]()
    train_codes, test_codes = codes[train], codes[test]
    for j in varying:
        losses[j] = loss_curve((train_codes, factors[train, j]), (test_codes, factors[test, j]), seed=int(seeds[j]))
        found.append(explicitness(losses[j], baseline=1 - 1 / len(np.unique(factors[:, j]))))
    size = min(len(varying) / codes.shape[1], 1.0)
    return DciEsResult("valid", None, constant, float(np.mean(found)), size, losses)


def loss_curve(
    train: tuple[NDArray[np.float64], NDArray[np.int64]],
    test: tuple[NDArray[np.float64], NDArray[np.int64]],
    *,
    seed: int,
) -> NDArray[np.float64]:
    """Return 1 - accuracy on the test set of one tree, cut at each of DEPTHS: (number of depths,).

    Args:
        train, test: codes (M, N) and levels (M,).
        seed: of the choice between equally good splits.
    """
    from sklearn.tree import DecisionTreeClassifier  # pyright: ignore[reportMissingTypeStubs]  (scikit-learn has no types)

    (codes, levels), (test_codes, expected) = train, test
    model: Any = DecisionTreeClassifier(max_depth=DEPTHS[-1], random_state=seed)
    model.fit(codes, levels)  # on one thread always
    tree = model.tree_
    left, right, feature, threshold = (
        np.asarray(each) for each in (tree.children_left, tree.children_right, tree.feature, tree.threshold)
    )
    guess = np.asarray(model.classes_)[np.asarray(tree.value)[:, 0].argmax(axis=1)]  # (number of nodes,)
    served, rows = test_codes.astype(np.float32), np.arange(len(test_codes))  # trees compare in float32
    node, losses = np.zeros(len(rows), np.intp), list[float]()
    for depth in range(1, DEPTHS[-1] + 1):
        inner = left[node] >= 0
        goes_left = served[rows, np.maximum(feature[node], 0)] <= threshold[node]
        node = np.where(inner, np.where(goes_left, left[node], right[node]), node)
        if depth in DEPTHS:
            losses.append(float((guess[node] != expected).mean()))
    return np.array(losses)


def explicitness(losses: ArrayLike, *, baseline: float) -> float:
    """Return E of one factor, from the losses at each of DEPTHS and that of the best constant guess."""
    best = np.minimum.accumulate(np.asarray(losses, np.float64))
    depths = np.array(DEPTHS, np.float64)
    excess = best - best[-1]
    area = float(((excess[1:] + excess[:-1]) / 2 * np.diff(depths)).sum())
    return max(1.0 - 2.0 * area / ((depths[-1] - depths[0]) * baseline), -1.0)
