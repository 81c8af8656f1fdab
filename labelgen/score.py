"""Label maps against the data set's ground truth: IoU, precision, recall, confusion, coverage, calibration of scores."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import Failure, OlivineError, PathLike, track, write_bytes, write_json
from ..common.calibration import Calibration, calibration_of, draw_reliability
from ..readers.benchmark import values_of_classes
from ..readers.frame import Camera, Frame
from ..readers.index import FrameIndex
from ..readers.project import look_up, project_points
from .oracle import read_world_classes
from .store import LabelStore, read_values

_REMAKE = "make the data set again with olivine synth"


@dataclass
class ScoreSummary:
    """What :func:`score_labels` found.

    Attributes:
        against: ``masks`` (a synthetic world's exact ones, pixel by pixel) or ``points`` (the
            point labels, at the pixel each point falls on).
        classes: names, ``no label`` first.
        confusion: [K + 1][K + 1], rows the truth, columns the label map; with ``points`` the
            first row is empty, since nothing says what a point without a class is.
        iou, precision, recall: by class name, percent; None where neither truth nor label maps have it.
        mean_iou: over the classes that the truth has, percent.
        coverage: share of what has a true class that has some label, percent.
        calibration_error: of the labels' scores (expected calibration error), percent; None where the store has none.
        calibration: of the same, in full.
        images: images that were compared.
        failures: images that could not be, and why.
        out: where the JSON and the picture are.
    """

    against: str
    classes: list[str]
    confusion: list[list[int]]
    iou: dict[str, float | None] = field(default_factory=dict)
    precision: dict[str, float | None] = field(default_factory=dict)
    recall: dict[str, float | None] = field(default_factory=dict)
    mean_iou: float | None = None
    coverage: float | None = None
    calibration_error: float | None = None
    calibration: Calibration | None = None
    images: int = 0
    failures: list[Failure] = field(default_factory=list)
    out: Path | None = None


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None


def scores_of(confusion: NDArray[np.int64], classes: Sequence[str], against: str) -> ScoreSummary:
    """The scores of a confusion matrix.

    Args:
        confusion: int64 [K + 1, K + 1], rows the truth, columns the label map, 0 = no label.
        classes: the K class names.
    """
    summary = ScoreSummary(against, ["no label", *classes], confusion.tolist())
    for value, name in enumerate(classes, 1):
        hit = int(confusion[value, value])
        true, said = int(confusion[value].sum()), int(confusion[:, value].sum())
        summary.iou[name] = _percent(hit, true + said - hit)
        summary.precision[name] = _percent(hit, said)
        summary.recall[name] = _percent(hit, true)
    present = [
        iou
        for value, name in enumerate(classes, 1)
        if confusion[value].any() and (iou := summary.iou[name]) is not None
    ]
    summary.mean_iou = float(np.mean(present)) if present else None
    summary.coverage = _percent(int(confusion[1:, 1:].sum()), int(confusion[1:].sum()))
    return summary


MapsOf = Callable[[Camera], list[NDArray[np.uint8]]]
"""The label map of an image, and its score map where there is one."""


class _Masks:
    """The truth of a synthetic world: its exact masks."""

    name = "masks"

    def __init__(self, store: LabelStore, index: FrameIndex) -> None:
        self.lookup = np.zeros(256, np.uint8)
        for value, name in enumerate(read_world_classes(index.root / "synthetic.json")):
            self.lookup[value] = store.classes.index(name) + 1 if name in store.classes else 0

    def compare(self, frame: Frame, maps_of: MapsOf, position: int) -> list[NDArray[np.uint8]]:
        """The truth of one image's pixels, and the values of its maps at them, uint8 [N] each."""
        camera = frame.cameras[position]
        truth = frame.image_truth
        if truth is None:
            raise OlivineError("has no exact masks", where=frame.token, remedy=_REMAKE)
        path = truth[position][0]
        exact = read_values(path, _REMAKE, camera)
        if exact.max() >= len(self.lookup):
            raise OlivineError(f"holds the class {int(exact.max())}", where=path, remedy=_REMAKE)
        return [self.lookup[exact].ravel(), *(values.ravel() for values in maps_of(camera))]


class _Points:
    """The truth of an annotated data set: the class of each point."""

    name = "points"

    def __init__(self, store: LabelStore, index: FrameIndex) -> None:
        self.lookup = np.zeros(256, np.uint8)
        values = values_of_classes(index.point_classes, store.classes, index.source.prompt_of)
        self.lookup[: len(values)] = values
        if not self.lookup.any():
            raise OlivineError(
                "none of the label classes is a class of the points",
                where=store.root,
                remedy="name the classes as the data set or the 13 prompts do, where they mean the same",
            )

    def compare(self, frame: Frame, maps_of: MapsOf, position: int) -> list[NDArray[np.uint8]]:
        """The same of the points on one image; those whose class no prompt has are left out."""
        camera = frame.cameras[position]
        labels = frame.point_labels()
        if labels is None:
            raise OlivineError("has no point labels", where=frame.token, remedy="download the data set's point labels")
        point, _, uv = project_points(frame.points(), [camera])
        truth = self.lookup[labels[point]]
        return [values[truth > 0] for values in (truth, *(look_up(values, uv) for values in maps_of(camera)))]


def _truth(store: LabelStore, index: FrameIndex, against: str) -> _Masks | _Points:
    first = next(index.frames())
    if against == "auto":
        against = "masks" if first.image_truth is not None else "points"
    if against == "masks":
        return _Masks(store, index)
    if against != "points":
        raise OlivineError(f"--against {against} is no kind of truth", remedy="use auto, masks or points")
    if first.point_label_file is None:
        raise OlivineError(
            f"this {index.dataset} has no point labels to score against",
            where=index.root,
            remedy="unpack the data set's point labels into it; olivine check-labels needs none",
        )
    return _Points(store, index)


def score_labels(
    store: LabelStore,
    out: PathLike | None = None,
    *,
    split: str | None = None,
    against: str = "auto",
    root: PathLike | None = None,
) -> ScoreSummary:
    """Compare every label map with the data set's ground truth.

    Args:
        out: folder for ``score.json``, ``confusion.png`` and, of labels with scores, ``reliability.png``; nothing is written without one.
        split: only this split's scenes.
        against: ``masks``, ``points``, or ``auto``: masks where the data set has exact ones.
        root: where the data set is now, if it has moved since labelgen.

    Raises:
        OlivineError: the data set has no such ground truth, or no frames in the split.
    """
    index = store.index(root)
    truth = _truth(store, index, against)
    scenes = index.select(split)
    if not scenes:
        raise OlivineError(f"no scene is in the split {split!r}", where=store.root, remedy="name another --split")
    size = len(store.classes) + 1
    confusion, right = np.zeros((size, size), np.int64), np.zeros((256, 2), np.int64)
    failures: list[Failure] = []
    images = 0

    def one(frame: Frame, position: int) -> tuple[NDArray[np.int64], NDArray[np.int64]] | Failure:
        def maps_of(camera: Camera) -> list[NDArray[np.uint8]]:
            label, score = store.label_map(camera, frame.scene), store.score_map(camera, frame.scene)
            return [label] if score is None else [label, score]

        try:
            true, label, *score = truth.compare(frame, maps_of, position)
        except OlivineError as error:
            return Failure(frame.cameras[position].key, str(error))
        counts = np.bincount(true.astype(np.int64) * 256 + label, minlength=size * 256).reshape(-1, 256)[:size, :size]
        good = [2 * sure[label > 0].astype(np.int64) + (true == label)[label > 0] for sure in score]
        return counts, np.bincount(np.concatenate([*good, np.zeros(0, np.int64)]), minlength=512).reshape(256, 2)

    total = sum(scene.frame_count for scene in scenes)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for frame in track((f for scene in scenes for f in scene.frames()), "score", total=total, unit="frame"):
            for found in pool.map(lambda i, f=frame: one(f, i), range(len(frame.cameras))):
                if isinstance(found, Failure):
                    failures.append(found)
                else:
                    confusion += found[0]
                    right += found[1]
                    images += 1
    summary = scores_of(confusion, store.classes, truth.name)
    summary.images, summary.failures = images, failures
    if (calibration := calibration_of(right)) is not None:
        summary.calibration, summary.calibration_error = calibration, calibration.error
    if out is not None:
        summary.out = Path(out)
        maps = {scene.name: store.maps_digest(scene.name) for scene in scenes}
        plain: dict[str, Any] = {**asdict(summary), "out": str(out), "labels": store.digest, "maps": maps}
        write_json(Path(out) / "score.json", plain)
        write_bytes(Path(out) / "confusion.png", draw_confusion(summary))
        if calibration is not None:
            write_bytes(Path(out) / "reliability.png", draw_reliability(calibration))
    return summary


def draw_confusion(summary: ScoreSummary) -> bytes:
    """The confusion matrix as a PNG: each row's shares, the classes' IoU beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.array(summary.confusion, np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = summary.classes
    figure = Figure(figsize=(1.5 + 0.55 * len(names), 1.2 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(len(names)):
        for column in range(len(names)):
            if shares[row, column] >= 0.005:
                color = "white" if shares[row, column] > 0.6 else "black"
                axes.text(
                    column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", color=color, fontsize=8
                )
    # A class may be named with dollar signs, which are no formula.
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", parse_math=False)
    ious = [summary.iou.get(name) for name in names]
    rows = [n if i is None else f"{n}  (IoU {i:.1f})" for n, i in zip(names, ious)]
    axes.set_yticks(range(len(names)), rows, parse_math=False)
    axes.set_xlabel("label map")
    axes.set_ylabel(f"ground truth ({summary.against})")
    mean = "" if summary.mean_iou is None else f"mean IoU {summary.mean_iou:.1f} %"
    coverage = "" if summary.coverage is None else f", coverage {summary.coverage:.1f} %"
    axes.set_title(mean + coverage)
    figure.colorbar(picture, ax=axes, label="share of the true class")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
