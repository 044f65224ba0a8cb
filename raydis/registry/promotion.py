"""Decide whether an alias such as `best` moves to a new version of a model, and move it.

The decision is a pure function of the scores of two versions. Scores are estimates: another metric seed gives other
numbers for the same model. A new version must therefore be better by more than a margin: MARGIN times the combined
standard deviation of the two scores that are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raydis.checkpoint.open import Checkpoint
from raydis.errors import MetricError, RegistryError
from raydis.metrics.scores import Scores, differences
from raydis.metrics.standing import Objective, describe, missing, standing, standing_spread
from raydis.registry.names import ModelRef, promote_command
from raydis.registry.registry import DEFAULT_ALIAS, MAX_TRIES, Registry
from raydis.store import StoreConflict

# In standard deviations of the difference. By chance in the draws alone, a version that is no better exceeds two of
# them once in 29 times: 3.45 % of two million simulated pairs, with each side's spread estimated from three draws.
MARGIN = 2.0


@dataclass(frozen=True)
class ScoredVersion:
    """A version and its scores, which are None if it was never evaluated."""

    ref: ModelRef
    scores: Scores | None


@dataclass(frozen=True)
class Decision:
    """Whether the alias moves, and the reason in one line."""

    promote: bool
    reason: str


@dataclass(frozen=True)
class Promotion:
    """The version under which a checkpoint was registered, and whether the alias moved to it."""

    ref: ModelRef
    decision: Decision


def decide(
    candidate: ScoredVersion,
    incumbent: ScoredVersion | None,
    *,
    objectives: Sequence[Objective],
    alias: str = DEFAULT_ALIAS,
    storage: str = "runs",
) -> Decision:
    """Decide whether the alias moves from the incumbent to the candidate.

    It moves if the candidate has valid scores and there is no incumbent. It also moves if the scores of both are
    comparable, and the candidate's standing is higher by more than the margin. Otherwise the incumbent stays.

    Args:
        candidate: the version that the alias may move to.
        incumbent: the version that the alias points to; None if the alias does not exist.
        objectives: the metrics that count, with their directions (`raydis.metrics.standing`).
        alias: its name, for the reason.
        storage: folder or s3://bucket/prefix of the registry, for the command in the reason.
    """
    name = describe(objectives)
    ours, reason = _standing(candidate, objectives)
    if reason:
        return Decision(False, reason)
    if incumbent is None:
        return Decision(True, f"{candidate.ref} ({name} {ours:.4f}) is the first {alias}")
    theirs, reason = _standing(incumbent, objectives)
    reason = reason or _difference(candidate.scores, incumbent.scores)
    margin, basis = _margin(candidate, incumbent, objectives)
    if reason := reason or (basis if margin is None else ""):
        return Decision(
            False,
            f"{candidate.ref} does not compare with {incumbent.ref}: {reason}. To point {alias} to it all the same: "
            + promote_command(candidate.ref, alias, storage),
        )
    assert margin is not None
    promoted = ours - theirs > margin
    return Decision(
        promoted,
        f"{name} is {ours:.4f} for {candidate.ref} and {theirs:.4f} for {incumbent.ref}. The difference of "
        f"{ours - theirs:+.4f} is {'more' if promoted else 'not more'} than the margin of {margin:.4f}, {basis}"
        + ("" if promoted else f". {incumbent.ref} stays {alias}"),
    )


def promote(
    registry: Registry,
    checkpoint: Checkpoint,
    name: str,
    *,
    objectives: Sequence[Objective],
    alias: str = DEFAULT_ALIAS,
) -> Promotion:
    """Register a checkpoint as a version of `name`, and move the alias to it if it is better.

    Raises:
        CheckpointError, RegistryError, StoreError: see `Registry.register` and `move_if_better`.
    """
    ref = ModelRef(name, registry.register(checkpoint, name))
    return Promotion(ref, move_if_better(registry, ref, objectives=objectives, alias=alias))


def move_if_better(
    registry: Registry, ref: ModelRef, *, objectives: Sequence[Objective], alias: str = DEFAULT_ALIAS
) -> Decision:
    """Move an alias to a registered version if `decide` says so.

    Several processes may promote at the same time. If the alias has moved in the meantime, the decision is made again,
    so every move is to a version that is better by the margin than the previous one.

    Raises:
        RegistryError: there is no such version, its scores cannot be read, or the alias has moved MAX_TRIES times.
        CheckpointError: the metrics do not match their manifest.
    """
    candidate = _scored(registry, ref)
    for _ in range(MAX_TRIES):
        state = registry.alias(ref.name, alias)
        if state.version == ref.version:
            return Decision(True, f"{ref} is {alias}")
        incumbent = None if state.version is None else _scored(registry, ModelRef(ref.name, state.version))
        decision = decide(candidate, incumbent, objectives=objectives, alias=alias, storage=registry.store.uri)
        if not decision.promote:
            return decision
        try:
            registry.move_alias(ref.name, alias, ref.version, expected=state)
        except StoreConflict:
            continue
        return decision
    raise RegistryError(f"{ref.name}@{alias} in {registry.store.uri} moved {MAX_TRIES} times meanwhile: try again")


def _standing(version: ScoredVersion, objectives: Sequence[Objective]) -> tuple[float, str]:
    """Return the standing of a version and an empty text, or NaN and the reason why it has no standing."""
    scores = version.scores
    if scores is None:
        return math.nan, f"{version.ref} was never evaluated: run it with evaluation.protocol search or published"
    if scores.status != "valid":
        return math.nan, f"{version.ref} has no valid scores ({scores.status}: {scores.reason})"
    value = standing(scores.values, objectives)
    if value is None:
        return math.nan, f"{version.ref} cannot be ranked: {missing(scores.values, objectives)}"
    return value, ""


def _margin(
    candidate: ScoredVersion, incumbent: ScoredVersion, objectives: Sequence[Objective]
) -> tuple[float | None, str]:
    """Return the difference of standings that must be exceeded, and a text that says how it was computed.

    Scores of older versions of raydis have no spread. The other version's spread is then used for both, because equal
    metrics, sizes and data give similar spreads. If neither is known, the margin is None and the text is the reason.
    """
    versions = (candidate, incumbent)
    spreads = [standing_spread(version.scores and version.scores.spread, objectives) for version in versions]
    known = [spread for spread in spreads if spread is not None]
    if not known:
        return None, "the spread of neither score is known, so a difference cannot be told from chance"
    if len(known) == 1:
        unknown = next(version.ref for version, spread in zip(versions, spreads, strict=True) if spread is None)
        share = f"{known[0]:.4f} for both scores, because that of {unknown} is unknown"
    else:
        share = f"{known[0]:.4f} and {known[1]:.4f} for the two scores"
    basis = f"{MARGIN:g} standard deviations of what chance in the metrics' draws does to it ({share})"
    return MARGIN * math.hypot(known[0], known[-1]), basis


def _difference(ours: Scores | None, theirs: Scores | None) -> str:
    """Return the conditions in which two evaluations differ; an empty text if their numbers are comparable."""
    assert ours
    assert theirs
    return ", ".join(differences(ours, theirs))


def _scored(registry: Registry, ref: ModelRef) -> ScoredVersion:
    scores = registry.metrics(ref).get("scores")
    try:
        return ScoredVersion(ref, None if scores is None else Scores.from_dict(scores))
    except MetricError as error:
        raise RegistryError(f"the scores of {ref} in {registry.store.uri} cannot be read: {error}") from error
