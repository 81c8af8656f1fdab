"""Batch norm with the shortcut and the rectifier that follow it, in two passes over the voxels each way.

The library's own norm, sum and rectifier pass over the features one after the other, and each keeps an array for the
way back; here the norm's input and the rectifier's output are kept. With running statistics and no way back it is one
pass. CPUs and float32 only; everything else takes the library's functions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import fused, operations
from .fused import LANES
from .memory import keeper
from .threads import in_threads


def norm_add_relu(
    feature: Tensor,
    norm: nn.BatchNorm1d,
    *,
    group: dist.ProcessGroup | None = None,
    shortcut: Tensor | None = None,
    rectify: bool = True,
) -> Tensor:
    """max(0, batch norm of ``feature`` + ``shortcut``), or without the maximum: [N, C], [N, C] -> [N, C].

    Args:
        feature: of the voxels.
        norm: parameters and running statistics.
        group: processes whose voxels are normalised together (see :func:`~.operations.batch_norm`).
        shortcut: added after the norm; None for nothing.
        rectify: whether numbers below zero become zero.

    Raises:
        OlivineError: training on a single voxel, which has no variance.
    """
    suits = _suits(feature, norm) and (shortcut is None or shortcut.dtype == feature.dtype)
    if suits and not norm.training and not torch.is_grad_enabled():
        return _with_running_statistics(feature, norm, shortcut, rectify)
    if suits and norm.training and feature.shape[0] > 1 and (group is None or dist.get_world_size(group) == 1):
        assert norm.momentum is not None
        result, mean, variance = _NormAddRelu.apply(feature, norm.weight, norm.bias, shortcut, norm.eps, rectify)
        with torch.no_grad():
            count = feature.shape[0]
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked += 1
        normed: Tensor = result
        return normed
    normed = operations.batch_norm(feature, norm, group)
    normed = normed if shortcut is None else normed + shortcut
    return torch.relu(normed) if rectify else normed


def _suits(feature: Tensor, norm: nn.BatchNorm1d) -> bool:
    return (
        feature.dtype == norm.weight.dtype == torch.float32
        and feature.device.type == "cpu"
        and feature.shape[1] % LANES == 0
        and norm.momentum is not None
        and norm.track_running_stats
        and fused.available()
    )


def _with_running_statistics(feature: Tensor, norm: nn.BatchNorm1d, shortcut: Tensor | None, rectify: bool) -> Tensor:
    assert norm.running_mean is not None and norm.running_var is not None
    weight, bias = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    scale = weight / np.sqrt(norm.running_var.numpy().astype(np.float64) + norm.eps)
    return _normalize(feature.contiguous(), shortcut, norm.running_mean.numpy(), scale, bias, rectify)


def _normalize(
    feature: Tensor, shortcut: Tensor | None, center: np.ndarray, scale: np.ndarray, offset: np.ndarray, rectify: bool
) -> Tensor:
    """max(0, (feature - center) scale + offset + shortcut), or without the maximum."""
    from .norm_loops import normalize

    channels = feature.shape[1]
    added = feature.new_empty(0, channels) if shortcut is None else shortcut.contiguous()
    out = keeper.take(*feature.shape)
    constants = _constants(center, scale, offset, np.full(channels, _floor(rectify)))
    _in_channels(normalize, channels, (feature.numpy(), added.numpy(), constants), (out.numpy(),))
    return out


def _floor(rectify: bool) -> float:
    return 0 if rectify else -np.inf


def _in_channels(loop: Any, channels: int, before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    """Call ``loop(*before, first, last, *after)`` for a range of channels in each thread."""
    blocks = channels // LANES
    threads = min(torch.get_num_threads(), blocks)
    bounds = [LANES * (blocks * t // threads) for t in range(threads + 1)]
    in_threads(loop, [(*before, first, last, *after) for first, last in pairwise(bounds)])


def _constants(*vectors: np.ndarray) -> np.ndarray:
    """Vectors [C] as float32 [number of vectors, C]."""
    return np.stack([vector.astype(np.float32) for vector in vectors])


class _NormAddRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, feature: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, rectify: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        from .norm_loops import moments

        feature = feature.contiguous()
        count, channels = feature.shape
        mean, squares = np.empty(channels), np.empty(channels)
        _in_channels(moments, channels, (feature.numpy(),), (mean, squares))
        variance = squares / count
        deviation = 1 / np.sqrt(variance + eps)
        center, scale = mean.astype(np.float32), weight.numpy() * deviation
        # The mean's rounding to float32 is put back with the bias.
        rounding = center - mean
        offset = bias.numpy() + rounding * scale
        out = _normalize(feature, shortcut, center, scale, offset, rectify)
        ctx.save_for_backward(feature, weight, out)
        ctx.mean, ctx.rounding, ctx.deviation = center, rounding, deviation
        ctx.floor = np.full(channels, _floor(rectify))
        mean_tensor, variance_tensor = torch.from_numpy(mean).float(), torch.from_numpy(variance).float()
        ctx.mark_non_differentiable(mean_tensor, variance_tensor)
        return out, mean_tensor, variance_tensor

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        from .norm_loops import gradient_sums, gradients

        feature, weight, out = ctx.saved_tensors
        count, channels = feature.shape
        arrays = (feature.numpy(), out.numpy(), gradient.contiguous().numpy())
        total, along = np.empty(channels), np.empty(channels)
        _in_channels(gradient_sums, channels, (*arrays, _constants(ctx.mean, ctx.floor)), (total, along))
        along += ctx.rounding * total
        scale = weight.numpy() * ctx.deviation
        slope = scale * ctx.deviation**2 * along / count
        constants = _constants(ctx.mean, ctx.floor, scale, scale * total / count + slope * ctx.rounding, slope)
        result = keeper.take(count, channels)
        shortcut = keeper.take(count, channels) if ctx.needs_input_grad[3] else feature.new_empty(0, channels)
        _in_channels(gradients, channels, (*arrays, constants), (result.numpy(), shortcut.numpy()))
        return (
            result,
            torch.from_numpy(along * ctx.deviation).float(),
            torch.from_numpy(total).float(),
            shortcut if ctx.needs_input_grad[3] else None,
            None,
            None,
        )
