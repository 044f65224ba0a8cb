"""What a sweep found: its records, the best of them, and what was published."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raydis.errors import SweepError
from raydis.store import Store
from raydis.sweep.publish import Published
from raydis.sweep.spec import SweepSpec
from raydis.sweep.summary import Replicates, TrialRecord, choose_best, pareto_front, replicates, to_json


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        name, folder: of the sweep; the folder is a path or s3:// URI.
        records: of all trials that ran, by number.
        front: numbers of the trials on the Pareto front.
        replicates: of each control that ran with several seeds, mean and standard deviation.
        best: the trial of highest standing by the spec's objectives.
        published: what became of it; None without promotion, after an interruption, and where it failed.
        unpublished: why publishing it failed, if it did.
        unwritten: why the tables could not be written, if they could not.
        interrupted: some trials never ended.
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


def result_of(records: Sequence[TrialRecord], spec: SweepSpec, *, name: str, folder: str) -> SweepResult:
    """Return what the trials that ran amount to, before anything is published; `folder` is a path or s3:// URI."""
    return SweepResult(
        name=name,
        folder=folder,
        records=list(records),
        front=pareto_front(records, spec.objectives),
        replicates=replicates(records, spec.objectives),
        best=choose_best(records, spec.objectives),
        published=None,
        interrupted=len(records) < spec.total_trials or any(record.state == "stopped" for record in records),
    )


def check_result(result: SweepResult) -> SweepResult:
    """The result, unless all trials ended and none of them has valid scores. Raises SweepError."""
    if result.best is None and not result.interrupted:
        reasons = sorted({record.reason for record in result.records if record.reason})
        raise SweepError(
            f"no trial of {len(result.records)} ended with valid scores, so nothing was promoted: "
            f"{'; '.join(reasons)[:400]}. The trials lie in {result.folder}"
        )
    return result


def write_summary(store: Store, key: str, result: SweepResult) -> None:
    """Write summary.json: all that the tables say, and what was promoted."""
    store.write(f"{key}/summary.json", json.dumps(_summary(result), indent=2).encode())


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
            "promoted": published.promotion.decision.promote,
            "reason": published.promotion.decision.reason,
            "scores": published.scores.to_dict(),
        },
        "replicates": [asdict(row) for row in result.replicates],
        "trials": to_json(result.records, result.front),
    }
