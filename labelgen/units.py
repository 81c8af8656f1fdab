"""A unit of work is a scene: its batches, what is finished of it, and its record."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, inside, sha256_file, write_bytes
from ..readers.index import Scene
from .labeler import ImageTask, Labelled
from .prompts import Vocabulary
from .regions import encode_regions
from .settings import LabelSettings
from .sources import FilesOf, is_same, note_of
from .store import KINDS, encode_label_map, encode_score_map, encode_segment_map, read_record, read_values, write_record

_COLUMNS = ("image", "box", "score", "text_score", "class", "area")


@dataclass(frozen=True, eq=False)
class Kept:
    """An image that was labelled before, and whose maps stay as they are.

    Attributes:
        digests: SHA-256 of each of its files, by kind.
        pixels: how often each value is in its label map, int64 [256].
        detections: its rows of each column of its unit's record.
        batch: keys of the images that it was labelled together with, its own among them.
        notes: of that batch.
    """

    digests: dict[str, str]
    pixels: NDArray[np.int64]
    detections: dict[str, list[Any]]
    batch: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class BatchMaps:
    """What becomes of a batch's images in its order (an error where one could not be labelled), and what was unusual."""

    images: tuple[Labelled | Kept | OlivineError, ...]
    notes: tuple[str, ...] = ()


def unit_batches(tasks: Sequence[ImageTask], batch_size: int) -> list[list[ImageTask]]:
    """Cut a unit's images into batches of one size, in order.

    A fixed function of the unit and the batch size: networks give other bits at other
    batch sizes, so what a batch holds must not depend on what was finished before.
    """
    by_size: dict[tuple[int, int], list[ImageTask]] = {}
    for task in tasks:
        by_size.setdefault((task.camera.width, task.camera.height), []).append(task)
    return [bucket[i : i + batch_size] for bucket in by_size.values() for i in range(0, len(bucket), batch_size)]


def kinds_of(settings: LabelSettings) -> tuple[str, ...]:
    """The kinds of files, of :data:`.store.KINDS`, that a store of these settings has for each image."""
    return _kinds(settings.segments, settings.scored)


def kinds_in(manifest: dict[str, Any]) -> tuple[str, ...]:
    """The same of a store that is there, by its manifest."""
    made_with = manifest.get("settings", {})
    return _kinds(made_with.get("segments", "none"), bool(made_with.get("scores")))


def _kinds(segments: str, scored: bool) -> tuple[str, ...]:
    also = {"none": (), "regions": ("segment", "region")}.get(segments, ("segment",))
    return ("label", *also, *(("score",) if scored else ()))


def encode(labelled: Labelled, vocabulary: Vocabulary) -> dict[str, bytes]:
    """The bytes of each kind of file of one image."""
    files = {"label": encode_label_map(labelled.label, vocabulary.classes)}
    if labelled.segment is not None:
        files["segment"] = encode_segment_map(labelled.segment)
    if labelled.regions is not None:
        files["region"] = encode_regions(labelled.regions)
    if labelled.score is not None:
        files["score"] = encode_score_map(labelled.score, labelled.label)
    return files


@dataclass(frozen=True)
class Unit:
    """One scene's labels on disk.

    Attributes:
        root: the label folder.
        scene: the scene's name.
        batches: from :func:`unit_batches`.
        kinds: of the files that an image has, from :func:`kinds_of`.
        sources: the files that an image's maps are imported from, from :func:`.sources.source_files`.
    """

    root: Path
    scene: str
    batches: list[list[ImageTask]]
    kinds: tuple[str, ...] = ("label",)
    sources: FilesOf = lambda camera: ()

    @classmethod
    def of_scene(
        cls,
        root: Path,
        scene: Scene,
        batch_size: int,
        kinds: tuple[str, ...] = ("label",),
        sources: FilesOf = lambda camera: (),
    ) -> Unit:
        """The unit of a scene of the frame index; an image that several frames have is one task, the first one's."""
        tasks: dict[str, ImageTask] = {}
        for task in (ImageTask(frame, i) for frame in scene.frames() for i in range(len(frame.cameras))):
            tasks.setdefault(task.camera.key, task)
        return cls(root, scene.name, unit_batches(list(tasks.values()), batch_size), kinds, sources)

    @property
    def record_path(self) -> Path:
        """The record that says that the unit is finished."""
        return self.root / "units" / f"{self.scene}.json"

    @property
    def _parts(self) -> Path:
        return self.root / "units" / f".{self.scene}"

    def _part_path(self, number: int) -> Path:
        return self._parts / f"{number:05d}.json"

    @property
    def image_count(self) -> int:
        """Images of the unit."""
        return sum(len(batch) for batch in self.batches)

    def files(self, task: ImageTask, *, write: bool = False) -> dict[str, Path]:
        """The files of one image by their kind, the label map first.

        Raises:
            OlivineError: with ``write``, a link leads one of them out of the label folder.
        """
        names = {kind: f"{KINDS[kind].folder}{task.camera.key}{KINDS[kind].suffix}" for kind in self.kinds}
        return {kind: inside(self.root, name, task.path, write=write) for kind, name in names.items()}

    def _keys(self, batch: Sequence[ImageTask]) -> list[str]:
        return [task.camera.key for task in batch]

    def finished(self) -> dict[str, Any] | None:
        """The unit's record if it is whole (its images those of now, their files there), else None."""
        record = _read_record(self.record_path)
        expected = [key for batch in self.batches for key in self._keys(batch)]
        tasks = [task for batch in self.batches for task in batch]
        if record is None or record.get("images") != expected or not self._unchanged(tasks, record):
            return None
        if not all(f.exists() for batch in self.batches for task in batch for f in self.files(task).values()):
            return None
        shutil.rmtree(self._parts, ignore_errors=True)  # left where the process died between the two
        return record

    def _unchanged(self, tasks: Sequence[ImageTask], record: dict[str, Any], first: int = 0) -> bool:
        """Whether images are as long as they were when they were labelled, and imported maps' files what they were: another
        recording may have files of their names, and label maps may have been corrected.

        A file that is not there any more, or of which an older olivine noted nothing, is taken for the same.

        Args:
            first: position in the record of the first one.
        """
        sizes, sources = (record.get(column, [])[first:] for column in ("image_bytes", "sources"))
        return all(not before or _size(task.path) in (0, before) for task, before in zip(tasks, sizes)) and all(
            is_same(path, note)
            for task, noted in zip(tasks, sources)
            for path, note in zip(self.sources(task.camera), noted)
        )

    def differs(self, task: ImageTask, position: int, record: dict[str, Any]) -> list[str]:
        """Why an image's maps are not those of the unit's record: a line for each file with other bytes.

        Args:
            position: of the image in the record.
        """
        lines = []
        for kind, file in self.files(task).items():
            expected = record.get(KINDS[kind].column, [])[position : position + 1]  # an older olivine noted no segments
            try:
                if expected and sha256_file(file) != expected[0]:
                    lines.append(f"{file}: has other bytes than its record says; delete it and run labelgen again")
            except OSError as error:
                lines.append(f"{file}: cannot be read ({error.strerror}); delete it and run labelgen again")
        return lines

    def kept(self) -> dict[str, Kept]:
        """By key, the images whose maps stay where the record is of another list of images (the data set's frames have
        changed): those that it has, unchanged, with maps that are what it says. Else none."""
        record = _read_record(self.record_path)
        tasks = [task for batch in self.batches for task in batch]
        if record is None or record["images"] == self._keys(tasks):
            return {}
        if any(len(record.get(KINDS[kind].column, [])) != len(record["images"]) for kind in self.kinds):
            return {}
        position = {key: n for n, key in enumerate(record["images"])}
        batches, rows = _batches_of(record), _rows_of(record)
        found: dict[str, Kept] = {}
        for task in tasks:
            at = position.get(task.camera.key)
            if at is None or not self._unchanged([task], record, at):
                continue
            if self.differs(task, at, record):
                continue
            digests = {kind: record[KINDS[kind].column][at] for kind in self.kinds}
            try:
                label = read_values(self.files(task)["label"], "", task.camera, digests["label"])
            except OlivineError:  # of another size
                continue
            batch, notes = batches[at]
            found[task.camera.key] = Kept(digests, _count_values(label, 256), rows[at], batch, notes)
        return found

    def finished_batch(self, number: int) -> dict[str, Any] | None:
        """The record of a finished batch, None where it is to be done (whole)."""
        record = _read_record(self._part_path(number))
        batch = self.batches[number]
        if record is None or record.get("images") != self._keys(batch) or not self._unchanged(batch, record):
            return None
        return record if all(f.exists() for task in batch for f in self.files(task).values()) else None

    def write_batch(self, number: int, result: BatchMaps, vocabulary: Vocabulary) -> dict[str, Any] | None:
        """Write a batch's maps, then its record; without the record where an image failed.

        Raises:
            OlivineError: the disk is full or cannot be written.
        """
        batch = self.batches[number]
        record: dict[str, Any] = {"images": self._keys(batch), "sha256": [], "detections": {c: [] for c in _COLUMNS}}
        counts = np.zeros(len(vocabulary.classes) + 1, np.int64)
        whole = True
        for position, (task, labelled) in enumerate(zip(batch, result.images)):
            if isinstance(labelled, Kept):
                for kind in self.kinds:
                    record.setdefault(KINDS[kind].column, []).append(labelled.digests[kind])
                counts += labelled.pixels[: len(counts)]
                rows = {**labelled.detections, "image": [position] * len(labelled.detections["image"])}
                for column in _COLUMNS:
                    record["detections"][column] += rows[column]
                continue
            if not isinstance(labelled, Labelled):
                whole = False
                continue
            files, encoded = self.files(task, write=True), encode(labelled, vocabulary)
            for kind in self.kinds:
                write_bytes(files[kind], encoded[kind])
                record.setdefault(KINDS[kind].column, []).append(hashlib.sha256(encoded[kind]).hexdigest())
            counts += _count_values(labelled.label, len(counts))
            table = record["detections"]
            for found in labelled.detections:
                table["image"].append(position)
                table["box"].append([round(v, 3) for v in found.box])
                table["score"].append(round(found.score, 6))
                table["text_score"].append(round(found.text_score, 6))
                table["class"].append(found.value)
                table["area"].append(found.area)
        record["image_bytes"] = [_size(task.path) for task in batch]
        if any(sources := [[note_of(path) for path in self.sources(task.camera)] for task in batch]):
            record["sources"] = sources
        record["pixels"] = counts.tolist()
        record["notes"] = [*result.notes, *_notes_of(record["images"], result)]
        if not whole:
            return None
        write_record(self._part_path(number), record)
        return record

    def finish(self, records: Sequence[dict[str, Any]]) -> None:
        """Write the unit's record from those of all its batches, then remove them."""
        merged: dict[str, Any] = {
            "scene": self.scene,
            "images": _joined(records, "images"),
            "sha256": _joined(records, "sha256"),
            "batches": [len(record["images"]) for record in records],
            "image_bytes": _joined(records, "image_bytes"),
            "detections": {c: [] for c in _COLUMNS},
            "pixels": np.sum([record["pixels"] for record in records], axis=0).tolist(),
            **{KINDS[kind].column: _joined(records, KINDS[kind].column) for kind in self.kinds[1:]},
            **({"sources": _sources_of(records)} if any("sources" in record for record in records) else {}),
            "notes": {str(i): record["notes"] for i, record in enumerate(records) if record["notes"]},
        }
        offset = 0
        for record in records:
            for column in _COLUMNS:
                values = record["detections"][column]
                merged["detections"][column] += [v + offset for v in values] if column == "image" else values
            offset += len(record["images"])
        write_record(self.record_path, merged)
        shutil.rmtree(self._parts, ignore_errors=True)

    def discard(self) -> None:
        """Remove the unit's records and maps."""
        self.record_path.unlink(missing_ok=True)
        shutil.rmtree(self._parts, ignore_errors=True)
        for batch in self.batches:
            for task in batch:
                for file in replace(self, kinds=tuple(KINDS)).files(task, write=True).values():
                    file.unlink(missing_ok=True)


def _batches_of(record: dict[str, Any]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Of each image of a unit's record: the keys of its batch, and the batch's notes."""
    found: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    for number, count in enumerate(record.get("batches", [1] * len(record["images"]))):
        batch = tuple(record["images"][len(found) : len(found) + count])
        found += [(batch, tuple(record["notes"].get(str(number), ())))] * count
    return found


def _rows_of(record: dict[str, Any]) -> list[dict[str, list[Any]]]:
    """Of each image of a unit's record: its rows of the detections."""
    table = record["detections"]
    found: list[dict[str, list[Any]]] = [{column: [] for column in _COLUMNS} for _ in record["images"]]
    for row, at in enumerate(table["image"]):
        for column in _COLUMNS:
            found[at][column].append(table[column][row])
    return found


def _notes_of(keys: Sequence[str], result: BatchMaps) -> list[str]:
    """What is to be noted of a batch with maps that were kept: those of the batch that it was, or that it was another one."""
    kept = [image for image in result.images if isinstance(image, Kept)]
    if not kept:
        return []
    if len(kept) == len(keys) and all(image.batch == tuple(keys) for image in kept):
        return list(kept[0].notes)
    return [f"{len(kept)} of {len(keys)} maps were kept from before the list of images changed"]


def _count_values(label: NDArray[np.uint8], values: int) -> NDArray[np.int64]:
    """How often each value is in a label map, int64 [values]; a few rows at a time, for np.bincount takes 8 bytes a pixel."""
    counts = np.zeros(values, np.int64)
    for rows in np.array_split(label, max(1, label.size >> 22)):
        counts += np.bincount(rows.ravel(), minlength=values)
    return counts


def _size(image: Path) -> int:
    """In bytes; 0 where it cannot be read."""
    try:
        return image.stat().st_size
    except OSError:
        return 0


def _joined(records: Sequence[dict[str, Any]], column: str) -> list[Any]:
    return [value for record in records for value in record.get(column, [])]


def _sources_of(records: Sequence[dict[str, Any]]) -> list[Any]:
    """What is noted of each image's files; nothing where an older olivine did the batch."""
    return [noted for record in records for noted in record.get("sources", [[]] * len(record["images"]))]


def _read_record(path: Path) -> dict[str, Any] | None:
    """A record, None where there is none or it cannot be read (it is then made again)."""
    try:
        return read_record(path)
    except OlivineError:
        return None
