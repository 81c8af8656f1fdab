"""Projection of one cloud onto six cameras through a lens, against OpenCV, and against the same cameras without one.

python benchmarks/lens_speed.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from olivine.readers import open_dataset
from olivine.readers.frame import Camera
from olivine.readers.project import project_points

KEYFRAME = Path(__file__).resolve().parents[2] / "shared" / "data" / "nuscenes-keyframe"
LENSES = {
    "pinhole": (),
    "brown-conrady": (-0.3, 0.1, 0.001, -0.001, 0.0),
    "fisheye": (0.01, -0.02, 0.003, 0.0),
}


def timed(function: Callable[[], Any], repeats: int) -> float:
    function()  # compiles
    best = np.inf
    for _ in range(repeats):
        started = time.process_time()
        function()
        best = min(best, time.process_time() - started)
    return best


def opencv(points: np.ndarray, cameras: list[Camera]) -> None:
    """What one would write with OpenCV: all points in front of each camera."""
    xyz = points[:, :3].astype(np.float64)
    for camera in cameras:
        seen = xyz @ camera.lidar_to_camera[:3, :3].T + camera.lidar_to_camera[:3, 3]
        seen = np.ascontiguousarray(seen[seen[:, 2] > 1][:, None])
        project = cv2.fisheye.projectPoints if camera.model == "fisheye" else cv2.projectPoints
        project(seen, np.zeros(3), np.zeros(3), camera.intrinsic, np.array(camera.distortion or (0.0,) * 4))


def main() -> None:
    (frame,) = open_dataset("nuscenes", KEYFRAME).frames()
    points = frame.points()
    for model, distortion in LENSES.items():
        cameras = [replace(c, model=model, distortion=distortion) for c in frame.cameras]
        ours = timed(lambda views=cameras: project_points(points, views), 20)  # type: ignore[misc]
        theirs = timed(lambda views=cameras: opencv(points, views), 10)  # type: ignore[misc]
        print(f"{model:14} {1e3 * ours:6.2f} ms   OpenCV {1e3 * theirs:6.2f} ms, {theirs / ours:.1f} times as long")


if __name__ == "__main__":
    main()
