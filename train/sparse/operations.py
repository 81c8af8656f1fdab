"""What layers compute besides convolutions, as functions of arrays and sparse tensors."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...common import OlivineError
from .coordinates import describe
from .distributed import batch_norm_over_processes
from .tensor import SparseTensor


def batch_norm(feature: Tensor, norm: nn.BatchNorm1d, group: dist.ProcessGroup | None = None) -> Tensor:
    """Batch norm over the voxels of a batch, with the parameters and running statistics of ``norm``: [N, C] -> [N, C].

    With a group of more than one process, training takes the statistics over the voxels of all of them.

    Raises:
        OlivineError: training on a single voxel, which has no variance.
    """
    if norm.training and group is not None and dist.get_world_size(group) > 1:
        return batch_norm_over_processes(feature, norm, group)
    if norm.training and feature.shape[0] < 2:
        raise OlivineError(
            "batch norm cannot train on a single voxel",
            where=f"feature {describe(feature)}",
            remedy="leave clouds of a few points out of the batch",
        )
    result: Tensor = nn.BatchNorm1d.forward(norm, feature)  # norm(…) would come back here from a RowBatchNorm
    return result


def concatenate(*tensors: SparseTensor) -> SparseTensor:
    """Features side by side: tensors on the same voxels, [N, C1], [N, C2], … -> [N, C1 + C2 + …].

    Raises:
        OlivineError: tensors of different strides or on different voxels.
    """
    first = tensors[0]
    for other in tensors[1:]:
        if other.stride != first.stride:
            raise OlivineError(f"strides differ: {first!r} and {other!r}", where="concatenate")
        if other.voxels is not first.voxels:
            raise OlivineError(
                f"the tensors are not on the same voxels: {first!r} and {other!r}",
                where="concatenate",
                remedy="concatenate tensors that descend from one input",
            )
    return first.replace(torch.cat([tensor.feature for tensor in tensors], 1))


def to_dense(tensor: SparseTensor, shape: tuple[int, int, int] | None = None) -> Tensor:
    """The features on a dense grid, zero where there is no voxel.

    Args:
        tensor: coordinates from 0 in units of its stride.
        shape: the grid's size along x, y, z; by default the tensor's own.

    Returns:
        [B, C, X, Y, Z].

    Raises:
        OlivineError: no shape is known, or a voxel lies outside it.
    """
    size = shape or tensor.shape
    if size is None:
        raise OlivineError("a dense grid needs a shape", where=repr(tensor), remedy="pass shape=(x, y, z)")
    place = tensor.coordinate.long()
    if tensor.shape is None:
        place = place // torch.tensor((1, *tensor.stride), device=place.device)
    beyond = torch.stack([place[:, 1 + axis] >= limit for axis, limit in enumerate(size)])
    if bool((place[:, 1:] < 0).any() | beyond.any()):
        raise OlivineError(f"voxels outside the grid of {size}", where=repr(tensor))
    cell = ((place[:, 0] * size[0] + place[:, 1]) * size[1] + place[:, 2]) * size[2] + place[:, 3]
    cells = tensor.batch_size * size[0] * size[1] * size[2]
    # index_copy repeats bit for bit in both directions: each row has a cell of its own.
    grid = tensor.feature.new_zeros(cells, tensor.feature.shape[1]).index_copy(0, cell, tensor.feature)
    return grid.view(tensor.batch_size, *size, -1).permute(0, 4, 1, 2, 3)
