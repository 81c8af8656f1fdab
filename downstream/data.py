"""Frames of a shard set as a segmentation network takes them: clouds with a label at each place, or frozen features there.

A network gives features at places: voxels, or points where it interpolates. A voxel's label is its first point's, as its
feature is; every original point keeps the place that speaks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common import OlivineError
from ..pairs.shards import ShardSet
from ..train.augment import NO_AUGMENTATION, AugmentSettings, generator_of, move_cloud
from ..train.backbone import Backbone, Clouds
from ..train.corruptions import corrupt_for_training
from ..train.mixture import network_intensity
from ..train.voxelize import VoxelSettings, voxelize
from .network import features_at

Corruption = Callable[[NDArray[np.float32], int], tuple[NDArray[np.float32], NDArray[np.bool_]]]


@dataclass(frozen=True)
class Example:
    """One frame or a batch of them.

    Attributes:
        inputs: of the model: the clouds, or frozen features [places, C].
        label: int64 [places], 0 = ignored.
        inverse: int64 [N], the place of each original point.
    """

    inputs: Clouds | Tensor
    label: Tensor
    inverse: Tensor


class Examples(Protocol):
    """Frames that a network is trained on or scored on."""

    def batch(self, members: Sequence[tuple[int, int]]) -> Example:
        """Frames, each with the epoch that its augmentation is drawn for, as one batch.

        Raises:
            OlivineError: a frame without a point in the network's range; it is named.
        """

    def whole(self, frame: int) -> Example:
        """A frame as it is stored."""


class CloudExamples:
    """Clouds, augmented where asked for.

    Args:
        shards: with point labels; without, every label is 0.
        voxels: as the backbone was trained with; nothing is cropped, so that every point has a voxel, unless the
            network's grid has a border: points beyond take the features at the border where the places are the
            points, and have none elsewhere; see :func:`check_reaches_every_point`.
        per_point: whether the network's places are the points.
        augment: what is done to the clouds of a batch; its images' settings have no meaning here.
        seed: of the augmentation.
        label_of: the labels of a frame's points, uint8 [N]; the ground truth without it.
        normalised: whether the network takes normalised intensities, see :mod:`~olivine.train.mixture`.
    """

    def __init__(
        self,
        shards: ShardSet,
        voxels: VoxelSettings,
        device: torch.device,
        augment: AugmentSettings = NO_AUGMENTATION,
        seed: int = 0,
        *,
        per_point: bool = False,
        label_of: Callable[[int], NDArray[np.uint8] | None] | None = None,
        normalised: bool = False,
    ) -> None:
        self.shards, self.device, self.augment, self.seed = shards, device, augment, seed
        self.per_point = per_point
        self._label_of, self._normalised = label_of or shards.point_label, normalised
        self._corruption: Corruption | None = None
        self.voxels = voxels if voxels.from_corner else replace(voxels, crop=False)

    def corrupted(self, corruption: Corruption) -> CloudExamples:
        """The same frames through a corruption: a cloud and its frame → the cloud, and which of its points stay."""
        other = copy(self)
        other._corruption = corruption
        return other

    def _stored(self, frame: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """A frame's points as the network takes them, and their labels."""
        points = np.array(self.shards.points(frame))
        network_intensity(points, self.shards, self._normalised)
        given = self._label_of(frame)
        label = np.zeros(len(points), np.uint8) if given is None else given
        if self._corruption is None:
            return points, label
        points, kept = self._corruption(points, frame)
        return points[kept], label[kept]

    def labels(self, frame: int) -> NDArray[np.uint8]:
        """The label of each point of a frame, those that a corruption leaves; uint8 [N]."""
        return self._stored(frame)[1]

    def batch(self, members: Sequence[tuple[int, int]]) -> Example:
        """See :class:`Examples`."""
        return self._make([(frame, self.augment, epoch) for epoch, frame in members])

    def whole(self, frame: int) -> Example:
        """See :class:`Examples`."""
        return self._make([(frame, NO_AUGMENTATION, 0)])

    def _make(self, members: Sequence[tuple[int, AugmentSettings, int]]) -> Example:
        parts: list[NDArray[np.float32]] = []
        labels: list[NDArray[np.uint8]] = []
        for frame, settings, epoch in members:
            points, label = self._stored(frame)
            generator = generator_of(self.seed, epoch, frame)
            points, kept = corrupt_for_training(points, settings, generator)
            points, label = points[kept], label[kept]
            points[:, :3] = move_cloud(points[:, :3], settings, generator)
            parts.append(points)
            labels.append(label)
        cloud = torch.from_numpy(np.concatenate(parts)).to(self.device)
        truth = torch.from_numpy(np.concatenate(labels)).to(self.device)
        counts = [len(points) for points in parts]
        voxels = voxelize(cloud, counts, self.voxels)
        held = torch.bincount(voxels.coordinate[:, 0].long(), minlength=len(counts)).tolist()
        if 0 in held:
            raise OlivineError(
                "no point of this frame lies in the network's range",
                where=self.shards.token(members[held.index(0)][0]),
                remedy="take a backbone with another voxels.range_m, or leave the frame out of the shards",
            )
        of_point = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(self.device)
        clouds = Clouds(cloud, of_point, voxels, self.voxels)
        if self.per_point:
            return Example(clouds, truth.long(), torch.arange(len(cloud), device=self.device))
        return Example(clouds, truth.index_select(0, voxels.first).long(), voxels.inverse)


def check_reaches_every_point(voxels: VoxelSettings, per_point: bool, where: object) -> None:
    """Raise unless a network gives every point a class.

    Args:
        voxels, per_point: as :class:`CloudExamples` takes them.
        where: the network's checkpoint.

    Raises:
        OlivineError: the grid has a border, and the network gives features to voxels alone.
    """
    if voxels.from_corner and not per_point:
        raise OlivineError(
            "was trained with voxels.from_corner=true: points beyond its range have no voxel, and would have no class",
            where=where,
            remedy="pre-train with voxels.from_corner=false, or take a VoxelNet",
        )


class KeptFeatures:
    """A frozen backbone's features of whole frames in memory, as many bytes as there may be; several heads may share them."""

    def __init__(self, memory: int) -> None:
        self._left = memory
        self._found: dict[tuple[str, int], Example] = {}

    def get(self, part: str, frame: int, make: Callable[[int], Example]) -> Example:
        """A frame's features, of training or validation (``part``): those that are kept, or made and kept if they fit."""
        found = self._found.get((part, frame))
        if found is None:
            found = make(frame)
            size = sum(one.numel() * one.element_size() for one in (_tensor(found), found.label, found.inverse))
            if size < self._left:
                self._left -= size
                self._found[part, frame] = found
        return found


class FrozenFeatures:
    """A frozen backbone's features of clouds: computed once while they fit into memory, unless they are augmented."""

    def __init__(self, clouds: CloudExamples, backbone: Backbone, kept: KeptFeatures, part: str) -> None:
        self.clouds, self.backbone = clouds, backbone.eval().requires_grad_(False)
        self._kept, self._part = kept, part

    def batch(self, members: Sequence[tuple[int, int]]) -> Example:
        """See :class:`Examples`; the inverse is left out."""
        if self.clouds.augment != NO_AUGMENTATION:
            return self._features(self.clouds.batch(members))
        frames = [self.whole(frame) for _, frame in members]
        feature = torch.cat([_tensor(f) for f in frames])
        return Example(feature, torch.cat([f.label for f in frames]), frames[0].inverse[:0])

    def whole(self, frame: int) -> Example:
        """See :class:`Examples`."""
        return self._kept.get(self._part, frame, lambda frame: self._features(self.clouds.whole(frame)))

    @torch.no_grad()
    def _features(self, example: Example) -> Example:
        assert isinstance(example.inputs, Clouds)
        return replace(example, inputs=features_at(self.backbone, example.inputs))


def _tensor(example: Example) -> Tensor:
    assert isinstance(example.inputs, Tensor)
    return example.inputs
