"""What each Ray Train worker runs: a session, its reports handed to Ray."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from ray import train
from ray.train.torch import get_device

from raydis.config import RunConfig
from raydis.data import open_dataset
from raydis.engine.checkpoint import open_checkpoint
from raydis.engine.device import resolve_device, use_one_thread_on_cpu
from raydis.engine.fit import Training
from raydis.engine.session import run_session
from raydis.train.report import metrics_of


def train_worker(arguments: dict[str, Any]) -> None:
    """Train this worker's share, from the run's last checkpoint where there is one.

    Args:
        arguments: `config`, a RunConfig as JSON-able tree, and `parent`, the trial it belongs to or None.

    Raises:
        RaydisError: of the session; see `run_session`.
    """
    config = RunConfig.model_validate(arguments["config"])
    context = train.get_context()
    device = _device(config)
    use_one_thread_on_cpu(device)
    training = Training(
        config,
        open_dataset(config.data),
        device=device,
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
    )
    if latest := train.get_checkpoint():
        with latest.as_directory() as folder:
            training.resume(open_checkpoint(Path(folder)))
    with tempfile.TemporaryDirectory(prefix="raydis-") as workdir:
        for report in run_session(training, Path(workdir), parent=arguments["parent"]):
            folder = report.checkpoint
            train.report(metrics_of(report), checkpoint=train.Checkpoint.from_directory(folder) if folder else None)
            if folder:
                shutil.rmtree(folder)  # Ray has copied it to the storage


def _device(config: RunConfig) -> torch.device:
    """The device of this worker: Ray shows the GPUs of all workers of a node to each, so `cuda` alone is not enough."""
    device = resolve_device(config.compute)
    return get_device() if device.type == "cuda" else device
