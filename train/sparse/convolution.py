"""The convolution as a function of arrays and a kernel map, with its gradients.

It gathers its pairs' input rows cell after cell, multiplies each cell's block by its weight, and sums
for each output row the products that end there, in a fixed order. The backward pass is the same over the transposed
map, with the gathered gradients used once more for the weights; nothing but input and weight is kept in between.
Where the compiled loops of a CPU apply (:mod:`.loops`), they compute the same in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common import OlivineError
from . import loops
from .coordinates import describe
from .kernel_map import KernelMap


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
        compiled = loops.convolve(feature, kernel, kernel_map)
        if compiled is not None:
            return compiled
        product = feature.new_empty(len(kernel_map.in_index), kernel.shape[2])
        rows = feature.index_select(0, kernel_map.gathered[0])
        for cell, start, end, row in kernel_map.groups:
            block = feature if row < 0 else rows[row : row + end - start]
            torch.mm(block, kernel[cell], out=product[start:end])
        return _sum_pairs(product, kernel_map)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feature, kernel = ctx.saved_tensors
        return (*_gradients(feature, kernel, gradient.contiguous(), ctx.kernel_map, ctx.needs_input_grad), None)


def _gradients(
    feature: Tensor, kernel: Tensor, gradient: Tensor, kernel_map: KernelMap, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    compiled = loops.convolution_gradients(feature, kernel, gradient, kernel_map, wanted)
    if compiled is not None:
        return compiled
    back = kernel_map.transposed
    # In the transposed map a pair goes from the output's row to the input's.
    out_index, in_index = back.gathered
    rows = gradient.index_select(0, out_index)
    product = feature.new_empty(len(back.in_index), kernel.shape[1]) if wanted[0] else None
    kernel_gradient = torch.zeros_like(kernel) if wanted[1] else None
    inputs = feature.index_select(0, in_index) if wanted[1] else None
    for cell, start, end, row in back.groups:
        along = slice(row, row + end - start)
        block = gradient if row < 0 else rows[along]
        if product is not None:
            torch.mm(block, kernel[cell].t(), out=product[start:end])
        if inputs is not None and kernel_gradient is not None:
            torch.mm((feature if row < 0 else inputs[along]).t(), block, out=kernel_gradient[cell])
    return None if product is None else _sum_pairs(product, back), kernel_gradient


def _sum_pairs(product: Tensor, kernel_map: KernelMap) -> Tensor:
    """For each output row the sum of its pairs' products, in the order of the cells: [P, C] -> [M, C]."""
    position, end = kernel_map.pairs_of_output
    if len(position) == 0:
        return product.new_zeros(kernel_map.out_count, product.shape[1])
    return F.embedding_bag(position, product, end, mode="sum", include_last_offset=True)
