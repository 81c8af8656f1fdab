"""VoxelNet: the sparse 3D trunk of SECOND and PV-RCNN (VoxelBackBone8x) and its residual form, with two heads.

Modules are named as in OpenPCDet's ``backbone_3d``, so that :mod:`.layouts` can write weights that its detectors
load. Coordinates are indices of a grid of known shape, and strided layers follow spconv's rule.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..sparse.modules import BatchNorm, Conv3d
from ..sparse.operations import to_dense
from ..sparse.tensor import SparseTensor
from ..voxelize import VoxelSettings
from .bev import sample_bilinear

#: Batch norm of these detectors.
NORM_EPS, NORM_MOMENTUM = 1e-3, 0.01
#: How far the trunk's output grid is coarser than its input in the plane.
STRIDE = 8

#: Voxels of 0.1 x 0.1 x 0.2 m, 60,000 of at most 10 points each, with the mean of (x, y, z, intensity).
VOXELNET_VOXELS = VoxelSettings(
    size_m=0.1,
    height_m=0.2,
    feature="mean",
    first_channel=0,
    feature_channels=4,
    crop=True,
    from_corner=True,
    max_points=10,
    max_voxels=60_000,
)


def _norm(channels: int) -> BatchNorm:
    return BatchNorm(channels, momentum=NORM_MOMENTUM, eps=NORM_EPS, rectify=True)


def _layer(in_channels: int, out_channels: int, padding: tuple[int, int, int] | None = None) -> nn.Sequential:
    # With a padding a strided layer, without one a submanifold layer.
    step = 1 if padding is None else 2
    return nn.Sequential(Conv3d(in_channels, out_channels, 3, step, padding=padding), _norm(out_channels))


class SparseBasicBlock(nn.Module):
    """Two submanifold convolutions with bias beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv3d(channels, channels, 3, bias=True), _norm(channels)
        self.conv2, self.bn2 = Conv3d(channels, channels, 3, bias=True), _norm(channels)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """relu(x + norm(conv(relu(norm(conv(x))))))."""
        normed: SparseTensor = self.bn2(self.conv2(self.bn1(self.conv1(tensor))), tensor)
        return normed


class VoxelNet(nn.Module):
    """The sparse trunk of voxel-based detectors, with a point-pixel and a category head.

    Args:
        in_channels: width of a voxel's feature (4: mean x, y, z, intensity).
        out_channels: width of each head's output.
        residual: the residual form (VoxelResBackBone8x) instead of the plain one.
        category_head: whether there is a second head.
        seed: of the initial weights.

    Attributes:
        feature_channels: width of :meth:`features`.
        voxel_settings: the voxels it is meant for.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 64,
        *,
        residual: bool = False,
        category_head: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.feature_channels = 128
        self.voxel_settings = VOXELNET_VOXELS
        top = 128 if residual else 64

        def level(in_channels: int, channels: int, padding: tuple[int, int, int]) -> nn.Sequential:
            rest = (SparseBasicBlock(channels) if residual else _layer(channels, channels) for _ in range(2))
            return nn.Sequential(_layer(in_channels, channels, padding), *rest)

        self.conv_input = nn.Sequential(Conv3d(in_channels, 16, 3), _norm(16))
        first = [SparseBasicBlock(16), SparseBasicBlock(16)] if residual else [_layer(16, 16)]
        self.conv1 = nn.Sequential(*first)
        self.conv2 = level(16, 32, (1, 1, 1))
        self.conv3 = level(32, 64, (1, 1, 1))
        self.conv4 = level(64, top, (1, 1, 0))
        self.conv_out = nn.Sequential(Conv3d(top, 128, (1, 1, 3), (1, 1, 2), padding=0), _norm(128))
        self.final = Conv3d(128, out_channels, 1)
        self.final_class_level = Conv3d(128, out_channels, 1) if category_head else None
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, Conv3d):
                module.reset_parameters(generator)

    def features(self, tensor: SparseTensor) -> SparseTensor:
        """The trunk's output, [M, 128], on a grid coarser by 8 in the plane; ``tensor`` needs its grid's shape."""
        return self.conv_out(self.conv4(self.conv3(self.conv2(self.conv1(self.conv_input(tensor))))))

    def forward(self, tensor: SparseTensor) -> tuple[SparseTensor, SparseTensor | None]:
        """The point-pixel and the category embedding of every coarse voxel, [M, out_channels], not normalised."""
        feature = self.features(tensor)
        category = None if self.final_class_level is None else self.final_class_level(feature)
        return self.final(feature), category

    def point_embedding(self, output: SparseTensor, points: Tensor, batch_index: Tensor) -> Tensor:
        """The embedding of points of a head's output: normalised in each cell, then bilinear in the plane.

        Args:
            output: one of :meth:`forward`'s tensors.
            points: [N, >= 2], x and y in metres.
            batch_index: int64 [N], the cloud of each point.

        Returns:
            [N, C x Z], not normalised again; Z is 1 with the usual range.
        """
        normal = nn.functional.normalize(output.feature, dim=1)
        grid = to_dense(output.replace(normal))
        plane = grid.permute(0, 1, 4, 2, 3).flatten(1, 2)
        low = torch.tensor(self.voxel_settings.range_m[:2], device=points.device)
        place = (points[:, :2] - low) / (self.voxel_settings.size_m * STRIDE)
        return sample_bilinear(plane, place, batch_index)
