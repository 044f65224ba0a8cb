"""Expectation maximisation (EM) for N full-covariance Gaussian mixtures at once, with splitting and dropping.

N mixtures (one for each latent unit), S points each, d coordinates, K components, P = d (d + 1) / 2 + d features.
Points are (N, d, S), float64 and centred. Every density uses covariance + ridge I.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-3  # for points whose variances sum to about 1; raydis.models.mixture gives the reason
_EMPTY = 1e-6  # soft count below which a component has no points
_SAME = 1e-24  # squared distance below which two points differ by rounding only
_CHUNK_FEATURES = {"cpu": 2**19, "cuda": 2**26}  # numbers held at a time: they fill a level-2 cache, or half a gigabyte


class State(NamedTuple):
    """N mixtures. A component is absent where its log-weight is -inf; its other entries are finite and unused."""

    log_weights: Tensor  # (N, K)
    means: Tensor  # (N, K, d)
    covariances: Tensor  # (N, K, d, d), without the ridge


def seed(points: Tensor, draws: Tensor) -> State:
    """Draw the first means by k-means++ (Arthur and Vassilvitskii, 2007).

    Each further seed is a point drawn with a probability proportional to its squared distance to the nearest seed.
    Components start with equal weights and spherical, with the mean squared distance to the nearest seed as variance.

    Args:
        points: (N, d, S).
        draws: uniform in [0, 1), (N, K).

    Returns:
        K components for each mixture, fewer where there are fewer distinct points.
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


def run_phases(
    points: Tensor,
    state: State,
    *,
    max_components: int,
    num_splits: int,
    split_spread: float | Tensor,
    min_count: float,
    num_steps: int,
    least_gain: float,
) -> tuple[State, Tensor]:
    """Run EM, split loose components round by round, drop small ones, and run EM again.

    Args:
        points: (N, d, S).
        state: the mixtures to start from.
        max_components, split_spread: see `split_loose`.
        num_splits: most rounds of splitting, with one EM step after each.
        min_count: see `drop_small`.
        num_steps, least_gain: see `run_em`; before the splits, and again after them.

    Returns:
        the fitted mixtures, and the mean log-density of a point before each of T EM steps, (T, N).
    """
    trace: list[Tensor] = []
    state = run_em(points, state, num_steps, least_gain, trace)
    for _ in range(num_splits):
        state, num_split = split_loose(state, split_spread, max_components)
        if num_split == 0:
            break
        state = run_em(points, state, 1, least_gain, trace)
    state = run_em(points, drop_small(points, state, min_count), num_steps, least_gain, trace)
    # The last step sees only components that stay, so their counts are above the bound and their moments are exact.
    state = run_em(points, drop_small(points, state, min_count), 1, least_gain, trace)
    return state, torch.stack(trace)


def run_em(points: Tensor, state: State, num_steps: int, least_gain: float, trace: list[Tensor]) -> State:
    """Make at most num_steps EM steps, for each mixture until a step gains less than least_gain nats a point.

    Append to the trace the mean log-density before each step, (N,). It repeats for a mixture that has stopped.
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
    """Return the expected sufficient statistics, without holding the responsibilities of all points at once.

    A Gaussian's log-density is linear in the features (x_i x_j for i <= j, and x_i), and its moments are sums of the
    features weighted by responsibility. Each half of an EM step is therefore one matrix product with the features.

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
        for i in range(dim):  # d products of rows: indexing the pairs would copy rows, at ten times the cost
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
    """Write log(weight N(x; mean, covariance + ridge I)) as constant (N, K) + coefficients (N, K, P) . features(x)."""
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
    """Return the mixtures with the moments of the weighted points. A component without points becomes absent."""
    dim = (math.isqrt(9 + 8 * moments.shape[-1]) - 3) // 2  # from P
    rows, cols = torch.triu_indices(dim, dim, device=moments.device)
    moments = moments / counts.clamp_min(_EMPTY).unsqueeze(-1)
    means = moments[..., -dim:]
    second = moments.new_empty((*counts.shape, dim, dim))
    second[..., rows, cols] = second[..., cols, rows] = moments[..., :-dim]
    log_weights = (counts / counts.sum(1, keepdim=True)).log().masked_fill(counts <= _EMPTY, -math.inf)
    return State(log_weights, means, second - means.unsqueeze(-1) * means.unsqueeze(-2))


def split_loose(state: State, spread: float | Tensor, max_components: int) -> tuple[State, int]:
    """Replace each loose component by its two halves, the loosest first, as long as there is room.

    A Gaussian of variance v along its principal axis, cut through its mean across that axis, has halves with means at
    +-sqrt(2 v / pi) and variance v (1 - 2 / pi). The mean and covariance of the mixture stay the same.

    Args:
        state: N mixtures.
        spread: root-mean-square distance to the mean, sqrt(trace covariance), above which a component is loose; one
            number for all mixtures, or (N, 1).
        max_components: largest number of components of a mixture.

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
    """Keep the components marked in `keep` (N, K): move them to the front, shorten K, and renormalise the weights."""
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, : int(keep.sum(1).max())]
    mixtures = torch.arange(len(order), device=order.device).unsqueeze(1)
    state = State(*(part[mixtures, order] for part in state))
    return state._replace(log_weights=state.log_weights.masked_fill(~keep[mixtures, order], -math.inf).log_softmax(1))
