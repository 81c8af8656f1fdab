"""Label maps for every camera image of a data set: units, batches, resuming, failures."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cluster.journal import Account, Journal, logs_of
from ..cluster.local import Local
from ..cluster.plan import Plan
from ..cluster.work import Executor, Job, WorkUnit, execute
from ..common import (
    Failure,
    OlivineError,
    package_versions,
    remove_leftovers,
    track,
)
from ..common.locks import locked
from ..common.settings import differences
from ..readers.index import FrameIndex, Scene
from .import_labels import shipped_class_map
from .labeler import Labeler, choose_labeler
from .prompts import Vocabulary, load_vocabulary, shipped_vocabulary
from .settings import LabelSettings
from .sources import FilesOf, source_files
from .store import MANIFEST, SCHEMA, read_label_manifest, write_label_manifest
from .text_table import TextTable, write_text_table
from .units import Unit, kinds_in, kinds_of
from .work import LabelWork, SceneResult

PACKAGES = ("olivine", "numpy", "pillow")  # what every label map's bytes depend on; a labeler adds its own


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
    dataset: str, version: str, labeler: Labeler, settings: LabelSettings, vocabulary: Vocabulary
) -> dict[str, Any]:
    """What decides the label maps' values, and what they were made with; no paths, no times."""
    return {
        "schema": SCHEMA,
        "data": {"dataset": dataset, "version": version},
        "prompts": vocabulary.to_plain(),
        "classes": list(vocabulary.classes),
        "labeler": labeler.name,
        "settings": {**labeler.resolved(), "batch_size": labeler.batch_size, "segments": settings.segments},
        "weights": labeler.weights(),
        "packages": package_versions(("olivine", *labeler.packages)),
    }


def manifest_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first key under which two manifests differ, package versions aside."""
    for key, a, b in differences({**old, "packages": None}, {**new, "packages": None}):
        short = [text if len(text := repr(v)) <= 60 else text[:57] + "..." for v in (a, b)]
        return f"{key} was {short[0]} and is now {short[1]}"
    return None


def adopt_settings(settings: LabelSettings, manifest: dict[str, Any] | None) -> LabelSettings:
    """Let the store decide what ``auto``, and no number of boxes, means, so that a run can go on on another machine."""
    made_with = (manifest or {}).get("settings", {})
    if settings.batch_size == "auto" and isinstance(made_with.get("batch_size"), int):
        settings = replace(settings, batch_size=made_with["batch_size"])
    if settings.precision == "auto" and "precision" in made_with:
        settings = replace(settings, precision=made_with["precision"])
    if settings.boxes_per_call == 0 and isinstance(made_with.get("boxes_per_call"), int):
        settings = replace(settings, boxes_per_call=made_with["boxes_per_call"])
    return settings


def _check_part(part: tuple[int, int]) -> None:
    position, count = part
    if count < 1 or not 0 <= position < count:
        raise OlivineError(f"--part {position}/{count} is not a part", remedy="give i/n with 0 <= i < n")


def _manifest_there(path: Path, overwrite: bool) -> dict[str, Any] | None:
    """The manifest as it is now, None where there is none; a damaged one that may be replaced is like no other."""
    try:
        return read_label_manifest(path, "replace the labels with --overwrite") if path.exists() else None
    except OlivineError:
        if not overwrite:
            raise
        return {}


def _settle_manifest(
    labels: Path,
    old: dict[str, Any] | None,
    new: dict[str, Any],
    settings: LabelSettings,
    index: FrameIndex,
    overwrite: bool,
) -> tuple[dict[str, Any], bool, list[str]]:
    """Write the manifest, or refuse. One process at a time: see :func:`_manifest_lock`.

    Args:
        old: as it was when this process began. Another part may have written one since: that one binds, also where
            nothing is finished yet, and says what ``auto`` means.
        new: what this process would write, for ``settings``.

    Returns:
        the manifest that holds, whether this part's finished units are to be discarded, and notes.
    """
    path = labels / MANIFEST
    there = _manifest_there(path, overwrite)
    appeared = bool(there) and there != old
    old = there
    if old is None:
        first = next(index.frames(), None)
        taken = [labels / f"{c.key}.png" for c in (first.cameras if first is not None else ())]
        if not overwrite and any(file.exists() for file in taken):
            raise OlivineError(
                "the folder holds label maps but no manifest, so somebody else made them",
                where=labels,
                remedy="choose another --out folder, or import them with --labeler import --camseg",
            )
        write_label_manifest(path, new)
        return new, False, []
    if appeared and old.get("labeler") == new["labeler"]:
        theirs = adopt_settings(settings, old)
        adopted = {n: getattr(theirs, n) for n in ("batch_size", "precision") if getattr(settings, n) == "auto"}
        new = {**new, "settings": {n: adopted.get(n, value) for n, value in new["settings"].items()}}
    difference = manifest_difference(old, new)
    if difference is None:
        changed = [
            f"{name} {version} was used before, {new['packages'].get(name)} now"
            for name, version in old.get("packages", {}).items()
            if new["packages"].get(name) != version
        ]
        return new, overwrite and not appeared, changed
    begun = any((labels / "units").glob("*"))  # a store that failed before its first batch binds nobody
    if appeared or (begun and not overwrite):
        raise OlivineError(
            f"the labels here were made with other settings: {difference}",
            where=path,
            remedy="choose another --out folder, or replace them with --overwrite",
        )
    # Every unit goes, also those of other parts and beyond a limit: a map of the old settings must not
    # be taken for one of the new.
    for scene in index.scenes:
        Unit.of_scene(labels, scene, 1).discard()
    write_label_manifest(path, new)
    return new, False, []


def _manifest_lock(labels: Path) -> AbstractContextManager[None]:
    """Held while the manifest is settled. The file lies beside the folder, which is the same byte for byte on any machine."""
    labels.parent.mkdir(parents=True, exist_ok=True)
    lock = labels.with_name(f".{labels.name}.manifest.lock")
    return locked(lock, wait_for="the manifest, which another process settles")


def generate_labels(
    index: FrameIndex,
    labels: Path,
    settings: LabelSettings,
    *,
    part: tuple[int, int] = (0, 1),
    limit: int = 0,
    overwrite: bool = False,
    executor: Executor | None = None,
    logs: Path | None = None,
    merge_only: bool = False,
) -> LabelSummary:
    """Make a label map for every camera image of a data set.

    Whatever is finished is kept: a second run does what is missing. Images that cannot be
    labelled are listed in the summary, the others get done.

    Args:
        index: the data set's frames.
        labels: the label folder, made where absent.
        part: (i, n): the i-th of n parts of the scenes, 0 <= i < n.
        limit: only the first so many scenes, to try; 0: all.
        overwrite: make the labels again, also where the folder's were made with other settings.
        executor: where scenes are done; in this process without one.
        logs: the folder for the job's account, see :mod:`olivine.cluster.journal`.
        merge_only: label nothing; compare what other runs made with its records, and name what is missing.

    Raises:
        OlivineError: bad settings, missing weights, a store made with other settings, a full disk.
    """
    start = time.monotonic()
    labels, settings, executor = Path(labels).absolute(), _elsewhere(settings), executor or Local()
    _check_part(part)
    for option, folder in (
        ("--camseg", settings.camseg),
        ("--scores-from", settings.scores_from),
        ("--regions", settings.regions),
    ):
        if folder is not None and folder.resolve() == labels.resolve():
            raise OlivineError(f"is both {option} and --out", where=labels, remedy="choose another --out folder")
    vocabulary = load_vocabulary(settings.prompts)
    name, reason = choose_labeler(settings.labeler, index.root)
    path = labels / MANIFEST
    old = _manifest_there(path, overwrite)
    if merge_only and old is None:
        raise OlivineError("no manifest, so no labels to merge", where=path, remedy="run olivine labelgen first")
    if not overwrite:
        settings = adopt_settings(settings, old if (old or {}).get("labeler") == name else None)
    planned = index.scenes[: limit or None]
    scenes = list(planned[part[0] :: part[1]])
    summary = LabelSummary(labels, name, reason, units=len(scenes))
    if merge_only:
        check_labels(labels, scenes, kinds_in(old or {}), source_files(settings), summary)
        summary.seconds = time.monotonic() - start
        return summary
    # Made where a worker is: what `auto` means, and whether the weights are there, is for that machine to say.
    question = ManifestQuestion(LabelWork(labels, name, settings, index.root), index.dataset, index.version)
    new, text = executor.ask(question, (index.root,), PACKAGES)
    with _manifest_lock(labels):
        new, discard, summary.notes = _settle_manifest(labels, old, new, settings, index, overwrite)
    settings = adopt_settings(settings, new)
    _clean(labels)
    if text is not None:  # before there are workers: it is the table that the manifest has the digest of
        write_text_table(labels, text)
    work = LabelWork(labels, name, settings, index.root, discard)
    packages = tuple(sorted({*PACKAGES, *new["packages"]}))
    job: Job[Scene, SceneResult] = Job(
        "labelgen",
        work.worker,
        noun="image",
        wide=True,
        paths=(labels, index.root),
        packages=packages,
        lost=lambda writer: _clean(labels, writer),
    )
    cameras = len(scenes[0].frames()[0].cameras) if scenes else 0
    units = (WorkUnit(scene.name, scene.frame_count * cameras, scene) for scene in scenes)
    total = sum(scene.frame_count for scene in scenes) * cameras
    pixels = np.zeros(len(vocabulary.classes) + 1, np.int64)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(logs, job.name, labels, len(planned))) if logs is not None else None
        for outcome in stack.enter_context(closing(execute(job, units, executor, total=total, journal=journal))):
            if (result := outcome.result) is None:
                summary.failures.append(Failure(outcome.unit.key, outcome.error))
                continue
            summary.units_kept += result.whole
            summary.images += result.images
            summary.images_kept += result.images_kept
            summary.detections += result.detections
            summary.failures += result.failures
            summary.notes += result.notes
            if result.pixels:
                pixels += np.array(result.pixels, np.int64)
    if summary.units_kept:
        told = f"{summary.units_kept} scenes were finished before; their maps are there and were not read again"
        summary.notes.append(f"{told} (olivine labelgen --merge compares every one with its record)")
    whole = max(int(pixels.sum()), 1)
    summary.pixels = {name: int(n) / whole for name, n in zip(("no label", *vocabulary.classes), pixels)}
    summary.seconds = time.monotonic() - start
    return summary


def _clean(labels: Path, writer: str | None = None) -> None:
    for folder, _, _ in os.walk(labels):
        remove_leftovers(folder, writer)


def plan_labels(index: FrameIndex, labels: Path, settings: LabelSettings, parts: int) -> Plan:
    """What of the label maps is left, cut into parts."""
    of_settings = kinds_of(settings), source_files(settings)
    finished = (Unit.of_scene(labels, scene, 1, *of_settings).finished() is not None for scene in index.scenes)
    paths = (labels.absolute(), index.root.absolute())
    account = Account(logs_of(labels), "labelgen", labels, len(index.scenes))
    return Plan.of(account.folder, [(account, finished)], parts, paths, PACKAGES)


@dataclass(frozen=True)
class ManifestQuestion:
    """What the manifest would be where this is called, and the text table of the regions where there are some."""

    work: LabelWork
    dataset: str
    version: str

    def __call__(self) -> tuple[dict[str, Any], TextTable | None]:
        """The manifest and the table."""
        labeler, vocabulary = self.work.labeler()
        manifest = make_manifest(self.dataset, self.version, labeler, self.work.settings, vocabulary)
        text: TextTable | None = getattr(labeler, "text", None) if self.work.settings.segments == "regions" else None
        return manifest, text


def check_labels(
    labels: Path, scenes: list[Scene], kinds: tuple[str, ...], sources: FilesOf, summary: LabelSummary
) -> None:
    """Enter into ``summary`` what of the scenes is finished, byte for byte as recorded, and what is not."""
    for scene in track(scenes, "check", unit="scene"):
        unit = Unit.of_scene(labels, scene, 1, kinds, sources)
        record = unit.finished()
        if record is None:
            summary.failures.append(Failure(scene.name, "not finished; run labelgen again, its log says why it failed"))
            continue
        summary.units_kept += 1
        summary.images_kept += unit.image_count
        for position, task in enumerate(task for batch in unit.batches for task in batch):
            for reason in unit.differs(task, position, record):
                summary.failures.append(Failure(f"{scene.name} {task.camera.key}", reason))


def _elsewhere(settings: LabelSettings) -> LabelSettings:
    """The settings with every path absolute, also that of an error model's file: workers have other working folders."""
    paths: dict[str, Any] = {
        f.name: p.absolute() for f in fields(settings) if isinstance(p := getattr(settings, f.name), Path)
    }
    if settings.classes is not None and not settings.classes.exists() and shipped_class_map(settings.classes):
        paths["classes"] = settings.classes  # a name, not a file
    if settings.prompts is not None and not settings.prompts.exists() and shipped_vocabulary(settings.prompts):
        paths["prompts"] = settings.prompts
    error = os.path.abspath(settings.error) if os.path.isfile(settings.error) else settings.error
    return replace(settings, **paths, error=error)
