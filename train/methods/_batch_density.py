"""The distance density (eq. 14) as the public code makes it: of the pairs at hand, not of the whole cloud."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_density(xy: Tensor, voxel_size: float | None) -> Tensor:
    """Distance density of each pair over the pairs at hand, as the public code makes it.

    The public code takes the distance in the plane in whole voxels for SR-UNet and rounded to a metre for VoxelNet, with
    Silverman's bandwidth 1.06 σ N^(−1/5) over all pairs, and evaluates the Gaussian kernel density at the values that
    occur.

    Args:
        xy: the pairs' points, [M, ≥2], metres.
        voxel_size: metres; None rounds to a metre.

    Returns:
        float64 [M], 1 / voxel or 1 / metre.
    """
    distance = torch.linalg.vector_norm(xy[:, :2].double(), dim=1)
    rho = distance.round() if voxel_size is None else torch.floor(distance / voxel_size)
    value, inverse, count = torch.unique(rho, return_inverse=True, return_counts=True)
    n = len(rho)
    spread = rho.std(correction=1) if n > 1 else rho.new_ones(())
    bandwidth = (1.06 * spread * n**-0.2).clamp(min=1e-3)
    kernel = torch.exp(-0.5 * ((value[:, None] - value[None, :]) / bandwidth) ** 2) / (2 * torch.pi) ** 0.5
    return ((kernel @ count.double()) / (n * bandwidth)).index_select(0, inverse)
