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
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from raydis.checkpoint.fetch import default_cache, fetch_checkpoint
from raydis.checkpoint.manifest import Manifest
from raydis.checkpoint.open import Checkpoint
from raydis.config import RunConfig
from raydis.data.pixels import denormalise, normalise
from raydis.editor.noise import checked_details, drawn_noise
from raydis.editor.open import open_method
from raydis.editor.sampling import Sampling, choose_sampling
from raydis.editor.units import Encoded, UnitInfo, describe_units, edited, swapped, swapped_each, traversed
from raydis.errors import EditError
from raydis.methods.contract import TokenCloud, UnitMethod
from raydis.metrics.telling import UnitLabel, label_units
from raydis.registry import locate


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
    def open(
        cls, checkpoint: str | Path | Checkpoint, *, storage: str = "runs", device: str | torch.device = "cpu"
    ) -> Self:
        """Open a checkpoint after verifying every file of it.

        Args:
            checkpoint: a folder, its s3:// URI, or the `name@version` or `name@alias` of a registered model; or an
                opened checkpoint, whose files are verified already.
            storage: folder or s3://bucket/prefix whose registry knows that name.
            device: where the model computes.

        Raises:
            CheckpointError: missing or changed files, weights that do not fit the configuration, or a first stage.
            RegistryError: no such model, version or alias.
            StoreError: the storage refused.
        """
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = fetch_checkpoint(locate(str(checkpoint), storage), default_cache())
        method, channels = open_method(checkpoint)
        size = checkpoint.config.data.image_size
        return cls(
            method.to(device),
            checkpoint.config,
            checkpoint.manifest,
            checkpoint.metrics,
            image_shape=(size, size, channels),
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
        return describe_units(self._quantiles(), self.labels, self.method.unit_counts())

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

    def sampling(self, steps: int | None, sampler: str | None, *, keep_details: bool = False) -> Sampling:
        """Return how this model draws; see `choose_sampling`."""
        return choose_sampling(self.max_steps, steps, sampler, keep_details=keep_details)

    def details(self, images: np.ndarray, *, steps: int | None = None) -> np.ndarray:
        """What no unit describes of uint8 images (B, H, W, C): the starting noise (B, L, h, w) that `decode` takes.

        It is found under the images' own units and for as many steps. Drawn with these units it gives the images back
        up to the error of the inversion, of the first stage, and of a network whose last prediction is blind to it.
        """
        steps, pictures = self.sampling(steps, None, keep_details=True).steps, self._tensor(images)
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
        steps: int | None = None,
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
        steps, chosen = self.sampling(steps, sampler, keep_details=details is not None)
        values = torch.as_tensor(units, dtype=torch.float32, device=self.device)
        if values.ndim != 2 or values.shape[1] != self.num_units or not bool(torch.isfinite(values).all()):
            raise EditError(
                f"units have shape {tuple(values.shape)}: give finite values of shape (B, {self.num_units})"
            )
        shape = self.method.noise_shape
        if details is None:
            noise = drawn_noise(seed, len(values), shape)
        else:
            noise = checked_details(details, len(values), shape)
        noise = None if noise is None else noise.to(self.device)
        return denormalise(self.method.decode(self.method.lift(values), noise, steps, chosen)).cpu().numpy()

    def edit(
        self,
        images: np.ndarray,
        *,
        set: Mapping[int, float] | None = None,
        shift: Mapping[int, float] | None = None,
        seed: int = 0,
        steps: int | None = None,
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
        units = self.edit_units(self.encode(images).units, set=set, shift=shift)
        details = self._kept(images, sampler, steps) if keep_details else None
        return self.decode(units, seed=seed, steps=steps, sampler=sampler, details=details)

    def edit_units(
        self,
        units: np.ndarray,
        *,
        set: Mapping[int, float] | None = None,
        shift: Mapping[int, float] | None = None,
    ) -> np.ndarray:
        """Return a copy of scalars (B, N) with some set and some shifted. Raises EditError as `edit` does."""
        return edited(units, set, shift)

    def swap(
        self,
        source: np.ndarray,
        target: np.ndarray,
        units: Sequence[int],
        *,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        keep_details: bool = False,
    ) -> np.ndarray:
        """Draw `source` (B, H, W, C) with the given units taken from `target` of the same shape.

        `keep_details` keeps those of `source`.
        """
        values = swapped(self.encode(source).units, self.encode(target).units, units)
        details = self._kept(source, sampler, steps) if keep_details else None
        return self.decode(values, seed=seed, steps=steps, sampler=sampler, details=details)

    def swap_each(
        self,
        source: np.ndarray,
        target: np.ndarray,
        *,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        keep_details: bool = False,
    ) -> np.ndarray:
        """Draw one image (H, W, C) N times, each time with one unit of another image: (N, H, W, C)."""
        pair = self.encode(np.stack([source, target])).units
        values = swapped_each(pair[0], pair[1])
        details = self._kept(source[None], sampler, steps, repeats=len(values)) if keep_details else None
        return self.decode(values, seed=seed, steps=steps, sampler=sampler, details=details)

    def traverse(
        self,
        image: np.ndarray,
        *,
        units: Sequence[int] | None = None,
        num_values: int = 7,
        seed: int = 0,
        steps: int | None = None,
        sampler: str | None = None,
        keep_details: bool = False,
    ) -> np.ndarray:
        """Walk units of one image (H, W, C) along their quantiles over the data: uint8 (N', V, H, W, C).

        Row i changes unit units[i] alone; the columns are the 2.5 % to the 97.5 % quantile, evenly spaced in rank.
        """
        chosen = range(self.num_units) if units is None else units
        values = traversed(self.encode(image[None]).units[0], self._quantiles(), chosen, num_values)
        details = self._kept(image[None], sampler, steps, repeats=len(values)) if keep_details else None
        drawn = self.decode(values, seed=seed, steps=steps, sampler=sampler, details=details)
        return drawn.reshape(len(chosen), num_values, *drawn.shape[1:])

    def _quantiles(self) -> np.ndarray:
        return self.method.unit_quantiles.cpu().numpy()

    def _kept(self, images: np.ndarray, sampler: str | None, steps: int | None, repeats: int = 1) -> np.ndarray:
        """The details of images, each repeated, once it is known that the sampler can keep them."""
        self.sampling(steps, sampler, keep_details=True)
        return np.repeat(self.details(images, steps=steps), repeats, axis=0)

    def _tensor(self, images: np.ndarray) -> Tensor:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.image_shape:
            raise EditError(
                f"images are {images.dtype} of shape {images.shape}: give uint8 of shape (B, "
                f"{', '.join(map(str, self.image_shape))})"
            )
        owned = np.require(images, requirements=("C", "W"))  # Pillow's arrays are read-only, which torch warns of
        return normalise(torch.from_numpy(owned).to(self.device))
