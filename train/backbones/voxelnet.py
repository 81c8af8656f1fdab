"""VoxelNet: the sparse 3D trunk of SECOND and PV-RCNN (VoxelBackBone8x) and its residual form.

Modules are named as in OpenPCDet's ``backbone_3d``, so that weights can be written that its detectors load
(``downstream/layouts.py``). Coordinates are indices of a grid of known shape, and strided layers follow spconv's rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...common import OlivineError
from ..backbone import Backbone, BackboneSettings, Clouds, Features
from ..sparse.modules import BatchNorm, Conv3d
from ..sparse.operations import to_dense
from ..sparse.tensor import SparseTensor
from ._bev import sample_bilinear

#: Batch norm of these detectors.
NORM_EPS, NORM_MOMENTUM = 1e-3, 0.01
#: How far the trunk's output grid is coarser than its input in the plane.
STRIDE = 8


@dataclass(frozen=True)
class VoxelNetSettings(BackboneSettings):
    """The trunk's form.

    Attributes:
        residual: the residual form (VoxelResBackBone8x).
    """

    name: str = "voxelnet"
    residual: bool = False


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


class VoxelNet(Backbone):
    """The sparse trunk of voxel-based detectors. Its features are those of cells coarser by 8 in the plane; points take
    theirs by bilinear interpolation there.

    Args:
        in_channels: width of a voxel's feature (4: mean x, y, z, intensity).
        out_channels: width of a last linear layer ``final``; None for none.
        residual: the residual form (VoxelResBackBone8x) instead of the plain one.
        seed: of the initial weights, or the generator that they are drawn from.
    """

    Settings = VoxelNetSettings
    default_channels = 4
    per_point = True

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int | None = None,
        *,
        residual: bool = False,
        seed: int | torch.Generator = 0,
    ) -> None:
        super().__init__()
        self.feature_channels = 128
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
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        for module in self.modules():
            if isinstance(module, Conv3d):
                module.reset_parameters(generator)
        self.final = None if out_channels is None else self.new_head(out_channels, generator)

    def new_head(self, out_channels: int, generator: torch.Generator) -> Conv3d:
        """A 1x1x1 convolution without bias."""
        head = Conv3d(self.feature_channels, out_channels, 1)
        head.reset_parameters(generator)
        return head

    def encode(self, clouds: Clouds) -> Features:
        """Features of coarse cells; every point is a place of its own, those outside the range at its border.

        Raises:
            OlivineError: voxels do not count from a corner.
        """
        settings = clouds.settings
        if not settings.from_corner:
            raise OlivineError(
                "voxelnet counts voxels from a corner of its range",
                where="voxels.from_corner",
                remedy="take --config voxelnet, or --set voxels.from_corner=true voxels.crop=true",
            )
        cells = self.features(clouds.tensor)
        low = torch.tensor(settings.range_m[:2], device=clouds.points.device)
        place = (clouds.points[:, :2] - low) / (settings.size_m * STRIDE)

        def to_places(value: Tensor) -> Tensor:
            # The height of the coarse grid (1 with the usual range) goes into the channels.
            plane = to_dense(cells.replace(value)).permute(0, 1, 4, 2, 3).flatten(1, 2)
            return sample_bilinear(plane, place, clouds.cloud)

        return Features(cells, clouds.numbers, to_places)

    def features(self, tensor: SparseTensor) -> SparseTensor:
        """The trunk's output, [M, 128], on a grid coarser by 8 in the plane; ``tensor`` needs its grid's shape."""
        return self.conv_out(self.conv4(self.conv3(self.conv2(self.conv1(self.conv_input(tensor))))))

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """The trunk's output, through ``final`` where there is one."""
        feature = self.features(tensor)
        output: SparseTensor = feature if self.final is None else self.final(feature)
        return output
