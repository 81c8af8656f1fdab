"""Features at chosen pixels, sampled from an encoder's small map.

The public code upsamples the head's map by 4 with ``align_corners=True`` and looks up the rounded pixel. Upsampling
and head are both linear, so sampling the small map bilinearly at the pixel and applying the head to the sampled
features gives the same embeddings and the same head gradients, without a map of the image's size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..common import OlivineError
from .transfer import to_device

FeatureGrid = Literal["align_corners", "stride", "patch"]


def bilinear_cells(
    map_size: tuple[int, int], image_index: Tensor, uv: Tensor, image_size: tuple[int, int], grid: FeatureGrid
) -> tuple[Tensor, Tensor]:
    """What bilinear samples are made of: rows of maps seen as [I·h·w, E], int64 [4, M], and weights, float32 [4, M]."""
    (h, w), (height, width) = map_size, image_size
    shift = 0.0
    if grid == "align_corners":
        scale = (max(w - 1, 0) / max(width - 1, 1), max(h - 1, 0) / max(height - 1, 1))
    elif grid == "stride":
        scale = (w / width, h / height)
    elif grid == "patch":
        scale, shift = (w / width, h / height), 0.5
    else:
        raise OlivineError(
            f"no feature grid {grid!r}", where="feature_grid", remedy="use align_corners, stride or patch"
        )
    x = ((uv[:, 0].float() + shift) * scale[0] - shift).clamp(0, w - 1)
    y = ((uv[:, 1].float() + shift) * scale[1] - shift).clamp(0, h - 1)
    x0, y0 = x.floor().long().clamp(max=max(w - 2, 0)), y.floor().long().clamp(max=max(h - 2, 0))
    right, below = min(1, w - 1), min(1, h - 1) * w
    dx, dy = x - x0, y - y0
    first = (image_index.long() * h + y0) * w + x0
    cells = torch.stack([first, first + right, first + below, first + right + below])
    return cells, torch.stack([(1 - dx) * (1 - dy), dx * (1 - dy), (1 - dx) * dy, dx * dy])


def weighted_sum(rows: Tensor, cells: Tensor, weights: Tensor) -> Tensor:
    """Sum of four rows each, weighted: [R, E], [4, M], [4, M] → [M, E] in the rows' type."""
    weights = weights[:, :, None].to(rows.dtype)
    sampled = rows.index_select(0, cells[0]) * weights[0]
    for corner in (1, 2, 3):
        sampled += rows.index_select(0, cells[corner]) * weights[corner]
    return sampled


def sample_features(
    feature_map: Tensor,
    image_index: Tensor,
    uv: Tensor,
    image_size: tuple[int, int],
    grid: FeatureGrid = "align_corners",
) -> Tensor:
    """Bilinear samples of a frozen encoder's maps at pixels.

    Args:
        feature_map: [I, E, h, w], without gradient.
        image_index: which map, integer [M].
        uv: pixels (u, v) in the image the map was made from, integer = a pixel's centre, [M, 2].
        image_size: (height, width) of that image.
        grid: ``align_corners``: the map's corners lie on the image's corner pixels (u·(w−1)/(W−1)), as upsampling
            with ``align_corners=True`` has it; ``stride``: feature j is centred at pixel j·W/w; ``patch``: feature j
            covers the pixels [j·W/w, (j + 1)·W/w) and is centred in their middle, as a ViT's tokens are.

    Returns:
        [M, E] in the map's type. Positions outside are clamped to the border.
    """
    h, w = feature_map.shape[2:]
    cells, weights = bilinear_cells((h, w), image_index, uv, image_size, grid)
    return weighted_sum(feature_map.permute(0, 2, 3, 1).flatten(0, 2), cells, weights)


@torch.no_grad()
def features_at_pixels(
    maps: Callable[[Tensor], Tensor],
    channels: int,
    size: tuple[int, int],
    image_index: Tensor,
    uv: Tensor,
    grid: FeatureGrid,
    at_once: int = 0,
) -> Tensor:
    """Features at chosen pixels of images.

    Maps are asked for a few at a time, and those of images without a chosen pixel not at all: what is kept are the
    features at those pixels, never the maps of a whole batch.

    Args:
        maps: images, int64 [I'] on the CPU → their maps [I', E, h, w].
        channels: E.
        size: (height, width) of the images.
        image_index: the image of each pixel, int64 [M], on the CPU.
        uv: float32 [M, 2]; its device is the features'.
        grid: see :func:`sample_features`.
        at_once: maps per call; 0 = automatic: 4 on a CPU, the whole batch on a GPU.

    Returns:
        float32 [M, E].
    """
    image_index = image_index.cpu()
    images = torch.unique(image_index)
    at_once = at_once or (max(1, len(images)) if uv.is_cuda else 4)
    found, order = [uv.new_zeros(0, channels, dtype=torch.float32)], [image_index[:0]]
    for some in images.split(at_once):
        members = torch.nonzero(torch.isin(image_index, some))[:, 0]
        local = to_device(torch.searchsorted(some, image_index.index_select(0, members)), uv.device)
        pixels = uv if len(some) == len(images) else uv.index_select(0, to_device(members, uv.device))
        found.append(sample_features(maps(some), local, pixels, size, grid).float())
        order.append(members)
    if len(found) == 2:  # all images at once
        return found[1]
    return torch.cat(found).index_select(0, to_device(torch.argsort(torch.cat(order)), uv.device))
