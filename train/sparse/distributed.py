"""Batch norm over the voxels of all processes; torch's own SyncBatchNorm does not run on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def batch_norm_over_processes(feature: Tensor, norm: nn.BatchNorm1d, group: dist.ProcessGroup | None) -> Tensor:
    """Batch norm in training, with mean and variance of the voxels of every process of a group.

    Each process gives the features of its own voxels, as many as it has. Running statistics become the same on all.
    Gradients of weight and bias are those of the process's own voxels: average or sum them over processes like any
    other parameter's. Every process must take part, in forward and backward.

    Args:
        feature: [N, C].
        norm: parameters and running statistics.
        group: the processes; None for all.

    Returns:
        [N, C], the features' dtype.
    """
    # Statistics are taken in float32 at least; under autocast features may be bfloat16.
    full = feature.float() if feature.dtype in (torch.bfloat16, torch.float16) else feature
    result, mean, variance, count = _Norm.apply(full, norm.weight, norm.bias, norm.eps, group)
    with torch.no_grad():
        if norm.running_mean is not None and norm.running_var is not None:
            momentum = norm.momentum if norm.momentum is not None else 0.1
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            unbiased = variance * (count / (count - 1))
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
    return result.to(feature.dtype)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, feature: Tensor, weight: Tensor, bias: Tensor, eps: float, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count, mean, squares = _moments(feature, group)
        variance = squares / count
        scale = torch.rsqrt(variance + eps)
        normal = (feature - mean) * scale
        ctx.save_for_backward(normal, scale, weight, count)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, count)
        return normal * weight + bias, mean, variance, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        normal, scale, weight, count = ctx.saved_tensors
        bias_gradient = gradient.sum(0)
        weight_gradient = (gradient * normal).sum(0)
        sums = torch.stack((bias_gradient, weight_gradient))
        dist.all_reduce(sums, group=ctx.group)
        mean, along = sums / count
        return weight * scale * (gradient - mean - normal * along), weight_gradient, bias_gradient, None, None


def _moments(feature: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Number of voxels, mean [C] and sum of squared deviations [C] over the processes.

    Deviations are from each process's own mean and merged pairwise in the order of ranks, so nothing cancels and every
    process has the same bits.
    """
    mean = feature.mean(0) if len(feature) else feature.new_zeros(feature.shape[1])
    squares = (feature - mean).square().sum(0)
    own = torch.cat((feature.new_tensor([float(len(feature))]), mean, squares))
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    channels = feature.shape[1]
    count, mean, squares = parts[0][:1], parts[0][1 : channels + 1], parts[0][channels + 1 :]
    for part in parts[1:]:
        total = count + part[:1]
        shift = part[1 : channels + 1] - mean
        mean = mean + shift * (part[:1] / total)
        squares = squares + part[channels + 1 :] + shift.square() * (count * part[:1] / total)
        count = total
    return count, mean, squares
