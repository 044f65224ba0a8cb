"""Batches of images, as a pure function of (seed, step).

Letters: B batch, C H W image.

The images stay where they are fastest: a copy on the GPU where they fit, else the array in memory or in the page
cache. A batch is one gather of uint8 rows and one conversion to float; there are no worker processes. No step makes the
host wait for a GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from raydis.data.dataset import ArrayDataset, FactorDataset
from raydis.data.pixels import normalise
from raydis.data.space import check_indices
from raydis.errors import ConfigError


def images_at_once(image_size: int) -> int:
    """How many images a pass outside of training takes at a time: 512 up to 64 px, fewer of larger ones by pixels."""
    return max(512 * 64**2 // max(image_size, 64) ** 2, 1)


def spare_bytes(device: torch.device, num_gpus: float) -> int:
    """Return bytes that a worker may fill with what every step reads: `share_of_memory` of a GPU, none of a host."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return share_of_memory(total, free, num_gpus)


def share_of_memory(total: int, free: int, num_gpus: float) -> int:
    """Return half of the part of a GPU's memory that a worker has reserved, in bytes.

    Runs that share a GPU start at the same moment and would each see all of it free, so what is free decides nothing
    among them: while every run keeps to its part, more than a part is free. It is a bound for a GPU that somebody else
    uses as well.

    Args:
        total, free: bytes of the GPU.
        num_gpus: that the worker has reserved; a fraction shares one with others, 0 means that nobody counted.
    """
    part = min(num_gpus, 1.0) or 1.0
    return min(int(total * part), free) // 2


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that the host does not wait for: to a GPU through pinned memory, as a pageable one would go anyway."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Loader:
    """Shuffled batches of a data set, one worker's share of each.

    Step s takes places s*batch_size .. (s+1)*batch_size - 1 of the endless sequence epoch 0, epoch 1, ...; an epoch is
    a permutation of all images drawn from (seed, epoch). So no image is dropped or repeated within an epoch, and a run
    that resumes at step s needs no other state. Worker r takes the r-th equal slice of the batch: the global batch
    does not depend on the number of workers.

    Args:
        dataset: where images come from; labels are never read.
        batch_size: images a step, over all workers.
        seed: of the order.
        rank: this worker, in [0, world_size).
        world_size: number of workers.
        device: where batches are wanted.
        num_gpus: GPUs that this worker has reserved, a fraction where it shares one; see `spare_bytes`.
        resident_bytes: copy the images to the device if they take at most this; None: `spare_bytes`, so that a CPU gets
            no copy, because they are there.

    Attributes:
        spare_bytes: what is left of that for other data that every step reads.

    Raises:
        ConfigError: batch_size that workers cannot share equally, or a rank out of range.
    """

    def __init__(
        self,
        dataset: FactorDataset,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        num_gpus: float = 1.0,
        resident_bytes: int | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank={rank} must lie in 0..{world_size - 1}")
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(f"train.batch_size={batch_size} must be a multiple of the number of workers {world_size}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.local_batch_size = batch_size // world_size
        self.device = torch.device(device)
        self.spare_bytes = spare_bytes(self.device, num_gpus) if resident_bytes is None else resident_bytes
        self._resident = self._copy_to_device()
        # A batch may end one epoch and begin the next.
        self._order = functools.lru_cache(maxsize=4)(self._permutation)
        self._order_on_device = functools.lru_cache(maxsize=4)(self._copied_permutation)

    def indices(self, step: int, *, second: bool = False) -> np.ndarray:
        """Return the indices of this worker's images in a step: (B,) int64, B = batch_size / world_size.

        Args:
            second: of a second batch, whose order is independent of the first one's.
        """
        return np.concatenate([self._order(epoch, second)[places] for epoch, places in self._share(step)])

    def device_indices(self, step: int, *, second: bool = False) -> Tensor:
        """`indices` as a tensor on the device, cut from the epoch's order there: a step copies nothing to it."""
        return torch.cat([self._order_on_device(epoch, second)[places] for epoch, places in self._share(step)])

    def batch(self, step: int, *, second: bool = False) -> Tensor:
        """Return this worker's images of a step: (B, C, H, W) in [-1, 1], B = batch_size / world_size."""
        if self._resident is None:
            return self.gather(self.indices(step, second=second))
        return normalise(self._resident.index_select(0, self.device_indices(step, second=second)))

    def gather(self, indices: np.ndarray) -> Tensor:
        """Any images: (B,) integers -> float32 (B, C, H, W) in [-1, 1] on the device, in the order asked for.

        Raises:
            DataError: an index out of range.
        """
        indices = check_indices(indices, len(self.dataset))
        if self._resident is not None:
            return normalise(self._resident.index_select(0, to_device(torch.from_numpy(indices), self.device)))
        return normalise(to_device(self._from_host(indices), self.device))

    def gather_in_parts(self, indices: np.ndarray) -> Iterator[Tensor]:
        """`gather` a part at a time: as few and equal parts as `images_at_once` allows, at least one."""
        size = images_at_once(self.dataset.image_shape[0])
        for part in np.array_split(indices, max(math.ceil(len(indices) / size), 1)):
            yield self.gather(part)

    def _from_host(self, indices: np.ndarray) -> Tensor:
        if not isinstance(self.dataset, ArrayDataset) or not self.dataset.array.flags.writeable:
            return torch.from_numpy(self.dataset.images(indices))  # torch warns of arrays that it could not write to
        rows = torch.from_numpy(self.dataset.array_rows(indices))
        array = torch.from_numpy(self.dataset.array)  # no copy
        if not isinstance(self.dataset.array, np.memmap):
            return array.index_select(0, rows)  # six times as fast as array[rows]
        rows, order = rows.sort()  # a disk reads ahead
        return array.index_select(0, rows).index_select(0, order.argsort())

    def _share(self, step: int) -> Iterator[tuple[int, slice]]:
        """This worker's places in a step: epochs, and which part of each one's order."""
        size = len(self.dataset)
        first = step * self.batch_size + self.rank * self.local_batch_size
        last = first + self.local_batch_size
        for epoch in range(first // size, (last - 1) // size + 1):
            yield epoch, slice(max(first - epoch * size, 0), min(last - epoch * size, size))

    def _permutation(self, epoch: int, second: bool) -> np.ndarray:
        # Three numbers that end in 1 are the training's samples, see `raydis.engine.streams`.
        seed = [self.seed, epoch, 2] if second else [self.seed, epoch]
        return np.random.default_rng(seed).permutation(len(self.dataset))

    def _copied_permutation(self, epoch: int, second: bool) -> Tensor:
        return to_device(torch.from_numpy(self._permutation(epoch, second)), self.device)

    def _copy_to_device(self) -> Tensor | None:
        """All images on the device, (B, H, W, C) uint8, or None where they do not fit."""
        shape = (len(self.dataset), *self.dataset.image_shape)
        if math.prod(shape) > self.spare_bytes:
            return None
        self.spare_bytes -= math.prod(shape)
        resident = torch.empty(shape, dtype=torch.uint8, device=self.device)
        size = 8 * images_at_once(shape[1])  # bytes, not floats: a few more at a time
        for start in range(0, len(self.dataset), size):
            part = np.arange(start, min(start + size, len(self.dataset)))
            resident[start : start + len(part)] = torch.from_numpy(self.dataset.images(part))
        return resident
