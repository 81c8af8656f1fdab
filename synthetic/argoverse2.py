"""A log in the layout of Argoverse 2 Sensor, taken by the vehicle of :func:`~.rig.nuscenes_rig`."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from .capture import Annotation, Capture, ego_matrix
from .encode import jpeg, png, put
from .kinds import PROMPT_OF_KIND
from .lidar import LidarModel
from .rig import Rig, nuscenes_rig

MODEL = LidarModel()
STEP_US = 100_000
"""Between sweeps."""

Row = dict[str, Any]
START_NS = 315_966_000_000_000_000
# Six of the seven ring cameras: this vehicle has one to the rear.
_RING = {
    "CAM_FRONT": "ring_front_center",
    "CAM_FRONT_LEFT": "ring_front_left",
    "CAM_FRONT_RIGHT": "ring_front_right",
    "CAM_BACK_LEFT": "ring_side_left",
    "CAM_BACK_RIGHT": "ring_side_right",
    "CAM_BACK": "ring_rear_left",
}
_CATEGORIES = {
    "vehicle.car": "REGULAR_VEHICLE",
    "vehicle.truck": "TRUCK",
    "vehicle.bus": "BUS",
    "vehicle.bicycle": "BICYCLE",
    "vehicle.motorcycle": "MOTORCYCLE",
    "human.pedestrian": "PEDESTRIAN",
}
_POSE = ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")


def scene_names(scenes: int) -> tuple[str, list[tuple[str, str]]]:
    """``sensor``, and (log, split) of each scene: about every fourth is for validation."""
    validation = max(round(scenes / 4), 1) if scenes > 1 else 0
    splits = ["train"] * (scenes - validation) + ["val"] * validation
    return "sensor", [(f"{k:08x}-0000-4000-8000-000000000000", split) for k, split in enumerate(splits)]


def write_frame(root: Path, log: str, frame: int, shot: Capture, split: str) -> Row:
    """Write the files of one sweep; returns its row: poses by time, annotations and counts."""
    time = START_NS + int(log[:8], 16) * 10**12 + frame * STEP_US * 1000
    place = f"{split}/{log}/sensors"
    points = shot.points.astype(np.float64)
    to_ego = nuscenes_rig().lidar.to_ego
    xyz = points[:, :3] @ to_ego[:3, :3].T + to_ego[:3, 3]
    columns = {name: xyz[:, k].astype(np.float16) for k, name in enumerate("xyz")}
    columns |= {
        "intensity": np.round(points[:, 3]).astype(np.uint8),
        "laser_number": shot.beam.astype(np.uint8),
        "offset_ns": np.zeros(len(points), np.int32),
    }
    put(root, f"{place}/lidar/{time}.feather", _feather(columns))
    prompt = PROMPT_OF_KIND[shot.sweep.kind]
    put(root, f"truth/point/{place}/lidar/{time}.bin", prompt.tobytes())
    poses = {time: ego_matrix(shot.ego)}
    for view in shot.shots:
        taken, name = time + 1000 * view.mount.delay_us, _RING[view.mount.name]
        poses[taken] = ego_matrix(view.ego)
        key = f"{place}/cameras/{name}/{taken}"
        put(root, f"{key}.jpg", jpeg(view.picture.image))
        put(root, f"truth/class/{key}.png", png(view.picture.prompt))
        put(root, f"truth/instance/{key}.png", png(view.picture.instance))
    boxes = [box for annotation in shot.annotations if (box := _box(annotation, shot, time))]
    return {
        "boxes": len(boxes),
        "prompt_count": np.bincount(prompt, minlength=14).tolist(),
        "poses": [(moment, pose.tolist()) for moment, pose in poses.items()],
        "annotations": boxes,
        "split": split,
    }


def finish(root: Path, rig: Rig, scale: float, scenes: Iterable[tuple[str, list[Row]]]) -> None:
    """Write each log's calibration, poses and annotations."""
    mounts = {"up_lidar": rig.lidar.to_ego, **{_RING[c.name]: c.to_ego for c in rig.cameras}}
    sized = {_RING[c.name]: c.scaled(scale) for c in rig.cameras}
    for log, rows in scenes:
        place = f"{rows[0]['split']}/{log}"
        table = {"sensor_name": list(mounts), **_poses_table(list(mounts.values()))}
        put(root, f"{place}/calibration/egovehicle_SE3_sensor.feather", _feather(table))
        lenses: dict[str, Any] = {"sensor_name": list(sized)}
        for name, at in (("fx_px", (0, 0)), ("fy_px", (1, 1)), ("cx_px", (0, 2)), ("cy_px", (1, 2))):
            lenses[name] = [float(intrinsic[at]) for _, _, intrinsic in sized.values()]
        lenses |= {f"k{n}": [0.0] * len(sized) for n in (1, 2, 3)}
        lenses |= {"height_px": [h for _, h, _ in sized.values()], "width_px": [w for w, _, _ in sized.values()]}
        put(root, f"{place}/calibration/intrinsics.feather", _feather(lenses))
        poses = dict(sorted((moment, np.array(pose)) for row in rows for moment, pose in row["poses"]))
        city = {"timestamp_ns": list(poses), **_poses_table(list(poses.values()))}
        put(root, f"{place}/city_SE3_egovehicle.feather", _feather(city))
        boxes = [box for row in rows for box in row["annotations"]]
        names = (
            "timestamp_ns",
            "track_uuid",
            "category",
            "length_m",
            "width_m",
            "height_m",
            *_POSE,
            "num_interior_pts",
        )
        columns = {name: [box[name] for box in boxes] for name in names}
        put(root, f"{place}/annotations.feather", _feather(columns))


def _box(annotation: Annotation, shot: Capture, time: int) -> Row | None:
    """An annotation in the vehicle's frame; None for what is none of the data set's categories here."""
    category = next((v for k, v in _CATEGORIES.items() if annotation.actor.category.startswith(k)), None)
    if category is None:
        return None
    street = np.eye(4)
    c, s = np.cos(annotation.yaw), np.sin(annotation.yaw)
    street[:2, :2], street[:3, 3] = [[c, -s], [s, c]], annotation.center
    pose = _poses_table([np.linalg.inv(ego_matrix(shot.ego)) @ street])
    length, width, height = annotation.size
    return {
        "timestamp_ns": time,
        "track_uuid": f"{category}-{annotation.actor.instance}",
        "category": category,
        "length_m": length,
        "width_m": width,
        "height_m": height,
        **{name: value[0] for name, value in pose.items()},
        "num_interior_pts": annotation.point_count,
    }


def _poses_table(matrices: list[NDArray[np.float64]]) -> dict[str, list[float]]:
    from scipy.spatial.transform import Rotation

    quaternions = [np.roll(Rotation.from_matrix(m[:3, :3]).as_quat(), 1) for m in matrices]
    rows = [(*map(float, q), *map(float, m[:3, 3])) for q, m in zip(quaternions, matrices)]
    return {name: [row[k] for row in rows] for k, name in enumerate(_POSE)}


def _feather(columns: dict[str, Any]) -> bytes:
    try:
        import pyarrow
        from pyarrow import feather
    except ImportError as error:
        raise OlivineError(
            f"pyarrow is not usable ({error})", remedy="install it: pip install 'olivine[argoverse2]'"
        ) from error
    file = io.BytesIO()
    feather.write_feather(pyarrow.table(columns), file, compression="zstd")
    return file.getvalue()
