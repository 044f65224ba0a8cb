"""What a unit tells: one factor, a mixture of several, none of them, or nothing because it is inactive.

M images, N units, F factors. Every picture, page and answer that names a unit's factor takes the name from
`label_units`; nothing else in raydis decides it.

The statistic is the share of a factor's entropy that a unit's scalar tells, I(unit; factor) / H(factor), with the
scalar cut into bins of equal counts. DCI's importances are no such statistic: they sum to 1 over the units for each
factor, so units share out even a factor that nobody can predict. Two corrections come from permutations of the factor
over the images, which leave bins and levels as they are and break their relation:

- Bins tell a little of any factor by accident. The mean over the permutations is subtracted, from the information and
  from the entropy, so that independence is 0 and a perfect unit is 1 (as the adjusted mutual information of Vinh et
  al., JMLR 2010, for clusterings).
- A factor counts as told where its share exceeds the largest of all units over all permutations.

The images must be distinct: a permutation of repeated draws takes the copies of an image for independent ones, and
noise then passes.

Information has no scale: a unit may follow a factor and yet be one that the decoder has learnt to ignore. A unit is
inactive if pictures stay what they are when it is exchanged between images: if pixels change by less than one of 255
grey levels, root mean square. The spread of a unit's vectors is no substitute: on six runs of the `small` preset,
units whose exchange changed pixels by less than 0.6 grey levels had up to a quarter of the widest unit's spread.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError

MAX_IMAGES = 10_000
NUM_BINS = 20
NUM_PERMUTATIONS = 100  # noise exceeds the largest of them for one factor in a hundred
LEAST_EFFECT = 1.0  # grey levels of 255
# With less than half of the first factor's share the second has less than a third of what the unit tells of the two.
MIXED_SHARE = 0.5

Kind = Literal["factor", "mixed", "none", "inactive", "unknown"]


@dataclass(frozen=True)
class Information:
    """What the units of a model tell of the factors of its data, measured once; JSON-able by `to_dict`.

    Attributes:
        share: N rows of F shares of a factor's entropy, in [0, 1]; 0 for a factor that does not vary.
        chance: F shares that a unit must exceed.
        effect: N root-mean-square changes of a picture, grey levels of 255, when the unit is exchanged between images.
    """

    share: tuple[tuple[float, ...], ...]
    chance: tuple[float, ...]
    effect: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists."""
        return asdict(self) | {"share": [list(row) for row in self.share]}


@dataclass(frozen=True)
class UnitLabel:
    """What one unit tells. `str` gives the words for people, without any for "unknown".

    Attributes:
        kind: "factor": one; "mixed": several; "none": it changes pictures, but tells no factor more than chance does;
            "inactive": it changes no picture; "unknown": nobody has measured it, or the data has no factors.
        factors: those factors with their shares, the largest first; empty unless there are any.
    """

    kind: Kind
    factors: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        told = ", ".join(f"{name.replace('_', ' ')} {100 * share:.0f} %" for name, share in self.factors)
        match self.kind:
            case "factor":
                return told
            case "mixed":
                return f"mixed: {told}"
            case "none":
                return "no factor"
            case "inactive":
                return "inactive"
            case "unknown":
                return ""

    def lines(self, width: int) -> str:
        """Return the words with a line a factor, and longer ones broken at `width`, never between number and sign."""
        lines = str(self).replace(" %", "\0%").replace(", ", ",\n").split("\n")
        return "\n".join(textwrap.fill(line, width, break_long_words=False) for line in lines).replace("\0", " ")


def measure_information(
    scalars: ArrayLike, factors: ArrayLike, *, effects: ArrayLike, rng: np.random.Generator
) -> Information | None:
    """Measure what units tell.

    Args:
        scalars: (M, N), the scalar of each unit, or its vector's first principal component.
        factors: (M, F), integers; each row an image of its own.
        effects: (N,), as in `Information`.
        rng: chooses MAX_IMAGES images where there are more, and permutes.

    Returns:
        The information; None where scalars or effects are not finite.

    Raises:
        MetricError: tables whose numbers of images or units differ.
    """
    scalars, factors, effects = np.asarray(scalars, np.float64), np.asarray(factors), np.asarray(effects, np.float64)
    if scalars.ndim != 2 or factors.ndim != 2 or len(factors) != len(scalars) or effects.shape != scalars.shape[1:]:
        raise MetricError(
            f"scalars {scalars.shape} and factors {factors.shape} must be of the same images, and scalars and effects "
            f"{effects.shape} of the same units"
        )
    if not (np.isfinite(scalars).all() and np.isfinite(effects).all()):
        return None
    rows = rng.permutation(len(scalars))[:MAX_IMAGES]
    bins = np.stack([_bin(column) for column in scalars[rows].T])  # (N, M)
    share, chance = np.zeros((len(bins), factors.shape[1])), np.zeros(factors.shape[1])
    for factor in range(factors.shape[1]):
        _, levels = np.unique(factors[rows, factor], return_inverse=True)
        entropy = float(_information(levels[None], levels)[0])
        permuted = np.stack([_information(bins, rng.permutation(levels)) for _ in range(NUM_PERMUTATIONS)])
        accident = permuted.mean(axis=0)  # (N,)
        room = entropy - accident
        if entropy > 0 and (room > 0).all():
            share[:, factor] = np.maximum((_information(bins, levels) - accident) / room, 0.0)
            chance[factor] = ((permuted - accident) / room).max()
    return Information(
        share=tuple(map(tuple, share.tolist())),
        chance=tuple(chance.tolist()),
        effect=tuple(effects.tolist()),
    )


def label_units(
    information: Information | Mapping[str, Any] | None, factor_names: Sequence[str], num_units: int
) -> tuple[UnitLabel, ...]:
    """Say what each of N units tells.

    Args:
        information: measured, or as a checkpoint's metrics hold it; None where it was not.
        factor_names: F names.
        num_units: N.
    """
    if information is None:
        return (UnitLabel("unknown"),) * num_units
    if not isinstance(information, Information):
        information = Information(**information)
    rows = zip(information.share, information.effect, strict=True)
    return tuple(_label(share, effect, information.chance, factor_names) for share, effect in rows)


def reading_order(labels: Sequence[UnitLabel], factor_names: Sequence[str]) -> list[int]:
    """Return the units sorted for a reader: by factor, then those that mix factors, tell none, and are inactive."""
    kinds = get_args(Kind)

    def place(unit: int) -> list[float]:
        label = labels[unit]
        told = [(list(factor_names).index(name), -share) for name, share in label.factors]
        return [kinds.index(label.kind), *(number for pair in told for number in pair)]

    return sorted(range(len(labels)), key=place)


def _label(share: Sequence[float], effect: float, chance: Sequence[float], factor_names: Sequence[str]) -> UnitLabel:
    if effect < LEAST_EFFECT:
        return UnitLabel("inactive")
    told = [(name, own) for name, own, least in zip(factor_names, share, chance, strict=True) if own > least]
    told.sort(key=lambda pair: -pair[1])
    main = tuple(pair for pair in told if pair[1] >= MIXED_SHARE * told[0][1])
    return UnitLabel("mixed" if len(main) > 1 else "factor" if main else "none", main)


def _bin(scalar: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bins of equal counts: (M,) -> (M,) in 0..NUM_BINS - 1. Equal values share a bin."""
    edges = np.quantile(scalar, np.arange(1, NUM_BINS) / NUM_BINS)
    return np.searchsorted(edges, scalar, side="right")


def _information(bins: NDArray[np.int64], levels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mutual information, nats, of each row of bins (N, M) with levels (M,): (N,)."""
    num_units, num_bins, num_levels = len(bins), int(bins.max()) + 1, int(levels.max()) + 1
    cell = (np.arange(num_units)[:, None] * num_bins + bins) * num_levels + levels
    joint = np.bincount(cell.ravel(), minlength=num_units * num_bins * num_levels) / len(levels)
    joint = joint.reshape(num_units, num_bins, num_levels)
    entropies = [_entropy(joint.sum(axis=2)), _entropy(joint.sum(axis=1)), -_entropy(joint.reshape(num_units, -1))]
    return np.maximum(sum(entropies), 0.0)


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy, nats, of each row of shares (N, K): (N,)."""
    return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1)
