"""A running session and what it tells Ray Train or Ray Tune: flat, the same keys in every report, numbers and text."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from raydis.checkpoint.open import open_checkpoint
from raydis.engine.session import Report, run_session
from raydis.engine.state import Training
from raydis.metrics.table import numbers


def report_session(
    library: ModuleType,
    training: Training,
    *,
    parent: dict[str, str] | None,
    before_checkpoint: Callable[[], None] = lambda: None,
) -> None:
    """Run a session from the last checkpoint that Ray keeps of it, where there is one, and report it to Ray.

    Args:
        library: `ray.train` or `ray.tune`, which is asked and told; each has a Checkpoint class of its own.
        training: a fresh state.
        parent: see `run_session`.
        before_checkpoint: called before one is handed to Ray, which stores it; what it raises keeps it from that.

    Raises:
        RaydisError: of the session; see `run_session`.
    """
    if latest := library.get_checkpoint():
        with latest.as_directory() as folder:
            training.resume(open_checkpoint(Path(folder)))
    with tempfile.TemporaryDirectory(prefix="raydis-") as workdir:
        for report in run_session(training, Path(workdir), parent=parent):
            folder = report.checkpoint
            if folder:
                before_checkpoint()
            library.report(metrics_of(report), checkpoint=library.Checkpoint.from_directory(folder) if folder else None)
            if folder:
                shutil.rmtree(folder)  # Ray has copied it to the storage


def metrics_of(report: Report) -> dict[str, Any]:
    """A session's report as Ray metrics.

    `status` is `running` until the end and then that of the scores: `valid`, `invalid`, `not_ready`, `no_factors`, or
    `unscored` where the run does not evaluate itself. Scores are None where there are none; `scores` holds all of them
    as JSON. At a rung they are the `search` protocol's, at the end those of the configured one. `psnr` is that of the
    method's reconstructions, at the end. `loss` is None for a method without moves. `health` is `Method.health` as
    JSON.
    """
    progress, scores = report.progress, report.scores
    unscored = "unscored" if progress.finished else "running"
    return {
        "step": progress.step,
        "images_seen": progress.images_seen,
        "num_images": progress.num_images,
        "loss": progress.loss,
        "images_per_s": progress.images_per_s,
        "num_workers": progress.num_workers,
        "train_s": progress.train_s,
        "refit_s": progress.refit_s,
        "num_refits": progress.num_refits,
        "health": json.dumps(progress.health),
        "finished": progress.finished,
        "status": scores.status if scores and progress.finished else unscored,
        "reason": scores.reason if scores else None,
        **{name: scores.values.get(name) if scores else None for name in numbers()},
        "scores": json.dumps(scores.to_dict()) if scores else None,
        "psnr": report.psnr,
    }


def failure(error: Exception) -> dict[str, Any]:
    """The last report of a run that ended with an error of ours: same keys, status `failed`, the error as reason."""
    counts = ("step", "images_seen", "num_images", "num_workers", "num_refits")
    found = (*counts, "loss", "images_per_s", "train_s", "refit_s", *numbers(), "psnr")
    return {
        **dict.fromkeys(found),
        "health": None,
        "finished": True,
        "status": "failed",
        "reason": f"{type(error).__name__}: {error}",
        "scores": None,
    }
