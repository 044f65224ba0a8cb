"""Computing in float64, where the sums of different processors and numbers of workers differ by too little to matter.

In float32 the rounding of a sum depends on the processor's kernels, and Adam amplifies it: its step has the length of
the learning rate even where the gradient is hardly more than rounding. No tolerance in float32 holds on every processor
and still sees a mistake.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# How far rounding may take a short run in float64 apart. A gradient is a sum of some 1e4 terms below 1, each rounded by
# 1e-16, so it is known to 1e-14 or better. Adam divides it by no less than 1e-8 and multiplies it by a learning rate of
# 1e-3 at most: 1e-9 a step, in fewer than 100 steps. A mistake in sharing out a batch changes a step by a part of its
# length, 1e-3 or 1e-4.
ROUNDING = 1e-7


def compute_in_double() -> None:
    """Let this process build and compute in float64; Ray calls it in the workers of some tests."""
    torch.set_default_dtype(torch.float64)


@contextmanager
def double_precision() -> Iterator[None]:
    """Compute in float64 whatever is built within."""
    compute_in_double()
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
