"""What a frame is, whatever data set it comes from, and the index of a data set's frames.

A :class:`Frame` is small (at most 3 kB pickled) and reads its files when asked. The
index holds the frames scene by scene, so that a work unit opens its own scene and
never parses a data set's tables again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import (
    OlivineError,
    PathLike,
    Whole,
    demand,
    digest,
    inside,
    is_relative_name,
    parse_json,
    read_json,
    read_text,
    write_bytes,
    write_json,
)

INDEX_SCHEMA = "1.1"

REVISED = ("kitti", "semantickitti")
"""Data sets whose index and shards of schema 1.0 are out of date: since 1.1 they are projected by the
whole P2, and have an ``intensity_offset``."""
MAX_DISTANCE = 1e5
"""Metres from the sensor; a point further away is damage, and would ruin its frame's distance density."""
_AGAIN = "delete the frames folder and run olivine labelgen again"


class OutdatedIndex(OlivineError):
    """An index that an earlier version wrote, and that is no longer right."""


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
    """

    name: str
    image: str
    width: int
    height: int
    intrinsic: NDArray[np.float64]
    lidar_to_camera: NDArray[np.float64]

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
        return _camera_from_bytes, (self.name, self.image, self.width, self.height, matrices)


def _camera_from_bytes(name: str, image: str, width: int, height: int, matrices: bytes) -> Camera:
    values = np.frombuffer(matrices, np.float64)
    return Camera(name, image, width, height, values[:9].reshape(3, 3), values[9:].reshape(4, 4))


@dataclass(frozen=True)
class Box:
    """An annotated box in the LiDAR frame.

    Attributes:
        category: the data set's own category name.
        center: x, y, z in metres.
        size: length, width, height in metres.
        rotation: unit quaternion (w, x, y, z), box to LiDAR.
        point_count: LiDAR points inside, as annotated.
    """

    category: str
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    point_count: int


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
        point_file: relative to ``root``; float32 rows of ``point_columns`` values.
        pose: float64 [4, 4], LiDAR frame to world; NaN where the data set has none.
        cameras: in the data set's order.
        point_label_file: raw ground truth relative to ``root``, or None.
        point_label_lookup: the mapped class of every raw class, uint8; 0 = ignored.
        truth_folder: folder with the exact masks of a synthetic data set, or None.
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

    def points(self) -> NDArray[np.float32]:
        """The cloud, float32 [N, 4]: x, y, z in metres in the LiDAR frame, raw intensity.

        Raises:
            OlivineError: the file is missing, truncated or empty, or holds a value that is not finite or
                a point over :data:`MAX_DISTANCE` away.
        """
        path = self.root / self.point_file
        try:
            raw = np.fromfile(path, np.float32)
            size = path.stat().st_size
        except OSError as error:
            raise OlivineError(
                f"the point file of frame {self.token} cannot be read ({error.strerror})",
                where=path,
                remedy="download the data set's LiDAR files again",
            ) from None
        if size % (4 * self.point_columns):
            raise OlivineError(
                f"truncated point file: {size} bytes is not a whole number of {4 * self.point_columns}-byte points",
                where=path,
                remedy="download it again",
            )
        points = np.ascontiguousarray(raw.reshape(-1, self.point_columns)[:, :4])
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
        if self.point_label_file is None:
            return None
        path = self.root / self.point_label_file
        wide = self.point_label_bytes == 4
        try:
            raw: NDArray[Any] = np.fromfile(path, np.uint32 if wide else np.uint8)
        except OSError as error:
            raise OlivineError(
                f"the point labels of frame {self.token} cannot be read ({error.strerror})",
                where=path,
                remedy="download the data set's point labels again",
            ) from None
        expected = (self.root / self.point_file).stat().st_size // (4 * self.point_columns)
        if len(raw) != expected:
            raise OlivineError(
                f"{len(raw)} labels for {expected} points", where=path, remedy="download the point labels again"
            )
        if wide:
            raw = raw & 0xFFFF  # the upper half is the instance
        lookup = np.frombuffer(self.point_label_lookup, np.uint8)
        if len(raw) and int(raw.max()) >= len(lookup):
            raise OlivineError(
                f"raw class {int(raw.max())} is not one of the data set's {len(lookup)}",
                where=path,
                remedy="check that the labels belong to this data set",
            )
        return lookup[raw]

    def boxes(self) -> list[Box] | None:
        """The annotated boxes in the LiDAR frame, or None where the data set has none.

        Reads the data set's own tables (seconds on a large set): for checks and pictures.
        """
        if self.dataset != "nuscenes":
            return None
        from .nuscenes import frame_boxes

        return frame_boxes(self)

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


def _frame_to_plain(frame: Frame) -> dict[str, Any]:
    plain: dict[str, Any] = {f.name: getattr(frame, f.name) for f in fields(Frame)}
    del plain["root"]
    plain["pose"] = frame.pose.ravel().tolist()
    plain["point_label_lookup"] = list(frame.point_label_lookup)
    plain["cameras"] = [
        {
            "name": c.name,
            "image": c.image,
            "width": c.width,
            "height": c.height,
            "intrinsic": c.intrinsic.ravel().tolist(),
            "lidar_to_camera": c.lidar_to_camera.ravel().tolist(),
        }
        for c in frame.cameras
    ]
    return plain


_CAMERA_FIELDS = {
    "name": str,
    "image": str,
    "width": Whole(1),
    "height": Whole(1),
    "intrinsic": list,
    "lidar_to_camera": list,
}
_FRAME_FIELDS = {
    "dataset": str,
    "version": str,
    "token": str,
    "scene": str,
    "split": str,
    "timestamp": Whole(-(2**63)),
    "point_file": str,
    "point_columns": Whole(4, 64),
    "pose": list,
    "cameras": [_CAMERA_FIELDS],
    "point_label_file": {str, None},
    "point_label_bytes": {Whole(1, 1), Whole(4, 4)},
    "point_label_lookup": list,
    "truth_folder": {str, None},
}


def _frame_from_plain(plain: Any, root: Path, where: str) -> Frame:
    """A frame as the index has it; ``where`` is the index's file and line.

    Raises:
        OlivineError: a key is missing or wrong, or a path leads out of the data set's folder.
    """
    values = dict(demand(plain, _FRAME_FIELDS, where, _AGAIN))
    try:
        values["pose"] = np.array(plain["pose"], np.float64).reshape(4, 4)
        values["point_label_lookup"] = bytes(plain["point_label_lookup"])
        values["cameras"] = tuple(
            Camera(
                c["name"],
                c["image"],
                c["width"],
                c["height"],
                np.array(c["intrinsic"], np.float64).reshape(3, 3),
                np.array(c["lidar_to_camera"], np.float64).reshape(4, 4),
            )
            for c in plain["cameras"]
        )
        frame = Frame(root=root, **values)
    except (ValueError, TypeError, OverflowError) as error:
        raise OlivineError(f"not a frame ({error})", where=where, remedy=_AGAIN) from None
    check_frame(frame, where)
    return frame


def check_scene_name(name: str, where: object) -> None:
    """Raise unless a scene's name can be the stem of a file's name; ``where`` names the scene."""
    if inside("", name, where).name != name or name.startswith("."):
        raise OlivineError(f"names the scene {name!r}", where=where, remedy=_AGAIN)


def check_frame(frame: Frame, where: object) -> None:
    """Raise unless a frame's files lie in its data set, its names fit file names, and its cameras' numbers are finite.

    Args:
        where: the file that the frame was read from, for the message.

    Raises:
        OlivineError: names the file, and the path, frame or camera.
    """
    check_scene_name(frame.scene, where)
    # A token may have a folder (08/000123), and names a prediction's file.
    names = [frame.token, frame.point_file, *(camera.image for camera in frame.cameras)]
    for name in (*names, frame.point_label_file, frame.truth_folder):
        if name is not None and not is_relative_name(name):
            inside(frame.root, name, where)  # raises
    for camera in frame.cameras:
        if "/" in camera.name or camera.image in ("samples", "sweeps", "sequences"):
            raise OlivineError(f"names the camera {camera.name!r} with {camera.image}", where=where, remedy=_AGAIN)
        # A sum is not finite where one of a few numbers is not (or all are beyond any calibration), and costs less.
        if not math.isfinite(camera.intrinsic.sum() + camera.lidar_to_camera.sum()):
            raise OlivineError(
                f"the calibration of {camera.name} in frame {frame.token} is not finite",
                where=where,
                remedy="download the data set's calibration again",
            )


@dataclass(frozen=True)
class Scene:
    """A scene's entry in the index: its frames are read when asked."""

    name: str
    split: str
    frame_count: int
    file: Path
    root: Path
    digest: str

    def frames(self) -> list[Frame]:
        """The scene's frames in time order.

        Raises:
            OlivineError: the scene's file is missing, has other bytes than when it was written, or holds no such frames.
        """
        text = read_text(self.file, _AGAIN)
        if digest(text) != self.digest:
            raise OlivineError("has other bytes than the index says", where=self.file, remedy=_AGAIN)
        lines = text.splitlines()
        if len(lines) != self.frame_count:
            raise OlivineError(
                f"the index holds {len(lines)} frames, its table says {self.frame_count}",
                where=self.file,
                remedy=_AGAIN,
            )
        places = ((line, f"{self.file} line {number}") for number, line in enumerate(lines, 1))
        return [_frame_from_plain(parse_json(line, where, _AGAIN), self.root, where) for line, where in places]


@dataclass(frozen=True)
class FrameIndex:
    """All frames of a data set, scene by scene, on disk.

    On disk: ``index.json`` (data set, version, root, scenes) and one JSON-lines file for
    each scene. Only ``index.json`` is read at opening.

    Attributes:
        intensity_offset: what a network's input adds to the raw intensity of ``Frame.points()``.
    """

    dataset: str
    version: str
    root: Path
    point_classes: tuple[str, ...]
    scenes: tuple[Scene, ...]
    digest: str
    fingerprint: str = ""
    intensity_offset: float = 0.0

    def __len__(self) -> int:
        return sum(scene.frame_count for scene in self.scenes)

    def splits(self) -> list[str]:
        """The splits that have frames, ``train`` first."""
        return [s for s in ("train", "val", "test") if any(scene.split == s for scene in self.scenes)]

    def select(self, split: str | None = None) -> list[Scene]:
        """The scenes of a split (all without one), in the index's order."""
        return [scene for scene in self.scenes if split is None or scene.split == split]

    def frames(self, split: str | None = None) -> Iterator[Frame]:
        """The frames of a split (all without one), scene by scene, in time order."""
        for scene in self.select(split):
            yield from scene.frames()


def write_index(
    directory: PathLike,
    frames: Iterable[Frame],
    *,
    dataset: str,
    version: str,
    root: PathLike,
    point_classes: tuple[str, ...] = (),
    intensity_offset: float = 0.0,
    fingerprint: str = "",
) -> FrameIndex:
    """Write the index of ``frames`` (scene by scene, in time order) and open it.

    Args:
        directory: the index's folder, made where absent.
        point_classes: names of the classes of ``Frame.point_labels()`` from 1 on.
        intensity_offset: see :class:`FrameIndex`.
        fingerprint: changes when the data set's files do; tells an index that is out of date.
    """
    directory = Path(directory)
    by_scene: dict[str, list[Frame]] = {}
    for frame in frames:
        by_scene.setdefault(frame.scene, []).append(frame)
    if not by_scene:
        raise OlivineError("the data set has no frames", where=root, remedy="check the data set's folder and version")
    table = []
    for name, members in by_scene.items():
        for member in members:
            check_frame(member, root)
        text = "".join(json.dumps(_frame_to_plain(f), sort_keys=True) + "\n" for f in members)
        write_bytes(directory / f"{name}.jsonl", text.encode())
        table.append({"name": name, "split": members[0].split, "frames": len(members), "digest": digest(text)})
    plain = {
        "schema": INDEX_SCHEMA,
        "dataset": dataset,
        "version": version,
        "root": os.fspath(Path(root).absolute()),
        "point_classes": list(point_classes),
        "intensity_offset": intensity_offset,
        "fingerprint": fingerprint,
        "scenes": table,
    }
    write_json(directory / "index.json", {**plain, "digest": _index_digest(plain)})
    return open_index(directory)


_INDEX_FIELDS = {
    "dataset": str,
    "version": str,
    "root": str,
    "point_classes": [str],
    "fingerprint?": str,
    "scenes": [{"name": str, "split": str, "frames": Whole(1), "digest": str}],
    "digest?": str,
}


def _index_digest(plain: dict[str, Any]) -> str:
    # Not of the root: a data set may move.
    return digest({key: value for key, value in plain.items() if key not in ("digest", "root")})


def open_index(directory: PathLike, root: PathLike | None = None) -> FrameIndex:
    """Open an index written by :func:`write_index`.

    Args:
        root: where the data set is now, if it has moved since.

    Raises:
        OutdatedIndex: an earlier version wrote it, with another projection or without the intensity rule.
        OlivineError: there is none, it is damaged, or of a schema this version does not read.
    """
    directory = Path(directory).absolute()  # the index may be sent to a process with another working folder
    path = directory / "index.json"
    plain = read_json(path, remedy="run olivine labelgen first")
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if str(schema).split(".")[0] != INDEX_SCHEMA.split(".")[0]:
        raise OlivineError(
            f"frame index of schema {schema}, this olivine reads {INDEX_SCHEMA}", where=path, remedy=_AGAIN
        )
    demand(plain, _INDEX_FIELDS, path, _AGAIN)
    if plain.get("digest", "") not in ("", _index_digest(plain)):  # an older olivine wrote none
        raise OlivineError("damaged: its content does not match its digest", where=path, remedy=_AGAIN)
    if "intensity_offset" not in plain and plain["dataset"] in REVISED:
        raise OutdatedIndex(
            "written before KITTI was projected by the whole P2 and had its intensity rule",
            where=path,
            remedy="run the same olivine labelgen again: it writes the index anew and keeps the label maps",
        )
    if not plain["scenes"] or len(plain["point_classes"]) > 255:
        what = "has no scenes" if not plain["scenes"] else f"has {len(plain['point_classes'])} point classes"
        raise OlivineError(what, where=path, remedy=_AGAIN)
    if "\0" in plain["root"]:
        raise OlivineError("names a root with a null character", where=path, remedy=_AGAIN)
    base = Path(root if root is not None else plain["root"]).absolute()
    scenes = []
    for s in plain["scenes"]:
        check_scene_name(s["name"], path)
        scenes.append(Scene(s["name"], s["split"], s["frames"], directory / f"{s['name']}.jsonl", base, s["digest"]))
    identity = {key: plain[key] for key in ("dataset", "version", "point_classes", "scenes")}
    return FrameIndex(
        dataset=plain["dataset"],
        version=plain["version"],
        root=base,
        point_classes=tuple(plain["point_classes"]),
        scenes=tuple(scenes),
        digest=digest(identity),
        fingerprint=plain.get("fingerprint", ""),
        intensity_offset=float(plain.get("intensity_offset", 0.0)),
    )
