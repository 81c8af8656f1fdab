"""Frames of one forward pass, joined into tensors: points, pictures and pairs with global indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from ..common import OlivineError
from .augment import Sample
from .voxelize import Voxels


@dataclass(frozen=True, eq=False)
class Batch:
    """B frames as tensors.

    Attributes:
        tokens: of the frames; ``frames`` their positions in the shard set.
        points: float32 [N, 4], all clouds one after the other.
        point_count: points of each cloud.
        image: uint8 [I, H, W, 3], all pictures one after the other.
        pair_point: int64 [M], row of ``points``.
        pair_image: int64 [M], row of ``image``.
        pair_frame: int64 [M], ascending.
        pair_label: int64 [M].
        pair_uv: float32 [M, 2].
        pair_density: float32 [M].
        pair_row: int64 [M], row among the stored frame's pairs.
        class_count: int64 [B, C], pairs of each class in each whole frame.
    """

    tokens: tuple[str, ...]
    frames: tuple[int, ...]
    points: Tensor
    point_count: tuple[int, ...]
    image: Tensor
    pair_point: Tensor
    pair_image: Tensor
    pair_frame: Tensor
    pair_label: Tensor
    pair_uv: Tensor
    pair_density: Tensor
    pair_row: Tensor
    class_count: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in fields(self)
            if f.name not in ("tokens", "frames", "point_count")
        }
        return replace(self, **moved)

    def point_cloud(self) -> Tensor:
        """The cloud of each point, int64 [N]."""
        count = torch.tensor(self.point_count, device=self.points.device)
        return torch.repeat_interleave(torch.arange(len(count), device=count.device), count)

    def select_pairs(self, kept: Tensor) -> Batch:
        """The batch with some of its pairs only (index [M'])."""
        names = ("pair_point", "pair_image", "pair_frame", "pair_label", "pair_uv", "pair_density", "pair_row")
        return replace(self, **{name: getattr(self, name).index_select(0, kept) for name in names})


def collate(samples: Sequence[Sample], labels: str = "weak") -> Batch:
    """Join samples.

    Args:
        labels: ``weak`` or ``truth``, see :class:`~olivine.train.settings.DataSettings`.
    """
    points, images, pair_point, pair_image, pair_frame = [], [], [], [], []
    first_point = first_image = 0
    for number, sample in enumerate(samples):
        points.append(sample.points)
        images.append(sample.image)
        pair_point.append(sample.pair_point.astype(np.int64) + first_point)
        pair_image.append(sample.pair_camera.astype(np.int64) + first_image)
        pair_frame.append(np.full(len(sample.pair_point), number, np.int64))
        first_point += len(sample.points)
        first_image += len(sample.image)
    label = []
    for sample in samples:
        chosen = sample.pair_label if labels == "weak" else sample.pair_truth
        if chosen is None:
            raise OlivineError("has no ground truth", where=sample.token, remedy="use --set data.labels=weak")
        label.append(chosen)

    def joined(parts: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(dtype)

    return Batch(
        tuple(s.token for s in samples),
        tuple(s.frame for s in samples),
        joined(points, torch.float32),
        tuple(len(s.points) for s in samples),
        joined(images, torch.uint8),
        joined(pair_point, torch.int64),
        joined(pair_image, torch.int64),
        joined(pair_frame, torch.int64),
        joined(label, torch.int64),
        joined([s.pair_uv for s in samples], torch.float32),
        joined([s.pair_density for s in samples], torch.float32),
        joined([s.pair_row for s in samples], torch.int64),
        torch.from_numpy(np.stack([s.class_count for s in samples])),
    )


def attach_to_voxels(batch: Batch, voxels: Voxels) -> tuple[Batch, Tensor]:
    """Leave out pairs whose point lies outside the voxels' range.

    Returns:
        the batch with the pairs that stay, and the voxel of each, int64 [M'].
    """
    voxel = voxels.inverse.index_select(0, batch.pair_point)
    kept = torch.nonzero(voxel >= 0)[:, 0]
    if len(kept) < len(voxel):
        batch, voxel = batch.select_pairs(kept), voxel.index_select(0, kept)
    return batch, voxel
