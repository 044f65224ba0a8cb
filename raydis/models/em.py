"""Expectation maximisation for N full-covariance Gaussian mixtures at once, and the moves between its phases.

N mixtures (one a latent unit), S points each, d coordinates, K components, P = d (d + 1) / 2 + d features.
Points are (N, d, S), float64, centred. Every density uses covariance + ridge I.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-3  # of a mixture's points, whose variances sum to about 1; see raydis.models.mixture
_EMPTY = 1e-6  # soft count below which a component has no points
_SAME = 1e-24  # squared distance below which two points differ by rounding only
_CHUNK_FEATURES = {"cpu": 2**19, "cuda": 2**26}  # features held at a time: a level-2 cache; half a gigabyte


class State(NamedTuple):
    """N mixtures. A component is absent where its log-weight is -inf; its other entries are finite and unused."""

    log_weights: Tensor  # (N, K)
    means: Tensor  # (N, K, d)
    covariances: Tensor  # (N, K, d, d), without the ridge


def seed(points: Tensor, draws: Tensor) -> State:
    """k-means++ (Arthur and Vassilvitskii, 2007): each next seed is drawn with odds of its squared distance.

    Components start equally heavy and spherical, with the mean squared distance to the nearest seed as variance.

    Args:
        points: (N, d, S).
        draws: uniform in [0, 1), (N, K).

    Returns:
        K components a mixture, fewer where there are fewer distinct points.
    """
    dim, num_points = points.shape[1:]
    mixtures = torch.arange(len(points), device=points.device)
    nearest = torch.ones_like(points[:, 0])  # (N, S)
    means, distinct = [], []
    for draw in draws.unbind(1):
        odds = nearest.cumsum(1)
        chosen = torch.searchsorted(odds, (draw * odds[:, -1]).unsqueeze(1), right=True).clamp_max(num_points - 1)
        mean = points[mixtures, :, chosen.squeeze(1)]
        distinct.append(nearest.gather(1, chosen).squeeze(1) > _SAME)  # else it repeats an earlier seed
        distance = (points - mean.unsqueeze(-1)).square().sum(1)
        nearest = torch.minimum(nearest, distance) if means else distance
        means.append(mean)
    log_weights = torch.where(torch.stack(distinct, 1), 0.0, -math.inf).to(points.dtype).log_softmax(1)
    variance = nearest.mean(1)[:, None, None, None] / dim
    eye = torch.eye(dim, dtype=points.dtype, device=points.device)
    return State(log_weights, torch.stack(means, 1), (variance * eye).repeat(1, draws.shape[1], 1, 1))


def run_em(points: Tensor, state: State, num_steps: int, least_gain: float, trace: list[Tensor]) -> State:
    """At most num_steps EM steps; a mixture leaves the batch once a step gains it less than least_gain nats a point.

    Appends to the trace the mean log-density before each step, (N,); it repeats where a mixture had left.
    """
    state = State(*(part.clone() for part in state))
    latest = points.new_full(points.shape[:1], -math.inf)
    running = torch.arange(len(points), device=points.device)
    for _ in range(num_steps):
        counts, moments, log_density = e_step(points, State(*(part[running] for part in state)))
        for part, update in zip(state, m_step(counts, moments), strict=True):
            part[running] = update
        going = log_density - latest[running] >= least_gain
        latest[running] = log_density
        trace.append(latest.clone())
        if not going.all():
            running, points = running[going], points[going]
        if running.numel() == 0:
            break
    return state


def e_step(points: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
    """Expected sufficient statistics, without ever holding all responsibilities.

    A Gaussian's log-density is linear in the features (x_i x_j for i <= j, and x_i), and its moments are sums of the
    features weighted by responsibility: each half of an EM step is one matrix product with the features.

    Returns:
        counts (N, K), weighted sums of the features (N, K, P), mean log-density of a point (N,).
    """
    num_mixtures, dim, num_points = points.shape
    constant, coefficients = _natural_parameters(state)
    counts, total = torch.zeros_like(state.log_weights), points.new_zeros(num_mixtures)
    moments = torch.zeros_like(coefficients)
    num_features = coefficients.shape[-1]
    chunk = max(64, _CHUNK_FEATURES[points.device.type] // (num_mixtures * num_features))
    features = points.new_empty((num_mixtures, num_features, min(chunk, num_points)))
    for part in points.split(chunk, dim=-1):
        features = features[..., : part.shape[-1]]
        start = 0
        for i in range(dim):  # d products of rows: an index over pairs would gather, at ten times the cost
            torch.mul(part[:, i:], part[:, i : i + 1], out=features[:, start : start + dim - i])
            start += dim - i
        features[:, start:] = part
        joint = torch.baddbmm(constant.unsqueeze(-1), coefficients, features)  # (N, K, chunk)
        log_density = joint.logsumexp(1, keepdim=True)
        posterior = (joint - log_density).exp_()
        counts += posterior.sum(-1)
        moments.baddbmm_(posterior, features.mT)
        total += log_density.sum((1, 2))
    return counts, moments, total / num_points


def _natural_parameters(state: State) -> tuple[Tensor, Tensor]:
    """log(weight N(x; mean, covariance + ridge I)) as constant (N, K) + coefficients (N, K, P) . features(x)."""
    dim = state.means.shape[-1]
    eye = torch.eye(dim, dtype=state.means.dtype, device=state.means.device)
    cholesky = torch.linalg.cholesky(state.covariances + RIDGE * eye)
    precision = torch.cholesky_inverse(cholesky)
    linear = (precision @ state.means.unsqueeze(-1)).squeeze(-1)  # (N, K, d)
    rows, cols = torch.triu_indices(dim, dim, device=eye.device)
    quadratic = torch.where(rows == cols, -0.5, -1.0) * precision[..., rows, cols]
    log_det = 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    distance = (linear * state.means).sum(-1)
    constant = state.log_weights - 0.5 * (distance + log_det + dim * math.log(2 * math.pi))
    return constant, torch.cat([quadratic, linear], -1)


def m_step(counts: Tensor, moments: Tensor) -> State:
    """Weights, means and covariances of the weighted points. A component without points becomes absent."""
    dim = (math.isqrt(9 + 8 * moments.shape[-1]) - 3) // 2  # from P
    rows, cols = torch.triu_indices(dim, dim, device=moments.device)
    moments = moments / counts.clamp_min(_EMPTY).unsqueeze(-1)
    means = moments[..., -dim:]
    second = moments.new_empty((*counts.shape, dim, dim))
    second[..., rows, cols] = second[..., cols, rows] = moments[..., :-dim]
    log_weights = (counts / counts.sum(1, keepdim=True)).log().masked_fill(counts <= _EMPTY, -math.inf)
    return State(log_weights, means, second - means.unsqueeze(-1) * means.unsqueeze(-2))


def split_loose(state: State, spread: float | Tensor, max_components: int) -> tuple[State, int]:
    """Replace loose components, loosest first and while there is room, by the two halves of each.

    A Gaussian of variance v along its principal axis, cut there through its mean, has halves with means at
    +-sqrt(2 v / pi) and variance v (1 - 2 / pi): the mixture's mean and covariance stay what they were.

    Args:
        state: N mixtures.
        spread: root-mean-square distance to the mean, sqrt(trace covariance), above which a component is loose; a
            number, or one a mixture, (N, 1).
        max_components: bound on the components of a mixture.

    Returns:
        the mixtures, and how many components were split.
    """
    alive = state.log_weights.isfinite()
    spreads = state.covariances.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(0).sqrt()  # (N, K)
    loose = alive & (spreads > spread)
    rank = spreads.masked_fill(~loose, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    chosen = loose & (rank < max_components - alive.sum(1, keepdim=True))
    variances, axes = torch.linalg.eigh(state.covariances)
    shift = (2 / math.pi * variances[..., -1:].clamp_min(0)).sqrt() * axes[..., -1]
    shift = torch.where(chosen.unsqueeze(-1), shift, 0.0)  # (N, K, d)
    covariances = state.covariances - shift.unsqueeze(-1) * shift.unsqueeze(-2)
    log_weights = torch.where(chosen, state.log_weights - math.log(2), state.log_weights)
    children = State(
        torch.cat([log_weights, log_weights.masked_fill(~chosen, -math.inf)], 1),
        torch.cat([state.means - shift, state.means + shift], 1),
        torch.cat([covariances, covariances], 1),
    )
    return _compact(children, children.log_weights.isfinite()), int(chosen.sum())


def drop_small(points: Tensor, state: State, min_count: float) -> State:
    """Drop components whose soft count is below min_count, except the largest of a mixture."""
    counts, _, _ = e_step(points, state)
    return _compact(state, (counts >= min_count).scatter(1, counts.argmax(1, keepdim=True), True))


def _compact(state: State, keep: Tensor) -> State:
    """Move the components to keep, (N, K), to the front, cut K to the largest number of them, renormalise weights."""
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, : int(keep.sum(1).max())]
    mixtures = torch.arange(len(order), device=order.device).unsqueeze(1)
    state = State(*(part[mixtures, order] for part in state))
    return state._replace(log_weights=state.log_weights.masked_fill(~keep[mixtures, order], -math.inf).log_softmax(1))
