"""Run one training from its start to a scored checkpoint.

`run_session` is a generator of reports. A Ray Train worker and a Ray Tune trial iterate over it, and send each report
to Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from raydis.checkpoint.write import write_checkpoint
from raydis.engine.device import num_threads
from raydis.engine.evaluate import check_scorable, evaluate, scored_indices
from raydis.engine.finite import check_finite
from raydis.engine.fit import fit
from raydis.engine.information import information_of
from raydis.engine.reconstruction import check_reconstructable, measure_reconstruction
from raydis.engine.record import RunRecord
from raydis.engine.state import Progress, Training
from raydis.methods.contract import Diagnosis, FactorTable, UnitMethod
from raydis.metrics.protocol import SEARCH, Protocol
from raydis.metrics.reconstruction import Reconstruction
from raydis.metrics.scores import Scores
from raydis.metrics.scoring import NUM_DRAWS
from raydis.metrics.telling import Information, label_units


@dataclass(frozen=True)
class Report:
    """What a session yields. `checkpoint` is a folder, which the receiver may move or delete."""

    progress: Progress  # `finished` once the model is scored
    scores: Scores | None  # on rank 0, at rungs and at the end, if the run evaluates itself
    reconstruction: Reconstruction | None  # on rank 0, at the end, if it is measured
    checkpoint: Path | None  # on rank 0, when a checkpoint is due

    @property
    def record(self) -> RunRecord:
        """The record of the run at this moment, for Ray, tables and the terminal."""
        return RunRecord.of(self.progress, self.scores, self.reconstruction)


def run_session(training: Training, workdir: Path, *, parent: dict[str, str] | None = None) -> Iterator[Report]:
    """Train, write checkpoints below `workdir` when they are due, and score the model at rungs and at the end.

    The last two reports follow the last step. The first has a checkpoint without scores, the second the same checkpoint
    with scores. If the scoring is interrupted, no training is lost: a run that resumes from the first checkpoint is
    scored without another step.

    Args:
        training: a fresh or resumed state.
        workdir: an existing folder that this session may fill.
        parent: the sweep and trial that this run belongs to, which the manifest records.

    Raises:
        MetricError: the configured protocol cannot score these data. This is raised before the first step.
        ConfigError: reconstructions cannot be measured as configured. This is raised before the first step, too.
        FitError: see `fit`, and `check_finite`, which is called before each checkpoint.
    """
    check_scorable(training.dataset, training.config.evaluation)  # on every rank, so that all ranks stop together
    check_reconstructable(training.average, training.loader, training.config.evaluation)
    for progress in fit(training):
        scores, folder = None, None
        if progress.checkpoint_due or progress.rung_due:
            if training.workers.rank == 0:
                training.calibrated()
            check_finite(training)
            if training.workers.rank == 0 and progress.rung_due and not progress.finished:
                scores = _score(training, progress, SEARCH)
            if training.workers.rank == 0 and progress.checkpoint_due:
                folder = _write(workdir, training, progress, parent)
            training.workers.wait()
        yield Report(replace(progress, finished=False), scores, None, folder)
    if (progress := training.unscored) is not None:
        check_finite(training)  # again, because a run may resume here from a checkpoint of an older raydis
        scores, reconstruction, folder = None, None, None
        if training.workers.rank == 0:
            scores = _score(training, progress)
            reconstruction = measure_reconstruction(training.average, training.loader, training.config.evaluation)
            information = _information(training)
            diagnosis = _diagnosis(training, information)
            training.unscored = None
            folder = _write(
                workdir,
                training,
                progress,
                parent,
                scores=scores,
                reconstruction=reconstruction,
                information=information,
                diagnosis=diagnosis,
            )
        training.workers.wait()
        yield Report(progress, scores, reconstruction, folder)


def _score(training: Training, progress: Progress, protocol: Protocol | None = None) -> Scores | None:
    """Score the averaged method as it is now, and add the scores to the learning curve."""
    evaluation = training.config.evaluation
    scores = evaluate(
        training.average,
        training.dataset,
        training.loader,
        evaluation,
        protocol=protocol,
        num_jobs=num_threads(training.config.compute.num_cpus),
        num_draws=NUM_DRAWS if protocol is None else 1,  # the scores at a rung decide nothing and need no spread
    )
    if scores is not None:
        point = {"images_seen": progress.images_seen, "train_s": progress.train_s, "cpu_s": training.cpu_s}
        training.curve.append(point | {"scores": scores.to_dict()})
    return scores


def _write(
    workdir: Path,
    training: Training,
    progress: Progress,
    parent: dict[str, str] | None,
    *,
    scores: Scores | None = None,
    reconstruction: Reconstruction | None = None,
    information: Information | None = None,
    diagnosis: Diagnosis | None = None,
) -> Path:
    """Write a checkpoint of the averaged method, after `calibrated`, and return its folder.

    The scores and measurements of a finished run are added to its metrics.
    """
    dataset = training.dataset
    folder = workdir / f"checkpoint-{progress.images_seen:012d}"
    write_checkpoint(
        folder,
        config=training.config,
        weights=training.average.state_dict(),
        metrics={
            "loss": progress.loss,
            "train_s": progress.train_s,
            "cpu_s": training.cpu_s,  # of rank 0
            "refit_s": progress.refit_s,
            "factor_names": list(dataset.factor_names),
            "scores": scores.to_dict() if scores else None,
            **(reconstruction.to_dict() if reconstruction else {"psnr": None}),
            "curve": training.curve,
            "information": information.to_dict() if information else None,
            "diagnosis": diagnosis.to_dict() if diagnosis else None,
        },
        training=training.state(),
        data_name=dataset.name,
        data_fingerprint=dataset.fingerprint,
        images_seen=progress.images_seen,
        parent=parent,
    )
    return folder


def _information(training: Training) -> Information | None:
    """Measure what the units tell about the factors; None without units, factors or evaluation."""
    method, evaluation = training.average, training.config.evaluation
    if not isinstance(method, UnitMethod) or evaluation.protocol == "none":
        return None
    return information_of(method, training.dataset, training.loader, seed=evaluation.seed)


def _diagnosis(training: Training, information: Information | None) -> Diagnosis | None:
    """Let the method diagnose itself on the images that the `search` protocol scores; None without evaluation."""
    method, dataset, evaluation = training.average, training.dataset, training.config.evaluation
    if not isinstance(method, UnitMethod) or evaluation.protocol == "none":
        return None
    rows = scored_indices(dataset, protocol=SEARCH, max_images=evaluation.max_images)
    table = FactorTable(dataset.factor_names, dataset.factors(rows)) if dataset.factor_names else None
    labels = label_units(information, table.names if table else (), method.num_units)
    return method.diagnose(training.loader.gather_in_parts(rows), table, labels)
