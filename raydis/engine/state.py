"""Everything that changes while a run trains, on one worker, and how it is written down and restored."""

from __future__ import annotations

import copy
import functools
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
from raydis.engine.group import Workers
from raydis.engine.latents import Latents, fill_first_stage, open_latents
from raydis.engine.plan import num_parts
from raydis.engine.streams import Sample, Stream, sample_of, seed_of
from raydis.errors import CheckpointError
from raydis.methods.contract import Method, Move

log = logging.getLogger(__name__)

CALIBRATION_IMAGES = 4096
START_PARTS = 8  # of `images_at_once`: 4096 images up to 64 px, fewer of larger ones, which one float tensor holds


@dataclass(frozen=True)
class Progress:
    """One report of a running fit.

    Attributes:
        losses: means over the steps since the last report; `loss` is what the first move descends.
        images_per_s: of all workers.
        train_s: time of the run so far, without evaluation and checkpoints.
        refit_s: the part of it that refits took.
        health: what the method counts of its own failures; see `Method.health`.
        checkpoint_due, rung_due: whether a checkpoint or a rung of the learning curve was passed since the last report.
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
        config: the run.
        dataset: images; labels are never touched.
        device: where this worker computes.
        workers: this worker's place among those of the run.

    Raises:
        ResourceError: `config.compute.compile` asks for what the device cannot do; before any work on the data.
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
        self.method = build_method(config, dataset.image_shape[2]).to(device)
        wanted = self.method.start_images or START_PARTS * images_at_once(dataset.image_shape[0])
        num_started = min(wanted, len(dataset))
        if self.workers.rank == 0:
            generator = torch.Generator(device).manual_seed(seed_of(config.seed, Stream.START))
            self.method.start(self.loader.gather_in_parts(self.sample(num_started, Sample.START)), generator)
        self.workers.broadcast(self.method.state_dict().values())
        if config.compute.channels_last:  # after the broadcast, which takes contiguous tensors alone
            for move in self.method.moves:
                for module in move.modules:
                    module.to(memory_format=torch.channels_last)  # type: ignore[reportCallIssue]
        self.average: Method = copy.deepcopy(self.method).eval().requires_grad_(False)
        self.optimizers = {move.name: self._optimizer(move) for move in self.method.moves}
        # A method in closed form has seen its images when it is started, and no step follows.
        self.step = 0 if self.method.moves else math.ceil(num_started / config.train.batch_size)
        self.num_refits = 0
        self.train_s = self.refit_s = 0.0
        self.curve: list[dict[str, Any]] = []  # what each rung scored; a checkpoint keeps it
        self.resumed = False
        self.unscored: Progress | None = None  # the last report, from the end of the budget until the model is scored

    @property
    def images_seen(self) -> int:
        """Images consumed so far, over all workers."""
        return self.step * self.config.train.batch_size

    @property
    def spent(self) -> bool:
        """Whether no step is left of the budget."""
        return self.images_seen >= self.config.train.num_images or not self.method.moves

    def sample(self, count: int, purpose: int) -> np.ndarray:
        """Return sorted indices of at most `count` images, the same on every worker; see `sample_of`."""
        return sample_of(len(self.dataset), count, seed=self.config.seed, purpose=purpose)

    def _optimizer(self, move: Move) -> torch.optim.AdamW:
        train, captures = self.config.train, self.mode in ("graph", "full")
        rate = train.learning_rate * move.learning_rate_scale
        return torch.optim.AdamW(
            move.weights,
            # A graph would repeat the number that it was captured with, but reads a tensor anew.
            lr=torch.tensor(rate, device=self.device) if captures else rate,
            betas=move.betas,
            weight_decay=train.weight_decay if move.weight_decay is None else move.weight_decay,
            fused=True,
            capturable=captures,
        )

    @functools.cached_property
    def latents(self) -> Latents | None:
        """The learned first stage's latents of all images, opened at the first step; None where there is no such stage.

        The stage comes from its own checkpoint, unless by then a checkpoint of this run was resumed, which contains it.
        """
        ours, theirs = self.method.autoencoder, self.average.autoencoder
        if ours is None or theirs is None:
            return None
        if not self.step:
            fill_first_stage(ours, self.config)
        latents = open_latents(ours, self.loader)
        self.workers.wait()  # a node that has not kept them encodes all images
        if self.step:
            return latents
        ours.fit_scale(latents.gather(self.sample(CALIBRATION_IMAGES, Sample.START)))
        self.workers.broadcast([ours.scale])
        theirs.load_state_dict(ours.state_dict())
        return latents

    def refit(self) -> None:
        """Refit the method on rank 0 to a sample of the images, and give every worker the same result."""
        method, seed = self.method, self.config.seed
        synchronize(self.device)  # up to a report's steps are queued on a GPU, and their time is not the refit's
        started = time.perf_counter()
        if self.workers.rank == 0:
            sample = self.sample(method.refit_samples, Sample.REFIT + self.num_refits)
            generator = torch.Generator(self.device).manual_seed(seed_of(seed, Stream.REFIT, self.num_refits))
            for unit, reason in method.refit(self.loader.gather_in_parts(sample), generator).items():
                log.warning("refit %d leaves unit %d out: %s", self.num_refits, unit, reason)
        if method.refitted is not None:
            self.workers.broadcast(method.refitted.state_dict().values())
        self.copy_refitted()
        self.num_refits += 1
        synchronize(self.device)
        self.refit_s += time.perf_counter() - started

    def copy_refitted(self) -> None:
        """Give the averaged method what refits and hooks have written, which no average follows."""
        if self.method.refitted is not None and self.average.refitted is not None:
            self.average.refitted.load_state_dict(self.method.refitted.state_dict())

    def calibrated(self) -> Method:
        """Return the averaged method, refitted to its own units and measured: what is scored, saved and served."""
        average, seed = self.average, self.config.seed
        self.copy_refitted()
        if self.num_refits:  # it goes on from what fits the weights of this step, which are not the averaged ones
            images = self.sample(average.refit_samples, Sample.REFIT + self.num_refits - 1)
            generator = torch.Generator(self.device).manual_seed(seed_of(seed, Stream.AVERAGE_REFIT, self.step))
            average.refit(self.loader.gather_in_parts(images), generator)
        average.calibrate(self.loader.gather_in_parts(self.sample(CALIBRATION_IMAGES, Sample.CALIBRATION)))
        return average

    def state(self) -> TrainingState:
        """Return what a checkpoint adds to the averaged weights so that the run can go on exactly."""
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
                "refit_s": self.refit_s,
            },
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same configuration and data. Raises CheckpointError for another."""
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
                # A fused step walks a weight and its moments side by side, so they need one layout.
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


def synchronize(device: torch.device) -> None:
    """Let a GPU finish what was launched on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
