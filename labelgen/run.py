"""Label maps for every camera image of a data set: units, batches, resuming, failures."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import Failure, OlivineError, package_versions, read_json, remove_leftovers, track, write_json
from ..readers.frame import FrameIndex, Scene
from .images import read_image
from .labeler import BatchResult, ImageTask, Labeler, choose_labeler, make_labeler
from .prompts import Vocabulary, load_vocabulary
from .segments import add_segments
from .settings import LabelSettings
from .store import MANIFEST, SCHEMA
from .units import Unit


@dataclass
class LabelSummary:
    """What :func:`generate_labels` did.

    Attributes:
        labels: the label folder.
        labeler: the labeler that was used, and why it was chosen.
        reason: why this labeler.
        units: units of this part; ``units_kept`` of them were finished before.
        images: images labelled now; ``images_kept`` were finished before.
        detections: objects and regions found, in all finished units of this part.
        pixels: share of the pixels for each class (``no label`` first), in all finished units of this part.
        failures: images that could not be labelled, and why.
        notes: what was out of the ordinary (other package versions, batches split for memory).
        seconds: wall-clock time.
    """

    labels: Path
    labeler: str
    reason: str
    units: int = 0
    units_kept: int = 0
    images: int = 0
    images_kept: int = 0
    detections: int = 0
    pixels: dict[str, float] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def make_manifest(
    index: FrameIndex, labeler: Labeler, settings: LabelSettings, vocabulary: Vocabulary
) -> dict[str, Any]:
    """What decides the label maps' values, and what they were made with; no paths, no times."""
    return {
        "schema": SCHEMA,
        "data": {"dataset": index.dataset, "version": index.version},
        "prompts": vocabulary.to_plain(),
        "classes": list(vocabulary.classes),
        "labeler": labeler.name,
        "settings": {**labeler.resolved(), "batch_size": labeler.batch_size, "segments": settings.segments},
        "weights": labeler.weights(),
        "packages": package_versions(("olivine", *labeler.packages)),
    }


def manifest_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str | None:
    """The first key under which two manifests differ, package versions aside."""
    for key in sorted(set(old) | set(new)):
        if key == "packages" and not prefix:
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if (inner := manifest_difference(a, b, f"{prefix}{key}.")) is not None:
                return inner
        elif a != b:
            short = [text if len(text := repr(v)) <= 60 else text[:57] + "..." for v in (a, b)]
            return f"{prefix}{key} was {short[0]} and is now {short[1]}"
    return None


def adopt_settings(settings: LabelSettings, manifest: dict[str, Any] | None) -> LabelSettings:
    """Let the store decide what ``auto`` means, so that a run can go on on another machine."""
    made_with = (manifest or {}).get("settings", {})
    if settings.batch_size == "auto" and isinstance(made_with.get("batch_size"), int):
        settings = replace(settings, batch_size=made_with["batch_size"])
    if settings.precision == "auto" and "precision" in made_with:
        settings = replace(settings, precision=made_with["precision"])
    return settings


def _check_part(part: tuple[int, int]) -> None:
    position, count = part
    if count < 1 or not 0 <= position < count:
        raise OlivineError(f"--shard {position}/{count} is not a part", remedy="give i/n with 0 <= i < n")


class _Run:
    """One call of :func:`generate_labels`, after the checks."""

    def __init__(self, labels: Path, labeler: Labeler, vocabulary: Vocabulary, segments: bool, summary: LabelSummary):
        self.labels, self.labeler, self.vocabulary = labels, labeler, vocabulary
        self.segments, self.summary = segments, summary
        self.prepared = False
        self.pixels = np.zeros(len(vocabulary.classes) + 1, np.int64)

    def _count(self, record: dict[str, Any]) -> None:
        self.summary.detections += len(record["detections"]["class"])
        self.pixels += np.array(record["pixels"], np.int64)

    def _read(self, batch: list[ImageTask]) -> list[NDArray[np.uint8] | OlivineError]:
        images: list[NDArray[np.uint8] | OlivineError] = []
        for task in batch:
            try:
                images.append(read_image(task))
            except OlivineError as error:  # noqa: PERF203  one bad image must not stop the others
                images.append(error)
        return images

    def _label(self, batch: list[ImageTask], images: list[NDArray[np.uint8] | OlivineError] | None) -> BatchResult:
        """Label the images that could be read; the others keep their errors."""
        if images is None:
            return self.labeler.label(batch, [])
        good = [(task, image) for task, image in zip(batch, images) if not isinstance(image, OlivineError)]
        found = self.labeler.label([t for t, _ in good], [i for _, i in good]) if good else BatchResult(())
        labelled = iter(found.images)
        return BatchResult(tuple(i if isinstance(i, OlivineError) else next(labelled) for i in images), found.notes)

    def _results(
        self, unit: Unit, numbers: list[int], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, BatchResult, Any]]:
        """Yield (batch number, result, its record or None where an image failed), in order.

        Reading and writing overlap the labeling. A few batches are in flight at most, so
        memory stays bounded however long the unit is.
        """
        if not self.labeler.needs_image:
            # Nothing but files and NumPy: whole batches side by side.
            def whole(number: int) -> tuple[int, BatchResult, Any]:
                result = self._label(unit.batches[number], None)
                return number, result, unit.write_batch(number, result, self.vocabulary)

            running: deque[Future[tuple[int, BatchResult, Any]]] = deque()
            for number in numbers:
                running.append(pool.submit(whole, number))
                if len(running) >= 4:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
            return
        reading = deque((n, pool.submit(self._read, unit.batches[n])) for n in numbers[:2])
        waiting = deque(numbers[2:])
        writing: deque[tuple[int, BatchResult, Future[Any]]] = deque()
        while reading:
            number, images = reading.popleft()
            pixels = images.result()
            if waiting:
                following = waiting.popleft()
                reading.append((following, pool.submit(self._read, unit.batches[following])))
            result = self._label(unit.batches[number], pixels)
            writing.append((number, result, pool.submit(unit.write_batch, number, result, self.vocabulary)))
            if len(writing) >= 2:
                done, earlier, record = writing.popleft()
                yield done, earlier, record.result()
        for done, earlier, record in writing:
            yield done, earlier, record.result()

    def unit(self, unit: Unit, pool: ThreadPoolExecutor) -> Iterator[int]:
        """Do what is left of a unit; yield the number of images of each batch as it is finished."""
        if (record := unit.finished(self.segments)) is not None:
            self.summary.units_kept += 1
            self.summary.images_kept += unit.image_count
            self._count(record)
            yield unit.image_count
            return
        records = {n: r for n in range(len(unit.batches)) if (r := unit.finished_batch(n, self.segments)) is not None}
        kept = sum(len(unit.batches[n]) for n in records)
        self.summary.images_kept += kept
        yield kept
        left = [n for n in range(len(unit.batches)) if n not in records]
        if left and not self.prepared:
            self.labeler.prepare()
            self.prepared = True
        for number, result, record in self._results(unit, left, pool):
            for task, image in zip(unit.batches[number], result.images):
                if isinstance(image, OlivineError):
                    self.summary.failures.append(Failure(f"{unit.scene} {task.camera.key}", str(image)))
                else:
                    self.summary.images += 1
            self.summary.notes += [f"{unit.scene} batch {number}: {note}" for note in result.notes]
            if record is not None:
                records[number] = record
            yield len(unit.batches[number])
        if len(records) == len(unit.batches):
            ordered = [records[n] for n in range(len(unit.batches))]
            unit.finish(ordered)
            for record in ordered:
                self._count(record)

    def run(self, scenes: list[Scene], overwrite: bool) -> None:
        """Do the scenes one after the other."""
        workers = max(2, min(4, os.cpu_count() or 2))
        pool = ThreadPoolExecutor(workers, thread_name_prefix="labelgen")

        def images() -> Iterator[None]:
            for scene in scenes:
                unit = Unit.of_scene(self.labels, scene, self.labeler.batch_size)
                if overwrite:
                    unit.discard()
                for count in self.unit(unit, pool):
                    yield from [None] * count

        try:
            total = sum(scene.frame_count for scene in scenes)
            cameras = len(scenes[0].frames()[0].cameras) if scenes else 0
            for _ in track(images(), "labels", total=total * cameras, unit="image"):
                pass
        finally:
            pool.shutdown(wait=True)  # a batch that is labelled gets written, also on Ctrl-C
        whole = max(int(self.pixels.sum()), 1)
        names = ("no label", *self.vocabulary.classes)
        self.summary.pixels = {name: int(n) / whole for name, n in zip(names, self.pixels)}


def _settle_manifest(
    labels: Path, old: dict[str, Any] | None, new: dict[str, Any], index: FrameIndex, overwrite: bool
) -> tuple[bool, list[str]]:
    """Write the manifest, or refuse.

    Returns:
        whether this part's finished units are to be discarded, and notes.
    """
    path = labels / MANIFEST
    if old is None:
        first = next(index.frames(), None)
        taken = [labels / f"{c.key}.png" for c in (first.cameras if first is not None else ())]
        if not overwrite and any(file.exists() for file in taken):
            raise OlivineError(
                "the folder holds label maps but no manifest, so somebody else made them",
                where=labels,
                remedy="choose another --labels folder, or import them with --labeler import --camseg",
            )
        write_json(path, new)
        return False, []
    difference = manifest_difference(old, new)
    if difference is None:
        changed = [
            f"{name} {version} was used before, {new['packages'].get(name)} now"
            for name, version in old.get("packages", {}).items()
            if new["packages"].get(name) != version
        ]
        return overwrite, changed
    begun = any((labels / "units").glob("*"))  # a store that failed before its first batch binds nobody
    if begun and not overwrite:
        raise OlivineError(
            f"the labels here were made with other settings: {difference}",
            where=path,
            remedy="choose another --labels folder, or replace them with --overwrite",
        )
    # Every unit goes, also those of other parts: a map of the old settings must not
    # be taken for one of the new.
    for scene in index.scenes:
        Unit.of_scene(labels, scene, 1).discard()
    write_json(path, new)
    return False, []


def generate_labels(
    index: FrameIndex,
    labels: Path,
    settings: LabelSettings,
    *,
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
) -> LabelSummary:
    """Make a label map for every camera image of a data set.

    Whatever is finished is kept: a second run does what is missing. Images that cannot be
    labelled are listed in the summary, the others get done.

    Args:
        index: the data set's frames.
        labels: the label folder, made where absent.
        part: (i, n): the i-th of n parts of the scenes, 0 <= i < n.
        overwrite: make the labels again, also where the folder's were made with other settings.

    Raises:
        OlivineError: bad settings, missing weights, a store made with other settings, a full disk.
    """
    start = time.monotonic()
    labels = Path(labels)
    _check_part(part)
    if settings.camseg is not None and settings.camseg.resolve() == labels.resolve():
        raise OlivineError("is both --camseg and --labels", where=labels, remedy="choose another --labels folder")
    vocabulary = load_vocabulary(settings.prompts)
    name, reason = choose_labeler(settings.labeler, index.root)
    path = labels / MANIFEST
    old = read_json(path, "replace the labels with --overwrite") if path.exists() else None
    if not overwrite:
        settings = adopt_settings(settings, old if (old or {}).get("labeler") == name else None)
    labeler = add_segments(make_labeler(name, settings, vocabulary, index.root), settings)
    new = make_manifest(index, labeler, settings, vocabulary)
    discard, notes = _settle_manifest(labels, old, new, index, overwrite)
    for folder, _, _ in os.walk(labels):
        remove_leftovers(folder)
    summary = LabelSummary(labels, name, reason, notes=notes)
    scenes = list(index.scenes)[part[0] :: part[1]]
    summary.units = len(scenes)
    _Run(labels, labeler, vocabulary, settings.segments != "none", summary).run(scenes, discard)
    summary.seconds = time.monotonic() - start
    return summary
