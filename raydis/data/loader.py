"""The loader, which makes the training batches. The batch of a step is a pure function of the seed and the step.

B batch, C H W image.

The images are copied to the GPU if they fit; otherwise they stay in memory or in the system's page cache. A batch takes
one gather of uint8 rows and one conversion to float, without worker processes. The host never waits for the GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raydis.data.dataset import ArrayDataset, FactorDataset
from raydis.data.pixels import normalise
from raydis.data.space import check_indices
from raydis.errors import ConfigError


def images_at_once(image_size: int) -> int:
    """Return how many images to process at once outside of training: 512 up to 64 px, fewer of larger images."""
    return max(512 * 64**2 // max(image_size, 64) ** 2, 1)


def spare_bytes(device: torch.device, num_gpus: float) -> int:
    """Return the bytes that a worker may fill with data for every step: `share_of_memory` of a GPU, 0 on a CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return share_of_memory(total, free, num_gpus)


def share_of_memory(total: int, free: int, num_gpus: float) -> int:
    """Return half of the part of a GPU's memory that a worker has reserved, in bytes.

    The reserved part counts instead of the free memory, because runs that share a GPU start at the same time, and each
    would see all memory as free. While every run keeps to its part, more than a part is free, so the free memory is
    only an upper bound in case other programs use the GPU as well.

    Args:
        total, free: bytes of the GPU.
        num_gpus: GPUs that the worker has reserved. A fraction shares one with others; 0 means no reservation, and
            counts as a whole GPU.
    """
    part = min(num_gpus, 1.0) or 1.0
    return min(int(total * part), free) // 2


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device without waiting. The copy to a GPU goes through pinned memory.

    CUDA would copy pageable memory through pinned memory anyway, and make the host wait.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Loader:
    """The shuffled batches of a data set, or one worker's share of each.

    An epoch is a permutation of all images, drawn from (seed, epoch). Step s takes the places s*batch_size to
    (s+1)*batch_size - 1 in the endless sequence of epochs 0, 1, ... Within an epoch, no image is therefore dropped or
    repeated, and a run that resumes at step s needs no other state. Worker r takes the r-th of equal slices of the
    batch, so that the global batch does not depend on the number of workers.

    Args:
        dataset: the images; their factors are never read.
        batch_size: images per step, over all workers.
        seed: of the order of the images.
        rank: this worker, in [0, world_size).
        world_size: number of workers.
        device: of the batches.
        num_gpus: GPUs that this worker has reserved, a fraction if it shares one; see `spare_bytes`.
        resident_bytes: most bytes of images that are copied to the device. None stands for `spare_bytes`, which is 0
            on a CPU, where the images already are.

    Attributes:
        spare_bytes: bytes that remain of `resident_bytes` for other data that every step reads.

    Raises:
        ConfigError: a batch_size that the workers cannot share equally, or a rank out of range.
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
            second: whether to return those of a second batch, whose order is independent of the first batch's.
        """
        return np.concatenate([self._order(epoch, second)[places] for epoch, places in self._share(step)])

    def device_indices(self, step: int, *, second: bool = False) -> Tensor:
        """Return `indices` as a tensor on the device, cut from the epoch's order there, so that no step copies data."""
        return torch.cat([self._order_on_device(epoch, second)[places] for epoch, places in self._share(step)])

    def batch(self, step: int, *, second: bool = False) -> Tensor:
        """Return this worker's images of a step: (B, C, H, W) in [-1, 1], B = batch_size / world_size."""
        if self._resident is None:
            return self.gather(self.indices(step, second=second))
        return normalise(self._resident.index_select(0, self.device_indices(step, second=second)))

    def gather(self, indices: np.ndarray) -> Tensor:
        """Return the images of any indices (B,), in their order: float32 (B, C, H, W) in [-1, 1] on the device.

        Raises:
            DataError: an index out of range.
        """
        indices = check_indices(indices, len(self.dataset))
        if self._resident is not None:
            return normalise(self._resident.index_select(0, to_device(torch.from_numpy(indices), self.device)))
        return normalise(to_device(self._from_host(indices), self.device))

    def gather_in_parts(self, indices: np.ndarray) -> Iterable[Tensor]:
        """Return the result of `gather` in as few equal parts as `images_at_once` allows, at least one.

        The parts are gathered when they are iterated over, which can be done repeatedly.
        """
        size = images_at_once(self.dataset.image_shape[0])
        return Parts(self, np.array_split(indices, max(math.ceil(len(indices) / size), 1)))

    def _from_host(self, indices: np.ndarray) -> Tensor:
        if not isinstance(self.dataset, ArrayDataset) or not self.dataset.array.flags.writeable:
            return torch.from_numpy(self.dataset.images(indices))  # torch warns about read-only arrays
        rows = torch.from_numpy(self.dataset.array_rows(indices))
        array = torch.from_numpy(self.dataset.array)  # no copy
        if not isinstance(self.dataset.array, np.memmap):
            return array.index_select(0, rows)  # six times as fast as array[rows]
        rows, order = rows.sort()  # a disk is faster in ascending order
        return array.index_select(0, rows).index_select(0, order.argsort())

    def _share(self, step: int) -> Iterator[tuple[int, slice]]:
        """Yield the epochs of this worker's share of a step, and for each the slice of its order."""
        size = len(self.dataset)
        first = step * self.batch_size + self.rank * self.local_batch_size
        last = first + self.local_batch_size
        for epoch in range(first // size, (last - 1) // size + 1):
            yield epoch, slice(max(first - epoch * size, 0), min(last - epoch * size, size))

    def _permutation(self, epoch: int, second: bool) -> np.ndarray:
        # Seeds of three numbers that end in 1 belong to `raydis.engine.streams.sample_of`.
        seed = [self.seed, epoch, 2] if second else [self.seed, epoch]
        return np.random.default_rng(seed).permutation(len(self.dataset))

    def _copied_permutation(self, epoch: int, second: bool) -> Tensor:
        return to_device(torch.from_numpy(self._permutation(epoch, second)), self.device)

    def _copy_to_device(self) -> Tensor | None:
        """Copy all images to the device, (B, H, W, C) uint8. Return None if they do not fit."""
        shape = (len(self.dataset), *self.dataset.image_shape)
        if math.prod(shape) > self.spare_bytes:
            return None
        self.spare_bytes -= math.prod(shape)
        resident = torch.empty(shape, dtype=torch.uint8, device=self.device)
        size = 8 * images_at_once(shape[1])  # eight times as many, because bytes need less memory than floats
        for start in range(0, len(self.dataset), size):
            part = np.arange(start, min(start + size, len(self.dataset)))
            resident[start : start + len(part)] = torch.from_numpy(self.dataset.images(part))
        return resident


@dataclass(frozen=True)
class Parts:
    """The images of a loader at given indices, in parts, which are gathered anew for each iteration."""

    loader: Loader
    indices: Sequence[np.ndarray]

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.loader.gather, self.indices)
