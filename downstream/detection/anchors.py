"""Anchors of the classes, and which box each anchor shall become.

The rules are those of SECOND as OpenPCDet configures it (``second.yaml``): anchors of two headings at every cell of the
bird's-eye map, matched class by class by the overlap of axis-aligned rectangles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import WIDTH, aligned_iou, encode


@dataclass(frozen=True)
class AnchorSettings:
    """The anchors of a class.

    Attributes:
        name: the class.
        size: length, width, height in metres.
        bottom: z of the bottom in metres, in the LiDAR frame.
        headings: in radians.
        matched: an anchor of at least this IoU with a box becomes it.
        unmatched: one under this IoU with every box is background; what is between is left out.
    """

    name: str
    size: tuple[float, float, float]
    bottom: float
    headings: tuple[float, ...] = (0.0, 1.57)
    matched: float = 0.5
    unmatched: float = 0.35


KITTI_ANCHORS = (
    AnchorSettings("Car", (3.9, 1.6, 1.56), -1.78, matched=0.6, unmatched=0.45),
    AnchorSettings("Pedestrian", (0.8, 0.6, 1.73), -0.6),
    AnchorSettings("Cyclist", (1.76, 0.6, 1.73), -0.6),
)


@dataclass(frozen=True)
class Targets:
    """What the anchors of a batch shall become.

    Attributes:
        label: int64 [B, A]: the class from 1 on, 0 for background, −1 for what is left out.
        code: float32 [B, A, 7], of the box; 0 where there is none.
    """

    label: Tensor
    code: Tensor


def make_anchors(settings: Sequence[AnchorSettings], range_m: Sequence[float], cells: tuple[int, int]) -> Tensor:
    """The anchors of every cell, class and heading, float32 [Y, X, anchors per cell, 7].

    The outer cells' anchors stand on the range's borders.

    Args:
        range_m: x low, y low, z low, x high, y high, z high.
        cells: of the map along x and y.
    """
    x, y = (torch.linspace(range_m[i], range_m[i + 3], cells[i], dtype=torch.float64) for i in range(2))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # [Y, X, 2]
    made = []
    for one in settings:
        for heading in one.headings:
            rest = torch.tensor([one.bottom + one.size[2] / 2, *one.size, heading], dtype=torch.float64)
            made.append(torch.cat((grid, rest.expand(*grid.shape[:2], 5)), -1))
    return torch.stack(made, 2).float()


def assign(
    anchors: Tensor, boxes: Sequence[Tensor], kinds: Sequence[Tensor], settings: Sequence[AnchorSettings]
) -> Targets:
    """Which box each anchor shall become, class by class.

    An anchor becomes the box of its class that it overlaps most, where that is at least ``matched``; and each box takes the
    anchors that overlap it most, however little, if they overlap at all.

    Args:
        anchors: as :func:`make_anchors` gives them.
        boxes: of each cloud, [M, 7].
        kinds: of each cloud int64 [M], the class from 1 on in the order of ``settings``.
    """
    height, width, count = anchors.shape[:3]
    label = torch.zeros(len(boxes), height, width, count, dtype=torch.int64, device=anchors.device)
    code = anchors.new_zeros(len(boxes), height, width, count, WIDTH)
    for i, (own, kind) in enumerate(zip(boxes, kinds)):
        first = 0
        for c, one in enumerate(settings):
            end = first + len(one.headings)
            flat = anchors[:, :, first:end].reshape(-1, WIDTH)
            found, row = _match(flat, own[kind == c + 1], one)
            label[i, :, :, first:end] = torch.where(found > 0, found * (c + 1), found).view(height, width, -1)
            if bool((found > 0).any()):
                places = torch.nonzero(found > 0).flatten()
                codes = flat.new_zeros(len(flat), WIDTH)
                codes[places] = encode(own[kind == c + 1][row[places]], flat[places])
                code[i, :, :, first:end] = codes.view(height, width, -1, WIDTH)
            first = end
    return Targets(label.flatten(1), code.flatten(1, 3))


def _match(anchors: Tensor, boxes: Tensor, settings: AnchorSettings) -> tuple[Tensor, Tensor]:
    """(1 matched, 0 background, −1 neither; the row of the box that each anchor overlaps most)."""
    if len(boxes) == 0:
        zero = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        return zero, zero
    overlap = aligned_iou(anchors, boxes)
    best, row = overlap.max(1)
    found = torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
    found[best >= settings.matched] = 1
    found[best < settings.unmatched] = 0
    most = overlap.max(0).values
    found[((overlap == most) & (most > 0)).any(1)] = 1
    return found, row
