"""The training loop. It is a generator of progress reports; its caller decides where to send them and when to save."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator

from torch import Tensor

from raydis.engine.plan import budget_warnings, due
from raydis.engine.state import Progress, Training
from raydis.engine.step import Step
from raydis.errors import FitError

log = logging.getLogger(__name__)


def fit(training: Training, *, step: Step | None = None) -> Iterator[Progress]:
    """Train until the budget is spent. Yield a report every `report_images` images, at each rung and at the end.

    A method without moves is complete after its start, and has one report only. The last report is kept in
    `training.unscored`.

    Raises:
        FitError: a loss is not finite.
    """
    train = training.config.train
    step = step or Step(training)
    if training.workers.rank == 0 and not training.spent:
        for warning in budget_warnings(training.config):
            log.warning(warning)
    if not training.method.moves and not training.resumed:
        training.unscored = _progress(training, {}, num_steps=0, elapsed_s=0.0, checkpoint_due=True, rung_due=False)
        yield training.unscored
    totals: dict[str, Tensor] = {}
    reported, checkpointed = training.step, training.images_seen
    started, cpu_started = time.perf_counter(), time.process_time()
    while not training.spent:
        before = training.images_seen
        for name, loss in step().items():
            totals[name] = totals[name] + loss if name in totals else loss.clone()
        after = training.images_seen
        rung_due = any(before < rung <= after for rung in training.config.evaluation.rungs)
        if not (training.spent or rung_due or due(train.report_images, before, after)):
            continue
        elapsed_s = time.perf_counter() - started
        training.train_s += elapsed_s
        if training.cpu_s is not None:
            training.cpu_s += time.process_time() - cpu_started
        progress = _progress(
            training,
            _means(training, totals, training.step - reported),
            num_steps=training.step - reported,
            elapsed_s=elapsed_s,
            # At a rung, too: scores take time, and a sweep may pause the run there and continue it later.
            checkpoint_due=training.spent or rung_due or due(train.checkpoint_images, checkpointed, after),
            rung_due=rung_due,
        )
        if training.spent:
            training.unscored = progress
        yield progress
        if due(train.checkpoint_images, checkpointed, after):
            checkpointed = after
        totals.clear()
        reported, started, cpu_started = training.step, time.perf_counter(), time.process_time()


def _means(training: Training, totals: dict[str, Tensor], num_steps: int) -> dict[str, float]:
    """Return the means of the losses over workers and steps. Raises FitError if one is not finite."""
    losses = {name: training.workers.mean(total) / num_steps for name, total in totals.items()}
    for name, loss in losses.items():
        if not math.isfinite(loss):
            raise FitError(
                f"the {name} became {loss} by step {training.step} ({training.images_seen} images): "
                "lower train.learning_rate or set train.max_grad_norm"
            )
    return losses


def _progress(
    training: Training,
    losses: dict[str, float],
    *,
    num_steps: int,
    elapsed_s: float,
    checkpoint_due: bool,
    rung_due: bool,
) -> Progress:
    return Progress(
        step=training.step,
        images_seen=training.images_seen,
        num_images=training.config.train.num_images,
        losses=losses,
        images_per_s=num_steps * training.config.train.batch_size / elapsed_s if elapsed_s else 0.0,
        num_workers=training.workers.world_size,
        train_s=training.train_s,
        refit_s=training.refit_s,
        num_refits=training.num_refits,
        health=training.method.health(),
        checkpoint_due=checkpoint_due,
        rung_due=rung_due,
        finished=training.spent,
    )
