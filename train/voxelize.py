"""Points to voxels: distinct integer coordinates, one feature for each, and the voxel of every point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..common import OlivineError
from ..common.settings import check_ranges
from .sparse.coordinates import MAX_BATCH, MAX_COORDINATE, describe, pack, unpack
from .transfer import to_device


@dataclass(frozen=True)
class VoxelSettings:
    """How points become voxels.

    Attributes:
        grid: ``cartesian`` (x, y, z) or ``cylindrical`` (distance from the z axis, azimuth, z).
        size_m: edge of a voxel in metres; in the cylindrical grid of the distance and of z.
        height_m: edge along z where it differs, else None.
        azimuth_deg: a cylindrical voxel's azimuth.
        feature: ``first`` takes the point that comes first in the cloud, ``mean`` the mean of the voxel's points.
        feature_channels: how many columns of a point become its feature, from ``first_channel`` on.
        first_channel: 3 for the intensity, 0 for (x, y, z, intensity).
        crop: whether points outside the range are left out.
        range_m: (x low, y low, z low, x high, y high, z high); low included, high excluded.
        from_corner: whether coordinates count from the range's low corner (a dense grid, see :attr:`shape`) and not
            from the sensor.
        max_points: a voxel's mean takes the first so many of its points; None for all.
        max_voxels: a cloud keeps the voxels of its first points up to so many; None for all.
    """

    grid: Literal["cartesian", "cylindrical"] = "cartesian"
    size_m: float = 0.1
    height_m: float | None = None
    azimuth_deg: float = 1.0
    feature: Literal["first", "mean"] = "first"
    first_channel: int = 3
    feature_channels: int = 1
    crop: bool = False
    range_m: tuple[float, float, float, float, float, float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    from_corner: bool = False
    max_points: int | None = None
    max_voxels: int | None = None

    def __post_init__(self) -> None:
        if self.grid not in ("cartesian", "cylindrical"):
            raise OlivineError(f"grid is {self.grid!r}", where="voxels.grid", remedy="use cartesian or cylindrical")
        if self.feature not in ("first", "mean"):
            raise OlivineError(f"feature is {self.feature!r}", where="voxels.feature", remedy="use first or mean")
        check_ranges("voxels", self, size_m=(0, 1e6, "(]"), height_m=(0, 1e6, "(]"), azimuth_deg=(0, 360, "(]"))
        check_ranges("voxels", self, first_channel=(0, 1 << 10), feature_channels=(1, 1 << 10))
        check_ranges("voxels", self, max_points=(1, 1 << 40), max_voxels=(1, 1 << 40))
        if not all(low < high for low, high in zip(self.range_m[:3], self.range_m[3:])):
            raise OlivineError("a low end is not below its high end", where="voxels.range_m")
        if self.from_corner and (self.grid != "cartesian" or not self.crop):
            raise OlivineError("counting from the corner needs a cropped Cartesian grid", where="voxels.from_corner")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The range's number of voxels along x, y, z."""
        edges = (self.size_m, self.size_m, self.height_m or self.size_m)
        x, y, z = (round((self.range_m[i + 3] - self.range_m[i]) / edges[i]) for i in range(3))
        return x, y, z


@dataclass(frozen=True)
class Voxels:
    """The voxels of a batch of clouds.

    Attributes:
        coordinate: int32 [V, 4], (batch, x, y, z), ascending.
        feature: float32 [V, C].
        inverse: int64 [N], the voxel of each point, -1 for points outside the range.
        first: int64 [V], the first point of each voxel.
    """

    coordinate: Tensor
    feature: Tensor
    inverse: Tensor
    first: Tensor

    def replace(self, coordinate: Tensor, feature: Tensor) -> Voxels:
        """The same voxels with other coordinates and features."""
        return Voxels(coordinate, feature, self.inverse, self.first)


def in_range(points: Tensor, settings: VoxelSettings) -> Tensor:
    """Check points and find those in the range, bool [N]: what :func:`voxelize` takes where it must not wait for a device.

    Raises:
        OlivineError: points that are not finite, coordinates beyond what a key holds.
    """
    xyz, where = points[:, :3], f"points {describe(points)}"
    reach = float(xyz.abs().amax()) if len(points) else 0.0
    if not math.isfinite(reach):
        count = int((~torch.isfinite(xyz).all(1)).sum())
        raise OlivineError(f"{count} points are not finite", where=where, remedy="remove them when the cloud is read")
    inside = torch.ones(len(points), dtype=torch.bool, device=points.device)
    if settings.crop:
        low, high = (
            torch.tensor(b, dtype=torch.float32, device=points.device)
            for b in (settings.range_m[:3], settings.range_m[3:])
        )
        inside = ((xyz >= low) & (xyz < high)).all(1)
    # No coordinate is larger than this; only where that is too large each point is looked at.
    edge = min(settings.size_m, settings.height_m or settings.size_m)
    most = 2 * (reach + max(map(abs, settings.range_m))) / edge + 360 / settings.azimuth_deg
    if most > MAX_COORDINATE:
        far = (_grid_coordinate(points, settings).abs().amax(1) > MAX_COORDINATE) & inside
        if bool(far.any()):
            raise OlivineError(
                f"{int(far.sum())} points lie more than {MAX_COORDINATE} voxels away",
                where=where,
                remedy="crop the cloud",
            )
    return inside


def voxelize(
    points: Tensor,
    batch_index: Tensor | list[int] | tuple[int, ...] | None,
    settings: VoxelSettings,
    checked: Tensor | None = None,
) -> Voxels:
    """The voxels of the points of a batch of clouds; the same for the same points.

    Args:
        points: float32 [N, >= 4], (x, y, z, intensity, …), metres in the LiDAR's frame.
        batch_index: int [N], the cloud of each point; or a list with the number of points of each cloud, in order; or
            None for a single cloud.
        settings: grid, sizes, feature, range.
        checked: what :func:`in_range` says of the points, if it was asked before, on the CPU.

    Raises:
        OlivineError: a wrong shape or dtype, points that are not finite, coordinates beyond what a key holds.
    """
    batch = _batch_of(points, batch_index)
    inside = in_range(points, settings) if checked is None else checked
    kept = to_device(torch.nonzero(inside)[:, 0], points.device) if settings.crop else None
    coordinate = torch.cat((batch[:, None], _grid_coordinate(points, settings)), 1)
    key = pack(coordinate if kept is None else coordinate.index_select(0, kept))
    distinct, voxel, count = torch.unique(key, sorted=True, return_inverse=True, return_counts=True)
    # A stable sort keeps each voxel's points in the cloud's order, so the first is the cloud's first.
    order = torch.sort(voxel, stable=True).indices
    begin = torch.cumsum(count, 0) - count
    member = order if kept is None else kept.index_select(0, order)
    first = member.index_select(0, begin)
    columns = points[:, settings.first_channel : settings.first_channel + settings.feature_channels].float()
    if columns.shape[1] != settings.feature_channels:
        raise OlivineError(
            f"a point has {points.shape[1]} columns, not {settings.feature_channels} from column {settings.first_channel} (from 0)",
            where="voxels.first_channel",
            remedy="use 3 with feature_channels 1 for the intensity, 0 with 4 for x, y, z and intensity",
        )
    if settings.feature == "first":
        feature = columns.index_select(0, first)
    else:
        feature = _mean(columns, member, begin, count, settings.max_points)
    inverse = voxel
    if kept is not None:
        inverse = torch.full((len(points),), -1, dtype=torch.int64, device=points.device).index_copy_(0, kept, voxel)
    voxels = Voxels(unpack(distinct), feature, inverse, first)
    return voxels if settings.max_voxels is None else _keep_first(voxels, settings.max_voxels)


def _mean(columns: Tensor, point: Tensor, begin: Tensor, count: Tensor, limit: int | None) -> Tensor:
    """Mean of each voxel's points, given in a row per voxel from ``begin`` on: [N, C] -> [V, C]."""
    used, total = count, len(point)
    if limit is not None:
        used = count.clamp(max=limit)
        rank = torch.arange(total, device=point.device) - torch.repeat_interleave(begin, count, output_size=total)
        point = point[rank < torch.repeat_interleave(used, count, output_size=total)]
    end = torch.zeros(len(used) + 1, dtype=torch.int64, device=point.device)
    torch.cumsum(used, 0, out=end[1:])
    return torch.nn.functional.embedding_bag(point, columns.contiguous(), end, mode="mean", include_last_offset=True)


def _keep_first(voxels: Voxels, limit: int) -> Voxels:
    """Of each cloud the voxels whose first points come first, at most ``limit``."""
    batch = voxels.coordinate[:, 0].long()
    by_first = torch.sort(voxels.first, stable=True).indices
    by_cloud = by_first.index_select(0, torch.sort(batch.index_select(0, by_first), stable=True).indices)
    count = torch.bincount(batch)
    rank = torch.empty_like(batch)
    rank[by_cloud] = torch.arange(len(batch), device=batch.device) - torch.repeat_interleave(
        torch.cumsum(count, 0) - count, count
    )
    keep = rank < limit
    number = torch.where(keep, torch.cumsum(keep, 0) - 1, -1)
    inverse = torch.where(voxels.inverse >= 0, number[voxels.inverse.clamp(min=0)], -1)
    return Voxels(voxels.coordinate[keep], voxels.feature[keep], inverse, voxels.first[keep])


def _batch_of(points: Tensor, batch_index: Tensor | list[int] | tuple[int, ...] | None) -> Tensor:
    where = f"points {describe(points)}"
    if points.ndim != 2 or points.shape[1] < 4 or not points.is_floating_point():
        raise OlivineError("points must be floating point of the shape [N, 4 or more]", where=where)
    if batch_index is None:
        return torch.zeros(len(points), dtype=torch.int64, device=points.device)
    if isinstance(batch_index, Tensor):
        if batch_index.shape != points.shape[:1]:
            raise OlivineError(f"one batch index per point is needed, not {list(batch_index.shape)}", where=where)
        batch = batch_index.to(points.device, torch.int64)
    else:
        if sum(batch_index) != len(points):
            raise OlivineError(f"the clouds have {sum(batch_index)} points together", where=where)
        if len(batch_index) > MAX_BATCH:
            raise OlivineError(f"batch indices must be in 0..{MAX_BATCH - 1}", where=where)
        number = torch.arange(len(batch_index), device=points.device)
        return torch.repeat_interleave(number, to_device(batch_index, points.device), output_size=len(points))
    if len(batch) and not 0 <= int(batch.min()) <= int(batch.max()) < MAX_BATCH:
        raise OlivineError(f"batch indices must be in 0..{MAX_BATCH - 1}", where=where)
    return batch


def _grid_coordinate(points: Tensor, settings: VoxelSettings) -> Tensor:
    xyz = points[:, :3]
    if settings.from_corner:
        xyz = xyz - to_device(torch.tensor(settings.range_m[:3], dtype=torch.float32), points.device)
    x, y, z = xyz[:, 0], xyz[:, 1], xyz[:, 2]
    height = settings.height_m or settings.size_m
    if settings.grid == "cartesian":
        columns = (x / settings.size_m, y / settings.size_m, z / height)
    else:
        azimuth = torch.atan2(y, x) * 180.0 / math.pi
        columns = (torch.sqrt(x * x + y * y) / settings.size_m, azimuth / settings.azimuth_deg, z / height)
    coordinate = torch.floor(torch.stack(columns, 1)).long()
    if settings.from_corner:
        # The last float below the high bound may round up to the cell behind it.
        coordinate = torch.minimum(coordinate, to_device(settings.shape, points.device) - 1)
    return coordinate
