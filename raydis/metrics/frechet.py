"""The Fréchet distance between two sets of features, of which FID is the best known. M samples, D features.

Definition (Heusel et al., arXiv 1706.08500): of the Gaussians with the means m and covariances C (divisor M - 1) of
both sets,

    d = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))

FID is d for the features of an Inception network, which raydis does not contain: the user supplies its file (see
`raydis.engine.fid`). Values depend on the network, on how images are resized, and on the number of samples: they are
too high for few samples, and only values of equal numbers can be compared. Published values use 50,000.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError


def frechet_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Return the squared Fréchet distance between features (M_1, D) and (M_2, D). It is not negative.

    Raises:
        MetricError: tables that do not hold finite numbers, with fewer than two rows, or of unequal width.
    """
    tables = [np.asarray(each, np.float64) for each in (first, second)]
    for table in tables:
        if table.ndim != 2 or len(table) < 2 or not np.isfinite(table).all():
            raise MetricError(f"features of shape {table.shape} are no table of at least two rows of finite numbers")
    if tables[0].shape[1] != tables[1].shape[1]:
        raise MetricError(f"{tables[0].shape[1]} and {tables[1].shape[1]} features: use the same network for both sets")
    (mean, covariance), (other_mean, other_covariance) = [(each.mean(axis=0), _covariance(each)) for each in tables]
    # (C_1 C_2)^(1/2) and (C_1^(1/2) C_2 C_1^(1/2))^(1/2) have the same trace, and the latter has real eigenvalues.
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    products = np.maximum(np.linalg.eigvalsh(root @ other_covariance @ root), 0.0)
    traces = np.trace(covariance) + np.trace(other_covariance) - 2.0 * np.sqrt(products).sum()
    return max(float(np.square(mean - other_mean).sum() + traces), 0.0)


def _covariance(table: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = table - table.mean(axis=0)
    return centred.T @ centred / (len(table) - 1)
