"""A sequence in the KITTI odometry layout with SemanticKITTI labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .capture import Capture, ego_matrix
from .encode import png, put
from .kinds import PROMPT_OF_KIND, SEMANTICKITTI_OF_KIND
from .lidar import LidarModel
from .rig import Rig, kitti_calibration

MODEL = LidarModel(
    range_noise=0.02,
    max_range=80.0,
    sensitivity=6.0e-6,
    dropout=0.02,
    gain=0.12,
    gamma=0.33,
    speckle=0.8,
    hull=(0.0, 0.0, 0.0, 0.0),
)
"""The 64-beam sensor stands higher over the roof than its lowest beams see."""
STEP_US = 100_000
"""Between frames."""

Row = dict[str, Any]
_TRAIN = ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10")
_VAL = "08"


def scene_names(scenes: int) -> tuple[str, list[tuple[str, str]]]:
    """``odometry``, and (sequence, split) of each: 00, 01, ... for training and, from two on, 08 for validation."""
    names = [(name, "train") for name in _TRAIN[: max(scenes - 1, 1)]]
    return "odometry", names + ([(_VAL, "val")] if scenes > 1 else [])


def write_frame(root: Path, sequence: str, frame: int, shot: Capture) -> Row:
    """Write the files of one frame; returns its row: pose, time and counts."""
    folder, stem = f"sequences/{sequence}", f"{frame:06d}"
    order = np.argsort(shot.beam, kind="stable")  # the files go beam by beam
    points = shot.points[order]
    points[:, 3] = np.round(points[:, 3] / 255, 2)
    put(root, f"{folder}/velodyne/{stem}.bin", points.astype(np.float32).tobytes())
    kind = shot.sweep.kind[order]
    label = SEMANTICKITTI_OF_KIND[kind, shot.moving[order]] | (shot.instance[order].astype(np.uint32) << 16)
    put(root, f"{folder}/labels/{stem}.label", label.astype(np.uint32).tobytes())
    prompt = PROMPT_OF_KIND[kind]
    put(root, f"truth/point/{sequence}/{stem}.bin", prompt.tobytes())
    for view in shot.shots:
        put(root, f"{folder}/{view.mount.name}/{stem}.png", png(view.picture.image))
        put(root, f"truth/class/{sequence}/{view.mount.name}/{stem}.png", png(view.picture.prompt))
        put(root, f"truth/instance/{sequence}/{view.mount.name}/{stem}.png", png(view.picture.instance))
    return {
        "ego": list(shot.ego),
        "boxes": len(shot.annotations),
        "prompt_count": np.bincount(prompt, minlength=14).tolist(),
    }


def write_sequence(root: Path, sequence: str, rig: Rig, scale: float, rows: list[Row]) -> None:
    """Write calibration, times and poses of a sequence over its frames' rows, in time order."""
    to_camera = kitti_calibration().velodyne_to_camera_0
    lines = calibration_lines(rig, scale)
    put(root, f"sequences/{sequence}/calib.txt", ("\n".join(lines) + "\n").encode())
    times = "".join(f"{k * STEP_US * 1e-6:.6e}\n" for k in range(len(rows)))
    put(root, f"sequences/{sequence}/times.txt", times.encode())
    to_lidar = np.linalg.inv(to_camera)
    poses = [ego_matrix((row["ego"][0], row["ego"][1], row["ego"][2])) @ rig.lidar.to_ego @ to_lidar for row in rows]
    first = np.linalg.inv(poses[0])
    text = "".join(_numbers((first @ pose)[:3]) + "\n" for pose in poses)
    put(root, f"poses/{sequence}.txt", text.encode())
    put(root, f"sequences/{sequence}/poses.txt", text.encode())


def calibration_lines(rig: Rig, scale: float) -> list[str]:
    """P0 to P3 of the scaled images, and Tr."""
    calibration = kitti_calibration()
    width, height, _ = rig.cameras[0].scaled(scale)
    sx, sy = width / rig.cameras[0].width, height / rig.cameras[0].height
    # As CameraMount.scaled: pixel centres on integers.
    resize = np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]])
    lines = [f"P{k}: {_numbers(resize @ calibration.projection[k])}" for k in range(4)]
    return [*lines, f"Tr: {_numbers(calibration.velodyne_to_camera_0[:3])}"]


def _numbers(matrix: NDArray[np.float64]) -> str:
    return " ".join(f"{value:.12e}" for value in np.asarray(matrix).ravel())


def finish(root: Path, rig: Rig, scale: float, sequences: Iterable[tuple[str, list[Row]]]) -> None:
    """Write what belongs to whole sequences."""
    for sequence, rows in sequences:
        write_sequence(root, sequence, rig, scale, rows)
