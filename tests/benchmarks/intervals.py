"""Measure how often an interval over training seeds contains the true mean: `python -m tests.benchmarks.intervals`.

Scores of S training seeds are drawn from distributions with a known mean, and each interval of 95 % is computed many
times. Three ways to compute it are compared:

- Student's t distribution, which `raydis.evaluation.intervals.around_mean` uses;
- 1.96 standard errors, which are right for many seeds;
- the percentiles of a bootstrap over the seeds.

The distributions are those that scores of training runs can have: a bell around 0.7; a skewed one that ends at 1; and
one in two heaps, where a quarter of the runs fails.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raydis.evaluation.intervals import around_mean

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]
CONFIDENCE = 0.95
NUM_SEEDS = (3, 5, 10)
NUM_RESAMPLES = 400


def bell(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Scores around 0.7 with a deviation of 0.05."""
    return rng.normal(0.7, 0.05, shape)


def skewed(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Scores near 1, few of which are much lower: the beta distribution (9, 1), of mean 0.9."""
    return rng.beta(9.0, 1.0, shape)


def two_heaps(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Scores around 0.8, or in a quarter of the runs around 0.4, with a deviation of 0.03."""
    return np.where(rng.random(shape) < 0.25, 0.4, 0.8) + rng.normal(0.0, 0.03, shape)


DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "bell": (bell, 0.7),
    "skewed": (skewed, 0.9),
    "two heaps": (two_heaps, 0.7),
}


def students(scores: Floats) -> tuple[float, float]:
    """Return the ends of the interval that `raydis evaluate` shows for scores (S,)."""
    half = around_mean(scores.tolist(), confidence=CONFIDENCE)[1]
    return float(scores.mean()) - half, float(scores.mean()) + half


def normal(scores: Floats) -> tuple[float, float]:
    """Return the mean of scores (S,) less and plus 1.96 standard errors."""
    half = 1.959964 * float(scores.std(ddof=1)) / math.sqrt(len(scores))
    return float(scores.mean()) - half, float(scores.mean()) + half


def percentiles(scores: Floats) -> tuple[float, float]:
    """Return the percentiles of the means of resampled scores (S,)."""
    means = scores[np.random.default_rng(0).integers(len(scores), size=(NUM_RESAMPLES, len(scores)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


METHODS: dict[str, Callable[[Floats], tuple[float, float]]] = {
    "Student's t": students,
    "1.96 errors": normal,
    "bootstrap": percentiles,
}


def coverage(method: str, distribution: str, num_seeds: int, num_repeats: int) -> float:
    """Return the share of repeats whose interval contains the true mean."""
    draw, mean = DISTRIBUTIONS[distribution]
    tables = draw(np.random.default_rng([num_seeds, *distribution.encode()]), (num_repeats, num_seeds))
    ends = np.array([METHODS[method](scores) for scores in tables])
    return float(((ends[:, 0] <= mean) & (mean <= ends[:, 1])).mean())


def table(num_repeats: int) -> str:
    """Return the coverage of every method as a Markdown table."""
    lines = [f"| scores | seeds | {' | '.join(METHODS)} |", "|---" * (2 + len(METHODS)) + "|"]
    for name in DISTRIBUTIONS:
        for number in NUM_SEEDS:
            shares = (f"{100 * coverage(method, name, number, num_repeats):.0f} %" for method in METHODS)
            lines.append(f"| {name} | {number} | {' | '.join(shares)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the coverage of intervals of 95 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4_000, help="intervals of each kind")
    arguments = parser.parse_args()
    print(f"share of {arguments.repeats:,} intervals of 95 % that contain the true mean\n")
    print(table(arguments.repeats))


if __name__ == "__main__":
    main()
