"""The processes that share a run's batches, and what they tell each other.

Workers wait for each other in two ways. Inside of a step all of them compute the same, and one that does not come has
failed: those waits end after the timeout of torch.distributed. Outside of steps one worker may have work of its own for
minutes or hours (scoring, a refit, a cold cache): those waits have no end, except that a worker which died ends them at
once.
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
    """This worker's place among those of a run. Every method is called by all workers together.

    Args:
        rank, world_size: more than one worker needs an initialised torch.distributed group.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size

    @functools.cached_property
    def _patient(self) -> torch.distributed.ProcessGroup:
        """A group whose operations do not time out; on the CPU, so that it works beside NCCL."""
        group = torch.distributed.new_group(backend="gloo", timeout=WITHOUT_END)
        assert isinstance(group, torch.distributed.ProcessGroup)  # all workers are members
        return group

    def wait(self) -> None:
        """Wait until all workers are here, however long one of them takes."""
        self.agree(True)

    def agree(self, answer: bool) -> bool:
        """Return whether all workers answer yes; waits as `wait` does."""
        if self.world_size == 1:
            return answer
        answers = torch.tensor(int(answer))
        torch.distributed.all_reduce(answers, torch.distributed.ReduceOp.MIN, group=self._patient)
        return bool(answers.item())

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every worker what rank 0 holds, however long rank 0 took to compute it."""
        if self.world_size > 1:
            self.wait()
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors that every worker has by their means over the workers, in one exchange a dtype."""
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            torch.distributed.all_reduce(flat)
            flat /= self.world_size
            for tensor, mean in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the equal shares of all workers in order, (world_size * B, ...) of B rows each; without gradients."""
        if self.world_size == 1:
            return tensor
        shares = [torch.empty_like(tensor) for _ in range(self.world_size)]
        torch.distributed.all_gather(shares, tensor.detach())
        return torch.cat(shares)

    def mean(self, value: Tensor) -> float:
        """Return the mean of a scalar that each worker has."""
        total = value.clone()
        if self.world_size > 1:
            torch.distributed.all_reduce(total)
        return total.item() / self.world_size
