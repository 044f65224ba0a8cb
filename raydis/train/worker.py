"""The training function of a Ray Train worker."""

from __future__ import annotations

import functools
from typing import Any

import torch
from ray import train
from ray.train.torch import get_device

from raydis.config import RunConfig
from raydis.data import open_dataset
from raydis.engine.device import num_threads, resolve_device, use_threads
from raydis.engine.group import Workers
from raydis.engine.state import Training
from raydis.store import open_store
from raydis.store.lease import check_lease
from raydis.train.report import report_session


def train_worker(arguments: dict[str, Any]) -> None:
    """Train this worker's share of a run, from the run's last checkpoint if there is one.

    Args:
        arguments: `config`, a RunConfig as a tree of JSON values; `parent`, the sweep and trial that it belongs to, or
            None; `lease`, the storage, key, token and description of the lease on the run's folder.

    Raises:
        LeaseLost: another process has taken over the run's folder.
        RaydisError: of the session; see `report_session`.
    """
    config = RunConfig.model_validate(arguments["config"])
    context = train.get_context()
    device = _device(config)
    use_threads(num_threads(config.compute.num_cpus))
    workers = Workers(context.get_world_rank(), context.get_world_size())
    workers.wait()  # connect the workers before one of them takes long to download the data set
    training = Training(config, open_dataset(config.data), device=device, workers=workers)
    lease = arguments["lease"]
    store = open_store(lease["storage"])
    still_ours = functools.partial(check_lease, store, lease["key"], lease["token"], what=lease["what"])
    report_session(train, training, parent=arguments["parent"], before_checkpoint=still_ours)


def _device(config: RunConfig) -> torch.device:
    """Return the device of this worker.

    Ray shows each worker the GPUs of all workers of its node, so the device must have an index.
    """
    device = resolve_device(config.compute)
    return get_device() if device.type == "cuda" else device
