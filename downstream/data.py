"""Frames of a shard set as a segmentation network takes them: voxels with a label each, or a frozen backbone's features.

A voxel's label is its first point's, as its feature is; every original point keeps the voxel that speaks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..pairs.shards import ShardSet
from ..train.augment import NO_AUGMENTATION, AugmentSettings, generator_of, rotate_and_flip
from ..train.sparse import SparseTensor
from ..train.voxelize import VoxelSettings, voxelize

_TURNS = replace(NO_AUGMENTATION, rotate=True, flip_axes=True)


@dataclass(frozen=True)
class Example:
    """One frame or a batch of them.

    Attributes:
        inputs: of the network: voxel features float32 [V, C] and coordinates int32 [V, 4], or frozen features [V, C].
        label: int64 [V], 0 = ignored.
        inverse: int64 [N], the voxel of each original point.
    """

    inputs: tuple[Tensor, ...]
    label: Tensor
    inverse: Tensor


class Examples(Protocol):
    """Frames that a network is trained on or scored on."""

    def batch(self, members: Sequence[tuple[int, int]]) -> Example:
        """Frames, each with the epoch that its augmentation is drawn for, as one batch."""

    def whole(self, frame: int) -> Example:
        """A frame as it is stored."""


class Clouds:
    """Voxels of clouds, rotated and flipped where asked for.

    Args:
        shards: with point labels; without, every label is 0.
        voxels: as the backbone was trained with; nothing is cropped, so that every point has a voxel.
        seed: of the augmentation; None for none.
    """

    def __init__(self, shards: ShardSet, voxels: VoxelSettings, device: torch.device, seed: int | None = None) -> None:
        self.shards, self.device, self.seed = shards, device, seed
        self.voxels = replace(voxels, crop=False)

    def batch(self, members: Sequence[tuple[int, int]]) -> Example:
        """See :class:`Examples`."""
        settings = NO_AUGMENTATION if self.seed is None else _TURNS
        return self._make([(frame, settings, epoch) for epoch, frame in members])

    def whole(self, frame: int) -> Example:
        """See :class:`Examples`."""
        return self._make([(frame, NO_AUGMENTATION, 0)])

    def _make(self, members: Sequence[tuple[int, AugmentSettings, int]]) -> Example:
        clouds: list[NDArray[np.float32]] = []
        labels: list[NDArray[np.uint8]] = []
        for frame, settings, epoch in members:
            points = np.array(self.shards.points(frame))
            generator = generator_of(self.seed or 0, epoch, frame)
            points[:, :3] = rotate_and_flip(points[:, :3], settings, generator)
            label = self.shards.point_label(frame)
            clouds.append(points)
            labels.append(np.zeros(len(points), np.uint8) if label is None else label)
        cloud = torch.from_numpy(np.concatenate(clouds)).to(self.device)
        truth = torch.from_numpy(np.concatenate(labels)).to(self.device)
        voxels = voxelize(cloud, [len(points) for points in clouds], self.voxels)
        of_voxel = truth.index_select(0, voxels.first).long()
        return Example((voxels.feature, voxels.coordinate), of_voxel, voxels.inverse)


class FrozenFeatures:
    """A frozen backbone's features of clouds: computed once while they fit into memory, unless they are augmented."""

    def __init__(self, clouds: Clouds, backbone: nn.Module, memory: int) -> None:
        self.clouds, self.backbone = clouds, backbone.eval().requires_grad_(False)
        self._kept: dict[int, Example] = {}
        self._memory = memory

    def batch(self, members: Sequence[tuple[int, int]]) -> Example:
        """See :class:`Examples`; the inverse is left out."""
        if self.clouds.seed is not None:
            return self._features(self.clouds.batch(members))
        frames = [self._kept.get(frame) or self._keep(frame) for _, frame in members]
        feature = torch.cat([f.inputs[0] for f in frames])
        return Example((feature,), torch.cat([f.label for f in frames]), frames[0].inverse[:0])

    def whole(self, frame: int) -> Example:
        """See :class:`Examples`."""
        return self._features(self.clouds.whole(frame))

    def _keep(self, frame: int) -> Example:
        example = self.whole(frame)
        self._memory -= example.inputs[0].numel() * example.inputs[0].element_size()
        if self._memory > 0:
            self._kept[frame] = example
        return example

    @torch.no_grad()
    def _features(self, example: Example) -> Example:
        feature, coordinate = example.inputs
        tensor = self.backbone.features(SparseTensor(feature, coordinate))  # type: ignore[operator]
        return replace(example, inputs=(tensor.feature,))
