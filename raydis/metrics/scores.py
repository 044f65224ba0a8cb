"""The result of an evaluation: the numbers of all metrics, and the settings by which results can be compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from raydis.errors import MetricError
from raydis.metrics.importance import Estimator
from raydis.metrics.protocol import Protocol
from raydis.metrics.table import sizes_of

ScoreStatus = Literal["valid", "invalid", "not_ready", "no_factors"]

# Older checkpoints, from before the table of metrics, store each number as a field of its own.
FORMER_NUMBERS = ("factor_vae", "dci_disentanglement", "dci_completeness", "dci_informativeness", "mig")
FORMER_DETAILS = ("num_active_units", "importance")
FORMER_SIZES = {
    "factor_vae_num_variance": ("factor_vae", "num_variance"),
    "factor_vae_num_train": ("factor_vae", "num_train"),
    "factor_vae_num_eval": ("factor_vae", "num_eval"),
    "factor_vae_batch_size": ("factor_vae", "batch_size"),
    "prune_threshold": ("factor_vae", "prune_threshold"),
    "dci_num_train": ("dci", "num_train"),
    "dci_num_test": ("dci", "num_test"),
    "mig_num_samples": ("mig", "num_samples"),
    "mig_num_bins": ("mig", "num_bins"),
}


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation. `to_dict` makes it ready for JSON.

    Attributes:
        protocol: name of the protocol.
        sizes: sample sizes of every metric that was computed, by metric and argument.
        estimator: DCI's classifier.
        seed: of every metric.
        num_images: number of rows of codes that were scored.
        data_fingerprint: identifies the data set and the sub-grid; given by the caller.
        status: only "valid" scores have numbers, and only they are ranked. "invalid" means that the codes cannot be
            scored, "not_ready" that the method's units cannot be scored yet, and "no_factors" that the data set has no
            factors.
        reason: why there are no numbers, else None.
        values: the numbers of all metrics by name (see `raydis.metrics.table`).
        details: additional results, as plain numbers and lists: `num_active_units`, the number of units that FactorVAE
            did not prune, and `importance`, DCI's matrix of N rows with F numbers each.
        num_draws: how often each metric was computed, with different random samples. `values` are from the first time.
        spread: standard deviation of each number over these draws (divisor num_draws - 1). None if it is unknown:
            for scores without numbers, a single draw, or if a draw pruned all units.
    """

    protocol: str
    sizes: dict[str, dict[str, float]]
    estimator: Estimator
    seed: int
    num_images: int
    data_fingerprint: str
    status: ScoreStatus
    reason: str | None = None
    values: dict[str, float] = field(default_factory=dict[str, float])
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    num_draws: int = 1
    spread: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers; `from_dict` restores an equal object."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Self:
        """Restore scores from the result of `to_dict`, also from versions before the table of metrics.

        Raises:
            MetricError: a field is missing or unknown.
        """
        try:
            return cls(**(found if "values" in found else _from_flat(found)))
        except TypeError as error:
            names = ", ".join(each.name for each in fields(cls))
            raise MetricError(f"these are not scores: {error}; the fields are {names}") from error


def _from_flat(found: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of scores from the former layout, in which each number was a field of its own."""
    moved = {*FORMER_NUMBERS, *FORMER_DETAILS}
    kept = {name: value for name, value in found.items() if name not in moved}
    sizes: dict[str, dict[str, float]] = {}
    for name, size in kept.pop("sizes", {}).items():
        if name not in FORMER_SIZES:
            raise MetricError(f"these are not scores: no metric has the size {name}; it was {', '.join(FORMER_SIZES)}")
        metric, argument = FORMER_SIZES[name]
        sizes.setdefault(metric, {})[argument] = size
    return kept | {
        "sizes": sizes,
        "values": {name: found[name] for name in FORMER_NUMBERS if found.get(name) is not None},
        "details": {name: found[name] for name in FORMER_DETAILS if found.get(name) is not None},
    }


def unscored(
    status: Literal["invalid", "not_ready", "no_factors"],
    reason: str | None,
    *,
    protocol: Protocol,
    num_images: int,
    data_fingerprint: str,
    estimator: Estimator | None = None,
    seed: int = 0,
) -> Scores:
    """Return scores without numbers, for data without factors, or a run that failed or cannot be scored yet."""
    return Scores(
        protocol=protocol.name,
        sizes=sizes_of(protocol),
        estimator=estimator or protocol.estimator,
        seed=seed,
        num_images=num_images,
        data_fingerprint=data_fingerprint,
        status=status,
        reason=reason,
    )


def differences(a: Scores, b: Scores) -> list[str]:
    """Return the differences that make two scores incomparable, each as `NAME is A, not B`; empty if there are none.

    The protocol, the sizes, the estimator, the number of images and the data fingerprint must be equal. Only sizes of
    metrics that both contain are compared, because a metric that was added later does not affect the others. Seeds may
    differ, because they only change the random samples. Whether scores are valid is not checked; see `status`.
    """
    names = ("protocol", "estimator", "num_images", "data_fingerprint")
    pairs: dict[str, tuple[Any, Any]] = {name: (getattr(a, name), getattr(b, name)) for name in names}
    for metric in a.sizes:
        if metric in b.sizes:
            mine, other = a.sizes[metric], b.sizes[metric]
            pairs |= {f"{metric}_{size}": (mine.get(size), other.get(size)) for size in mine | other}
    return [f"{name} is {ours}, not {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
