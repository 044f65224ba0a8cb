"""Where a run computes, decided once and early."""

from __future__ import annotations

import torch

from raydis.config import ComputeConfig
from raydis.errors import ResourceError


def resolve_device(compute: ComputeConfig) -> torch.device:
    """The device that the configuration asks for.

    Raises:
        ResourceError: a GPU is asked for where torch sees none.
    """
    available = torch.cuda.is_available()
    wants_gpu = compute.device == "cuda" or compute.num_gpus > 0
    if wants_gpu and compute.device != "cpu" and not available:
        raise ResourceError(
            f"compute.device={compute.device} with compute.num_gpus={compute.num_gpus:g} asks for a GPU, but torch "
            f"{torch.__version__} sees none: set compute.device=cpu and compute.num_gpus=0, or install a CUDA build"
        )
    return torch.device("cuda" if available and compute.device != "cpu" else "cpu")


def use_one_thread_on_cpu(device: torch.device) -> None:
    """Give a CPU worker one thread: spinning threads of several workers on shared cores cost up to ten times."""
    if device.type == "cpu":
        torch.set_num_threads(1)


def num_parts(batch_size: int, largest: int | None) -> int:
    """The fewest equal parts of a batch that hold at most `largest` images each."""
    largest = largest or batch_size
    return next(n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n <= largest)
