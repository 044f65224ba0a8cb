"""Gaussian mixtures of the latent units' tokens, fitted for all units at once.

S samples, B batch, N units, n usable units, D unit width, K components, d principal axes kept.

Dynamic Gaussian Anchoring (DyGA, arXiv 2410.23820) needs one full-covariance mixture for each unit. A fit normalises
the tokens, draws seeds, runs expectation maximisation (EM), splits loose components, drops small ones, and runs EM
again. The order of these phases and the normalisation by the unit's own extremes are those of the authors' released
code. We deviate from that code in five points, in which it fails or its result depends on chance:

- The ridge that is added to every covariance is 1e-3 of the unit's variance instead of 1e-6 of its squared range. A
  unit's tokens lie on a curve, so a component is thin in all directions but one. Once the curve has moved by a
  hundredth of its length, the released ridge assigns a token to whichever component is least thin there. In a small
  run, 500 images after a fit, the distance from tokens to their anchors was then 0.54 of the unit's spread, although
  the nearest anchors were 0.22 away. With our ridge it is 0.24.
- Seeds are drawn by k-means++ instead of uniformly. Their first covariance is their quantisation error instead of the
  identity, which is wider than the data ([-1, 0] in every coordinate) and would make all components alike.
- EM stops for a unit once a step gains less than 0.003 nats for each token and coordinate.
- A split halves a Gaussian across its principal axis and keeps its moments and weight. The spread of a component alone
  decides whether it is split, and no more components are split than there is room for.
- A unit that cannot have a mixture (see `Mixtures.reasons`) is reported and left out. It does not end the fit.

The result of a unit depends on its own tokens and draws, with two exceptions. All units go through as many rounds of
splitting as one of them needs (a unit with nothing to split makes one EM step in each). And the quantisation error that
the seeds start from is divided by the number of principal axes of the unit that keeps most of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from raydis.models.em import RIDGE, State, run_phases, seed

# EM stops when a step gains less than this, in nats for each token and coordinate. On curves of untrained MLPs, a
# hundredth of it takes three to nine times the steps and changes the distances to the anchors by less than 3 %.
_LEAST_GAIN = 3e-3
NORMALISATION_EPS = 1e-6  # added to a unit's range, as released
COLLAPSED = 1e-6  # variance of normalised tokens of a unit that does not vary


@dataclass(frozen=True, eq=False)
class Mixtures:
    """One mixture for each unit, padded to K = max_gaussians components.

    Its coordinates are (token - offset) / scale, which lie in [-1, 0].

    Attributes:
        offset, scale: (N,), the largest entry of the unit's tokens, and their range + 1e-6; 0 and 1 where inactive.
        log_weights: (N, K), -inf where there is no component.
        means: (N, K, D), 0 where there is no component.
        precision_cholesky: (N, K, D, D), W = L^-1 for covariance + ridge I = L L^T, so W^T W is the precision; identity
            where there is no component.
        alive: (N, K), which components exist.
        active: (N,), which units have a mixture.
        log_likelihood: (T, N), mean log-density of a token before each of T EM steps. It repeats once a unit has
            converged, and may fall where a component was split or dropped. 0 where inactive.
        reasons: for each unit why it is inactive, or "": "collapsed" (the variance of its normalised tokens is at most
            1e-6), "non-finite" or "too few samples" (fewer than 2).
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


def joint_log_density(normalised: Tensor, log_weights: Tensor, means: Tensor, precision_cholesky: Tensor) -> Tensor:
    """Return log(weight_k N(x; mean_k, covariance_k)) of tokens (B, N, D) as (B, N, K); -inf for absent components."""
    unit_dim = means.shape[-1]
    # Subtracting the mixture's own mean first keeps both terms of W x - W mean small, which float32 needs.
    centre = (log_weights.exp().unsqueeze(-1) * means).sum(1, keepdim=True)  # (N, 1, D)
    bias = -(precision_cholesky @ (means - centre).unsqueeze(-1)).flatten(1).unsqueeze(1)  # (N, 1, K*D)
    points = normalised.transpose(0, 1) - centre  # (N, B, D)
    whitened = torch.baddbmm(bias, points, precision_cholesky.flatten(1, 2).mT)  # (N, B, K*D)
    # vector_norm needs no second tensor of that size, unlike a sum of squares.
    distance = torch.linalg.vector_norm(whitened.unflatten(-1, means.shape[1:]), dim=-1).square()  # (N, B, K)
    log_det = precision_cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (N, K)
    constant = log_weights + log_det - 0.5 * unit_dim * math.log(2 * math.pi)
    return (constant.unsqueeze(1) - 0.5 * distance).transpose(0, 1)


class _Frame(NamedTuple):
    """The coordinates of a fit's points, relative to the tokens of n usable units.

    A normalised token is (token - offset) / scale, and approximately centre + spread * axes @ point.
    """

    offset: Tensor  # (n,)
    scale: Tensor  # (n,)
    centre: Tensor  # (n, D)
    spread: Tensor  # (n,), root-mean-square distance of the normalised tokens to the centre
    axes: Tensor  # (n, D, d), 0 in the columns of axes that a unit does not keep
    log_density: Tensor  # (n,), to be added to a mean log-density of points for that of normalised tokens


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
    start: Mixtures | None = None,
) -> Mixtures:
    """Fit one mixture to the tokens of each unit, in float64.

    Args:
        tokens: (S, N, D).
        num_gaussians: number of components that a unit starts from; fewer if it has fewer distinct tokens.
        max_gaussians: largest number of components of a unit, and the width K of the result.
        num_splits: rounds of splitting. A round splits the loosest components for which there is room.
        split_spread: root-mean-square distance of normalised tokens to their mean above which a component is loose.
        min_count: soft count, at least 1, below which a component is dropped. The largest of a unit always stays.
        em_steps: most EM steps before the splits, and again after them.
        generator: draws the seeds. Its device may differ from the tokens'.
        start: an earlier fit of the same units, from which EM continues and then needs few steps. It continues in
            normalised coordinates, so a unit may have grown or moved as a whole. Units inactive in it are seeded.

    Returns:
        Mixtures of the tokens' dtype (float32 for half precision), on the tokens' device.

    Raises:
        ValueError: an argument is out of range.
    """
    _check_arguments(tokens, num_gaussians, max_gaussians, min_count, em_steps)
    _, num_units, unit_dim = tokens.shape
    draws = torch.rand((num_units, num_gaussians), generator=generator, device=generator.device, dtype=torch.float64)
    samples, offset, scale, reasons = _normalise(tokens)
    usable = torch.tensor([i for i, reason in enumerate(reasons) if not reason], dtype=torch.long, device=tokens.device)
    if usable.numel() == 0:
        return _inactive(tokens, max_gaussians, 0, reasons)
    points, frame = _principal_points(samples[usable], offset[usable], scale[usable])
    state = seed(points, draws.to(points.device)[usable])
    if start is not None:
        state = _continued(start, usable, state, frame)
    state, trace = run_phases(
        points,
        state,
        max_components=max_gaussians,
        num_splits=num_splits,
        split_spread=split_spread / frame.spread.unsqueeze(1),
        min_count=min_count,
        num_steps=em_steps,
        least_gain=_LEAST_GAIN * unit_dim,
    )
    mixtures = _inactive(tokens, max_gaussians, len(trace), reasons)
    _fill(mixtures, usable, state, trace, frame)
    return mixtures


def _check_arguments(tokens: Tensor, num_gaussians: int, max_gaussians: int, min_count: float, em_steps: int) -> None:
    if tokens.ndim != 3:
        raise ValueError(f"tokens must have shape (S, N, D), found {tuple(tokens.shape)}")
    if not 1 <= num_gaussians <= max_gaussians:
        raise ValueError(f"num_gaussians={num_gaussians} must lie in 1..max_gaussians={max_gaussians}")
    if em_steps < 1 or min_count < 1:
        raise ValueError(f"em_steps={em_steps} and min_count={min_count} must be at least 1")


def _normalise(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Return normalised tokens (N, S, D), offset (N,), scale (N,), all float64, and why each unit is unusable or ""."""
    samples = tokens.transpose(0, 1).double()
    if samples.shape[1] < 2:
        nothing = samples.new_zeros(len(samples))
        return samples, nothing, nothing, ("too few samples",) * len(samples)
    offset = samples.amax((1, 2))
    scale = offset - samples.amin((1, 2)) + NORMALISATION_EPS
    samples = (samples - offset[:, None, None]) / scale[:, None, None]
    variance = samples.var(1, correction=0).sum(-1)  # (N,), NaN where a token or the range is not finite
    reasons = ("" if v > COLLAPSED else "collapsed" if v <= COLLAPSED else "non-finite" for v in variance.tolist())
    return samples, offset, scale, tuple(reasons)


def _principal_points(samples: Tensor, offset: Tensor, scale: Tensor) -> tuple[Tensor, _Frame]:
    """Project tokens on the principal axes of their unit, and drop the least axes whose variances sum to the ridge.

    The tokens of a unit lie on a curve, and dead entries of a ReLU carry nothing, so few axes suffice and make EM
    faster. What a token loses is on average smaller than the noise that the ridge adds to every covariance.

    Args:
        samples: normalised tokens (n, S, D).
        offset, scale: (n,), by which they were normalised.

    Returns:
        points (n, d, S), centred and of unit variance, and their frame. d is that of the unit that keeps most axes;
        points and axes are 0 where a unit keeps fewer.
    """
    centre = samples.mean(1)  # (n, D)
    samples = samples - centre.unsqueeze(1)
    spread = samples.square().sum(-1).mean(1).sqrt()  # (n,)
    samples = samples / spread[:, None, None]
    variances, axes = torch.linalg.eigh(samples.mT @ samples / samples.shape[1])  # ascending
    variances = variances.clamp_min(0)
    kept = variances.cumsum(-1) > RIDGE  # (n, D)
    first = int((~kept).sum(-1).min())
    left_out = variances.masked_fill(kept, 0.0).sum(-1)
    constant = -0.5 * (left_out / RIDGE + first * math.log(2 * math.pi * RIDGE))  # every component is N(0, ridge) there
    axes = (axes * kept.unsqueeze(1))[..., first:]
    frame = _Frame(offset, scale, centre, spread, axes, log_density=constant - samples.shape[-1] * spread.log())
    return (samples @ axes).mT.contiguous(), frame


def _continued(start: Mixtures, usable: Tensor, seeded: State, frame: _Frame) -> State:
    """Return the components of an earlier fit in this fit's frame, and the seeded ones where a unit had none."""
    spread = frame.spread[:, None, None]
    alive = start.alive[usable]
    whitening = start.precision_cholesky[usable].to(spread)  # (n, K, D, D)
    axes = frame.axes.unsqueeze(1)  # (n, 1, D, d)
    means = (((start.means[usable].to(axes) - frame.centre.unsqueeze(1)) / spread).unsqueeze(2) @ axes).squeeze(2)
    roots = torch.linalg.solve_triangular(
        whitening.mT * spread.unsqueeze(1), axes.expand(-1, alive.shape[1], -1, -1), upper=True
    )
    earlier = State(
        start.log_weights[usable].to(axes),
        torch.where(alive[..., None], means, 0.0),
        torch.where(alive[..., None, None], roots.mT @ roots, 0.0),
    )
    missing = alive.shape[1] - seeded.log_weights.shape[1]  # the seeded have num_gaussians components, not K
    seeded = State(
        F.pad(seeded.log_weights, (0, missing), value=-math.inf),
        F.pad(seeded.means, (0, 0, 0, missing)),
        F.pad(seeded.covariances, (0, 0, 0, 0, 0, missing)),
    )
    known = start.active[usable]
    return State(
        *(torch.where(known.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(earlier, seeded, strict=True))
    )


def _inactive(tokens: Tensor, max_gaussians: int, num_steps: int, reasons: tuple[str, ...]) -> Mixtures:
    """Return mixtures in which every unit is inactive, on the tokens' device, with num_steps rows of log-likelihood."""
    _, num_units, unit_dim = tokens.shape
    blank = tokens.new_zeros((num_units, max_gaussians), dtype=torch.promote_types(tokens.dtype, torch.float32))
    return Mixtures(
        offset=blank.new_zeros(num_units),
        scale=blank.new_ones(num_units),
        log_weights=torch.full_like(blank, -math.inf),
        means=blank.new_zeros(num_units, max_gaussians, unit_dim),
        precision_cholesky=torch.eye(unit_dim).to(blank).repeat(num_units, max_gaussians, 1, 1),
        alive=blank.bool(),
        active=blank.new_zeros(num_units).bool(),
        log_likelihood=blank.new_zeros(num_steps, num_units),
        reasons=reasons,
    )


def _fill(mixtures: Mixtures, usable: Tensor, state: State, trace: Tensor, frame: _Frame) -> None:
    """Write what was fitted to the usable units, back in all D coordinates, into the padded tensors."""
    dtype = mixtures.offset.dtype
    mixtures.active[usable] = True
    mixtures.offset[usable] = frame.offset.to(dtype)
    mixtures.scale[usable] = frame.scale.to(dtype)
    mixtures.log_likelihood[:, usable] = (trace + frame.log_density).to(dtype)
    spread = frame.spread[:, None, None]
    alive = state.log_weights.isfinite()  # (n, K')
    width, axes = alive.shape[1], frame.axes.unsqueeze(1)
    eye = torch.eye(axes.shape[2], dtype=axes.dtype, device=axes.device)
    means = frame.centre.unsqueeze(1) + (axes @ state.means.unsqueeze(-1)).squeeze(-1) * spread
    cholesky = torch.linalg.cholesky(axes @ state.covariances @ axes.mT + RIDGE * eye)
    whitening = torch.linalg.solve_triangular(cholesky, eye, upper=False) / spread.unsqueeze(1)
    mixtures.alive[usable, :width] = alive
    for padded, values in (
        (mixtures.log_weights, state.log_weights),
        (mixtures.means, torch.where(alive[..., None], means, 0.0)),
        (mixtures.precision_cholesky, torch.where(alive[..., None, None], whitening, eye)),
    ):
        padded[usable, :width] = values.to(padded)
