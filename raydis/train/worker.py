"""What each Ray Train worker runs: a session, its reports handed to Ray."""

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
    """Train this worker's share, from the run's last checkpoint where there is one.

    Args:
        arguments: `config`, a RunConfig as JSON-able tree; `parent`, the trial it belongs to or None; `lease`, under
            which the run's folder is written.

    Raises:
        LeaseLost: the folder is another process' by now.
        RaydisError: of the session; see `report_session`.
    """
    config = RunConfig.model_validate(arguments["config"])
    context = train.get_context()
    device = _device(config)
    use_threads(num_threads(config.compute.num_cpus))
    workers = Workers(context.get_world_rank(), context.get_world_size())
    workers.wait()  # while nobody is late: one node may take long to fetch the data set
    training = Training(config, open_dataset(config.data), device=device, workers=workers)
    lease = arguments["lease"]
    store = open_store(lease["storage"])
    still_ours = functools.partial(check_lease, store, lease["key"], lease["token"], what=lease["what"])
    report_session(train, training, parent=arguments["parent"], before_checkpoint=still_ours)


def _device(config: RunConfig) -> torch.device:
    """The device of this worker: Ray shows the GPUs of all workers of a node to each, so `cuda` alone is not enough."""
    device = resolve_device(config.compute)
    return get_device() if device.type == "cuda" else device
