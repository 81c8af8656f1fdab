"""What a frame is, whatever data set it comes from: small (at most 3 kB pickled), it reads its files when asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, inside, is_relative_name

if TYPE_CHECKING:
    from .dataset import Dataset

MAX_DISTANCE = 1e5
"""Metres from the sensor; a point further away is damage, and would ruin its frame's distance density."""
MODELS = {"pinhole": (0,), "brown-conrady": (4, 5, 8, 12), "fisheye": (4,)}
"""How many coefficients each model may have: none; k1, k2, p1, p2, then k3, then k4, k5, k6, then s1 … s4; k1 … k4."""
UP = (0.0, 0.0, 1.0)
"""The z axis."""
INDEX_AGAIN = "delete the frames folder and run olivine labelgen again"
"""What to do where the index holds something that is no frame."""


def check_lens(model: str, distortion: Sequence[float], where: object) -> None:
    """Raise unless a model of this name has so many coefficients, all finite; ``where`` is for the message."""
    if model not in MODELS:
        raise OlivineError(f"model is {model!r}", where=where, remedy=f"use one of {', '.join(MODELS)}")
    if len(distortion) not in MODELS[model] or not all(math.isfinite(k) for k in distortion):
        wanted = " or ".join(map(str, MODELS[model]))
        raise OlivineError(
            f"distortion has {len(distortion)} coefficients, {model} has {wanted} (finite numbers)",
            where=where,
            remedy="give them in OpenCV's order: k1, k2, p1, p2, k3, … (fisheye: k1, k2, k3, k4)",
        )


def rotation_of(quaternion: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation matrix, float64 [3, 3], of a quaternion (w, x, y, z), which is made one of length 1."""
    w, x, y, z = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera image of a frame.

    Attributes:
        name: the camera, for example ``CAM_FRONT`` or ``image_2``.
        image: the image file relative to the data set's root, with ``/``.
        width, height: size in pixels.
        intrinsic: float64 [3, 3].
        lidar_to_camera: float64 [4, 4], LiDAR frame (at the LiDAR's time) to camera
            frame (at the camera's own time), through the world.
        model: of the lens, one of :data:`MODELS`.
        distortion: its coefficients, in OpenCV's order.
    """

    name: str
    image: str
    width: int
    height: int
    intrinsic: NDArray[np.float64]
    lidar_to_camera: NDArray[np.float64]
    model: str = "pinhole"
    distortion: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        """The image's path without the data set's leading folder and suffix.

        ``samples/CAM_FRONT/x.jpg`` gives ``CAM_FRONT/x``; label maps, segment maps and
        exact masks are stored under this name.
        """
        path = PurePosixPath(self.image)
        parts = path.parts[1:] if path.parts[0] in ("samples", "sweeps", "sequences") else path.parts
        return str(PurePosixPath(*parts).with_suffix(""))

    def __reduce__(self) -> tuple[Any, ...]:
        matrices = np.concatenate([self.intrinsic.ravel(), self.lidar_to_camera.ravel()]).tobytes()
        lens = () if self.model == "pinhole" else (self.model, self.distortion)
        return _camera_from_bytes, (self.name, self.image, self.width, self.height, matrices, *lens)


def _camera_from_bytes(
    name: str,
    image: str,
    width: int,
    height: int,
    matrices: bytes,
    model: str = "pinhole",
    distortion: tuple[float, ...] = (),
) -> Camera:
    values = np.frombuffer(matrices, np.float64)
    return Camera(name, image, width, height, values[:9].reshape(3, 3), values[9:].reshape(4, 4), model, distortion)


@dataclass(frozen=True)
class Box:
    """An annotated box in the LiDAR frame.

    Attributes:
        category: the data set's own category name.
        center: x, y, z in metres.
        size: length, width, height in metres.
        rotation: unit quaternion (w, x, y, z), box to LiDAR.
        point_count: LiDAR points inside, as annotated.
        track: names the thing, the same in every frame of a scene; empty where the data set does not say.
    """

    category: str
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    point_count: int
    track: str = ""


@dataclass(frozen=True, eq=False)
class Frame:
    """One LiDAR sweep with the camera images taken around it.

    Attributes:
        dataset, version: for example ``nuscenes`` and ``v1.0-mini``.
        root: the data set's folder.
        token: the LiDAR sample_data token on nuScenes, ``08/000123`` on KITTI.
        scene: scene (nuScenes) or sequence (KITTI).
        split: ``train``, ``val`` or ``test``.
        timestamp: microseconds, of the LiDAR sweep.
        point_file: relative to ``root``; float32 rows of ``point_columns`` values, unless the data set's file reads it.
        pose: float64 [4, 4], LiDAR frame to world; NaN where the data set has none.
        cameras: in the data set's order.
        point_label_file: raw ground truth relative to ``root``, or None.
        point_label_lookup: the mapped class of every raw class, uint8; 0 = ignored.
        truth_folder: folder with the exact masks of a synthetic data set, or None.
        reader: where a data set outside this package is found, ``package.module:Class``; empty where its name is enough.
        detail: what else the data set's file needs to read the frame; nobody else looks into it.
        up: unit vector of up in the LiDAR frame, where the LiDAR's z axis is not.
    """

    dataset: str
    version: str
    root: Path
    token: str
    scene: str
    split: str
    timestamp: int
    point_file: str
    point_columns: int
    pose: NDArray[np.float64]
    cameras: tuple[Camera, ...]
    point_label_file: str | None = None
    point_label_bytes: int = 1
    point_label_lookup: bytes = field(default=b"", repr=False)
    truth_folder: str | None = None
    reader: str = ""
    detail: str = ""
    up: tuple[float, float, float] = UP

    @property
    def source(self) -> type[Dataset]:
        """The data set's class, which reads the frame's files."""
        from .dataset import dataset_class

        return dataset_class(self.reader or self.dataset)

    def points(self) -> NDArray[np.float32]:
        """The cloud, float32 [N, 4]: x, y, z in metres in the LiDAR frame, raw intensity.

        Raises:
            OlivineError: the file is missing, truncated or empty, or holds a value that is not finite or
                a point over :data:`MAX_DISTANCE` away.
        """
        path = self.root / self.point_file
        points = self.source.cloud(self)
        if len(points) == 0:
            raise OlivineError(
                "the cloud is empty", where=path, remedy="download it again or leave out frame " + self.token
            )
        finite = np.isfinite(points).all(axis=1)
        if not finite.all():
            raise OlivineError(
                f"{int((~finite).sum())} points are not finite (the first is point {int(np.argmin(finite))})",
                where=path,
                remedy="download it again or fix the file",
            )
        far = np.abs(points[:, :3]).max(axis=1) > MAX_DISTANCE
        if far.any():
            raise OlivineError(
                f"{int(far.sum())} points are over {MAX_DISTANCE:g} m away (the first is point {int(np.argmax(far))})",
                where=path,
                remedy="download it again or fix the file",
            )
        return points

    def point_labels(self) -> NDArray[np.uint8] | None:
        """The mapped class of each point, uint8 [N], 0 = ignored; None where the data set has none.

        Raises:
            OlivineError: the label file is missing, or holds another number of labels than the cloud has points.
        """
        return self.source.labels(self)

    def boxes(self) -> list[Box] | None:
        """The annotated boxes in the LiDAR frame, or None where the data set has none.

        Reads the data set's own tables (seconds on a large set): for checks and pictures.
        """
        return self.source.boxes(self)

    @property
    def image_truth(self) -> list[tuple[Path, Path]] | None:
        """(class mask, instance mask) of each camera, exact; None unless the data set is synthetic."""
        if self.truth_folder is None:
            return None
        base = self.root / self.truth_folder
        return [(base / "class" / f"{c.key}.png", base / "instance" / f"{c.key}.png") for c in self.cameras]

    def image_path(self, camera: Camera) -> Path:
        """The image file of one of the frame's cameras."""
        return self.root / camera.image


def check_scene_name(name: str, where: object) -> None:
    """Raise unless a scene's name can be the stem of a file's name; ``where`` names the scene."""
    if inside("", name, where).name != name or name.startswith("."):
        raise OlivineError(f"names the scene {name!r}", where=where, remedy=INDEX_AGAIN)


def check_frame(frame: Frame, where: object) -> None:
    """Raise unless a frame's files lie in its data set, its names fit file names, and its cameras' numbers are finite.

    Args:
        where: the file that the frame was read from, for the message.

    Raises:
        OlivineError: names the file, and the path, frame or camera.
    """
    check_scene_name(frame.scene, where)
    if not abs(math.hypot(*frame.up) - 1) < 1e-6:  # NaN too
        raise OlivineError(f"up of frame {frame.token} is {frame.up}, no unit vector", where=where, remedy=INDEX_AGAIN)
    # A token may have a folder (08/000123), and names a prediction's file.
    names = [frame.token, frame.point_file, *(camera.image for camera in frame.cameras)]
    for name in (*names, frame.point_label_file, frame.truth_folder):
        if name is not None and not is_relative_name(name):
            inside(frame.root, name, where)  # raises
    for camera in frame.cameras:
        if "/" in camera.name or camera.image in ("samples", "sweeps", "sequences"):
            raise OlivineError(f"names the camera {camera.name!r} with {camera.image}", where=where, remedy=INDEX_AGAIN)
        check_lens(camera.model, camera.distortion, where)
        # A sum is not finite where one of a few numbers is not (or all are beyond any calibration), and costs less.
        if not math.isfinite(camera.intrinsic.sum() + camera.lidar_to_camera.sum()):
            raise OlivineError(
                f"the calibration of {camera.name} in frame {frame.token} is not finite",
                where=where,
                remedy="download the data set's calibration again",
            )


def check_keys(frames: Iterable[Frame], where: object) -> None:
    """Raise where two images have one key: their label maps would be one file.

    Args:
        where: the data set's folder, for the message.

    Raises:
        OlivineError: names both images.
    """
    images: dict[str, str] = {}
    for frame in frames:
        for camera in frame.cameras:
            first = images.setdefault(camera.key, camera.image)
            if first != camera.image:
                raise OlivineError(
                    f"{first} and {camera.image} would share one label map, {camera.key}",
                    where=where,
                    remedy="move the images of one of these cameras into a folder of another name, or leave it out",
                )
