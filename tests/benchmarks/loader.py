"""Images a CPU-second: raydis' loader against torch's per-sample DataLoader on the same images.

Both deliver shuffled float32 batches (B, C, H, W) in [-1, 1] of the same uint8 images in memory, on one thread. The
per-sample data set converts one image at a time, as the reference code of disentanglement papers does.

    python -m tests.benchmarks.loader
"""

from __future__ import annotations

import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from raydis.data import ArrayDataset, FactorSpace, Loader

NUM_IMAGES, BATCH_SIZE, NUM_BATCHES, NUM_REPEATS, SEED = 20_000, 128, 100, 5, 0


class PerSample(Dataset):
    """One image at a time, normalised on its own."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index].permute(2, 0, 1).float() / 127.5 - 1


def images_per_cpu_s(start: Callable[[], Iterator[Tensor]]) -> float:
    """Median over repeats, each after a warm-up batch."""
    rates = []
    for _ in range(NUM_REPEATS):
        batches = start()
        next(batches)
        began = time.process_time()
        seen = sum(len(batch) for batch in itertools.islice(batches, NUM_BATCHES))
        rates.append(seen / (time.process_time() - began))
    return statistics.median(rates)


def main() -> None:
    torch.set_num_threads(1)
    images = np.random.default_rng(SEED).integers(0, 256, (NUM_IMAGES, 64, 64, 3), np.uint8)
    dataset = ArrayDataset("noise", images, FactorSpace(("n",), (NUM_IMAGES,)), fingerprint="noise")
    loader = Loader(dataset, batch_size=BATCH_SIZE, seed=SEED)
    torch_loader = DataLoader(
        PerSample(images), BATCH_SIZE, shuffle=True, generator=torch.Generator().manual_seed(SEED)
    )
    ours = images_per_cpu_s(lambda: map(loader.batch, itertools.count()))
    theirs = images_per_cpu_s(lambda: iter(torch_loader))
    print(
        f"{NUM_IMAGES} images 64x64x3, batch {BATCH_SIZE}, median of {NUM_REPEATS}x{NUM_BATCHES} batches, seed {SEED}"
    )
    print(f"one thread of {platform.processor() or platform.machine()}, torch {torch.__version__}\n")
    print(f"{'loader':<28}{'images/CPU-s':>14}{'ratio':>8}")
    print(f"{'torch DataLoader, per sample':<28}{theirs:>14,.0f}{1:>8.1f}")
    print(f"{'raydis Loader':<28}{ours:>14,.0f}{ours / theirs:>8.1f}")


if __name__ == "__main__":
    main()
