"""One training step: refit, draw random numbers, make each move (loss, gradients, optimiser), update the average.

All randomness of step s comes from generators that are seeded by (seed, s): the order of the data, the draws of the
method, and its dropout. A run that stops and resumes is therefore the same run, and a checkpoint only needs the number
of the step to restore the random state.

Several workers share one batch and its draws, and average their gradients. Batch size and learning rate are those of
the run and do not depend on the number of workers. Each worker draws its own dropout (see `ComputeConfig` for all
that the number of workers changes).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from raydis.engine.accelerate import Captured, CudaGraph, Graph, compile_blocks, naming_compiler_errors
from raydis.engine.plan import due, learning_rate
from raydis.engine.state import Training
from raydis.engine.streams import Stream, seed_of
from raydis.methods.contract import Batch, Draws, Losses, Move

Mark = Callable[[str], None]  # called with the name of each phase of a step when it ends; see `breakdown`


class Step:
    """The training step of a run.

    Make a new one after the run was resumed, which replaces the tensors that a CUDA graph has captured.

    Args:
        training: the state that each step changes.
        graph: makes the graph that captures the step. With None, it is a CUDA graph if `compute.compile` asks for one.
    """

    def __init__(self, training: Training, *, graph: Callable[[], Graph] | None = None) -> None:
        self.training = training
        if not training.spent:
            training.open_borrowed()
        if training.mode in ("blocks", "full"):
            compile_blocks(training.method)
        launch = naming_compiler_errors(self._moves) if training.mode in ("blocks", "full") else self._moves
        if training.mode in ("graph", "full") or graph is not None:
            launch = Captured(launch, graph() if graph else CudaGraph(training.device))
        self._launch = launch

    def __call__(self) -> Losses:
        """Take one step and return its losses, as scalars on the device. To read one is to wait for the step to end."""
        training, train = self.training, self.training.config.train
        before, interval = training.images_seen, training.method.refit_images
        if interval and before and due(interval, before - train.batch_size, before):
            training.refit()
        training.method.begin_step(before / train.num_images)
        set_learning_rate(training, learning_rate(train, before))
        torch.manual_seed(seed_of(training.config.seed, Stream.DROPOUT, training.step, training.workers.rank))
        if not training.method.training:  # a refit sets eval mode
            training.method.train()
        losses = self._launch(next_batch(training).tensors())
        training.step += 1
        ema_update(training)
        return losses

    def _moves(self, tensors: dict[str, Tensor]) -> Losses:
        return make_moves(self.training, Batch.of(tensors))


def next_batch(training: Training) -> Batch:
    """Return this worker's share of the images, draws and latents of the next step."""
    loader, latents = training.loader, training.latents
    return Batch(
        images=loader.batch(training.step),
        draws=draw(training),
        others=loader.batch(training.step, second=True) if training.method.second_batch else None,
        latents=None if latents is None else latents.batch(loader, training.step),
    )


def draw(training: Training) -> Draws:
    """Return this worker's share of the random numbers of the next step, which are drawn for the whole batch."""
    size, local, rank = training.loader.batch_size, training.loader.local_batch_size, training.workers.rank
    seed = seed_of(training.config.seed, Stream.DRAWS, training.step)
    draws = training.method.draw(size, torch.Generator(training.device).manual_seed(seed))
    return {name: drawn[rank * local : (rank + 1) * local] for name, drawn in draws.items()}


def make_moves(training: Training, batch: Batch, mark: Mark = lambda phase: None) -> Losses:
    """Make all moves of a step on a batch. This part works on the device alone, so that a CUDA graph can capture it."""
    losses: Losses = {}
    for move in training.method.moves:
        training.optimizers[move.name].zero_grad(set_to_none=True)
        found = backward(training, move, batch, mark)
        synchronize_gradients(training, move)
        optimizer_step(training, move)
        mark("optimiser")
        losses |= found if not losses else {f"{move.name}.{name}": loss for name, loss in found.items()}
    training.method.end_step()
    return losses


def backward(training: Training, move: Move, batch: Batch, mark: Mark = lambda phase: None) -> Losses:
    """Accumulate the gradients of a move over equal parts of this worker's batch, and return the mean losses.

    A move that couples the images of a batch gets the images of all workers in one part.
    """
    parts = [gather(training, batch)] if move.couples else batch.split(training.num_parts)
    num_parts = len(parts)
    totals: Losses = {}
    for part in parts:
        losses = {name: loss / num_parts for name, loss in forward(training, move, part).items()}
        mark("forward")
        losses["loss"].backward()
        mark("backward")
        for name, loss in losses.items():
            totals[name] = totals[name] + loss.detach() if name in totals else loss.detach()
    return totals


def gather(training: Training, batch: Batch) -> Batch:
    """Return the whole batch, gathered from all workers."""
    return Batch.of({name: training.workers.gather(tensor) for name, tensor in batch.tensors().items()})


def forward(training: Training, move: Move, part: Batch) -> Losses:
    """Return the losses of one part, computed in the run's precision."""
    half = training.config.train.precision == "bf16"
    with torch.autocast(training.device.type, torch.bfloat16, enabled=half):
        return training.method(part, move.name)


def synchronize_gradients(training: Training, move: Move) -> None:
    """Replace the gradients of a move by their means over the workers."""
    if training.workers.world_size > 1:
        training.workers.average([weight.grad for weight in move.weights if weight.grad is not None])


def optimizer_step(training: Training, move: Move) -> None:
    """Clip the gradients of a move if the configuration asks for it, and make a step of its optimiser."""
    if training.config.train.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(move.weights, training.config.train.max_grad_norm, foreach=True)
    training.optimizers[move.name].step()


def set_learning_rate(training: Training, rate: float) -> None:
    """Set the learning rate of every move for the next step; in place if a CUDA graph reads it from a tensor."""
    for move in training.method.moves:
        for group in training.optimizers[move.name].param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * move.learning_rate_scale)
            else:
                group["lr"] = rate * move.learning_rate_scale


@torch.no_grad()
def ema_update(training: Training) -> None:
    """Update the exponential moving average (EMA) of the weights and running statistics.

    As in latent-diffusion, the decay after n steps is min(ema_decay, (1 + n) / (10 + n)).
    """
    decay = min(training.config.train.ema_decay, (1 + training.step) / (10 + training.step))
    pairs = list(zip(training.average.averaged_modules, training.method.averaged_modules, strict=True))
    averaged = [weight for ours, _ in pairs for weight in ours.parameters()]
    weights = [weight for _, theirs in pairs for weight in theirs.parameters()]
    if weights:
        # One launch for all weights; torch has no public name for it.
        torch._foreach_lerp_(averaged, weights, 1.0 - decay)  # type: ignore[reportPrivateImportUsage]
    for ours, theirs in pairs:
        for average, buffer in zip(ours.buffers(), theirs.buffers(), strict=True):
            if buffer.is_floating_point():  # statistics of a batch norm, which must fit the averaged weights
                average.lerp_(buffer, 1.0 - decay)
            else:
                average.copy_(buffer)
