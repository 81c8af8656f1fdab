"""Batch norm with the shortcut and the ReLU that follow it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import loops, operations


def norm_add_relu(
    feature: Tensor,
    norm: nn.BatchNorm1d,
    *,
    group: dist.ProcessGroup | None = None,
    shortcut: Tensor | None = None,
    relu: bool = True,
    engine: str = "torch",
) -> Tensor:
    """max(0, batch norm of ``feature`` + ``shortcut``), or without the maximum: [N, C], [N, C] -> [N, C].

    Args:
        feature: of the voxels.
        norm: parameters and running statistics.
        group: processes whose voxels are normalised together (see :func:`~.operations.batch_norm`).
        shortcut: added after the norm; None for nothing.
        relu: whether a ReLU follows.
        engine: that the feature's tensor is computed with.

    Raises:
        OlivineError: training on a single voxel, which has no variance.
    """
    if engine == "triton":
        from .cuda.normalization import norm_add_relu as by_kernels

        fused = by_kernels(feature, norm, group, shortcut, relu)
        if fused is not None:
            return fused
    compiled = loops.norm_add_relu(feature, norm, group, shortcut, relu)
    if compiled is not None:
        return compiled
    normed = operations.batch_norm(feature, norm, group)
    normed = normed if shortcut is None else normed + shortcut
    return torch.relu(normed) if relu else normed
