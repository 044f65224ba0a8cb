"""The typed record that a run reports, and its conversion to and from the flat dicts that Ray passes on.

The engine creates records. Ray Tune, the tables of a sweep, the terminal and the commands read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from raydis.errors import MetricError
from raydis.metrics.reconstruction import Reconstruction
from raydis.metrics.scores import Scores
from raydis.metrics.table import numbers

if TYPE_CHECKING:  # the driver of a sweep reads records without importing torch
    from raydis.checkpoint.open import Checkpoint
    from raydis.engine.state import Progress

RunState = Literal["running", "valid", "invalid", "no_factors", "not_ready", "unscored", "failed"]
STATES: tuple[RunState, ...] = get_args(RunState)
NUMBERS = (
    *("step", "images_seen", "num_images", "loss", "images_per_s", "num_workers"),
    *("train_s", "refit_s", "num_refits"),
)  # fields of a record that are copied to a row unchanged
RECONSTRUCTION = tuple(field.name for field in fields(Reconstruction))


@dataclass(frozen=True)
class RunRecord:
    """The state, progress and scores of a run at one moment.

    Attributes:
        state: `running` until the model is scored. Then the status of the scores (`valid`, `invalid`, `no_factors` or
            `not_ready`), `unscored` if the run does not evaluate itself, or `failed` after a RaydisError.
        reason: why there are no scores: the reason that the scores give, or the error.
        step, images_seen, num_images: the progress of the run, and its budget.
        loss: mean loss of the first move since the last report; None for a method without moves.
        images_per_s, num_workers, train_s, refit_s, num_refits: see `Progress`.
        health: counts of what has gone wrong in the method; see `Method.health`.
        scores: at a rung those of the `search` protocol, at the end those of the configured protocol.
        reconstruction: how well the method reconstructs images, if that is measured; only at the end.

    Fields that are not known are None. A failed run has only a state and a reason, and a run that has not reported yet
    only a state.
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
    reconstruction: Reconstruction | None = None

    @classmethod
    def of(cls, progress: Progress, scores: Scores | None, reconstruction: Reconstruction | None) -> Self:
        """Return the record of a running training, or of a finished one (`progress.finished`) whose model is scored."""
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
            reconstruction=reconstruction,
        )

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Return the record of a finished run, as far as its last checkpoint tells it."""
        metrics = checkpoint.metrics
        scores = Scores.from_dict(metrics["scores"]) if metrics["scores"] else None
        return cls(
            state=scores.status if scores else "unscored",
            reason=scores.reason if scores else None,
            images_seen=checkpoint.manifest.images_seen,
            num_images=checkpoint.config.train.num_images,
            loss=metrics["loss"],
            train_s=metrics["train_s"],
            refit_s=metrics["refit_s"],
            scores=scores,
            reconstruction=Reconstruction.from_dict(metrics),
        )

    @classmethod
    def of_failure(cls, error: Exception) -> Self:
        """Return the last record of a run that has failed with an error that restarting it would repeat."""
        return cls(state="failed", reason=f"{type(error).__name__}: {error}")

    @property
    def finished(self) -> bool:
        """Whether this is the run's last record."""
        return self.state != "running"

    def values(self) -> dict[str, float]:
        """Return the scores by name; empty without scores."""
        return dict(self.scores.values) if self.scores else {}

    def to_ray(self) -> dict[str, Any]:
        """Return a flat dict of numbers and text with the same keys for every record, for Ray Tune and TensorBoard.

        Each score has a key of its own. The complete `scores` and `health` are stored as JSON as well.
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
            **{name: getattr(self.reconstruction, name, None) for name in RECONSTRUCTION},
        }

    @classmethod
    def from_ray(cls, row: Mapping[str, Any]) -> Self:
        """Return the record in a dict of `to_ray`, ignoring the keys that Ray has added.

        If there are no other keys, it is the record of a run that has not reported yet.

        Raises:
            MetricError: this raydis does not know the state or the scores.
        """
        state = row.get("status", "running")
        if state not in STATES:
            raise MetricError(f"status={state!r} is not a state of a run: read it with the raydis that wrote it")
        health, scores = row.get("health"), row.get("scores")
        return cls(
            state=state,
            reason=row.get("reason"),
            **{name: row.get(name) for name in NUMBERS},
            health=json.loads(health) if health else None,
            scores=Scores.from_dict(json.loads(scores)) if scores else None,
            reconstruction=Reconstruction.from_dict(row),
        )
