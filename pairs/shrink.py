"""Shrink a picture: Pillow's antialiased bilinear filter, in half its time.

Rows are weighted first, where the processor's vector units reach, and Pillow's memory is
read where it lies. The result is Pillow's to one grey level.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from PIL import Image

from ..common import pixels_of


@numba.njit(cache=True, nogil=True)
def _triangle(length, whole, count):  # type: ignore[no-untyped-def]
    """First input pixel and weights of each of ``count`` output pixels over [0, length) of ``whole`` pixels."""
    scale = length / count
    support = max(scale, 1.0)
    taps = math.ceil(2 * support) + 1
    first = np.empty(count, np.int64)
    weight = np.zeros((count, taps), np.float32)
    for i in range(count):
        center = (i + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), whole)
        low = max(min(low, whole - taps), 0)
        total = 0.0
        for k in range(low, high):
            total += max(0.0, 1.0 - abs((k + 0.5 - center) / support))
        for k in range(low, high):
            weight[i, k - low] = max(0.0, 1.0 - abs((k + 0.5 - center) / support)) / total
        first[i] = low
    return first, weight


# Unsigned indices and float32 constants keep the inner loops free of sign tests and of float64.
@numba.njit(cache=True, nogil=True)
def _shrink(source, box_width, box_height, out):  # type: ignore[no-untyped-def]
    """Fill ``out`` [h, w, 4] from the box at the origin of ``source`` [H, W, 4]."""
    rows, columns = out.shape[0], out.shape[1]
    height, width = source.shape[0], source.shape[1]
    y, wy = _triangle(box_height, height, rows)
    x, wx = _triangle(box_width, width, columns)
    flat = source.reshape(height, width * 4)
    target = out.reshape(rows, columns * 4)
    n = width * 4
    line = np.zeros(n + 4 * wx.shape[1], np.float32)
    for i in range(rows):
        for t in range(wy.shape[1]):
            w = wy[i, t]
            if t == 0:
                row = flat[y[i]]
                for j in range(n):
                    line[j] = w * np.float32(row[j])
            elif w != np.float32(0):
                row = flat[y[i] + t]
                for j in range(n):
                    line[j] += w * np.float32(row[j])
        result = target[i]
        for j in range(columns):
            p = np.uint64(4 * x[j])
            r = g = b = np.float32(0.5)
            for t in range(wx.shape[1]):
                w = wx[j, t]
                q = p + np.uint64(4 * t)
                r += w * line[q]
                g += w * line[q + np.uint64(1)]
                b += w * line[q + np.uint64(2)]
            q = np.uint64(4 * j)
            result[q] = np.uint8(r)
            result[q + np.uint64(1)] = np.uint8(g)
            result[q + np.uint64(2)] = np.uint8(b)


def shrink(image: Image.Image, size: tuple[int, int], box: tuple[float, float] | None = None) -> Image.Image:
    """An RGB image at a smaller size.

    Args:
        image: mode RGB.
        size: (width, height) of the result, at most the image's.
        box: (width, height) of the part to shrink, from the upper left corner; all of it without.

    Returns:
        An image of mode RGBX (as RGB, with a fourth byte that means nothing).
    """
    out = np.zeros((size[1], size[0], 4), np.uint8)
    box_width, box_height = box or image.size
    pixels, keep = pixels_of(image)
    _shrink(pixels, float(box_width), float(box_height), out)
    del pixels, keep
    return Image.frombuffer("RGBX", size, out, "raw", "RGBX", 0, 1)
