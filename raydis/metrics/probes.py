"""Linear classifiers that several metrics fit to codes. M samples, N codes, K levels.

Metrics fit within `one_thread`, because the order in which a library sums depends on the number of threads. Fits stop
at the number of iterations that the published evaluations allow, converged or not, without a warning: a separable
factor has no finite optimum without regularisation.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]  (it has no types)


def one_thread() -> AbstractContextManager[Any]:
    """Return a context in which the numerical libraries use one thread. Entering it takes a few milliseconds."""
    return threadpool_limits(limits=1)


def fit_logistic(
    codes: NDArray[np.float64], levels: NDArray[np.int64], *, regularised: bool = True, balanced: bool = False
) -> Any:
    """Fit scikit-learn's multinomial logistic regression (L-BFGS, 100 iterations) to codes (M, N) and levels (M,).

    Args:
        regularised: the library's default, an L2 penalty with C = 1; otherwise none.
        balanced: weight each row by the inverse frequency of its level.

    Returns:
        The fitted model. `levels` must have at least two values.
    """
    from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]  (no types)

    model: Any = LogisticRegression(
        C=1.0 if regularised else np.inf, class_weight="balanced" if balanced else None, max_iter=100
    )
    return _fit(model, codes, levels)


def fit_linear_svc(codes: NDArray[np.float64], levels: NDArray[np.int64]) -> Any:
    """Fit a linear support vector classifier with C = 0.01 and balanced classes to codes (M, N) and levels (M,)."""
    from sklearn.svm import LinearSVC  # pyright: ignore[reportMissingTypeStubs]  (scikit-learn has no types)

    return _fit(LinearSVC(C=0.01, class_weight="balanced"), codes, levels)


def _fit(model: Any, codes: NDArray[np.float64], levels: NDArray[np.int64]) -> Any:
    from sklearn.exceptions import ConvergenceWarning  # pyright: ignore[reportMissingTypeStubs]  (no types)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(codes, levels)


def standardise(codes: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return codes (M, N) minus the mean and over the standard deviation of the reference's columns.

    A column that is constant in the reference is only centred.
    """
    deviation = reference.std(axis=0)
    return (codes - reference.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)


def area_under_roc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the area under the ROC curve of each column of scores, by ranks; ties count half.

    Args:
        scores: (M, K).
        positive: (M,) for all columns, or (M, K). Every column must have positive and negative rows.

    Returns:
        (K,), in [0, 1]; 0.5 by chance.
    """
    from scipy.stats import rankdata  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]  (slow)

    positive = np.broadcast_to(positive.reshape(len(scores), -1), scores.shape)
    ranks: NDArray[np.float64] = np.asarray(rankdata(scores, axis=0), np.float64)
    num_positive = positive.sum(axis=0)
    above = np.where(positive, ranks, 0.0).sum(axis=0) - num_positive * (num_positive + 1) / 2
    return above / (num_positive * (len(scores) - num_positive))
