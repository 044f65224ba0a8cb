"""The steps of a request between route and model: decode the file, wait for a batch, encode, edit and draw.

A service keeps one model for its whole life, so that no answer mixes two versions. It imports neither Ray nor FastAPI.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from raydis.editor.sampling import Sampling
from raydis.engine.device import use_threads
from raydis.serve.batcher import Batcher
from raydis.serve.images import decode_image, encode_png
from raydis.serve.model import Drawing, EncodedImage, ServedModel

STALLED_S = 300.0  # a batch that computes longer than this hangs


class Edited(NamedTuple):
    """A drawn edit.

    Attributes:
        units: (N,), the scalars after the edit.
        sampling: the steps and the sampler that drew it.
    """

    png: bytes
    units: np.ndarray
    sampling: Sampling


class Service:
    """Encode and edit uploaded files with one model.

    Args:
        num_threads: number of threads that torch uses in each batch.
    """

    def __init__(self, model: ServedModel, *, num_threads: int = 1) -> None:
        self.model = model
        self._num_threads = num_threads
        self._files = ThreadPoolExecutor(2, "files")  # bounds the memory that decoded uploads take
        # A thread each, so that a long edit does not hold up encodings.
        self._encoder: Batcher[np.ndarray, EncodedImage] = Batcher(
            model.encode,
            max_size=model.batch_sizes.encode,
            key=lambda _: None,
            executor=self._thread("encode"),
        )
        self._drawer: Batcher[Drawing, bytes] = Batcher(
            self._draw,
            max_size=model.batch_sizes.edit,
            key=lambda drawing: drawing.batch_key,
            executor=self._thread("edit"),
        )

    async def encode(self, data: bytes) -> EncodedImage:
        """Encode an image file. Raises ImageError, ImageTooLarge."""
        return await self._encoder.submit(await self._pixels(data))

    async def edit(
        self,
        data: bytes,
        *,
        set: Mapping[int, float],
        shift: Mapping[int, float],
        seed: int,
        steps: int | None = None,
        sampler: str | None = None,
        keep_details: bool = False,
    ) -> Edited:
        """Draw an image file again with some units changed. Raises EditError, ImageError, ImageTooLarge."""
        sampling = self.model.sampling(steps, sampler, keep_details=keep_details)
        pixels = await self._pixels(data)
        encoded = await self._encoder.submit(pixels)
        units = self.model.edit_units(encoded.units, set, shift)
        drawing = Drawing(units, encoded.codes, seed, sampling, pixels if keep_details else None)
        return Edited(await self._drawer.submit(drawing), units, sampling)

    def check_health(self) -> None:
        """Raise RuntimeError if a batch hangs."""
        busy_s = max(self._encoder.busy_s, self._drawer.busy_s)
        if busy_s > STALLED_S:
            raise RuntimeError(f"a batch has been computing for {busy_s:.0f} s, more than {STALLED_S:.0f} s")

    async def _pixels(self, data: bytes) -> np.ndarray:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._files, decode_image, data, self.model.editor.image_shape)

    def _draw(self, drawings: Sequence[Drawing]) -> list[bytes]:
        return [encode_png(pixels) for pixels in self.model.draw(drawings)]

    def _thread(self, name: str) -> Executor:
        return ThreadPoolExecutor(1, name, use_threads, (self._num_threads,))
