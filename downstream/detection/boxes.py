"""Boxes in the LiDAR frame as a detector regresses them: coding against anchors, periods of angles, aligned IoU.

A box is (x, y, z, length, width, height, heading): its middle and its sides in metres, and the angle in radians from the x
axis to its length, counter-clockwise. The coding is SECOND's (Yan et al., Sensors 2018, section 3.2.4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WIDTH = 7
"""Numbers of a box, and of its code."""
_LEAST_SIZE = 1e-5


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The codes of boxes against their anchors, both [N, 7]: [N, 7].

    Offsets of the middle over the anchor's diagonal (x, y) and height (z), logarithms of the sizes' ratios, and the
    difference of the headings.
    """
    size, anchor = boxes[:, 3:6].clamp(min=_LEAST_SIZE), anchors[:, 3:6].clamp(min=_LEAST_SIZE)
    scale = _scale(anchor)
    turn = boxes[:, 6:] - anchors[:, 6:]
    return torch.cat(((boxes[:, :3] - anchors[:, :3]) / scale, torch.log(size / anchor), turn), 1)


def decode(code: Tensor, anchors: Tensor) -> Tensor:
    """The boxes of codes, the inverse of :func:`encode`: [..., 7]."""
    anchor = anchors[..., 3:6]
    place = code[..., :3] * _scale(anchor) + anchors[..., :3]
    return torch.cat((place, torch.exp(code[..., 3:6]) * anchor, code[..., 6:] + anchors[..., 6:]), -1)


def _scale(size: Tensor) -> Tensor:
    diagonal = torch.sqrt(size[..., :1] ** 2 + size[..., 1:2] ** 2)
    return torch.cat((diagonal, diagonal, size[..., 2:3]), -1)


def wrap(angle: Tensor, period: float, offset: float = 0.5) -> Tensor:
    """Angles in [−offset · period, (1 − offset) · period)."""
    return angle - torch.floor(angle / period + offset) * period


def aligned_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU in the bird's-eye view of boxes [N, 7] and [M, 7], each turned to the nearer axis: [N, M]."""
    a, b = _aligned(first), _aligned(second)
    sides = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])
    shared = sides.clamp(min=0).prod(2)
    areas = [(r[:, 2] - r[:, 0]) * (r[:, 3] - r[:, 1]) for r in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared).clamp(min=1e-6)


def _aligned(boxes: Tensor) -> Tensor:
    along = wrap(boxes[:, 6], math.pi).abs() < math.pi / 4
    half = torch.where(along[:, None], boxes[:, 3:5], boxes[:, [4, 3]]) / 2
    return torch.cat((boxes[:, :2] - half, boxes[:, :2] + half), 1)
