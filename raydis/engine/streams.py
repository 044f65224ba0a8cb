"""The named random streams of a run. Each purpose has a stream of its own, so that changes to one leave others alone.

The numbers of the streams determine the random numbers of all existing runs. Never change one or use one twice.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are used for; see `seed_of`."""

    DRAWS = 0  # `Method.draw` in a step
    DROPOUT = 1  # dropout in a step, on one worker
    REFIT = 2  # `Method.refit` of the method in training
    AVERAGE_REFIT = 3  # `Method.refit` of the averaged method
    START = 4  # `Method.start`


class Sample(IntEnum):
    """What a random sample of the images is used for; see `sample_of`."""

    CALIBRATION = 0
    START = 1
    REFIT = 2  # the i-th refit, from 0, uses REFIT + i


def seed_of(*parts: int) -> int:
    """Hash several integers to a seed of 63 bits: the seed of the run, a `Stream`, and counters such as the step."""
    counted = (*parts, len(parts))  # SeedSequence pads with zeros, so that (5,) would give the seed of (5, 0, 0)
    return int(np.random.SeedSequence(counted).generate_state(1, np.uint64)[0] >> np.uint64(1))


def sample_of(num_images: int, count: int, *, seed: int, purpose: int) -> np.ndarray:
    """Return sorted indices of at most `count` of `num_images` images, the same on every worker.

    Args:
        num_images: size of the data set.
        count: size of the sample.
        seed: of the run.
        purpose: a `Sample`; for refits plus the number of earlier refits.
    """
    rng = np.random.default_rng([seed, purpose, 1])  # the loader uses lists of two numbers for its epochs
    return np.sort(rng.permutation(num_images)[:count])
