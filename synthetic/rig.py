"""Which sensors sit where on the vehicle: numbers from real calibrations, in ``data/*.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..readers.frame import rotation_of


def rigid(rotation: NDArray[np.float64], translation: Any) -> NDArray[np.float64]:
    """Homogeneous matrix float64 [4, 4] of a rotation [3, 3] and a translation [3]."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


@dataclass(frozen=True)
class CameraMount:
    """A camera: its calibration at full size, and when it fires after the LiDAR's time.

    Attributes:
        width, height: pixels.
        intrinsic: float64 [3, 3].
        to_ego: float64 [4, 4], camera to ego vehicle.
        rotation: the same rotation as a quaternion (w, x, y, z); empty where a format has no use for it.
        delay_us: microseconds.
    """

    name: str
    width: int
    height: int
    intrinsic: NDArray[np.float64]
    to_ego: NDArray[np.float64]
    rotation: tuple[float, ...]
    delay_us: int

    def scaled(self, scale: float) -> tuple[int, int, NDArray[np.float64]]:
        """Width, height and intrinsic [3, 3] of an image scaled by ``scale`` (pixel centres on integers)."""
        width, height = max(round(self.width * scale), 1), max(round(self.height * scale), 1)
        sx, sy = width / self.width, height / self.height
        intrinsic = np.diag([sx, sy, 1.0]) @ self.intrinsic
        intrinsic[0, 2] += (sx - 1) / 2
        intrinsic[1, 2] += (sy - 1) / 2
        return width, height, intrinsic


@dataclass(frozen=True)
class LidarMount:
    """A spinning LiDAR: ``columns`` firings a turn, clockwise from ``first_azimuth``, each of all beams at once.

    Attributes:
        elevation: float64 [B], radians.
        to_ego: float64 [4, 4], LiDAR to ego vehicle.
        rotation: the same rotation as a quaternion (w, x, y, z).
        period_us: of one turn, microseconds.
    """

    name: str
    elevation: NDArray[np.float64]
    columns: int
    first_azimuth: float
    to_ego: NDArray[np.float64]
    rotation: tuple[float, ...]
    period_us: int

    def directions(self) -> NDArray[np.float64]:
        """Unit directions in the LiDAR frame, float64 [columns * beams, 3], column by column."""
        azimuth = self.first_azimuth - np.arange(self.columns) * (2 * np.pi / self.columns)
        level = np.cos(self.elevation)
        return np.stack(
            [
                np.cos(azimuth)[:, None] * level,
                np.sin(azimuth)[:, None] * level,
                np.broadcast_to(np.sin(self.elevation), (self.columns, len(self.elevation))),
            ],
            axis=-1,
        ).reshape(-1, 3)


@dataclass(frozen=True)
class Rig:
    """The sensors of a vehicle."""

    lidar: LidarMount
    cameras: tuple[CameraMount, ...]


def data_file(name: str) -> Any:
    """The content of one of the room's JSON files."""
    return json.loads((files(__package__) / "data" / name).read_text())


def _lidar(plain: dict[str, Any]) -> LidarMount:
    return LidarMount(
        plain["name"],
        np.deg2rad(np.array(plain["elevation_deg"], np.float64)),
        plain["columns"],
        float(np.deg2rad(plain["first_azimuth_deg"])),
        rigid(rotation_of(plain["rotation"]), plain["translation"]),
        tuple(plain["rotation"]),
        plain["period_us"],
    )


@cache
def nuscenes_rig() -> Rig:
    """Six cameras and a 32-beam LiDAR, calibrated as on the vehicle of a real nuScenes keyframe."""
    plain = data_file("nuscenes_rig.json")
    return Rig(
        _lidar(plain["lidar"]),
        tuple(
            CameraMount(
                c["name"],
                c["width"],
                c["height"],
                np.array(c["intrinsic"], np.float64),
                rigid(rotation_of(c["rotation"]), c["translation"]),
                tuple(c["rotation"]),
                c["delay_us"],
            )
            for c in plain["cameras"]
        ),
    )


@dataclass(frozen=True)
class KittiCalibration:
    """What KITTI's ``calib.txt`` holds: P0 to P3 (float64 [4, 3, 4]) at full size and Tr (float64 [4, 4]).

    P_k = K [I | t_k], t_k where camera 0 is in camera k's frame: mostly along x, some millimetres along y and z.
    """

    projection: NDArray[np.float64]
    velodyne_to_camera_0: NDArray[np.float64]


@cache
def kitti_calibration() -> KittiCalibration:
    """The calibration of a real KITTI sequence."""
    plain = data_file("kitti_rig.json")
    focal, (cu, cv) = plain["focal"], plain["center"]
    one = np.array([[focal, 0, cu, 0], [0, focal, cv, 0], [0, 0, 1, 0]], np.float64)
    projection = np.stack([one] * 4)
    projection[:, :, 3] = plain["fourth_column"]
    to_camera = np.eye(4)
    to_camera[:3] = np.array(plain["velodyne_to_camera_0"]).reshape(3, 4)
    return KittiCalibration(projection, to_camera)


@cache
def kitti_rig() -> Rig:
    """The left colour camera and the 64-beam LiDAR of the KITTI vehicle."""
    plain = data_file("kitti_rig.json")
    lidar = _lidar(plain["lidar"])
    calibration = kitti_calibration()
    left = calibration.projection[2]
    shift = rigid(np.eye(3), np.linalg.solve(left[:, :3], left[:, 3]))
    lidar_to_camera = shift @ calibration.velodyne_to_camera_0
    camera = plain["camera"]
    to_ego = lidar.to_ego @ np.linalg.inv(lidar_to_camera)
    mount = CameraMount(camera["name"], camera["width"], camera["height"], left[:, :3].copy(), to_ego, (), 0)
    return Rig(lidar, (mount,))
