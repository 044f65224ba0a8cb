"""Run one trial of a sweep in a process of Ray Tune: configure the run, train it, and report.

A run with one worker trains in this process. A run with several workers starts a Ray Train trainer, which takes tens of
seconds. Tune uses a process for one trial after another, so imports and data are loaded once. Imports of torch are
inside functions, because the driver imports this file too.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from raydis.config import DataConfig, RunConfig
from raydis.config.files import parse
from raydis.engine.record import RunRecord
from raydis.errors import CheckpointError, ClusterError, RaydisError, StoreError
from raydis.sweep.left import forget
from raydis.sweep.settings import configure

if TYPE_CHECKING:  # the driver does not import torch
    from raydis.checkpoint.open import Checkpoint

CHECKPOINT_URI = "checkpoint_uri"  # additional key of a report, for a checkpoint that Ray Train has stored
LAUNCHER_SHARE = 0.001  # of the resource that each head node has; see `trial_resources`


def run_trial(config: dict[str, Any]) -> None:
    """Run one trial. This is the trainable of Ray Tune.

    A RaydisError is reported as the trial's last record and not raised, because a restart would repeat it, and so that
    the process stays available for the next trial. For any other exception, and for a ClusterError, a StoreError or a
    full disk, which do not concern the trial itself, Tune restarts the trial from its checkpoint.

    Args:
        config: the sweep's constants `run` (base RunConfig), `sweep` (its name), `folder` (its URI), and the
            searcher's suggestion: `number`, `control`, `settings`, and `checkpoints` of a trial that was interrupted.
    """
    try:
        run = configure(parse(RunConfig, config["run"], source="run"), config["settings"])
        parent = {"sweep": config["sweep"], "trial": trial_name(config["number"])}
        if run.compute.num_workers == 1:
            _train_here(run, parent, config.get("checkpoints", ()))
        else:
            _train_with_workers(run, parent, config["folder"])
    except (ClusterError, StoreError):
        raise
    except RaydisError as error:
        tune.report(RunRecord.of_failure(error).to_ray())
    finally:
        _release_memory()


def trial_name(number: int) -> str:
    """Return the name of a trial, which is also that of its folder."""
    return f"trial-{number:04d}"


def trial_resources(run: RunConfig) -> tune.PlacementGroupFactory:
    """Return the resources that Tune reserves for a trial.

    A trial with several workers reserves no CPU, because Ray Train reserves the CPUs of the workers itself: two trials
    that also held CPUs could wait for each other forever. It takes a small share of a resource of the head node.
    """
    from raydis.cluster.resources import worker_resources

    if run.compute.num_workers == 1:
        return tune.PlacementGroupFactory([worker_resources(run.hardware)])
    return tune.PlacementGroupFactory([{"node:__internal_head__": LAUNCHER_SHARE}])


def _train_here(run: RunConfig, parent: dict[str, str], checkpoints: Sequence[str]) -> None:
    from raydis.engine.device import num_threads, resolve_device, use_threads
    from raydis.engine.state import Training
    from raydis.train.report import report_session

    device = resolve_device(run.hardware)
    use_threads(num_threads(run.compute.num_cpus))
    training = Training(run, _dataset(run.data.model_dump_json()), device=device)
    earlier = _NewestSound(checkpoints)
    replace = _Replace(checkpoints)
    num_reports = report_session(tune, training, parent=parent, before_checkpoint=replace, earlier=earlier)
    if not num_reports and earlier.found is not None:
        # The driver was killed after the trial had written its last checkpoint, and before it had read the last report.
        tune.report(RunRecord.of_checkpoint(earlier.found).to_ray() | {CHECKPOINT_URI: earlier.uri})


class _NewestSound:
    """A function that returns the first of some checkpoints that is complete; None if none is.

    Attributes:
        found, uri: the checkpoint that it has returned last, and its folder or s3:// URI.
    """

    def __init__(self, checkpoints: Sequence[str]) -> None:
        self._checkpoints = checkpoints
        self.found: Checkpoint | None = None
        self.uri = ""

    def __call__(self, work: Path) -> Checkpoint | None:
        from raydis.checkpoint.fetch import fetch_checkpoint

        for uri in self._checkpoints:
            with contextlib.suppress(CheckpointError):  # the interruption came while it was written
                self.found, self.uri = fetch_checkpoint(uri, work), uri
                return self.found
        return None


class _Replace:
    """A function to call before each new checkpoint, which deletes the earlier ones once there is a new one."""

    def __init__(self, checkpoints: Sequence[str]) -> None:
        self._checkpoints, self._num_new = checkpoints, 0

    def __call__(self) -> None:
        if self._num_new == 1:
            forget(self._checkpoints)
        self._num_new += 1


def _release_memory() -> None:
    """Free the GPU's memory, because the next trial, in this process or another one, may need all of it."""
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _train_with_workers(run: RunConfig, parent: dict[str, str], folder: str) -> None:
    from ray.tune.integration.ray_train import TuneReportCallback

    from raydis.train.trainer import fit_with_ray

    run = run.model_copy(update={"compute": run.hardware})
    result = fit_with_ray(run, name=parent["trial"], storage=folder, parent=parent, callbacks=[TuneReportCallback()])
    tune.report(result.record.to_ray() | {CHECKPOINT_URI: result.checkpoint})


@functools.lru_cache(maxsize=1)
def _dataset(data: str) -> Any:
    from raydis.data import open_dataset

    return open_dataset(DataConfig.model_validate_json(data))
