"""Frames in the layout of KITTI's object benchmark: velodyne, image_2, calib, label_2, and the lists of the splits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .capture import Annotation, Capture, Shot, ego_matrix
from .encode import png, put
from .kinds import PROMPT_OF_KIND
from .kitti import MODEL, STEP_US, calibration_lines
from .rig import Rig, kitti_calibration, kitti_rig

__all__ = ["MODEL", "STEP_US", "finish", "scene_names", "write_frame"]

Row = dict[str, Any]
_TYPES = {
    "vehicle.car": "Car",
    "vehicle.truck": "Truck",
    "vehicle.bus": "Misc",
    "vehicle.bicycle": "Cyclist",
    "vehicle.motorcycle": "Cyclist",
    "human.pedestrian": "Pedestrian",
}
_OCCLUDED = {4: 0, 3: 1, 2: 2, 1: 2}


def scene_names(scenes: int) -> tuple[str, list[tuple[str, str]]]:
    """``object``, and (first number, split) of each scene's frames: from two on the last is for validation."""
    names = [(f"{1000 * k:06d}", "train") for k in range(scenes)]
    return "object", [*names[:-1], (names[-1][0], "val")] if scenes > 1 else names


def write_frame(root: Path, first: str, frame: int, shot: Capture) -> Row:
    """Write the files of one frame; returns its row: counts and its number."""
    stem = f"{int(first) + frame:06d}"
    order = np.argsort(shot.beam, kind="stable")  # the files go beam by beam
    points = shot.points[order]
    points[:, 3] = np.round(points[:, 3] / 255, 2)
    put(root, f"training/velodyne/{stem}.bin", points.astype(np.float32).tobytes())
    prompt = PROMPT_OF_KIND[shot.sweep.kind[order]]
    put(root, f"truth/point/training/velodyne/{stem}.bin", prompt.tobytes())
    (view,) = shot.shots
    put(root, f"training/image_2/{stem}.png", png(view.picture.image))
    put(root, f"truth/class/training/image_2/{stem}.png", png(view.picture.prompt))
    put(root, f"truth/instance/training/image_2/{stem}.png", png(view.picture.instance))
    scale = view.width / view.mount.width
    names = ("R0_rect: 1 0 0 0 1 0 0 0 1", "Tr_imu_to_velo: 1 0 0 0 0 1 0 0 0 0 1 0")
    lines = [line.replace("Tr:", "Tr_velo_to_cam:") for line in calibration_lines(kitti_rig(), scale)]
    put(root, f"training/calib/{stem}.txt", ("\n".join([*lines[:4], names[0], lines[4], names[1]]) + "\n").encode())
    objects = [_object(annotation, shot, view) for annotation in shot.annotations]
    text = "".join(f"{line}\n" for line in objects if line)
    put(root, f"training/label_2/{stem}.txt", text.encode())
    return {"boxes": text.count("\n"), "prompt_count": np.bincount(prompt, minlength=14).tolist(), "stem": stem}


def finish(root: Path, rig: Rig, scale: float, scenes: Iterable[tuple[str, list[Row]]]) -> None:
    """Write which frames are for what."""
    listed = [(int(first), [row["stem"] for row in rows]) for first, rows in scenes]
    validation = [stem for _, stems in listed[1:][-1:] for stem in stems]
    training = [stem for _, stems in listed for stem in stems if stem not in validation]
    for name, stems in (("train", training), ("val", validation)):
        put(root, f"ImageSets/{name}.txt", "".join(f"{stem}\n" for stem in stems).encode())


def _object(annotation: Annotation, shot: Capture, view: Shot) -> str:
    """A line of the label file; empty for what is not in the image or is none of the benchmark's objects."""
    kind = next((v for k, v in _TYPES.items() if annotation.actor.category.startswith(k)), None)
    rig = kitti_rig()
    street_to_lidar = np.linalg.inv(ego_matrix(shot.ego) @ rig.lidar.to_ego)
    to_camera_0 = kitti_calibration().velodyne_to_camera_0 @ street_to_lidar
    length, width, height = annotation.size
    place = to_camera_0[:3, :3] @ np.array(annotation.center) + to_camera_0[:3, 3]
    ahead = to_camera_0[:3, :3] @ np.array([np.cos(annotation.yaw), np.sin(annotation.yaw), 0.0])
    turn = float(np.arctan2(-ahead[2], ahead[0]))
    if kind is None or place[2] < 1:
        return ""
    frame = _frame_on_image(annotation, shot, view)
    left, top, right, bottom = frame
    seen = np.array([max(left, 0), max(top, 0), min(right, view.width - 1), min(bottom, view.height - 1)])
    if not (seen[2] > seen[0] and seen[3] > seen[1]):
        return ""
    cut = 1 - (seen[2] - seen[0]) * (seen[3] - seen[1]) / ((right - left) * (bottom - top))
    alpha = turn - float(np.arctan2(place[0], place[2]))
    numbers = (alpha, *seen, height, width, length, place[0], place[1] + height / 2, place[2], turn)
    return f"{kind} {cut:.2f} {_OCCLUDED[annotation.visibility]} " + " ".join(f"{v:.2f}" for v in numbers)


def _frame_on_image(annotation: Annotation, shot: Capture, view: Shot) -> NDArray[np.float64]:
    """The box around an object's eight corners on the image: left, top, right, bottom in pixels."""
    half = np.array(annotation.size) / 2
    corners = np.stack(np.meshgrid(*[(-1, 1)] * 3, indexing="ij"), -1).reshape(-1, 3) * half
    c, s = np.cos(annotation.yaw), np.sin(annotation.yaw)
    places = corners @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T + annotation.center
    to_camera = np.linalg.inv(ego_matrix(view.ego) @ view.mount.to_ego)
    seen = places @ to_camera[:3, :3].T + to_camera[:3, 3]
    pixel = seen @ view.intrinsic.T
    pixel = pixel[:, :2] / np.maximum(pixel[:, 2:], 0.1)
    return np.concatenate([pixel.min(0), pixel.max(0)])
