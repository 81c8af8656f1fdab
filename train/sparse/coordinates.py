"""Voxel coordinates as sortable integers.

A coordinate (batch, x, y, z) becomes one int64 key with the batch index in the highest bits and z in the lowest, so
that keys sort like the coordinates and the key of a neighbour is the key plus a constant. All searches in this
package are binary searches in sorted keys: the same on every device, and the same every time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...common import OlivineError

FIELD_BITS = 17
FIELD_HALF = 1 << (FIELD_BITS - 1)

#: Largest absolute coordinate. The rest of the key's field is room for a kernel to reach over the edge.
MAX_COORDINATE = 60_000
#: Largest reach of a kernel in voxels: (kernel size - 1) x dilation x tensor stride.
MAX_REACH = FIELD_HALF - MAX_COORDINATE
#: Batch indices run from 0 to this, exclusive.
MAX_BATCH = 4096


def check_coordinates(coordinate: Tensor, batch_size: int | None = None) -> int:
    """Check the coordinates of a new tensor and return its number of clouds.

    Args:
        coordinate: int32 [N, 4], (batch, x, y, z).
        batch_size: the number of clouds where it is known; otherwise the largest batch index and one.

    Raises:
        OlivineError: wrong dtype or shape, no voxel at all, a cloud of the batch without voxels, or a coordinate that
            a key cannot hold. Duplicates are found later, when the keys are sorted (:func:`sort_keys`).
    """
    where = f"coordinate {describe(coordinate)}"
    if coordinate.dtype != torch.int32:
        raise OlivineError("coordinates must be int32", where=where, remedy="convert them with .int() after the floor")
    if coordinate.ndim != 2 or coordinate.shape[1] != 4:
        raise OlivineError("coordinates must have the shape [N, 4]: (batch, x, y, z)", where=where)
    if coordinate.shape[0] == 0:
        raise OlivineError("the cloud is empty", where=where, remedy="leave clouds without points out of the batch")
    low, high = (bound.tolist() for bound in torch.aminmax(coordinate, dim=0))
    if low[0] < 0 or high[0] >= MAX_BATCH:
        raise OlivineError(f"batch indices run from {low[0]} to {high[0]}, not within 0..{MAX_BATCH - 1}", where=where)
    if min(low[1:]) < -MAX_COORDINATE or max(high[1:]) > MAX_COORDINATE:
        raise OlivineError(
            f"coordinates run from {low[1:]} to {high[1:]}, beyond the {MAX_COORDINATE} voxels that a key holds",
            where=where,
            remedy="crop the cloud or make the voxels larger",
        )
    size = high[0] + 1 if batch_size is None else batch_size
    if high[0] >= size:
        raise OlivineError(f"a batch index of {high[0]} in a batch of {size}", where=where)
    count = torch.bincount(coordinate[:, 0], minlength=size)
    if not bool((count > 0).all()):
        missing = torch.nonzero(count == 0).flatten().tolist()
        raise OlivineError(
            f"cloud {missing[0]} of {size} in the batch has no voxels", where=where, remedy="leave empty clouds out"
        )
    return size


def describe(tensor: Tensor) -> str:
    """``[3, 4] torch.int64 on cpu``: what an error says of a tensor."""
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"


def pack(coordinate: Tensor) -> Tensor:
    """Keys int64 [N] of integer coordinates [N, 4]; see the module's text."""
    parts = coordinate.long()
    key = parts[:, 0]
    for axis in (1, 2, 3):
        key = (key << FIELD_BITS) + (parts[:, axis] + FIELD_HALF)
    return key


def unpack(key: Tensor) -> Tensor:
    """Coordinates int32 [N, 4] of keys int64 [N]; the inverse of :func:`pack`."""
    mask = (1 << FIELD_BITS) - 1
    x, y, z = (((key >> shift) & mask) - FIELD_HALF for shift in (2 * FIELD_BITS, FIELD_BITS, 0))
    return torch.stack((key >> (3 * FIELD_BITS), x, y, z), dim=1).int()


def key_offset(offset: tuple[int, int, int]) -> int:
    """What to add to a voxel's key to have the key of the voxel at (dx, dy, dz) from it."""
    x, y, z = offset
    return (((x << FIELD_BITS) + y) << FIELD_BITS) + z


def sort_keys(coordinate: Tensor) -> tuple[Tensor, Tensor | None]:
    """Sorted keys of a tensor's coordinates, and the rows they come from (None where the rows are sorted).

    Raises:
        OlivineError: two rows have the same coordinate.
    """
    key = pack(coordinate)
    step = key[1:] - key[:-1]
    if bool((step > 0).all()):
        return key, None
    key, row = torch.sort(key, stable=True)
    same = torch.nonzero(key[1:] == key[:-1]).flatten()
    if len(same):
        first, second = int(row[same[0]]), int(row[same[0] + 1])
        raise OlivineError(
            f"{len(same)} coordinates occur more than once; rows {first} and {second} are both "
            f"{coordinate[first].tolist()}",
            where=f"coordinate {describe(coordinate)}",
            remedy="make voxels of the points first (olivine.train.voxelize)",
        )
    return key, row


def unique_sorted(key: Tensor) -> Tensor:
    """The distinct values of ``key``, ascending."""
    return torch.unique(key, sorted=True)


def floor_to(coordinate: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Each of x, y, z lowered to the next multiple of the stride, towards minus infinity: -1 at stride 2 is -2."""
    step = torch.tensor((1, *stride), dtype=coordinate.dtype, device=coordinate.device)
    return torch.div(coordinate, step, rounding_mode="floor") * step
