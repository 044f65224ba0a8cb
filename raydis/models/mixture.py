"""Gaussian mixtures of the latent units' tokens, fitted for all units at once.

S samples, B batch, N units, D unit width, K components, d principal axes kept, P = d (d + 1) / 2 + d features.

Dynamic Gaussian Anchoring (DyGA+SD, arXiv 2410.23820) fits one full-covariance mixture a unit: initialise, EM, split
loose components, drop small ones, EM again. The paper's equations are followed as far as its released code shows them:
normalisation by the unit's own extremes, covariance + 1e-6 I, and that order of phases. Differences, each where the
release fails or depends on chance:

- Seeds are drawn by k-means++ instead of uniformly, and start from the seeds' quantisation error instead of the
  identity, which is wider than the data ([-1, 0] in every coordinate) and makes all components alike.
- EM stops once a unit gains less than 0.01 nats a token; empty components are dropped.
- A split cuts a Gaussian through its mean across its principal axis and keeps its moments: the children share the
  parent's weight. Which components split is decided by their spread alone, and never more than there is room for.
- A unit without a usable mixture (see `Mixtures.reasons`) is reported and left out; it does not end the fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_RIDGE = 1e-6  # added to every covariance, and to the range when normalising, as released
_TOLERANCE = 1e-2  # nats a token that an EM step must gain for the next one to run
_EMPTY = 1e-6  # soft count below which a component has no tokens
_DROPPED = 1e-3  # share of the ridge that the variance outside the kept principal axes may reach
_CHUNK_FEATURES = {"cpu": 2**19, "cuda": 2**26}  # features held at a time: a level-2 cache; half a gigabyte


@dataclass(frozen=True, eq=False)
class Mixtures:
    """One mixture a unit, padded to K = max_gaussians, in coordinates (token - offset) / scale, which lie in [-1, 0].

    Attributes:
        offset, scale: (N,), largest entry of the unit's tokens, and their range + 1e-6; 0 and 1 where inactive.
        log_weights: (N, K), -inf where there is no component.
        means: (N, K, D), 0 where there is no component.
        precision_cholesky: (N, K, D, D), W = L^-1 for covariance + 1e-6 I = L L^T, so W^T W is the precision; identity
            where there is no component.
        alive: (N, K), which components exist.
        active: (N,), which units have a mixture.
        log_likelihood: (T, N), mean log-density of a token at every E-step; rows repeat where a unit had converged, and
            a split or a dropped component may lower it. 0 where inactive.
        reasons: per unit "" or why it is inactive: "collapsed" (the variance of its normalised tokens is not above the
            ridge), "non-finite" or "too few samples" (fewer than 2).
    """

    offset: Tensor
    scale: Tensor
    log_weights: Tensor
    means: Tensor
    precision_cholesky: Tensor
    alive: Tensor
    active: Tensor
    log_likelihood: Tensor
    reasons: tuple[str, ...]


class _State(NamedTuple):
    """Mixtures during the fit, in centred principal coordinates; a component is absent where its log-weight is -inf."""

    log_weights: Tensor  # (N, K)
    means: Tensor  # (N, K, d)
    covariances: Tensor  # (N, K, d, d), without the ridge


def joint_log_density(normalised: Tensor, log_weights: Tensor, means: Tensor, precision_cholesky: Tensor) -> Tensor:
    """log(weight_k N(x; mean_k, covariance_k)) of every component: (B, N, D) -> (B, N, K), -inf where there is none."""
    unit_dim = means.shape[-1]
    # Both terms of W x - W mean are kept small, for float32, by taking them about the mixture's own mean.
    centre = (log_weights.exp().unsqueeze(-1) * means).sum(1, keepdim=True)  # (N, 1, D)
    bias = -torch.einsum("nkij,nkj->nki", precision_cholesky, means - centre).flatten(1).unsqueeze(1)  # (N, 1, K*D)
    points = normalised.transpose(0, 1) - centre  # (N, B, D)
    whitened = torch.baddbmm(bias, points, precision_cholesky.flatten(1, 2).mT)  # (N, B, K*D)
    distance = whitened.unflatten(-1, means.shape[1:]).square().sum(-1)  # (N, B, K)
    log_det = precision_cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (N, K)
    constant = log_weights + log_det - 0.5 * unit_dim * math.log(2 * math.pi)
    return (constant.unsqueeze(1) - 0.5 * distance).transpose(0, 1)


def _joint(normalised: Tensor, mixtures: Mixtures) -> Tensor:
    return joint_log_density(normalised, mixtures.log_weights, mixtures.means, mixtures.precision_cholesky)


def responsibilities(normalised: Tensor, mixtures: Mixtures) -> Tensor:
    """Posterior of the components given normalised tokens: (B, N, D) -> (B, N, K); zeros where a unit is inactive."""
    return torch.where(mixtures.active[:, None], _joint(normalised, mixtures).softmax(-1), 0.0)


def log_density(normalised: Tensor, mixtures: Mixtures) -> Tensor:
    """Log-density of normalised tokens, nats: (B, N, D) -> (B, N); 0 where a unit is inactive."""
    return torch.where(mixtures.active, _joint(normalised, mixtures).logsumexp(-1), 0.0)


@torch.no_grad()
def fit_mixtures(
    tokens: Tensor,
    *,
    num_gaussians: int,
    max_gaussians: int,
    num_splits: int,
    split_spread: float,
    min_count: float,
    em_steps: int,
    generator: torch.Generator,
) -> Mixtures:
    """Fit one mixture a unit. A unit's result depends on its own tokens and the generator, not on other units.

    The arithmetic is float64. Tokens of a unit lie on a curve, so EM runs on the principal axes outside of which every
    unit has a variance below 1e-3 of the ridge; the mixtures returned live in all D coordinates.

    Args:
        tokens: (S, N, D).
        num_gaussians: components to start from, fewer where there are fewer distinct tokens.
        max_gaussians: bound on the components of a unit, and the width K of the result.
        num_splits: rounds of splitting; a round splits the loosest components for which there is room.
        split_spread: root-mean-square distance to its mean, normalised tokens, above which a component is loose.
        min_count: soft count below which a component is dropped; a unit's largest component always stays.
        em_steps: most EM steps before the splits, and again after them.
        generator: draws the seeds; its device may differ from the tokens'.

    Returns:
        Mixtures of the tokens' dtype (float32 for half precision).

    Raises:
        ValueError: an argument is out of range.
    """
    if tokens.ndim != 3:
        raise ValueError(f"tokens must have shape (S, N, D), found {tuple(tokens.shape)}")
    if not 1 <= num_gaussians <= max_gaussians:
        raise ValueError(f"num_gaussians={num_gaussians} must lie in 1..max_gaussians={max_gaussians}")
    if em_steps < 1 or min_count < 1:
        raise ValueError(f"em_steps={em_steps} and min_count={min_count} must be at least 1")
    num_samples, num_units, _ = tokens.shape
    draws = torch.rand(
        (num_units, min(num_gaussians, num_samples)), generator=generator, device=generator.device, dtype=torch.float64
    ).to(tokens.device)
    if num_samples < 2:
        return _pad(tokens, max_gaussians, ("too few samples",) * num_units)

    samples = tokens.transpose(0, 1).double()  # (N, S, D)
    offset = samples.amax((1, 2))
    scale = offset - samples.amin((1, 2)) + _RIDGE
    finite = torch.isfinite(samples).all(-1).all(-1) & torch.isfinite(scale)
    samples = (samples - offset[:, None, None]) / scale[:, None, None]
    centre = samples.mean(1)  # (N, D)
    samples = samples - centre.unsqueeze(1)
    collapsed = samples.square().sum(-1).mean(1) <= _RIDGE
    reasons = tuple(
        "non-finite" if not f else "collapsed" if c else ""
        for f, c in zip(finite.tolist(), collapsed.tolist(), strict=True)
    )
    usable = (finite & ~collapsed).nonzero().squeeze(1)
    if usable.numel() == 0:
        return _pad(tokens, max_gaussians, reasons)

    points, axes, constant = _principal_points(samples[usable])
    trace: list[Tensor] = []
    state = _em(points, _seed(points, draws[usable]), em_steps, trace)
    for _ in range(num_splits):
        state, num_split = _split(state, split_spread, max_gaussians)
        if num_split == 0:
            break
        state = _em(points, state, 1, trace)
    state = _em(points, _drop_small(points, state, min_count), em_steps, trace)
    # The last M-step sees the components that stay, so their counts are above the bound and their moments exact.
    state = _em(points, _drop_small(points, state, min_count), 1, trace)

    mixtures = _pad(tokens, max_gaussians, reasons, len(trace))
    alive = state.log_weights.isfinite()
    eye = torch.eye(tokens.shape[-1], dtype=points.dtype, device=points.device)
    means = centre[usable].unsqueeze(1) + state.means @ axes.mT
    covariances = axes.unsqueeze(1) @ state.covariances @ axes.unsqueeze(1).mT
    whitening = torch.linalg.solve_triangular(torch.linalg.cholesky(covariances + _RIDGE * eye), eye, upper=False)
    width = alive.shape[1]
    dtype = mixtures.offset.dtype
    mixtures.offset[usable] = offset[usable].to(dtype)
    mixtures.scale[usable] = scale[usable].to(dtype)
    mixtures.log_weights[usable, :width] = state.log_weights.to(dtype)
    mixtures.means[usable, :width] = torch.where(alive[..., None], means, 0.0).to(dtype)
    mixtures.precision_cholesky[usable, :width] = torch.where(alive[..., None, None], whitening, eye).to(dtype)
    mixtures.alive[usable, :width] = alive
    mixtures.active[usable] = True
    mixtures.log_likelihood[:, usable] = (torch.stack(trace) + constant).to(dtype)
    return mixtures


def _pad(tokens: Tensor, max_gaussians: int, reasons: tuple[str, ...], num_e_steps: int = 0) -> Mixtures:
    """Mixtures in which every unit is inactive, on the tokens' device."""
    _, num_units, unit_dim = tokens.shape
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    blank = torch.zeros((num_units, max_gaussians), dtype=dtype, device=tokens.device)
    return Mixtures(
        offset=blank.new_zeros(num_units),
        scale=blank.new_ones(num_units),
        log_weights=torch.full_like(blank, -math.inf),
        means=blank.new_zeros(*blank.shape, unit_dim),
        precision_cholesky=torch.eye(unit_dim, dtype=dtype, device=tokens.device).repeat(*blank.shape, 1, 1),
        alive=blank.bool(),
        active=blank.new_zeros(num_units).bool(),
        log_likelihood=blank.new_zeros(num_e_steps, num_units),
        reasons=reasons,
    )


def _principal_points(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates along the principal axes that carry variance, one number d of them for all units.

    Args:
        samples: centred, (N, S, D).

    Returns:
        points (N, d, S), axes (N, D, d) and (N,), what the coordinates left out add to the mean log-density: in them
        every component is N(0, ridge I), for the units' variance there is far below the ridge.
    """
    variances, axes = torch.linalg.eigh(samples.mT @ samples / samples.shape[1])  # ascending
    below = variances.clamp_min(0).cumsum(-1)  # (N, D)
    num_left_out = int((below <= _DROPPED * _RIDGE).sum(-1).min())
    axes = axes[..., num_left_out:]
    left_out = below[:, num_left_out - 1] if num_left_out else torch.zeros_like(below[:, 0])
    constant = -0.5 * (left_out / _RIDGE + num_left_out * math.log(2 * math.pi * _RIDGE))
    return (samples @ axes).mT.contiguous(), axes, constant


def _seed(points: Tensor, draws: Tensor) -> _State:
    """k-means++ (Arthur and Vassilvitskii, 2007): each next seed is drawn with odds of its squared distance.

    Components start equally heavy and spherical, with the mean squared distance to the nearest seed as variance.

    Args:
        points: (N, d, S).
        draws: uniform in [0, 1), (N, K).
    """
    num_units, dim, num_samples = points.shape
    units = torch.arange(num_units, device=points.device)
    nearest = points.new_full((num_units, num_samples), 1.0)
    means, distinct = [], []
    for draw in draws.unbind(1):
        odds = nearest.cumsum(1)
        chosen = torch.searchsorted(odds, (draw * odds[:, -1]).unsqueeze(1), right=True).clamp_max(num_samples - 1)
        seed = points[units, :, chosen.squeeze(1)].unsqueeze(-1)  # (N, d, 1)
        # A seed at distance 0 repeats an earlier one: the tokens have fewer distinct values than there are components.
        distinct.append(nearest.gather(1, chosen).squeeze(1) > 0)
        means.append(seed.squeeze(-1))
        distance = (points - seed).square().sum(1)
        nearest = torch.minimum(nearest, distance) if len(means) > 1 else distance
    log_weights = torch.where(torch.stack(distinct, 1), 0.0, -math.inf).to(points.dtype).log_softmax(1)
    variance = nearest.mean(1)[:, None, None, None] / dim
    eye = torch.eye(dim, dtype=points.dtype, device=points.device)
    return _State(log_weights, torch.stack(means, 1), (variance * eye).repeat(1, draws.shape[1], 1, 1))


def _em(points: Tensor, state: _State, num_steps: int, trace: list[Tensor]) -> _State:
    """At most num_steps EM steps; a unit leaves the batch once it has converged. Appends to the trace, (N,) a step."""
    state = _State(*(part.clone() for part in state))
    latest = points.new_full(points.shape[:1], -math.inf)
    running = torch.arange(len(points), device=points.device)
    for _ in range(num_steps):
        counts, moments, log_likelihood = _e_step(points, _State(*(part[running] for part in state)))
        for part, update in zip(state, _m_step(counts, moments), strict=True):
            part[running] = update
        going = log_likelihood - latest[running] >= _TOLERANCE
        latest[running] = log_likelihood
        trace.append(latest.clone())
        if not going.all():
            running, points = running[going], points[going]
        if running.numel() == 0:
            break
    return state


def _e_step(points: Tensor, state: _State) -> tuple[Tensor, Tensor, Tensor]:
    """Expected sufficient statistics, without ever holding all responsibilities.

    A Gaussian's log-density is linear in the features (x_i x_j for i <= j, x_i), and its moments are their weighted
    sums: both halves of an EM step are one matrix product a unit over the same (P, chunk) features.

    Returns:
        counts (N, K), sums of the features weighted by responsibility (N, K, P), mean log-density (N,).
    """
    num_units, dim, num_samples = points.shape
    eye = torch.eye(dim, dtype=points.dtype, device=points.device)
    rows, cols = torch.triu_indices(dim, dim, device=points.device)
    cholesky = torch.linalg.cholesky(state.covariances + _RIDGE * eye)
    precision = torch.cholesky_inverse(cholesky)
    linear = (precision @ state.means.unsqueeze(-1)).squeeze(-1)  # (N, K, d)
    quadratic = torch.where(rows == cols, -0.5, -1.0) * precision[..., rows, cols]
    coefficients = torch.cat([quadratic, linear], -1)  # (N, K, P)
    log_det = 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = state.log_weights - 0.5 * ((linear * state.means).sum(-1) + log_det + dim * math.log(2 * math.pi))

    counts, total = torch.zeros_like(state.log_weights), points.new_zeros(num_units)
    moments = torch.zeros_like(coefficients)
    num_features = coefficients.shape[-1]
    chunk = max(64, _CHUNK_FEATURES[points.device.type] // (num_units * num_features))
    features = points.new_empty((num_units, num_features, min(chunk, num_samples)))
    for part in points.split(chunk, dim=-1):
        features = features[..., : part.shape[-1]]
        start = 0
        for i in range(dim):
            torch.mul(part[:, i:], part[:, i : i + 1], out=features[:, start : start + dim - i])
            start += dim - i
        features[:, start:] = part
        joint = torch.baddbmm(constant.unsqueeze(-1), coefficients, features)  # (N, K, chunk)
        density = joint.logsumexp(1, keepdim=True)
        posterior = (joint - density).exp_()
        counts += posterior.sum(-1)
        moments.baddbmm_(posterior, features.mT)
        total += density.sum((1, 2))
    return counts, moments, total / num_samples


def _m_step(counts: Tensor, moments: Tensor) -> _State:
    """Weights, means and covariances of the weighted points. Components without points are dropped."""
    dim = math.isqrt(9 + 8 * moments.shape[-1]) // 2 - 1  # P = d (d + 1) / 2 + d
    rows, cols = torch.triu_indices(dim, dim, device=moments.device)
    moments = moments / counts.clamp_min(_EMPTY).unsqueeze(-1)
    means = moments[..., -dim:]
    second = moments.new_empty((*counts.shape, dim, dim))
    second[..., rows, cols] = second[..., cols, rows] = moments[..., :-dim]
    log_weights = (counts / counts.sum(1, keepdim=True)).log().masked_fill(counts <= _EMPTY, -math.inf)
    return _State(log_weights, means, second - means.unsqueeze(-1) * means.unsqueeze(-2))


def _split(state: _State, split_spread: float, max_gaussians: int) -> tuple[_State, int]:
    """Replace loose components, loosest first and while there is room, by the two halves of each.

    A Gaussian of variance v along its principal axis, cut there through its mean, has halves with means at
    +-sqrt(2 v / pi) and variance v (1 - 2 / pi): the mixture's mean and covariance stay what they were.

    Returns:
        the mixtures, and how many components were split.
    """
    alive = state.log_weights.isfinite()
    spread = state.covariances.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(0).sqrt()  # (N, K)
    loose = alive & (spread > split_spread)
    rank = spread.masked_fill(~loose, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    chosen = loose & (rank < max_gaussians - alive.sum(1, keepdim=True))
    variances, axes = torch.linalg.eigh(state.covariances)
    shift = (2 / math.pi * variances[..., -1:].clamp_min(0)).sqrt() * axes[..., -1]
    shift = torch.where(chosen.unsqueeze(-1), shift, 0.0)  # (N, K, d)
    covariances = state.covariances - shift.unsqueeze(-1) * shift.unsqueeze(-2)
    log_weights = torch.where(chosen, state.log_weights - math.log(2), state.log_weights)
    children = _State(
        torch.cat([log_weights, log_weights.masked_fill(~chosen, -math.inf)], 1),
        torch.cat([state.means - shift, state.means + shift], 1),
        torch.cat([covariances, covariances], 1),
    )
    return _compact(children, children.log_weights.isfinite()), int(chosen.sum())


def _drop_small(points: Tensor, state: _State, min_count: float) -> _State:
    """Drop components whose soft count is below min_count, except the largest of a unit."""
    counts, _, _ = _e_step(points, state)
    keep = (counts >= min_count).scatter(1, counts.argmax(1, keepdim=True), True)
    return _compact(state, keep)


def _compact(state: _State, keep: Tensor) -> _State:
    """Move the components to keep, (N, K), to the front, cut K to the largest number of them, renormalise weights."""
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, : int(keep.sum(1).max())]
    units = torch.arange(len(order), device=order.device).unsqueeze(1)
    state = _State(*(part[units, order] for part in state))
    return state._replace(log_weights=state.log_weights.masked_fill(~keep[units, order], -math.inf).log_softmax(1))
