"""One trial, in its own process: configure the run, train it, report.

A run of one worker trains right here; one of several launches a trainer, which takes tens of seconds to start. The
process is used for trial after trial, so imports and data are loaded once. Imports of torch are inside functions,
because the driver imports this file too.
"""

from __future__ import annotations

import functools
import gc
from typing import Any

from ray import tune

from raydis.config import DataConfig, RunConfig
from raydis.config.files import parse
from raydis.engine.record import RunRecord
from raydis.errors import ClusterError, RaydisError, StoreError, final_error
from raydis.sweep.settings import configure

CHECKPOINT_URI = "checkpoint_uri"  # key beside the record's, for a checkpoint that Tune was not given
LAUNCHER_SHARE = 0.001  # of the head's own resource, see `trial_resources`


def run_trial(config: dict[str, Any]) -> None:
    """Tune's trainable.

    An error of ours, or a full disk, is the trial's last report instead of an exception: repeating it would not help,
    and the process stays for the next trial. Any other error is Tune's, which restarts the trial from its checkpoint.
    So is an error of ours that speaks of the cluster or the storage and not of the trial.

    Args:
        config: the sweep's constants `run` (base RunConfig), `sweep` (its name), `folder` (its URI), and the
            searcher's suggestion: `number`, `control`, `settings`.
    """
    try:
        run = configure(parse(RunConfig, config["run"], source="run"), config["settings"])
        parent = {"sweep": config["sweep"], "trial": trial_name(config["number"])}
        if run.compute.num_workers == 1:
            _train_here(run, parent)
        else:
            _train_with_workers(run, parent, config["folder"])
    except (ClusterError, StoreError):
        raise
    except (RaydisError, OSError) as error:
        if (final := final_error(error)) is None:
            raise
        tune.report(RunRecord.of_failure(final).to_ray())
    finally:
        _release_memory()


def trial_name(number: int) -> str:
    """Name of a trial and of its folder."""
    return f"trial-{number:04d}"


def trial_resources(run: RunConfig) -> tune.PlacementGroupFactory:
    """What Tune reserves for a trial.

    A trial that launches workers reserves no CPU, for Ray Train reserves the workers' on its own: two launchers that
    held CPUs could wait for each other's for ever. It takes a sliver of a resource that every head node has.
    """
    from raydis.cluster.resources import worker_resources

    if run.compute.num_workers == 1:
        return tune.PlacementGroupFactory([worker_resources(run.compute)])
    return tune.PlacementGroupFactory([{"node:__internal_head__": LAUNCHER_SHARE}])


def _train_here(run: RunConfig, parent: dict[str, str]) -> None:
    from raydis.engine.device import num_threads, resolve_device, use_threads
    from raydis.engine.state import Training
    from raydis.train.report import report_session

    device = resolve_device(run.compute)
    use_threads(num_threads(run.compute.num_cpus))
    training = Training(run, _dataset(run.data.model_dump_json()), device=device)
    report_session(tune, training, parent=parent)


def _release_memory() -> None:
    """Give the GPU's memory back: the next trial in this process, or beside it, may need all of it."""
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _train_with_workers(run: RunConfig, parent: dict[str, str], folder: str) -> None:
    from ray.tune.integration.ray_train import TuneReportCallback

    from raydis.train.trainer import fit_with_ray

    result = fit_with_ray(run, name=parent["trial"], storage=folder, parent=parent, callbacks=[TuneReportCallback()])
    tune.report(result.record.to_ray() | {CHECKPOINT_URI: result.checkpoint})


@functools.lru_cache(maxsize=1)
def _dataset(data: str) -> Any:
    from raydis.data import open_dataset

    return open_dataset(DataConfig.model_validate_json(data))
