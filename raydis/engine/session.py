"""One run from start to scored checkpoint: what a Tune trial, a Train worker and the command line all iterate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raydis.engine.checkpoint import write_checkpoint
from raydis.engine.evaluate import check_scorable, evaluate
from raydis.engine.fit import Progress, Training, fit
from raydis.metrics.protocol import Scores


@dataclass(frozen=True)
class Report:
    """What a run has to say at one moment; `checkpoint` is a folder that the receiver may move away."""

    progress: Progress
    scores: Scores | None  # at the end, where the run evaluates itself
    psnr: float | None  # of reconstructions, dB: at the end, where the run trains a first stage
    checkpoint: Path | None  # on rank 0, when one is due


def run_session(training: Training, workdir: Path, *, parent: dict[str, str] | None = None) -> Iterator[Report]:
    """Train, write checkpoints below `workdir` when they are due, and score the finished model.

    Args:
        training: a fresh or resumed state.
        workdir: an existing folder that this session may fill.
        parent: the sweep and trial that this run belongs to, kept in the manifest.

    Raises:
        MetricError: data that the wanted protocol cannot score, before the first step.
        FitError: see `fit`.
    """
    evaluation = training.config.evaluation
    check_scorable(training.dataset, evaluation)  # on every rank, so that none waits for one that has stopped
    for progress in fit(training):
        scores, psnr, folder = None, None, None
        if progress.checkpoint_due and training.rank == 0:
            method = training.calibrated()
            folder = workdir / f"checkpoint-{progress.images_seen:012d}"
            if progress.finished:
                scores = evaluate(method, training.dataset, training.loader, evaluation)
                psnr = training.reconstruction_psnr()
            write_checkpoint(
                folder,
                config=training.config,
                weights=method.state_dict(),
                metrics={
                    "loss": progress.loss,
                    "factor_names": list(training.dataset.space.names) if training.dataset.space else [],
                    "scores": scores.to_dict() if scores else None,
                    "psnr": psnr,
                },
                training=training.state(),
                data_name=training.dataset.name,
                data_fingerprint=training.dataset.fingerprint,
                images_seen=progress.images_seen,
                parent=parent,
            )
        yield Report(progress, scores, psnr, folder)
