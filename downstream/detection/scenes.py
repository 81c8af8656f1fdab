"""Scenes of KITTI's object benchmark: a cloud, a camera's calibration and a label file; boxes in the LiDAR frame and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common import OlivineError, read_bytes
from ...train.mixture import normalised_intensity
from .kitti_format import Objects, objects_of, read_objects

Array = NDArray[np.float64]
_CORNERS = np.stack(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5], indexing="ij"), -1).reshape(8, 3)
_IN_FRONT_M = 0.1


@dataclass(frozen=True, eq=False)
class KittiCamera:
    """What connects the LiDAR, the labels and the image of a scene.

    Attributes:
        intrinsic: float64 [3, 3], of the left colour camera.
        lidar_to_camera: float64 [4, 4], LiDAR to that camera.
        lidar_to_labels: float64 [4, 4], LiDAR to the rectified camera 0, in which label and result files give places.
        width, height: of the image in pixels.
    """

    intrinsic: Array
    lidar_to_camera: Array
    lidar_to_labels: Array
    width: int
    height: int

    def sees(self, points: NDArray[Any]) -> NDArray[np.bool_]:
        """Which of the points [N, ≥3] lie in the image."""
        seen = points[:, :3] @ self.lidar_to_camera[:3, :3].T + self.lidar_to_camera[:3, 3]
        pixel = seen @ self.intrinsic.T
        depth = np.maximum(pixel[:, 2], 1e-6)
        u, v = pixel[:, 0] / depth, pixel[:, 1] / depth
        inside: NDArray[np.bool_] = (pixel[:, 2] > 0) & (u >= 0) & (u < self.width) & (v >= 0) & (v < self.height)
        return inside

    def boxes_of(self, objects: Objects) -> Array:
        """The boxes of objects in the LiDAR frame, [N, 7], each with its middle at (x, y, z)."""
        to_lidar = np.linalg.inv(self.lidar_to_labels)
        middle = objects.place - np.c_[np.zeros(len(objects)), objects.size[:, 0] / 2, np.zeros(len(objects))]
        place = middle @ to_lidar[:3, :3].T + to_lidar[:3, 3]
        ahead = np.c_[np.cos(objects.turn), np.zeros(len(objects)), -np.sin(objects.turn)] @ to_lidar[:3, :3].T
        return np.c_[place, objects.size[:, [2, 1, 0]], np.arctan2(ahead[:, 1], ahead[:, 0])]

    def objects_of(self, boxes: NDArray[Any], kind: Sequence[str], score: NDArray[Any]) -> Objects:
        """Boxes [N, 7] as a result file has them; those that lie outside the image are left out."""
        boxes = np.asarray(boxes, np.float64).reshape(-1, 7)
        place = boxes[:, :3] @ self.lidar_to_labels[:3, :3].T + self.lidar_to_labels[:3, 3]
        place[:, 1] += boxes[:, 5] / 2
        ahead = np.c_[np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))] @ self.lidar_to_labels[:3, :3].T
        turn = np.arctan2(-ahead[:, 2], ahead[:, 0])
        alpha = (turn - np.arctan2(place[:, 0], place[:, 2]) + np.pi) % (2 * np.pi) - np.pi
        image = self._image_boxes(boxes)
        unknown = np.full(len(boxes), -1.0)
        columns = np.c_[unknown, unknown, alpha, image, boxes[:, [5, 4, 3]], place, turn, score]
        seen = (place[:, 2] > _IN_FRONT_M) & (image[:, 2] > image[:, 0]) & (image[:, 3] > image[:, 1])
        return objects_of(list(kind), columns).where(seen)

    def _image_boxes(self, boxes: Array) -> Array:
        """Left, top, right, bottom of the corners in the image, cut at its border: [N, 4]."""
        local = _CORNERS * boxes[:, None, 3:6]
        c, s = np.cos(boxes[:, 6])[:, None], np.sin(boxes[:, 6])[:, None]
        turned = np.stack(
            [c * local[..., 0] - s * local[..., 1], s * local[..., 0] + c * local[..., 1], local[..., 2]], -1
        )
        corners = turned + boxes[:, None, :3]
        seen = corners @ self.lidar_to_camera[:3, :3].T + self.lidar_to_camera[:3, 3]
        pixel = seen @ self.intrinsic.T
        uv = pixel[..., :2] / np.maximum(pixel[..., 2:], _IN_FRONT_M)
        most = np.array([self.width - 1, self.height - 1])
        return np.concatenate([uv.min(1).clip(0, most), uv.max(1).clip(0, most)], 1)


@dataclass(frozen=True, eq=False)
class Scene:
    """A frame of the benchmark.

    Attributes:
        name: its number, ``000123``.
        cloud: reads the points, float32 [N, 4]: x, y, z, raw intensity.
        camera: the calibration.
        labels: the label file; None on the test frames.
        intensity_offset: added to the intensity for a network, the data set's own rule.
        normalised: the network takes the form that is the same for every sensor instead, see
            :mod:`~olivine.train.mixture`.
        calibration: its file, and ``cloud_bytes`` the size of the cloud's; :meth:`fingerprint` takes them.
    """

    name: str
    cloud: Callable[[], NDArray[np.float32]]
    camera: KittiCamera
    labels: Path | None
    intensity_offset: float = 0.0
    normalised: bool = False
    calibration: Path | None = None
    cloud_bytes: int = 0

    def fingerprint(self) -> list[str | int]:
        """Its name, the SHA-256 of its label file and of its calibration file, and the bytes of its cloud's file.

        Frames of two data sets differ in it, though both have a frame ``000000``; no cloud is read.

        Raises:
            OlivineError: a file is missing.
        """
        again = "get or make the file again"
        sums = (
            "" if path is None else hashlib.sha256(read_bytes(path, again)).hexdigest()
            for path in (self.labels, self.calibration)
        )
        return [self.name, *sums, self.cloud_bytes]

    def points(self) -> NDArray[np.float32]:
        """The points that the image shows, float32 [N, 4], with the intensity as the network takes it.

        The benchmark labels nothing else.

        Raises:
            OlivineError: none does.
        """
        points = self.cloud()
        seen, raw = self.camera.sees(points), points[:, 3]
        # Of the whole cloud, as in pre-training: what the image shows has another mean.
        intensity = normalised_intensity(raw) if self.normalised else raw + np.float32(self.intensity_offset)
        points = points[seen]
        points[:, 3] = intensity[seen]
        if len(points) == 0:
            raise OlivineError(
                "no point of this frame lies in its image", where=self.name, remedy="check its calibration"
            )
        return points

    def objects(self) -> Objects:
        """The objects of the label file, ``DontCare`` regions among them.

        Raises:
            OlivineError: the frame has no labels, or its file is wrong.
        """
        if self.labels is None:
            raise OlivineError("has no labels", where=self.name, remedy="take the split train or val")
        return read_objects(self.labels)


def points_in(points: NDArray[Any], box: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the points [N, ≥3] a box [7] holds."""
    c, s = np.cos(box[6]), np.sin(box[6])
    place = points[:, :3] - box[:3]
    along, across = c * place[:, 0] + s * place[:, 1], c * place[:, 1] - s * place[:, 0]
    inside: NDArray[np.bool_] = (np.abs(np.c_[along, across, place[:, 2]]) <= np.asarray(box[3:6]) / 2).all(1)
    return inside
