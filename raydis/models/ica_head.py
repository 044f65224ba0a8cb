"""A linear map to independent components as part of a model; see `raydis.models.ica`. B batch, M samples, N units."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor, nn

from raydis.errors import FitError
from raydis.models.ica import MAX_ITERATIONS, TOLERANCE, Floats, find_rotation, whiten

UNFITTED, FITTED, FAILED = range(3)

log = logging.getLogger(__name__)


class IcaHead(nn.Module):
    """An invertible affine map from units to independent components. It is fitted in closed form, not by gradients.

    Before it is fitted, and after a fit that failed, it is the identity.

    Args:
        num_units: N.
        max_iterations, tolerance: see `find_rotation`.
    """

    def __init__(self, num_units: int, *, max_iterations: int = MAX_ITERATIONS, tolerance: float = TOLERANCE) -> None:
        super().__init__()
        self.max_iterations = max_iterations
        self.tolerance = tolerance
        self.register_buffer("mean", torch.zeros(num_units))
        self.register_buffer("unmixing", torch.eye(num_units))
        self.register_buffer("mixing", torch.eye(num_units))
        self.register_buffer("state", torch.tensor(UNFITTED))
        self.mean: Tensor
        self.unmixing: Tensor
        self.mixing: Tensor
        self.state: Tensor

    def fit(self, units: Tensor) -> None:
        """Fit the map to units (M, N). If that fails, log the reason as a warning; see `not_ready`."""
        samples = units.detach().cpu().double().numpy()
        try:
            white = whiten(samples)
            rotation = find_rotation(
                (samples - white.mean) @ white.forward.T,
                seed=0,
                max_iterations=self.max_iterations,
                tolerance=self.tolerance,
            )
        except FitError as error:
            log.warning("the units are not rotated to independent components: %s", error)
            identity = np.eye(samples.shape[1])
            self._set(np.zeros(samples.shape[1]), identity, identity, FAILED)
        else:
            self._set(white.mean, rotation @ white.forward, white.backward @ rotation.T, FITTED)

    def _set(self, mean: Floats, unmixing: Floats, mixing: Floats, state: int) -> None:
        for buffer, values in ((self.mean, mean), (self.unmixing, unmixing), (self.mixing, mixing)):
            buffer.copy_(torch.from_numpy(values))
        self.state.fill_(state)

    def not_ready(self) -> str | None:
        """Return why there are no independent components; None if there are."""
        if int(self.state) == FITTED:
            return None
        if int(self.state) == UNFITTED:
            return "independent components have not been fitted to the units yet: let training reach a checkpoint"
        return (
            "the units have no independent components: ICA did not converge, or the units vary in fewer directions "
            "than there are units. Lower method.num_units or train longer"
        )

    def forward(self, units: Tensor) -> Tensor:
        """Map units (B, N) to components (B, N)."""
        return (units - self.mean) @ self.unmixing.T

    def inverse(self, components: Tensor) -> Tensor:
        """Map components (B, N) back to units (B, N)."""
        return components @ self.mixing.T + self.mean
