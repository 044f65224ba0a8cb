"""The training loop, as a generator: whoever drives it decides what to report and where to save.

What happens in a step depends only on (config, step): the data order, the times, the noise and the dropped
channels of step s are drawn from generators seeded by (seed, s). So a run that stops and resumes is the same run,
and the random state that a checkpoint must carry is one integer.

Several workers share out one batch, with its times and noise, and take the mean of their gradients: batch size and
learning rate are those of the run, whoever computes it. Only dropped channels are each worker's own draws.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raydis.build import build_method
from raydis.config import RunConfig
from raydis.data import FactorDataset, Loader
from raydis.data.loader import images_at_once
from raydis.engine.accelerate import Captured, CudaGraph, compile_blocks, naming_compiler_errors, resolve_mode
from raydis.engine.checkpoint import Checkpoint, TrainingState
from raydis.engine.group import Workers
from raydis.engine.latents import Latents, fill_first_stage, open_latents
from raydis.engine.plan import budget_warnings, due, learning_rate, num_parts, seed_of
from raydis.errors import FitError
from raydis.methods.contract import Draws, Method

log = logging.getLogger(__name__)

FIRST_STAGE_PARTS = 8  # of `images_at_once`, 4096 images of 64 px: a first stage is fitted to one float tensor
QUANTILE_IMAGES = 4096


@dataclass(frozen=True)
class Progress:
    """One report of a running fit."""

    step: int
    images_seen: int
    num_images: int
    loss: float  # mean over the steps since the last report
    images_per_s: float  # all workers
    num_workers: int
    train_s: float  # in this run so far, without evaluation and checkpoints
    refit_s: float  # the part of it that refits took
    num_refits: int
    num_unanchored_units: int  # units whose tokens no mixture could be fitted to, since the last refit
    checkpoint_due: bool
    rung_due: bool  # a rung of the learning curve was passed since the last report
    finished: bool


class Training:
    """Everything that changes while a run trains, on one worker.

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
        self.rank, self.world_size = self.workers.rank, self.workers.world_size
        self.loader = Loader(
            dataset,
            batch_size=config.train.batch_size,
            seed=config.seed,
            rank=self.rank,
            world_size=self.world_size,
            device=device,
            num_gpus=config.compute.num_gpus,
        )
        self.num_parts = num_parts(self.loader.local_batch_size, config.compute.max_batch_size)
        torch.manual_seed(seed_of(config.seed))
        self.method = build_method(config, dataset.image_shape[2]).to(device)
        if self.rank == 0:
            sample = self._sample(FIRST_STAGE_PARTS * images_at_once(dataset.image_shape[0]), stream=1)
            self.method.start(self.loader.gather(sample))
        self.workers.broadcast(self.method.state_dict().values())
        if config.compute.channels_last:  # behind `broadcast`, which broadcasts contiguous tensors alone
            for module in self.method.trained_modules:
                module.to(memory_format=torch.channels_last)  # type: ignore[reportCallIssue]
        self.average: Method = copy.deepcopy(self.method).eval().requires_grad_(False)
        self._trained, self._averaged = self._weights(self.method), self._weights(self.average)
        if self.mode in ("blocks", "full"):
            compile_blocks(self.method)
        captures = self.mode in ("graph", "full")
        self.optimizer = torch.optim.AdamW(
            self._trained,
            # A graph would repeat the number that it was captured with, but reads a tensor anew.
            lr=torch.tensor(config.train.learning_rate, device=device) if captures else config.train.learning_rate,
            weight_decay=config.train.weight_decay,
            fused=True,
            capturable=captures,
        )
        self._update = self._accelerated()
        self.step = 0
        self.num_refits = 0
        self.train_s = self.refit_s = 0.0
        self.curve: list[dict[str, Any]] = []  # what each rung scored; a checkpoint keeps it
        self.unscored: Progress | None = None  # the last report, from the end of the budget until the model is scored

    @property
    def images_seen(self) -> int:
        """Images consumed so far, over all workers."""
        return self.step * self.config.train.batch_size

    def _sample(self, count: int, stream: int) -> np.ndarray:
        """Sorted indices of at most `count` distinct images, the same on every worker."""
        rng = np.random.default_rng([self.config.seed, stream, 1])  # two numbers would be the loader's epochs
        return np.sort(rng.permutation(len(self.dataset))[:count])

    @staticmethod
    def _weights(method: Method) -> list[Tensor]:
        return [weight for module in method.trained_modules for weight in module.parameters()]

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
        ours.fit_scale(latents.gather(self._sample(QUANTILE_IMAGES, stream=1)))
        self.workers.broadcast([ours.scale])
        theirs.load_state_dict(ours.state_dict())
        return latents

    def inputs(self) -> tuple[Tensor, ...]:
        """This worker's share of the step: images, times, noise and, where they are kept, the images' latents."""
        inputs = (self.loader.batch(self.step), *self.draw())
        return inputs if self.latents is None else (*inputs, self.latents.batch(self.loader, self.step))

    def refit(self) -> None:
        """Refit the method on rank 0 to a sample of the images, and give every worker the same result."""
        self._wait()  # up to a report's steps are queued on a GPU, and their time is not the refit's
        started = time.perf_counter()
        if self.rank == 0:
            sample = self._sample(self.method.refit_samples, stream=2 + self.num_refits)
            generator = torch.Generator(self.device).manual_seed(seed_of(self.config.seed, 2, self.num_refits))
            left_out = self.method.refit(self.loader.gather_in_parts(sample), generator)
            for unit, reason in left_out.items():
                log.warning("refit %d: unit %d stays without anchors: %s", self.num_refits, unit, reason)
        self.workers.broadcast(self.method.refitted())
        self.average.copy_refitted(self.method)
        self.num_refits += 1
        self._wait()
        self.refit_s += time.perf_counter() - started

    def _wait(self) -> None:
        """Let a GPU finish what was launched on it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def draw(self) -> Draws:
        """This worker's share of the step's times and noise, drawn for the global batch."""
        train = self.config.train
        generator = torch.Generator(self.device).manual_seed(seed_of(self.config.seed, 0, self.step))
        draws = self.method.draw(train.batch_size, generator)
        local = train.batch_size // self.world_size
        return Draws(*(part[self.rank * local : (self.rank + 1) * local] for part in draws))

    def advance(self, network: nn.Module) -> Tensor:
        """One step of the optimiser.

        Args:
            network: the method, or what wraps it for several workers.

        Returns:
            the loss, a scalar on the device: reading it would wait for the step to end.
        """
        train, before = self.config.train, self.images_seen
        interval = self.method.refit_images
        if interval and before and due(interval, before - train.batch_size, before):
            self.refit()
        self.method.pass_share(before / train.num_images)
        self.set_learning_rate(learning_rate(train, before))
        torch.manual_seed(seed_of(self.config.seed, 1, self.step, self.rank))
        if not self.method.training:  # a refit left it so
            self.method.train()
        loss = self._update(network, *self.inputs())
        self.step += 1
        self.follow()
        return loss

    def update(self, network: nn.Module, *inputs: Tensor) -> Tensor:
        """The part of a step that is the same work every time, on the device alone: from inputs to changed weights."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(network, inputs)
        self.descend()
        self.method.end_step()
        return loss

    def _backward(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        """Gradients of the mean loss over this worker's images, in equal parts; workers exchange theirs in the last."""
        total = torch.zeros((), device=self.device)
        parts = list(zip(*(tensor.chunk(self.num_parts) for tensor in inputs), strict=True))
        for index, part in enumerate(parts, start=1):
            last = index == self.num_parts
            with network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext():
                loss = self.loss(network, *part) / self.num_parts
                loss.backward()
            total += loss.detach()
        return total

    def loss(self, network: nn.Module, images: Tensor, timesteps: Tensor, noise: Tensor, *latents: Tensor) -> Tensor:
        """The forward pass, in the run's precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"):
            return network(images, Draws(timesteps, noise), *latents)

    def descend(self) -> None:
        """Change the weights along the gradients, which are clipped first."""
        if self.config.train.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, self.config.train.max_grad_norm, foreach=True)
        self.optimizer.step()

    def set_learning_rate(self, rate: float) -> None:
        """The rate of the next step, in place where a graph reads it."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _accelerated(self) -> Callable[..., Tensor]:
        """`update`, replayed from a graph where the mode says so; made anew whenever the optimiser's tensors are."""
        update = naming_compiler_errors(self.update) if self.mode in ("blocks", "full") else self.update
        if self.mode not in ("graph", "full"):
            return update
        captured = Captured(functools.partial(update, self.method), CudaGraph(self.device))
        return lambda network, *inputs: captured(*inputs)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the averaged weights and running statistics.

        Their decay is min(ema_decay, (1 + n) / (10 + n)) after n steps (latent-diffusion).
        """
        decay = min(self.config.train.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self._averaged, self._trained, 1.0 - decay)  # type: ignore[reportPrivateImportUsage]
        for ours, theirs in zip(self.average.trained_modules, self.method.trained_modules, strict=True):
            for average, buffer in zip(ours.buffers(), theirs.buffers(), strict=True):
                if buffer.is_floating_point():  # a batch norm's statistics, of one age with the weights
                    average.lerp_(buffer, 1.0 - decay)
                else:
                    average.copy_(buffer)

    def calibrated(self) -> Method:
        """The averaged method, refitted to its own tokens and measured: what is evaluated, saved and served."""
        sample = self._sample(QUANTILE_IMAGES, stream=0)
        self.average.copy_refitted(self.method)
        if self.num_refits:  # it goes on from what fits the weights of this step, which are not the averaged ones
            images = self._sample(self.method.refit_samples, stream=1 + self.num_refits)
            generator = torch.Generator(self.device).manual_seed(seed_of(self.config.seed, 3, self.step))
            self.average.refit(self.loader.gather_in_parts(images), generator)
        self.average.calibrate(self.loader.gather_in_parts(sample))
        return self.average

    def state(self) -> TrainingState:
        """What a checkpoint adds to the averaged weights so that the run can go on exactly."""
        tensors = {f"method.{name}": tensor for name, tensor in self.method.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
        times = {"train_s": self.train_s, "refit_s": self.refit_s}
        unscored = asdict(self.unscored) if self.unscored else None
        counts = {"step": self.step, "num_refits": self.num_refits}
        values = {**counts, "curve": self.curve, "unscored": unscored, **times}
        return TrainingState(tensors=tensors, values=values)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same configuration and data. Raises CheckpointError for another."""
        checkpoint.check_belongs(self.config, self.dataset)
        training = checkpoint.training()
        self.average.load_state_dict(checkpoint.weights())
        method, moments = {}, {}
        for name, tensor in training.tensors.items():
            owner, _, rest = name.partition(".")
            if owner == "method":
                method[rest] = tensor
            else:
                index, _, moment = rest.partition(".")
                # A fused step walks a weight and its moments side by side, so they need one layout.
                like = self._trained[int(index)]
                value = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
                moments.setdefault(int(index), {})[moment] = value
        self.method.load_state_dict(method)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._update = self._accelerated()
        self.step = int(training.values["step"])
        self.num_refits = int(training.values["num_refits"])
        self.curve = list(training.values["curve"])
        unscored = training.values.get("unscored")  # which a checkpoint of an earlier raydis lacks: it was scored
        self.unscored = Progress(**unscored) if unscored else None
        self.train_s, self.refit_s = float(training.values["train_s"]), float(training.values["refit_s"])


def fit(training: Training) -> Iterator[Progress]:
    """Train until the budget is spent, yielding every `report_images` images, at each rung and at the end.

    The last report stays in `training.unscored`.

    Raises:
        FitError: the loss is no longer finite.
    """
    train, rungs = training.config.train, training.config.evaluation.rungs
    network: nn.Module = training.method
    if training.world_size > 1:
        with warnings.catch_warnings():  # torch 2.13 wants the name forward_sync_buffers, which 2.12 does not know
            warnings.simplefilter("ignore", FutureWarning)
            network = DistributedDataParallel(training.method, broadcast_buffers=False)
    if training.rank == 0 and training.images_seen < train.num_images:
        for warning in budget_warnings(training.config):
            log.warning(warning)
    losses = torch.zeros((), device=training.device)
    reported, started, checkpointed = training.step, time.perf_counter(), training.images_seen

    while training.images_seen < train.num_images:
        before = training.images_seen
        losses += training.advance(network)

        after, finished = training.images_seen, training.images_seen >= train.num_images
        rung_due = any(before < rung <= after for rung in rungs)
        if finished or rung_due or due(train.report_images, before, after):
            mean_loss = training.workers.mean(losses) / (training.step - reported)
            if not math.isfinite(mean_loss):
                raise FitError(
                    f"the loss became {mean_loss} by step {training.step} ({after} images): "
                    "lower train.learning_rate or set train.max_grad_norm"
                )
            elapsed = time.perf_counter() - started
            training.train_s += elapsed
            progress = Progress(
                step=training.step,
                images_seen=after,
                num_images=train.num_images,
                loss=mean_loss,
                images_per_s=(training.step - reported) * train.batch_size / elapsed,
                num_workers=training.world_size,
                train_s=training.train_s,
                refit_s=training.refit_s,
                num_refits=training.num_refits,
                num_unanchored_units=training.method.num_unanchored_units,
                checkpoint_due=finished or due(train.checkpoint_images, checkpointed, after),
                rung_due=rung_due,
                finished=finished,
            )
            if finished:
                training.unscored = progress
            yield progress
            if due(train.checkpoint_images, checkpointed, after):
                checkpointed = after
            losses.zero_()
            reported, started = training.step, time.perf_counter()
