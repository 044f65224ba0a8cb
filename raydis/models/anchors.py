"""Dynamic Gaussian Anchoring (DyGA, arXiv 2410.23820): move the tokens of a unit towards the means of a mixture.

S samples, B batch, N units, D unit width, K = max_gaussians components.

A Gaussian mixture is fitted to the tokens of each unit. The anchor q of a token c is the mean of the component that c
most probably belongs to. The module returns c~ = c + lambda (q - c), with no gradient through q. The mode decides
lambda, the share of the way to the anchor:

- `constant`: lambda = shift_rate for every token.
- `ramp`: lambda = shift_rate * ramp, where ramp rises from 0 to 1 during training, as in earlier revisions of the
  authors' released code.
- `release`: the formula of the released code, for comparisons. It normalises by the extremes of the batch, leaves q in
  normalised coordinates, and uses one lambda for the whole batch, shift_rate exp(-mean |(c - q) / (c + 1e-6)|). The
  result for an image therefore depends on the other images of its batch. As q is never positive, lambda is at most
  shift_rate / e if no token has a negative entry, and a few entries of exactly 0, as after a ReLU, make it 0.
- `off`: tokens stay as they are.

The paper lets lambda shrink with the distance between a token and its anchor. Our former mode `relative` did so by the
factor exp(-mean_d |c^ - q^|), where hats denote normalised coordinates, in which the tokens of a unit span the length
1. A fitted mixture has an anchor near every token on that scale, so the factor had a median of 0.995 on trained models.
The mode was therefore nearly the same as `constant`, which replaces it.

`constant` and `ramp` deviate from the released code on purpose. The fit and the shift use one stored normalisation, and
c and q the same coordinates. Between two fits, the means follow the tokens: while the encoder learns, the tokens leave
a fixed mean behind within a hundred steps, and a shift to a place where no tokens are any more adds noise. Each step
replaces mu_k by (inertia mu_k + the sum of the tokens that chose k) / (inertia + their number). This is stepwise EM
(Cappé & Moulines, 2009) with hard assignments, or the moving average of VQ-VAE's codebook (arXiv 1711.00937, appendix
A.1) with an explicit count.
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
    """The component that each token most probably belongs to.

    Attributes:
        component: (B, N), index of the component with the largest posterior probability; -1 for an inactive unit.
        responsibility: (B, N), that probability; 0 for an inactive unit.
    """

    component: Tensor
    responsibility: Tensor


class Anchors(nn.Module):
    """Holds the mixtures of all units and shifts tokens towards their means. It is the identity before the first fit.

    Everything that changes the shifted tokens is a buffer of fixed shape that is filled in place. A state dict
    therefore restores it, and compiled code and captured CUDA graphs remain valid after a refit.

    Args:
        num_units: N.
        unit_dim: D.
        mode: how far tokens move; see the module's docstring.
        max_gaussians: K, the largest number of components of a unit.
        shift_rate: share of the way to the anchor that a token moves, in [0, 1]. For `ramp` and `release` it is the
            largest share.
        inertia: the number of tokens that the present mean counts for when it follows the tokens in training. With None
            the means stay fixed between fits.

    Buffers:
        offset, scale, log_weights, means, precision_cholesky, alive, active: as in `Mixtures`.
        fitted: (), whether there was a fit.
        ramp: (), in [0, 1], set in each training step and used by mode `ramp` alone.
        chosen, sums: (N, K) and (N, K, D), number and sum of the normalised tokens of this step, by their component.
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
        """Fit the mixtures to tokens (S, N, D) of the encoder, which must not be shifted, from the last fit on.

        The arguments, and the ValueError for wrong ones, are those of `fit_mixtures`.

        Returns:
            the fitted mixtures, with the reasons for inactive units.
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
        """Return the mixtures that the buffers hold. Their log-likelihoods and reasons are empty."""
        return Mixtures(
            **{name: getattr(self, name) for name in _FITTED},
            log_likelihood=self.offset.new_zeros(0, len(self.offset)),
            reasons=("",) * len(self.offset),
        )

    @torch.no_grad()
    def assign(self, tokens: Tensor) -> Assignment:
        """Find the component that each token (B, N, D) most probably belongs to."""
        joint = self._joint(self._normalise(tokens))
        density = joint.logsumexp(-1)  # (B, N)
        best, component = joint.max(-1)
        return Assignment(
            component=torch.where(self.active, component, -1),
            responsibility=torch.where(self.active, (best - density).exp(), 0.0),
        )

    def anchor_tokens(self) -> Tensor:
        """Return the means in the coordinates of tokens, (N, K, D); 0 where `alive` (N, K) is false."""
        tokens = self.means * self.scale[:, None, None] + self.offset[:, None, None]
        return torch.where(self.alive[..., None], tokens, 0.0)

    def nearest(self, component: Tensor) -> Tensor:
        """Return the anchors (B, N, D) of components (B, N), which `assign` has found."""
        return self._take(self.anchor_tokens(), component)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shift tokens (B, N, D) towards their anchors. Tokens of inactive units stay as they are."""
        if self.mode == "off" or self.shift_rate == 0.0:
            return tokens
        anchors, rates = self.pull(tokens)
        shifted = tokens + rates[..., None] * (anchors - tokens)
        return torch.where(self.active[:, None], shifted, tokens).to(tokens.dtype)

    @torch.no_grad()
    def track(self) -> None:
        """Move the means towards the tokens that all workers have seen in this training step."""
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
        """Return the anchor q (B, N, D) and lambda (B, N) of every token. Values of inactive units mean nothing."""
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
        """Add normalised tokens (B, N, D) to the sums of this step by component (B, N); -1 stands for none."""
        choice = F.one_hot(component + 1, self.max_gaussians + 1)[..., 1:].to(self.means.dtype)  # (B, N, K)
        self.chosen += choice.sum(0)
        with torch.autocast(normalised.device.type, enabled=False):  # half precision would round the means
            self.sums += torch.einsum("bnk,bnd->nkd", choice, normalised)

    def _normalise(self, tokens: Tensor) -> Tensor:
        return (tokens.to(self.means.dtype) - self.offset[:, None]) / self.scale[:, None]

    def _joint(self, normalised: Tensor) -> Tensor:
        # Inverse covariances reach 1e6. In autocast's half precision, the choice of a component would be noise.
        with torch.autocast(normalised.device.type, enabled=False):
            return joint_log_density(normalised, self.log_weights, self.means, self.precision_cholesky)

    def _take(self, anchors: Tensor, component: Tensor) -> Tensor:
        """Look up anchors (N, K, D) by component (B, N), giving (B, N, D); -1 takes the first."""
        units = torch.arange(len(anchors), device=anchors.device)
        return anchors[units, component.clamp_min(0)]
