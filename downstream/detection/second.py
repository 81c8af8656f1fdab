"""SECOND: a VoxelNet trunk, its height folded into channels, a 2D backbone, and an anchor head (Yan et al., 2018).

Modules and parameters are named as in OpenPCDet's ``SECONDNet``, so that its checkpoints load and ours load there
(``downstream/layouts.py``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...common import OlivineError
from ...train.backbone import Backbone, Clouds
from ...train.backbones.voxelnet import STRIDE, VoxelNet
from ...train.sparse.operations import to_dense
from ...train.sparse.tensor import SparseTensor
from ...train.voxelize import VoxelSettings
from .anchors import KITTI_ANCHORS, AnchorSettings, make_anchors
from .boxes import WIDTH, decode, wrap
from .losses import DIRECTION_OFFSET
from .rotated import suppress

VOXELS = {
    # OpenPCDet's second.yaml.
    "second": VoxelSettings(
        size_m=0.05,
        height_m=0.1,
        feature="mean",
        first_channel=0,
        feature_channels=4,
        crop=True,
        range_m=(0.0, -40.0, -3.0, 70.4, 40.0, 1.0),
        from_corner=True,
        max_points=5,
    ),
    # The voxels of OLIVINE's pre-training of VoxelNet, in front of the car.
    "pretraining": VoxelSettings(
        size_m=0.1,
        height_m=0.2,
        feature="mean",
        first_channel=0,
        feature_channels=4,
        crop=True,
        range_m=(0.0, -40.0, -5.0, 70.4, 40.0, 3.0),
        from_corner=True,
        max_points=10,
    ),
}
_DIRECTIONS = 2


@dataclass(frozen=True)
class PlaneSettings:
    """The 2D backbone on the bird's-eye map: two blocks, the second of half the resolution, brought together again.

    Attributes:
        layers: convolutions of a block after its first.
        channels: of the blocks.
        up_channels: of what each block gives to the head.
    """

    layers: tuple[int, int] = (5, 5)
    channels: tuple[int, int] = (128, 256)
    up_channels: tuple[int, int] = (256, 256)


class HeadOutput(NamedTuple):
    """What the head says of each anchor of a batch. (No frozen dataclass: Fabric's wrapper writes into its output.)

    Attributes:
        logit: [B, A, classes].
        code: [B, A, 7], see :func:`~olivine.downstream.detection.boxes.encode`.
        direction: [B, A, 2], logits.
    """

    logit: Tensor
    code: Tensor
    direction: Tensor


@dataclass(frozen=True)
class Detections:
    """The boxes found in a cloud, by descending score.

    Attributes:
        boxes: float32 [N, 7], in the LiDAR frame.
        score: float32 [N], in [0, 1].
        kind: int64 [N], the class from 1 on.
    """

    boxes: NDArray[np.float32]
    score: NDArray[np.float32]
    kind: NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """Which boxes are kept.

    Attributes:
        score: at least this.
        iou: a box that overlaps a better one by more goes, of whatever class.
        before, most: boxes that take part in this, and that stay.
    """

    score: float = 0.1
    iou: float = 0.01
    before: int = 4096
    most: int = 500


class PlaneBackbone(nn.Module):
    """The 2D backbone: [B, C, Y, X] -> [B, sum of ``up_channels``, Y, X]; Y and X are even."""

    def __init__(self, in_channels: int, settings: PlaneSettings) -> None:
        super().__init__()

        def norm(channels: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01), nn.ReLU()]

        self.blocks, self.deblocks = nn.ModuleList(), nn.ModuleList()
        before = in_channels
        for i, (layers, width, up) in enumerate(zip(settings.layers, settings.channels, settings.up_channels)):
            first = [nn.ZeroPad2d(1), nn.Conv2d(before, width, 3, i + 1, bias=False), *norm(width)]
            rest = [[nn.Conv2d(width, width, 3, padding=1, bias=False), *norm(width)] for _ in range(layers)]
            self.blocks.append(nn.Sequential(*first, *(module for layer in rest for module in layer)))
            self.deblocks.append(
                nn.Sequential(nn.ConvTranspose2d(width, up, i + 1, stride=i + 1, bias=False), *norm(up))
            )
            before = width
        self.out_channels = sum(settings.up_channels)

    def forward(self, plane: Tensor) -> Tensor:
        """Both blocks' features at the first one's resolution."""
        found = []
        for block, deblock in zip(self.blocks, self.deblocks):
            plane = block(plane)
            found.append(deblock(plane))
        return torch.cat(found, 1)


class AnchorHead(nn.Module):
    """Three 1x1 convolutions: classes, boxes and directions of the anchors of each cell."""

    def __init__(self, in_channels: int, per_cell: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.conv_cls = nn.Conv2d(in_channels, per_cell * classes, 1)
        self.conv_box = nn.Conv2d(in_channels, per_cell * WIDTH, 1)
        self.conv_dir_cls = nn.Conv2d(in_channels, per_cell * _DIRECTIONS, 1)

    def forward(self, plane: Tensor) -> HeadOutput:
        """What it says of the anchors, in the order of :func:`~olivine.downstream.detection.anchors.make_anchors`."""

        def rows(value: Tensor, width: int) -> Tensor:
            return value.permute(0, 2, 3, 1).reshape(len(value), -1, width)

        return HeadOutput(
            rows(self.conv_cls(plane), self.classes),
            rows(self.conv_box(plane), WIDTH),
            rows(self.conv_dir_cls(plane), _DIRECTIONS),
        )


class Second(nn.Module):
    """SECOND on a trunk.

    Args:
        trunk: a VoxelNet.
        voxels: of the clouds; the range's cells in the plane are a multiple of 16.
        settings: of the 2D backbone.
        anchors: of the classes.
        seed: of the weights that the trunk does not bring.

    Raises:
        OlivineError: another backbone than VoxelNet, or a range that does not fit it.
    """

    anchors: Tensor

    def __init__(
        self,
        trunk: Backbone,
        voxels: VoxelSettings,
        settings: PlaneSettings | None = None,
        anchors: Sequence[AnchorSettings] = KITTI_ANCHORS,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(trunk, VoxelNet):
            raise OlivineError(
                f"SECOND stands on the trunk of a VoxelNet, not on a {type(trunk).__name__}",
                remedy="give a checkpoint that was pre-trained with --config voxelnet",
            )
        width, depth, height = voxels.shape
        levels = _levels(height + 1)
        if width % (2 * STRIDE) or depth % (2 * STRIDE) or levels < 1:
            raise OlivineError(
                f"a grid of {width} x {depth} x {height} voxels does not fit the network",
                where="range_m",
                remedy=f"choose sides of multiples of {2 * STRIDE} voxels, and a height of 28 voxels at least",
            )
        self.classes = tuple(anchor.name for anchor in anchors)
        self.backbone_3d = trunk
        self.backbone_2d = PlaneBackbone(trunk.feature_channels * levels, settings or PlaneSettings())
        per_cell = sum(len(anchor.headings) for anchor in anchors)
        self.dense_head = AnchorHead(self.backbone_2d.out_channels, per_cell, len(anchors))
        made = make_anchors(anchors, voxels.range_m, (width // STRIDE, depth // STRIDE))
        self.register_buffer("anchors", made, persistent=False)
        _initialize((self.backbone_2d, self.dense_head), torch.Generator().manual_seed(seed))
        with torch.no_grad():
            nn.init.constant_(self.dense_head.conv_cls.bias, -math.log(99))  # type: ignore[arg-type]
            nn.init.normal_(
                self.dense_head.conv_box.weight, std=0.001, generator=torch.Generator().manual_seed(seed + 1)
            )

    def forward(self, clouds: Clouds) -> HeadOutput:
        """What the head says of each anchor of a batch of clouds; each cloud needs a voxel."""
        x, y, z = clouds.settings.shape
        # One layer of voxels more than the range, as the trunk has it in these detectors.
        tensor = SparseTensor(
            clouds.voxels.feature, clouds.voxels.coordinate, shape=(x, y, z + 1), engine=clouds.engine
        )
        plane = to_dense(self.backbone_3d.features(tensor)).permute(0, 1, 4, 3, 2).flatten(1, 2)
        output: HeadOutput = self.dense_head(self.backbone_2d(plane))
        return output

    @torch.no_grad()
    def detections(self, output: HeadOutput, selection: Selection | None = None) -> list[Detections]:
        """The boxes of each cloud of a batch: decoded, turned to their directions, suppressed."""
        chosen = selection or Selection()
        anchors = self.anchors.view(-1, WIDTH)
        found = []
        for logit, code, direction in zip(output.logit.float(), output.code.float(), output.direction.float()):
            score, kind = torch.sigmoid(logit).max(1)
            rows = torch.nonzero(score >= chosen.score).flatten()
            boxes = decode(code[rows], anchors[rows])
            part = 2 * math.pi / _DIRECTIONS
            turn = wrap(boxes[:, 6] - DIRECTION_OFFSET, part, 0.0) + DIRECTION_OFFSET
            boxes[:, 6] = turn + part * direction[rows].argmax(1)
            plain = boxes.cpu().numpy()
            scores = score[rows].cpu().numpy()
            kept = suppress(plain, scores, chosen.iou, before=chosen.before, most=chosen.most)
            found.append(Detections(plain[kept], scores[kept], kind[rows].cpu().numpy()[kept] + 1))
        return found


def _levels(height: int) -> int:
    """Layers of the trunk's output of an input of so many layers."""
    for padding in (1, 1, 0, 0):
        height = (height + 2 * padding - 3) // 2 + 1
    return height


def _initialize(parts: Sequence[nn.Module], generator: torch.Generator) -> None:
    """PyTorch's own initial weights, drawn from a generator."""
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
                if module.bias is not None:
                    bound = 1 / math.sqrt(module.weight[0].numel())
                    nn.init.uniform_(module.bias, -bound, bound, generator=generator)
