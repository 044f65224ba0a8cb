"""Encode images to units, change units, and draw the images again: the `Editor`, which works on uint8 arrays.

B images, N units, D unit width, C H W image, L h w latent, V values.

An edit changes the units that it names, and keeps the others. A method that draws from noise also keeps the starting
noise, which `seed` determines, so two pictures of equal seeds differ by the edit alone, whatever else is in the batch.
(The exception is `anchors.mode=release`, whose shift depends on the batch.) With `keep_details`, drawing starts from
the image's own noise, which DDIM inversion finds. What no unit describes then stays too, to the extent that the network
reads it from the noise. Where a method encodes a residual beside its units, the residual is this noise: `seed` draws it
from its prior, and `keep_details` keeps that of the image.
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
from raydis.editor.checks import checked_images, checked_units
from raydis.editor.noise import checked_details, drawn_noise
from raydis.editor.open import open_method
from raydis.editor.sampling import Sampling, choose_sampling
from raydis.editor.units import Encoded, UnitInfo, describe_units, edited, swapped, swapped_each, traversed
from raydis.errors import EditError
from raydis.methods.contract import TokenCloud, UnitMethod
from raydis.metrics.scores import Scores
from raydis.metrics.telling import UnitLabel, label_units
from raydis.registry import locate


class Editor:
    """A trained method, and the checkpoint that it came from. The command line, the service and the report use it.

    Args:
        method: a trained method whose unit quantiles have been measured. It is put into eval mode.
        config, manifest, metrics: those of the checkpoint.
        image_shape: (H, W, C) of the images that it was trained on.
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
        self.config, self.manifest, self.metrics = config, manifest, metrics
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
        """The names of the factors of its data set, in the order of its scores; empty for data without factors."""
        return list(self.metrics.get("factor_names") or [])

    @property
    def scores(self) -> Scores | None:
        """The scores of the checkpoint; None if it was not scored. Raises MetricError if they cannot be read."""
        found = self.metrics.get("scores")
        return None if found is None else Scores.from_dict(found)

    @property
    def labels(self) -> tuple[UnitLabel, ...]:
        """The factors that each unit describes, as measured when the checkpoint was scored; else of kind "unknown"."""
        return label_units(self.metrics.get("information"), self.factor_names, self.num_units)

    def units(self) -> list[UnitInfo]:
        """Return the range, the label and the counts of each unit, in order."""
        return describe_units(self._quantiles(), self.labels, self.method.unit_counts())

    @torch.no_grad()
    def encode(self, images: np.ndarray) -> Encoded:
        """Encode uint8 images (B, H, W, C)."""
        units, codes = self.method.represent(self._tensor(images))
        return Encoded(
            units=units.cpu().numpy(),
            codes=codes.cpu().numpy(),
            facts={name: values.cpu().numpy() for name, values in self.method.facts(units).items()},
        )

    @torch.no_grad()
    def token_cloud(self, images: np.ndarray) -> TokenCloud | None:
        """Return the tokens of uint8 images (B, H, W, C) and their anchors; None if the method has no anchors."""
        return self.method.token_cloud(self._tensor(images))

    def sampling(self, steps: int | None, sampler: str | None, *, keep_details: bool = False) -> Sampling:
        """Return the steps and the sampler that this model draws with; see `choose_sampling`."""
        takes_noise, own = self.method.noise_shape is not None, self.method.default_steps
        return choose_sampling(
            self.max_steps, steps, sampler, default_steps=own, keep_details=keep_details, takes_noise=takes_noise
        )

    def details(self, images: np.ndarray, *, steps: int | None = None) -> np.ndarray:
        """Return the details of uint8 images (B, H, W, C): the starting noise (B, L, h, w) that they are drawn from.

        `decode` draws the images again from their own units and these details, in as many steps. The result differs
        from the images by the error of the inversion, by that of the first stage, and by what the network's last
        prediction does not take from the noise.

        Raises:
            EditError: the model draws without noise, steps out of range, or images of another shape.
        """
        steps, pictures = self.sampling(steps, None, keep_details=True).steps, self._tensor(images)
        noise = self.method.invert(self.method.encode(pictures), pictures, steps)
        if noise is None:
            raise EditError("this model cannot find the noise of an image: leave keep_details out")
        return noise.cpu().numpy()

    def decode(
        self,
        units: np.ndarray,
        *,
        codes: np.ndarray | None = None,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        sampler: str | None = None,
        details: np.ndarray | None = None,
    ) -> np.ndarray:
        """Draw images from the scalars (B, N) of their units: uint8 (B, H, W, C).

        Args:
            codes: (B, N, D), into which the scalars are written. They are needed if the model's units are vectors, and
                have no influence otherwise.
            seed: determines the starting noise: one seed for all images, or B seeds, one for each image. In both cases
                an image depends on its own seed only.
            steps, sampler: see `choose_sampling`.
            details: starting noise (B, L, h, w) as `details` returns it, instead of a seed's.

        Raises:
            EditError: units, codes or details of another shape or not finite, no codes where they are needed, another
                number of seeds than of images, steps out of range, or a sampler that is unknown or cannot keep details.
        """
        steps, chosen = self.sampling(steps, sampler, keep_details=details is not None)
        are_vectors = self.method.units_are_vectors
        values, vectors = checked_units(units, codes, (self.num_units, self.unit_dim), are_vectors=are_vectors)
        shape = self.method.noise_shape
        if details is None:
            noise = drawn_noise(seed, len(values), shape)
        else:
            noise = checked_details(details, len(values), shape)
        noise = None if noise is None else noise.to(self.device)
        values, vectors = values.to(self.device), None if vectors is None else vectors.to(self.device)
        written = self.method.lift(values) if vectors is None else self.method.write(vectors, values)
        return denormalise(self.method.decode(written, noise, steps, chosen)).cpu().numpy()

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
        """Set some units to values, shift others by amounts, and draw the images again: uint8 (B, H, W, C).

        Args:
            images: uint8 (B, H, W, C). With neither `set` nor `shift` they are reconstructed.
            set: new values by unit, in the unit's own scale; see `units` for its range.
            shift: amounts that are added, by unit.
            seed: determines the starting noise of all images.
            steps, sampler: see `choose_sampling`.
            keep_details: draw from the images' own `details` with `ddim`. This calls the network twice as often, and
                the seed has no influence.

        Raises:
            EditError: no such unit, a unit that is both set and shifted, images of another shape, or a sampler that is
                unknown or cannot keep details.
        """
        encoded = self.encode(images)
        units = self.edit_units(encoded.units, set=set, shift=shift)
        details = self._kept(images, sampler, steps) if keep_details else None
        return self.decode(units, codes=encoded.codes, seed=seed, steps=steps, sampler=sampler, details=details)

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
        """Draw `source` (B, H, W, C) again with the given units of `target`, which has the same shape.

        `keep_details` keeps those of `source`. For the other arguments, see `edit`.
        """
        ours, theirs = self.encode(source), self.encode(target)
        values, codes = swapped(ours.units, theirs.units, units), swapped(ours.codes, theirs.codes, units)
        details = self._kept(source, sampler, steps) if keep_details else None
        return self.decode(values, codes=codes, seed=seed, steps=steps, sampler=sampler, details=details)

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
        """Draw one image (H, W, C) N times, the i-th time with unit i of another image: uint8 (N, H, W, C)."""
        pair = self.encode(np.stack([source, target]))
        values, codes = swapped_each(*pair.units), swapped_each(*pair.codes)
        details = self._kept(source[None], sampler, steps, repeats=len(values)) if keep_details else None
        return self.decode(values, codes=codes, seed=seed, steps=steps, sampler=sampler, details=details)

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
        """Vary each of the given units of one image (H, W, C) over its range in the data: uint8 (N', V, H, W, C).

        Args:
            units: the N' units to vary; None for all. Row i of the result changes only units[i].
            num_values: V, the columns: quantiles of the unit from 2.5 % to 97.5 %, evenly spaced in rank.
        """
        chosen = range(self.num_units) if units is None else units
        encoded = self.encode(image[None])
        values = traversed(encoded.units[0], self._quantiles(), chosen, num_values)
        codes = np.repeat(encoded.codes, len(values), axis=0)
        details = self._kept(image[None], sampler, steps, repeats=len(values)) if keep_details else None
        drawn = self.decode(values, codes=codes, seed=seed, steps=steps, sampler=sampler, details=details)
        return drawn.reshape(len(chosen), num_values, *drawn.shape[1:])

    def _quantiles(self) -> np.ndarray:
        return self.method.unit_quantiles.cpu().numpy()

    def _kept(self, images: np.ndarray, sampler: str | None, steps: int | None, repeats: int = 1) -> np.ndarray:
        """Return the details of images, each repeated, after a check that the sampler can keep them."""
        self.sampling(steps, sampler, keep_details=True)
        return np.repeat(self.details(images, steps=steps), repeats, axis=0)

    def _tensor(self, images: np.ndarray) -> Tensor:
        return normalise(checked_images(images, self.image_shape).to(self.device))
