"""Values of a bird's-eye map at the places of points."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_bilinear(plane: Tensor, place: Tensor, batch_index: Tensor) -> Tensor:
    """Bilinear interpolation between the cells of a map, where cell i is at the index i.

    Args:
        plane: [B, C, X, Y].
        place: [N, 2], fractional indices (x, y), clamped to the map.
        batch_index: int64 [N].

    Returns:
        [N, C]. The gradient with respect to ``plane`` repeats bit for bit on a CPU.
    """
    _, channels, width, height = plane.shape
    cells = plane.permute(0, 2, 3, 1).reshape(-1, channels)
    x = place[:, 0].clamp(0, width - 1)
    y = place[:, 1].clamp(0, height - 1)
    left, low = x.floor(), y.floor()
    total = torch.zeros(len(place), channels, dtype=plane.dtype, device=plane.device)
    for i, along_x in ((left, 1 - (x - left)), ((left + 1).clamp(max=width - 1), x - left)):
        for j, along_y in ((low, 1 - (y - low)), ((low + 1).clamp(max=height - 1), y - low)):
            row = (batch_index * width + i.long()) * height + j.long()
            total = total + cells.index_select(0, row) * (along_x * along_y).to(plane.dtype)[:, None]
    return total
