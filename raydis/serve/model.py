"""One version of a model that is served: it encodes and draws in batches of a fixed shape.

B batch, N units, H W C image.

Convolutions and matrix products round differently for 8 rows than for 1 row: on the CPUs we measured, scalars differ by
1e-7, and every fourth to eighth edit has a pixel that is off by one grey level. With a fixed shape, the result of a row
depends neither on its place nor on the other rows (768 of 768 rows were equal). Every batch is therefore filled up to
the same size, so that the bytes of an answer do not depend on the requests of others. The price is that a single image
costs as much as a full batch; see `default_batch_sizes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch

from raydis.checkpoint.fetch import default_cache
from raydis.config import ComputeConfig
from raydis.editor.editor import Editor
from raydis.editor.sampling import Sampling, choose_sampling
from raydis.engine.device import resolve_device
from raydis.errors import CheckpointError
from raydis.registry import ModelRef, Registry

MAX_STEPS = 200

Item = TypeVar("Item")


class BatchSizes(NamedTuple):
    """Number of rows in every batch of a kind."""

    encode: int
    edit: int


def default_batch_sizes(device: torch.device) -> BatchSizes:
    """Return the batch sizes for a device.

    Measured on a CPU with the preset `small` and one thread, against a batch of 1: encoding 8 images takes 1.7 times as
    long (2.5 ms) and has 4.9 times the throughput; a denoising step of 4 images takes 1.6 times as long (16.5 ms) and
    has 2.5 times the throughput. A larger network gains less: `reference` has 1.4 times the throughput for 2.8 times
    the latency of a single edit. On a GPU, launching kernels dominates at these sizes.
    """
    return BatchSizes(encode=8, edit=4) if device.type == "cpu" else BatchSizes(encode=64, edit=16)


@dataclass(frozen=True)
class EncodedImage:
    """The encoding of one image.

    Attributes:
        units: (N,) float32, one scalar for each unit.
        codes: (N, D) float32, into which the scalars of an edit are written.
        facts: by name, (N,) each: what the method states about the units beside their scalars.
    """

    units: np.ndarray
    codes: np.ndarray
    facts: dict[str, np.ndarray]


class Drawing(NamedTuple):
    """One image to draw.

    Attributes:
        units: (N,), the scalars of its units.
        codes: (N, D), the codes of the image that is edited, into which the scalars are written.
        source: (H, W, C) uint8, the image whose details are kept; None to start from the seed's noise.
    """

    units: np.ndarray
    codes: np.ndarray
    seed: int
    sampling: Sampling
    source: np.ndarray | None = None

    @property
    def batch_key(self) -> tuple[Sampling, bool]:
        """Drawings may share a batch if this is equal."""
        return self.sampling, self.source is not None


class ServedModel:
    """An Editor, its name and version, and its batch sizes.

    Args:
        editor: an editor on the device that computes.
        ref: name and version in the registry.
        encode_batch_size, edit_batch_size: None for the default of the device.

    Raises:
        MetricError: the checkpoint has scores that cannot be read.
    """

    def __init__(
        self,
        editor: Editor,
        ref: ModelRef,
        *,
        encode_batch_size: int | None = None,
        edit_batch_size: int | None = None,
    ) -> None:
        self.editor = editor
        self.ref = ref
        default = default_batch_sizes(editor.device)
        self.batch_sizes = BatchSizes(encode_batch_size or default.encode, edit_batch_size or default.edit)
        self.scores = editor.scores
        self.max_steps = None if editor.max_steps is None else min(MAX_STEPS, editor.max_steps)
        self.default_steps = (
            None if editor.method.default_steps is None else min(MAX_STEPS, editor.method.default_steps)
        )

    @property
    def identity(self) -> str:
        """Name, version, and a hash of the manifest, which contains the hashes of all files."""
        return f"{self.ref} {hashlib.sha256(self.editor.manifest.to_json()).hexdigest()[:16]}"

    def encode(self, images: Sequence[np.ndarray]) -> list[EncodedImage]:
        """Encode any number of images (H, W, C) uint8."""
        rows: list[EncodedImage] = []
        for chunk, filled in _filled(images, self.batch_sizes.encode):
            encoded = self.editor.encode(np.stack(filled))
            for row in range(len(chunk)):
                facts = {name: values[row] for name, values in encoded.facts.items()}
                rows.append(EncodedImage(encoded.units[row], encoded.codes[row], facts))
        return rows

    def edit_units(self, units: np.ndarray, set: Mapping[int, float], shift: Mapping[int, float]) -> np.ndarray:
        """Return the scalars (N,) of one image with some set and some shifted. Raises EditError."""
        return self.editor.edit_units(units[None], set=set, shift=shift)[0]

    def sampling(self, steps: int | None, sampler: str | None, *, keep_details: bool) -> Sampling:
        """Return the steps and the sampler of an edit. Raises EditError if service or model do not allow them."""
        takes_noise = self.editor.method.noise_shape is not None
        return choose_sampling(
            self.max_steps,
            steps,
            sampler,
            keep_details=keep_details,
            takes_noise=takes_noise,
            default_steps=self.default_steps,
        )

    def draw(self, drawings: Sequence[Drawing]) -> list[np.ndarray]:
        """Draw images (H, W, C) uint8. The drawings must have equal batch keys."""
        pictures: list[np.ndarray] = []
        for chunk, filled in _filled(drawings, self.batch_sizes.edit):
            units, codes = (np.stack(each) for each in zip(*((it.units, it.codes) for it in filled), strict=True))
            seeds = [drawing.seed for drawing in filled]
            steps, sampler = filled[0].sampling
            sources = [drawing.source for drawing in filled if drawing.source is not None]
            details = self.editor.details(np.stack(sources), steps=steps) if sources else None
            drawn = self.editor.decode(units, codes=codes, seed=seeds, steps=steps, sampler=sampler, details=details)
            pictures += list(drawn[: len(chunk)])
        return pictures

    def try_out(self) -> None:
        """Encode and draw a test picture, to check that the model works and to warm it up.

        Raises:
            CheckpointError: the weights or the encoding are not finite, or an answer would depend on other requests.
        """
        if self.editor.method.couples_codes:
            raise CheckpointError(
                f"{self.ref} cannot be served: the codes of an image depend on the other images of the batch, so an "
                "answer would depend on other requests. Serve another version, or open this one with raydis.Editor"
            )
        for name, weights in self.editor.method.named_parameters():
            if not bool(torch.isfinite(weights).all()):
                raise CheckpointError(f"{self.ref} cannot be served: its weights {name} are not finite")
        height, width, channels = self.editor.image_shape
        ramp = np.linspace(0, 255, height * width * channels).astype(np.uint8).reshape(height, width, channels)
        encoded = self.encode([ramp])[0]
        if not all(np.isfinite(values).all() for values in (encoded.units, encoded.codes, *encoded.facts.values())):
            raise CheckpointError(f"{self.ref} cannot be served: its encoding of a test picture is not finite")
        steps = None if self.max_steps is None else 1
        self.draw(
            [Drawing(encoded.units, encoded.codes, seed=0, sampling=self.sampling(steps, None, keep_details=False))]
        )


def open_model(
    registry: Registry,
    ref: ModelRef,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    encode_batch_size: int | None = None,
    edit_batch_size: int | None = None,
) -> ServedModel:
    """Fetch a version, check it against its manifest, open it and try it out.

    Raises:
        RaydisError: the version does not exist, or it cannot be served.
    """
    editor = Editor.open(registry.fetch(ref, default_cache()), device=resolve_device(ComputeConfig(device=device)))
    model = ServedModel(editor, ref, encode_batch_size=encode_batch_size, edit_batch_size=edit_batch_size)
    model.try_out()
    return model


def _filled(items: Sequence[Item], size: int) -> Iterator[tuple[Sequence[Item], list[Item]]]:
    """Yield chunks of at most `size` items, each with a copy that is filled up to `size` by repeating its last item."""
    for start in range(0, len(items), size):
        chunk = items[start : start + size]
        yield chunk, [*chunk, *[chunk[-1]] * (size - len(chunk))]
