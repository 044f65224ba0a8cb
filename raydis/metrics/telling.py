"""Label each latent unit with the factor that it encodes, or as a mixture of factors, as none, or as inactive.

M images, N units, F factors. Every figure, page and response that names the factor of a unit uses `label_units`, so
that all of them agree.

The statistic is the share of a factor's entropy that is known from a unit's scalar, I(unit; factor) / H(factor), where
the scalar is divided into bins of equal counts. The importances of DCI are unsuitable: for each factor they sum to 1
over the units, so even a factor that no unit can predict is divided among the units. Two corrections use random
permutations of the factor over the images, which keep bins and levels but destroy their relation:

- Bins have some information about any factor by chance. Its mean over the permutations is subtracted from the
  information and from the entropy, so that an independent unit has 0 and a perfect unit 1 (as in the adjusted mutual
  information of Vinh et al., JMLR 2010, for clusterings).
- A unit encodes a factor if its share exceeds the largest share of all units over all permutations.

The images must be distinct. Otherwise a permutation treats copies of an image as independent, and noise exceeds the
threshold.

Information does not depend on scale: a unit may follow a factor although the decoder has learned to ignore the unit. A
unit is therefore inactive if exchanging it between images changes pixels by less than one of 255 grey levels (root mean
square). The spread of the unit's vectors cannot replace this test. In six runs of the `small` preset, units whose
exchange changed pixels by less than 0.6 grey levels had up to a quarter of the largest spread of a unit.
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
NUM_PERMUTATIONS = 100  # noise exceeds the largest share of all permutations for one factor in a hundred
LEAST_EFFECT = 1.0  # grey levels of 255
# Below half of the first factor's share, the second has less than a third of the unit's information about the two.
MIXED_SHARE = 0.5

Kind = Literal["factor", "mixed", "none", "inactive", "unknown"]


@dataclass(frozen=True)
class Information:
    """The information of a model's units about the factors of its data. `to_dict` makes it ready for JSON.

    Attributes:
        share: N rows of F shares of the factors' entropies, in [0, 1]; 0 for a factor that does not vary.
        chance: for each factor, the share that a unit must exceed.
        effect: for each unit, the root-mean-square change of pixels, in grey levels of 255, if the unit is exchanged
            between images.
    """

    share: tuple[tuple[float, ...], ...]
    chance: tuple[float, ...]
    effect: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists."""
        return asdict(self) | {"share": [list(row) for row in self.share]}


@dataclass(frozen=True)
class UnitLabel:
    """The label of one unit. `str` returns it as text for users, which is empty for "unknown".

    Attributes:
        kind: "factor": it encodes one factor; "mixed": several; "none": it changes images, but has no more information
            about any factor than by chance; "inactive": it does not change images; "unknown": it has not been measured,
            or the data has no factors.
        factors: the encoded factors and their shares, the largest first; empty for the other kinds.
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
        """Return the text with one line per factor, wrapped at `width`, but never between a number and its % sign."""
        lines = str(self).replace(" %", "\0%").replace(", ", ",\n").split("\n")
        return "\n".join(textwrap.fill(line, width, break_long_words=False) for line in lines).replace("\0", " ")


def measure_information(
    scalars: ArrayLike, factors: ArrayLike, *, effects: ArrayLike, rng: np.random.Generator
) -> Information | None:
    """Measure the information of units about factors, and the corrections by chance.

    Args:
        scalars: (M, N), the scalar of each unit, or its vector's first principal component.
        factors: (M, F), integers. The rows must belong to distinct images.
        effects: (N,), as in `Information`.
        rng: chooses MAX_IMAGES images if there are more, and permutes.

    Returns:
        The information; None if scalars or effects are not finite.

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
    """Return the labels of N units.

    Args:
        information: the result of `measure_information`, or its dict from a checkpoint; None if it was not measured.
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
    """Return the units sorted for display: first by factor, then those that are mixed, none, inactive or unknown."""
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
    """Divide a scalar into bins of equal counts: (M,) -> (M,) in 0..NUM_BINS - 1. Equal values share a bin."""
    edges = np.quantile(scalar, np.arange(1, NUM_BINS) / NUM_BINS)
    return np.searchsorted(edges, scalar, side="right")


def _information(bins: NDArray[np.int64], levels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mutual information, in nats, of each row of bins (N, M) with levels (M,): (N,)."""
    num_units, num_bins, num_levels = len(bins), int(bins.max()) + 1, int(levels.max()) + 1
    cell = (np.arange(num_units)[:, None] * num_bins + bins) * num_levels + levels
    joint = np.bincount(cell.ravel(), minlength=num_units * num_bins * num_levels) / len(levels)
    joint = joint.reshape(num_units, num_bins, num_levels)
    entropies = [_entropy(joint.sum(axis=2)), _entropy(joint.sum(axis=1)), -_entropy(joint.reshape(num_units, -1))]
    return np.maximum(sum(entropies), 0.0)


def _entropy(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy, in nats, of each row of shares (N, K): (N,)."""
    return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1)
