"""Segment maps of several images: their numbers, and what a map says at a pixel."""

from __future__ import annotations

import torch
from torch import Tensor


def number_through(segment: Tensor, image: Tensor, uv: Tensor) -> tuple[Tensor, Tensor, int]:
    """Number the segments of several images through that hold one of the pixels at least.

    Args:
        segment: int64 [I, H, W], numbered from 0 in each image, −1 = none.
        image, uv: of the pixels, see :func:`at_pixels`.

    Returns:
        int64 [I, H, W], numbered from 0 over all images, −1 = none or one that holds no pixel; each pixel's, int64 [M];
        and how many there are.
    """
    room = int(segment.max()) + 2  # of an image: none, and its segments
    key = segment + 1 + room * torch.arange(len(segment), device=segment.device)[:, None, None]
    of_pixel = at_pixels(key, image, uv)
    held = torch.unique(of_pixel[of_pixel % room > 0])
    number = torch.full((len(segment) * room,), -1, device=segment.device)
    number[held] = torch.arange(len(held), device=segment.device)
    return number[key], number[of_pixel], len(held)


def at_pixels(maps: Tensor, image: Tensor, uv: Tensor) -> Tensor:
    """The values of images' maps at rounded pixels, [M].

    Args:
        maps: [I, H, W].
        image: of each pixel, int64 [M].
        uv: float [M, 2]; those outside are taken at the border.
    """
    (height, width), (u, v) = maps.shape[1:], uv.round().long().unbind(1)
    return maps[image, v.clamp(0, height - 1), u.clamp(0, width - 1)]
