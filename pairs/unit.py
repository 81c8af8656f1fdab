"""A work unit: one run of consecutive frames of a scene, made into one shard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common import (
    Failure,
    OlivineError,
    atomic_directory,
    check_replaceable,
    ctrl_c_afterwards,
    digest,
    package_versions,
)
from ..labelgen.store import LabelStore
from ..readers.frame import Frame
from ..readers.index import FrameIndex, Scene
from .clusters import ClusterSettings, SceneClusters
from .consolidate import SceneVotes
from .frames import build_frame
from .layout import FORMAT, FRAMES_PER_SHARD, SCHEMA, is_shard_file, shard_name
from .manifest import entry_path, is_whole, label_maps, of_other_maps, read_entry, write_entry
from .settings import ConsolidationSettings, PairSettings
from .shard_writer import ShardFrame, file_table, write_shard
from .sources import Sources, sources_of, write_note


def packages_of(settings: PairSettings) -> tuple[str, ...]:
    """What the bytes of a shard depend on besides its input."""
    clusters = ("hdbscan", "scikit-learn", "scipy") if settings.clusters else ()
    return ("olivine", "zarr", "numcodecs", "numpy", "numba", "pillow", *clusters)


@dataclass(frozen=True)
class Unit:
    """Frames ``first`` to ``first + count`` of a scene, and the number of their shard."""

    number: int
    scene: Scene
    first: int
    count: int

    @property
    def key(self) -> str:
        """For files: the stem of its shard's name."""
        return shard_name(self.number).removesuffix(".zarr")

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.scene.name} frames {self.first}-{self.first + self.count - 1}"


@dataclass(frozen=True)
class UnitResult:
    """What became of a unit: the frames it stored (0 when it has no shard), those it found stored, and those it could not.

    ``changed`` counts the stored pairs whose label a vote has changed.
    """

    frames: int
    failures: tuple[Failure, ...] = ()
    kept: int = 0
    changed: int = 0


class _SameAlready(Exception):
    """Another writer, or an earlier run, has stored these very bytes."""


def plan_units(index: FrameIndex, split: str) -> list[Unit]:
    """The work units of a split: up to 64 consecutive frames of one scene each.

    Depends on the index alone, so that every writer numbers the shards alike.
    """
    units: list[Unit] = []
    for scene in index.select(split):
        for first in range(0, scene.frame_count, FRAMES_PER_SHARD):
            units.append(Unit(len(units), scene, first, min(FRAMES_PER_SHARD, scene.frame_count - first)))
    return units


def finished(out: Path, unit: Unit) -> bool:
    """Whether a unit's shard is there, whole, with all its frames."""
    entry = read_entry(out, unit.number)
    return entry is not None and not entry["left_out"] and entry["frames"] == unit.count and is_whole(out, entry)


@dataclass(frozen=True)
class UnitBuilder:
    """Builds units; small and picklable, one copy in each worker process.

    ``again`` builds also what is finished: else another driver may have finished the unit since it was planned.
    """

    out: Path
    store: LabelStore
    settings: PairSettings
    recipe: dict[str, Any]
    again: bool = False

    def __call__(self, unit: Unit, step: Callable[[int], None] = lambda count: None) -> UnitResult:
        """Build one unit, whole or not at all; ``step`` is told of each frame.

        A frame that cannot be built is left out and named.

        Raises:
            OlivineError: the folder cannot be written (the disk is full, for instance).
        """
        if not self.again and finished(self.out, unit):
            return UnitResult(0, kept=unit.count)
        stored, maps = read_entry(self.out, unit.number), label_maps(self.store, unit.scene.name)
        if stored is not None and not (
            stored["recipe"] == digest(self.recipe) and is_whole(self.out, stored) and not of_other_maps(stored, maps)
        ):
            stored = None
        kept_frames = stored["frames"] if stored is not None else 0
        try:
            check_replaceable(self.out / shard_name(unit.number), is_shard_file)
            scene = unit.scene.frames()
        except OlivineError as error:
            return UnitResult(0, (Failure(unit.name, str(error)),), kept=kept_frames)
        frames: list[ShardFrame] = []
        kept: list[Frame] = []
        failures: list[Failure] = []
        gap = self.settings.clusters
        # Of the whole scene: a scan's partner may be in another shard.
        clusters = SceneClusters(scene, gap, ClusterSettings()) if gap else None
        around = self.settings.consolidate
        voting = ConsolidationSettings(), self.settings.tracks
        votes = SceneVotes(scene, around, self.store, self.settings.min_depth, *voting) if around else None
        sources = self._around(unit, scene)
        for position in range(unit.first, unit.first + unit.count):
            member = scene[position]
            step(1)
            try:
                files = sources_of(member, self.settings.images)
                frame = build_frame(member, position, self.store, self.settings)
                if clusters is not None:
                    frame.columns.update(clusters.columns(position))
                if votes is not None:
                    frame.columns.update(votes.columns(position, frame.columns))
                if kept:
                    _check_alike(member, kept[0], frame, frames[0])
            except OlivineError as error:
                failures.append(Failure(f"{member.scene} frame {member.token}", str(error)))
                continue
            frames.append(frame)
            kept.append(member)
            sources |= files
        known = {name for name, _ in stored["left_out"]} if stored is not None else set()
        if stored is not None and not self.again and any(failure.unit not in known for failure in failures):
            # A frame that is stored cannot be built now: what is there is more than what would replace it.
            return UnitResult(0, tuple(failures), kept=kept_frames)
        if frames:
            # zarr writes in a thread of its own, which would go on writing into a folder that the
            # interrupted caller has just removed.
            with ctrl_c_afterwards():
                self._store(unit, kept, frames, failures, maps, sources)
        return UnitResult(len(frames), tuple(failures), changed=sum(_changed(frame) for frame in frames))

    def _around(self, unit: Unit, scene: list[Frame]) -> Sources:
        """The clouds before and after a unit that its votes and clusters are made of."""
        span, end = max(self.settings.consolidate, self.settings.clusters), unit.first + unit.count
        found: Sources = {}
        for frame in (*scene[max(0, unit.first - span) : unit.first], *scene[end : end + span]):
            found |= sources_of(frame, images=False)
        return found

    def _store(
        self,
        unit: Unit,
        kept: list[Frame],
        frames: list[ShardFrame],
        failures: list[Failure],
        maps: list[str],
        sources: Sources,
    ) -> None:
        final, before = self.out / shard_name(unit.number), read_entry(self.out, unit.number)
        entry: dict[str, Any] = {
            "number": unit.number,
            "recipe": digest(self.recipe),
            "label_maps": maps,
            "scene": unit.scene.name,
            "first": unit.first,
            "frames": len(frames),
            "points": sum(len(frame.columns["points"]) for frame in frames),
            "pairs": sum(len(frame.columns["pair_point"]) for frame in frames),
            "class_count": np.sum([frame.columns["class_count"] for frame in frames], axis=0).tolist(),
            "has_point_label": "point_label" in frames[0].columns,
            "cameras": [camera.name for camera in kept[0].cameras],
            "image_size": np.max([frame.columns["image_size"] for frame in frames], axis=0).tolist(),
            "left_out": [[failure.unit, failure.reason] for failure in failures],
            "packages": package_versions(packages_of(self.settings)),
        }
        try:
            with atomic_directory(final, is_shard_file) as folder:
                write_shard(folder, frames, self._attributes(unit, kept, frames))
                entry["files"] = file_table(folder)
                if _same(final.parent, entry):
                    raise _SameAlready
                # The old shard goes now, and its entry must not outlive it.
                entry_path(self.out, unit.number).unlink(missing_ok=True)
        except _SameAlready:
            pass
        except OlivineError:
            # Two writers on one unit can meet in the rename; the other's bytes are as good.
            theirs = _files_of(final)
            if theirs is None or theirs != entry.get("files"):
                if before is not None and is_whole(self.out, before):  # the old shard is still there
                    write_entry(self.out, before)
                raise
        write_note(self.out, unit.number, sources)
        if read_entry(self.out, unit.number) != {**entry, "digest": digest(entry)}:
            write_entry(self.out, entry)

    def _attributes(self, unit: Unit, kept: list[Frame], frames: list[ShardFrame]) -> dict[str, Any]:
        first = kept[0]
        lookup = first.point_label_lookup if first.point_label_file else b""
        return {
            "format": FORMAT,
            "schema": SCHEMA,
            "dataset": first.dataset,
            "version": first.version,
            "split": first.split,
            "scene": unit.scene.name,
            "frame_index": [frame.position for frame in frames],
            "token": [frame.token for frame in frames],
            "bandwidth": [frame.bandwidth for frame in frames],
            "cameras": [camera.name for camera in first.cameras],
            "classes": list(self.store.classes),
            "point_classes": self.recipe["point_classes"],
            "intensity_offset": self.recipe["intensity_offset"],
            # Raw values of the data set's label files that mean each class, 0 (ignored) first.
            "point_class_raw": [
                [raw for raw, value in enumerate(lookup) if value == c]
                for c in range(len(self.recipe["point_classes"]) + 1 if lookup else 0)
            ],
            **_lenses(first),
            "labels": self.recipe["labels"],
            **({"pair_score": self.recipe["pair_score"]} if "pair_score" in self.recipe else {}),
            "recipe": digest(self.recipe),
        }


def _changed(frame: ShardFrame) -> int:
    before = frame.columns.get("pair_pixel_label")
    return 0 if before is None else int(np.count_nonzero(before != frame.columns["pair_label"]))


def _lenses(frame: Frame) -> dict[str, Any]:
    """Model and coefficients of each camera's lens, where one of them distorts."""
    if all(camera.model == "pinhole" for camera in frame.cameras):
        return {}
    return {"lenses": [[camera.model, list(camera.distortion)] for camera in frame.cameras]}


def _files_of(folder: Path) -> dict[str, list[Any]] | None:
    try:
        return file_table(folder) if folder.is_dir() else None
    except OSError:  # unreadable, or another writer is replacing it
        return None


def _same(out: Path, entry: dict[str, Any]) -> bool:
    there = read_entry(out, entry["number"])
    if there is not None and there["files"] == entry["files"]:
        return is_whole(out, there)
    # A writer that was killed between the rename and the entry leaves a whole shard.
    return _files_of(out / shard_name(entry["number"])) == entry["files"]


def _check_alike(member: Frame, first: Frame, frame: ShardFrame, first_frame: ShardFrame) -> None:
    if [c.name for c in member.cameras] != [c.name for c in first.cameras]:
        raise OlivineError(
            f"has the cameras {', '.join(c.name for c in member.cameras)}, the scene's first frame "
            f"{', '.join(c.name for c in first.cameras)}",
            where=f"frame {member.token}",
            remedy="download the missing images",
        )
    if _lenses(member) != _lenses(first):
        raise OlivineError(
            "has other lenses than the scene's first frame",
            where=f"frame {member.token}",
            remedy="make a scene of its own of these frames",
        )
    if ("point_label" in frame.columns) != ("point_label" in first_frame.columns):
        raise OlivineError(
            "some frames of the scene have point labels and some have none",
            where=f"frame {member.token}",
            remedy="download the missing point labels",
        )
