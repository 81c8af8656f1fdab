"""The loops of the augmentation over a frame's points and pairs, compiled: NumPy would make many passes over each."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def count_inside(uv, left, top, right, bottom):  # type: ignore[no-untyped-def]
    """How many of ``uv`` [M, 2] lie in [left, right) x [top, bottom)."""
    held = 0
    for i in range(len(uv)):
        u, v = uv[i, 0], uv[i, 1]
        if left <= u < right and top <= v < bottom:
            held += 1
    return held


@numba.njit(cache=True, nogil=True)
def move_pairs(uv, left, top, w, h, height, width, whole, flip, moved, kept):  # type: ignore[no-untyped-def]
    """Pixels of an image in its crop (left, top, w, h), resized to height x width.

    u' = (u − left + ½)·width/w − ½, as pixel centres at whole numbers have it; a flip takes u' to width − 1 − u'.
    A crop's border lies half a pixel outside the centres of its outer pixels: positions in that half move to the
    centres. With ``whole`` as the public code has it: u' = round((round(u) − left) · width/w), without the half pixel,
    kept where 0 <= u' < width.

    Args:
        uv: float32 [M, 2].
        whole: round to whole pixels.
        flip: mirror.
        moved: float32 [M, 2], written.
        kept: bool [M], cleared for pairs outside the crop.
    """
    scale_u, scale_v = width / w, height / h
    margin = 0.0 if whole else 0.5
    last_u, last_v = np.float32(width - 1), np.float32(height - 1)
    for i in range(len(uv)):
        if whole:
            u = np.float32(np.rint((np.rint(uv[i, 0]) - left) * scale_u))
            v = np.float32(np.rint((np.rint(uv[i, 1]) - top) * scale_v))
        else:
            u = np.float32((uv[i, 0] - left + 0.5) * scale_u - 0.5)
            v = np.float32((uv[i, 1] - top + 0.5) * scale_v - 0.5)
        if not (-margin <= u <= last_u + margin and -margin <= v <= last_v + margin):
            kept[i] = False
        u = min(max(u, np.float32(0)), last_u)
        v = min(max(v, np.float32(0)), last_v)
        moved[i, 0] = last_u - u if flip else u
        moved[i, 1] = v


@numba.njit(cache=True, nogil=True)
def turn(points, matrix):  # type: ignore[no-untyped-def]
    """A cloud [N, ≥3] with x and y multiplied by ``matrix`` [2, 2], float64 inside.

    Not a product of NumPy's: for these three columns its BLAS wakes all cores, which then spin and take them from
    the other workers.
    """
    moved = points.copy()
    a, b, c, d = matrix[0, 0], matrix[0, 1], matrix[1, 0], matrix[1, 1]
    for i in range(len(points)):
        x, y = points[i, 0], points[i, 1]
        moved[i, 0] = a * x + b * y
        moved[i, 1] = c * x + d * y
    return moved


@numba.njit(cache=True, nogil=True)
def members_of_cuboid(xyz, center, half_fraction):  # type: ignore[no-untyped-def]
    """Which points [N, 3] are nearer to ``center`` than ``half_fraction`` of the cloud's range, along every axis."""
    low, high = xyz[0].copy(), xyz[0].copy()
    for i in range(len(xyz)):
        for axis in range(3):
            low[axis] = min(low[axis], xyz[i, axis])
            high[axis] = max(high[axis], xyz[i, axis])
    half = (high - low) * half_fraction
    inside = np.empty(len(xyz), np.bool_)
    for i in range(len(xyz)):
        inside[i] = (
            abs(xyz[i, 0] - center[0]) < half[0]
            and abs(xyz[i, 1] - center[1]) < half[1]
            and abs(xyz[i, 2] - center[2]) < half[2]
        )
    return inside
