"""What layers compute, as functions of arrays and kernel maps.

The convolution gathers its pairs' input rows cell after cell, multiplies each cell's block by its weight, and sums
for each output row the products that end there, in a fixed order. The backward pass is the same over the transposed
map, with the gathered gradients used once more for the weights; nothing but input and weight is kept in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...common import OlivineError
from .coordinates import describe
from .kernel_map import KernelMap
from .tensor import SparseTensor


def convolve(feature: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Sparse convolution: out[o] = sum over cells k and pairs (i, o) of k of feature[i] @ kernel[k].

    Under autocast both are cast to its dtype (float64 is left alone), as torch does for matrix products.

    Args:
        feature: [N, C_in].
        kernel: [K, C_in, C_out].
        kernel_map: pairs between N input and M output rows.

    Returns:
        [M, C_out].

    Raises:
        OlivineError: shapes, dtypes or devices that do not go together.
    """
    feature, kernel = matching(feature, kernel)
    if feature.shape[0] != kernel_map.in_count or kernel.shape[0] != len(kernel_map.counts):
        raise OlivineError(
            f"the map is for {kernel_map.in_count} voxels and {len(kernel_map.counts)} cells, the kernel "
            f"{describe(kernel)}",
            where=f"feature {describe(feature)}",
        )
    result: Tensor = _Convolution.apply(feature.contiguous(), kernel.contiguous(), kernel_map)
    return result


def matching(feature: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Both, cast to autocast's dtype where that is on (float64 never is).

    Raises:
        OlivineError: channels, dtypes or devices that do not go together.
    """
    device = feature.device.type
    if torch.is_autocast_enabled(device) and torch.float64 not in (feature.dtype, kernel.dtype):
        dtype = torch.get_autocast_dtype(device)
        feature, kernel = feature.to(dtype), kernel.to(dtype)
    if feature.shape[1] != kernel.shape[-2]:
        raise OlivineError(f"does not fit the kernel {describe(kernel)}", where=f"feature {describe(feature)}")
    if feature.dtype != kernel.dtype or feature.device != kernel.device:
        raise OlivineError(
            f"the kernel is {describe(kernel)}",
            where=f"feature {describe(feature)}",
            remedy="give tensor and network one dtype and device",
        )
    return feature, kernel


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(feature, kernel)
        ctx.kernel_map = kernel_map
        product = feature.new_empty(len(kernel_map.in_index), kernel.shape[2])
        gathered = None
        for cell, start, end, identity in kernel_map.groups():
            if identity:
                rows = feature
            else:
                if gathered is None:
                    gathered = feature.index_select(0, kernel_map.in_index)
                rows = gathered[start:end]
            torch.mm(rows, kernel[cell], out=product[start:end])
        return _sum_pairs(product, kernel_map)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feature, kernel = ctx.saved_tensors
        return (*_gradients(feature, kernel, gradient.contiguous(), ctx.kernel_map, ctx.needs_input_grad), None)


def _gradients(
    feature: Tensor, kernel: Tensor, gradient: Tensor, kernel_map: KernelMap, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    back = kernel_map.transposed
    rows = gradient.index_select(0, back.in_index)
    product = feature.new_empty(len(rows), kernel.shape[1]) if wanted[0] else None
    kernel_gradient = torch.zeros_like(kernel) if wanted[1] else None
    # In the transposed map a pair goes from the output's row to the input's.
    inputs = feature.index_select(0, back.out_index) if wanted[1] else None
    for cell, start, end, _ in back.groups():
        if product is not None:
            torch.mm(rows[start:end], kernel[cell].t(), out=product[start:end])
        if inputs is not None and kernel_gradient is not None:
            torch.mm(inputs[start:end].t(), rows[start:end], out=kernel_gradient[cell])
    return None if product is None else _sum_pairs(product, back), kernel_gradient


def _sum_pairs(product: Tensor, kernel_map: KernelMap) -> Tensor:
    """For each output row the sum of its pairs' products, in the order of the cells: [P, C] -> [M, C]."""
    position, end = kernel_map.pairs_of_output
    if len(position) == 0:
        return product.new_zeros(kernel_map.out_count, product.shape[1])
    return F.embedding_bag(position, product, end, mode="sum", include_last_offset=True)


def batch_norm(feature: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """Batch norm over the voxels of a batch, with the parameters and running statistics of ``norm``: [N, C] -> [N, C].

    Raises:
        OlivineError: training on a single voxel, which has no variance.
    """
    if norm.training and feature.shape[0] < 2:
        raise OlivineError(
            "batch norm cannot train on a single voxel",
            where=f"feature {describe(feature)}",
            remedy="leave clouds of a few points out of the batch",
        )
    result: Tensor = norm(feature)
    return result


def concatenate(*tensors: SparseTensor) -> SparseTensor:
    """Features side by side: tensors on the same voxels, [N, C1], [N, C2], … -> [N, C1 + C2 + …].

    Raises:
        OlivineError: tensors of different strides or on different voxels.
    """
    first = tensors[0]
    for other in tensors[1:]:
        if other.stride != first.stride:
            raise OlivineError(f"strides differ: {first!r} and {other!r}", where="concatenate")
        if other.voxels is not first.voxels:
            raise OlivineError(
                f"the tensors are not on the same voxels: {first!r} and {other!r}",
                where="concatenate",
                remedy="concatenate tensors that descend from one input",
            )
    return first.replace(torch.cat([tensor.feature for tensor in tensors], 1))


def to_dense(tensor: SparseTensor, shape: tuple[int, int, int] | None = None) -> Tensor:
    """The features on a dense grid, zero where there is no voxel.

    Args:
        tensor: coordinates from 0 in units of its stride.
        shape: the grid's size along x, y, z; by default the tensor's own.

    Returns:
        [B, C, X, Y, Z].

    Raises:
        OlivineError: no shape is known, or a voxel lies outside it.
    """
    size = shape or tensor.shape
    if size is None:
        raise OlivineError("a dense grid needs a shape", where=repr(tensor), remedy="pass shape=(x, y, z)")
    place = tensor.coordinate.long()
    if tensor.shape is None:
        place = place // torch.tensor((1, *tensor.stride), device=place.device)
    limit = torch.tensor(size, device=place.device)
    if bool((place[:, 1:] < 0).any()) or bool((place[:, 1:] >= limit).any()):
        raise OlivineError(f"voxels outside the grid of {size}", where=repr(tensor))
    cell = ((place[:, 0] * size[0] + place[:, 1]) * size[1] + place[:, 2]) * size[2] + place[:, 3]
    cells = tensor.batch_size * size[0] * size[1] * size[2]
    # index_copy repeats bit for bit in both directions: each row has a cell of its own.
    grid = tensor.feature.new_zeros(cells, tensor.feature.shape[1]).index_copy(0, cell, tensor.feature)
    return grid.view(tensor.batch_size, *size, -1).permute(0, 4, 1, 2, 3)
