"""A scene in the nuScenes format: files of one frame, and the tables over all of them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common import write_json
from .capture import Annotation, Capture
from .encode import jpeg, png, put
from .kinds import LIDARSEG, LIDARSEG_OF_KIND, PROMPT_OF_KIND
from .lidar import LidarModel
from .rig import Rig, data_file
from .world import World

MODEL = LidarModel()
STEP_US = 500_000
"""Between annotated frames."""

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)
VISIBILITY = (("v0-40", "0 to 40 %"), ("v40-60", "40 to 60 %"), ("v60-80", "60 to 80 %"), ("v80-100", "80 to 100 %"))

Row = dict[str, Any]


def scene_names(scenes: int) -> tuple[str, list[tuple[str, str]]]:
    """The version of the tables, and (scene name, split) of each scene.

    About every fourth scene is for validation (at least one where there are two scenes or more, 150 at most). Up to
    ten scenes carry names of mini_train and mini_val in ``v1.0-mini``, more carry names of train and val in
    ``v1.0-trainval``.
    """
    validation = min(max(round(scenes / 4), 1), 150) if scenes > 1 else 0
    training = scenes - validation
    if training > 700:
        training, validation = 700, scenes - 700
    mini = training <= 8 and validation <= 2
    prefix = "mini_" if mini else ""
    splits = data_file("nuscenes_splits.json")

    def names(split: str, count: int) -> list[tuple[str, str]]:
        numbers = [n for low, high in splits[prefix + split] for n in range(low, high + 1)]
        return [(f"scene-{n:04d}", split) for n in numbers[:count]]

    return "v1.0-mini" if mini else "v1.0-trainval", names("train", training) + names("val", validation)


def token(*parts: object) -> str:
    """A token of 32 hexadecimal digits for what ``parts`` name."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def scene_time(scene: int) -> int:
    """Time of a scene's first frame, microseconds."""
    return 1_532_402_927_647_951 + scene * 600_000_000


@dataclass(frozen=True)
class SceneName:
    """What the names of a scene's files are made of."""

    seed: int
    number: int
    name: str
    version: str


def write_frame(root: Path, scene: SceneName, frame: int, world: World, rig: Rig, shot: Capture) -> Row:
    """Write the files of one frame; returns its rows of the tables (all but the links over time)."""
    moment = scene_time(scene.number) + frame * STEP_US
    sample = token(scene.seed, scene.name, "sample", frame)
    stem = f"synthetic-{scene.seed}-{scene.name}"
    calls: list[Row] = []
    poses: list[Row] = []

    def record(channel: str, when: int, ego: tuple[float, float, float], suffix: str, width: int, height: int) -> str:
        name = f"samples/{channel}/{stem}__{channel}__{when}{suffix}"
        key = token(scene.seed, scene.name, channel, frame)
        calls.append(
            {
                "token": key,
                "sample_token": sample,
                "ego_pose_token": key,
                "calibrated_sensor_token": token(scene.seed, scene.name, "calibration", channel),
                "timestamp": when,
                "fileformat": "pcd" if channel == rig.lidar.name else "jpg",
                "is_key_frame": True,
                "height": height,
                "width": width,
                "filename": name,
                "prev": "",
                "next": "",
            }
        )
        x, y, yaw = in_map(world.origin, *ego)
        poses.append({"token": key, "timestamp": when, "translation": [x, y, 0.0], "rotation": yaw_quaternion(yaw)})
        return name

    name = record(rig.lidar.name, moment, shot.ego, ".pcd.bin", 0, 0)
    put(root, name, np.column_stack([shot.points, shot.beam]).astype(np.float32).tobytes())
    key = calls[0]["token"]
    label_file = f"lidarseg/{scene.version}/{key}_lidarseg.bin"
    put(root, label_file, LIDARSEG_OF_KIND[shot.sweep.kind].tobytes())
    prompt = PROMPT_OF_KIND[shot.sweep.kind]
    put(root, f"truth/point/{Path(name).name.removesuffix('.pcd.bin')}.bin", prompt.tobytes())
    for view in shot.shots:
        when = moment + view.mount.delay_us
        name = record(view.mount.name, when, view.ego, ".jpg", view.width, view.height)
        put(root, name, jpeg(view.picture.image))
        mask = f"{view.mount.name}/{Path(name).stem}.png"
        put(root, f"truth/class/{mask}", png(view.picture.prompt))
        put(root, f"truth/instance/{mask}", png(view.picture.instance))
    return {
        "sample": {"token": sample, "timestamp": moment, "scene_token": token(scene.seed, scene.name)},
        "sample_data": calls,
        "ego_pose": poses,
        "lidarseg": {"token": key, "sample_data_token": key, "filename": label_file},
        "sample_annotation": [_annotation(scene, sample, frame, world, a) for a in shot.annotations],
        "prompt_count": np.bincount(prompt, minlength=14).tolist(),
        "kind_count": np.bincount(shot.sweep.kind, minlength=32).tolist(),
    }


def _annotation(scene: SceneName, sample: str, frame: int, world: World, a: Annotation) -> Row:
    x, y, yaw = in_map(world.origin, a.center[0], a.center[1], a.yaw)
    attribute = a.actor.attribute
    if a.actor.moving and a.standing:
        attribute = {"vehicle.moving": "vehicle.stopped", "pedestrian.moving": "pedestrian.standing"}.get(
            attribute, attribute
        )
    return {
        "token": token(scene.seed, scene.name, "box", frame, a.actor.instance),
        "sample_token": sample,
        "instance_token": token(scene.seed, scene.name, "instance", a.actor.instance),
        "visibility_token": str(a.visibility),
        "attribute_tokens": [token("attribute", attribute)] if attribute else [],
        "translation": [x, y, a.center[2]],
        "size": [a.size[1], a.size[0], a.size[2]],
        "rotation": yaw_quaternion(yaw),
        "prev": "",
        "next": "",
        "num_lidar_pts": a.point_count,
        "num_radar_pts": 0,
        "category": a.actor.category,
    }


def in_map(origin: tuple[float, float, float], x: float, y: float, yaw: float) -> tuple[float, float, float]:
    """(x, y, yaw) of the street frame in the map, where the scene lies at ``origin`` (x, y, yaw)."""
    c, s = np.cos(origin[2]), np.sin(origin[2])
    return float(origin[0] + c * x - s * y), float(origin[1] + s * x + c * y), float(origin[2] + yaw)


def yaw_quaternion(yaw: float) -> list[float]:
    """(w, x, y, z) of a turn about the vertical."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def _chain(rows: Sequence[Row]) -> None:
    for before, after in itertools.pairwise(rows):
        before["next"], after["prev"] = after["token"], before["token"]


def write_tables(
    root: Path, version: str, rig: Rig, scale: float, scenes: Iterable[tuple[SceneName, list[Row]]]
) -> None:
    """Write the tables over the frames' rows, scene by scene in time order."""
    tables: dict[str, list[Row]] = {
        name: []
        for name in (
            [
                "sample",
                "sample_data",
                "ego_pose",
                "sample_annotation",
                "instance",
                "calibrated_sensor",
                "scene",
                "log",
                "lidarseg",
            ]
        )
    }
    for scene, frames in scenes:
        _scene_tables(tables, scene, rig, scale, frames)
    sensors = [(rig.lidar.name, "lidar")] + [(c.name, "camera") for c in rig.cameras]
    tables["sensor"] = [{"token": token("sensor", n), "channel": n, "modality": m} for n, m in sensors]
    tables["category"] = [
        {"token": token("category", n), "name": n, "description": n, "index": i} for i, n in enumerate(LIDARSEG)
    ]
    tables["attribute"] = [{"token": token("attribute", n), "name": n, "description": n} for n in ATTRIBUTES]
    tables["visibility"] = [
        {"token": str(i), "level": level, "description": text} for i, (level, text) in enumerate(VISIBILITY, 1)
    ]
    mask = f"maps/{token('map')}.png"
    put(root, mask, png(np.zeros((16, 16), np.uint8)))
    tables["map"] = [
        {
            "token": token("map"),
            "log_tokens": [row["token"] for row in tables["log"]],
            "category": "semantic_prior",
            "filename": mask,
        }
    ]
    for name, rows in tables.items():
        write_json(root / version / f"{name}.json", rows)


def _scene_tables(tables: dict[str, list[Row]], scene: SceneName, rig: Rig, scale: float, frames: list[Row]) -> None:
    key = token(scene.seed, scene.name)
    log = token(scene.seed, scene.name, "log")
    samples = [{"prev": "", "next": "", **f["sample"]} for f in frames]
    _chain(samples)
    tables["sample"] += samples
    for channel in range(len(frames[0]["sample_data"])):
        _chain([f["sample_data"][channel] for f in frames])
    boxes: dict[str, list[Row]] = {}
    for f in frames:
        tables["sample_data"] += f["sample_data"]
        tables["ego_pose"] += f["ego_pose"]
        tables["lidarseg"].append(f["lidarseg"])
        for row in f["sample_annotation"]:
            boxes.setdefault(row["instance_token"], []).append(row)
    for instance, rows in boxes.items():
        _chain(rows)
        category = rows[0]["category"]
        for row in rows:
            del row["category"]  # the table has it with the instance
        tables["sample_annotation"] += rows
        tables["instance"].append(
            {
                "token": instance,
                "category_token": token("category", category),
                "nbr_annotations": len(rows),
                "first_annotation_token": rows[0]["token"],
                "last_annotation_token": rows[-1]["token"],
            }
        )
    mounts: list[tuple[str, Any, Any, list[list[float]]]] = [(rig.lidar.name, rig.lidar.to_ego, rig.lidar.rotation, [])]
    mounts += [(c.name, c.to_ego, c.rotation, c.scaled(scale)[2].tolist()) for c in rig.cameras]
    for name, to_ego, rotation, intrinsic in mounts:
        tables["calibrated_sensor"].append(
            {
                "token": token(scene.seed, scene.name, "calibration", name),
                "sensor_token": token("sensor", name),
                "translation": to_ego[:3, 3].tolist(),
                "rotation": list(rotation),
                "camera_intrinsic": intrinsic,
            }
        )
    tables["log"].append(
        {
            "token": log,
            "logfile": f"synthetic-{scene.seed}-{scene.name}",
            "vehicle": "synthetic",
            "date_captured": "2018-07-24",
            "location": "singapore-onenorth",
        }
    )
    tables["scene"].append(
        {
            "token": key,
            "log_token": log,
            "nbr_samples": len(frames),
            "first_sample_token": samples[0]["token"],
            "last_sample_token": samples[-1]["token"],
            "name": scene.name,
            "description": "A synthetic street.",
        }
    )
