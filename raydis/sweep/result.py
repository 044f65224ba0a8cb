"""The result of a sweep: the records of its trials, the best of them, and the version that was published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raydis.errors import SweepError
from raydis.metrics.scores import Scores
from raydis.registry import ModelRef
from raydis.registry.promotion import Decision, Promotion
from raydis.store import Store, StoreMissing
from raydis.sweep.files import PICTURE_FILE, SUMMARY_FILE
from raydis.sweep.publish import Published
from raydis.sweep.spec import SweepSpec
from raydis.sweep.summary import (
    Replicates,
    TrialRecord,
    choose_best,
    images_by_state,
    pareto_front,
    replicates,
    to_json,
)


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep.

    Attributes:
        name, folder: the sweep's name and folder; the folder is a path or s3:// URI.
        records: the records of all trials that ran, ordered by number.
        front: numbers of the trials on the Pareto front.
        replicates: mean and standard deviation of each control that ran with several seeds.
        best: the trial with the highest standing by the spec's objectives; None if no trial can be ranked.
        published: the published version of `best`; None without promotion, after an interruption, or if it failed.
        unpublished: the reason why publishing failed; None if it did not.
        unwritten: why the storage lacks a part of the results, in a sentence; None if it has them all.
        interrupted: whether some trials have not ended, or the scoring of the best one was interrupted.
    """

    name: str
    folder: str
    records: list[TrialRecord]
    front: set[int]
    replicates: list[Replicates]
    best: TrialRecord | None
    published: Published | None
    interrupted: bool
    unpublished: str | None = None
    unwritten: str | None = None


def result_of(
    records: Sequence[TrialRecord], spec: SweepSpec, *, name: str, folder: str, interrupted: bool
) -> SweepResult:
    """Return the result of the trials that ran, before publishing; `folder` is a path or s3:// URI."""
    return SweepResult(
        name=name,
        folder=folder,
        records=list(records),
        front=pareto_front(records, spec.objectives),
        replicates=replicates(records, spec.objectives),
        best=choose_best(records, spec.objectives),
        published=None,
        interrupted=interrupted,
    )


def check_result(result: SweepResult) -> SweepResult:
    """Return the result. Raises SweepError if all trials have ended and none of them has valid scores."""
    if result.best is None and not result.interrupted:
        reasons = sorted({record.reason for record in result.records if record.reason})
        raise SweepError(
            f"no trial of {len(result.records)} ended with valid scores, so nothing was promoted: "
            f"{'; '.join(reasons)[:400]}. The trials are in {result.folder}"
        )
    return result


def write_summary(store: Store, key: str, result: SweepResult) -> None:
    """Write summary.json: the records of all trials with their scores, and the promotion."""
    store.write(f"{key}/{SUMMARY_FILE}", json.dumps(_summary(result), indent=2).encode())


def read_summary(store: Store, key: str) -> dict[str, Any]:
    """Return summary.json; empty if the folder of the sweep has none."""
    try:
        return json.loads(store.read(f"{key}/{SUMMARY_FILE}"))
    except (StoreMissing, ValueError):
        return {}


def read_published(store: Store, key: str, result: SweepResult, spec: SweepSpec) -> Published | None:
    """Return what the sweep has already published, if that was the best trial of this result; else None."""
    summary = read_summary(store, key)
    found = summary.get("promotion")
    if not found or result.best is None or spec.promotion is None:
        return None
    asked = (result.best.number, spec.model_name, spec.promotion.alias)
    if asked != (summary["best"], found["model"], found["alias"]):
        return None
    promotion = Promotion(ModelRef(found["model"], found["version"]), Decision(found["promoted"], found["reason"]))
    return Published(Scores.from_dict(found["scores"]), promotion, f"{key}/{PICTURE_FILE}", found["alias"])


def _summary(result: SweepResult) -> dict[str, Any]:
    published = result.published
    return {
        "name": result.name,
        "folder": result.folder,
        "interrupted": result.interrupted,
        "best": result.best.number if result.best else None,
        "front": sorted(result.front),
        "unpublished": result.unpublished,
        "promotion": published
        and {
            "model": published.promotion.ref.name,
            "version": published.promotion.ref.version,
            "alias": published.alias,
            "promoted": published.promotion.decision.promote,
            "reason": published.promotion.decision.reason,
            "scores": published.scores.to_dict(),
        },
        "images_seen": images_by_state(result.records),
        "replicates": [asdict(row) for row in result.replicates],
        "trials": to_json(result.records, result.front),
    }
