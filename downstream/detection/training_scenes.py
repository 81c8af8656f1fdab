"""Scenes as a detector is trained on them: objects of other scenes put in, flips, rotation, scaling; and as it is scored.

Ground-truth sampling is SECOND's (Yan et al., 2018, section 3.2.1). What a scene becomes is decided by (seed, epoch, scene).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...common import OlivineError, track
from ...train.augment import generator_of
from ...train.backbone import Clouds
from ...train.voxelize import VoxelSettings, voxelize
from .kitti_format import Objects
from .rotated import bev_iou, bev_of
from .scenes import Scene, points_in
from .settings import DetectionSettings

Array = NDArray[np.float64]
_LEAST_IMAGE_HEIGHT, _MOST_OCCLUDED, _MOST_TRUNCATED = 24.0, 2, 0.5


@dataclass(frozen=True, eq=False)
class StoredObject:
    """An object of the database: its points [N, 4] as they are in its scene, and its box [7]."""

    points: NDArray[np.float32]
    box: Array


Database = list[list[StoredObject]]
"""The objects of each class, in the order of the scenes."""


def build_database(scenes: Sequence[Scene], settings: DetectionSettings, title: str = "objects") -> Database:
    """The objects that may be put into other scenes.

    Left out are objects with fewer than ``least_points`` points, and those beyond the benchmark's hardest difficulty.

    Raises:
        OlivineError: the labels hold no object of a class.
    """
    names = settings.classes
    database: Database = [[] for _ in names]
    seen: set[str] = set()
    for scene in track(scenes, title, unit="scenes"):
        objects, points = scene.objects(), scene.points()
        seen |= set(objects.kind.tolist())
        boxes = scene.camera.boxes_of(objects)
        clear = (objects.occluded <= _MOST_OCCLUDED) & (objects.truncated <= _MOST_TRUNCATED)
        clear &= objects.image[:, 3] - objects.image[:, 1] >= _LEAST_IMAGE_HEIGHT
        for c, name in enumerate(names):
            for row in np.flatnonzero(clear & (objects.kind == name)):
                own = points[points_in(points, boxes[row])]
                if len(own) >= settings.least_points:
                    database[c].append(StoredObject(own, boxes[row]))
    if absent := [name for name in names if name not in seen]:
        raise OlivineError(
            f"the labels of the {len(scenes)} training frames hold no {absent[0]}",
            where="classes",
            remedy=f"name classes that they hold ({', '.join(sorted(seen - {'DontCare'}))})",
        )
    return database


@dataclass(frozen=True, eq=False)
class Sample:
    """A scene ready for the network.

    Attributes:
        points: float32 [N, 4].
        boxes: float32 [M, 7], of the classes, their middles within the range.
        kind: int64 [M], the class from 1 on.
    """

    points: NDArray[np.float32]
    boxes: NDArray[np.float32]
    kind: NDArray[np.int64]


def training_sample(
    scene: Scene, database: Database, settings: DetectionSettings, generator: np.random.Generator
) -> Sample:
    """A scene, filled with objects of others and moved at random."""
    names = settings.classes
    objects, points = scene.objects(), scene.points()
    objects = objects.where(objects.kind != "DontCare")
    boxes, kind = scene.camera.boxes_of(objects), _kinds(objects, names)
    points, boxes, kind = _fill(points, boxes, kind, database, settings.fill, generator)
    boxes, kind = boxes[kind > 0], kind[kind > 0]
    points = points.copy()
    if settings.flip and generator.random() < 0.5:
        points[:, 1], boxes[:, 1], boxes[:, 6] = -points[:, 1], -boxes[:, 1], -boxes[:, 6]
    angle = math.radians(settings.rotate_deg) * generator.uniform(-1, 1)
    scale = 1 + settings.scale * generator.uniform(-1, 1)
    c, s = math.cos(angle), math.sin(angle)
    turn = scale * np.array([[c, s], [-s, c]])
    points[:, :2], boxes[:, :2] = points[:, :2] @ turn, boxes[:, :2] @ turn
    points[:, 2] *= scale
    boxes[:, 2:6] *= scale
    boxes[:, 6] = (boxes[:, 6] + angle + np.pi) % (2 * np.pi) - np.pi
    # A cloud of more voxels than are taken loses them at random, not by the order of the file.
    points = points[generator.permutation(len(points))]
    limits = settings.voxel_settings().range_m
    inside = ((boxes[:, :3] >= limits[:3]) & (boxes[:, :3] <= limits[3:])).all(1)
    return Sample(points.astype(np.float32), boxes[inside].astype(np.float32), kind[inside])


def _kinds(objects: Objects, names: Sequence[str]) -> NDArray[np.int64]:
    """The class of each object from 1 on, 0 for one of no class."""
    return np.array([names.index(kind) + 1 if kind in names else 0 for kind in objects.kind.tolist()], np.int64)


def _fill(
    points: NDArray[np.float32],
    boxes: Array,
    kind: NDArray[np.int64],
    database: Database,
    wanted: Sequence[int],
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32], Array, NDArray[np.int64]]:
    """Put in objects that overlap none in the bird's-eye view; the points of the scene in their places go."""
    chosen: list[StoredObject] = []
    for c, (stored, most) in enumerate(zip(database, wanted), 1):
        missing = min(most - int((kind == c).sum()), len(stored))
        if missing <= 0:
            continue
        for i in generator.permutation(len(stored))[:missing]:
            box = stored[i].box[None]
            if len(boxes) and bev_iou(bev_of(box), bev_of(boxes)).max() > 0:
                continue
            chosen.append(stored[i])
            boxes, kind = np.concatenate([boxes, box]), np.append(kind, c)
    for one in chosen:
        points = points[~points_in(points, one.box)]
    return np.concatenate([*(one.points for one in chosen), points]), boxes, kind


@dataclass(frozen=True)
class Batch:
    """Clouds, and the boxes [M, 7] and classes [M] of each."""

    clouds: Clouds
    boxes: list[torch.Tensor]
    kinds: list[torch.Tensor]


def make_batch(
    samples: Sequence[Sample], names: Sequence[str], voxels: VoxelSettings, limit: int, device: torch.device
) -> Batch:
    """Samples as the network takes them.

    Args:
        names: of the scenes, for the error.
        limit: voxels of a cloud at most.

    Raises:
        OlivineError: a scene without a point in the range.
    """
    counts = [len(sample.points) for sample in samples]
    points = torch.from_numpy(np.concatenate([sample.points for sample in samples])).to(device)
    settings = replace(voxels, max_voxels=limit)
    made = voxelize(points, counts, settings)
    held = torch.bincount(made.coordinate[:, 0].long(), minlength=len(counts)).tolist()
    if 0 in held:
        raise OlivineError(
            "no point of this frame lies in the network's range",
            where=names[held.index(0)],
            remedy="widen range_m, or leave the frame out",
        )
    of_point = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device)
    clouds = Clouds(points, of_point, made, settings)
    return Batch(
        clouds,
        [torch.from_numpy(sample.boxes).to(device) for sample in samples],
        [torch.from_numpy(sample.kind).to(device) for sample in samples],
    )


class TrainingScenes:
    """The batches of a run, made ahead by threads.

    Args:
        scenes: all that are trained on.
        device: of the batches.
    """

    def __init__(self, scenes: Sequence[Scene], settings: DetectionSettings, device: torch.device) -> None:
        self.scenes, self.settings, self.device = scenes, settings, device
        self.database = build_database(scenes, settings)
        self._pool = ThreadPoolExecutor(settings.workers) if settings.workers else None
        self._ahead: dict[tuple[int, int], Future[Sample]] = {}

    def sample(self, epoch: int, scene: int) -> Sample:
        """A scene as it is in an epoch."""
        generator = generator_of(self.settings.seed, epoch, scene)
        return training_sample(self.scenes[scene], self.database, self.settings, generator)

    def prepare(self, members: Iterable[tuple[int, int]]) -> None:
        """Begin to make scenes (epoch, scene) that will be asked for."""
        for member in members:
            if self._pool is not None and member not in self._ahead:
                self._ahead[member] = self._pool.submit(self.sample, *member)

    def batch(self, members: Sequence[tuple[int, int]]) -> Batch:
        """The scenes (epoch, scene) of a step."""
        samples = [self._ahead.pop(m).result() if m in self._ahead else self.sample(*m) for m in members]
        names = [self.scenes[scene].name for _, scene in members]
        return make_batch(samples, names, self.settings.voxel_settings(), self.settings.train_voxels, self.device)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
