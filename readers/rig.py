"""A recording of your own: a folder of point files and images, and ``rig.yaml`` beside them that says what is what."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import Failure, OlivineError, demand, inside, parse_json
from ..common.images import image_size
from .clouds import CloudLayout, read_cloud
from .dataset import Dataset
from .frame import INDEX_AGAIN, UP, Camera, Frame, check_keys
from .recording import FILE, Sensor, read_description, scene_name
from .recording_files import Poses, Stream, nearest, stream_of

_CLOUD = {
    "file": str,
    "matrix": [float],
    "columns": [str],
    "dtype": str,
    "xyz": (str, str, str),
    "intensity": str,
}


_TILTED = 20.0
"""Degrees between a LiDAR's z axis and up from which on the user is told."""


class RigDataset(Dataset):
    """A folder and its ``rig.yaml``, see docs/own-data.md.

    A frame is a cloud of the first LiDAR with the nearest cloud of each other one and the nearest image of each camera.
    Points are in the first LiDAR's frame. With poses every sensor's motion until its own time is taken out.
    """

    name = "rig"
    version = "1"

    def __init__(self, root: Path, version: str | None = None) -> None:
        self.root = Path(root)
        self.description = read_description(self.root)
        self.intensity_offset = self.description.intensity_offset
        sensors = (*self.description.lidars, *self.description.cameras)
        self.note = f"{FILE} with {', '.join(s.name for s in sensors)}"
        at_key = (remark.partition(": ") for remark in self.description.remarks)
        self.doubts = tuple(Failure(key, reason) for key, _, reason in at_key)
        for remark in self.description.remarks:
            self.note += f"; {remark}"
        first = self.description.lidars[0]
        tilt = math.degrees(math.acos(np.clip(_up(first)[2], -1, 1)))
        if tilt > _TILTED:
            self.note += (
                f"; the z axis of {first.name} is {tilt:.0f}° from up: --consolidate and --clusters go by up, "
                "pre-training (ranges, rotations, flips) by the LiDAR's own axes"
            )

    @classmethod
    def count(cls, root: Path) -> int:
        """The point files of the first LiDAR, where there is a readable ``rig.yaml``; see :class:`Dataset`."""
        if not (root / FILE).is_file():
            return 0
        try:
            rig = read_description(root)
        except OlivineError:  # it is one, and opening it says what is wrong with it
            return 1
        return sum(1 for scene in rig.scenes for _ in (root / scene).glob(rig.lidars[0].files))

    @classmethod
    def state(cls, root: Path, version: str) -> Sequence[Path]:
        """The YAML, and the folders of the files; see :class:`Dataset`."""
        rig = read_description(root)
        found = {root / FILE}
        for scene in rig.scenes:
            for sensor in (*rig.lidars, *rig.cameras):
                found |= {path.parent for path in (root / scene).glob(sensor.files)}
                if sensor.clock.times not in ("name", "number"):
                    found.add(root / scene / sensor.clock.times)
            if rig.poses is not None:
                found.add(root / scene / rig.poses.file)
        return sorted(path for path in found if path.exists())

    def frames(self, split: str | None = None) -> list[Frame]:
        """The frames of a split (all without one), scene by scene in time order.

        Raises:
            OlivineError: a sensor has no files, a time is not known, no cloud has an image of every camera, two images
                would share one label map, or a camera has images of another size in another scene.
        """
        if split is not None and split not in ("train", "val", "test"):
            raise OlivineError(f"unknown split {split!r}", remedy="choose one of train, val, test")
        scenes = self.description.scenes.items()
        frames = [f for folder, its in scenes if split in (None, its) for f in self._scene_frames(folder, its)]
        check_keys(frames, self.root)
        _check_sizes(frames, self.root)
        return frames

    def _scene_frames(self, folder: str, split: str) -> list[Frame]:
        rig = self.description
        streams = [stream_of(self.root, folder, sensor) for sensor in (*rig.lidars, *rig.cameras)]
        first, others = streams[0], streams[1:]
        poses = None
        if rig.poses is not None:
            of = {sensor.name: sensor for sensor in (*rig.lidars, *rig.cameras)}.get(rig.poses.of)
            to_vehicle = np.eye(4) if of is None else of.to_vehicle
            poses = Poses(rig.poses, self.root / folder, first, to_vehicle)
        sizes = {
            s.sensor.name: image_size(self.root / s.files[0], "record it again") for s in streams[len(rig.lidars) :]
        }
        stems = [Path(name).stem for name in first.files]
        named = stems if len(set(stems)) == len(stems) else [f"{k:06d}" for k in range(len(stems))]
        frames: list[Frame] = []
        no_image, no_pose = 0, 0
        for k in range(0, len(first.files), rig.every):
            time = int(first.times[k])
            chosen = [nearest(stream.times, time) for stream in others]
            apart = [abs(int(stream.times[j]) - time) for stream, j in zip(others, chosen)]
            if max(apart) > round(rig.limit * 1e6):
                no_image += 1
                continue
            taken = [(first, k), *zip(others, chosen)]
            asked = [np.eye(4) if poses is None else poses.at(int(stream.times[j])) for stream, j in taken]
            where = [pose for pose in asked if pose is not None]
            if len(where) < len(asked):
                no_pose += 1
                continue
            to_world = [pose @ stream.sensor.to_vehicle for pose, (stream, _) in zip(where, taken)]
            frames.append(self._frame(folder, split, named[k], taken, to_world, sizes, poses is not None))
        self._say(folder, first, others, no_image, no_pose, len(frames))
        return frames

    def _frame(
        self,
        folder: str,
        split: str,
        stem: str,
        taken: Sequence[tuple[Stream, int]],
        to_world: Sequence[NDArray[np.float64]],
        sizes: dict[str, tuple[int, int]],
        has_poses: bool,
    ) -> Frame:
        rig = self.description
        clouds, cameras, delays = [], [], []
        for (stream, j), world in zip(taken[: len(rig.lidars)], to_world):
            matrix = np.linalg.inv(to_world[0]) @ world
            layout = asdict(stream.sensor.layout)
            # The first LiDAR's points are not touched.
            numbers = [] if stream is taken[0][0] else matrix[:3].ravel().tolist()
            clouds.append({"file": stream.files[j], "matrix": numbers, **layout})
        for (stream, j), world in zip(taken[len(rig.lidars) :], to_world[len(rig.lidars) :]):
            sensor = stream.sensor
            lidar_to_camera = np.linalg.inv(world) @ to_world[0]
            width, height = sizes[sensor.name]
            delays.append(int(stream.times[j] - taken[0][0].times[taken[0][1]]))
            lens = sensor.model, sensor.distortion
            cameras.append(
                Camera(sensor.name, stream.files[j], width, height, sensor.intrinsic, lidar_to_camera, *lens)
            )
        first, k = taken[0]
        return self.make_frame(
            token=f"{scene_name(folder)}/{stem}",
            scene=scene_name(folder),
            split=split,
            timestamp=int(first.times[k]),
            point_file=first.files[k],
            point_columns=4,
            pose=to_world[0] if has_poses else np.full((4, 4), np.nan),
            cameras=tuple(cameras),
            detail=json.dumps({"clouds": clouds, "min_range": rig.min_range, "delays_us": delays}),
            up=_up(first.sensor),
        )

    def _say(
        self, folder: str, first: Stream, others: Sequence[Stream], no_image: int, no_pose: int, made: int
    ) -> None:
        """Note what was left out; raise where that is everything."""
        rig = self.description
        if not made and no_image:
            gaps = {
                s.sensor.name: min(abs(int(s.times[nearest(s.times, int(t))]) - int(t)) for t in first.times) / 1e6
                for s in others
            }
            worst = max(gaps, key=lambda name: gaps[name])
            raise OlivineError(
                f"no cloud of {first.sensor.name} has a file of {worst} within {rig.limit:g} s: the nearest is "
                f"{gaps[worst]:.6g} s away",
                where=self.root / folder,
                remedy=f"check unit, times and clock_offset of {worst} in {FILE}, or raise matching.limit",
            )
        if not made:
            raise OlivineError(
                f"no pose is known at the time of any cloud of {first.sensor.name}",
                where=self.root / folder,
                remedy=f"check poses.unit and poses.max_gap in {FILE}",
            )
        lines = (
            (no_image, f"have no file of every sensor within {rig.limit:g} s"),
            (no_pose, "have no pose at the time of every sensor"),
        )
        for count, why in lines:
            line = f"; {count} clouds of {scene_name(folder)} {why} and are left out"
            if count and line not in self.note:
                self.note += line

    @classmethod
    def delays(cls, frame: Frame) -> dict[str, float]:
        """By the times of the files; see :class:`Dataset`."""
        where = f"frame {frame.token}"
        plain = demand(parse_json(frame.detail, where, INDEX_AGAIN), {"delays_us": [int]}, where, INDEX_AGAIN)
        return {camera.name: delay / 1e6 for camera, delay in zip(frame.cameras, plain["delays_us"])}

    @classmethod
    def files(cls, frame: Frame) -> tuple[str, ...]:
        """The point files of all LiDARs; see :class:`Dataset`."""
        return tuple(cloud["file"] for cloud in _detail(frame)["clouds"])

    @classmethod
    def cloud(cls, frame: Frame) -> NDArray[np.float32]:
        """The clouds of all LiDARs in the first one's frame; see :class:`Dataset`."""
        where, plain = f"frame {frame.token}", _detail(frame)
        parts = []
        for cloud in plain["clouds"]:
            path = inside(frame.root, cloud["file"], where)
            layout = CloudLayout(tuple(cloud["columns"]), cloud["dtype"], tuple(cloud["xyz"]), cloud["intensity"])
            points = read_cloud(path, layout)
            if plain["min_range"] > 0:
                points = points[np.linalg.norm(points[:, :3].astype(np.float64), axis=1) >= plain["min_range"]]
            if len(cloud["matrix"]) == 12:
                matrix = np.array(cloud["matrix"], np.float64).reshape(3, 4)
                points = points.copy()
                points[:, :3] = points[:, :3].astype(np.float64) @ matrix[:, :3].T + matrix[:, 3]
            parts.append(points)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _check_sizes(frames: Sequence[Frame], root: Path) -> None:
    """Raise where a camera's images have another size in another scene: its intrinsic can be right for one alone."""
    firsts: dict[str, Camera] = {}
    for frame in frames:
        for camera in frame.cameras:
            first = firsts.setdefault(camera.name, camera)
            if (first.width, first.height) != (camera.width, camera.height):
                raise OlivineError(
                    f"{camera.name} has one intrinsic and images of two sizes: {first.image} is {first.width}x{first.height}, "
                    f"{camera.image} {camera.width}x{camera.height}",
                    where=root,
                    remedy=f"scale them to one size, or make a folder with a {FILE} of its own of the scenes of each size",
                )


def _detail(frame: Frame) -> dict[str, Any]:
    where = f"frame {frame.token}"
    kinds = {"clouds": [_CLOUD], "min_range": float}
    plain: dict[str, Any] = demand(parse_json(frame.detail, where, INDEX_AGAIN), kinds, where, INDEX_AGAIN)
    return plain


def _up(lidar: Sensor) -> tuple[float, float, float]:
    """Up in a LiDAR's frame, by its place on the vehicle."""
    row = lidar.to_vehicle[2, :3]
    x, y, z = (row / np.linalg.norm(row)).tolist()
    return UP if math.hypot(x, y) < 1e-6 and z > 0 else (x, y, z)
