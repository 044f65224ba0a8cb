"""Gaussian mixtures of the latent units' tokens, fitted for all units at once.

S samples, B batch, N units, D unit width, K components, d principal axes kept.

Dynamic Gaussian Anchoring (DyGA+SD, arXiv 2410.23820) fits one full-covariance mixture a unit: initialise, EM, split
loose components, drop small ones, EM again. The order of phases and the normalisation by the unit's own extremes are
those of the released code. Differences, each where the release fails or depends on chance:

- The ridge of every covariance is 1e-3 of the unit's variance, not 1e-6 of its squared range. A unit's tokens lie on a
  curve, so a component is thin in all directions but one, and with the released ridge a curve that has moved by a
  hundredth of its length puts tokens to whichever component is least thin there: on tokens of a small run, 500 images
  after a fit, 0.54 of the unit's spread away from their anchors, where the nearest were at 0.22; with this ridge 0.24.

- Seeds are drawn by k-means++ instead of uniformly, and start from their quantisation error instead of the identity,
  which is wider than the data ([-1, 0] in every coordinate) and would make all components alike.
- EM stops once a step gains a unit less than 0.003 nats a token and coordinate.
- A split halves a Gaussian across its principal axis and keeps its moments and weight. Which components split is
  decided by their spread alone, and no more split than there is room for.
- A unit without a usable mixture (see `Mixtures.reasons`) is reported and left out; it does not end the fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from raydis.models.em import RIDGE, State, drop_small, run_em, seed, split_loose

# Nats a token and coordinate that an EM step must gain for the next one to run. On curves of untrained MLPs a hundredth
# of it takes three to nine times the steps and changes the tokens' distance to their anchors by less than 3 %.
_LEAST_GAIN = 3e-3
NORMALISATION_EPS = 1e-6  # added to a unit's range, as released
COLLAPSED = 1e-6  # variance of normalised tokens of a unit that does not vary


@dataclass(frozen=True, eq=False)
class Mixtures:
    """One mixture a unit, padded to K = max_gaussians, in coordinates (token - offset) / scale, which lie in [-1, 0].

    Attributes:
        offset, scale: (N,), largest entry of the unit's tokens, and their range + 1e-6; 0 and 1 where inactive.
        log_weights: (N, K), -inf where there is no component.
        means: (N, K, D), 0 where there is no component.
        precision_cholesky: (N, K, D, D), W = L^-1 for covariance + ridge I = L L^T, so W^T W is the precision; identity
            where there is no component.
        alive: (N, K), which components exist.
        active: (N,), which units have a mixture.
        log_likelihood: (T, N), mean log-density of a token before every EM step; it repeats where a unit had converged,
            and may fall where a component was split or dropped. 0 where inactive.
        reasons: per unit "" or why it is inactive: "collapsed" (the variance of its normalised tokens is not above
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
    """log(weight_k N(x; mean_k, covariance_k)) of every component: (B, N, D) -> (B, N, K), -inf where there is none."""
    unit_dim = means.shape[-1]
    # Both terms of W x - W mean are kept small, for float32, by taking them about the mixture's own mean.
    centre = (log_weights.exp().unsqueeze(-1) * means).sum(1, keepdim=True)  # (N, 1, D)
    bias = -(precision_cholesky @ (means - centre).unsqueeze(-1)).flatten(1).unsqueeze(1)  # (N, 1, K*D)
    points = normalised.transpose(0, 1) - centre  # (N, B, D)
    whitened = torch.baddbmm(bias, points, precision_cholesky.flatten(1, 2).mT)  # (N, B, K*D)
    # The norm needs no second tensor of that size, as a sum of squares would.
    distance = torch.linalg.vector_norm(whitened.unflatten(-1, means.shape[1:]), dim=-1).square()  # (N, B, K)
    log_det = precision_cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (N, K)
    constant = log_weights + log_det - 0.5 * unit_dim * math.log(2 * math.pi)
    return (constant.unsqueeze(1) - 0.5 * distance).transpose(0, 1)


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
    """Fit one mixture a unit, in float64.

    A unit's result depends on its own tokens and draws. Other units only decide how many split rounds all go through (a
    unit with nothing to split does one EM step in each), and by how many principal axes the quantisation error that the
    seeds start from is divided: by those of the unit that keeps most.

    Args:
        tokens: (S, N, D).
        num_gaussians: components to start from; a unit with fewer distinct tokens starts from fewer.
        max_gaussians: bound on the components of a unit, and the width K of the result.
        num_splits: rounds of splitting; a round splits the loosest components for which there is room.
        split_spread: root-mean-square distance to its mean, normalised tokens, above which a component is loose.
        min_count: soft count, at least 1, below which a component is dropped; a unit's largest always stays.
        em_steps: most EM steps before the splits, and again after them.
        generator: draws the seeds; its device may differ from the tokens'.
        start: an earlier fit of the same units, to go on from in normalised coordinates, so that a unit may have grown
            or moved as a whole since. EM then needs a few steps. Units inactive there are seeded.

    Returns:
        Mixtures of the tokens' dtype (float32 for half precision), on the tokens' device.

    Raises:
        ValueError: an argument is out of range.
    """
    if tokens.ndim != 3:
        raise ValueError(f"tokens must have shape (S, N, D), found {tuple(tokens.shape)}")
    if not 1 <= num_gaussians <= max_gaussians:
        raise ValueError(f"num_gaussians={num_gaussians} must lie in 1..max_gaussians={max_gaussians}")
    if em_steps < 1 or min_count < 1:
        raise ValueError(f"em_steps={em_steps} and min_count={min_count} must be at least 1")
    num_samples, num_units, unit_dim = tokens.shape
    draws = torch.rand((num_units, num_gaussians), generator=generator, device=generator.device, dtype=torch.float64)
    if num_samples < 2:
        return _inactive(tokens, max_gaussians, 0, ("too few samples",) * num_units)
    samples, offset, scale, reasons = _normalise(tokens)
    usable = torch.tensor([i for i, reason in enumerate(reasons) if not reason], dtype=torch.long, device=tokens.device)
    if usable.numel() == 0:
        return _inactive(tokens, max_gaussians, 0, reasons)
    samples = samples[usable]
    centre = samples.mean(1)  # (n, D), n usable units
    samples = samples - centre.unsqueeze(1)
    spread = samples.square().sum(-1).mean(1).sqrt()  # (n,)
    points, axes, constant = _principal_points(samples / spread[:, None, None])

    state = seed(points, draws.to(points.device)[usable])
    if start is not None:
        state = _continued(start, usable, state, axes, centre, spread)
    state, trace = _run_phases(
        points,
        state,
        max_gaussians=max_gaussians,
        num_splits=num_splits,
        split_spread=split_spread / spread.unsqueeze(1),
        min_count=min_count,
        em_steps=em_steps,
        least_gain=_LEAST_GAIN * unit_dim,
    )
    constant = constant - unit_dim * spread.log()
    mixtures = _inactive(tokens, max_gaussians, len(trace), reasons)
    mixtures.active[usable] = True
    mixtures.offset[usable] = offset[usable].to(mixtures.offset)
    mixtures.scale[usable] = scale[usable].to(mixtures.offset)
    mixtures.log_likelihood[:, usable] = (trace + constant).to(mixtures.offset)
    _fill(mixtures, usable, state, axes, centre, spread)
    return mixtures


def _run_phases(
    points: Tensor,
    state: State,
    *,
    max_gaussians: int,
    num_splits: int,
    split_spread: Tensor,
    min_count: float,
    em_steps: int,
    least_gain: float,
) -> tuple[State, Tensor]:
    """EM, split, drop, EM: points (N, d, S) and first mixtures to the last, and log-likelihoods (T, N)."""
    trace: list[Tensor] = []
    state = run_em(points, state, em_steps, least_gain, trace)
    for _ in range(num_splits):
        state, num_split = split_loose(state, split_spread, max_gaussians)
        if num_split == 0:
            break
        state = run_em(points, state, 1, least_gain, trace)
    state = run_em(points, drop_small(points, state, min_count), em_steps, least_gain, trace)
    # The last step sees only components that stay, so their counts are above the bound and their moments are exact.
    state = run_em(points, drop_small(points, state, min_count), 1, least_gain, trace)
    return state, torch.stack(trace)


def _normalise(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Normalised tokens (N, S, D), offset (N,), scale (N,), all float64, and per unit why it cannot be fitted or ""."""
    samples = tokens.transpose(0, 1).double()
    offset = samples.amax((1, 2))
    scale = offset - samples.amin((1, 2)) + NORMALISATION_EPS
    samples = (samples - offset[:, None, None]) / scale[:, None, None]
    variance = samples.var(1, correction=0).sum(-1)  # (N,), NaN where a token or the range is not finite
    reasons = ("" if v > COLLAPSED else "collapsed" if v <= COLLAPSED else "non-finite" for v in variance.tolist())
    return samples, offset, scale, tuple(reasons)


def _principal_points(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates along a unit's principal axes, without the least axes whose variances sum to the ridge or less.

    The tokens of a unit lie on a curve, and dead entries of a ReLU carry nothing: fewer axes make EM faster. What is
    left out of a token is on average below the noise that the ridge adds to every covariance.

    Args:
        samples: centred and of unit variance, (N, S, D).

    Returns:
        points (N, d, S) with the d of the unit that keeps most, axes (N, D, d), both 0 where a unit keeps fewer, and
        (N,), what the axes left out add to the mean log-density: along them every component is N(0, ridge).
    """
    variances, axes = torch.linalg.eigh(samples.mT @ samples / samples.shape[1])  # ascending
    variances = variances.clamp_min(0)
    kept = variances.cumsum(-1) > RIDGE  # (N, D)
    first = int((~kept).sum(-1).min())
    left_out = variances.masked_fill(kept, 0.0).sum(-1)
    constant = -0.5 * (left_out / RIDGE + first * math.log(2 * math.pi * RIDGE))
    axes = (axes * kept.unsqueeze(1))[..., first:]
    return (samples @ axes).mT.contiguous(), axes, constant


def _continued(start: Mixtures, usable: Tensor, seeded: State, axes: Tensor, centre: Tensor, spread: Tensor) -> State:
    """The components of an earlier fit in the coordinates of this one, or the seeded ones of units without.

    `centre` is (n, D), `axes` (n, D, d) and `spread` (n,), for n usable units.
    """
    spread = spread[:, None, None]
    alive = start.alive[usable]
    whitening = start.precision_cholesky[usable].to(axes)  # (n, K, D, D)
    axes = axes.unsqueeze(1)  # (n, 1, D, d)
    means = (((start.means[usable].to(axes) - centre.unsqueeze(1)) / spread).unsqueeze(2) @ axes).squeeze(2)
    roots = torch.linalg.solve_triangular(
        whitening.mT * spread.unsqueeze(1), axes.expand(-1, alive.shape[1], -1, -1), upper=True
    )
    earlier = State(
        start.log_weights[usable].to(axes),
        torch.where(alive[..., None], means, 0.0),
        torch.where(alive[..., None, None], roots.mT @ roots, 0.0),
    )
    missing = alive.shape[1] - seeded.log_weights.shape[1]  # of the seeded, which are num_gaussians wide
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
    """Mixtures in which every unit is inactive, on the tokens' device; num_steps rows of log-likelihood."""
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


def _fill(mixtures: Mixtures, usable: Tensor, state: State, axes: Tensor, centre: Tensor, spread: Tensor) -> None:
    """Write the components of the usable units, back in all D coordinates, into the padded tensors."""
    spread = spread[:, None, None]
    alive = state.log_weights.isfinite()  # (n, K')
    width, axes = alive.shape[1], axes.unsqueeze(1)
    eye = torch.eye(axes.shape[2], dtype=axes.dtype, device=axes.device)
    means = centre.unsqueeze(1) + (axes @ state.means.unsqueeze(-1)).squeeze(-1) * spread
    cholesky = torch.linalg.cholesky(axes @ state.covariances @ axes.mT + RIDGE * eye)
    whitening = torch.linalg.solve_triangular(cholesky, eye, upper=False) / spread.unsqueeze(1)
    mixtures.alive[usable, :width] = alive
    for padded, values in (
        (mixtures.log_weights, state.log_weights),
        (mixtures.means, torch.where(alive[..., None], means, 0.0)),
        (mixtures.precision_cholesky, torch.where(alive[..., None, None], whitening, eye)),
    ):
        padded[usable, :width] = values.to(padded)
