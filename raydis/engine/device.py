"""Choose the device and the number of threads of a run, before it computes anything."""

from __future__ import annotations

import math

import torch
from threadpoolctl import threadpool_limits

from raydis.config import ComputeConfig
from raydis.errors import ResourceError


def resolve_device(compute: ComputeConfig) -> torch.device:
    """Return the device that the configuration asks for.

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


def num_threads(num_cpus: float) -> int:
    """Return the number of threads of a process that has reserved `num_cpus` CPUs: one for each, and at least one."""
    return max(1, math.floor(num_cpus))


def use_threads(count: int) -> None:
    """Set the number of threads that torch and the linear algebra of numpy use in this process.

    By default, both start a thread for each core of the machine. The threads of several workers then compete for the
    cores, which makes the work up to ten times slower.
    """
    torch.set_num_threads(count)
    threadpool_limits(limits=count, user_api="blas")
