"""What workers wait for: rank 0's own work without end, a step only as long as torch.distributed is told."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout

import raydis.engine.session
from raydis.config import RunConfig
from raydis.config.presets import expand
from raydis.data import open_dataset
from raydis.engine.group import Workers
from raydis.engine.session import run_session
from raydis.engine.state import Training

TIMEOUT_S, LONGER_S = 8, 10  # a step of two processes must end within the first on a busy machine, too
TREE = {
    "preset": "tiny",
    "train": {"num_images": 128, "report_images": 64, "checkpoint_images": 64},
    "evaluation": {"rungs": [64]},
}


def impatient_workers(rank: int) -> Workers:
    """Workers whose steps wait for TIMEOUT_S."""
    workers = Workers(rank, 2)
    workers.wait()
    _set_pg_timeout(timedelta(seconds=TIMEOUT_S))
    return workers


def wait_for_scores(rank: int) -> dict[str, Tensor]:
    """A session whose scores take longer than a step may: images seen at each report, and whether it has scores."""
    config = RunConfig.model_validate(expand(TREE))
    dataset = open_dataset(config.data)
    evaluate = raydis.engine.session.evaluate

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(LONGER_S)
        return evaluate(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(raydis.engine.session, "evaluate", slowly)
        training = Training(config, dataset, device=torch.device("cpu"), workers=impatient_workers(rank))
        reports = [
            (report.progress.images_seen, report.scores is not None) for report in run_session(training, Path(folder))
        ]
    return {"reports": torch.tensor(reports, dtype=torch.int64)}


def wait_for_a_refit(rank: int) -> dict[str, Tensor]:
    """Rank 0 takes longer over a refit, and rank 1 over the data set, than a step may."""
    config = RunConfig.model_validate(expand({**TREE, "method": {"anchors": {"refit_images": 64}}}))
    workers = impatient_workers(rank)
    if rank == 1:
        time.sleep(LONGER_S)
    training = Training(config, open_dataset(config.data), device=torch.device("cpu"), workers=workers)
    refit = training.method.refit

    def slowly(*args: Any) -> Any:
        time.sleep(LONGER_S)
        return refit(*args)

    training.method.refit = slowly
    training.refit()
    return {"refits": torch.tensor(training.num_refits), "ours": torch.tensor(workers.mean(torch.tensor(float(rank))))}


def time_out_in_a_step(rank: int) -> dict[str, Tensor]:
    """A worker that does not come to a step is still missed."""
    workers = impatient_workers(rank)
    if rank == 0:
        time.sleep(LONGER_S)
    try:
        workers.mean(torch.tensor(1.0))
    except RuntimeError:
        return {"missed": torch.tensor(1)}
    return {"missed": torch.tensor(0)}


def test_other_workers_wait_for_scores_longer_than_for_a_step(run_in_two_workers: Callable[..., Any]) -> None:
    first, second = run_in_two_workers(__file__, "wait_for_scores")
    assert first["reports"].tolist() == [[64, 1], [128, 0], [128, 1]]
    assert second["reports"].tolist() == [[64, 0], [128, 0], [128, 0]]


def test_workers_wait_for_each_others_preparations_and_refits(run_in_two_workers: Callable[..., Any]) -> None:
    for found in run_in_two_workers(__file__, "wait_for_a_refit"):
        assert (found["refits"].item(), found["ours"].item()) == (1, 0.5)


def test_a_worker_that_misses_a_step_is_missed(run_in_two_workers: Callable[..., Any]) -> None:
    _, second = run_in_two_workers(__file__, "time_out_in_a_step")
    assert second["missed"].item() == 1


def test_one_worker_alone_waits_for_nobody() -> None:
    alone = Workers()
    alone.wait()
    assert (alone.all_true(True), alone.all_true(False), alone.mean(torch.tensor(2.0))) == (True, False, 2.0)
