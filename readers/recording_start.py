"""``olivine init-rig``: look through a folder and write a commented ``rig.yaml`` of what is there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..common import OlivineError, read_text, write_bytes
from ..common.images import image_size
from .clouds import SUFFIXES, CloudLayout, read_columns
from .recording import FILE, FILL_IN, quoted
from .recording_files import in_order, is_time, words_of

_IMAGES = (".jpg", ".jpeg", ".png")
_INTENSITIES = ("intensity", "i", "reflectivity", "reflectance", "remission", "scalar_intensity")
_DEPTH = 5  # folders below the one that is named
_TABLE = 1 << 26  # bytes of a text file that may be a table of times or poses


@dataclass(frozen=True)
class StartSummary:
    """What was found.

    Attributes:
        scenes, lidars, cameras: names.
        poses: the table of poses, empty where none was found.
        to_fill_in: keys whose values only the user knows.
    """

    out: Path
    scenes: tuple[str, ...]
    lidars: tuple[str, ...]
    cameras: tuple[str, ...]
    poses: str
    to_fill_in: tuple[str, ...]


@dataclass(frozen=True)
class _Group:
    """Files of one kind in one folder; ``place`` is relative to the scene."""

    place: str
    suffix: str
    files: tuple[Path, ...]

    @property
    def pattern(self) -> str:
        return f"{self.place}/*{self.suffix}" if self.place != "." else f"*{self.suffix}"


def start_description(root: Path, *, overwrite: bool = False) -> StartSummary:
    """Write ``rig.yaml`` into a folder.

    Raises:
        OlivineError: there is one already, or no point files or no images.
    """
    if not root.is_dir():
        raise OlivineError("no such folder", where=root, remedy="name the folder of your recording")
    out = root / FILE
    if out.exists() and not overwrite:
        raise OlivineError("is there already", where=out, remedy="edit it, or replace it with --overwrite")
    folders = _folders(root)
    scenes = _scenes(folders)
    groups = [
        _Group(_below(folder, scenes[0]), suffix, files)
        for folder, suffix, files in folders
        if _below(folder, scenes[0])
    ]
    lidars = [g for g in groups if g.suffix.lower() in SUFFIXES and not g.files[0].name.startswith("poses")]
    cameras = [g for g in groups if g.suffix.lower() in _IMAGES]
    for found, what in ((lidars, f"point files ({', '.join(SUFFIXES)})"), (cameras, f"images ({', '.join(_IMAGES)})")):
        if not found:
            raise OlivineError(f"holds no {what}", where=root, remedy="name the folder that holds your recording")
    names = _names([*lidars, *cameras])
    tables = list(_tables(root / scenes[0]))
    poses = next((t for t in tables if len(t[1]) == 8), None)
    poses = poses or next((t for t in tables if len(t[1]) == 12 and t[2] == len(lidars[0].files)), None)
    to_fill_in: list[str] = []
    lines = [*_HEAD, "", "scenes:  # the folder of each recording (. is this one): train, val or test"]
    for k, scene in enumerate(scenes):
        split = "val" if len(scenes) > 1 and k == len(scenes) - 1 else "train"
        lines.append(f"  {quoted(scene)}: {split}")
    lines += ["", "lidars:  # points are given in the frame of the first one, whose files are the frames"]
    for k, group in enumerate(lidars):
        lines += [f"  {quoted(names[group])}:  # {len(group.files)} files", *_lidar_lines(group, tables)]
        if k:
            lines.append(
                f"    lidar_to_vehicle: {FILL_IN}  # as lidar_to_camera below; the first LiDAR has one too then"
            )
            to_fill_in.append(f"lidars.{names[group]}.lidar_to_vehicle")
    lines += ["", "cameras:"]
    for group in cameras:
        lines += [f"  {quoted(names[group])}:  # {len(group.files)} files", *_camera_lines(group, tables)]
        to_fill_in += [f"cameras.{names[group]}.intrinsic", f"cameras.{names[group]}.lidar_to_camera"]
    lines += ["", *_MATCHING, ""]
    if poses is None:
        lines += _NO_POSES
    else:
        form = "tum" if len(poses[1]) == 8 else "kitti"
        lines += [
            "poses:  # where the vehicle was; every sensor's motion until its own time is taken out",
            f"  file: {quoted(poses[0])}",
            f"  format: {form}  # tum: time x y z qx qy qz qw; kitti: 12 numbers for each file of the first LiDAR",
            f"  of: {'vehicle' if form == 'tum' else FILL_IN}  # vehicle, or the name of the sensor whose poses they are",
        ]
        if form == "kitti":  # KITTI's are of a camera, others' of the LiDAR or the vehicle: the file does not say
            to_fill_in.append("poses.of")
    write_bytes(out, ("\n".join(lines) + "\n").encode())
    named = [tuple(names[group] for group in found) for found in (lidars, cameras)]
    found_poses = "" if poses is None else poses[0]
    return StartSummary(out, tuple(scenes), named[0], named[1], found_poses, tuple(to_fill_in))


_HEAD = (
    "# What is what in this folder: written by olivine init-rig from the files, to be completed by you.",
    "# Every key is explained in docs/own-data.md. Look at the result with: olivine check-data --dataset rig --root DIR",
)
_MATCHING = (
    "matching:",
    "  limit: 0.05  # seconds between a cloud and an image that belong together, at most",
    "  every: 1  # take every so many-th cloud",
    "",
    "min_range: 0  # metres: leave out points nearer to their LiDAR (the vehicle itself, lost returns at 0)",
    "intensity_offset: 0  # added to the intensity before a network sees it; 1 where many returns have the intensity 0",
)
_NO_POSES = (
    "# poses:  # where the vehicle was; without, it is taken to stand still between a cloud and its images",
    "#   file: poses.txt",
    "#   format: tum  # time x y z qx qy qz qw; or kitti: 12 numbers for each file of the first LiDAR",
    "#   of: vehicle  # or the name of the sensor whose poses they are",
)


def _folders(root: Path) -> list[tuple[str, str, tuple[Path, ...]]]:
    """Folders relative to ``root`` with their point files or images, by suffix."""
    found = []
    for folder in sorted([root, *(p for p in root.rglob("*") if p.is_dir())], key=in_order):
        relative = folder.relative_to(root)
        if len(relative.parts) > _DEPTH or any(part.startswith(".") for part in relative.parts):
            continue
        files: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir(), key=in_order):
            if path.is_file() and path.suffix.lower() in (*SUFFIXES, *_IMAGES):
                files.setdefault(path.suffix, []).append(path)
        found += [(relative.as_posix(), suffix, tuple(members)) for suffix, members in files.items()]
    return found


def _scenes(folders: Sequence[tuple[str, str, tuple[Path, ...]]]) -> list[str]:
    """The folders of the recordings: those at the top that all hold the same folders, else the one that is named."""
    inner: dict[str, set[str]] = {}
    for place, suffix, _ in folders:
        first, _, rest = place.partition("/")
        inner.setdefault(first, set()).add(f"{rest}*{suffix}" if rest else "")
    rests = list(inner.values())
    alike = rests and all(rest == rests[0] for rest in rests) and "" not in rests[0]
    return sorted(inner, key=in_order) if alike and len(rests[0]) > 1 else ["."]


def _below(place: str, scene: str) -> str:
    """A folder relative to a scene's, empty where it is not in it."""
    if scene == ".":
        return place
    return place.removeprefix(f"{scene}/") if place.startswith(f"{scene}/") else ""


def _names(groups: Sequence[_Group]) -> dict[_Group, str]:
    """A name for each sensor: its folder's, with those above it where that is not enough."""
    names: dict[_Group, str] = {}
    for group in groups:
        parts = [re.sub(r"[^\w-]", "_", part) for part in Path(group.place).parts] or ["sensor"]
        options = ["_".join(parts[-k:]) for k in range(1, len(parts) + 1)]
        options += [f"{options[-1]}_{k}" for k in range(2, len(groups) + 2)]
        names[group] = next(name for name in options if name not in names.values())
    return names


def _tables(folder: Path) -> Iterator[tuple[str, list[str], int]]:
    """Text files that are tables of numbers and times: path, first row, number of rows."""
    for path in sorted(folder.rglob("*"), key=in_order):
        if path.suffix.lower() not in (".txt", ".csv", ".tum") or not path.is_file() or path.stat().st_size > _TABLE:
            continue
        try:
            lines = read_text(path, "").splitlines()
        except OlivineError:
            continue
        rows = [words_of(line) for line in lines if line.strip() and not line.startswith("#")]
        if rows and len({len(row) for row in rows}) == 1 and all(is_time(word) for word in rows[0][1:] or rows[0]):
            yield path.relative_to(folder).as_posix(), rows[0], len(rows)


def _clock_lines(group: _Group, tables: Sequence[tuple[str, list[str], int]]) -> list[str]:
    found = [re.findall(r"\d+(?:\.\d+)?", path.stem) for path in group.files[:100]]
    number = found[0][-1] if all(found) else ""
    unit = _unit_of_name(number)
    beside = str(Path(group.place).parent)
    near = [t for t in tables if len(t[1]) <= 2 and t[2] == len(group.files) and "time" in t[0].lower()]
    near.sort(key=lambda t: str(Path(t[0]).parent) not in (group.place, beside))
    whole_seconds = unit == "s" and "." not in number  # no sensor is so slow: a table beside the files knows better
    if unit and not (whole_seconds and near and str(Path(near[0][0]).parent) in (group.place, beside)):
        return [
            "    times: name  # the last number in a file's name is its time",
            f"    unit: {unit}",
            "    clock_offset: 0  # seconds, added to every time",
        ]
    if near:
        unit = _unit_of(near[0][1][-1])
        return [
            f"    times: {quoted(near[0][0])}  # one line for each file: its time, or its name and its time",
            *([f"    unit: {unit}"] if unit else []),
            "    clock_offset: 0  # seconds, added to every time",
        ]
    return [
        "    times: number  # the names count; or name (they are times), or the path of a table of times",
        "    rate: 10  # files in a second",
        "    clock_offset: 0  # seconds, added to every time",
    ]


def _unit_of_name(number: str) -> str:
    """The unit of a time in a file's name, empty where the number counts: 0000000005 is no second of 1970."""
    whole, point, _ = number.partition(".")
    if len(whole) > 1 and whole.startswith("0"):
        return ""
    return {10: "s", 13: "ms", 16: "us", 19: "ns"}.get(len(whole), "s" if point else "")


def _unit_of(time: str) -> str:
    """The unit of a time in a table, empty for a date."""
    return "" if "T" in time else {13: "ms", 16: "us", 19: "ns"}.get(len(time.partition(".")[0]), "s")


def _lidar_lines(group: _Group, tables: Sequence[tuple[str, list[str], int]]) -> list[str]:
    lines = [f"    files: {quoted(group.pattern)}", *_clock_lines(group, tables)]
    suffix = group.suffix.lower()
    columns, named = _columns(group, suffix)
    if not named:
        known = ("x", "y", "z", "intensity", *(f"column_{k}" for k in range(5, 20)))
        listed = ", ".join(known[: len(columns)])
        lines.append(f"    columns: [{listed}]  # of each point, as the files have them; check them")
        if len(columns) < 4:
            lines.append("    intensity: none")
        return lines
    for xyz in (("x", "y", "z"), ("X", "Y", "Z")):
        if set(xyz) <= set(columns):
            lines.append(f"    xyz: [{', '.join(xyz)}]  # the files have: {', '.join(columns)}")
            break
    else:
        lines.append(f"    xyz: {FILL_IN}  # the files have: {', '.join(columns)}")
    intensity = next((c for name in _INTENSITIES for c in columns if c.lower() == name), "none")
    lines.append(f"    intensity: {intensity}  # none where there is none")
    return lines


def _columns(group: _Group, suffix: str) -> tuple[list[str], bool]:
    """The columns of a group's first file, and whether the file names them."""
    if suffix == ".bin":
        possible: list[list[str]] = []
        for count in (4, 5, 3, 6, 7, 8):
            layout = CloudLayout(columns=tuple(map(str, range(count))))
            if any(path.stat().st_size % (4 * count) for path in group.files[:20]):
                continue
            rows = read_columns(group.files[0], layout)
            position, more = list(rows.values())[:3], list(rows.values())[3:4]
            if all(np.isfinite(v).all() and np.abs(v).max(initial=0) < 1e4 for v in position):
                # An intensity is never negative; a coordinate that is taken for one, in rows of another length, is.
                if more and more[0].min(initial=0) >= 0:
                    return list(rows), False
                possible.append(list(rows))
        possible.sort(key=lambda columns: len(columns) != 3)
        return next(iter(possible), ["x", "y", "z", "intensity"]), False
    if suffix in (".npy", ".npz"):
        for count in range(3, 20):
            try:
                rows = read_columns(group.files[0], CloudLayout(columns=tuple(map(str, range(count)))))
            except OlivineError:
                continue
            return list(rows), next(iter(rows)) != "0"
    return list(read_columns(group.files[0], CloudLayout())), True


def _camera_lines(group: _Group, tables: Sequence[tuple[str, list[str], int]]) -> list[str]:
    width, height = image_size(group.files[0], "remove it")
    return [
        f"    files: {quoted(group.pattern)}",
        *_clock_lines(group, tables),
        f"    intrinsic: {FILL_IN}  # [fx, fy, cx, cy] in pixels of these images of {width} x {height}, or 3 rows of 3",
        "    model: pinhole  # or brown-conrady or fisheye, with distortion: [k1, k2, p1, p2, k3] or [k1, k2, k3, k4]",
        f"    lidar_to_camera: {FILL_IN}  # 4 rows of 4, or {{translation: [x, y, z], quaternion_wxyz: [w, x, y, z]}};",
        "    # or instead camera_to_lidar or camera_to_vehicle. Camera axes: x right, y down, z ahead",
    ]
