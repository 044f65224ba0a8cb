"""Print the tables of the metric handbook: what each metric says of synthetic codes whose quality is known.

    python -m tests.benchmarks.handbook

The tables stand in raydis/metrics/README.md, and `tests/metrics/test_handbook.py` computes them again. Three factors of
6, 5 and 4 levels, each combination 400 times, 2,000 rows to fit and 1,000 to test; seed 0. TAD has no row, because it
needs binary attributes. The second table is of units that are vectors, and of the metrics that see whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from raydis.metrics.protocol import SEARCH, Protocol
from raydis.metrics.representation import all_scalars
from raydis.metrics.scoring import fitting_metrics, measure
from raydis.metrics.table import METRICS, sizes_of

SIZES = (6, 5, 4)
REPEATS = 400
SEED = 0
SMALLER = {
    "num_train": 2000,
    "num_test": 1000,
    "num_eval": 1000,
    "num_samples": 2000,
    "max_samples": 2000,
    "num_many": 2000,
}

Codes = NDArray[np.float64]


def _values(rng: np.random.Generator, factors: NDArray[np.int64], *, permuted: bool = False) -> Codes:
    """Standardised levels (M, 3), in their order or in a random one."""
    levels = [rng.permutation(size)[factors[:, j]] if permuted else factors[:, j] for j, size in enumerate(SIZES)]
    columns = np.stack(levels, axis=1) * 1.0
    return (columns - columns.mean(axis=0)) / columns.std(axis=0)


def _noise(rng: np.random.Generator, number: int, deviation: float = 1.0) -> Codes:
    return deviation * rng.normal(size=(REPEATS * int(np.prod(SIZES)), number))


def _rotated(rng: np.random.Generator, factors: NDArray[np.int64]) -> Codes:
    """All three codes turned by 60 degrees about the axis on which they are equal, so that each mixes all factors."""
    turn = np.array([[2.0, -1.0, 2.0], [2.0, 2.0, -1.0], [-1.0, 2.0, 2.0]]) / 3
    return _values(rng, factors) @ turn + _noise(rng, 3, 0.05)


def _shared(rng: np.random.Generator, factors: NDArray[np.int64]) -> Codes:
    """One unit counts through the first two factors, another holds the third, and one is noise."""
    both = factors[:, 0] * SIZES[1] + factors[:, 1]
    codes = np.stack([(both - both.mean()) / both.std(), _values(rng, factors)[:, 2]], axis=1)
    return np.hstack([codes + _noise(rng, 2, 0.01), _noise(rng, 1)])


KINDS: dict[str, Callable[[np.random.Generator, NDArray[np.int64]], Codes]] = {
    "perfect": lambda rng, factors: _values(rng, factors) + _noise(rng, 3, 0.05),
    "permuted": lambda rng, factors: _values(rng, factors, permuted=True) + _noise(rng, 3, 0.05),
    "spare": lambda rng, factors: np.hstack([_values(rng, factors) + _noise(rng, 3, 0.05), _noise(rng, 3)]),
    "redundant": lambda rng, factors: np.hstack([_values(rng, factors)] * 2) + _noise(rng, 6, 0.05),
    "missed": lambda rng, factors: np.hstack([_values(rng, factors)[:, :2] + _noise(rng, 2, 0.05), _noise(rng, 1)]),
    "noisy": lambda rng, factors: _values(rng, factors) + _noise(rng, 3, 0.5),
    "folded": lambda rng, factors: np.abs(_values(rng, factors)) + _noise(rng, 3, 0.05),
    "shared": _shared,
    "rotated": _rotated,
    "noise": lambda rng, factors: _noise(rng, 3),
}


def _circles(rng: np.random.Generator, factors: NDArray[np.int64]) -> Codes:
    """A vector for each factor, whose levels lie on a circle: its principal component alone folds them."""
    angles = 2 * np.pi * factors / np.array(SIZES)
    return np.stack([np.cos(angles), np.sin(angles)], axis=2)


def _content(rng: np.random.Generator, factors: NDArray[np.int64]) -> Codes:
    """A vector with the first two factors, and one with the third and an entry of noise."""
    values = _values(rng, factors)
    return np.stack([values[:, :2], np.stack([values[:, 2], _noise(rng, 1)[:, 0]], axis=1)], axis=1)


def _turned(rng: np.random.Generator, factors: NDArray[np.int64]) -> Codes:
    """The same, with each vector turned by 45 degrees: each entry mixes what its vector holds."""
    return _content(rng, factors) @ (np.array([[1.0, 1.0], [-1.0, 1.0]]) / np.sqrt(2))


def _copied(rng: np.random.Generator, factors: NDArray[np.int64]) -> Codes:
    """A vector with the first two factors, and one with the first and the third."""
    return _values(rng, factors)[:, [[0, 1], [0, 2]]]


def _across(rng: np.random.Generator, factors: NDArray[np.int64]) -> Codes:
    """The codes `rotated`, mixtures of all factors: two in the first vector, one beside noise in the second."""
    mixed = _rotated(rng, factors)
    return np.stack([mixed[:, :2], np.stack([mixed[:, 2], _noise(rng, 1)[:, 0]], axis=1)], axis=1)


VECTOR_KINDS: dict[str, Callable[[np.random.Generator, NDArray[np.int64]], Codes]] = {
    "circles": _circles,
    "content": _content,
    "turned": _turned,
    "copied": _copied,
    "across": _across,
    "noise": lambda rng, factors: _noise(rng, 4).reshape(-1, 2, 2),
}


def _table() -> tuple[NDArray[np.int64], Protocol]:
    """The factors (M, 3), and a protocol with smaller samples."""
    every = sizes_of(replace(SEARCH, metrics="all"))
    small = {
        metric: {size: min(value, SMALLER[size]) for size, value in sizes.items() if size in SMALLER}
        for metric, sizes in every.items()
    }
    factors = np.tile(np.indices(SIZES).reshape(len(SIZES), -1).T, (REPEATS, 1)).astype(np.int64)
    return factors, replace(SEARCH, overrides=small)


def values_of(kind: str) -> dict[str, float | None]:
    """Return the numbers of every metric for codes of a kind, by title; None where the metric finds them invalid."""
    factors, protocol = _table()
    codes = KINDS[kind](np.random.default_rng(SEED), factors)
    found: dict[str, float | None] = {}
    for name in fitting_metrics(codes, factors):
        outcome = measure(name, codes, factors, protocol=protocol, seed=SEED)
        found |= {number.title: outcome.values.get(number.name) for number in METRICS[name].numbers}
    return found


def vector_values_of(kind: str) -> dict[str, float | None]:
    """Return the numbers of the metrics of vectors for vectors of a kind, each entry with a little noise, by title."""
    factors, protocol = _table()
    rng = np.random.default_rng(SEED)
    vectors = VECTOR_KINDS[kind](rng, factors)
    vectors = vectors + 0.05 * rng.normal(size=vectors.shape)
    scalars, groups = all_scalars(vectors, [vectors.shape[2]] * vectors.shape[1])
    found: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        if "vectors" in metric.needs:
            outcome = measure(name, scalars, factors, protocol=protocol, seed=SEED, groups=groups)
            found |= {number.title: outcome.values.get(number.name) for number in metric.numbers}
    return found


def table_of(columns: dict[str, dict[str, float | None]]) -> str:
    """Return the numbers of each kind of codes as a column of a table of Markdown."""
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for title in next(iter(columns.values())):
        cells = [column.get(title) for column in columns.values()]
        lines.append(f"| {title} | {' | '.join('–' if value is None else f'{value:.2f}' for value in cells)} |")
    return "\n".join(lines)


def main() -> None:
    print(table_of({kind: values_of(kind) for kind in KINDS}), end="\n\n")
    print(table_of({kind: vector_values_of(kind) for kind in VECTOR_KINDS}))


if __name__ == "__main__":
    main()
