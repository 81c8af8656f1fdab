"""The index of a data set's frames, scene by scene, so that a work unit opens its own scene and parses no tables again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..common import (
    OlivineError,
    PathLike,
    Whole,
    demand,
    digest,
    parse_json,
    read_json,
    read_text,
    write_bytes,
    write_json,
)
from .dataset import Dataset, dataset_class
from .frame import INDEX_AGAIN, UP, Camera, Frame, check_frame, check_keys, check_scene_name

INDEX_SCHEMA = "1.1"


class OutdatedIndex(OlivineError):
    """An index that an earlier version wrote, and that is no longer right."""


def has_offset(dataset: str) -> bool:
    """Whether a network's input adds something to a data set's intensity, so that what does not say it is out of date."""
    try:
        return dataset_class(dataset).intensity_offset != 0
    except OlivineError:  # of the user's own, and so not from before there were any
        return False


def _frame_to_plain(frame: Frame) -> dict[str, Any]:
    plain: dict[str, Any] = {f.name: getattr(frame, f.name) for f in fields(Frame)}
    del plain["root"]
    for name, usual in (("reader", ""), ("detail", ""), ("up", UP)):  # most data sets have these
        if plain[name] == usual:
            del plain[name]
    plain["pose"] = frame.pose.ravel().tolist()
    plain["point_label_lookup"] = list(frame.point_label_lookup)
    plain["cameras"] = [
        {
            "name": c.name,
            "image": c.image,
            "width": c.width,
            "height": c.height,
            "intrinsic": c.intrinsic.ravel().tolist(),
            "lidar_to_camera": c.lidar_to_camera.ravel().tolist(),
            **({} if c.model == "pinhole" else {"model": c.model, "distortion": list(c.distortion)}),
        }
        for c in frame.cameras
    ]
    return plain


_CAMERA_FIELDS = {
    "name": str,
    "image": str,
    "width": Whole(1),
    "height": Whole(1),
    "intrinsic": list,
    "lidar_to_camera": list,
    "model?": str,
    "distortion?": [float],
}
_FRAME_FIELDS = {
    "dataset": str,
    "version": str,
    "token": str,
    "scene": str,
    "split": str,
    "timestamp": Whole(-(2**63)),
    "point_file": str,
    "point_columns": Whole(4, 64),
    "pose": list,
    "cameras": [_CAMERA_FIELDS],
    "point_label_file": {str, None},
    "point_label_bytes": {Whole(1, 1), Whole(4, 4)},
    "point_label_lookup": list,
    "truth_folder": {str, None},
    "reader?": str,
    "detail?": str,
    "up?": (float, float, float),
}


def _frame_from_plain(plain: Any, root: Path, where: str) -> Frame:
    """A frame as the index has it; ``where`` is the index's file and line.

    Raises:
        OlivineError: a key is missing or wrong, or a path leads out of the data set's folder.
    """
    values = dict(demand(plain, _FRAME_FIELDS, where, INDEX_AGAIN))
    try:
        values["pose"] = np.array(plain["pose"], np.float64).reshape(4, 4)
        values["point_label_lookup"] = bytes(plain["point_label_lookup"])
        values["up"] = tuple(map(float, plain.get("up", UP)))
        values["cameras"] = tuple(
            Camera(
                c["name"],
                c["image"],
                c["width"],
                c["height"],
                np.array(c["intrinsic"], np.float64).reshape(3, 3),
                np.array(c["lidar_to_camera"], np.float64).reshape(4, 4),
                c.get("model", "pinhole"),
                tuple(map(float, c.get("distortion", ()))),
            )
            for c in plain["cameras"]
        )
        frame = Frame(root=root, **values)
    except (ValueError, TypeError, OverflowError) as error:
        raise OlivineError(f"not a frame ({error})", where=where, remedy=INDEX_AGAIN) from None
    check_frame(frame, where)
    return frame


@dataclass(frozen=True)
class Scene:
    """A scene's entry in the index: its frames are read when asked."""

    name: str
    split: str
    frame_count: int
    file: Path
    root: Path
    digest: str

    def frames(self) -> list[Frame]:
        """The scene's frames in time order.

        Raises:
            OlivineError: the scene's file is missing, has other bytes than when it was written, or holds no such frames.
        """
        text = read_text(self.file, INDEX_AGAIN)
        if digest(text) != self.digest:
            raise OlivineError("has other bytes than the index says", where=self.file, remedy=INDEX_AGAIN)
        lines = text.splitlines()
        if len(lines) != self.frame_count:
            raise OlivineError(
                f"the index holds {len(lines)} frames, its table says {self.frame_count}",
                where=self.file,
                remedy=INDEX_AGAIN,
            )
        places = ((line, f"{self.file} line {number}") for number, line in enumerate(lines, 1))
        return [_frame_from_plain(parse_json(line, where, INDEX_AGAIN), self.root, where) for line, where in places]


@dataclass(frozen=True)
class FrameIndex:
    """All frames of a data set, scene by scene, on disk.

    On disk: ``index.json`` (data set, version, root, scenes) and one JSON-lines file for
    each scene. Only ``index.json`` is read at opening.

    Attributes:
        intensity_offset: what a network's input adds to the raw intensity of ``Frame.points()``.
        reader: as in :class:`Frame`.
    """

    dataset: str
    version: str
    root: Path
    point_classes: tuple[str, ...]
    scenes: tuple[Scene, ...]
    digest: str
    fingerprint: str = ""
    intensity_offset: float = 0.0
    reader: str = ""

    @property
    def source(self) -> type[Dataset]:
        """The data set's class."""
        return dataset_class(self.reader or self.dataset)

    def __len__(self) -> int:
        return sum(scene.frame_count for scene in self.scenes)

    def splits(self) -> list[str]:
        """The splits that have frames, ``train`` first."""
        return [s for s in ("train", "val", "test") if any(scene.split == s for scene in self.scenes)]

    def select(self, split: str | None = None) -> list[Scene]:
        """The scenes of a split (all without one), in the index's order."""
        return [scene for scene in self.scenes if split is None or scene.split == split]

    def frames(self, split: str | None = None) -> Iterator[Frame]:
        """The frames of a split (all without one), scene by scene, in time order."""
        for scene in self.select(split):
            yield from scene.frames()


def write_index(
    directory: PathLike,
    frames: Iterable[Frame],
    *,
    dataset: str,
    version: str,
    root: PathLike,
    point_classes: tuple[str, ...] = (),
    intensity_offset: float = 0.0,
    reader: str = "",
    fingerprint: str = "",
) -> FrameIndex:
    """Write the index of ``frames`` (scene by scene, in time order) and open it.

    Args:
        directory: the index's folder, made where absent.
        point_classes: names of the classes of ``Frame.point_labels()`` from 1 on.
        intensity_offset, reader: see :class:`FrameIndex`.
        fingerprint: changes when the data set's files do; tells an index that is out of date.

    Raises:
        OlivineError: there are no frames, one cannot be, or two images would share one label map.
    """
    directory = Path(directory)
    by_scene: dict[str, list[Frame]] = {}
    for frame in frames:
        by_scene.setdefault(frame.scene, []).append(frame)
    if not by_scene:
        raise OlivineError("the data set has no frames", where=root, remedy="check the data set's folder and version")
    check_keys((frame for members in by_scene.values() for frame in members), root)
    table = []
    for name, members in by_scene.items():
        for member in members:
            check_frame(member, root)
        text = "".join(json.dumps(_frame_to_plain(f), sort_keys=True) + "\n" for f in members)
        write_bytes(directory / f"{name}.jsonl", text.encode())
        table.append({"name": name, "split": members[0].split, "frames": len(members), "digest": digest(text)})
    plain = {
        "schema": INDEX_SCHEMA,
        "dataset": dataset,
        "version": version,
        "root": os.fspath(Path(root).absolute()),
        "point_classes": list(point_classes),
        "intensity_offset": intensity_offset,
        "fingerprint": fingerprint,
        "scenes": table,
        **({"reader": reader} if reader else {}),
    }
    write_json(directory / "index.json", {**plain, "digest": _index_digest(plain)})
    return open_index(directory)


_INDEX_FIELDS = {
    "dataset": str,
    "version": str,
    "root": str,
    "point_classes": [str],
    "fingerprint?": str,
    "reader?": str,
    "scenes": [{"name": str, "split": str, "frames": Whole(1), "digest": str}],
    "digest?": str,
}


def _index_digest(plain: dict[str, Any]) -> str:
    # Not of the root: a data set may move.
    return digest({key: value for key, value in plain.items() if key not in ("digest", "root")})


def open_index(directory: PathLike, root: PathLike | None = None) -> FrameIndex:
    """Open an index written by :func:`write_index`.

    Args:
        root: where the data set is now, if it has moved since.

    Raises:
        OutdatedIndex: an earlier version wrote it, with another projection or without the intensity rule.
        OlivineError: there is none, it is damaged, or of a schema this version does not read.
    """
    directory = Path(directory).absolute()  # the index may be sent to a process with another working folder
    path = directory / "index.json"
    plain = read_json(path, remedy="run olivine labelgen first")
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if str(schema).split(".")[0] != INDEX_SCHEMA.split(".")[0]:
        raise OlivineError(
            f"frame index of schema {schema}, this olivine reads {INDEX_SCHEMA}", where=path, remedy=INDEX_AGAIN
        )
    demand(plain, _INDEX_FIELDS, path, INDEX_AGAIN)
    if plain.get("digest", "") not in ("", _index_digest(plain)):  # an older olivine wrote none
        raise OlivineError("damaged: its content does not match its digest", where=path, remedy=INDEX_AGAIN)
    if "intensity_offset" not in plain and has_offset(plain["dataset"]):
        raise OutdatedIndex(
            "written before the data set had its projection and its intensity rule of today",
            where=path,
            remedy="run the same olivine labelgen again: it writes the index anew and keeps the label maps",
        )
    if not plain["scenes"] or len(plain["point_classes"]) > 255:
        what = "has no scenes" if not plain["scenes"] else f"has {len(plain['point_classes'])} point classes"
        raise OlivineError(what, where=path, remedy=INDEX_AGAIN)
    if "\0" in plain["root"]:
        raise OlivineError("names a root with a null character", where=path, remedy=INDEX_AGAIN)
    base = Path(root if root is not None else plain["root"]).absolute()
    scenes = []
    for s in plain["scenes"]:
        check_scene_name(s["name"], path)
        scenes.append(Scene(s["name"], s["split"], s["frames"], directory / f"{s['name']}.jsonl", base, s["digest"]))
    identity = {key: plain[key] for key in ("dataset", "version", "point_classes", "scenes")}
    return FrameIndex(
        dataset=plain["dataset"],
        version=plain["version"],
        root=base,
        point_classes=tuple(plain["point_classes"]),
        scenes=tuple(scenes),
        digest=digest(identity),
        fingerprint=plain.get("fingerprint", ""),
        intensity_offset=float(plain.get("intensity_offset", 0.0)),
        reader=plain.get("reader", ""),
    )
