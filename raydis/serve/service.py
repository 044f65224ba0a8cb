"""The live model behind the routes: batches its work, and replaces it without ever being without one.

A request takes the present model once and keeps it to its end, so a replacement in between cannot give it the units
of one version and the pictures of another. No Ray here, and no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from raydis.diffusion.samplers import Sampler
from raydis.engine.device import use_threads
from raydis.engine.editor import choose_sampler
from raydis.errors import RaydisError
from raydis.serve.batcher import Batcher
from raydis.serve.images import decode_image, encode_png
from raydis.serve.model import Codes, Drawing, ServedModel

STALLED_S = 300.0  # a batch that computes longer than this hangs

# What opening a checkpoint that this code cannot run raises besides RaydisError: torch on sizes that differ and on
# memory, look-ups and calls on a foreign layout.
OPEN_ERRORS = (RaydisError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError)


@dataclass(frozen=True)
class Rejected:
    """A model that was to replace the present one and did not."""

    model: str
    reason: str
    at: datetime


class Edited(NamedTuple):
    """A drawn edit."""

    model: ServedModel
    png: bytes
    units: np.ndarray  # (N,), after the edit
    sampler: Sampler  # that drew it


class _Image(NamedTuple):
    model: ServedModel
    pixels: np.ndarray


class _Draw(NamedTuple):
    model: ServedModel
    drawing: Drawing


class Service:
    """Encodes and edits uploaded files with the present model.

    Args:
        model: the first one.
        open_model: opens the model that a reference names; blocking.
    """

    def __init__(self, model: ServedModel, open_model: Callable[[str], ServedModel]) -> None:
        self.model = model
        self.rejected: Rejected | None = None
        self._open_model = open_model
        self._replacing = asyncio.Lock()
        self._files = ThreadPoolExecutor(2, "files")  # bounds the memory that decoded uploads take
        # A thread each, so that a long edit does not hold up encodings.
        self._encoder: Batcher[_Image, Codes] = Batcher(
            _encode, max_size=model.batch_sizes.encode, key=lambda job: job.model, executor=self._thread("encode")
        )
        self._drawer: Batcher[_Draw, bytes] = Batcher(
            _draw,
            max_size=model.batch_sizes.edit,
            key=lambda job: (job.model, *job.drawing.batch_key),
            executor=self._thread("edit"),
        )

    async def encode(self, data: bytes) -> tuple[ServedModel, Codes]:
        """Codes of an image file. Raises ImageError, ImageTooLarge."""
        model = self.model
        return model, await self._encode(model, await self._pixels(model, data))

    async def edit(
        self,
        data: bytes,
        *,
        set_units: Mapping[int, float],
        shift_units: Mapping[int, float],
        seed: int,
        num_steps: int,
        sampler: str | None = None,
        keep_details: bool = False,
    ) -> Edited:
        """An image file, drawn again with some units changed. Raises EditError, ImageError, ImageTooLarge."""
        model = self.model
        model.check_steps(num_steps)
        chosen = choose_sampler(sampler, keep_details=keep_details)
        pixels = await self._pixels(model, data)
        codes = await self._encode(model, pixels)
        units = model.edit_units(codes.units, set_units, shift_units)
        drawing = Drawing(units, seed, num_steps, chosen, pixels if keep_details else None)
        return Edited(model, await self._drawer.submit(_Draw(model, drawing)), units, chosen)

    async def replace(self, reference: str) -> None:
        """Opens another model beside the present one and takes it if it works; else remembers why not."""
        async with self._replacing:
            try:
                self.model = await asyncio.to_thread(self._open_model, reference)
                self.rejected = None
            except OPEN_ERRORS as error:
                self.reject(reference, str(error) or type(error).__name__)

    def reject(self, reference: str, reason: str) -> None:
        """Keeps the present model and remembers why another one was not taken."""
        self.rejected = Rejected(reference, reason, datetime.now(UTC))

    def check_health(self) -> None:
        """Raises RuntimeError where a batch hangs."""
        busy_s = max(self._encoder.busy_s, self._drawer.busy_s)
        if busy_s > STALLED_S:
            raise RuntimeError(f"a batch has been computing for {busy_s:.0f} s, more than {STALLED_S:.0f} s")

    async def _pixels(self, model: ServedModel, data: bytes) -> np.ndarray:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._files, decode_image, data, model.editor.image_shape)

    async def _encode(self, model: ServedModel, pixels: np.ndarray) -> Codes:
        return await self._encoder.submit(_Image(model, pixels))

    def _thread(self, name: str) -> Executor:
        return ThreadPoolExecutor(1, name, use_threads, (1,))


def _encode(jobs: Sequence[_Image]) -> list[Codes]:
    return jobs[0].model.encode([job.pixels for job in jobs])


def _draw(jobs: Sequence[_Draw]) -> list[bytes]:
    return [encode_png(pixels) for pixels in jobs[0].model.draw([job.drawing for job in jobs])]
