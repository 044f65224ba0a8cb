"""Encode and edit images with a trained checkpoint, on uint8 arrays: the one object that CLI, tests and service call.

B images, N units, D unit width, C H W image, L h w latent, S sampling steps, V values.
An edit keeps what it is not told to change: the codes of the other units, and the starting noise, which `seed`
fixes. Equal seeds therefore give pictures that differ by the edit alone, whatever else is in the batch (but under
`anchors.mode=release`, whose shift depends on the batch). With `keep_details` the starting noise is the image's own,
found by DDIM inversion, instead of a seed's: what no unit describes stays too, as far as the network's prediction
follows the noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from raydis.build import build_method
from raydis.checkpoint.fetch import default_cache, fetch_checkpoint
from raydis.checkpoint.manifest import Manifest
from raydis.checkpoint.open import Checkpoint, open_checkpoint
from raydis.config import RunConfig
from raydis.data.loader import normalise
from raydis.editor.sampling import Sampling, choose_sampling
from raydis.errors import CheckpointError, ConfigError, EditError
from raydis.methods.contract import Method, TokenCloud, UnitMethod
from raydis.metrics.telling import UnitLabel, label_units
from raydis.registry import locate


@dataclass(frozen=True)
class Encoded:
    """What `encode` says of B images."""

    units: np.ndarray  # (B, N) float32, the units' scalars
    codes: np.ndarray  # (B, N, D) float32, what conditions the decoder
    facts: dict[str, np.ndarray]  # (B, N) each: what the method states of units beside their numbers, by name


@dataclass(frozen=True)
class UnitInfo:
    """What is known of one unit: its range over the data, what it tells, and what its method counts of it."""

    index: int
    low: float
    median: float
    high: float
    label: UnitLabel
    counts: dict[str, int]


class Editor:
    """A method in eval mode with its manifest.

    Args:
        method: trained, with unit quantiles measured.
        config, manifest, metrics: of the checkpoint it came from.
        image_shape: (H, W, C) that it was trained on.
    """

    def __init__(
        self,
        method: UnitMethod,
        config: RunConfig,
        manifest: Manifest,
        metrics: dict,
        *,
        image_shape: tuple[int, int, int],
    ) -> None:
        self.method = method.eval().requires_grad_(False)
        self.config = config
        self.manifest = manifest
        self.metrics = metrics
        self.image_shape = image_shape
        self.device = method.unit_quantiles.device
        self.num_units, self.unit_dim = method.num_units, method.unit_dim
        self.max_steps = method.max_steps

    @classmethod
    def open(cls, checkpoint: str | Path, *, storage: str = "runs", device: str | torch.device = "cpu") -> Self:
        """Open a checkpoint after verifying every file of it.

        Args:
            checkpoint: a folder, its s3:// URI, or the `name@version` or `name@alias` of a registered model.
            storage: folder or s3://bucket/prefix whose registry knows that name.
            device: where the model computes.

        Raises:
            CheckpointError: missing or changed files, weights that do not fit the configuration, or a first stage.
            RegistryError: no such model, version or alias.
            StoreError: the storage refused.
        """
        folder = fetch_checkpoint(locate(str(checkpoint), storage), default_cache())
        opened = open_checkpoint(folder)
        method, channels = _open_method(opened)
        if not isinstance(method, UnitMethod):
            raise CheckpointError(
                f"checkpoint {folder} is a first stage, which has no units: open that of a run that names it as its "
                "first_stage.checkpoint"
            )
        size = opened.config.data.image_size
        return cls(
            method.to(device), opened.config, opened.manifest, opened.metrics, image_shape=(size, size, channels)
        )

    @property
    def factor_names(self) -> list[str]:
        """Factors of the data set it was trained on, in the order of its scores and information; maybe none."""
        return list(self.metrics.get("factor_names") or [])

    @property
    def labels(self) -> tuple[UnitLabel, ...]:
        """What each unit tells, as it was measured when the checkpoint was scored; else "unknown"."""
        return label_units(self.metrics.get("information"), self.factor_names, self.num_units)

    def units(self) -> list[UnitInfo]:
        """Range, label and counts of each unit, in order."""
        quantiles, counts = self.method.unit_quantiles.cpu(), self.method.unit_counts()
        middle = quantiles.shape[1] // 2
        return [
            UnitInfo(
                index,
                float(row[0]),
                float(row[middle]),
                float(row[-1]),
                label,
                {name: values[index] for name, values in counts.items()},
            )
            for index, (row, label) in enumerate(zip(quantiles, self.labels, strict=True))
        ]

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> Encoded:
        """Encode uint8 images (B, H, W, C)."""
        units = self.method.units(self._tensor(images))
        return Encoded(
            units=units.cpu().numpy(),
            codes=self.method.lift(units).cpu().numpy(),
            facts={name: values.cpu().numpy() for name, values in self.method.facts(units).items()},
        )

    @torch.no_grad()
    def token_cloud(self, images: np.ndarray) -> TokenCloud | None:
        """Return the tokens of uint8 images (B, H, W, C) with what pulls them; None where nothing does."""
        return self.method.token_cloud(self._tensor(images))

    def sampling(self, num_steps: int | None, sampler: str | None, *, keep_details: bool = False) -> Sampling:
        """Return how this model draws; see `choose_sampling`."""
        return choose_sampling(self.max_steps, num_steps, sampler, keep_details=keep_details)

    def details(self, images: np.ndarray, *, num_steps: int | None = None) -> np.ndarray:
        """What no unit describes of uint8 images (B, H, W, C): the starting noise (B, L, h, w) that `decode` takes.

        It is found under the images' own units and for as many steps. Drawn with these units it gives the images back
        up to the error of the inversion, of the first stage, and of a network whose last prediction is blind to it.
        """
        steps, pictures = self.sampling(num_steps, None, keep_details=True).num_steps, self._tensor(images)
        assert steps is not None
        noise = self.method.invert(self.method.encode(pictures), pictures, steps)
        if noise is None:
            raise EditError("this model cannot find the noise of an image: leave keep_details out")
        return noise.cpu().numpy()

    def decode(
        self,
        units: np.ndarray,
        *,
        seed: int | Sequence[int] = 0,
        num_steps: int | None = None,
        sampler: str | None = None,
        details: np.ndarray | None = None,
    ) -> np.ndarray:
        """Draw the images of scalars (B, N): uint8 (B, H, W, C).

        Args:
            seed: of the one starting noise of all images, or B seeds, one an image. Either way an image depends on
                its own seed alone.
            sampler: see `choose_sampling`.
            details: starting noise from `details`, (B, L, h, w), instead of a seed's.

        Raises:
            EditError: units or details of another shape or not finite, not as many seeds as images, more steps than
                the noise schedule has, or a sampler that is unknown or cannot keep details.
        """
        steps, chosen = self.sampling(num_steps, sampler, keep_details=details is not None)
        values = torch.as_tensor(units, dtype=torch.float32, device=self.device)
        if values.ndim != 2 or values.shape[1] != self.num_units or not bool(torch.isfinite(values).all()):
            raise EditError(
                f"units have shape {tuple(values.shape)}: give finite values of shape (B, {self.num_units})"
            )
        noise = self._noise(seed, len(values)) if details is None else self._details(details, len(values))
        images = self.method.decode(self.method.lift(values), noise, steps, chosen)
        return ((images + 1.0) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()

    def edit(
        self,
        images: np.ndarray,
        *,
        set_units: Mapping[int, float] | None = None,
        shift_units: Mapping[int, float] | None = None,
        seed: int = 0,
        num_steps: int | None = None,
        sampler: str | None = None,
        keep_details: bool = False,
    ) -> np.ndarray:
        """Set units to values, shift units by amounts, and draw again: uint8 (B, H, W, C) in and out.

        With neither it reconstructs. Values are in the unit's own scale; `units()` tells its range.

        Args:
            keep_details: draw from the images' own `details`, by `ddim`: twice the calls of the network, and the seed
                has no influence.

        Raises:
            EditError: no such unit, a unit both set and shifted, images of another shape, or a sampler that is unknown
                or cannot keep details.
        """
        units = self.edit_units(self.encode(images).units, set_units=set_units, shift_units=shift_units)
        details = self._kept(images, sampler, num_steps) if keep_details else None
        return self.decode(units, seed=seed, num_steps=num_steps, sampler=sampler, details=details)

    def edit_units(
        self,
        units: np.ndarray,
        *,
        set_units: Mapping[int, float] | None = None,
        shift_units: Mapping[int, float] | None = None,
    ) -> np.ndarray:
        """A copy of scalars (B, N) with some set and some shifted. Raises EditError as `edit` does."""
        units = units.copy()
        for index, value in (set_units or {}).items():
            units[:, self._checked(index)] = value
        for index, amount in (shift_units or {}).items():
            if index in (set_units or {}):
                raise EditError(f"unit {index} is both set and shifted: give one of them")
            units[:, self._checked(index)] += amount
        return units

    def swap(
        self,
        source: np.ndarray,
        target: np.ndarray,
        units: Sequence[int],
        *,
        seed: int = 0,
        num_steps: int | None = None,
        sampler: str | None = None,
        keep_details: bool = False,
    ) -> np.ndarray:
        """Draw `source` (B, H, W, C) with the given units taken from `target` of the same shape.

        `keep_details` keeps those of `source`.
        """
        values = self.encode(source).units.copy()
        donors = self.encode(target).units
        chosen = [self._checked(index) for index in units]
        values[:, chosen] = donors[:, chosen]
        details = self._kept(source, sampler, num_steps) if keep_details else None
        return self.decode(values, seed=seed, num_steps=num_steps, sampler=sampler, details=details)

    def swap_each(
        self,
        source: np.ndarray,
        target: np.ndarray,
        *,
        seed: int = 0,
        num_steps: int | None = None,
        sampler: str | None = None,
        keep_details: bool = False,
    ) -> np.ndarray:
        """Draw one image (H, W, C) N times, each time with one unit of another image: (N, H, W, C)."""
        pair = self.encode(np.stack([source, target])).units
        values = np.repeat(pair[:1], self.num_units, axis=0)
        np.fill_diagonal(values, pair[1])
        details = self._kept(source[None], sampler, num_steps, repeats=len(values)) if keep_details else None
        return self.decode(values, seed=seed, num_steps=num_steps, sampler=sampler, details=details)

    def traverse(
        self,
        image: np.ndarray,
        *,
        units: Sequence[int] | None = None,
        num_values: int = 7,
        seed: int = 0,
        num_steps: int | None = None,
        sampler: str | None = None,
        keep_details: bool = False,
    ) -> np.ndarray:
        """Walk units of one image (H, W, C) along their quantiles over the data: uint8 (N', V, H, W, C).

        Row i changes unit units[i] alone; the columns are the 2.5 % to the 97.5 % quantile, evenly spaced in rank.
        """
        chosen = [self._checked(index) for index in (range(self.num_units) if units is None else units)]
        ranks = np.linspace(0.025, 0.975, num_values)
        levels = np.linspace(0.0, 1.0, self.method.unit_quantiles.shape[1])
        quantiles = self.method.unit_quantiles.cpu().numpy()
        values = np.repeat(self.encode(image[None]).units, len(chosen) * num_values, axis=0)
        for row, index in enumerate(chosen):
            values[row * num_values : (row + 1) * num_values, index] = np.interp(ranks, levels, quantiles[index])
        details = self._kept(image[None], sampler, num_steps, repeats=len(values)) if keep_details else None
        drawn = self.decode(values, seed=seed, num_steps=num_steps, sampler=sampler, details=details)
        return drawn.reshape(len(chosen), num_values, *drawn.shape[1:])

    def _kept(self, images: np.ndarray, sampler: str | None, num_steps: int | None, repeats: int = 1) -> np.ndarray:
        """The details of images, each repeated, once it is known that the sampler can keep them."""
        self.sampling(num_steps, sampler, keep_details=True)
        return np.repeat(self.details(images, num_steps=num_steps), repeats, axis=0)

    def _details(self, details: np.ndarray, count: int) -> Tensor:
        """Details as starting noise (count, L, h, w). Raises EditError where they are none."""
        noise = torch.as_tensor(details, dtype=torch.float32)
        shape = (count, *(self.method.noise_shape or ()))
        if noise.shape != shape or not bool(torch.isfinite(noise).all()):
            raise EditError(f"details have shape {tuple(noise.shape)}: give finite values of shape {shape}")
        return noise.to(self.device)

    def _noise(self, seed: int | Sequence[int], count: int) -> Tensor | None:
        """Starting noise (count, L, h, w), drawn on the host: the same on every device; None without noise."""
        seeds = [seed] * count if isinstance(seed, int) else list(seed)
        if len(seeds) != count:
            raise EditError(f"{len(seeds)} seeds for {count} images: give one seed, or one an image")
        shape = self.method.noise_shape
        if shape is None:
            return None
        noises = {each: torch.randn(shape, generator=torch.Generator().manual_seed(each)) for each in set(seeds)}
        return torch.stack([noises[each] for each in seeds]).to(self.device)

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.num_units:
            raise EditError(f"no unit {index}: this model has units 0 to {self.num_units - 1}")
        return index

    def _tensor(self, images: np.ndarray) -> Tensor:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise EditError(
                f"images are {images.dtype} of shape {images.shape}: give uint8 of shape (B, "
                f"{', '.join(map(str, self.image_shape))})"
            )
        owned = np.require(images, requirements=("C", "W"))  # Pillow's arrays are read-only, which torch warns of
        return normalise(torch.from_numpy(owned).to(self.device))


def _open_method(checkpoint: Checkpoint) -> tuple[Method, int]:
    """The trained method of a checkpoint, and the channels C of its images, which the configuration does not know.

    Raises:
        CheckpointError: weights that fit neither colour nor grey images of the configuration.
    """
    weights, found = checkpoint.weights(), ""
    for channels in (3, 1):
        try:
            method = build_method(checkpoint.config, channels)
            method.load_state_dict(weights)
        except (RuntimeError, ConfigError) as error:
            found = found or " ".join(str(error).split())[:300]
        else:
            return method, channels
    raise CheckpointError(
        f"checkpoint {checkpoint.folder}: its weights do not fit its config.json ({found}): use another checkpoint"
    )
