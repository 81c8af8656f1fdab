"""Rotated rectangles of the bird's-eye view: intersection, IoU, and non-maximum suppression, in float64.

A rectangle is (x, y, length, width, heading): its middle, its sides in metres, and the angle in radians from the x axis to
its length, counter-clockwise. A box is (x, y, z, length, width, height, heading) with its middle at (x, y, z).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.compiled import compiled

Array = NDArray[np.float64]
_BEV = [0, 1, 3, 4, 6]


def bev_of(boxes: NDArray[Any]) -> Array:
    """The rectangles of boxes, [N, 7] -> [N, 5]."""
    return np.ascontiguousarray(np.asarray(boxes, np.float64)[:, _BEV])


def intersection_areas(first: NDArray[Any], second: NDArray[Any]) -> Array:
    """The area that each of the rectangles [N, 5] shares with each of the rectangles [M, 5], in m²: [N, M]."""
    return _areas(_rows(first, 5), _rows(second, 5))


def bev_iou(first: NDArray[Any], second: NDArray[Any]) -> Array:
    """Intersection over union of rectangles [N, 5] and [M, 5]: [N, M]; 0 where both are empty."""
    first, second = _rows(first, 5), _rows(second, 5)
    shared = _areas(first, second)
    return _ratio(shared, (first[:, 2] * first[:, 3])[:, None] + second[:, 2] * second[:, 3] - shared)


def box_iou(first: NDArray[Any], second: NDArray[Any]) -> Array:
    """Intersection over union of the volumes of boxes [N, 7] and [M, 7]: [N, M]; 0 where both are empty."""
    first, second = _rows(first, 7), _rows(second, 7)
    top = np.minimum((first[:, 2] + first[:, 5] / 2)[:, None], second[:, 2] + second[:, 5] / 2)
    bottom = np.maximum((first[:, 2] - first[:, 5] / 2)[:, None], second[:, 2] - second[:, 5] / 2)
    shared = _areas(bev_of(first), bev_of(second)) * np.maximum(top - bottom, 0)
    return _ratio(shared, first[:, 3:6].prod(1)[:, None] + second[:, 3:6].prod(1) - shared)


def suppress(
    boxes: NDArray[Any], score: NDArray[Any], iou: float, *, before: int | None = None, most: int | None = None
) -> NDArray[np.int64]:
    """Non-maximum suppression in the bird's-eye view: the rows of the boxes that stay, by descending score.

    A box goes where its rectangle overlaps one that stays by more than ``iou``. Of equal scores the first row is first.

    Args:
        boxes: [N, 7].
        score: [N].
        before: only so many boxes of the highest scores take part; None for all.
        most: so many stay at most; None for all.
    """
    order = np.argsort(-np.asarray(score, np.float64), kind="stable")[:before]
    kept = _suppress(bev_of(_rows(boxes, 7)[order]), float(iou), len(order) if most is None else int(most))
    return order[kept]


def _rows(values: NDArray[Any], width: int) -> Array:
    return np.ascontiguousarray(np.asarray(values, np.float64).reshape(-1, width))


def _ratio(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


@compiled()
def _clip(x, y, count, axis, limit, sign, out_x, out_y):  # type: ignore[no-untyped-def]
    """A convex polygon cut at ``sign · coordinate <= limit`` (Sutherland and Hodgman); returns its number of corners."""
    made = 0
    for i in range(count):
        j = i + 1 if i + 1 < count else 0
        here = sign * (x[i] if axis == 0 else y[i]) - limit
        there = sign * (x[j] if axis == 0 else y[j]) - limit
        if here <= 0:
            out_x[made], out_y[made] = x[i], y[i]
            made += 1
        if (here < 0 < there) or (there < 0 < here):
            t = here / (here - there)
            out_x[made], out_y[made] = x[i] + t * (x[j] - x[i]), y[i] + t * (y[j] - y[i])
            made += 1
    return made


@compiled()
def _area(a, b, x, y, clipped_x, clipped_y):  # type: ignore[no-untyped-def]
    """The area that two rectangles share: the first one's corners in the frame of the second, cut at its four sides."""
    if a[2] <= 0 or a[3] <= 0 or b[2] <= 0 or b[3] <= 0:
        return 0.0
    dx, dy = a[0] - b[0], a[1] - b[1]
    reach = 0.5 * (np.sqrt(a[2] * a[2] + a[3] * a[3]) + np.sqrt(b[2] * b[2] + b[3] * b[3]))
    if dx * dx + dy * dy >= reach * reach:
        return 0.0
    cos_b, sin_b = np.cos(b[4]), np.sin(b[4])
    cos_ab, sin_ab = np.cos(a[4] - b[4]), np.sin(a[4] - b[4])
    middle_x, middle_y = cos_b * dx + sin_b * dy, cos_b * dy - sin_b * dx
    for i in range(4):
        along = 0.5 * a[2] * (1.0 if i == 0 or i == 3 else -1.0)
        across = 0.5 * a[3] * (1.0 if i < 2 else -1.0)
        x[i] = middle_x + cos_ab * along - sin_ab * across
        y[i] = middle_y + sin_ab * along + cos_ab * across
    count = _clip(x, y, 4, 0, 0.5 * b[2], 1.0, clipped_x, clipped_y)
    count = _clip(clipped_x, clipped_y, count, 0, 0.5 * b[2], -1.0, x, y)
    count = _clip(x, y, count, 1, 0.5 * b[3], 1.0, clipped_x, clipped_y)
    count = _clip(clipped_x, clipped_y, count, 1, 0.5 * b[3], -1.0, x, y)
    doubled = 0.0
    for i in range(1, count - 1):
        doubled += (x[i] - x[0]) * (y[i + 1] - y[0]) - (x[i + 1] - x[0]) * (y[i] - y[0])
    return max(0.5 * doubled, 0.0)


@compiled()
def _areas(first, second):  # type: ignore[no-untyped-def]
    found = np.zeros((len(first), len(second)))
    x, y, clipped_x, clipped_y = np.empty(16), np.empty(16), np.empty(16), np.empty(16)
    for i in range(len(first)):
        for j in range(len(second)):
            found[i, j] = _area(first[i], second[j], x, y, clipped_x, clipped_y)
    return found


@compiled()
def _suppress(rectangles, threshold, most):  # type: ignore[no-untyped-def]
    """The rows that stay of rectangles [N, 5] in descending order of their scores."""
    kept = np.empty(min(most, len(rectangles)), np.int64)
    count = 0
    x, y, clipped_x, clipped_y = np.empty(16), np.empty(16), np.empty(16), np.empty(16)
    for i in range(len(rectangles)):
        if count == len(kept):
            break
        stays = True
        size = rectangles[i, 2] * rectangles[i, 3]
        for k in range(count):
            other = rectangles[kept[k]]
            shared = _area(rectangles[i], other, x, y, clipped_x, clipped_y)
            union = size + other[2] * other[3] - shared
            if shared > threshold * union and union > 0:
                stays = False
                break
        if stays:
            kept[count] = i
            count += 1
    return kept[:count]
