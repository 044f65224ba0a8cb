"""Dynamic Gaussian Anchoring: tokens are pulled towards the mean of the Gaussian they most probably belong to.

S samples, B batch, N units, D unit width, K = max_gaussians components.

c is a token, q its anchor (the mean of its most responsible component), lambda the share of the way that it is moved:
c~ = c + lambda (q - c), with no gradient through q. The modes differ in lambda:

- `constant`: lambda = shift_rate for every token.
- `ramp`: lambda = shift_rate * ramp, where the training loop raises ramp from 0 to 1; after the ramped interpolation in
  earlier revisions of the released code.
- `release`: the formula of the published code (arXiv 2410.23820), for parity studies. It normalises by the batch's own
  extremes, leaves q in normalised coordinates and takes one lambda for the batch, shift_rate exp(-mean |(c - q) / (c +
  1e-6)|), so a sample's result depends on its batch mates. With q <= 0 <= c it is at most shift_rate / e, and a few
  entries of exactly 0, as a ReLU makes them, bring it to 0.
- `off`: tokens stay as they are.

The paper shrinks lambda with the distance of a token to its anchor. Our former mode `relative` did so by
exp(-mean_d |c^ - q^|), hats for normalised coordinates, where a unit's tokens span 1 over all coordinates. A fitted
mixture has an anchor near every token on that scale: the factor had the median 0.995 on trained models, so the mode
was `constant` in all but name, which replaces it.

`constant` and `ramp` differ from the release on purpose: fit and use share one stored normalisation, and c and q one
coordinate system. Between fits their means follow the tokens: an encoder in training leaves a mean that stands still
behind within a hundred steps, and what is pulled to where tokens no longer are is noise. A step replaces mu_k by
(inertia mu_k + the sum of the tokens that chose k) / (inertia + their number): stepwise EM (Cappé & Moulines, 2009)
with hard assignments, the moving average of VQ-VAE's codebook (arXiv 1711.00937, appendix A.1) with an explicit count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from raydis.models.mixture import NORMALISATION_EPS, Mixtures, fit_mixtures, joint_log_density

Mode = Literal["off", "constant", "ramp", "release"]

_RELEASE_EPS = 1e-6
_FITTED = ("offset", "scale", "log_weights", "means", "precision_cholesky", "alive", "active")  # as in `Mixtures`


@dataclass(frozen=True, eq=False)
class Assignment:
    """Where tokens lie in their units' mixtures.

    Attributes:
        component: (B, N), index of the most responsible component; -1 where the unit is inactive.
        responsibility: (B, N), its posterior probability; 0 where the unit is inactive.
        log_density: (B, N), of the normalised token, nats; 0 where the unit is inactive. Low: unlike what was fitted.
    """

    component: Tensor
    responsibility: Tensor
    log_density: Tensor


class Anchors(nn.Module):
    """The mixtures of all units as buffers, and the shift towards their means. Identity until `fit`.

    Whatever changes the shifted tokens is a buffer of fixed shape, filled in place: a state dict restores it, and
    compiled code or a captured graph goes on working after a refit.

    Args:
        num_units: N.
        unit_dim: D.
        mode: how far tokens move; see the module's docstring.
        max_gaussians: K, bound on the components of a unit.
        shift_rate: share of the way to the anchor that a token moves, in [0, 1]; the largest of `ramp` and `release`.
        inertia: tokens that a mean weighs as while it follows the tokens in training; None: it stands still.

    Buffers:
        offset, scale, log_weights, means, precision_cholesky, alive, active: as in `Mixtures`.
        fitted: (), whether there was a fit.
        ramp: (), in [0, 1], set by the training loop; used by mode `ramp` alone.
        chosen, sums: (N, K) and (N, K, D), number and sum of the normalised tokens that chose a component in this step.
    """

    offset: Tensor
    scale: Tensor
    log_weights: Tensor
    means: Tensor
    precision_cholesky: Tensor
    alive: Tensor
    active: Tensor
    fitted: Tensor
    ramp: Tensor
    chosen: Tensor
    sums: Tensor

    def __init__(
        self,
        num_units: int,
        unit_dim: int,
        *,
        mode: Mode,
        max_gaussians: int,
        shift_rate: float,
        inertia: float | None = None,
    ) -> None:
        super().__init__()
        if mode not in get_args(Mode):
            raise ValueError(f"mode={mode!r} must be off, constant, ramp or release")
        if not 0.0 <= shift_rate <= 1.0:
            raise ValueError(f"shift_rate={shift_rate} must lie in [0, 1]")
        self.mode = mode
        self.max_gaussians = max_gaussians
        self.shift_rate = shift_rate
        self.inertia = None if mode in ("off", "release") or shift_rate == 0.0 else inertia
        self.register_buffer("offset", torch.zeros(num_units))
        self.register_buffer("scale", torch.ones(num_units))
        self.register_buffer("log_weights", torch.full((num_units, max_gaussians), -torch.inf))
        self.register_buffer("means", torch.zeros(num_units, max_gaussians, unit_dim))
        self.register_buffer("precision_cholesky", torch.eye(unit_dim).repeat(num_units, max_gaussians, 1, 1))
        self.register_buffer("alive", torch.zeros(num_units, max_gaussians, dtype=torch.bool))
        self.register_buffer("active", torch.zeros(num_units, dtype=torch.bool))
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("ramp", torch.tensor(0.0))
        self.register_buffer("chosen", torch.zeros(num_units, max_gaussians), persistent=False)
        self.register_buffer("sums", torch.zeros(num_units, max_gaussians, unit_dim), persistent=False)

    @torch.no_grad()
    def fit(
        self,
        tokens: Tensor,
        *,
        num_gaussians: int,
        num_splits: int,
        split_spread: float,
        min_count: float,
        em_steps: int,
        generator: torch.Generator,
    ) -> Mixtures:
        """Fit the mixtures to tokens (S, N, D) as the encoder gives them, not shifted ones, going on from the last fit.

        Arguments, and the ValueError for bad ones, are those of `fit_mixtures`. Returns what was fitted, with the
        reasons of inactive units.
        """
        num_units, _, unit_dim = self.means.shape
        if tokens.shape[1:] != (num_units, unit_dim):
            raise ValueError(f"tokens must have shape (S, {num_units}, {unit_dim}), found {tuple(tokens.shape)}")
        mixtures = fit_mixtures(
            tokens,
            num_gaussians=num_gaussians,
            max_gaussians=self.max_gaussians,
            num_splits=num_splits,
            split_spread=split_spread,
            min_count=min_count,
            em_steps=em_steps,
            generator=generator,
            start=self.mixtures() if self.fitted else None,
        )
        for name in _FITTED:
            getattr(self, name).copy_(getattr(mixtures, name))
        self.fitted.fill_(True)
        return mixtures

    def mixtures(self) -> Mixtures:
        """What the buffers hold: no course of the fit, and no reasons, not of inactive units either."""
        return Mixtures(
            **{name: getattr(self, name) for name in _FITTED},
            log_likelihood=self.offset.new_zeros(0, len(self.offset)),
            reasons=("",) * len(self.offset),
        )

    @torch.no_grad()
    def assign(self, tokens: Tensor) -> Assignment:
        """Most responsible component of every token, (B, N, D), normalised as the fit normalised."""
        joint = self._joint(self._normalise(tokens))
        density = joint.logsumexp(-1)  # (B, N)
        best, component = joint.max(-1)
        return Assignment(
            component=torch.where(self.active, component, -1),
            responsibility=torch.where(self.active, (best - density).exp(), 0.0),
            log_density=torch.where(self.active, density, 0.0),
        )

    def anchor_tokens(self) -> Tensor:
        """Every mean as a token, (N, K, D); 0 where `alive` (N, K) is false."""
        tokens = self.means * self.scale[:, None, None] + self.offset[:, None, None]
        return torch.where(self.alive[..., None], tokens, 0.0)

    def nearest(self, component: Tensor) -> Tensor:
        """The means of components (B, N), as `assign` gives them, as tokens (B, N, D)."""
        return self._take(self.anchor_tokens(), component)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shift tokens (B, N, D) towards their anchors; those of inactive units stay as they are."""
        if self.mode == "off" or self.shift_rate == 0.0:
            return tokens
        anchors, rates = self.pull(tokens)
        shifted = tokens + rates[..., None] * (anchors - tokens)
        return torch.where(self.active[:, None], shifted, tokens).to(tokens.dtype)

    @torch.no_grad()
    def track(self) -> None:
        """Move the means after the tokens of a training step, over all workers."""
        if self.inertia is None:
            return
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(self.chosen)
            torch.distributed.all_reduce(self.sums)
        chosen = self.chosen.unsqueeze(-1)
        self.means += (self.sums - chosen * self.means) / (chosen + self.inertia)
        self.chosen.zero_()
        self.sums.zero_()

    def pull(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Anchor q (B, N, D) and lambda (B, N) of every token; values of inactive units mean nothing."""
        if self.mode == "release":
            return self._released_pull(tokens)
        with torch.no_grad():
            normalised = self._normalise(tokens)
            component = torch.where(self.active, self._joint(normalised).argmax(-1), -1)
            anchors = self.nearest(component)
            if self.training and self.inertia is not None:
                self._gather(normalised, component)
            rates = torch.full_like(component, self.shift_rate, dtype=self.means.dtype)
            if self.mode == "ramp":
                rates = rates * self.ramp
        return anchors, rates

    def _released_pull(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            exact = tokens.to(self.means.dtype)
            top, bottom = exact.amax((0, 2)), exact.amin((0, 2))  # (N,)
            joint = self._joint((exact - top[:, None]) / (top - bottom + NORMALISATION_EPS)[:, None])
            anchors = self._take(self.means, joint.argmax(-1))  # normalised coordinates
        distance = torch.where(self.active[:, None], ((tokens - anchors) / (tokens + _RELEASE_EPS)).abs(), 0.0)
        num_entries = self.active.sum().clamp_min(1) * (tokens.shape[0] * tokens.shape[2])
        rate = self.shift_rate * torch.exp(-distance.sum() / num_entries)
        return anchors, rate.expand(tokens.shape[:2])

    def _gather(self, normalised: Tensor, component: Tensor) -> None:
        """Add normalised tokens (B, N, D) to the step's sums, by component (B, N), where -1 belongs to none."""
        choice = F.one_hot(component + 1, self.max_gaussians + 1)[..., 1:].to(self.means.dtype)  # (B, N, K)
        self.chosen += choice.sum(0)
        with torch.autocast(normalised.device.type, enabled=False):  # half precision would move means by its rounding
            self.sums += torch.einsum("bnk,bnd->nkd", choice, normalised)

    def _normalise(self, tokens: Tensor) -> Tensor:
        return (tokens.to(self.means.dtype) - self.offset[:, None]) / self.scale[:, None]

    def _joint(self, normalised: Tensor) -> Tensor:
        # Precisions reach 1e6: in the half precision of autocast the choice would be noise.
        with torch.autocast(normalised.device.type, enabled=False):
            return joint_log_density(normalised, self.log_weights, self.means, self.precision_cholesky)

    def _take(self, anchors: Tensor, component: Tensor) -> Tensor:
        """Rows of anchors (N, K, D) by component (B, N), where -1 takes the first: (B, N, D)."""
        units = torch.arange(len(anchors), device=anchors.device)
        return anchors[units, component.clamp_min(0)]
