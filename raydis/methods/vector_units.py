"""The base class of methods whose units are vectors, perhaps of different widths.

B batch, M sample, N units, D largest width of a unit, C H W image.

Edits, quantiles and traversals need one number for each unit. Here it is the position of the unit's vector along the
unit's principal axis, the direction in which its vectors vary most over the data. This is the number to which DisDiff
(arXiv 2301.13721) and DyGA+SD (arXiv 2410.23820) reduce a vector for the metrics of scalars. Setting it moves the
vector along this axis, and keeps what the vector holds beside it. A swap exchanges whole vectors.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from raydis.methods.contract import UnitMethod


class VectorUnitMethod(UnitMethod):
    """A method that encodes an image to one vector for each unit. It defines `encode` instead of `units`.

    Before `calibrate` has measured the axes, the number of a unit is the first entry of its vector.
    """

    units_are_vectors = True
    unit_axes: Tensor  # buffer (N, D): the principal axis of each unit, of length 1
    unit_means: Tensor  # buffer (N, D): the mean code

    def register_units(self, widths: Sequence[int]) -> None:
        """Register what `calibrate` measures, for units of these widths; `__init__` calls this."""
        self._widths = tuple(widths)
        self.num_units, self.unit_dim = len(self._widths), max(self._widths)
        self.register_quantiles(self.num_units)
        self.register_buffer("unit_axes", torch.eye(1, self.unit_dim).repeat(self.num_units, 1))
        self.register_buffer("unit_means", torch.zeros(self.num_units, self.unit_dim))

    @property
    def unit_widths(self) -> tuple[int, ...]:
        """The width of each unit. The rest of its code, up to D, is zero."""
        return self._widths

    @abc.abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Return the codes (B, N, D) of images (B, C, H, W) in [-1, 1], with zeros beyond the width of a unit.

        They must be deterministic, and must not depend on the other images of the batch.
        """

    def pad(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return the codes (B, N, D) that N vectors (B, width of the unit) make: zeros fill up the narrower ones."""
        return torch.stack([F.pad(each, (0, self.unit_dim - each.shape[1])) for each in vectors], dim=1)

    def cut(self, codes: Tensor) -> list[Tensor]:
        """Return the N vectors (B, width of the unit) of codes (B, N, D): the inverse of `pad`."""
        return [codes[:, unit, :width] for unit, width in enumerate(self._widths)]

    @torch.no_grad()
    def units(self, images: Tensor) -> Tensor:
        """Return the position (B, N) of each unit's vector along its axis, relative to the mean."""
        return self.represent(images)[0]

    @torch.no_grad()
    def represent(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the units (B, N) and the codes (B, N, D) of images (B, C, H, W) in [-1, 1] in one pass."""
        codes = self.encode(images)
        return self._positions(codes), codes

    @torch.no_grad()
    def lift(self, units: Tensor) -> Tensor:
        """Map positions (B, N) to codes (B, N, D) on the axes, which hold nothing beside these positions."""
        return self.unit_means + units.unsqueeze(-1) * self.unit_axes

    @torch.no_grad()
    def write(self, codes: Tensor, units: Tensor) -> Tensor:
        """Return codes (B, N, D), moved along the axes to the positions `units` (B, N)."""
        return codes + (units - self._positions(codes)).unsqueeze(-1) * self.unit_axes

    @torch.no_grad()
    def calibrate(self, parts: Iterable[Tensor]) -> None:
        """Measure the principal axes and the means of the codes, and the quantiles of the positions along the axes.

        The signs are those of `per_unit_pca`: the loading of largest magnitude is positive. A unit that is constant
        keeps the axis of its first entry.
        """
        codes = torch.cat([self.encode(images) for images in parts]).double()  # (M, N, D)
        means = codes.mean(0)
        centred = (codes - means).transpose(0, 1)  # (N, M, D)
        scatter = (centred.transpose(1, 2) @ centred).cpu()  # small, and decomposed alike for every device
        self.unit_means.copy_(means)
        self.unit_axes.copy_(torch.eye(1, self.unit_dim).repeat(self.num_units, 1))
        for unit, width in enumerate(self._widths):
            within = scatter[unit, :width, :width]
            if bool(within.isfinite().all()) and bool(within.any()):
                axis = torch.linalg.eigh(within).eigenvectors[:, -1]
                self.unit_axes[unit, :width] = (axis * axis[axis.abs().argmax()].sign()).to(self.unit_axes)
        self.measure_quantiles(self._positions(codes.to(self.unit_means.dtype)))

    def _positions(self, codes: Tensor) -> Tensor:
        # A product and a sum, not a matrix product: the result of a row must not depend on the number of rows.
        return ((codes - self.unit_means) * self.unit_axes).sum(-1)
