"""The convolution on CPUs with AVX-512 or AVX2: gather, product and sum in one pass, compiled at its first use.

The general path (:mod:`olivine.train.sparse.convolution`) copies the rows of all pairs before its matrix products and the products after
them. Here a tile of eight pairs is read from where the rows are, multiplied in registers and added where the output
is, so nothing of the size of the pairs is ever stored. Each output row belongs to one thread and meets its cells in
their order: results repeat bit for bit, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..kernel_map import KernelMap
from .buffer_pool import pool
from .threads import in_threads

#: Widths must be multiples of it.
LANES = 16
# Work items per thread (2, for load balance), and pairs of each cell from which on a work item is worth preparing the
# cell's weights for it.
_SHARES, _PAIRS = 2, 256


def suits(feature: Tensor, kernel: Tensor, kernel_map: KernelMap) -> bool:
    """Whether a convolution can take this path: float32 on a CPU, sorted rows, widths that are multiples of 16."""
    return (
        kernel_map.ascending
        and feature.dtype == torch.float32
        and feature.device.type == "cpu"
        and kernel.shape[1] % LANES == 0
        and kernel.shape[2] % LANES == 0
    )


def gradients(
    feature: Tensor, kernel: Tensor, gradient: Tensor, kernel_map: KernelMap, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`convolve` for feature and kernel, those that are wanted; ``gradient`` is [M, C_out]."""
    return (
        convolve(gradient, kernel, kernel_map.transposed, transposed=True) if wanted[0] else None,
        weight_gradient(feature, gradient, kernel, kernel_map) if wanted[1] else None,
    )


def convolve(feature: Tensor, kernel: Tensor, kernel_map: KernelMap, transposed: bool = False) -> Tensor:
    """Sum over the cells' pairs of feature[in] @ kernel[cell]: [N, C_in], [K, C_in, C_out] -> [M, C_out].

    Where ``transposed``, the kernel is [K, C_out, C_in] and each cell's matrix is transposed (the backward pass).
    """
    from .convolution_loops import outputs

    columns = kernel.shape[1 if transposed else 2]
    in_index, out_index, groups, fresh = _tables(kernel_map)
    bounds = list(pairwise(_balanced_rows(kernel_map, len(groups))))
    rows = kernel_map.out_count
    out = pool.empty(rows + len(bounds), columns)
    if fresh < 0:  # otherwise the group of all rows in their order comes first and writes
        out.zero_()
    arrays = (feature.numpy(), kernel.numpy(), transposed, in_index, out_index, groups, fresh)
    in_threads(outputs, [(*arrays, low, high, rows + n, out.numpy()) for n, (low, high) in enumerate(bounds)])
    return out[:rows]


def weight_gradient(feature: Tensor, gradient: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Sum over each cell's pairs of feature[in]^T gradient[out]: the gradient of ``kernel`` [K, C_in, C_out]."""
    from .convolution_loops import weights

    in_index, out_index, groups, _ = _tables(kernel_map)
    # Cells without pairs have a gradient of zero.
    out = torch.empty_like(kernel) if len(groups) == len(kernel) else torch.zeros_like(kernel)
    arrays = (feature.numpy(), gradient.numpy(), in_index, out_index)
    shares = _balanced_cells(groups, kernel.shape[1])
    in_threads(weights, [(*arrays, share, low, high, out.numpy()) for share, low, high in shares])
    return out


def _tables(kernel_map: KernelMap) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Input rows and output rows of all pairs, groups [G, 3] with the identity's first, and its place (0, or -1)."""
    groups = sorted(kernel_map.groups, key=lambda group: group[3] >= 0)
    table = np.array([group[:3] for group in groups], np.int64).reshape(-1, 3)
    fresh = 0 if groups and groups[0][3] < 0 else -1
    return kernel_map.in_index.numpy(), kernel_map.out_index.numpy(), table, fresh


def _balanced_rows(kernel_map: KernelMap, groups: int) -> list[int]:
    """Bounds of ranges of output rows with about as many pairs each: some for each thread, unless they are few."""
    threads, pairs = torch.get_num_threads(), len(kernel_map.in_index)
    if threads == 1:
        return [0, kernel_map.out_count]
    parts = max(threads, min(_SHARES * threads, pairs // (_PAIRS * max(groups, 1))))
    share = torch.arange(1, parts) * (pairs // parts)
    return [0, *torch.searchsorted(kernel_map.pair_end, share).tolist(), kernel_map.out_count]


def _balanced_cells(groups: np.ndarray, channels: int) -> list[tuple[np.ndarray, int, int]]:
    """Groups [G, 3] and input channels (first, end) of each call, the long ones first."""
    threads = torch.get_num_threads()
    if threads == 1:
        return [(groups, 0, channels)]
    blocks = channels // LANES
    pairs = groups[:, 2] - groups[:, 1]
    most = max(int(pairs.sum()) // (_SHARES * threads), 1)
    calls, waiting, waiting_pairs = [], [], 0
    for g in np.argsort(-pairs, kind="stable"):
        parts = min(-(-int(pairs[g]) // (2 * most)), blocks)
        if parts > 1:
            bounds = [LANES * (blocks * t // parts) for t in range(parts + 1)]
            calls += [(groups[g : g + 1], low, high) for low, high in pairwise(bounds)]
            continue
        waiting.append(g)
        waiting_pairs += int(pairs[g])
        if waiting_pairs >= most:
            calls.append((groups[waiting], 0, channels))
            waiting, waiting_pairs = [], 0
    return [*calls, (groups[waiting], 0, channels)] if waiting else calls
