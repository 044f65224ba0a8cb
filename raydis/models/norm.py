"""Batch norm over the images of all workers.

B images of one worker, C channels, H W size. All W workers have the same B.

nn.SyncBatchNorm does the same, but on GPUs only. This module also takes CPU tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from raydis.models.precision import at_least_single

OVER_IMAGES = (0, 2, 3)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """An nn.BatchNorm2d that, in training, takes its statistics over the images of all workers.

    Its parameters and buffers have the names of nn.BatchNorm2d, so a checkpoint does not depend on the number of
    workers. In a torch.distributed group, all members must call it together with inputs of equal shape; running
    statistics are then the same on all of them. In eval mode, and without a group, it behaves as nn.BatchNorm2d.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalise features (B, C, H, W)."""
        if not (self.training and distributed.is_initialized() and distributed.get_world_size() > 1):
            return super().forward(x)
        assert self.momentum is not None  # None would mean an average over all batches
        with torch.no_grad():
            mean, variance = _global_moments(x)
            count = x.numel() // x.shape[1] * distributed.get_world_size()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        return _Normalise.apply(x, self.weight, self.bias, mean, variance, self.eps)


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance (C,) over the images of all workers, bit-equal on each of them.

    They are combined from the means and variances of the workers (Chan, Golub and LeVeque, 1983). Sums of squares would
    lose precision by cancellation where the mean of a channel is far from 0.
    """
    own = torch.stack(torch.var_mean(at_least_single(x), OVER_IMAGES, correction=0))  # (2, C)
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own)
    variances, means = torch.stack(parts, 1)  # (W, C) each
    return means.mean(0), variances.mean(0) + means.var(0, correction=0)


class _Normalise(torch.autograd.Function):
    """The map x -> weight (x - mean) / sqrt(variance + eps) + bias, with the gradients through both moments."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_deviation = ctx.saved_tensors
        grad = at_least_single(grads[0])
        normalised = (at_least_single(x) - mean[:, None, None]) * inverse_deviation[:, None, None]
        own = torch.stack([grad.sum(OVER_IMAGES), (grad * normalised).sum(OVER_IMAGES)])  # (2, C)
        shared = own.clone()
        distributed.all_reduce(shared)
        shared /= x.numel() // x.shape[1] * distributed.get_world_size()
        by_mean, by_deviation = shared[:, :, None, None]  # (C, 1, 1) each
        grad_x = (weight * inverse_deviation)[:, None, None] * (grad - by_mean - normalised * by_deviation)
        # DDP takes the mean of the parameters' gradients over the workers itself.
        return grad_x.to(x.dtype), own[1], own[0], None, None, None
