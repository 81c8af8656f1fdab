"""Argoverse 2 Sensor through pyarrow: the seven ring cameras, both LiDARs' points as one cloud, boxes; the official splits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from ..common.images import image_size
from .dataset import Dataset, truth_folder
from .frame import Box, Camera, Frame, rotation_of
from .recording_files import nearest

SPLITS = ("train", "val", "test")
Matrix = NDArray[np.float64]
_AGAIN = "download this log of the Sensor data set again"
_LIMIT_NS = 50_000_000  # the cameras take 20 images a second
_POSE = ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")
_LIDAR = "up_lidar"
_STATE = ("sensors/lidar", "sensors/cameras/*", "*.feather", "calibration/*.feather")


class Argoverse2Dataset(Dataset):
    """The Sensor data set in its own layout (``train/<log>/{sensors,calibration,city_SE3_egovehicle.feather,…}``).

    Its files have both LiDARs' points in the vehicle's frame, whose origin is on the road; here they are in the upper LiDAR's
    frame, so that distances are from a sensor. Images are undistorted already, as the data set's own package takes them. The two
    stereo cameras look where a ring camera looks, and are left out.

    Args:
        root: the folder with ``train/``, ``val/`` or ``test/``.
    """

    name = "argoverse2"
    version = "sensor"
    packages: ClassVar = {"pyarrow": "pyarrow"}

    def __init__(self, root: Path, version: str | None = None) -> None:
        self.root = Path(root)
        self._truth = truth_folder(self.root)
        self._logs = {split: _logs(self.root, split) for split in SPLITS}
        if not any(self._logs.values()):
            raise OlivineError(
                "no Argoverse 2 Sensor logs here (no train/<log>/sensors/lidar)",
                where=self.root,
                remedy="unpack the Sensor data set's archives into this folder",
            )
        self.note = ", ".join(f"{len(logs)} {split} logs" for split, logs in self._logs.items() if logs)

    @classmethod
    def count(cls, root: Path) -> int:
        """The sweeps of all logs; see :class:`Dataset`."""
        return sum(1 for split in SPLITS for _ in root.glob(f"{split}/*/sensors/lidar/*.feather"))

    @classmethod
    def state(cls, root: Path, version: str) -> Sequence[Path]:
        """The folders of the sweeps and images, and the tables; see :class:`Dataset`."""
        logs = [log for split in SPLITS for log in _logs(root, split)]
        return [path for log in logs for place in _STATE for path in log.glob(place)]

    def frames(self, split: str | None = None) -> list[Frame]:
        """The sweeps of ``train``, ``val`` or ``test`` (all without one), log by log in time order.

        Raises:
            OlivineError: a table or an image is missing or damaged.
        """
        if split is not None and split not in SPLITS:
            raise OlivineError(f"unknown split {split!r}", remedy=f"choose one of {', '.join(SPLITS)}")
        chosen = SPLITS if split is None else (split,)
        return [frame for name in chosen for log in self._logs[name] for frame in self._log_frames(log, name)]

    def _log_frames(self, log: Path, split: str) -> list[Frame]:
        mounted = _mounts(log)
        intrinsic = _intrinsics(log)
        poses = _poses(log)
        images = {
            camera: _stamps(log / "sensors" / "cameras" / camera, ".jpg") for camera in mounted if camera in intrinsic
        }
        cameras = [name for name in images if name.startswith("ring_") and len(images[name])]
        if not cameras:
            raise OlivineError("no images of a ring camera", where=log / "sensors" / "cameras", remedy=_AGAIN)
        sizes = {
            name: image_size(log / "sensors" / "cameras" / name / f"{images[name][0]}.jpg", _AGAIN) for name in cameras
        }
        place = f"{split}/{log.name}/sensors"
        found, without = [], 0
        for sweep in _stamps(log / "sensors" / "lidar", ".feather"):
            world = _pose(poses, int(sweep), log) @ mounted[_LIDAR]
            taken = {name: int(images[name][nearest(images[name], int(sweep))]) for name in cameras}
            if max(abs(time - int(sweep)) for time in taken.values()) > _LIMIT_NS:
                without += 1
                continue
            views = []
            for name, time in taken.items():
                lidar_to_camera = np.linalg.inv(_pose(poses, time, log) @ mounted[name]) @ world
                image = f"{place}/cameras/{name}/{time}.jpg"
                views.append(Camera(name, image, *sizes[name], intrinsic[name], lidar_to_camera))
            found.append(
                self.make_frame(
                    token=f"{log.name}/{sweep}",
                    scene=log.name,
                    split=split,
                    timestamp=int(sweep) // 1000,
                    point_file=f"{place}/lidar/{sweep}.feather",
                    point_columns=4,
                    pose=world,
                    cameras=tuple(views),
                    truth_folder=self._truth,
                )
            )
        line = f"; {without} sweeps of {log.name} have no image of every camera within 50 ms and are left out"
        if without and line not in self.note:
            self.note += line
        return found

    @classmethod
    def cloud(cls, frame: Frame) -> NDArray[np.float32]:
        """Both LiDARs' points in the upper one's frame, with the raw intensity from 0 to 255; see :class:`Dataset`."""
        table = _table(frame.root / frame.point_file, ("x", "y", "z", "intensity"))
        xyz = np.column_stack([table[name].astype(np.float64) for name in "xyz"])
        matrix = _to_lidar(frame)
        moved = xyz @ matrix[:3, :3].T + matrix[:3, 3]
        return np.column_stack([moved, table["intensity"]]).astype(np.float32)

    @classmethod
    def boxes(cls, frame: Frame) -> list[Box] | None:
        """The boxes annotated at a sweep, in the LiDAR's frame; None on logs without annotations."""
        from scipy.spatial.transform import Rotation

        log, _, sweep = frame.token.rpartition("/")
        path = frame.root / frame.split / log / "annotations.feather"
        if not path.is_file():
            return None
        sizes = ("length_m", "width_m", "height_m")
        table = _table(path, ("timestamp_ns", "track_uuid", "category", *sizes, *_POSE, "num_interior_pts"))
        matrix = _to_lidar(frame)
        found = []
        for row in np.flatnonzero(table["timestamp_ns"] == int(sweep)):
            box = matrix @ _rigid(table, int(row))
            i, j, k, w = (float(v) for v in Rotation.from_matrix(box[:3, :3]).as_quat())
            x, y, z = (float(v) for v in box[:3, 3])
            length, width, height = (float(table[name][row]) for name in sizes)
            count, track = int(table["num_interior_pts"][row]), str(table["track_uuid"][row])
            found.append(
                Box(str(table["category"][row]), (x, y, z), (length, width, height), (w, i, j, k), count, track)
            )
        return found

    @classmethod
    def delays(cls, frame: Frame) -> dict[str, float]:
        """By the names of the files; see :class:`Dataset`."""
        sweep = int(Path(frame.point_file).stem)
        return {camera.name: (int(Path(camera.image).stem) - sweep) / 1e9 for camera in frame.cameras}


def _logs(root: Path, split: str) -> list[Path]:
    return sorted(path for path in (root / split).glob("*") if (path / "sensors" / "lidar").is_dir())


def _to_lidar(frame: Frame) -> Matrix:
    """The vehicle's frame to the upper LiDAR's, [4, 4]; from the log's tables, for a frame has no room for it."""
    log = frame.root / frame.split / frame.scene
    path = log / "calibration" / "egovehicle_SE3_sensor.feather"
    mounted = _mounts_of(log, path.stat().st_mtime_ns if path.is_file() else 0)[_LIDAR]
    return np.linalg.inv(mounted)


@lru_cache(maxsize=16)
def _mounts_of(log: Path, changed: int) -> dict[str, Matrix]:
    return _mounts(log)


def _stamps(folder: Path, suffix: str) -> NDArray[np.int64]:
    """The times in the names of a folder's files, ascending, int64 nanoseconds."""
    names = [path.stem for path in folder.glob(f"*{suffix}")]
    if wrong := [name for name in names if not name.isdecimal()]:
        raise OlivineError("is not named by its time", where=folder / f"{wrong[0]}{suffix}", remedy="move it away")
    return np.array(sorted(map(int, names)), np.int64)


def _table(path: Path, columns: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Columns of a feather file.

    Raises:
        OlivineError: pyarrow is not installed; the file is missing or damaged, or lacks a column.
    """
    try:
        from pyarrow import ArrowException, feather
    except ImportError as error:
        raise OlivineError(
            f"pyarrow is not usable ({error})", remedy="install it: pip install 'olivine[argoverse2]'"
        ) from error
    try:
        table = feather.read_table(path, memory_map=False)
        absent = [name for name in columns if name not in table.column_names]
        found = {} if absent else {name: table.column(name).to_numpy() for name in columns}
    except (ArrowException, OSError, ValueError) as error:
        raise OlivineError(f"cannot be read ({str(error).splitlines()[0]})", where=path, remedy=_AGAIN) from None
    if absent:
        raise OlivineError(
            f"has no column {absent[0]}; it has {', '.join(table.column_names)}", where=path, remedy=_AGAIN
        )
    return found


def _rigid(table: dict[str, NDArray[Any]], row: int) -> Matrix:
    values = [float(table[name][row]) for name in _POSE]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation_of(np.array(values[:4])), values[4:]
    return matrix


def _mounts(log: Path) -> dict[str, Matrix]:
    """Each sensor's frame to the vehicle's."""
    path = log / "calibration" / "egovehicle_SE3_sensor.feather"
    table = _table(path, ("sensor_name", *_POSE))
    found = {str(name): _rigid(table, row) for row, name in enumerate(table["sensor_name"])}
    if _LIDAR not in found:
        raise OlivineError(f"has no {_LIDAR}; it has {', '.join(found)}", where=path, remedy=_AGAIN)
    return found


def _intrinsics(log: Path) -> dict[str, Matrix]:
    names = ("fx_px", "fy_px", "cx_px", "cy_px")
    table = _table(log / "calibration" / "intrinsics.feather", ("sensor_name", *names))
    found = {}
    for row, name in enumerate(table["sensor_name"]):
        fx, fy, cx, cy = (float(table[column][row]) for column in names)
        found[str(name)] = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)
    return found


@lru_cache(maxsize=2)
def _poses_of(path: Path, changed: int) -> dict[int, Matrix]:
    table = _table(path, ("timestamp_ns", *_POSE))
    return {int(time): _rigid(table, row) for row, time in enumerate(table["timestamp_ns"])}


def _poses(log: Path) -> dict[int, Matrix]:
    """The vehicle's poses in the city, by nanoseconds: one for each sweep and each image."""
    path = log / "city_SE3_egovehicle.feather"
    return _poses_of(path, path.stat().st_mtime_ns if path.is_file() else 0)


def _pose(poses: dict[int, Matrix], time: int, log: Path) -> Matrix:
    if time not in poses:
        raise OlivineError(f"has no pose at {time}", where=log / "city_SE3_egovehicle.feather", remedy=_AGAIN)
    return poses[time]
