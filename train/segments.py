"""Segment maps of several images: their numbers, and what a map says at a pixel."""

from __future__ import annotations

import torch
from torch import Tensor


def number_through(segment: Tensor) -> tuple[Tensor, int]:
    """Number the segments of several images through.

    Args:
        segment: int64 [I, H, W], numbered from 0 in each image, −1 = none.

    Returns:
        int64 [I, H, W], numbered from 0 over all images, −1 = none; and how many there are.
    """
    image = torch.arange(len(segment), device=segment.device)[:, None, None]
    key = torch.where(segment >= 0, image * (segment.max() + 1).clamp(min=1) + segment, -1)
    known, number = torch.unique(key, return_inverse=True)
    none = int(bool(len(known) and known[0] < 0))
    return number - none, len(known) - none


def at_pixels(maps: Tensor, image: Tensor, uv: Tensor) -> Tensor:
    """The values of images' maps at rounded pixels, [M].

    Args:
        maps: [I, H, W].
        image: of each pixel, int64 [M].
        uv: float [M, 2]; those outside are taken at the border.
    """
    (height, width), (u, v) = maps.shape[1:], uv.round().long().unbind(1)
    return maps[image, v.clamp(0, height - 1), u.clamp(0, width - 1)]
