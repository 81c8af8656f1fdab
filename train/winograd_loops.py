"""Winograd's transforms over tiles, compiled by numba and kept on disk.

The channels of a position lie side by side, so every inner loop runs over channels, a block of them at a time that
stays in the near cache. Between memory and the sums stand small arrays whose rows are a fixed number of places apart:
that lets the compiler see that no row overlaps another, without which it would not use vectors.
"""

from __future__ import annotations

import numba
import numpy as np

#: Channels that go through a transform together: the length of a row in the small arrays.
_B = 64
#: Products and sums may be fused into one instruction; nothing else may change.
_FUSE = {"contract"}
_ZERO = np.float32(0)
_2, _3, _4, _5, _6, _8 = (np.float32(n) for n in (2, 3, 4, 5, 6, 8))


@numba.njit(cache=True, nogil=True, fastmath=_FUSE, inline="always")
def evaluate(outputs, x, at, step):  # type: ignore[no-untyped-def]
    """Values at a tile's points from its inputs along an axis (B^T of the paper).

    Args:
        outputs: of the tile, 1 to 4.
        x: float32, row k of _B numbers is input k.
        at: float32, row n * step is the value at the tile's n-th point.
    """
    if outputs == 4:
        for c in range(_B):
            x0, x1, x2 = x[c], x[_B + c], x[2 * _B + c]
            x3, x4, x5 = x[3 * _B + c], x[4 * _B + c], x[5 * _B + c]
            even, odd = x4 - _4 * x2, x3 - _4 * x1
            at[c] = _4 * x0 - _5 * x2 + x4
            at[step * _B + c] = even + odd
            at[2 * step * _B + c] = even - odd
            even, odd = x4 - x2, _2 * (x3 - x1)
            at[3 * step * _B + c] = even + odd
            at[4 * step * _B + c] = even - odd
            at[5 * step * _B + c] = _4 * x1 - _5 * x3 + x5
    elif outputs == 3:
        for c in range(_B):
            x0, x1, x2, x3, x4 = x[c], x[_B + c], x[2 * _B + c], x[3 * _B + c], x[4 * _B + c]
            at[c] = _4 * (x0 - x2) - _2 * (x1 - x3)
            at[step * _B + c] = _3 * (x3 - x2) - _6 * x1
            at[2 * step * _B + c] = _2 * x1 - _3 * x2 + x3
            at[3 * step * _B + c] = _4 * (x3 - x1)
            at[4 * step * _B + c] = _2 * (x1 - x3) - x2 + x4
    elif outputs == 2:
        for c in range(_B):
            x0, x1, x2, x3 = x[c], x[_B + c], x[2 * _B + c], x[3 * _B + c]
            at[c] = _4 * (x0 - x2)
            at[step * _B + c] = -_3 * (x1 + x2)
            at[2 * step * _B + c] = _3 * (x1 - x2)
            at[3 * step * _B + c] = x3 - x1
    else:
        for c in range(_B):
            x0, x1, x2 = x[c], x[_B + c], x[2 * _B + c]
            at[c] = _4 * (x0 - x1)
            at[step * _B + c] = -_6 * x1
            at[2 * step * _B + c] = x2 - x1


@numba.njit(cache=True, nogil=True, fastmath=_FUSE, inline="always")
def interpolate(outputs, at, y, step):  # type: ignore[no-untyped-def]
    """A tile's outputs along an axis from products at its points (A^T of the paper).

    Args:
        outputs: of the tile, 1 to 4.
        at: float32, row n of _B numbers is the product at the n-th point.
        y: float32, row k * step is output k.
    """
    if outputs == 4:
        for c in range(_B):
            m1, m2, m3, m4 = at[_B + c], at[2 * _B + c], at[3 * _B + c], at[4 * _B + c]
            near, far = m1 + m2, m3 + m4
            y[c] = at[c] + near + far
            y[2 * step * _B + c] = near + _4 * far
            near, far = m1 - m2, m3 - m4
            y[step * _B + c] = near + _2 * far
            y[3 * step * _B + c] = near + _8 * far + at[5 * _B + c]
    elif outputs == 3:
        for c in range(_B):
            m0, m1, m2, m3 = at[c], at[_B + c], at[2 * _B + c], at[3 * _B + c]
            y[c] = m0 + m1 + m2 + m3
            y[step * _B + c] = m1 - m2 + _2 * m3
            y[2 * step * _B + c] = m1 + m2 + _4 * m3 + at[4 * _B + c]
    elif outputs == 2:
        for c in range(_B):
            m1, m2 = at[_B + c], at[2 * _B + c]
            y[c] = at[c] + m1 + m2
            y[step * _B + c] = m1 - m2 + at[3 * _B + c]
    else:
        for c in range(_B):
            y[c] = at[c] + at[_B + c] + at[2 * _B + c]


@numba.njit(cache=True, nogil=True, fastmath=_FUSE)
def add_bias_and_rectify(rows, bias):  # type: ignore[no-untyped-def]
    """rows = ReLU(rows + bias), in place: float32 [N, C] and [C]."""
    for n in range(rows.shape[0]):
        row = rows[n]
        for c in range(len(bias)):
            row[c] = max(row[c] + bias[c], _ZERO)


@numba.njit(cache=True, nogil=True, fastmath=_FUSE)
def spread(source, bias, height, width, dilation, origin, high, wide, out):  # type: ignore[no-untyped-def]
    """Values of ReLU(source + bias) at the points of each tile of high x wide outputs.

    Args:
        source: float32 [H·W + 1, C], the last row for places outside the map.
        bias: float32 [C].
        origin: int64 [T, 2], a tile's first output.
        out: float32 [(high + 2)(wide + 2), T, C].
    """
    channels = source.shape[1]
    # Rows: an input of a column; a point of either axis, the column's first; a point of both for one of the column.
    near, half, full = np.zeros(6 * _B, np.float32), np.zeros(36 * _B, np.float32), np.zeros(6 * _B, np.float32)
    for tile in range(len(origin)):
        y0, x0 = origin[tile, 0] - dilation, origin[tile, 1] - dilation
        for start in range(0, channels, _B):
            block = min(_B, channels - start)
            shift = bias[start : start + block]
            for j in range(wide + 2):
                x = x0 + j * dilation
                for i in range(high + 2):
                    y = y0 + i * dilation
                    inside = 0 <= y < height and 0 <= x < width
                    row = source[y * width + x if inside else height * width, start : start + block]
                    kept = near[i * _B : i * _B + block]
                    for c in range(block):
                        kept[c] = max(row[c] + shift[c], _ZERO)
                evaluate(high, near, half[j * _B :], 6)
            for a in range(high + 2):
                evaluate(wide, half[a * 6 * _B :], full, 1)
                for b in range(wide + 2):
                    target, kept = out[a * (wide + 2) + b, tile, start : start + block], full[b * _B : b * _B + block]
                    for c in range(block):
                        target[c] = kept[c]


@numba.njit(cache=True, nogil=True, fastmath=_FUSE)
def collect(products, bias, width, dilation, origin, high, wide, out):  # type: ignore[no-untyped-def]
    """Outputs of each tile, ReLU(interpolated products + bias), to where they belong.

    Args:
        products: float32 [(high + 2)(wide + 2), T, C].
        bias: float32 [C].
        origin: int64 [T, 2].
        out: float32 [H·W, C].
    """
    channels = products.shape[2]
    near, half, full = np.zeros(6 * _B, np.float32), np.zeros(24 * _B, np.float32), np.zeros(4 * _B, np.float32)
    for tile in range(len(origin)):
        y0, x0 = origin[tile, 0], origin[tile, 1]
        for start in range(0, channels, _B):
            block = min(_B, channels - start)
            shift = bias[start : start + block]
            for a in range(high + 2):
                for b in range(wide + 2):
                    row, kept = products[a * (wide + 2) + b, tile, start : start + block], near[b * _B : b * _B + block]
                    for c in range(block):
                        kept[c] = row[c]
                interpolate(wide, near, half[a * _B :], 6)
            for k in range(wide):
                interpolate(high, half[k * 6 * _B :], full, 1)
                for i in range(high):
                    place = (y0 + i * dilation) * width + x0 + k * dilation
                    target, kept = out[place, start : start + block], full[i * _B : i * _B + block]
                    for c in range(block):
                        target[c] = max(kept[c] + shift[c], _ZERO)
