"""The convolution on a :class:`~.maps.CellMap`, with its gradients, as launches of :mod:`.convolution_kernels`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from . import convolution_kernels as kernels
from .maps import CellMap
from .tiles import SUM_BLOCK, Product, architecture, convolution_tile, product_of, weights_tile

#: Channels of a step of a product are multiples of this: the depth of a tensor core's smallest product of 16-bit factors.
LANES = 16
#: Pairs that a program of the weights' gradient sums at least, and shares that the pairs of a cell have at most.
_SHARE, _SHARES = 4096, 16


def suits(feature: Tensor, kernel: Tensor, cells: int) -> bool:
    """Whether the kernels compute a case; the general path computes float64 and kernels of more cells than a mask has bits."""
    from .maps import MAX_CELLS

    return feature.dtype in (torch.float32, torch.bfloat16, torch.float16) and cells <= MAX_CELLS and len(feature) > 0


def convolve(feature: Tensor, kernel: Tensor, cell_map: CellMap) -> Tensor:
    """out[o] = sum over cells k and pairs (i, o) of k of feature[i] @ kernel[k], with its gradients.

    Args:
        feature: [N, C_in], float32, bfloat16 or float16; products of float32 as :mod:`..precision` says.
        kernel: [K, C_in, C_out], the same dtype.

    Returns:
        [M, C_out].
    """
    product = product_of(feature.dtype)
    result: Tensor = _Convolution.apply(feature.contiguous(), kernel.contiguous(), cell_map, product)
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feature: Tensor, kernel: Tensor, cell_map: CellMap, product: Product) -> Tensor:
        ctx.save_for_backward(feature, kernel)
        ctx.cell_map, ctx.product = cell_map, product
        if feature.shape[1] < LANES:
            return _gathered(feature, cell_map) @ _as_matrix(kernel)
        return _convolve(feature, kernel, cell_map, product, back=False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        feature, kernel = ctx.saved_tensors
        cell_map, product = ctx.cell_map, ctx.product
        gradient = gradient.contiguous()
        of_feature = _convolve(gradient, kernel, cell_map, product, back=True) if ctx.needs_input_grad[0] else None
        of_kernel = None
        if ctx.needs_input_grad[1] and feature.shape[1] < LANES:
            of_kernel = (_gathered(feature, cell_map).t() @ gradient)[: kernel[:, :, 0].numel()].view(kernel.shape)
        elif ctx.needs_input_grad[1]:
            of_kernel = _weight_gradient(feature, gradient, cell_map, product)
        return of_feature, of_kernel, None, None


def _convolve(feature: Tensor, kernel: Tensor, cell_map: CellMap, product: Product, *, back: bool) -> Tensor:
    """Forward, or from the gradient of the output to the input's: by the map's way back and the weights transposed."""
    way = cell_map.back if back else cell_map
    outputs = kernel.shape[1 if back else 2]
    padding = -feature.shape[1] % LANES
    if padding:
        feature = F.pad(feature, (0, padding))
        kernel = F.pad(kernel, (0, padding) if back else (0, 0, 0, padding))
    transposed = back
    if not back and product in ("tf32", "tf32x3") and architecture(feature.device) >= 90:
        # The tensor cores of these read TF32 along the sum alone, so the weights are laid out that way, once.
        kernel, transposed = kernel.transpose(1, 2).contiguous(), True
    tile = convolution_tile(feature.device, product, feature.shape[1], outputs)
    blocks = way.blocks(tile.rows)
    out = torch.empty(way.rows_out, outputs, dtype=feature.dtype, device=feature.device)
    kernels.convolve[(triton.cdiv(way.rows_out, tile.rows), triton.cdiv(outputs, tile.columns))](
        feature, kernel, out, blocks.slots, blocks.cells, blocks.first, way.order, way.rows_out,
        INPUTS=feature.shape[1], OUTPUTS=outputs, MIRROR=way.cells - 1 if back and way.symmetric else -1,
        TRANSPOSED=transposed, PRECISION=_precision(product),
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


def _weight_gradient(feature: Tensor, gradient: Tensor, cell_map: CellMap, product: Product) -> Tensor:
    inputs, outputs, cells = feature.shape[1], gradient.shape[1], cell_map.cells
    tile = weights_tile(feature.device, product, inputs, outputs)
    # No cell has more pairs than there are output rows, so the shares are enough without knowing any cell's pairs.
    shares = min(_SHARES, triton.cdiv(cell_map.rows_out, _SHARE))
    share = triton.cdiv(cell_map.rows_out, shares)
    share = triton.cdiv(share, tile.depth) * tile.depth
    pair_in, pair_out = cell_map.pairs
    part = torch.empty(shares, cells, inputs, outputs, dtype=torch.float32, device=feature.device)
    tiles = triton.cdiv(inputs, tile.rows) * triton.cdiv(outputs, tile.columns)
    kernels.weight_gradient[(cells, shares, tiles)](
        feature, gradient, part, pair_in, pair_out, cell_map.pair_start, share,
        INPUTS=inputs, OUTPUTS=outputs, PRECISION=_precision(product),
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    out = torch.empty(cells, inputs, outputs, dtype=feature.dtype, device=feature.device)
    size = inputs * outputs
    kernels.add_shares[(cells, triton.cdiv(size, SUM_BLOCK))](
        part, out, cell_map.pair_start, share, cells, SIZE=size, BLOCK=SUM_BLOCK
    )
    return out


def _precision(product: Product) -> str:
    return "tf32" if product == "half" else product  # Triton wants one; 16-bit factors are multiplied as they are


def _gathered(feature: Tensor, cell_map: CellMap) -> Tensor:
    """For each output row the inputs of all cells beside each other, [M, K · C_in] with zeros up to a multiple of 16."""
    inputs, rows, columns = feature.shape[1], 64, 32
    width = triton.cdiv(cell_map.cells * inputs, LANES) * LANES
    out = torch.empty(cell_map.rows_out, width, dtype=feature.dtype, device=feature.device)
    kernels.gather_cells[(triton.cdiv(cell_map.rows_out, rows), triton.cdiv(width, columns))](
        feature, cell_map.table, out, cell_map.rows_out,
        INPUTS=inputs, CELLS=cell_map.cells, WIDTH=width, ROWS=rows, COLUMNS=columns,
    )  # fmt: skip
    return out


def _as_matrix(kernel: Tensor) -> Tensor:
    """[K, C_in, C_out] as :func:`_gathered` needs it."""
    matrix = kernel.flatten(0, 1)
    return F.pad(matrix, (0, 0, 0, -len(matrix) % LANES))
