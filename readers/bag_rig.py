"""``rig.yaml`` of a folder that bags are imported into: one scene more, where the bag says the same of its sensors."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common import OlivineError, read_text
from ..common.settings import read_yaml, read_yaml_file
from .lens import lens_numbers
from .recording import FILE, FILL_IN, Matrix, Sensor, quoted, scene_name, sensors_of, splits_of

_HEAD = "# What is what in this folder: written by olivine import-bag. Every key is explained in docs/own-data.md.\n"
_POSES = {"file": "poses.txt", "format": "tum", "of": "vehicle", "unit": "s"}
_ELSEWHERE = (
    "import it into another folder with --out; if that value is right for this bag too, move the scene from there to here "
    "and add its line under scenes"
)
_MOUNTED = ("lidar_to_vehicle", "camera_to_vehicle", "camera_to_lidar", "lidar_to_camera")
# In the place of what is to be filled in, where only the rest is looked at.
_ANY: dict[str, Any] = {"intrinsic": [1, 1, 0, 0], **{key: np.eye(4).tolist() for key in _MOUNTED}}


def check_scene(out: Path, scene: str, split: str, *, overwrite: bool) -> None:
    """Raise unless a scene can come into the folder ``out``.

    Raises:
        OlivineError: it is there already; ``rig.yaml`` has another one of this name, or is not written so that a line can
            be added.
    """
    if os.path.lexists(out / scene) and not overwrite:
        raise OlivineError(
            "is there already",
            where=out / scene,
            remedy="name this scene with --scene NAME, or replace that one with --overwrite",
        )
    if (out / FILE).exists():
        _with_scene(out / FILE, scene, split)


def check_names(out: Path, lidars: Sequence[str], cameras: Sequence[str]) -> None:
    """Raise where ``rig.yaml`` is there and has other sensors than these.

    Raises:
        OlivineError: names those of both.
    """
    if not (out / FILE).exists():
        return
    there = read_yaml_file(out / FILE)
    for section, names in (("lidars", lidars), ("cameras", cameras)):
        its = list((there or {}).get(section) or {}) if isinstance(there, dict) else []
        if its != list(names):
            raise OlivineError(
                f"has the {section} {', '.join(map(str, its)) or 'none'}, this bag {', '.join(names)}",
                where=out / FILE,
                remedy="import bags of other sensors into another folder, or choose the topics",
            )


def entered(
    out: Path, scene: str, split: str, bag: Path, plain: dict[str, Any], columns: dict[str, Sequence[str]]
) -> tuple[str, tuple[str, ...]]:
    """``rig.yaml`` with a scene more, and the keys in it that are to be filled in. Writes nothing.

    Args:
        split: of the scene; empty: the one that ``rig.yaml`` has for it, else train.
        bag: for messages.
        plain: ``rig.yaml`` without scenes, as the bag says it.
        columns: of each LiDAR's clouds.

    Raises:
        OlivineError: as :func:`check_scene` and :func:`check_names`; a sensor or the poses are not those of the
            ``rig.yaml`` that is there: names the key and both values.
    """
    import yaml

    path = out / FILE
    if not path.exists():
        body = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=100)
        text = f"{_HEAD}scenes:\n  {quoted(scene)}: {split or 'train'}\n{body}"
        return text, tuple(".".join(key) for key in _blanks(plain))
    check_names(out, list(plain["lidars"]), list(plain["cameras"]))
    there = read_yaml_file(path)
    _compare_poses(path, there.get("poses") or {}, plain.get("poses") or {})
    if found := next(_compared(there, plain, _sensors(path, there), _sensors(bag, plain), columns), None):
        key, its, mine = found
        raise OlivineError(f"{key} is {its}, and this bag has {mine}", where=path, remedy=_ELSEWHERE)
    return _with_scene(path, scene, split), tuple(".".join(key) for key in _blanks(there))


def _with_scene(path: Path, scene: str, split: str) -> str:
    """The text of a ``rig.yaml`` with a scene more, or with the scene's split; all else stays as its user wrote it."""
    text = read_text(path, "check its permissions").rstrip() + "\n"
    plain = read_yaml(text, path)
    splits = splits_of(path, plain)
    for folder in splits:
        if folder != scene and scene_name(folder) == scene:
            raise OlivineError(
                f"has a scene of the name {scene} in the folder {folder}", where=path, remedy="choose --scene NAME"
            )
    split = split or splits.get(scene, "train")
    line = f"{quoted(scene)}: {split}"
    lines = text.splitlines(keepends=True)
    head = next((k for k, old in enumerate(lines) if re.fullmatch(r"scenes:\s*(#.*)?\s*", old)), len(lines))
    own_lines = head < len(lines)
    below = [k for k in range(head + 1, len(lines)) if lines[k].strip() and lines[k].strip()[0] != "#"]
    if scene not in splits:
        indent = len(lines[below[0]]) - len(lines[below[0]].lstrip()) if below else 0
        lines.insert(head + 1, f"{' ' * (indent or 2)}{line}\n")
    else:
        for k in below:
            found = re.fullmatch(r"(\s+)([^:]+)(:\s+)(\w+)(.*)", lines[k], re.DOTALL)
            if found and found[2].strip("'\"") == scene:
                lines[k] = f"{found[1]}{found[2]}{found[3]}{split}{found[5]}"
                break
    changed = "".join(lines)
    wanted = {**plain, "scenes": {**splits, scene: split}}
    if not own_lines or read_yaml(changed, path) != wanted:
        raise OlivineError(
            "does not have its scenes each on a line of its own",
            where=path,
            remedy=f"write them so, as in docs/own-data.md, this one too: {line}",
        )
    return changed


def _blanks(plain: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What is to be filled in: section, sensor and key."""
    for section in ("lidars", "cameras"):
        sensors = plain.get(section)
        for name, keys in sensors.items() if isinstance(sensors, dict) else ():
            if isinstance(keys, dict):
                yield from ((section, name, key) for key, value in keys.items() if value == FILL_IN)


def _sensors(path: Path, plain: dict[str, Any]) -> dict[tuple[str, str], Sensor]:
    """The sensors, with anything where something is to be filled in."""
    filled = copy.deepcopy({section: plain.get(section) for section in ("lidars", "cameras")})
    for section, name, key in _blanks(plain):
        filled[section][name][key] = _ANY.get(key, FILL_IN)  # type: ignore[index]
    lidars, cameras, _ = sensors_of(path, filled)
    return {("lidars", s.name): s for s in lidars} | {("cameras", s.name): s for s in cameras}


def _compared(
    there: dict[str, Any],
    plain: dict[str, Any],
    theirs: dict[tuple[str, str], Sensor],
    bags: dict[tuple[str, str], Sensor],
    columns: dict[str, Sequence[str]],
) -> Iterator[tuple[str, object, object]]:
    """What differs: a sensor's key, its value in the ``rig.yaml`` that is there, and the bag's."""
    to_fill_in, unsaid = set(_blanks(there)), set(_blanks(plain))
    first = next(iter(theirs))
    for at, its in theirs.items():
        section, name = at
        mine = bags[at]
        pairs: list[tuple[str, Any, Any]] = [
            ("files", its.files, mine.files),
            ("times", its.clock.times, mine.clock.times),
            ("unit", its.clock.unit, mine.clock.unit),
        ]
        if section == "lidars":
            for key, wanted in (("xyz", its.layout.xyz), ("intensity", (its.layout.intensity or "x",))):
                if not set(wanted) <= set(columns[name]):
                    pairs.append((key, ", ".join(wanted), f"the columns {', '.join(columns[name])}"))
        elif (*at, "intrinsic") not in to_fill_in | unsaid:
            pairs += [(key, getattr(its, key), getattr(mine, key)) for key in ("intrinsic", "model", "distortion")]
        key = next((key for key in _MOUNTED if key in there[section][name]), _MOUNTED[0])
        needs = {(*at, f"{section[:-1]}_to_vehicle")}
        if "vehicle" not in key:
            needs.add((*first, "lidar_to_vehicle"))
        if (*at, key) not in to_fill_in and not needs & unsaid:
            pairs.append((key, _mounted(key, its, theirs[first]), _mounted(key, mine, bags[first])))
        yield from ((f"{section}.{name}.{key}", _said(a), _said(b)) for key, a, b in pairs if not _same(key, a, b))


def _mounted(key: str, sensor: Sensor, first: Sensor) -> Matrix:
    """Where a sensor is, in the form of a key of ``rig.yaml``."""
    if "vehicle" in key:
        return sensor.to_vehicle[:3]
    to_lidar = np.linalg.inv(first.to_vehicle) @ sensor.to_vehicle
    return (to_lidar if key == "camera_to_lidar" else np.linalg.inv(to_lidar))[:3]


def _same(key: str, one: Any, other: Any) -> bool:
    """Whether two values are the same but for a number's last digits."""
    if key == "distortion":  # what is left out is 0
        one, other = (lens_numbers("brown-conrady", values)[1] for values in (one, other))
    if isinstance(one, np.ndarray):
        return bool(np.allclose(one, other, rtol=1e-5, atol=1e-6))
    return bool(one == other)


def _said(value: Any) -> Any:
    return np.round(value, 6).tolist() if isinstance(value, np.ndarray) else value


def _compare_poses(path: Path, there: Any, plain: dict[str, Any]) -> None:
    """Raise where one of two recordings has poses and the other none, or they would be read in another way."""
    if not isinstance(there, dict):
        raise OlivineError(f"poses is {there!r}", where=path, remedy="see docs/own-data.md")
    if bool(there) != bool(plain):
        what = "poses, and this bag has none" if there else "no poses, and this bag has some"
        remedy = "import it into another folder with --out" + ("" if there else ", or leave them out: --odometry none")
        raise OlivineError(f"has {what}", where=path, remedy=remedy)
    for key, default in _POSES.items() if there else ():
        if there.get(key, default) != default:
            raise OlivineError(
                f"poses.{key} is {there.get(key)}, and this bag has {default}", where=path, remedy=_ELSEWHERE
            )
