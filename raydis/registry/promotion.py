"""Whether a new version takes over an alias: a pure decision on two sets of scores, and the guarded move after it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raydis.errors import MetricError, RegistryError
from raydis.metrics.protocol import Scores, comparable
from raydis.registry.registry import DEFAULT_ALIAS, MAX_TRIES, ModelRef, Registry
from raydis.store import StoreConflict

Rule = Literal["mean", "dci", "factor_vae"]

_SCORES: dict[Rule, tuple[str, ...]] = {
    "mean": ("dci_disentanglement", "factor_vae"),
    "dci": ("dci_disentanglement",),
    "factor_vae": ("factor_vae",),
}


@dataclass(frozen=True)
class ScoredVersion:
    """A version and its scores; None where it was never evaluated."""

    ref: ModelRef
    scores: Scores | None


@dataclass(frozen=True)
class Decision:
    """Whether the alias moves, and why or why not, in one line."""

    promote: bool
    reason: str


@dataclass(frozen=True)
class Promotion:
    """The version that a checkpoint became, and whether the alias moved to it."""

    ref: ModelRef
    decision: Decision


def decide(
    candidate: ScoredVersion, incumbent: ScoredVersion | None, *, rule: Rule = "mean", alias: str = DEFAULT_ALIAS
) -> Decision:
    """Whether the candidate takes the alias from the incumbent.

    It does if it has valid scores, and there is no incumbent or one with lower scores of the same meaning. Equal
    scores keep the incumbent.

    Args:
        incumbent: what the alias points to; None where it does not exist.
        rule: the number compared: DCI's disentanglement, the FactorVAE score, or the mean of both.
    """
    ours, reason = _value(candidate, rule)
    if reason:
        return Decision(False, reason)
    if incumbent is None:
        return Decision(True, f"{candidate.ref} ({rule} {ours:.4f}) is the first {alias}")
    theirs, reason = _value(incumbent, rule)
    if reason := reason or _difference(candidate.scores, incumbent.scores):
        return Decision(
            False,
            f"{candidate.ref} does not compare with {incumbent.ref}: {reason}. To point {alias} to it all the same: "
            f"python -m raydis models promote {candidate.ref} --alias {alias}",
        )
    compared = f"{rule} {ours:.4f} of {candidate.ref} against {theirs:.4f} of {incumbent.ref}"
    return Decision(ours > theirs, compared if ours > theirs else f"{compared}, which stays {alias}")


def promote(
    registry: Registry, folder: Path, name: str, *, alias: str = DEFAULT_ALIAS, rule: Rule = "mean"
) -> Promotion:
    """Registers a checkpoint folder as a version of `name`, and moves the alias to it if it is better.

    Raises:
        CheckpointError, RegistryError, StoreError: see `Registry.register` and `move_if_better`.
    """
    ref = ModelRef(name, registry.register(folder, name))
    return Promotion(ref, move_if_better(registry, ref, alias=alias, rule=rule))


def move_if_better(registry: Registry, ref: ModelRef, *, alias: str = DEFAULT_ALIAS, rule: Rule = "mean") -> Decision:
    """Moves an alias to a registered version if `decide` says so.

    Of promotions at the same time the best one holds the alias in the end: who finds it moved decides anew.

    Raises:
        RegistryError: no such version, scores that cannot be read, or an alias that never stands still.
        CheckpointError: metrics that do not match their manifest.
    """
    candidate = _scored(registry, ref)
    for _ in range(MAX_TRIES):
        state = registry.alias(ref.name, alias)
        if state.version == ref.version:
            return Decision(True, f"{ref} is {alias}")
        incumbent = None if state.version is None else _scored(registry, ModelRef(ref.name, state.version))
        decision = decide(candidate, incumbent, rule=rule, alias=alias)
        if not decision.promote:
            return decision
        try:
            registry.move_alias(ref.name, alias, ref.version, expected=state)
        except StoreConflict:
            continue
        return decision
    raise RegistryError(f"{ref.name}@{alias} in {registry.store.uri} moved {MAX_TRIES} times meanwhile: try again")


def _value(version: ScoredVersion, rule: Rule) -> tuple[float, str]:
    """The number that the rule compares, or a reason why there is none."""
    scores = version.scores
    if scores is None:
        return math.nan, f"{version.ref} was never evaluated: run it with evaluation.protocol search or published"
    if scores.status != "valid":
        return math.nan, f"{version.ref} has no valid scores ({scores.status}: {scores.reason})"
    values = {name: getattr(scores, name) for name in _SCORES[rule]}
    for name, value in values.items():
        if value is None or not math.isfinite(value):
            return math.nan, f"{version.ref} has {name} {value}, which is no score"
    return sum(values.values()) / len(values), ""


def _difference(ours: Scores | None, theirs: Scores | None) -> str:
    """Which terms of two evaluations with numbers differ; empty where the numbers compare."""
    assert ours
    assert theirs
    if comparable(ours, theirs):
        return ""
    names = ("protocol", "estimator", "num_images", "data_fingerprint")
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in names}
    pairs |= {name: (ours.sizes.get(name), theirs.sizes.get(name)) for name in ours.sizes | theirs.sizes}
    return ", ".join(f"{name} is {a}, not {b}" for name, (a, b) in pairs.items() if a != b)


def _scored(registry: Registry, ref: ModelRef) -> ScoredVersion:
    scores = registry.metrics(ref).get("scores")
    try:
        return ScoredVersion(ref, None if scores is None else Scores.from_dict(scores))
    except MetricError as error:
        raise RegistryError(f"the scores of {ref} in {registry.store.uri} cannot be read: {error}") from error
