"""Hessian eigenmaps (Donoho and Grimes, PNAS 2003): coordinates of points on a curved surface that can be unrolled.

M points, P values of a point, k neighbours of a point, d dimensions of the surface.

If the points are the image of a connected, open part of R^d under a locally isometric map, these coordinates are those
of R^d, up to an invertible linear map. Only functions that are linear in them have a Hessian of zero everywhere. A
quadratic form measures the mean squared Hessian of a function that is given by its values at the points. Its null space
consists of the linear functions: the constants, and d more.

The steps are those of scikit-learn's `LocallyLinearEmbedding(method="hessian")`, with two differences. The work for all
points is done at once, in chunks that bound the memory. Points whose values the quadratic form does not restrict are
left out, because the indicator of such a point is a further null vector, which ruins the coordinates of all points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackError, LinearOperator, SuperLU, eigsh, splu
from sklearn.neighbors import NearestNeighbors

from raydis.errors import FitError

LEAST_KEPT = 0.9  # share of the points that must remain after pruning
TRIPLETS_AT_ONCE = 1 << 22  # 64 MiB: a triplet of the sparse matrix takes 16 bytes
SHIFT = 1e-8  # of the eigenvalues, relative to the mean of the diagonal: the shifted matrix is positive definite
TOLERANCE = 1e-8  # of the eigenvalues

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Embedding:
    """The coordinates of points on a surface.

    Attributes:
        coordinates: (K, d), of the K points that were kept: mean 0, and orthonormal columns multiplied by sqrt(K).
        kept: (K,), rising indices of these points.
        eigenvalues: (d + 2,), the smallest of the quadratic form, rising. The first d + 1 are those of the constants
            and of the coordinates, and the last one that of the first function which is not linear.
        num_components: number of connected components of the neighbourhood graph before pruning.
    """

    coordinates: Floats
    kept: Indices
    eigenvalues: Floats
    num_components: int

    @property
    def gap(self) -> float:
        """The last eigenvalue divided by the one before it: how clearly the spectrum separates d dimensions."""
        before, after = np.abs(self.eigenvalues[-2:])
        return float(after / max(before, np.finfo(float).tiny))


def least_neighbors(num_dims: int) -> int:
    """Return the smallest number of neighbours that determine a Hessian in d dimensions, d (d + 3) / 2 + 1."""
    return num_dims * (num_dims + 3) // 2 + 1


def embed(points: Floats, num_dims: int, num_neighbors: int, rng: np.random.Generator) -> Embedding:
    """Compute the coordinates of points (M, P) on a surface of d = `num_dims` dimensions.

    Args:
        num_neighbors: k.
        rng: draws the start vector of the eigenvalue solver.

    Raises:
        FitError: too few neighbours for d, fewer points than neighbours, a neighbourhood graph of which no component
            holds nearly all points, or eigenvalues that do not converge.
    """
    least = least_neighbors(num_dims)
    if num_neighbors < least:
        raise FitError(
            f"{num_neighbors} neighbours cannot determine a Hessian in {num_dims} dimensions: take at least {least} "
            "(method.num_neighbors), or fewer dimensions (method.num_units)"
        )
    kept, neighbors, num_components = prune(points, num_dims, num_neighbors)
    matrix = hessian_form(points[kept], neighbors, num_dims)
    eigenvalues, vectors = smallest_eigenvectors(matrix, num_dims + 2, rng)
    return Embedding(without_constant(vectors[:, :-1]), kept, eigenvalues, num_components)


def prune(points: Floats, num_dims: int, num_neighbors: int) -> tuple[Indices, Indices, int]:
    """Leave out points that fewer than d + 1 points have as a neighbour, and all but the largest connected component.

    This is repeated until no further point is left out, because the neighbours of the others change.

    Returns:
        the indices (K,) of the points that are kept, their neighbours (K, k) as positions in these indices, and the
        number of components of the graph of all points.

    Raises:
        FitError: fewer points than neighbours, or more than a tenth of the points would be left out.
    """
    kept, num_components = np.arange(len(points)), 0
    while True:
        if len(kept) <= num_neighbors:
            raise FitError(
                f"{len(kept)} different images are too few for {num_neighbors} neighbours of each: give more images, "
                "or lower method.num_neighbors"
            )
        neighbors = _neighbors(points[kept], num_neighbors)
        graph = sparse.csr_array(
            (np.ones(neighbors.size, np.int8), neighbors.ravel(), np.arange(0, neighbors.size + 1, num_neighbors)),
            shape=(len(kept), len(kept)),
        )
        found, labels = connected_components(graph, directed=False)
        num_components = num_components or int(found)
        in_degrees = np.bincount(neighbors.ravel(), minlength=len(kept))
        keep = (in_degrees > num_dims) & (labels == np.bincount(labels).argmax())
        if keep.all():
            return kept, neighbors, num_components
        kept = kept[keep]
        if len(kept) < LEAST_KEPT * len(points):
            raise FitError(
                f"the neighbourhood graph of {len(points)} images has {num_components} components and leaves "
                f"{len(kept)} images in one piece: raise method.num_neighbors, give more images, or choose data whose "
                "factors are all continuous"
            )


def hessian_form(points: Floats, neighbors: Indices, num_dims: int) -> sparse.csc_array:
    """Return the quadratic form of the squared Hessian as a symmetric, positive semidefinite matrix (M, M).

    Args:
        points: (M, P).
        neighbors: (M, k), the indices of the neighbours of each point. The point itself is not among them.
    """
    num_points, num_neighbors = neighbors.shape
    matrix = sparse.csc_array((num_points, num_points))
    at_once = max(TRIPLETS_AT_ONCE // num_neighbors**2, 1)
    for first in range(0, num_points, at_once):
        chunk = neighbors[first : first + at_once]
        estimators = local_hessians(points[chunk], num_dims)
        blocks = estimators @ estimators.transpose(0, 2, 1)
        rows = np.broadcast_to(chunk[:, :, None], blocks.shape).astype(np.int32).ravel()
        columns = np.broadcast_to(chunk[:, None, :], blocks.shape).astype(np.int32).ravel()
        matrix = matrix + sparse.coo_array((blocks.ravel(), (rows, columns)), shape=matrix.shape).tocsc()
    return matrix


def local_hessians(patches: Floats, num_dims: int) -> Floats:
    """Return the estimators of the Hessian on each patch: (B, k, P) points -> (B, k, d (d + 1) / 2), orthonormal.

    The columns are orthogonal to all functions that are linear in the d main directions of the patch.
    """
    patches = patches - patches.mean(1, keepdims=True)
    num_neighbors, num_values = patches.shape[1:]
    if num_neighbors <= num_values:
        tangent = np.linalg.eigh(patches @ patches.transpose(0, 2, 1))[1][:, :, -num_dims:]
    else:
        axes = np.linalg.eigh(patches.transpose(0, 2, 1) @ patches)[1][:, :, -num_dims:]
        tangent = patches @ axes
        tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), np.finfo(float).tiny)
    one, two = np.triu_indices(num_dims)
    columns = np.concatenate([np.ones_like(tangent[:, :, :1]), tangent, tangent[:, :, one] * tangent[:, :, two]], 2)
    return np.linalg.qr(columns)[0][:, :, num_dims + 1 :]


def smallest_eigenvectors(matrix: sparse.csc_array, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return the `count` smallest eigenvalues, rising, of a positive semidefinite matrix, and their vectors (M, count).

    The solver inverts the matrix. A tiny negative shift makes it regular, and the order of the elimination that is
    meant for symmetric matrices keeps its factors sparse.

    Raises:
        FitError: the matrix cannot be factorised, or the solver does not converge.
    """
    shift = SHIFT * float(matrix.diagonal().mean())
    size = len(matrix.diagonal())
    try:
        factors = splu(
            sparse.csc_matrix(matrix + shift * sparse.eye_array(size, format="csc")),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        values, vectors = eigsh(
            matrix,
            count,
            sigma=-shift,
            OPinv=_Inverse(factors, size),
            tol=TOLERANCE,  # pyright: ignore[reportArgumentType]  (the default is the int 0)
            v0=rng.normal(size=size),
        )
    except (ArpackError, RuntimeError) as error:
        raise FitError(
            f"the eigenvectors of the Hessian of {size} images do not converge ({error}): raise method.num_neighbors, "
            "or change method.fit_images"
        ) from error
    order = np.argsort(values)
    return values[order], vectors[:, order]


def without_constant(vectors: Floats) -> Floats:
    """Return what is left of the space of vectors (M, d + 1), orthonormal, without the constants: (M, d) * sqrt(M).

    An eigenvalue solver may return any basis of the null space, so none of its vectors need be the constant one.
    """
    constant = vectors.sum(0) / math.sqrt(len(vectors))  # the constant unit vector in the basis of the vectors
    basis = np.linalg.svd(constant[None])[2][1:]  # orthogonal to it
    coordinates = vectors @ basis.T
    return (coordinates - coordinates.mean(0)) * math.sqrt(len(vectors))


class _Inverse(LinearOperator):
    """The inverse of a factorised matrix (M, M)."""

    def __init__(self, factors: SuperLU, size: int) -> None:
        super().__init__(np.dtype(np.float64), (size, size))
        self.factors = factors

    def _matvec(self, x: Floats) -> Floats:
        return self.factors.solve(x)


def _neighbors(points: Floats, count: int) -> Indices:
    """Return the indices (M, count) of the nearest other points of each point."""
    return NearestNeighbors(n_neighbors=count).fit(points).kneighbors(return_distance=False)
