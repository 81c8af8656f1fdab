"""The fixed table of tiles: how much of a product one program computes, by GPU, kind of product and width.

Nothing is tuned while a run starts, so a run starts at once and gives the same bits on the same kind of GPU. Every line is held by
a test that compiles it for its GPUs: no registers in memory, shared memory within the smallest limit of the architecture, tensor
cores used, and at least two shared-memory buffers, so that loads run beside products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..precision import float32_products

#: Kinds of product: 16-bit factors, or how float32 factors are multiplied. All are summed in float32.
Product = Literal["half", "tf32", "tf32x3", "ieee"]
PRODUCTS: tuple[Product, ...] = ("half", "tf32", "tf32x3", "ieee")


@dataclass(frozen=True)
class Tile:
    """What a program computes at a time: [rows, columns] of the result, over ``depth`` numbers of the sum in a step.

    Attributes:
        rows: of the output in a convolution; input channels in the weights' gradient.
        columns: output channels.
        depth: channels of one cell in a convolution; pairs in the weights' gradient.
        warps: of 32 threads.
        stages: Triton's ``num_stages``. As a product waits for its rows, which wait for their numbers, it takes 5 to
            have two or three buffers and 7 for three or four.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


_HALF_80 = {
    16: Tile(128, 16, 64, 4, 7),
    32: Tile(128, 32, 64, 4, 7),
    64: Tile(128, 64, 64, 4, 7),
    128: Tile(128, 128, 32, 8, 7),
}
_HALF_90 = {
    16: Tile(128, 16, 64, 4, 7),
    32: Tile(128, 32, 64, 4, 7),
    64: Tile(128, 64, 64, 4, 7),
    128: Tile(128, 128, 64, 8, 7),
}
_TF32_80 = {
    16: Tile(128, 16, 32, 4, 7),
    32: Tile(128, 32, 32, 4, 7),
    64: Tile(128, 64, 32, 4, 7),
    128: Tile(128, 128, 32, 8, 5),
}
_TF32_90 = {
    16: Tile(128, 16, 32, 4, 7),
    32: Tile(128, 32, 32, 4, 7),
    64: Tile(128, 64, 32, 4, 7),
    128: Tile(128, 128, 32, 8, 7),
}
_TF32X3 = {16: Tile(64, 16, 32, 4, 7), 32: Tile(64, 32, 32, 4, 7), 64: Tile(64, 64, 32, 4, 5)}
_IEEE = {16: Tile(64, 16, 16, 4, 5), 32: Tile(64, 32, 16, 4, 5), 64: Tile(64, 64, 16, 8, 5)}

#: Tiles of a convolution by architecture and product, and then by columns: the narrowest that the output's width fills.
CONVOLUTION: dict[tuple[int, Product], dict[int, Tile]] = {
    (80, "half"): _HALF_80,
    (80, "tf32"): _TF32_80,
    (80, "tf32x3"): _TF32X3,
    (80, "ieee"): _IEEE,
    (90, "half"): _HALF_90,
    (90, "tf32"): _TF32_90,
    (90, "tf32x3"): _TF32X3,
    (90, "ieee"): _IEEE,
    (100, "half"): _HALF_90,
    (100, "tf32"): _TF32_90,
    (100, "tf32x3"): _TF32X3,
    (100, "ieee"): _IEEE,
}

#: The largest tile of the weights' gradient; narrower layers take the part of it that they fill.
WEIGHTS: dict[tuple[int, Product], Tile] = {
    (80, "half"): Tile(128, 128, 64, 8, 5),
    (80, "tf32"): Tile(64, 64, 32, 4, 5),
    (80, "tf32x3"): Tile(64, 64, 32, 4, 5),
    (80, "ieee"): Tile(64, 64, 16, 8, 5),
    (90, "half"): Tile(128, 128, 64, 8, 5),
    (90, "tf32"): Tile(64, 64, 32, 4, 5),
    (90, "tf32x3"): Tile(64, 64, 32, 4, 5),
    (90, "ieee"): Tile(64, 64, 16, 8, 5),
    (100, "half"): Tile(128, 128, 64, 8, 5),
    (100, "tf32"): Tile(64, 64, 32, 4, 5),
    (100, "tf32x3"): Tile(64, 64, 32, 4, 5),
    (100, "ieee"): Tile(64, 64, 16, 8, 5),
}

#: Rows and columns of a program of the norm's kernels, and the rows of one that sums.
NORM_ROWS, NORM_COLUMNS, NORM_RUN = 64, 32, 1024
#: Numbers that a program adds up of all shares of a weight's gradient.
SUM_BLOCK = 1024
#: Rows of a program of the maps' kernels.
MAP_ROWS = 256


def architecture(device: torch.device) -> int:
    """Whose tiles a device takes: 80, 90 or 100. GPUs of desks (8.6, 8.9, 12.x) have the instructions of 8.0."""
    if device.type != "cuda":
        return 80  # Triton's interpreter
    major, _ = torch.cuda.get_device_capability(device)
    return {9: 90, 10: 100}.get(major, 80)


def product_of(dtype: torch.dtype) -> Product:
    """How factors of a dtype are multiplied: as they are in 16 bits, and float32 as the setting says."""
    return float32_products() if dtype == torch.float32 else "half"


def convolution_tile(device: torch.device, product: Product, inputs: int, outputs: int) -> Tile:
    """The tile of a convolution [·, inputs] → [·, outputs]; ``inputs`` is a multiple of 16."""
    tiles = CONVOLUTION[architecture(device), product]
    fitting = [columns for columns in tiles if columns >= outputs]
    tile = tiles[min(fitting) if fitting else max(tiles)]
    depth = tile.depth
    while inputs % depth:
        depth //= 2
    return replace(tile, depth=depth)


def weights_tile(device: torch.device, product: Product, inputs: int, outputs: int) -> Tile:
    """The tile of the gradient of weights [inputs, outputs]."""
    tile = WEIGHTS[architecture(device), product]
    rows, columns = min(tile.rows, _filled(inputs)), min(tile.columns, _filled(outputs))
    return replace(tile, rows=rows, columns=columns, warps=tile.warps if rows * columns > 4096 else 4)


def _filled(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())
