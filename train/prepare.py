"""What is checked and decided of a batch on the CPU, before it goes to the device: a step on a GPU must not wait for it."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from .backbone import Clouds
from .batch import Batch, check_labels
from .transfer import to_device
from .voxelize import VoxelSettings, in_range, voxelize


def prepare(batch: Batch, settings: VoxelSettings, classes: int, engine: str, weight: Tensor) -> tuple[Batch, Clouds]:
    """A batch on the device, without the pairs whose points lie outside the voxels' range, and the voxels of its clouds.

    Args:
        batch: on the CPU.
        classes: C, of the pairs' labels.
        engine: of sparse convolutions.
        weight: of the 3D network, whose device and type the voxels' features are to have.

    Raises:
        OlivineError: points or labels that cannot be.
    """
    device = weight.device
    points, count = batch.clouds()
    found = in_range(points, settings)
    held = torch.tensor(count)
    if found.rows is not None:
        inside = torch.zeros(len(points), dtype=torch.bool).index_fill_(0, found.rows, True)
        kept = torch.nonzero(inside.index_select(0, batch.pair_point))[:, 0]
        batch = batch if len(kept) == len(batch.pair_point) else batch.select_pairs(kept)
        edges = torch.searchsorted(found.rows, torch.tensor([0, *accumulate(count)]))
        held = edges[1:] - edges[:-1]
    check_labels(batch, classes)
    batch = batch.to(device)
    points = batch.clouds()[0]
    voxels = voxelize(points, count, settings, found.to(device))
    present = held > 0
    # Clouds left without a voxel leave no gap; their points are given to the next one that has some, or the last.
    number = (present.cumsum(0) - present.long()).clamp(max=int(present.sum()) - 1)
    cloud = torch.repeat_interleave(
        to_device(number, device), to_device(torch.tensor(count), device), output_size=len(points)
    )
    coordinate = voxels.coordinate
    if not bool(present.all()):
        first = to_device(number, device).index_select(0, coordinate[:, 0].long())
        coordinate = torch.cat([first[:, None].to(coordinate.dtype), coordinate[:, 1:]], 1)
    voxels = voxels.replace(coordinate, voxels.feature.to(weight.dtype))
    return batch, Clouds(points, cloud, voxels, settings, engine)
