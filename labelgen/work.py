"""What a worker of labelgen does: holds one labeler, and labels scenes batch by batch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import Failure, OlivineError
from ..readers.index import Scene
from .images import read_image
from .labeler import BatchResult, ImageTask, Labeler, make_labeler
from .prompts import Vocabulary, load_vocabulary
from .segments import add_segments
from .settings import LabelSettings
from .sources import source_files
from .units import BatchMaps, Kept, Unit, kinds_of
from .views import seen_as

_Given = NDArray[np.uint8] | OlivineError | Kept | None


@dataclass
class SceneResult:
    """What became of a scene.

    Attributes:
        whole: whether it was finished before.
        images, images_kept: labelled now, and before.
        detections, pixels: of the finished scene: objects found, and pixels of each value; 0 and empty where it is not.
        failures, notes: images that could not be labelled, and what was out of the ordinary.
    """

    whole: bool = False
    images: int = 0
    images_kept: int = 0
    detections: int = 0
    pixels: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LabelWork:
    """Everything that a worker is made from; small and picklable.

    Attributes:
        labels: the label folder.
        name: of the labeler, not ``auto``.
        settings: as the manifest has them.
        root: the data set's folder.
        overwrite: make finished scenes again.
    """

    labels: Path
    name: str
    settings: LabelSettings
    root: Path
    overwrite: bool = False

    def labeler(self) -> tuple[Labeler, Vocabulary]:
        """The labeler, its inputs checked, and the vocabulary."""
        vocabulary = load_vocabulary(self.settings.prompts)
        labeler = make_labeler(self.name, self.settings, vocabulary, self.root, self.labels)
        return seen_as(add_segments(labeler, self.settings), self.settings), vocabulary

    def worker(self) -> SceneLabeler:
        """What does the scenes."""
        return SceneLabeler(self, *self.labeler())


class SceneLabeler:
    """Labels one scene after the other; the model is loaded when the first one has something left to do."""

    def __init__(self, work: LabelWork, labeler: Labeler, vocabulary: Vocabulary) -> None:
        self._work, self._labeler, self._vocabulary = work, labeler, vocabulary
        self._prepared = False

    def __call__(self, scene: Scene, step: Callable[[int], None]) -> SceneResult:
        """Do what is left of a scene; ``step`` is told of the images of each batch."""
        settings = self._work.settings
        of_settings = kinds_of(settings), source_files(settings)
        unit = Unit.of_scene(self._work.labels, scene, self._labeler.batch_size, *of_settings)
        if self._work.overwrite:
            unit.discard()
        result = SceneResult()
        if (record := unit.finished()) is not None:
            result.whole, result.images_kept = True, unit.image_count
            _count(result, [record])
            return result
        count = len(unit.batches)
        records = {n: r for n in range(count) if (r := unit.finished_batch(n)) is not None}
        result.images_kept = sum(len(unit.batches[n]) for n in records)
        step(result.images_kept)
        left = [n for n in range(count) if n not in records]
        kept = unit.kept() if left else {}
        if not self._prepared and any(task.camera.key not in kept for n in left for task in unit.batches[n]):
            self._labeler.prepare()
            self._prepared = True
        # On the way out of this block, also by Ctrl-C, a batch that is labelled gets written.
        with ThreadPoolExecutor(max(2, min(4, os.cpu_count() or 2)), thread_name_prefix="labelgen") as pool:
            for number, labelled, record in self._results(unit, left, kept, pool):
                for task, image in zip(unit.batches[number], labelled.images):
                    if isinstance(image, OlivineError):
                        result.failures.append(Failure(f"{unit.scene} {task.camera.key}", str(image)))
                    elif isinstance(image, Kept):
                        result.images_kept += 1
                    else:
                        result.images += 1
                result.notes += [f"{unit.scene} batch {number}: {note}" for note in labelled.notes]
                if record is not None:
                    records[number] = record
                step(len(unit.batches[number]))
        if len(records) == count:
            ordered = [records[n] for n in range(count)]
            unit.finish(ordered)
            _count(result, ordered)
        return result

    def _read(self, batch: list[ImageTask], kept: dict[str, Kept]) -> list[_Given]:
        """Of each image what is kept of it, else its pixels (None where the labeler wants none) or why it cannot be read."""
        images: list[_Given] = []
        for task in batch:
            if task.camera.key in kept or not self._labeler.needs_image:
                images.append(kept.get(task.camera.key))
                continue
            try:
                images.append(read_image(task))
            except OlivineError as error:
                images.append(error)
        return images

    def _label(self, batch: list[ImageTask], images: list[_Given]) -> BatchMaps:
        """Label the images that are not kept and could be read; the others stay what they are."""
        good = [(task, image) for task, image in zip(batch, images) if not isinstance(image, (OlivineError, Kept))]
        pixels = [image for _, image in good if image is not None]
        found = self._labeler.label([task for task, _ in good], pixels) if good else BatchResult(())
        labelled = iter(found.images)
        done = (image if isinstance(image, (OlivineError, Kept)) else next(labelled) for image in images)
        return BatchMaps(tuple(done), found.notes)

    def _results(
        self, unit: Unit, numbers: list[int], kept: dict[str, Kept], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, BatchMaps, Any]]:
        """Yield (batch number, result, its record or None where an image failed), in order.

        Reading and writing overlap the labeling. A few batches are in flight at most, so
        memory stays bounded however long the unit is.
        """
        if not self._labeler.needs_image:
            # Nothing but files and NumPy: whole batches side by side.
            def whole(number: int) -> tuple[int, BatchMaps, Any]:
                result = self._label(unit.batches[number], self._read(unit.batches[number], kept))
                return number, result, unit.write_batch(number, result, self._vocabulary)

            running: deque[Future[tuple[int, BatchMaps, Any]]] = deque()
            for number in numbers:
                running.append(pool.submit(whole, number))
                if len(running) >= 4:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
            return
        reading = deque((n, pool.submit(self._read, unit.batches[n], kept)) for n in numbers[:2])
        waiting = deque(numbers[2:])
        writing: deque[tuple[int, BatchMaps, Future[Any]]] = deque()
        while reading:
            number, images = reading.popleft()
            pixels = images.result()
            if waiting:
                following = waiting.popleft()
                reading.append((following, pool.submit(self._read, unit.batches[following], kept)))
            result = self._label(unit.batches[number], pixels)
            writing.append((number, result, pool.submit(unit.write_batch, number, result, self._vocabulary)))
            if len(writing) >= 2:
                done, earlier, record = writing.popleft()
                yield done, earlier, record.result()
        for done, earlier, record in writing:
            yield done, earlier, record.result()


def _count(result: SceneResult, records: list[dict[str, Any]]) -> None:
    result.detections = sum(len(record["detections"]["class"]) for record in records)
    result.pixels = np.sum([record["pixels"] for record in records], axis=0, dtype=np.int64).tolist()
