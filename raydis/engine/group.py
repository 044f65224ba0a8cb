"""Communication between the workers of a run, which share its batches.

Workers wait for each other in two ways. During a step, all of them do the same work, and a worker that does not arrive
has failed. These waits end after the timeout of torch.distributed. Between steps, one worker may work alone for minutes
or hours (scoring, a refit, filling a cache). These waits have no timeout, but they end at once if a worker dies.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor

WITHOUT_END = timedelta(days=365)


class Workers:
    """The workers of a run, seen from one of them. All workers must call each method together.

    Args:
        rank: the number of this worker, from 0.
        world_size: the number of workers. More than one need an initialised torch.distributed group.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size

    @functools.cached_property
    def _patient(self) -> torch.distributed.ProcessGroup:
        """A process group without a timeout. It works on the CPU, independently of NCCL."""
        group = torch.distributed.new_group(backend="gloo", timeout=WITHOUT_END)
        assert isinstance(group, torch.distributed.ProcessGroup)  # all workers are members
        return group

    def wait(self) -> None:
        """Wait, without a timeout, until all workers have called this."""
        self.all_true(True)

    def all_true(self, answer: bool) -> bool:
        """Return whether the answer of all workers is true. Wait for them as `wait` does."""
        if self.world_size == 1:
            return answer
        answers = torch.tensor(int(answer))
        torch.distributed.all_reduce(answers, torch.distributed.ReduceOp.MIN, group=self._patient)
        return bool(answers.item())

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the tensors of rank 0 to all workers, and wait without a timeout until rank 0 has them."""
        if self.world_size > 1:
            self.wait()
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the workers, with one exchange for each dtype."""
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            torch.distributed.all_reduce(flat)
            flat /= self.world_size
            for tensor, mean in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate the tensors (B, ...) of all workers by rank to (world_size * B, ...), without gradients."""
        if self.world_size == 1:
            return tensor
        shares = [torch.empty_like(tensor) for _ in range(self.world_size)]
        torch.distributed.all_gather(shares, tensor.detach())
        return torch.cat(shares)

    def mean(self, value: Tensor) -> float:
        """Return the mean of a scalar over the workers."""
        total = value.clone()
        if self.world_size > 1:
            torch.distributed.all_reduce(total)
        return total.item() / self.world_size
