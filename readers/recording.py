"""``rig.yaml``: which files of a folder are whose, how the sensors stand to each other, and when each file was taken."""

from __future__ import annotations

import difflib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, inside
from ..common.settings import read_yaml_file
from .clouds import CloudLayout
from .frame import check_lens, rotation_of
from .recording_upright import suspicion

FILE = "rig.yaml"
UNITS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
SPLITS = ("train", "val", "test")
FILL_IN = "FILL IN"
"""What ``olivine init-rig`` writes where only the user knows the value."""
_IMAGES = (".jpg", ".jpeg", ".png")
Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Clock:
    """How the times of a sensor's files are found.

    Attributes:
        times: ``name`` (the file's name is its time), ``number`` (the name counts), or a table's path.
        unit: of the times in names or tables: ``s``, ``ms``, ``us`` or ``ns``.
        rate: files in a second, where names count.
        offset: seconds, added to every time.
    """

    times: str = "name"
    unit: str = "s"
    rate: float = 10.0
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class Sensor:
    """A LiDAR or a camera.

    Attributes:
        name: as in the YAML.
        files: pattern of its files, relative to a scene's folder.
        clock: of its files.
        to_vehicle: float64 [4, 4], sensor frame to vehicle frame.
        layout: of a LiDAR's point files.
        intrinsic, model, distortion: of a camera.
    """

    name: str
    files: str
    clock: Clock
    to_vehicle: Matrix
    layout: CloudLayout = field(default_factory=CloudLayout)
    intrinsic: Matrix = field(default_factory=lambda: np.eye(3))
    model: str = "pinhole"
    distortion: tuple[float, ...] = ()


@dataclass(frozen=True)
class PoseTable:
    """Where the vehicle was: a file in each scene's folder.

    Attributes:
        file: relative to a scene's folder.
        format: ``tum`` (time, translation, quaternion x y z w) or ``kitti`` (12 numbers for each file of the first LiDAR).
        of: ``vehicle``, or the sensor whose poses they are.
        unit: of the times.
        max_gap: seconds; between poses further apart nothing is interpolated.
    """

    file: str
    format: str = "tum"
    of: str = "vehicle"
    unit: str = "s"
    max_gap: float = 0.5


@dataclass(frozen=True, eq=False)
class RigDescription:
    """A checked ``rig.yaml``.

    Attributes:
        scenes: folder and split of each.
        lidars: the first is the frame of reference, and its files are the frames.
        cameras: in the YAML's order.
        limit: seconds between a cloud and an image that belong together, at most.
        every: take every so many-th cloud.
        poses: None where there are none: the vehicle is taken to stand still between a cloud and its images.
        min_range: metres; points nearer to their LiDAR are left out.
        intensity_offset: see :class:`~olivine.readers.dataset.Dataset`.
        remarks: what is probably wrong, for the user: a key, a colon and the reason.
    """

    path: Path
    scenes: dict[str, str]
    lidars: tuple[Sensor, ...]
    cameras: tuple[Sensor, ...]
    limit: float
    every: int
    poses: PoseTable | None
    min_range: float
    intensity_offset: float
    remarks: tuple[str, ...] = ()


# -- the YAML -----------------------------------------------------------------------------------------------------------

_TOP = ("scenes", "lidars", "cameras", "matching", "poses", "min_range", "intensity_offset")
_CLOCK = ("times", "unit", "rate", "clock_offset")
_LIDAR = ("files", *_CLOCK, "columns", "dtype", "xyz", "intensity", "lidar_to_vehicle")
_CAMERA = (
    *("files", *_CLOCK, "model", "intrinsic", "distortion"),
    *("camera_to_vehicle", "camera_to_lidar", "lidar_to_camera"),
)


def read_description(root: Path) -> RigDescription:
    """The description of a folder.

    Raises:
        OlivineError: there is no ``rig.yaml``, or something in it is missing or cannot be; names the key.
    """
    path = root / FILE
    if not path.is_file():
        raise OlivineError(f"no {FILE} here", where=root, remedy=f"write one with: olivine init-rig {root}")
    plain = read_yaml_file(path)
    keys = _Keys(path, "", plain)
    keys.only(_TOP)
    lidars, cameras, remarks = sensors_of(path, plain)
    matching, poses = keys.section("matching", optional=True), None
    matching.only(("limit", "every"))
    if keys.plain.get("poses") is not None:
        poses = _poses(keys.section("poses"), [s.name for s in (*lidars, *cameras)])
    return RigDescription(
        path=path,
        scenes=_scenes(keys),
        lidars=lidars,
        cameras=cameras,
        limit=matching.number("limit", 0.05, 0.0),
        every=int(matching.number("every", 1, 1)),
        poses=poses,
        min_range=keys.number("min_range", 0.0, 0.0),
        intensity_offset=keys.number("intensity_offset", 0.0),
        remarks=remarks,
    )


def sensors_of(path: Path, plain: Any) -> tuple[tuple[Sensor, ...], tuple[Sensor, ...], tuple[str, ...]]:
    """The LiDARs and cameras of a ``rig.yaml``, and what is unusual about them.

    Args:
        plain: what the file ``path`` holds.

    Raises:
        OlivineError: as :func:`read_description`.
    """
    keys = _Keys(path, "", plain)
    lidar_keys, camera_keys = keys.section("lidars"), keys.section("cameras")
    if not lidar_keys.names() or not camera_keys.names():
        missing = "lidars" if not lidar_keys.names() else "cameras"
        raise keys.wrong(f"{missing} names none", f"describe each of the {missing} there; olivine init-rig shows how")
    lidars = tuple(_lidar(lidar_keys.section(name)) for name in lidar_keys.names())
    cameras: list[Sensor] = []
    remarks: list[str] = []
    for name in camera_keys.names():
        camera, remark = _camera(camera_keys.section(name), lidars[0])
        cameras.append(camera)
        remarks += remark
    if both := {s.name for s in lidars} & {c.name for c in cameras}:
        raise keys.wrong(f"{both.pop()} is a LiDAR and a camera", "give each sensor a name of its own")
    return lidars, tuple(cameras), tuple(remarks)


def splits_of(path: Path, plain: Any) -> dict[str, str]:
    """The folders that the scenes of a ``rig.yaml`` name, whether they are there or not, and the split of each.

    Args:
        plain: what the file ``path`` holds.

    Raises:
        OlivineError: a name is no text, or a split is none.
    """
    keys = _Keys(path, "", plain)
    scenes = keys.section("scenes").plain if "scenes" in keys.plain else {".": "train"}
    for folder, split in scenes.items():
        if split not in SPLITS:
            raise keys.wrong(f"scenes.{folder} is {split!r}", f"use {', '.join(SPLITS)}")
    return dict(scenes)


class _Keys:
    """A mapping of the YAML, and where it stands."""

    def __init__(self, path: Path, at: str, plain: Any) -> None:
        self.path, self.at = path, at
        if isinstance(plain, dict):
            for name in plain:
                if not isinstance(name, str):
                    raise OlivineError(
                        f"{at.rstrip('.') or 'the file'} has the name {name}, which YAML does not read as text",
                        where=path,
                        remedy='write such a name in quotes, as "00" or "on"',
                    )
        else:
            raise OlivineError(
                f"{at.rstrip('.') or 'the file'} is {str(plain)[:30]!r}, expected names with values",
                where=path,
                remedy="see docs/own-data.md, or start with olivine init-rig",
            )
        self.plain: dict[str, Any] = plain

    def wrong(self, what: str, remedy: str) -> OlivineError:
        """An error about a key."""
        return OlivineError(what, where=self.path, remedy=remedy)

    def names(self) -> list[str]:
        """The keys."""
        return list(self.plain)

    def only(self, known: Sequence[str]) -> None:
        """Raise for a key that means nothing."""
        for name in self.plain:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1, 0.0)[0]
                raise self.wrong(f"no key {self.at}{name} is known", f"did you mean {near!r}?")

    def section(self, name: str, optional: bool = False) -> _Keys:
        """A mapping inside."""
        if name not in self.plain and not optional:
            raise self.wrong(f"{self.at}{name} is missing", "add it; olivine init-rig shows how")
        return _Keys(self.path, f"{self.at}{name}.", self.plain.get(name) or {})

    def text(self, name: str, default: str | None = None, among: Sequence[str] = ()) -> str:
        """A text, one of ``among``."""
        value = self.plain.get(name, default)
        if value is None:
            raise self.wrong(f"{self.at}{name} is missing", "add it; olivine init-rig shows how")
        if not isinstance(value, str) or (among and value not in among):
            wanted = " or ".join(among) if among else "text"
            raise self.wrong(f"{self.at}{name} is {value!r}", f"use {wanted}")
        return value

    def number(self, name: str, default: float, low: float = -np.inf) -> float:
        """A number from ``low`` on."""
        value = self.plain.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < low:
            least = "" if low == -np.inf else f" of at least {low:g}"
            raise self.wrong(f"{self.at}{name} is {value!r}", f"use a number{least}")
        return value

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A list of numbers, or of lists of as many numbers."""
        value = self.plain.get(name)
        if value == FILL_IN:
            raise self.wrong(f"{self.at}{name} is not filled in", "put the sensor's calibration there")
        try:
            if isinstance(value, (str, bool, type(None))):
                raise ValueError
            return np.array(value, np.float64)
        except (ValueError, TypeError):
            raise self.wrong(f"{self.at}{name} is {str(value)[:40]!r}", "give it as a list of numbers") from None


def _scenes(keys: _Keys) -> dict[str, str]:
    scenes = splits_of(keys.path, keys.plain)
    for folder in scenes:
        if folder != ".":
            inside(keys.path.parent, folder, keys.path)
        if not (keys.path.parent / folder).is_dir():
            raise keys.wrong(f"scenes names the folder {folder}, which is not there", "correct its name")
    if len({scene_name(folder) for folder in scenes}) < len(scenes):
        raise keys.wrong("two scenes have the same name", "rename one of the folders")
    return scenes


def quoted(text: str) -> str:
    """A name or a path as it stands in ``rig.yaml``: in quotes where YAML would not read it as this text, as 00 or on."""
    import yaml

    try:
        same = yaml.safe_load(text) == text
    except (yaml.YAMLError, ValueError):  # ValueError: what looks like a date and is none
        same = False
    return text if same and text != "." and re.fullmatch(r"[\w./-]+", text) else json.dumps(text, ensure_ascii=False)


def scene_name(folder: str) -> str:
    """The name of the scene in a folder."""
    return "recording" if folder == "." else folder.strip("/").replace("/", "-")


def _clock(keys: _Keys) -> Clock:
    clock = Clock(
        keys.text("times", "name"),
        keys.text("unit", "s", tuple(UNITS)),
        keys.number("rate", 10.0, 1e-6),
        keys.number("clock_offset", 0.0),
    )
    if clock.times not in ("name", "number"):
        inside(keys.path.parent, clock.times, keys.path)
    return clock


def _files(keys: _Keys) -> str:
    pattern = keys.text("files")
    inside(keys.path.parent, pattern, keys.path)
    return pattern


def _lidar(keys: _Keys) -> Sensor:
    keys.only(_LIDAR)

    def names(key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        value = keys.plain.get(key, list(default))
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise keys.wrong(f"{keys.at}{key} is {value!r}", "give a list of names, for example [x, y, z, intensity]")
        if len(set(value)) < len(value):
            raise keys.wrong(f"{keys.at}{key} names a column twice", "give each column a name of its own")
        return tuple(value)

    xyz = names("xyz", ("x", "y", "z"))
    if len(xyz) != 3:
        raise keys.wrong(f"{keys.at}xyz names {len(xyz)} columns", "name the three of x, y and z")
    intensity = keys.text("intensity", "intensity")
    layout = CloudLayout(
        columns=names("columns", ("x", "y", "z", "intensity")),
        dtype=keys.text("dtype", "float32", ("float32", "float64")),
        xyz=(xyz[0], xyz[1], xyz[2]),
        intensity="" if intensity == "none" else intensity,
    )
    to_vehicle = _extrinsic(keys, "lidar_to_vehicle") if "lidar_to_vehicle" in keys.plain else np.eye(4)
    return Sensor(_sensor_name(keys), _files(keys), _clock(keys), to_vehicle, layout)


def _sensor_name(keys: _Keys) -> str:
    name = keys.at.rstrip(".").rpartition(".")[2]
    if not re.fullmatch(r"[\w-]+", name):
        raise keys.wrong(f"{keys.at.rstrip('.')}: a sensor's name is of letters, digits, - and _", "rename it")
    return name


def _camera(keys: _Keys, lidar: Sensor) -> tuple[Sensor, list[str]]:
    keys.only(_CAMERA)
    model = keys.text("model", "pinhole")
    distortion: tuple[float, ...] = ()
    if "distortion" in keys.plain and keys.plain["distortion"] != []:
        values = keys.numbers("distortion")
        distortion = tuple(values.ravel().tolist()) if values.ndim == 1 else ()
    check_lens(model, distortion, f"{keys.path}: {keys.at.rstrip('.')}")
    intrinsic = _intrinsic(keys, model)
    given = [name for name in ("camera_to_vehicle", "camera_to_lidar", "lidar_to_camera") if name in keys.plain]
    if len(given) != 1:
        what = f"has {' and '.join(given)}" if given else "does not say where it is"
        raise keys.wrong(
            f"{keys.at.rstrip('.')} {what}", "give one of camera_to_vehicle, camera_to_lidar and lidar_to_camera"
        )

    def on_vehicle(matrix: Matrix) -> Matrix:
        matrix = np.linalg.inv(matrix) if given[0] == "lidar_to_camera" else matrix
        return matrix if given[0] == "camera_to_vehicle" else lidar.to_vehicle @ matrix

    to_vehicle, misread = on_vehicle(_extrinsic(keys, given[0])), _other_order(keys, given[0])
    name = _sensor_name(keys)
    pattern = _files(keys)
    if Path(pattern).suffix.lower() not in _IMAGES:
        raise keys.wrong(f"{keys.at}files is {pattern!r}", f"name images: a pattern that ends in {', '.join(_IMAGES)}")
    sensor = Sensor(name, pattern, _clock(keys), to_vehicle, intrinsic=intrinsic, model=model, distortion=distortion)
    doubts = {}
    if misread is not None:
        order = "w, x, y, z" if "quaternion_xyzw" in keys.plain[given[0]] else "x, y, z, w"
        doubts[f"its quaternion is {order}"] = on_vehicle(misread)
    return sensor, suspicion(f"{keys.at}{given[0]}", given[0], to_vehicle, doubts)


def _intrinsic(keys: _Keys, model: str) -> Matrix:
    values = keys.numbers("intrinsic")
    if values.shape == (4,):
        fx, fy, cx, cy = values
        values = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    if values.shape != (3, 3):
        raise keys.wrong(
            f"{keys.at}intrinsic is of shape {list(values.shape)}", "give [fx, fy, cx, cy] or a matrix of 3 by 3"
        )
    upright = values[0, 0] > 0 and values[1, 1] > 0 and np.array_equal(values[2], (0, 0, 1)) and values[1, 0] == 0
    if not (np.isfinite(values).all() and upright):
        raise keys.wrong(
            f"{keys.at}intrinsic is no camera matrix {np.round(values, 3).tolist()}",
            "give [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with fx and fy over 0",
        )
    if model != "pinhole" and values[0, 1]:
        raise keys.wrong(f"{keys.at}intrinsic has a skew, {model} has none", "leave the skew 0")
    return values


def _extrinsic(keys: _Keys, name: str) -> Matrix:
    """A rigid transform: a matrix (4 by 4, 3 by 4, or its 12 or 16 numbers), or translation and quaternion."""
    at = f"{keys.at}{name}"
    if isinstance(keys.plain[name], dict):
        inner = keys.section(name)
        inner.only(("translation", "quaternion_wxyz", "quaternion_xyzw"))
        translation = inner.numbers("translation")
        order = "quaternion_xyzw" if "quaternion_xyzw" in inner.plain else "quaternion_wxyz"
        quaternion = inner.numbers(order)
        if translation.shape != (3,) or quaternion.shape != (4,):
            raise keys.wrong(f"{at} is not 3 and 4 numbers", "give translation: [x, y, z] and quaternion_wxyz")
        quaternion = np.roll(quaternion, 1) if order == "quaternion_xyzw" else quaternion
        if not abs(np.linalg.norm(quaternion) - 1) < 1e-2:
            raise keys.wrong(
                f"{at}.{order} has the length {np.linalg.norm(quaternion):.3g}, a rotation has 1", "check its numbers"
            )
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = rotation_of(quaternion), translation
        return matrix
    values = keys.numbers(name)
    if values.size not in (12, 16) or values.shape not in ((12,), (16,), (3, 4), (4, 4)):
        raise keys.wrong(
            f"{at} is of shape {list(values.shape)}", "give 4 rows of 4 numbers, or translation and quaternion"
        )
    matrix = np.eye(4)
    matrix[: values.size // 4] = values.reshape(-1, 4)
    if not np.isfinite(matrix).all() or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise keys.wrong(f"{at} has the last row {matrix[3].tolist()}", "its last row is 0, 0, 0, 1; is it transposed?")
    _check_rotation(keys, at, matrix[:3, :3])
    return matrix


def _check_rotation(keys: _Keys, at: str, rotation: Matrix) -> None:
    determinant = float(np.linalg.det(rotation))
    off = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if off < 1e-3 and determinant > 0:
        return
    if off < 1e-3:
        swaps = [f"columns {a + 1} and {b + 1} are swapped" for a, b in itertools.combinations(range(3), 2)]
        raise keys.wrong(
            f"{at} is left-handed (determinant {determinant:.3f}): two columns or rows are swapped, or an axis is mirrored",
            f"check whether {', '.join(swaps[:2])} or {swaps[2]}, or one of them has the wrong sign",
        )
    raise keys.wrong(
        f"{at} is no rotation (determinant {determinant:.3f}, R·Rᵀ is up to {off:.2g} off the identity)",
        "give a rotation: no scale, no rounding to fewer than four digits",
    )


def _other_order(keys: _Keys, name: str) -> Matrix | None:
    """A transform as it would be with its quaternion's numbers in the other order; None where it has no quaternion."""
    if not isinstance(given := keys.plain[name], dict):
        return None
    other = {"quaternion_wxyz": "quaternion_xyzw", "quaternion_xyzw": "quaternion_wxyz"}
    return _extrinsic(_Keys(keys.path, keys.at, {name: {other.get(key, key): v for key, v in given.items()}}), name)


def _poses(keys: _Keys, sensors: Sequence[str]) -> PoseTable:
    keys.only(("file", "format", "of", "unit", "max_gap"))
    if keys.plain.get("of") == FILL_IN:
        raise keys.wrong("poses.of is not filled in", f"name whose poses they are: {', '.join(('vehicle', *sensors))}")
    table = PoseTable(
        keys.text("file"),
        keys.text("format", "tum", ("tum", "kitti")),
        keys.text("of", "vehicle", ("vehicle", *sensors)),
        keys.text("unit", "s", tuple(UNITS)),
        keys.number("max_gap", 0.5, 0.0),
    )
    inside(keys.path.parent, table.file, keys.path)
    return table
