"""Make a sample of finished batches again and compare them with what is stored, byte by byte."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..common import Failure, OlivineError, PathLike, track
from ..readers.index import FrameIndex, Scene
from .images import read_image
from .labeler import Labelled, choose_labeler
from .run import adopt_settings, make_manifest, manifest_difference
from .settings import LabelSettings
from .store import MANIFEST, read_label_manifest
from .units import Unit, encode, kinds_of
from .work import LabelWork


@dataclass
class VerifySummary:
    """What :func:`verify_labels` found.

    Attributes:
        labels: the label folder.
        batches: batches that were made again, of ``finished`` ones.
        images: images that were compared.
        exempt: batches of the sample that a lack of memory had split, or with maps kept from another batch, which are not
            compared.
        failures: images whose stored map has other bytes.
        notes: package versions that changed since; they are the likely cause of differences.
        seconds: wall-clock time.
    """

    labels: Path
    batches: int = 0
    finished: int = 0
    images: int = 0
    exempt: int = 0
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def verify_labels(
    index: FrameIndex, labels: PathLike, settings: LabelSettings, *, batches: int = 8, seed: int = 0
) -> VerifySummary:
    """Recompute a random sample of the finished batches and compare the maps' bytes.

    Args:
        labels: a label folder.
        settings: those that it was made with; another setting is an error.
        batches: how many to make again, from different scenes while there are any.
        seed: of the sample.

    Raises:
        OlivineError: no such store, made with other settings, or nothing in it is finished.
    """
    start = time.monotonic()
    labels = Path(labels)
    path = labels / MANIFEST
    old = read_label_manifest(path, "run olivine labelgen first")
    name, _ = choose_labeler(settings.labeler, index.root)
    settings = adopt_settings(settings, old)
    labeler, vocabulary = LabelWork(labels, name, settings, index.root).labeler()
    difference = manifest_difference(old, make_manifest(index.dataset, index.version, labeler, settings, vocabulary))
    if difference is not None:
        raise OlivineError(
            f"the labels were made with other settings: {difference}",
            where=path,
            remedy="verify with the same settings",
        )
    summary = VerifySummary(labels)

    def finished(scene: Scene) -> Unit | None:
        unit = Unit.of_scene(labels, scene, labeler.batch_size, kinds_of(settings))
        return unit if unit.finished() is not None else None

    generator = np.random.default_rng(seed)
    units = {scene.name: unit for scene in index.scenes if (unit := finished(scene)) is not None}
    if not units:
        raise OlivineError("no scene is finished", where=labels, remedy="run olivine labelgen first")
    summary.finished = sum(len(unit.batches) for unit in units.values())
    orders = {name: list(generator.permutation(len(unit.batches))) for name, unit in units.items()}
    names = list(generator.permutation(list(units)))

    def sample() -> Iterator[tuple[Unit, int]]:
        for depth in range(max(len(order) for order in orders.values())):
            for name in names:
                if depth < len(orders[name]):
                    yield units[name], int(orders[name][depth])

    chosen = [pair for pair, _ in zip(sample(), range(batches))]
    labeler.prepare()
    for unit, number in track(chosen, "verify", unit="batch"):
        record = unit.finished() or {}
        if record.get("notes", {}).get(str(number)):
            summary.exempt += 1
            continue
        batch = unit.batches[number]
        images = [read_image(task) for task in batch] if labeler.needs_image else []
        result = labeler.label(batch, images)
        if result.notes:
            summary.exempt += 1
            continue
        summary.batches += 1
        for task, labelled in zip(batch, result.images):
            summary.images += 1
            if not isinstance(labelled, Labelled):
                summary.failures.append(Failure(task.camera.key, str(labelled)))
                continue
            again = encode(labelled, vocabulary)
            reasons = unit.differs(task, record["images"].index(task.camera.key), record)
            for kind, file in unit.files(task).items():
                if not reasons and file.read_bytes() != again[kind]:
                    reasons.append(f"{file}: has other bytes than the same settings give now")
            summary.failures += [Failure(task.camera.key, reason) for reason in reasons]
    summary.seconds = time.monotonic() - start
    return summary
