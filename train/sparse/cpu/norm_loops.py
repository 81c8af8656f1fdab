"""The passes over the voxels of batch norm with what follows it, compiled by numba for CPUs.

Each call has channels of its own (``first`` to ``last`` - 1, multiples of 16), so results do not depend on the number
of calls. Sums are made in float32 over blocks of rows and joined in float64 (Chan, Golub and LeVeque 1979), so their
errors do not grow with the voxels. Features are float32 [N, C], constants float32 [number of them, C].
"""

from __future__ import annotations

import numba
import numpy as np

from .norm_tiles import (
    add_deviations,
    add_gradients,
    add_row,
    gradient_row,
    normalize_and_add_row,
    normalize_row,
)
from .tiles import LANES

# Rows of a block: few enough that they stay in the second cache for the second pass over them.
_BLOCK = 64


@numba.njit(cache=True, nogil=True)
def moments(feature, first, last, mean, squares):  # type: ignore[no-untyped-def]
    """Mean and sum of squared deviations of each channel, into float64 [C]."""
    width = last - first
    vectors, pitch = width // LANES, feature.shape[1] * 4
    x = np.int64(feature.ctypes.data) + first * 4
    center, rest, squared = np.zeros(width, np.float32), np.zeros(width, np.float32), np.zeros(width, np.float32)
    u, v, w = np.int64(center.ctypes.data), np.int64(rest.ctypes.data), np.int64(squared.ctypes.data)
    mean[first:last] = 0
    squares[first:last] = 0
    for top in range(0, len(feature), _BLOCK):
        rows = min(_BLOCK, len(feature) - top)
        center[:] = 0
        rest[:] = 0
        squared[:] = 0
        for row in range(top, top + rows):
            add_row((x + row * pitch, u, vectors))
        for c in range(width):
            center[c] /= np.float32(rows)
        for row in range(top, top + rows):
            add_deviations((x + row * pitch, u, v, w, vectors))
        for c in range(width):
            # What the mean in float32 left over, in float64.
            left = np.float64(rest[c]) / rows
            shift = center[c] + left - mean[first + c]
            mean[first + c] += shift * rows / (top + rows)
            squares[first + c] += squared[c] - left * left * rows + shift * shift * top * rows / (top + rows)


@numba.njit(cache=True, nogil=True)
def normalize(feature, shortcut, constants, first, last, out):  # type: ignore[no-untyped-def]
    """out = max((feature - mean) scale + bias + shortcut, floor); constants in this order; ``shortcut`` may be [0, C]."""
    vectors, pitch = (last - first) // LANES, feature.shape[1] * 4
    x, y = np.int64(feature.ctypes.data) + first * 4, np.int64(out.ctypes.data) + first * 4
    z, k = np.int64(shortcut.ctypes.data) + first * 4, np.int64(constants.ctypes.data) + first * 4
    for row in range(len(feature)):
        at = row * pitch
        if len(shortcut):
            normalize_and_add_row((x + at, z + at, k, k + pitch, k + 2 * pitch, k + 3 * pitch, y + at, vectors))
        else:
            normalize_row((x + at, k, k + pitch, k + 2 * pitch, k + 3 * pitch, y + at, vectors))


@numba.njit(cache=True, nogil=True)
def gradient_sums(feature, out, gradient, constants, first, last, total, along):  # type: ignore[no-untyped-def]
    """Sums over the rows of g, the gradient where ``out`` is over the floor, and of g (feature - mean), into float64 [C].

    Constants: mean, floor.
    """
    width = last - first
    vectors, pitch = width // LANES, feature.shape[1] * 4
    x, y = np.int64(feature.ctypes.data) + first * 4, np.int64(out.ctypes.data) + first * 4
    z, k = np.int64(gradient.ctypes.data) + first * 4, np.int64(constants.ctypes.data) + first * 4
    own, product = np.zeros(width, np.float32), np.zeros(width, np.float32)
    u, v = np.int64(own.ctypes.data), np.int64(product.ctypes.data)
    total[first:last] = 0
    along[first:last] = 0
    for top in range(0, len(feature), _BLOCK):
        own[:] = 0
        product[:] = 0
        for row in range(top, min(top + _BLOCK, len(feature))):
            at = row * pitch
            add_gradients((x + at, y + at, z + at, k, k + pitch, u, v, vectors))
        for c in range(width):
            total[first + c] += own[c]
            along[first + c] += product[c]


@numba.njit(cache=True, nogil=True)
def gradients(feature, out, gradient, constants, first, last, result, shortcut):  # type: ignore[no-untyped-def]
    """The gradient of the feature, scale g - constant - slope (feature - mean), and of the shortcut, g ([0, C]: not wanted).

    Constants: mean, floor, scale, constant, slope.
    """
    vectors, pitch = (last - first) // LANES, feature.shape[1] * 4
    x, y = np.int64(feature.ctypes.data) + first * 4, np.int64(out.ctypes.data) + first * 4
    z, k = np.int64(gradient.ctypes.data) + first * 4, np.int64(constants.ctypes.data) + first * 4
    r, s = np.int64(result.ctypes.data) + first * 4, np.int64(shortcut.ctypes.data) + first * 4
    scale, constant, slope = k + 2 * pitch, k + 3 * pitch, k + 4 * pitch
    for row in range(len(feature)):
        at = row * pitch
        if len(shortcut):
            gradient_row((x + at, y + at, z + at, k, k + pitch, scale, constant, slope, r + at, s + at, vectors))
        else:
            gradient_row((x + at, y + at, z + at, k, k + pitch, scale, constant, slope, r + at, vectors))
