"""What a pass needs besides weights: checks and decisions on the CPU, copies, voxels, kernel maps, an encoder's maps.

On a GPU a thread does this for the next pass (:mod:`~olivine.common.ahead`) while the step computes with this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .backbone import Clouds
from .batch import Batch, check_labels, collate
from .sparse.engines import MapsAhead
from .transfer import to_device
from .voxelize import VoxelSettings, in_range, voxelize

if TYPE_CHECKING:
    from .forward import Distiller
    from .pixel_features import PixelFeatures
    from .sample import Sample


class Prepared:
    """A pass's frames on the device. (No dataclass, as :class:`~.backbone.Clouds`.)

    Attributes:
        batch: whole contrast groups; clouds: their voxels.
        pixels: the frozen encoder's features; None where the method needs none.
        class_count: int64 [C] on the CPU, pairs of each class in the data set, label 0 included.
    """

    def __init__(self, batch: Batch, clouds: Clouds, pixels: PixelFeatures | None, class_count: Tensor) -> None:
        self.batch, self.clouds, self.pixels, self.class_count = batch, clouds, pixels, class_count


def passes(
    steps: Iterator[list[Sample]], size: int, model: Distiller, pixels: PixelFeatures | None, class_count: Tensor
) -> Iterator[Prepared]:
    """Each pass, of ``size`` frames, of each step."""
    maps = MapsAhead()
    for samples in steps:
        for start in range(0, len(samples), size):
            ready = prepare_pass(collate(samples[start : start + size]), model, pixels, class_count)
            maps(ready.clouds.tensor)
            yield ready
            del ready


@torch.no_grad()
def prepare_pass(batch: Batch, model: Distiller, pixels: PixelFeatures | None, class_count: Tensor) -> Prepared:
    """See :func:`prepare` and :meth:`~.pixel_features.PixelFeatures.ahead`."""
    weight = next(model.backbone.parameters())
    batch, clouds = prepare(batch, model.voxels, len(class_count), model.engine, weight)
    return Prepared(batch, clouds, pixels and pixels.ahead(batch), class_count)


def prepare(batch: Batch, settings: VoxelSettings, classes: int, engine: str, weight: Tensor) -> tuple[Batch, Clouds]:
    """A batch on the device, without the pairs whose points have no voxel, and the voxels of its clouds.

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
    inside = in_range(points, settings)
    present = torch.tensor([bool(part.any()) for part in inside.split(count)])
    batch = batch.pairs_inside(inside)
    check_labels(batch, classes)
    batch = batch.to(device)
    points = batch.clouds()[0]
    voxels = voxelize(points, count, settings, inside)
    if settings.max_voxels is not None:  # some points in the range have no voxel
        inside = (voxels.inverse >= 0).cpu()
        batch = batch.pairs_inside(inside)
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
    clouds = Clouds(points, cloud, voxels, settings, engine)
    clouds.inside = inside
    return batch, clouds
