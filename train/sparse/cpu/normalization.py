"""Batch norm with the shortcut and the ReLU that follow it, in two passes over the voxels each way.

The library's own norm, sum and ReLU pass over the features one after the other, and each keeps an array for the
backward pass; here the norm's input and the ReLU's output are kept. With running statistics and no gradient it is one
pass.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .buffer_pool import pool
from .convolution import LANES
from .threads import in_threads


def norm_add_relu(
    feature: Tensor, norm: nn.BatchNorm1d, group: dist.ProcessGroup | None, shortcut: Tensor | None, relu: bool
) -> Tensor | None:
    """See :func:`olivine.train.sparse.normalization.norm_add_relu`; None where these loops do not suit the case."""
    if not _suits(feature, norm) or not (shortcut is None or shortcut.dtype == feature.dtype):
        return None
    if not norm.training:
        return None if torch.is_grad_enabled() else _with_running_statistics(feature, norm, shortcut, relu)
    if feature.shape[0] < 2 or not (group is None or dist.get_world_size(group) == 1):
        return None
    assert norm.momentum is not None and norm.running_mean is not None and norm.running_var is not None
    result, mean, variance = _NormAddRelu.apply(feature, norm.weight, norm.bias, shortcut, norm.eps, relu)
    with torch.no_grad():
        count = feature.shape[0]
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked += 1
    normed: Tensor = result
    return normed


def _suits(feature: Tensor, norm: nn.BatchNorm1d) -> bool:
    return (
        feature.dtype == norm.weight.dtype == torch.float32
        and feature.device.type == "cpu"
        and feature.shape[1] % LANES == 0
        and norm.momentum is not None
        and norm.track_running_stats
    )


def _with_running_statistics(feature: Tensor, norm: nn.BatchNorm1d, shortcut: Tensor | None, relu: bool) -> Tensor:
    assert norm.running_mean is not None and norm.running_var is not None
    weight, bias = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    scale = weight / np.sqrt(norm.running_var.numpy().astype(np.float64) + norm.eps)
    return _normalize(feature.contiguous(), shortcut, norm.running_mean.numpy(), scale, bias, relu)


def _normalize(
    feature: Tensor, shortcut: Tensor | None, center: np.ndarray, scale: np.ndarray, offset: np.ndarray, relu: bool
) -> Tensor:
    """max(0, (feature - center) scale + offset + shortcut), or without the maximum."""
    from .norm_loops import normalize

    channels = feature.shape[1]
    added = feature.new_empty(0, channels) if shortcut is None else shortcut.contiguous()
    out = pool.empty(*feature.shape)
    constants = _constants(center, scale, offset, np.full(channels, _floor(relu)))
    _in_channels(normalize, channels, (feature.numpy(), added.numpy(), constants), (out.numpy(),))
    return out


def _floor(relu: bool) -> float:
    return 0 if relu else -np.inf


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
        ctx: Any, feature: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, eps: float, relu: bool
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
        out = _normalize(feature, shortcut, center, scale, offset, relu)
        ctx.save_for_backward(feature, weight, out)
        ctx.mean, ctx.rounding, ctx.deviation = center, rounding, deviation
        ctx.floor = np.full(channels, _floor(relu))
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
        result = pool.empty(count, channels)
        shortcut = pool.empty(count, channels) if ctx.needs_input_grad[3] else feature.new_empty(0, channels)
        _in_channels(gradients, channels, (*arrays, constants), (result.numpy(), shortcut.numpy()))
        return (
            result,
            torch.from_numpy(along * ctx.deviation).float(),
            torch.from_numpy(total).float(),
            shortcut if ctx.needs_input_grad[3] else None,
            None,
            None,
        )
