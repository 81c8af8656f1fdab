"""A crop of a JPEG at the network's size, straight into a batch's memory.

Pillow decodes; its memory is read where it lies, and a compiled loop samples the crop bilinearly between the four
nearest pixels, as the public code's tensor resize does (no low-pass before shrinking).
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from ..common import pixels_of
from ..common.images import VALUES, open_image

_CHECK = "run olivine build-pairs --check"


@numba.njit(cache=True, nogil=True)
def _taps(start, length, count, limit):  # type: ignore[no-untyped-def]
    """For each output pixel its left and right neighbours and the right one's weight in 1/256."""
    first, second = np.empty(count, np.int32), np.empty(count, np.int32)
    weight = np.empty(count, np.int32)
    for i in range(count):
        x = min(max(start + (i + 0.5) * length / count - 0.5, 0.0), limit - 1.0)
        k = int(x)
        first[i], second[i] = k, min(k + 1, limit - 1)
        weight[i] = np.int32(np.rint((x - k) * 256))
    return first, second, weight


@numba.njit(cache=True, nogil=True)
def _resample(source, left, top, width, height, flip, out):  # type: ignore[no-untyped-def]
    """Sample a crop of ``source`` [H, W, 4] into ``out`` [h, w, 3]; rows first, then columns."""
    rows, columns = out.shape[0], out.shape[1]
    y0, y1, wy = _taps(top, height, rows, source.shape[0])
    x0, x1, wx = _taps(left, width, columns, source.shape[1])
    depth = source.shape[2]
    begin, end = x0[0] * depth, (x1[columns - 1] + 1) * depth
    line = np.empty(end - begin, np.uint16)
    flat = source.reshape(source.shape[0], -1)
    for i in range(rows):
        upper, lower = flat[y0[i], begin:end], flat[y1[i], begin:end]
        b = np.uint16(wy[i])
        a = np.uint16(256 - wy[i])
        for j in range(len(line)):
            line[j] = np.uint16(upper[j]) * a + np.uint16(lower[j]) * b
        for j in range(columns):
            p, q = x0[j] * depth - begin, x1[j] * depth - begin
            w = wx[j]
            k = columns - 1 - j if flip else j
            for c in range(3):
                out[i, k, c] = (line[p + c] * (256 - w) + line[q + c] * w + 32768) >> 16


def decode_crop(data: bytes, crop: tuple[int, int, int, int], flip: bool, out: NDArray[np.uint8]) -> None:
    """Decode a JPEG and sample a crop of it into ``out``.

    Args:
        data: the file.
        crop: (left, top, width, height) in pixels.
        flip: mirror the crop.
        out: uint8 [H, W, 3], written.

    Raises:
        OlivineError: the bytes are not a whole image.
    """
    with open_image(data, where="an image of the shards", formats=("JPEG",), remedy=_CHECK) as image:
        image.load()
        whole = image if image.mode == "RGB" else image.convert("RGB")
        pixels, keep = pixels_of(whole)
        _resample(pixels, *crop, flip, out)
        del pixels, keep


def decode_segments(
    data: bytes, crop: tuple[int, int, int, int], flip: bool, size: tuple[int, int]
) -> NDArray[np.int32]:
    """Decode a segment map and take a crop of it at another size, each pixel from the one at corner + floor(i · h / H).

    Args:
        data: a 16-bit PNG, 0 = no segment.
        crop: (left, top, width, height) in pixels.
        size: (height, width) wanted.

    Returns:
        int32 [H, W], numbered from 0, −1 = no segment.

    Raises:
        OlivineError: the bytes are not a whole image.
    """
    left, top, width, height = crop
    row = top + np.arange(size[0]) * height // size[0]
    column = left + np.arange(size[1]) * width // size[1]
    where = "a segment map of the shards"
    with open_image(data, where=where, formats=("PNG",), modes=VALUES, remedy=_CHECK) as image:
        whole = np.asarray(image, np.int32)
        cropped: NDArray[np.int32] = whole[row[:, None], column[::-1] if flip else column] - 1
    return cropped
