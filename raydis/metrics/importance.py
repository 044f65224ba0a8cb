"""The importance of each code for predicting a factor, which DCI needs. M samples, N codes.

`fit_factor` trains one of three classifiers and returns its feature importances:

- `reference`: scikit-learn's GradientBoostingClassifier with its defaults, as in disentanglement_lib and all published
  DCI values. It takes about 2.3 CPU-seconds for each level of the factor with 10,000 samples and 10 codes.
- `hist`: histogram-based gradient boosting with the same 100 stages of depth 3. The importance is the total gain of a
  code's splits. On synthetic codes from perfect to noise, D and C differ from `reference` by at most about 0.02, at a
  tenth of the cost or less. Of exact copies of a code it uses the first only, while `reference` chooses at random, so
  copies do not lower the completeness.
- `tree`: one decision tree of depth 10, which is even cheaper. It roughly keeps the order of models, but its values
  should not be published.

We measured and rejected two alternatives: split counts, and forests that see a random part of the codes at each split.
They give importance to pure noise, and a perfect representation scores 0.2 to 0.7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]  (it has no types)

from raydis.errors import MetricError

Estimator = Literal["reference", "hist", "tree"]


# Fits of one table by estimator and by the bytes of the training rows, the test rows and the seeds.
KnownFits = dict[tuple[str, bytes, bytes, bytes], "list[FactorFit]"]


@dataclass(frozen=True, eq=False)
class FactorFit:
    """The importance of each code (N,), non-negative with sum 1 (or all 0), and the accuracy on the test set."""

    importance: NDArray[np.float64]
    accuracy: float


def fit_factor(
    estimator: Estimator,
    train: tuple[NDArray[np.float64], NDArray[np.int64]],
    test: tuple[NDArray[np.float64], NDArray[np.int64]],
    *,
    seed: int,
) -> FactorFit:
    """Fit a classifier that predicts one factor from all codes.

    Args:
        train, test: codes (M, N) and levels (M,).
        seed: of the choice between equally good splits.

    Returns:
        The fit. If the training set has a single level, it is predicted always, and all importances are 0.

    Raises:
        MetricError: an unknown estimator, or a version of scikit-learn without the split gains that `hist` needs.
    """
    codes, levels = train
    if (levels == levels[0]).all():
        return FactorFit(np.zeros(len(codes[0])), float((test[1] == levels[0]).mean()))
    # The order in which OpenMP sums depends on the number of threads. With one thread, results are equal on every
    # machine, and processes do not compete for cores.
    with threadpool_limits(limits=1):
        model = _classifier(estimator, seed).fit(codes, levels)
        if estimator == "hist":
            importance = _total_gain(model, codes.shape[1])
        else:
            importance = np.asarray(model.feature_importances_)
        return FactorFit(importance, float(model.score(*test)))


def fit_factors(
    estimator: Estimator,
    codes: NDArray[np.float64],
    factors: NDArray[np.int64],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    seeds: NDArray[np.int64],
    *,
    num_jobs: int,
    known: KnownFits | None = None,
) -> list[FactorFit]:
    """Return one fit per factor, in order.

    Args:
        codes, factors: (M, N) and (M, F).
        train, test: rows of both.
        seeds: (F,), one for each factor.
        num_jobs: processes. The slowest fits (most levels) start first, so that no process ends alone.
        known: fits of the same codes and factors that were made before; those made now join them.
    """
    if known is not None:
        key = (estimator, train.tobytes(), test.tobytes(), seeds.tobytes())
        if key not in known:
            known[key] = fit_factors(estimator, codes, factors, train, test, seeds, num_jobs=num_jobs)
        return known[key]
    train_codes, test_codes = codes[train], codes[test]

    def fit(j: int, run: Callable[..., Any]) -> Any:
        return run(estimator, (train_codes, factors[train, j]), (test_codes, factors[test, j]), seed=int(seeds[j]))

    if num_jobs == 1:
        return [fit(j, fit_factor) for j in range(len(seeds))]
    from sklearn.utils import parallel as stubless  # pyright: ignore[reportMissingTypeStubs]  (scikit-learn has no types)

    library: Any = stubless

    longest_first = np.argsort([-len(np.unique(column)) for column in factors.T], kind="stable")
    # max_nbytes=None: pickle the few megabytes instead of sharing them in /dev/shm, which is small in containers.
    parallel = library.Parallel(n_jobs=num_jobs, backend="loky", max_nbytes=None)
    fits: list[FactorFit] = list(parallel(fit(j, library.delayed(fit_factor)) for j in longest_first))
    return [fits[place] for place in np.argsort(longest_first)]


def _classifier(estimator: Estimator, seed: int) -> Any:
    # These imports take seconds, for which a command that fits nothing should not wait.
    from sklearn.ensemble import (  # pyright: ignore[reportMissingTypeStubs]  (scikit-learn has no types)
        GradientBoostingClassifier,
        HistGradientBoostingClassifier,
    )
    from sklearn.tree import DecisionTreeClassifier  # pyright: ignore[reportMissingTypeStubs]  (scikit-learn has no types)

    match estimator:
        case "reference":
            return GradientBoostingClassifier(random_state=seed)
        case "hist":
            return HistGradientBoostingClassifier(
                max_iter=100,
                max_depth=3,
                learning_rate=0.1,
                min_samples_leaf=1,
                max_bins=255,
                early_stopping=False,  # pyright: ignore[reportArgumentType]  (the stub knows only its "auto")
                random_state=seed,
            )
        case "tree":
            return DecisionTreeClassifier(max_depth=10, random_state=seed)
        case _:
            raise MetricError(f"unknown DCI estimator {estimator!r}: use 'reference', 'hist' or 'tree'")


def _total_gain(model: Any, num_codes: int) -> NDArray[np.float64]:
    """Return the total gain of each code's splits, (N,) with sum 1, because histogram boosting has no importances."""
    try:
        nodes = np.concatenate([tree.nodes for stage in model._predictors for tree in stage])
        splits = nodes[nodes["is_leaf"] == 0]
        gain = np.bincount(splits["feature_idx"], weights=splits["gain"], minlength=num_codes)
    except (AttributeError, ValueError) as error:
        import sklearn  # pyright: ignore[reportMissingTypeStubs]  (scikit-learn has no types)

        raise MetricError(
            f"scikit-learn {sklearn.__version__} does not store split gains where version 1.9 does ({error}): "
            "use estimator='reference' or 'tree', or install scikit-learn 1.9"
        ) from error
    return gain / max(gain.sum(), np.finfo(np.float64).tiny)
