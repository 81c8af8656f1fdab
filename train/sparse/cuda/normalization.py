"""Batch norm with the shortcut and the ReLU after it, as launches of :mod:`.norm_kernels`; over processes too."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import triton
from torch import Tensor, nn

from . import norm_kernels as kernels
from .tiles import NORM_COLUMNS, NORM_ROWS, NORM_RUN


def norm_add_relu(
    feature: Tensor, norm: nn.BatchNorm1d, group: dist.ProcessGroup | None, shortcut: Tensor | None, relu: bool
) -> Tensor | None:
    """See :func:`olivine.train.sparse.normalization.norm_add_relu`; None where the kernels do not suit the case."""
    if not _suits(feature, norm) or not (shortcut is None or shortcut.dtype == feature.dtype):
        return None
    with torch.cuda.device_of(feature):
        return _norm_add_relu(feature, norm, group, shortcut, relu)


def _norm_add_relu(
    feature: Tensor, norm: nn.BatchNorm1d, group: dist.ProcessGroup | None, shortcut: Tensor | None, relu: bool
) -> Tensor | None:
    feature = feature.contiguous()
    shortcut = None if shortcut is None else shortcut.contiguous()
    if not norm.training:
        if torch.is_grad_enabled():
            return None
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        moments = torch.stack((torch.ones_like(mean), mean, torch.zeros_like(mean), variance))
        return _normalize(feature, shortcut, moments, norm.weight, norm.bias, norm.eps, relu)
    group = None if group is None or dist.get_world_size(group) == 1 else group
    if group is None and len(feature) < 2:
        return None
    result: Tensor = _NormAddRelu.apply(feature, norm.weight, norm.bias, shortcut, norm, relu, group)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1
    return result


def _suits(feature: Tensor, norm: nn.BatchNorm1d) -> bool:
    return (
        feature.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and norm.affine
        and norm.weight.dtype == torch.float32
        and norm.momentum is not None
        and norm.track_running_stats
        and len(feature) > 0
    )


class _NormAddRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        feature: Tensor,
        weight: Tensor,
        bias: Tensor,
        shortcut: Tensor | None,
        norm: nn.BatchNorm1d,
        relu: bool,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        part = _block_moments(feature)
        if group is not None:
            own = _merge(part, None)
            part = torch.empty(dist.get_world_size(group), *own.shape, dtype=own.dtype, device=own.device)
            dist.all_gather_into_tensor(part.flatten(0, 1), own, group=group)
        moments = _merge(part, norm)
        out = _normalize(feature, shortcut, moments, weight, bias, norm.eps, relu)
        ctx.save_for_backward(feature, out if relu else feature, moments, weight)
        ctx.rest = norm.eps, relu, shortcut is not None, group
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        feature, out, moments, weight = ctx.saved_tensors
        eps, relu, add, group = ctx.rest
        gradient = gradient.contiguous()
        rows, channels = feature.shape
        blocks = triton.cdiv(rows, NORM_RUN)
        part = torch.empty(blocks, 2, channels, dtype=torch.float32, device=feature.device)
        kernels.gradient_sums[(blocks, triton.cdiv(channels, NORM_COLUMNS))](
            feature, out, gradient, moments, part, rows, eps,
            RELU=relu, CHANNELS=channels, RUN=NORM_RUN, ROWS=NORM_ROWS, COLUMNS=NORM_COLUMNS,
        )  # fmt: skip
        own = part.sum(0)
        sums = own
        if group is not None:
            sums = own.clone()
            dist.all_reduce(sums, group=group)
        of_feature = torch.empty(feature.shape, dtype=feature.dtype, device=feature.device)
        of_shortcut = torch.empty(feature.shape, dtype=feature.dtype, device=feature.device) if add else None
        kernels.gradients[(triton.cdiv(rows, NORM_ROWS), triton.cdiv(channels, NORM_COLUMNS))](
            feature, out, gradient, moments, sums, weight, of_feature, of_feature if of_shortcut is None else of_shortcut,
            rows, eps, ADD=add, RELU=relu, CHANNELS=channels, ROWS=NORM_ROWS, COLUMNS=NORM_COLUMNS,
        )  # fmt: skip
        return of_feature, own[1], own[0], of_shortcut, None, None, None


def _block_moments(feature: Tensor) -> Tensor:
    rows, channels = feature.shape
    blocks = triton.cdiv(rows, NORM_RUN)
    part = torch.empty(blocks, 4, channels, dtype=torch.float32, device=feature.device)
    kernels.block_moments[(blocks, triton.cdiv(channels, NORM_COLUMNS))](
        feature, part, rows, CHANNELS=channels, RUN=NORM_RUN, ROWS=NORM_ROWS, COLUMNS=NORM_COLUMNS
    )
    return part


def _merge(part: Tensor, norm: nn.BatchNorm1d | None) -> Tensor:
    """The moments [4, C] of all parts [P, 4, C]; with a norm, its running statistics take a step too."""
    channels = part.shape[2]
    moments = torch.empty(4, channels, dtype=torch.float32, device=part.device)
    update = norm is not None
    mean, variance = (norm.running_mean, norm.running_var) if norm is not None else (moments, moments)
    kernels.merge_moments[(triton.cdiv(channels, NORM_COLUMNS),)](
        part, moments, mean, variance, len(part), 0.0 if norm is None else norm.momentum,
        UPDATE=update, CHANNELS=channels, ROWS=NORM_ROWS, COLUMNS=NORM_COLUMNS,
    )  # fmt: skip
    return moments


def _normalize(
    feature: Tensor, shortcut: Tensor | None, moments: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
) -> Tensor:
    rows, channels = feature.shape
    out = torch.empty(feature.shape, dtype=feature.dtype, device=feature.device)
    kernels.normalize[(triton.cdiv(rows, NORM_ROWS), triton.cdiv(channels, NORM_COLUMNS))](
        feature, feature if shortcut is None else shortcut, out, moments, weight, bias, rows, eps,
        ADD=shortcut is not None, RELU=relu, CHANNELS=channels, ROWS=NORM_ROWS, COLUMNS=NORM_COLUMNS,
    )  # fmt: skip
    return out
