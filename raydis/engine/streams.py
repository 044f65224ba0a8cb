"""The random streams of a run, each with a name: what is drawn for one purpose never moves what is drawn for another.

The numbers decide the draws of every run that was ever started: never change one, and never use one twice.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Purposes of random numbers; see `seed_of`."""

    DRAWS = 0  # of a step: the method's own, such as times and noise
    DROPOUT = 1  # of a step, on one worker
    REFIT = 2  # of the raw weights
    AVERAGE_REFIT = 3  # of the averaged weights
    START = 4  # of what is fitted before the first step


class Sample(IntEnum):
    """Purposes of a random sample of the images; see `sample_of`."""

    CALIBRATION = 0
    START = 1
    REFIT = 2  # and one more for every refit


def seed_of(*parts: int) -> int:
    """Return one well-mixed 63-bit seed of several integers: a run's seed, a `Stream`, and what counts within it."""
    counted = (*parts, len(parts))  # SeedSequence pads with zeros, so (5,) alone would be (5, 0, 0)
    return int(np.random.SeedSequence(counted).generate_state(1, np.uint64)[0] >> np.uint64(1))


def sample_of(num_images: int, count: int, *, seed: int, purpose: int) -> np.ndarray:
    """Return sorted indices of at most `count` of `num_images` images, the same on every worker.

    Args:
        seed: of the run.
        purpose: a `Sample`, plus how often it was drawn before.
    """
    rng = np.random.default_rng([seed, purpose, 1])  # two numbers would be the loader's epochs
    return np.sort(rng.permutation(num_images)[:count])
