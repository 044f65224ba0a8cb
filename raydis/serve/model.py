"""One opened version of a model, run in batches of one fixed shape.

B batch, N units, H W C image.

A convolution or matrix product of 8 rows rounds otherwise than one of 1 row: on the CPUs we measured, scalars differ by
1e-7, and every fourth to eighth edit has a pixel that is one level off. At one fixed shape a row's result depends
neither on its place nor on the other rows (768 of 768 equal). So every batch here is filled up to the same size, and
an answer's bytes do not depend on who else asked. The price is that a lone image costs a full batch;
`default_batch_sizes` is where that was weighed.
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
    """Rows of every batch."""

    encode: int
    edit: int


def default_batch_sizes(device: torch.device) -> BatchSizes:
    """Sizes that suit a device.

    CPU, preset `small`, one thread, against a batch of 1: encoding 8 images takes 1.7 times as long (2.5 ms), a
    denoising step of 4 images 1.6 times (16.5 ms), for 4.9 and 2.5 times the throughput. A larger network gains less
    and a lone edit then pays more: `reference` gains 1.4 times for 2.8 times the latency. GPUs are bound by launches
    at these sizes.
    """
    return BatchSizes(encode=8, edit=4) if device.type == "cpu" else BatchSizes(encode=64, edit=16)


@dataclass(frozen=True)
class Codes:
    """What one image's encoding says, each (N,)."""

    units: np.ndarray  # float32
    facts: dict[str, np.ndarray]  # what the method states beside the units' numbers, by name


class Drawing(NamedTuple):
    """One image to draw."""

    units: np.ndarray  # (N,)
    seed: int
    sampling: Sampling
    source: np.ndarray | None = None  # (H, W, C) uint8, the image whose details are kept; None: a seed's noise

    @property
    def batch_key(self) -> tuple[Sampling, bool]:
        """Drawings of equal keys may share a batch."""
        return self.sampling, self.source is not None


class ServedModel:
    """An Editor, where it came from, and its batch shapes.

    Args:
        editor: opened on the device that computes.
        ref: its name and version.
        encode_batch_size, edit_batch_size: None takes the device's default.
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
        self.max_steps = None if editor.max_steps is None else min(MAX_STEPS, editor.max_steps)

    @property
    def identity(self) -> str:
        """Return name, version, and a hash of the manifest, which holds the hashes of all files."""
        return f"{self.ref} {hashlib.sha256(self.editor.manifest.to_json()).hexdigest()[:16]}"

    def encode(self, images: Sequence[np.ndarray]) -> list[Codes]:
        """Encode images (H, W, C) uint8, as many as one likes."""
        rows: list[Codes] = []
        for chunk, filled in _filled(images, self.batch_sizes.encode):
            encoded = self.editor.encode(np.stack(filled))
            for row, units in enumerate(encoded.units[: len(chunk)]):
                rows.append(Codes(units, {name: values[row] for name, values in encoded.facts.items()}))
        return rows

    def edit_units(self, units: np.ndarray, set: Mapping[int, float], shift: Mapping[int, float]) -> np.ndarray:
        """One image's scalars (N,) with some set and some shifted. Raises EditError."""
        return self.editor.edit_units(units[None], set=set, shift=shift)[0]

    def sampling(self, steps: int | None, sampler: str | None, *, keep_details: bool) -> Sampling:
        """Return how an edit is drawn. Raises EditError where the service or the model does not allow it."""
        return choose_sampling(self.max_steps, steps, sampler, keep_details=keep_details)

    def draw(self, drawings: Sequence[Drawing]) -> list[np.ndarray]:
        """Images (H, W, C) uint8 of drawings that have equal batch keys."""
        pictures: list[np.ndarray] = []
        for chunk, filled in _filled(drawings, self.batch_sizes.edit):
            units = np.stack([drawing.units for drawing in filled])
            seeds = [drawing.seed for drawing in filled]
            steps, sampler = filled[0].sampling
            sources = [drawing.source for drawing in filled if drawing.source is not None]
            details = self.editor.details(np.stack(sources), steps=steps) if sources else None
            drawn = self.editor.decode(units, seed=seeds, steps=steps, sampler=sampler, details=details)
            pictures += list(drawn[: len(chunk)])
        return pictures

    def try_out(self) -> None:
        """Encode and draw a fixed picture: proof that the model works, and its warm-up.

        Raises:
            CheckpointError: weights or answers that are not finite.
        """
        for name, weights in self.editor.method.named_parameters():
            if not bool(torch.isfinite(weights).all()):
                raise CheckpointError(f"{self.ref} cannot be served: its weights {name} are not finite")
        height, width, channels = self.editor.image_shape
        ramp = np.linspace(0, 255, height * width * channels).astype(np.uint8).reshape(height, width, channels)
        codes = self.encode([ramp])[0]
        if not all(np.isfinite(values).all() for values in (codes.units, *codes.facts.values())):
            raise CheckpointError(f"{self.ref} cannot be served: its encoding of a test picture is not finite")
        steps = None if self.max_steps is None else 1
        self.draw([Drawing(codes.units, seed=0, sampling=self.sampling(steps, None, keep_details=False))])


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
        RaydisError: there is no such version, or it cannot be served.
    """
    editor = Editor.open(registry.fetch(ref, default_cache()), device=resolve_device(ComputeConfig(device=device)))
    model = ServedModel(editor, ref, encode_batch_size=encode_batch_size, edit_batch_size=edit_batch_size)
    model.try_out()
    return model


def _filled(items: Sequence[Item], size: int) -> Iterator[tuple[Sequence[Item], list[Item]]]:
    """Chunks of at most `size` items, each also filled up to `size` by repeating its last item."""
    for start in range(0, len(items), size):
        chunk = items[start : start + size]
        yield chunk, [*chunk, *[chunk[-1]] * (size - len(chunk))]
