"""The state of a run on one worker: the method, its moving average, optimisers and counters.

`Training` creates this state, refits the method between steps, and writes the state to a checkpoint and restores it.
The training step itself is in `step.py`.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydis.build import build_method
from raydis.checkpoint.migrate import migrate_training
from raydis.checkpoint.open import Checkpoint
from raydis.checkpoint.state import TrainingState
from raydis.config import RunConfig
from raydis.data import FactorDataset, Loader
from raydis.data.loader import images_at_once
from raydis.engine.accelerate import resolve_mode
from raydis.engine.borrow import fill_first_stage, fill_pretrained
from raydis.engine.group import Workers
from raydis.engine.latents import Latents, open_latents
from raydis.engine.plan import num_parts
from raydis.engine.streams import Sample, Stream, sample_of, seed_of
from raydis.errors import CheckpointError
from raydis.methods.contract import Method, Move

log = logging.getLogger(__name__)

CALIBRATION_IMAGES = 4096
START_PARTS = 8  # times `images_at_once`: 4096 images up to 64 px, fewer of larger ones, so that one tensor holds them


@dataclass(frozen=True)
class Progress:
    """One report of the training loop.

    Attributes:
        losses: means over the steps since the last report; `loss` is what the first move minimises.
        images_per_s: of all workers together.
        train_s: training time of the run so far, without evaluation and checkpoints.
        refit_s: the part of `train_s` that refits took.
        health: counts of what has gone wrong in the method; see `Method.health`.
        checkpoint_due, rung_due: whether a checkpoint, or a rung of the learning curve, has become due since the last
            report.
    """

    step: int
    images_seen: int
    num_images: int
    losses: dict[str, float]
    images_per_s: float
    num_workers: int
    train_s: float
    refit_s: float
    num_refits: int
    health: dict[str, int]
    checkpoint_due: bool
    rung_due: bool
    finished: bool

    @property
    def loss(self) -> float | None:
        """The loss of the first move; None for a method without moves."""
        return self.losses.get("loss")


class Training:
    """The state of a run: a method, its moving average, its optimisers, and how far it has come.

    Args:
        config: the configuration of the run.
        dataset: the images. Training never reads their factors.
        device: where this worker computes.
        workers: the workers of the run, and this worker's rank; None for a single worker.

    Raises:
        ResourceError: the device does not support `config.compute.compile`. This is raised before the data are read.
    """

    def __init__(
        self, config: RunConfig, dataset: FactorDataset, *, device: torch.device, workers: Workers | None = None
    ) -> None:
        self.mode = resolve_mode(config.compute, device)
        self.config = config
        self.dataset = dataset
        self.device = device
        self.workers = workers or Workers()
        self.loader = Loader(
            dataset,
            batch_size=config.train.batch_size,
            seed=config.seed,
            rank=self.workers.rank,
            world_size=self.workers.world_size,
            device=device,
            num_gpus=config.compute.num_gpus,
        )
        self.num_parts = num_parts(self.loader.local_batch_size, config.compute.max_batch_size)
        torch.manual_seed(seed_of(config.seed))
        started, cpu_started = time.perf_counter(), time.process_time()
        self.method = build_method(config, dataset.image_shape[2]).to(device)
        wanted = self.method.start_images or START_PARTS * images_at_once(dataset.image_shape[0])
        num_started = min(wanted, len(dataset))
        if self.workers.rank == 0:
            generator = torch.Generator(device).manual_seed(seed_of(config.seed, Stream.START))
            self.method.start(self.loader.gather_in_parts(self.sample(num_started, Sample.START)), generator)
        self.workers.broadcast(self.method.state_dict().values())
        if config.compute.channels_last:  # after the broadcast, which needs contiguous tensors
            for move in self.method.moves:
                for module in move.modules:
                    # torch's types lack this overload, which its documentation describes.
                    module.to(memory_format=torch.channels_last)  # type: ignore[reportCallIssue]
        self.latents: Latents | None = None  # of the learned first stage, once it is open
        self.average: Method = copy.deepcopy(self.method).eval().requires_grad_(False)
        self.optimizers = {move.name: self._optimizer(move) for move in self.method.moves}
        # A method with a closed form has seen its images after `start`, and no step follows.
        self.step = 0 if self.method.moves else math.ceil(num_started / config.train.batch_size)
        self.num_refits = 0
        self.train_s, self.refit_s = time.perf_counter() - started, 0.0
        self.cpu_s: float | None = time.process_time() - cpu_started  # CPU time of this process in `train_s`
        self.curve: list[dict[str, Any]] = []  # the scores at each rung, which a checkpoint keeps
        self.resumed = False
        self.unscored: Progress | None = None  # the last report, from the end of the budget until the model is scored

    @property
    def images_seen(self) -> int:
        """Number of images that all workers have trained on so far."""
        return self.step * self.config.train.batch_size

    @property
    def spent(self) -> bool:
        """Whether the training budget is used up."""
        return self.images_seen >= self.config.train.num_images or not self.method.moves

    def sample(self, count: int, purpose: int) -> np.ndarray:
        """Return sorted indices of at most `count` images, the same on every worker; see `sample_of`."""
        return sample_of(len(self.dataset), count, seed=self.config.seed, purpose=purpose)

    def _optimizer(self, move: Move) -> torch.optim.AdamW:
        train, captures = self.config.train, self.mode in ("graph", "full")
        rate = train.learning_rate * move.learning_rate_scale
        return torch.optim.AdamW(
            move.weights,
            # A CUDA graph would always use the number that it was captured with, but reads a tensor at each replay.
            lr=torch.tensor(rate, device=self.device) if captures else rate,
            betas=move.betas,
            weight_decay=train.weight_decay if move.weight_decay is None else move.weight_decay,
            fused=True,
            capturable=captures,
        )

    def open_borrowed(self) -> None:
        """Load the learned first stage and the pre-trained model of the method, and open the latents of all images.

        Call it before the first step. It does nothing for a method without such a stage or model, or if the latents are
        open. The weights come from checkpoints of other runs, unless this run was resumed from a checkpoint of its own,
        which contains them. The scale of the latents is that of the pre-trained model.
        """
        ours, theirs = self.method.autoencoder, self.average.autoencoder
        pretrained, averaged = self.method.pretrained, self.average.pretrained
        if ours is not None and self.latents is None:
            if not self.step:
                fill_first_stage(ours, self.config)
            self.latents = open_latents(ours, self.loader)
            self.workers.wait()  # a node whose cache lacks the latents encodes all images, which takes time
            if not self.step and pretrained is None:
                ours.fit_scale(self.latents.gather(self.sample(CALIBRATION_IMAGES, Sample.START)))
                self.workers.broadcast([ours.scale])
            if not self.step and theirs is not None:
                theirs.load_state_dict(ours.state_dict())
        if pretrained is not None and averaged is not None and not self.step:
            fill_pretrained(pretrained, self.config)
            averaged.load_state_dict(pretrained.state_dict())

    def refit(self) -> None:
        """Refit the method to a sample of the images on rank 0, and broadcast the result to all workers."""
        method, seed = self.method, self.config.seed
        synchronize(self.device)  # a GPU may still have queued steps, whose time must not count as that of the refit
        started = time.perf_counter()
        if self.workers.rank == 0:
            sample = self.sample(method.refit_samples, Sample.REFIT + self.num_refits)
            generator = torch.Generator(self.device).manual_seed(seed_of(seed, Stream.REFIT, self.num_refits))
            for unit, reason in method.refit(self.loader.gather_in_parts(sample), generator).items():
                log.warning("refit %d failed for unit %d: %s", self.num_refits, unit, reason)
        if method.refitted is not None:
            self.workers.broadcast(method.refitted.state_dict().values())
        self.copy_refitted()
        self.num_refits += 1
        synchronize(self.device)
        self.refit_s += time.perf_counter() - started

    def copy_refitted(self) -> None:
        """Copy the state that refits and hooks change to the averaged method, because it is not averaged."""
        if self.method.refitted is not None and self.average.refitted is not None:
            self.average.refitted.load_state_dict(self.method.refitted.state_dict())

    def calibrated(self) -> Method:
        """Refit the averaged method to its own units, calibrate it, and return it for scoring and saving."""
        average, seed = self.average, self.config.seed
        self.copy_refitted()
        if self.num_refits:  # the copied state was fitted to the weights of this step, not to the averaged weights
            images = self.sample(average.refit_samples, Sample.REFIT + self.num_refits - 1)
            generator = torch.Generator(self.device).manual_seed(seed_of(seed, Stream.AVERAGE_REFIT, self.step))
            average.refit(self.loader.gather_in_parts(images), generator)
        average.calibrate(self.loader.gather_in_parts(self.sample(CALIBRATION_IMAGES, Sample.CALIBRATION)))
        return average

    def state(self) -> TrainingState:
        """Return what a checkpoint stores beside the averaged weights, so that the run can resume exactly."""
        tensors = {f"method.{name}": tensor for name, tensor in self.method.state_dict().items()}
        for move, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{move}.{index}.{name}": moment for name, moment in moments.items()}
        return TrainingState(
            tensors=tensors,
            values={
                "step": self.step,
                "num_refits": self.num_refits,
                "curve": self.curve,
                "unscored": asdict(self.unscored) if self.unscored else None,
                "train_s": self.train_s,
                "cpu_s": self.cpu_s,
                "refit_s": self.refit_s,
            },
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restore the state from a checkpoint. Raises CheckpointError if it has another configuration or other data."""
        checkpoint.check_belongs(self.config, data_name=self.dataset.name, data_fingerprint=self.dataset.fingerprint)
        moves = [move.name for move in self.method.moves]
        kept = migrate_training(checkpoint.training(), checkpoint.manifest.format_version, moves)
        tensors, values = kept.tensors, kept.values
        played = tuple(f"optimizer.{move}." for move in moves)
        if foreign := [name for name in tensors if name.startswith("optimizer.") and not name.startswith(played)]:
            raise CheckpointError(
                f"checkpoint {checkpoint.folder} holds {foreign[0]}, but this run has the moves "
                f"{', '.join(moves) or 'none'}: resume it with the raydis that wrote it"
            )
        self.average.load_state_dict(checkpoint.weights())
        self.method.load_state_dict(_below("method.", tensors))
        for move in self.method.moves:
            optimizer, moments = self.optimizers[move.name], dict[int, dict[str, Tensor]]()
            for name, tensor in _below(f"optimizer.{move.name}.", tensors).items():
                index, _, moment = name.partition(".")
                # The fused optimiser needs the same memory layout for a weight and its moments.
                like = move.weights[int(index)]
                value = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
                moments.setdefault(int(index), {})[moment] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.resumed = True
        self.step, self.num_refits = int(values["step"]), int(values["num_refits"])
        self.curve = list(values["curve"])
        self.unscored = Progress(**values["unscored"]) if values["unscored"] else None
        self.train_s, self.refit_s = float(values["train_s"]), float(values["refit_s"])
        self.cpu_s = values.get("cpu_s")  # None for a run that an older version has begun


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished all launched work; do nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, under their names without the prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
