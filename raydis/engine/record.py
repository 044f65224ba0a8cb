"""What a run reports: one typed record, which the engine makes and Ray Tune, tables, terminal and commands read.

Ray hands reports on as flat dicts of numbers and text. This file alone makes such a row of a record, and reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from raydis.errors import MetricError
from raydis.metrics.scores import Scores
from raydis.metrics.table import numbers

if TYPE_CHECKING:  # the driver of a sweep reads records and does without torch
    from raydis.engine.state import Progress

RunState = Literal["running", "valid", "invalid", "no_factors", "not_ready", "unscored", "failed"]
STATES: tuple[RunState, ...] = get_args(RunState)
NUMBERS = (
    *("step", "images_seen", "num_images", "loss", "images_per_s", "num_workers"),
    *("train_s", "refit_s", "num_refits"),
)  # fields of a record that are keys of a row as they are


@dataclass(frozen=True)
class RunRecord:
    """What a run has to say at one moment.

    Attributes:
        state: `running` until the model is scored. Then that of the scores (`valid`, `invalid`, `no_factors` or
            `not_ready`), `unscored` where the run does not evaluate itself, or `failed` after an error of ours.
        reason: why there are no numbers: the scores' reason, or the error.
        step, images_seen, num_images: how far the run is, and its budget.
        loss: of the first move, the mean since the last report; None for a method without moves.
        images_per_s, num_workers, train_s, refit_s, num_refits: see `Progress`.
        health: what the method counts of its own failures; see `Method.health`.
        scores: at a rung those of the `search` protocol, at the end those of the configured one.
        psnr: of the method's reconstructions, in dB; at the end.

    What a run cannot say is None: a failed one says only why, and one that has not reported yet says nothing.
    """

    state: RunState
    reason: str | None = None
    step: int | None = None
    images_seen: int | None = None
    num_images: int | None = None
    loss: float | None = None
    images_per_s: float | None = None
    num_workers: int | None = None
    train_s: float | None = None
    refit_s: float | None = None
    num_refits: int | None = None
    health: dict[str, int] | None = None
    scores: Scores | None = None
    psnr: float | None = None

    @classmethod
    def of(cls, progress: Progress, scores: Scores | None, psnr: float | None) -> Self:
        """Return the record of a training that goes on, or of one whose model is scored (`progress.finished`)."""
        ended = scores.status if scores else "unscored"
        return cls(
            state=ended if progress.finished else "running",
            reason=scores.reason if scores else None,
            step=progress.step,
            images_seen=progress.images_seen,
            num_images=progress.num_images,
            loss=progress.loss,
            images_per_s=progress.images_per_s,
            num_workers=progress.num_workers,
            train_s=progress.train_s,
            refit_s=progress.refit_s,
            num_refits=progress.num_refits,
            health=progress.health,
            scores=scores,
            psnr=psnr,
        )

    @classmethod
    def of_failure(cls, error: Exception) -> Self:
        """Return the last record of a run that ended with an error of ours."""
        return cls(state="failed", reason=f"{type(error).__name__}: {error}")

    @property
    def finished(self) -> bool:
        """Whether this is the run's last record."""
        return self.state != "running"

    def values(self) -> dict[str, float]:
        """Return the scores by name; empty without scores."""
        return dict(self.scores.values) if self.scores else {}

    def to_ray(self) -> dict[str, Any]:
        """Return a flat row of numbers and text with the same keys for every record, as Ray Tune and TensorBoard ask.

        Each score has a column of its own. All of the scores, and `health`, are JSON beside them.
        """
        values = self.values()
        return {
            **{name: getattr(self, name) for name in NUMBERS},
            "health": None if self.health is None else json.dumps(self.health),
            "finished": self.finished,
            "status": self.state,
            "reason": self.reason,
            **{name: values.get(name) for name in numbers()},
            "scores": json.dumps(self.scores.to_dict()) if self.scores else None,
            "psnr": self.psnr,
        }

    @classmethod
    def from_ray(cls, row: Mapping[str, Any]) -> Self:
        """Inverse of `to_ray`. Ray's own keys are left aside; a row of nothing else is of a run yet to report.

        Raises:
            MetricError: a state or scores that this raydis does not know.
        """
        state = row.get("status", "running")
        if state not in STATES:
            raise MetricError(f"status={state!r} is no state of a run: read it with the raydis that wrote it")
        health, scores = row.get("health"), row.get("scores")
        return cls(
            state=state,
            reason=row.get("reason"),
            **{name: row.get(name) for name in NUMBERS},
            health=json.loads(health) if health else None,
            scores=Scores.from_dict(json.loads(scores)) if scores else None,
            psnr=row.get("psnr"),
        )
