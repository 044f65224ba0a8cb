"""Named evaluation protocols, and the scores that a study compares. M samples, N units, D unit width, F factors.

Two numbers may be compared only if the same protocol and the same estimator made them from the same data:
`comparable` decides that, and every result carries what it needs to know.

PUBLISHED is the evaluation of DisDiff, EncDiff and DyGA+SD: disentanglement_lib's sizes and gradient boosting, on the
codes of the whole data set, each unit reduced to its first principal component.

SEARCH ranks trials at the published sizes. It saves by `hist` in place of the reference, and by a product sub-grid: a
trial encodes at most `max_images` images, and DCI has fewer levels to fit. On 12 synthetic models (noise 0.05 to 0.5,
pairs of codes rotated by 0 to 25 degrees) D on the 10,000-cell sub-grid of 3D Shapes orders the models as `hist` does
on all 480,000 cells with Kendall's tau 0.94, at half the cost: a few CPU-seconds with 10 units. A half or a quarter of
the samples would save another third or half, but tau falls to 0.85 and 0.82, since few samples punish noisy codes; one
`tree` at full sizes gives 0.82. Values on a sub-grid read higher, by up to 0.13 in D.

Every number is one draw, as published: that of the configured seed. NUM_DRAWS - 1 more draws, with seeds of their own,
show how far chance in the draws moves it: `spread` is the standard deviation over all of them. Chance in the training
is not part of it; only training with several seeds shows that. Scoring costs about what DCI costs, times the number of
draws. With the quickstart's 12 units and 21 levels that is 6.5 CPU-seconds instead of 2.5 with `hist`, at the end of a
trial of 200 seconds, and 90 instead of 30 with `reference`, shared between `num_jobs` processes. Two draws would often
agree by chance and show no spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydis.errors import MetricError
from raydis.metrics.dci import dci
from raydis.metrics.factor_vae import FactorVaeResult, factor_vae
from raydis.metrics.importance import Estimator
from raydis.metrics.mig import mig
from raydis.metrics.representation import per_unit_pca

ScoreStatus = Literal["valid", "invalid", "no_factors"]
ScoreName = Literal["dci_disentanglement", "dci_completeness", "dci_informativeness", "factor_vae", "mig"]
SCORE_NAMES: tuple[ScoreName, ...] = get_args(ScoreName)
NUM_DRAWS = 3


@dataclass(frozen=True)
class Protocol:
    """Sample sizes of an evaluation; every metric draws with replacement from the rows it is given.

    Attributes:
        name: what results call it.
        estimator: DCI's classifier unless the caller says otherwise.
        whole_data_set: codes are to be those of every image; otherwise those of a fixed `search_subgrid`.
        prune_threshold: standard deviation, in raw code units, below which FactorVAE leaves a code out.
    """

    name: Literal["published", "search"]
    estimator: Estimator
    whole_data_set: bool
    factor_vae_num_variance: int = 10_000
    factor_vae_num_train: int = 10_000
    factor_vae_num_eval: int = 5_000
    factor_vae_batch_size: int = 64
    prune_threshold: float = 0.05
    dci_num_train: int = 10_000
    dci_num_test: int = 5_000
    mig_num_samples: int = 10_000
    mig_num_bins: int = 20

    def sizes(self) -> dict[str, float]:
        """The numbers among the fields."""
        return {name: value for name, value in asdict(self).items() if type(value) in (int, float)}


PUBLISHED = Protocol("published", estimator="reference", whole_data_set=True)
SEARCH = Protocol("search", estimator="hist", whole_data_set=False)


@dataclass(frozen=True)
class Scores:
    """What an evaluation found, with all that decides whether another one compares. JSON-able.

    Attributes:
        protocol, sizes: name and sample sizes of the protocol.
        estimator: DCI's classifier.
        seed: of every draw.
        num_images: rows of codes that were scored.
        data_fingerprint: identifies data set and sub-grid, as the caller names them.
        status: only "valid" scores have numbers. "no_factors" is for data sets without labels.
        reason: why there are none, else None.
        factor_vae: FactorVAE score, accuracy on evaluation votes.
        dci_disentanglement, dci_completeness, dci_informativeness: D, C, and accuracy on the test draw.
        mig: mutual information gap.
        num_active_units: units that FactorVAE did not prune.
        importance: DCI's matrix, N rows of F numbers.
        num_draws: draws of each metric; the numbers are those of the first.
        spread: standard deviation over the draws (divisor num_draws - 1) of each number in SCORE_NAMES. None where it
            is unknown: of scores without numbers, of a single draw, or where a draw pruned all units.
    """

    protocol: str
    sizes: dict[str, float]
    estimator: Estimator
    seed: int
    num_images: int
    data_fingerprint: str
    status: ScoreStatus
    reason: str | None = None
    factor_vae: float | None = None
    dci_disentanglement: float | None = None
    dci_completeness: float | None = None
    dci_informativeness: float | None = None
    mig: float | None = None
    num_active_units: int | None = None
    importance: tuple[tuple[float, ...], ...] | None = None
    num_draws: int = 1
    spread: dict[str, float] | None = None

    def values(self) -> dict[str, float | None]:
        """Return the numbers by name."""
        return {name: getattr(self, name) for name in SCORE_NAMES}

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers; `from_dict` restores an equal object."""
        importance = None if self.importance is None else [list(row) for row in self.importance]
        return {**asdict(self), "importance": importance}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            MetricError: a field is missing or unknown.
        """
        importance = values.get("importance")
        try:
            return cls(**{**values, "importance": importance and tuple(tuple(row) for row in importance)})
        except TypeError as error:
            names = ", ".join(field.name for field in fields(cls))
            raise MetricError(f"these are not scores: {error}; the fields are {names}") from error


def vote(scalars: ArrayLike, factors: ArrayLike, *, protocol: Protocol, seed: int) -> FactorVaeResult:
    """FactorVAE by a protocol, of one scalar a unit (M, N) and factors (M, F); what `score` begins with."""
    return factor_vae(
        scalars,
        factors,
        rng=np.random.default_rng(seed),
        batch_size=protocol.factor_vae_batch_size,
        num_variance=protocol.factor_vae_num_variance,
        num_train=protocol.factor_vae_num_train,
        num_eval=protocol.factor_vae_num_eval,
        prune_threshold=protocol.prune_threshold,
    )


def score(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    protocol: Protocol,
    data_fingerprint: str,
    estimator: Estimator | None = None,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
    num_jobs: int = 1,
) -> Scores:
    """FactorVAE score, DCI and MIG of a representation, and how far chance in the draws moves them.

    Each metric draws from a fresh generator of the same seed, so neither depends on the other.

    Args:
        codes: (M, N), or (M, N, D) of which each unit is first reduced to one component.
        factors: (M, F), integers.
        protocol: sample sizes.
        data_fingerprint: name of the data set and of the rows that are scored.
        estimator: DCI's classifier; None takes the protocol's. A published protocol with another one than
            `reference` keeps that one's name and compares with no `reference` value.
        seed: of the draw that gives the numbers; the same for every model of a study.
        num_draws: draws of every metric; those after the first have seeds derived from `seed` and only give `spread`.
        num_jobs: processes for DCI's fits; changes no number.

    Returns:
        Valid scores, or invalid ones without numbers if codes are not finite, have collapsed, or all lie below the
        protocol's `prune_threshold`.

    Raises:
        MetricError: a table that cannot be scored, or no draw.
    """
    if num_draws < 1:
        raise MetricError(f"{num_draws=} must be at least 1: the first draw gives the numbers")
    scalars = per_unit_pca(codes)

    def draw(seed: int) -> Scores:
        return _draw(
            scalars,
            factors,
            protocol=protocol,
            data_fingerprint=data_fingerprint,
            estimator=estimator,
            seed=seed,
            num_jobs=num_jobs,
        )

    first = draw(seed)
    if first.status != "valid":
        return first
    others = [draw(derived_seed(seed, f"draw {number}")) for number in range(2, num_draws + 1)]
    return replace(first, num_draws=num_draws, spread=_spread([first, *others]))


def derived_seed(seed: int, stream: str) -> int:
    """Return the seed of a named stream, whose draws have nothing in common with those of `seed` or another stream."""
    return int(np.random.SeedSequence([seed, *stream.encode()]).generate_state(1)[0])


def _draw(
    scalars: NDArray[np.float64],
    factors: ArrayLike,
    *,
    protocol: Protocol,
    data_fingerprint: str,
    estimator: Estimator | None,
    seed: int,
    num_jobs: int,
) -> Scores:
    """One draw of every metric, of one scalar a unit (M, N)."""
    blank = unscored(
        "invalid",
        None,
        protocol=protocol,
        num_images=len(scalars),
        data_fingerprint=data_fingerprint,
        estimator=estimator,
        seed=seed,
    )
    votes = vote(scalars, factors, protocol=protocol, seed=seed)
    # FactorVAE has every reason that DCI and MIG have and one more: the threshold may prune all units of codes that
    # these could score. Such a representation is invalid as a whole, so that scores have all numbers or none.
    if votes.status == "invalid":
        return replace(blank, reason=votes.reason)
    fits = dci(
        scalars,
        factors,
        rng=np.random.default_rng(seed),
        estimator=blank.estimator,
        num_train=protocol.dci_num_train,
        num_test=protocol.dci_num_test,
        num_jobs=num_jobs,
    )
    assert fits.importance is not None
    gap = mig(
        scalars,
        factors,
        rng=np.random.default_rng(seed),
        num_samples=protocol.mig_num_samples,
        num_bins=protocol.mig_num_bins,
    )
    return replace(
        blank,
        status="valid",
        factor_vae=votes.score,
        dci_disentanglement=fits.disentanglement,
        dci_completeness=fits.completeness,
        dci_informativeness=fits.informativeness,
        mig=gap.score,
        num_active_units=votes.num_active,
        importance=tuple(map(tuple, fits.importance.tolist())),
    )


def _spread(draws: Sequence[Scores]) -> dict[str, float] | None:
    """Standard deviation of each number over the draws; None of a single one, or where one has no numbers."""
    if len(draws) < 2 or any(drawn.status != "valid" for drawn in draws):
        return None
    return {name: float(np.std([getattr(drawn, name) for drawn in draws], ddof=1)) for name in SCORE_NAMES}


def unscored(
    status: Literal["invalid", "no_factors"],
    reason: str | None,
    *,
    protocol: Protocol,
    num_images: int,
    data_fingerprint: str,
    estimator: Estimator | None = None,
    seed: int = 0,
) -> Scores:
    """Scores without numbers: of data without factors, or of a run that failed before it had codes."""
    return Scores(
        protocol=protocol.name,
        sizes=protocol.sizes(),
        estimator=estimator or protocol.estimator,
        seed=seed,
        num_images=num_images,
        data_fingerprint=data_fingerprint,
        status=status,
        reason=reason,
    )


def comparable(a: Scores, b: Scores) -> bool:
    """Whether numbers of `a` and `b` mean the same: equal protocol, sizes, estimator, images and data fingerprint.

    Seeds may differ, since they only move the draws. Validity is another question: look at `status`.
    """

    def terms(scores: Scores) -> tuple:
        return scores.protocol, scores.sizes, scores.estimator, scores.num_images, scores.data_fingerprint

    return terms(a) == terms(b)


def search_subgrid(sizes: Sequence[int], max_images: int) -> tuple[tuple[int, ...], ...]:
    """The part of a factor grid that the search protocol scores: levels whose product has at most `max_images` cells.

    The factor with most levels left loses one, and of equals the one that has kept the largest part of its own, until
    the grid fits; so all factors keep about as many levels, at least 2 each. A trial then encodes only these cells.
    Levels are spread evenly: level floor(i * K / n) of K for each i < n.

    A sub-grid is easier than its grid, since its levels lie further apart: its scores read higher.

    Args:
        sizes: number of levels of each factor, F of them.
        max_images: bound of the number of cells.

    Returns:
        F ascending tuples of levels, the same for the same arguments.

    Raises:
        MetricError: two levels of each factor are already too many.
    """
    if not sizes or min(sizes) < 1:
        raise MetricError(f"factor sizes {tuple(sizes)} must be positive, and at least one")
    smallest = math.prod(min(size, 2) for size in sizes)
    if smallest > max_images:
        raise MetricError(
            f"max_images={max_images} cannot hold 2 levels of each factor of sizes {tuple(sizes)}: "
            f"raise it to at least {smallest}"
        )
    kept = list(sizes)
    while math.prod(kept) > max_images:
        widest = max(range(len(kept)), key=lambda j: (kept[j], kept[j] / sizes[j]))
        kept[widest] -= 1
    return tuple(tuple(i * size // n for i in range(n)) for size, n in zip(sizes, kept, strict=True))
