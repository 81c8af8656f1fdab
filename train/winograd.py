"""3x3 convolutions with fixed weights by Winograd's minimal filtering, float32 on CPUs.

A tile of 4 x 4 outputs takes 36 products for each pair of channels where the plain sum takes 144: inputs and kernel are
seen as polynomials, evaluated at the points 0, 1, -1, 2, -2 and infinity along either axis, multiplied there, and the
outputs read off by interpolation (Lavin & Gray 2016, arXiv 1509.09308, section 4). At each point the products of all
tiles are one matrix product, done by torch.

A dilated convolution is as many plain ones on interleaved grids, which are small: with dilation 8 a map of 56 x 104 is
64 grids of 7 x 13. What does not divide by 4 is therefore cut into smaller tiles at the right and lower edges; r outputs
need the first r + 1 points and infinity. The kernel's values at a point are the same for all sizes of tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

#: Outputs of a full tile along an axis, and the points at which everything is evaluated; infinity is the last.
TILE = 4
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0)
#: Factor of the kernel's values at each point, chosen so that a full tile's transform of inputs is in small whole numbers.
KERNEL_SCALE = (1 / 4, -1 / 6, -1 / 6, 1 / 24, 1 / 24, 1.0)


def points_of(outputs: int) -> tuple[int, ...]:
    """The places of a tile's r + 2 points among all six, r outputs along the axis."""
    return (*range(outputs + 1), len(POINTS))


def transform_kernel(weight: Tensor) -> Tensor:
    """A kernel's values at the points: [C_out, C_in, 3, 3] -> float32 [6, 6, C_in, C_out]."""
    rows = [[s, s * p, s * p * p] for s, p in zip(KERNEL_SCALE, POINTS, strict=False)] + [[0, 0, KERNEL_SCALE[-1]]]
    g = torch.tensor(rows, dtype=torch.float64, device=weight.device)
    return torch.einsum("ai,bj,oxij->abxo", g, g, weight.double()).float().contiguous()


@dataclass(frozen=True)
class Tiles:
    """The tiles of one size that a map is cut into.

    Attributes:
        high, wide: outputs of a tile along either axis.
        origin: row and column of each tile's first output, int64 [T, 2].
    """

    high: int
    wide: int
    origin: np.ndarray


@cache
def cut(height: int, width: int, dilation: int) -> tuple[Tiles, ...]:
    """Cut a map into tiles, those of one size together; each output lies in exactly one."""
    rows, columns = _cut_axis(height, dilation), _cut_axis(width, dilation)
    return tuple(
        Tiles(high, wide, np.array([(y, x) for y in first for x in second], np.int64))
        for high, first in rows.items()
        for wide, second in columns.items()
    )


def _cut_axis(length: int, dilation: int) -> dict[int, list[int]]:
    """Where the tiles begin along an axis, by their number of outputs."""
    found: dict[int, list[int]] = {}
    for phase in range(min(dilation, length)):
        count = -(-(length - phase) // dilation)
        for first in range(0, count, TILE):
            found.setdefault(min(TILE, count - first), []).append(phase + first * dilation)
    return found


def _holding(tiles: Tiles, wanted: np.ndarray, dilation: int) -> np.ndarray:
    """Which tiles hold an output that is asked for, bool [T]."""
    y = tiles.origin[:, :1] + dilation * np.arange(tiles.high)
    x = tiles.origin[:, 1:] + dilation * np.arange(tiles.wide)
    found: np.ndarray = wanted[y[:, :, None], x[:, None, :]].any((1, 2))
    return found


class Workspace:
    """Memory that is used again and again: an array for each name, as large as the largest asked for.

    Fresh memory of this size would come from the system page by page each time. It is torch's, whose arrays begin at
    multiples of 64 bytes: the bits of a matrix product may depend on that.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """float32 of a shape, with whatever it held last."""
        size = int(np.prod(shape))
        if name not in self._kept or len(self._kept[name]) < size:
            self._kept[name] = torch.empty(size)
        return self._kept[name][:size].view(*shape)


#: Tiles whose transforms are held at once, so that they stay in the last cache.
TILES_AT_ONCE = 144


def convolve(
    source: Tensor,
    before: Tensor,
    kernel: Tensor,
    after: Tensor,
    out: Tensor,
    size: tuple[int, int],
    dilation: int,
    workspace: Workspace,
    wanted: np.ndarray | None = None,
) -> None:
    """out = ReLU(convolution of ReLU(source + before) + after), 3x3 with its dilation as padding.

    Args:
        source: float32 [H·W + 1, C_in], rows of a map; the last row is for this function.
        before: bias of the inputs [C_in].
        kernel: of :func:`transform_kernel`.
        after: bias of the outputs [C_out].
        out: float32 [H·W, C_out].
        size: H, W.
        wanted: bool [H, W], outputs asked for; those of other tiles are not written. None is all.
    """
    from .winograd_loops import collect, spread

    source[-1] = -torch.inf  # outside the map: 0 behind the ReLU
    inputs, outputs = kernel.shape[2], kernel.shape[3]
    for tiles in cut(*size, dilation):
        points = [(a, b) for a in points_of(tiles.high) for b in points_of(tiles.wide)]
        chosen = tiles.origin if wanted is None else tiles.origin[_holding(tiles, wanted, dilation)]
        for origin in np.array_split(chosen, max(-(-len(chosen) // TILES_AT_ONCE), 1)):
            values = workspace.take("values", len(points), len(origin), inputs)
            products = workspace.take("products", len(points), len(origin), outputs)
            spread(source.numpy(), before.numpy(), *size, dilation, origin, tiles.high, tiles.wide, values.numpy())
            for n, (a, b) in enumerate(points):
                torch.mm(values[n], kernel[a, b], out=products[n])
            collect(products.numpy(), after.numpy(), size[1], dilation, origin, tiles.high, tiles.wide, out.numpy())
