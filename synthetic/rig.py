"""Which sensors sit where on the vehicle: numbers from real calibrations, in ``data/*.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray


def quaternion_matrix(rotation: list[float]) -> NDArray[np.float64]:
    """Rotation matrix float64 [3, 3] of a unit quaternion (w, x, y, z)."""
    w, x, y, z = np.asarray(rotation, np.float64) / np.linalg.norm(rotation)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def rigid(rotation: NDArray[np.float64], translation: Any) -> NDArray[np.float64]:
    """Homogeneous matrix float64 [4, 4] of a rotation [3, 3] and a translation [3]."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


@dataclass(frozen=True)
class CameraMount:
    """A camera: its calibration at full size, and when it fires after the LiDAR's time (microseconds)."""

    name: str
    width: int
    height: int
    intrinsic: NDArray[np.float64]
    translation: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    delay_us: int

    @property
    def to_ego(self) -> NDArray[np.float64]:
        """Camera to ego vehicle, float64 [4, 4]."""
        return rigid(quaternion_matrix(list(self.rotation)), self.translation)

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
    """A spinning LiDAR: ``columns`` firings a turn, clockwise from ``first_azimuth``, each of all beams at once."""

    name: str
    elevation: NDArray[np.float64]
    columns: int
    first_azimuth: float
    translation: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    period_us: int

    @property
    def to_ego(self) -> NDArray[np.float64]:
        """LiDAR to ego vehicle, float64 [4, 4]."""
        return rigid(quaternion_matrix(list(self.rotation)), self.translation)

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


@cache
def nuscenes_rig() -> Rig:
    """Six cameras and a 32-beam LiDAR, calibrated as on the vehicle of a real nuScenes keyframe."""
    plain = data_file("nuscenes_rig.json")
    lidar = plain["lidar"]
    return Rig(
        LidarMount(
            lidar["name"],
            np.deg2rad(np.array(lidar["elevation_deg"], np.float64)),
            lidar["columns"],
            float(np.deg2rad(lidar["first_azimuth_deg"])),
            tuple(lidar["translation"]),
            tuple(lidar["rotation"]),
            lidar["period_us"],
        ),
        tuple(
            CameraMount(
                c["name"],
                c["width"],
                c["height"],
                np.array(c["intrinsic"], np.float64),
                tuple(c["translation"]),
                tuple(c["rotation"]),
                c["delay_us"],
            )
            for c in plain["cameras"]
        ),
    )
