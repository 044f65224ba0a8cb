"""The base class of methods whose units are vectors, perhaps of different widths.

B batch, M sample, N units, D largest width of a unit, C H W image.

Edits, quantiles and traversals need one number for each unit. Here it is the position of the unit's vector along the
unit's principal axis, the direction in which its vectors vary most over the data. This is the number to which DisDiff
(arXiv 2301.13721) and DyGA+SD (arXiv 2410.23820) reduce a vector for the metrics of scalars. Setting it moves the
vector along this axis, and keeps what the vector holds beside it. A swap exchanges whole vectors.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raydis.methods.contract import Diagnosis, FactorTable, UnitMethod
from raydis.metrics.grouped import swap_consistency
from raydis.metrics.telling import UnitLabel

SWAPPED_IMAGES = 512  # of which as many swaps are drawn for each unit
COLUMNS = ("part", "width", "share on axis", "taken", "kept")
NOTE = (
    "The unit of another image was put into each image, which was drawn and encoded again. "
    "Share on axis: the share of the vectors' variance that the unit's scalar tells. Taken: the consistency of the "
    "unit after it was swapped. Kept: its consistency after another unit was swapped. 1 means that exactly the vector "
    "that was put in is found again, 0 that the vector found is no closer to it than that of a random image."
)


class VectorUnitMethod(UnitMethod):
    """A method that encodes an image to one vector for each unit. It defines `encode` instead of `units`.

    Before `calibrate` has measured the axes, the number of a unit is the first entry of its vector.
    """

    units_are_vectors = True
    unit_names: tuple[str, ...] = ()  # what the method calls its units; empty for their numbers
    unit_axes: Tensor  # buffer (N, D): the principal axis of each unit, of length 1
    unit_means: Tensor  # buffer (N, D): the mean code

    def register_units(self, widths: Sequence[int]) -> None:
        """Register what `calibrate` measures, for units of these widths; `__init__` calls this."""
        self._widths = tuple(widths)
        self.unit_names = self.unit_names or tuple(f"unit {unit}" for unit in range(len(self._widths)))
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

    @torch.no_grad()
    def diagnose(
        self, parts: Iterable[Tensor], table: FactorTable | None, labels: Sequence[UnitLabel]
    ) -> Diagnosis | None:
        """Measure the units of swapped images that are drawn and encoded again; None if drawing takes noise.

        Each image gets the units of another one of its part, one at a time. The consistency of a unit is that of
        `swap_consistency`: 1 if exactly the unit that was put in is found again.
        """
        if self.noise_shape is not None:
            return None
        given, expected, found = list[Tensor](), list[Tensor](), list[Tensor]()
        for images in _at_most(parts, SWAPPED_IMAGES):
            codes, half = self.encode(images), len(images) // 2  # next to each other, images may be alike
            swapped = codes.repeat(self.num_units, 1, 1, 1)  # (N, b, N, D), block i with unit i of another image
            for unit in range(self.num_units):
                swapped[unit, :, unit] = codes.roll(half, 0)[:, unit]
            again = [self.encode(self.decode(block, None, None, None)) for block in swapped]
            given, expected, found = [*given, codes], [*expected, swapped], [*found, torch.stack(again)]
        if sum(map(len, given)) < 2:
            return None
        pairs = zip(torch.cat(found, 1).cpu().numpy(), torch.cat(expected, 1).cpu().numpy(), strict=True)
        return self._tell(torch.cat(given), np.stack([swap_consistency(*pair) for pair in pairs]))

    def _tell(self, codes: Tensor, consistency: np.ndarray) -> Diagnosis:
        """Lay out the codes (M, N, D) and the consistency (N, N): row i after unit i was swapped, a column a unit."""
        total = codes.double().var(0).sum(-1)
        shares = (self._positions(codes).double().var(0) / total).tolist()
        others = ~np.eye(self.num_units, dtype=bool)
        rows = []
        for unit, width in enumerate(self._widths):
            kept = consistency[others[:, unit], unit].mean() if self.num_units > 1 else None
            numbers = (shares[unit], consistency[unit, unit], kept)
            cells = (None if each is None or not np.isfinite(each) else round(float(each), 3) for each in numbers)
            rows.append((self.unit_names[unit], width, *cells))
        return Diagnosis(title="Vectors of the units", columns=COLUMNS, rows=tuple(rows), note=NOTE)

    def _positions(self, codes: Tensor) -> Tensor:
        # A product and a sum, not a matrix product: the result of a row must not depend on the number of rows.
        return ((codes - self.unit_means) * self.unit_axes).sum(-1)


def _at_most(parts: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """Yield the first `count` images."""
    for images in parts:
        if count <= 0:
            return
        yield images[:count]
        count -= len(images)
