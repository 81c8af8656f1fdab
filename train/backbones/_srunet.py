"""The sparse residual U-Net over voxels that ``srunet34.py`` and ``srunet_small.py`` give widths and depths.

The architecture and the parameters' names are those of the 3D network of SLidR and OLIVINE (a MinkUNet with residual
blocks of two convolutions), so that their checkpoints load: four strided levels, each followed by residual blocks,
and back up with the skipped features concatenated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ..backbone import Backbone, BackboneSettings, Clouds, Features
from ..sparse.modules import BatchNorm, Conv3d, ConvTranspose3d
from ..sparse.operations import concatenate
from ..sparse.tensor import SparseTensor

#: Momentum of the norms inside residual blocks, whatever the stage of training.
BLOCK_MOMENTUM = 0.1


@dataclass(frozen=True)
class SRUNetLayout:
    """Widths and depths of a sparse residual U-Net.

    Attributes:
        stem: width of the first convolution.
        planes: widths of the four levels down and the four up; the last is the width of the features.
        blocks: residual blocks of each.
    """

    stem: int
    planes: tuple[int, int, int, int, int, int, int, int]
    blocks: tuple[int, int, int, int, int, int, int, int]


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions beside a shortcut, which is a 1x1x1 convolution where the width changes."""

    def __init__(self, in_channels: int, channels: int, shortcut_momentum: float) -> None:
        super().__init__()
        self.conv1 = Conv3d(in_channels, channels, 3)
        self.norm1 = BatchNorm(channels, momentum=BLOCK_MOMENTUM, rectify=True)
        self.conv2 = Conv3d(channels, channels, 3)
        self.norm2 = BatchNorm(channels, momentum=BLOCK_MOMENTUM, rectify=True)
        self.downsample: nn.Module | None = None
        if in_channels != channels:
            self.downsample = nn.Sequential(
                Conv3d(in_channels, channels, 1), BatchNorm(channels, momentum=shortcut_momentum)
            )

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """relu(shortcut + norm(conv(relu(norm(conv(x))))))."""
        inner = self.conv2(self.norm1(self.conv1(tensor)))
        shortcut = tensor if self.downsample is None else self.downsample(tensor)
        normed: SparseTensor = self.norm2(inner, shortcut)
        return normed


@dataclass(frozen=True)
class SRUNetSettings(BackboneSettings):
    """The U-Net's random weights.

    Attributes:
        first_weights: ``minkowski`` as MinkowskiEngine draws them, which is what SLidR and OLIVINE start from: uniform in
            ± (cells · inputs)^(−1/2), of transposed layers outputs; ``kaiming`` normal with variance 2 / (cells · outputs),
            about 2.4 times as wide, but for transposed layers.
    """

    first_weights: Literal["minkowski", "kaiming"] = "minkowski"


class SRUNet(Backbone):
    """A sparse residual U-Net.

    Args:
        in_channels: width of a voxel's feature (1: intensity).
        out_channels: width of a last linear layer ``final``; None for none. Pre-training needs none: heads are the
            method's.
        norm_momentum: of the batch norms outside residual blocks and in their shortcuts: 0.05 in pre-training, 0.02
            in fine-tuning, as in the authors' public code.
        seed: of the initial weights, or the generator that they are drawn from.
        first_weights: see :class:`SRUNetSettings`.

    Attributes:
        layout: widths and depths.
    """

    Settings = SRUNetSettings
    layout: ClassVar[SRUNetLayout]
    finetune_options: ClassVar[dict[str, Any]] = {"norm_momentum": 0.02}

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,
        *,
        norm_momentum: float = 0.05,
        seed: int | torch.Generator = 0,
        first_weights: str = "minkowski",
    ) -> None:
        super().__init__()
        layout, self.first_weights = self.layout, first_weights
        planes, blocks, stem = layout.planes, layout.blocks, layout.stem
        self.feature_channels = planes[7]

        def norm(channels: int) -> BatchNorm:
            return BatchNorm(channels, momentum=norm_momentum, rectify=True)

        def stage(in_channels: int, channels: int, count: int) -> nn.Sequential:
            first = ResidualBlock(in_channels, channels, norm_momentum)
            return nn.Sequential(first, *(ResidualBlock(channels, channels, norm_momentum) for _ in range(count - 1)))

        self.conv0p1s1 = Conv3d(in_channels, stem, 3)
        self.bn0 = norm(stem)
        self.conv1p1s2 = Conv3d(stem, stem, 2, 2)
        self.bn1 = norm(stem)
        self.block1 = stage(stem, planes[0], blocks[0])
        self.conv2p2s2 = Conv3d(planes[0], planes[0], 2, 2)
        self.bn2 = norm(planes[0])
        self.block2 = stage(planes[0], planes[1], blocks[1])
        self.conv3p4s2 = Conv3d(planes[1], planes[1], 2, 2)
        self.bn3 = norm(planes[1])
        self.block3 = stage(planes[1], planes[2], blocks[2])
        self.conv4p8s2 = Conv3d(planes[2], planes[2], 2, 2)
        self.bn4 = norm(planes[2])
        self.block4 = stage(planes[2], planes[3], blocks[3])

        self.convtr4p16s2 = ConvTranspose3d(planes[3], planes[4], 2, 2)
        self.bntr4 = norm(planes[4])
        self.block5 = stage(planes[4] + planes[2], planes[4], blocks[4])
        self.convtr5p8s2 = ConvTranspose3d(planes[4], planes[5], 2, 2)
        self.bntr5 = norm(planes[5])
        self.block6 = stage(planes[5] + planes[1], planes[5], blocks[5])
        self.convtr6p4s2 = ConvTranspose3d(planes[5], planes[6], 2, 2)
        self.bntr6 = norm(planes[6])
        self.block7 = stage(planes[6] + planes[0], planes[6], blocks[6])
        self.convtr7p2s2 = ConvTranspose3d(planes[6], planes[7], 2, 2)
        self.bntr7 = norm(planes[7])
        self.block8 = stage(planes[7] + stem, planes[7], blocks[7])

        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        for module in self.modules():
            if isinstance(module, Conv3d | ConvTranspose3d):
                _reset(module, generator, first_weights)
        self.final = None if out_channels is None else self.new_head(out_channels, generator)

    def new_head(self, out_channels: int, generator: torch.Generator) -> Conv3d:
        """A 1x1x1 convolution with bias."""
        head = Conv3d(self.feature_channels, out_channels, 1, bias=True)
        _reset(head, generator, self.first_weights)
        return head

    def encode(self, clouds: Clouds) -> Features:
        """A feature for each voxel; a point's place is its voxel."""
        return Features(self.features(clouds.tensor), clouds.voxels.inverse)

    def layers(self) -> list[nn.Module]:
        """Stem, the four levels down, the four levels up."""
        names: list[tuple[str, ...]] = [("conv0p1s1", "bn0")]
        names += [(f"conv{i}p{2 ** (i - 1)}s2", f"bn{i}", f"block{i}") for i in (1, 2, 3, 4)]
        names += [(f"convtr{i}p{2 ** (8 - i)}s2", f"bntr{i}", f"block{i + 1}") for i in (4, 5, 6, 7)]
        return [nn.ModuleList(getattr(self, name) for name in level) for level in names]

    def features(self, tensor: SparseTensor) -> SparseTensor:
        """The trunk's output on the input's voxels, before the heads: [V, feature_channels]."""
        skip1 = self.bn0(self.conv0p1s1(tensor))
        skip2 = self.block1(self.bn1(self.conv1p1s2(skip1)))
        skip4 = self.block2(self.bn2(self.conv2p2s2(skip2)))
        skip8 = self.block3(self.bn3(self.conv3p4s2(skip4)))
        out = self.block4(self.bn4(self.conv4p8s2(skip8)))
        out = self.block5(concatenate(self.bntr4(self.convtr4p16s2(out)), skip8))
        out = self.block6(concatenate(self.bntr5(self.convtr5p8s2(out)), skip4))
        out = self.block7(concatenate(self.bntr6(self.convtr6p4s2(out)), skip2))
        return self.block8(concatenate(self.bntr7(self.convtr7p2s2(out)), skip1))

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """The trunk's output, through ``final`` where there is one."""
        feature = self.features(tensor)
        output: SparseTensor = feature if self.final is None else self.final(feature)
        return output


def _reset(module: Conv3d | ConvTranspose3d, generator: torch.Generator, first_weights: str) -> None:
    module.reset_parameters(generator)  # uniform
    if first_weights == "kaiming" and isinstance(module, Conv3d):
        fan_out = module.kernel.numel() // module.in_channels
        nn.init.normal_(module.kernel, 0.0, (2.0 / fan_out) ** 0.5, generator=generator)
