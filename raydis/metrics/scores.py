"""What an evaluation found: the numbers of all metrics, and all that decides whether another evaluation compares."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from raydis.errors import MetricError
from raydis.metrics.importance import Estimator
from raydis.metrics.protocol import Protocol
from raydis.metrics.table import sizes_of

ScoreStatus = Literal["valid", "invalid", "not_ready", "no_factors"]

# In checkpoints written before the table of metrics, each number was a field of its own.
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
    """What an evaluation found. JSON-able.

    Attributes:
        protocol: its name.
        sizes: sample sizes of every metric that was computed, by metric and argument.
        estimator: DCI's classifier.
        seed: of every draw.
        num_images: rows of codes that were scored.
        data_fingerprint: identifies data set and sub-grid, as the caller names them.
        status: only "valid" scores have numbers, and only they are ranked. "invalid" is for codes that cannot be
            scored, "not_ready" for a method whose units are not open yet, "no_factors" for data sets without labels.
        reason: why there are no numbers, else None.
        values: the numbers of all metrics by name (see `raydis.metrics.table`).
        details: what metrics give beside numbers, as plain numbers and lists: `num_active_units`, units that FactorVAE
            did not prune, and `importance`, DCI's matrix of N rows with F numbers each.
        num_draws: draws of each metric; the numbers are those of the first.
        spread: standard deviation over the draws (divisor num_draws - 1) of each number. None where it is unknown: of
            scores without numbers, of a single draw, or where a draw pruned all units.
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
        """Restore what `to_dict` returned, today or before there was a table of metrics.

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
    """Return scores without numbers: of data without factors, of a run that failed or is not ready to be scored."""
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


def comparable(a: Scores, b: Scores) -> bool:
    """Return whether numbers of `a` and `b` mean the same: equal protocol, sizes, estimator, images and fingerprint.

    Only the sizes of metrics that both have count: a metric that was added between the two says nothing about the
    others. Seeds may differ, since they only move the draws. Validity is another question: look at `status`.
    """
    return not differences(a, b)


def differences(a: Scores, b: Scores) -> list[str]:
    """Return what keeps two scores from being compared, each as `NAME is A, not B`; empty where they compare."""
    names = ("protocol", "estimator", "num_images", "data_fingerprint")
    pairs: dict[str, tuple[Any, Any]] = {name: (getattr(a, name), getattr(b, name)) for name in names}
    for metric in a.sizes:
        if metric in b.sizes:
            mine, other = a.sizes[metric], b.sizes[metric]
            pairs |= {f"{metric}_{size}": (mine.get(size), other.get(size)) for size in mine | other}
    return [f"{name} is {ours}, not {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
