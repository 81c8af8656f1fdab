"""nuScenes through nuscenes-devkit: mini, trainval and test, with lidarseg labels where present."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, Whole, demand, read_json
from .benchmark import Benchmark, Submission
from .dataset import Dataset, truth_folder
from .frame import Box, Camera, Frame, check_frame

PROMPTS: dict[str, str | None] = {
    "barrier": "barrier",
    "bicycle": "bicycle",
    "bus": "bus",
    "car": "car",
    "construction_vehicle": "construction vehicle",
    "motorcycle": "motorcycle",
    "pedestrian": "pedestrian",
    "traffic_cone": "traffic cone",
    "trailer": "trailer",
    "truck": "truck",
    "driveable_surface": "road",
    "other_flat": "other flat",
    "sidewalk": "sidewalk",
    "terrain": "terrain",
    "manmade": "building",
    "vegetation": "vegetation",
}
"""The 16 classes of the lidarseg challenge, and the prompt that each is; three are none of the 13, but of ``lidarseg16``."""

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
TABLES = (
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
)
# What the devkit raises on tables with missing or wrong keys.
_BROKEN = (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError, RecursionError, OSError)
_LARGEST_TABLE = 8 << 30  # bytes; sample_data.json of trainval has 1.3 GB
_DOWNLOAD = "download the data set's metadata archive again and unpack it into this folder"


class NuScenesDataset(Dataset):
    """nuScenes in the devkit's layout.

    Args:
        root: the folder with ``samples/`` and ``v1.0-…/``.
        version: without it the present version with the most samples; ``note`` says which and why.
    """

    name = "nuscenes"
    prompts = PROMPTS
    packages: ClassVar = {"nuscenes-devkit": "nuscenes"}

    def __init__(self, root: Path, version: str | None = None) -> None:
        self.root = Path(root)
        self.version, self.note = _choose_version(self.root, version)
        self._devkit = _open_devkit(self.root, self.version)
        self._lidarseg = getattr(self._devkit, "lidarseg", [])
        self._lookup, self.point_classes = _point_classes(self._devkit) if self._lidarseg else (b"", ())
        self._truth = truth_folder(self.root)

    @classmethod
    def count(cls, root: Path) -> int:
        """The samples of the largest version; see :class:`Dataset`."""
        # Every sample of the table names its scene once.
        return max((p.read_bytes().count(b'"scene_token"') for p in root.glob("v1.0-*/sample.json")), default=0)

    @classmethod
    def state(cls, root: Path, version: str) -> Sequence[Path]:
        """The tables; see :class:`Dataset`."""
        return [*root.glob("v1.0-*/sample.json"), *(root / version).glob("*.json")]

    @classmethod
    def benchmark(cls, version: str) -> Benchmark:
        """SLidR's subsets and batch, nuscenes-devkit's mean IoU, the lidarseg challenge's files."""
        use = {"camera": "pre_trained", "lidar": True, "radar": False, "map": False, "external": "pre_trained"}
        return Benchmark(
            fraction_of="scenes",  # SLidR: 1 % of 700 scenes is 7
            batch=16,
            mean_over="present",
            ground=("driveable_surface", "other_flat", "sidewalk", "terrain"),
            submission=Submission(
                "lidarseg/{split}/{token}_lidarseg.bin",
                # The devkit has lists of its own for the small version.
                splits={"train": "mini_train", "val": "mini_val", "test": "mini_test"}
                if version == "v1.0-mini"
                else {},
                declaration="{split}/submission.json",
                declares={"meta": {f"use_{name}": value for name, value in use.items()}},
            ),
        )

    @classmethod
    def delays(cls, frame: Frame) -> dict[str, float]:
        """Seconds from the LiDAR's sample_data to each camera's, by their times; parses the tables."""
        devkit = _open_devkit(frame.root, frame.version)
        try:
            sample = devkit.get("sample", devkit.get("sample_data", frame.token)["sample_token"])
            times = {c.name: devkit.get("sample_data", sample["data"][c.name])["timestamp"] for c in frame.cameras}
            return {name: (time - frame.timestamp) / 1e6 for name, time in times.items()}
        except _BROKEN as error:
            raise _do_not_fit(error, frame.root / frame.version) from error

    @classmethod
    def boxes(cls, frame: Frame) -> list[Box]:
        """The annotated boxes of a keyframe in its LiDAR frame, in the tables' order; parses the tables."""
        devkit = _open_devkit(frame.root, frame.version)
        try:
            return _boxes_of(devkit, frame.token)
        except _BROKEN as error:
            raise _do_not_fit(error, frame.root / frame.version) from error

    def frames(self, split: str | None = None) -> list[Frame]:
        """The keyframes of ``train``, ``val`` or ``test`` (all without one), scene by scene in time order."""
        splits = _scene_splits(self.version)
        frames: list[Frame] = []
        try:
            for scene in self._devkit.scene:
                scene_split = splits.get(scene["name"])
                if scene_split is None:
                    raise OlivineError(
                        f"scene {scene['name']} belongs to no official split of {self.version}",
                        where=self.root / self.version / "scene.json",
                        remedy="use the official scene names, so that training and validation stay apart",
                    )
                if split is None or scene_split == split:
                    frames += [self._frame(s, scene["name"], scene_split) for s in self._samples(scene)]
        except _BROKEN as error:
            raise _do_not_fit(error, self.root / self.version) from error
        self._check_cameras(frames)
        return frames

    def _samples(self, scene: dict[str, Any]) -> list[dict[str, Any]]:
        """A scene's samples in time order: the chain of ``next``, as long as the scene says."""
        samples: list[dict[str, Any]] = []
        token, count = scene["first_sample_token"], scene["nbr_samples"]
        while token and len(samples) <= count:
            samples.append(self._devkit.get("sample", token))
            token = samples[-1]["next"]
        if len(samples) != count:
            found = f"over {count}" if token else len(samples)
            raise OlivineError(
                f"scene {scene['name']} has {count} samples, and the chain of its samples {found}",
                where=self.root / self.version / "sample.json",
                remedy=_DOWNLOAD,
            )
        return samples

    def _check_cameras(self, frames: list[Frame]) -> None:
        """Raise unless all frames have the same cameras; where all lack one, the note says so."""
        for frame in frames:
            if (here := [c.name for c in frame.cameras]) != (first := [c.name for c in frames[0].cameras]):
                raise OlivineError(
                    f"the sample of LiDAR sweep {frame.token} has the cameras {', '.join(here)}, the first sample has "
                    f"{', '.join(first)}",
                    where=self.root / self.version / "sample_data.json",
                    remedy=_DOWNLOAD,
                )
        absent = [name for name in CAMERAS if frames and name not in {c.name for c in frames[0].cameras}]
        lack = f"; no frame has {', '.join(absent)}" if absent else ""
        if not self.note.endswith(lack):
            self.note += lack

    def _frame(self, sample: dict[str, Any], scene: str, split: str) -> Frame:
        missing = [name for name in ("LIDAR_TOP", *CAMERAS) if name not in sample["data"]]
        if "LIDAR_TOP" in missing or len(missing) == 1 + len(CAMERAS):
            raise OlivineError(
                f"sample {sample['token']} has no {', '.join(missing)}",
                where=self.root / self.version / "sample_data.json",
                remedy=_DOWNLOAD,
            )
        lidar = self._devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
        lidar_to_world = self._sensor_to_world(lidar)
        cameras = []
        for name in CAMERAS:
            if name in missing:
                continue
            image = self._devkit.get("sample_data", sample["data"][name])
            calibration = self._devkit.get("calibrated_sensor", image["calibrated_sensor_token"])
            cameras.append(
                Camera(
                    name,
                    image["filename"],
                    image["width"],
                    image["height"],
                    np.array(calibration["camera_intrinsic"], np.float64),
                    np.linalg.inv(self._sensor_to_world(image)) @ lidar_to_world,
                )
            )
        label_file = None
        if self._lidarseg:
            try:
                label_file = self._devkit.get("lidarseg", lidar["token"])["filename"]
            except KeyError:
                raise OlivineError(
                    f"no entry for LiDAR sweep {lidar['token']}",
                    where=self.root / self.version / "lidarseg.json",
                    remedy="download the lidarseg archive of the same version",
                ) from None
        frame = self.make_frame(
            token=lidar["token"],
            scene=scene,
            split=split,
            timestamp=lidar["timestamp"],
            point_file=lidar["filename"],
            point_columns=5,
            pose=lidar_to_world,
            cameras=tuple(cameras),
            point_label_file=label_file,
            point_label_lookup=self._lookup if label_file else b"",
            truth_folder=self._truth,
        )
        check_frame(frame, self.root / self.version / "sample_data.json")
        return frame

    def _sensor_to_world(self, sample_data: dict[str, Any]) -> NDArray[np.float64]:
        calibration = self._devkit.get("calibrated_sensor", sample_data["calibrated_sensor_token"])
        ego = self._devkit.get("ego_pose", sample_data["ego_pose_token"])
        return _rigid(ego) @ _rigid(calibration)


def _rigid(record: dict[str, Any]) -> NDArray[np.float64]:
    from pyquaternion import Quaternion

    matrix = np.eye(4)
    matrix[:3, :3] = Quaternion(record["rotation"]).rotation_matrix
    matrix[:3, 3] = record["translation"]
    return matrix


def _choose_version(root: Path, version: str | None) -> tuple[str, str]:
    present = sorted(path.name for path in root.glob("v1.0-*") if (path / "sample.json").is_file())
    if version is not None:
        if version not in present:
            raise OlivineError(
                f"no tables of nuScenes {version} here",
                where=root / version,
                remedy=f"choose --version from: {', '.join(present)}" if present else _DOWNLOAD,
            )
        return version, f"{version}, as asked"
    if not present:
        raise OlivineError("no nuScenes tables here (no v1.0-…/sample.json)", where=root, remedy=_DOWNLOAD)
    largest = max(present, key=lambda name: (root / name / "sample.json").stat().st_size)
    why = "the only version present" if len(present) == 1 else f"the largest of {', '.join(present)}"
    return largest, f"{largest}, {why}"


def _open_devkit(root: Path, version: str) -> Any:
    """The devkit on the tables as they are now; kept while they stay so."""
    state = []
    for path in sorted((root.absolute() / version).glob("*.json")):
        there = path.stat()
        state.append((str(path), there.st_size, there.st_mtime_ns))
    return _devkit(root, version, tuple(state))


@lru_cache(maxsize=2)
def _devkit(root: Path, version: str, state: tuple[tuple[str, int, int], ...]) -> Any:
    try:
        from nuscenes import NuScenes
    except ImportError as error:
        raise OlivineError(
            f"nuscenes-devkit is not usable ({error})", remedy="install it: pip install 'olivine[nuscenes]'"
        ) from error
    for table in TABLES:
        path = root / version / f"{table}.json"
        if not path.is_file():
            raise OlivineError("a table of the data set is missing", where=path, remedy=_DOWNLOAD)
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except Exception as error:
        for table in (*TABLES, "lidarseg"):
            path = root / version / f"{table}.json"
            if path.is_file():
                demand(read_json(path, _DOWNLOAD, most=_LARGEST_TABLE), [{"token": str}], path, _DOWNLOAD)
        raise _do_not_fit(error, root / version) from error


def _do_not_fit(error: Exception, where: Path) -> OlivineError:
    what = f"the tables of the data set do not fit together ({type(error).__name__}: {error})"
    return OlivineError(what, where=where, remedy=_DOWNLOAD)


def _scene_splits(version: str) -> dict[str, str]:
    """The split of every official scene name; the mini version's scenes by its own lists."""
    from nuscenes.utils import splits

    lists = {"train": splits.train, "val": splits.val, "test": splits.test}
    if version == "v1.0-mini":
        lists = {"train": splits.mini_train, "val": splits.mini_val}
    return {scene: name for name, scenes in lists.items() for scene in scenes}


def _point_classes(devkit: Any) -> tuple[bytes, tuple[str, ...]]:
    """Raw lidarseg index to the challenge's 16 classes (0 = ignored), and their names from 1 on."""
    from nuscenes.eval.lidarseg.utils import LidarsegClassMapper

    for record in devkit.category:
        where = Path(devkit.dataroot) / devkit.version / "category.json"
        demand(record, {"name": str, "index": Whole(0, 255)}, where, _DOWNLOAD)
    try:
        mapper = LidarsegClassMapper(devkit)
    except _BROKEN as error:
        raise _do_not_fit(error, Path(devkit.dataroot) / devkit.version) from error
    fine = mapper.fine_idx_2_coarse_idx_mapping
    lookup = bytes(fine.get(i, 0) for i in range(max(fine) + 1))
    names = {index: name for name, index in mapper.coarse_name_2_coarse_idx_mapping.items()}
    return lookup, tuple(names[i] for i in range(1, len(names)))


def _boxes_of(devkit: Any, token: str) -> list[Box]:
    boxes = []
    for box in devkit.get_sample_data(token)[1]:
        width, length, height = (float(v) for v in box.wlh)
        x, y, z = (float(v) for v in box.center)
        w, i, j, k = (float(v) for v in box.orientation.elements)
        annotated = devkit.get("sample_annotation", box.token)
        count, track = int(annotated["num_lidar_pts"]), str(annotated["instance_token"])
        boxes.append(Box(box.name, (x, y, z), (length, width, height), (w, i, j, k), count, track))
    return boxes
