"""One run from start to scored checkpoint: what a Tune trial, a Train worker and the command line all iterate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raydis.engine.checkpoint import write_checkpoint
from raydis.engine.diagnose import Anchoring, diagnose_anchors
from raydis.engine.evaluate import check_scorable, evaluate, scored_indices
from raydis.engine.fit import Progress, Training, fit
from raydis.methods.dyga_sd import DygaSd
from raydis.metrics.protocol import SEARCH, Scores


@dataclass(frozen=True)
class Report:
    """What a run has to say at one moment; `checkpoint` is a folder that the receiver may move away."""

    progress: Progress
    scores: Scores | None  # at rungs and at the end, where the run evaluates itself
    psnr: float | None  # of reconstructions, dB: at the end, where the run trains a first stage
    checkpoint: Path | None  # on rank 0, when one is due


def run_session(training: Training, workdir: Path, *, parent: dict[str, str] | None = None) -> Iterator[Report]:
    """Train, write checkpoints below `workdir` when they are due, and score the model at rungs and at the end.

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
        if training.rank == 0 and (progress.checkpoint_due or progress.rung_due):
            method = training.calibrated()
            if progress.finished or progress.rung_due:
                protocol = None if progress.finished else SEARCH
                scores = evaluate(method, training.dataset, training.loader, evaluation, protocol=protocol)
            if scores is not None:
                point = {"images_seen": progress.images_seen, "train_s": progress.train_s}
                training.curve.append(point | {"scores": scores.to_dict()})
            if progress.finished:
                psnr = training.reconstruction_psnr()
            if progress.checkpoint_due:
                folder = workdir / f"checkpoint-{progress.images_seen:012d}"
                _write(folder, training, progress, scores, psnr, parent)
        yield Report(progress, scores, psnr, folder)


def _write(
    folder: Path,
    training: Training,
    progress: Progress,
    scores: Scores | None,
    psnr: float | None,
    parent: dict[str, str] | None,
) -> None:
    """A checkpoint of the averaged method, which `calibrated` has just brought up to date."""
    dataset, finished = training.dataset, progress.finished
    anchoring = _anchoring(training) if finished else None
    write_checkpoint(
        folder,
        config=training.config,
        weights=training.average.state_dict(),
        metrics={
            "loss": progress.loss,
            "train_s": progress.train_s,
            "refit_s": progress.refit_s,
            "factor_names": list(dataset.space.names) if dataset.space else [],
            "scores": scores.to_dict() if scores and finished else None,
            "psnr": psnr,
            "curve": training.curve,
            "anchoring": anchoring.to_dict() if anchoring else None,
        },
        training=training.state(),
        data_name=dataset.name,
        data_fingerprint=dataset.fingerprint,
        images_seen=progress.images_seen,
        parent=parent,
    )


def _anchoring(training: Training) -> Anchoring | None:
    """What the anchors do on the images that the `search` protocol looks at; None without anchors or evaluation."""
    dataset, evaluation = training.dataset, training.config.evaluation
    if not isinstance(training.average, DygaSd) or not training.average.anchors.fitted or evaluation.protocol == "none":
        return None
    most = evaluation.max_images
    rows = scored_indices(dataset, protocol=SEARCH, max_images=most)
    return diagnose_anchors(training.average, dataset, training.loader, rows[:most])
