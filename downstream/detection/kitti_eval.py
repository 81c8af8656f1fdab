"""KITTI's evaluation of detections: average precision in the image, the bird's-eye view and 3D, by the official rules.

Source: the benchmark's own program ``evaluate_object.cpp`` (A. Geiger, KITTI object development kit). What decides:

- An object counts at a difficulty where it is of the class, at least so high in the image, no more occluded and no more
  truncated than the difficulty allows; other objects of the class, and those of its neighbour (Van for Car,
  Person_sitting for Pedestrian), are ignored: found or not, they neither help nor harm.
- A detection that is too low in the image is ignored, whatever its class.
- A detection in a ``DontCare`` region is no false positive; only the image knows such regions.
- Precision is read at the scores that step the recall by 1/40, made monotonous from the right, and averaged over 40 (or, as
  until 2019, over 11) of the 41 positions. So a class with n counted objects, n at most 40, cannot reach more than (n − 1)/40.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...common import OlivineError, PathLike
from ...common.compiled import compiled
from .kitti_format import Objects, read_objects
from .rotated import intersection_areas

DIFFICULTIES = ("easy", "moderate", "hard")
METRICS = ("image", "bev", "3d")
LEAST_HEIGHT = (40.0, 25.0, 25.0)
"""Pixels, for each difficulty."""
MOST_OCCLUDED = (0, 1, 2)
MOST_TRUNCATED = (0.15, 0.3, 0.5)
LEAST_IOU = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
"""The classes that are evaluated, and the overlap that finds one (more than this), in all three metrics."""
_NEIGHBOUR = {"Car": "Van", "Pedestrian": "Person_sitting"}
_STEPS = 40
Array = NDArray[np.float64]


@dataclass(frozen=True)
class AveragePrecision:
    """What detections score.

    Attributes:
        at_40, at_11: percent by class, metric (:data:`METRICS`) and difficulty (:data:`DIFFICULTIES`): [C, 3, 3], over 40 or
            11 recall positions. A class without a counted object has 0.
        counted: the objects that count, [C, 3], by class and difficulty.
        classes: the C classes.
    """

    at_40: Array
    at_11: Array
    counted: NDArray[np.int64]
    classes: tuple[str, ...]

    def mean(self, metric: str = "3d", difficulty: str = "moderate") -> float:
        """The mean over the classes of AP at 40 positions, in percent: the number that papers call mAP."""
        return float(self.at_40[:, METRICS.index(metric), DIFFICULTIES.index(difficulty)].mean())


def evaluate(
    truth: Sequence[Objects], found: Sequence[Objects], classes: Sequence[str] = tuple(LEAST_IOU)
) -> AveragePrecision:
    """The AP of detections against the labels of the same frames.

    Args:
        truth: for each frame the objects of its label file, ``DontCare`` regions among them.
        found: for each frame its detections.
        classes: of :data:`LEAST_IOU`.

    Raises:
        OlivineError: another number of frames, or a class that is not evaluated.
    """
    if len(truth) != len(found):
        raise OlivineError(f"results of {len(found)} frames for the labels of {len(truth)}", where="evaluate")
    if unknown := [name for name in classes if name not in LEAST_IOU]:
        raise OlivineError(
            f"KITTI does not evaluate the class {unknown[0]!r}", remedy=f"choose of {', '.join(LEAST_IOU)}"
        )
    frames = [_Overlaps(labels, results) for labels, results in zip(truth, found)]
    curves = np.zeros((len(classes), len(METRICS), len(DIFFICULTIES), _STEPS + 1))
    counted = np.zeros((len(classes), len(DIFFICULTIES)), np.int64)
    for c, name in enumerate(classes):
        for d in range(len(DIFFICULTIES)):
            cases = [frame.case(name, d) for frame in frames]
            counted[c, d] = sum(case.counted for case in cases)
            for m in range(len(METRICS)):
                curves[c, m, d] = _precision(cases, m, LEAST_IOU[name], int(counted[c, d]))
    at_40 = 100 * curves[..., 1:].mean(-1)
    return AveragePrecision(at_40, 100 * curves[..., ::4].mean(-1), counted, tuple(classes))


@dataclass(frozen=True, eq=False)
class _Case:
    """A frame's objects and detections as they matter for one class and difficulty.

    Attributes:
        overlap: [3, D, G], of each metric.
        dont_care: [D], the largest share of a detection that lies in one DontCare region.
        score: [D].
        ignored_found, ignored_truth: bool [D], [G].
    """

    overlap: Array
    dont_care: Array
    score: Array
    ignored_found: NDArray[np.bool_]
    ignored_truth: NDArray[np.bool_]

    @property
    def counted(self) -> int:
        return int((~self.ignored_truth).sum())


class _Overlaps:
    """A frame's overlaps, computed once for all classes and difficulties."""

    def __init__(self, truth: Objects, found: Objects) -> None:
        self.truth, self.found = truth, found
        self.overlap = np.stack([_image_iou(found.image, truth.image), *_ground_and_box_iou(found, truth)])
        regions = truth.image[truth.kind == "DontCare"]
        area = (found.image[:, 2] - found.image[:, 0]) * (found.image[:, 3] - found.image[:, 1])
        shared = _image_intersection(found.image, regions)
        share = np.divide(shared, area[:, None], out=np.zeros_like(shared), where=shared > 0)
        self.dont_care = share.max(1, initial=0.0)

    def case(self, name: str, difficulty: int) -> _Case:
        truth, found = self.truth, self.found
        hidden = (truth.occluded > MOST_OCCLUDED[difficulty]) | (truth.truncated > MOST_TRUNCATED[difficulty])
        hidden |= truth.image[:, 3] - truth.image[:, 1] < LEAST_HEIGHT[difficulty]
        same = truth.kind == name
        rows = np.flatnonzero(same | (truth.kind == _NEIGHBOUR.get(name, "")))
        low = np.abs(found.image[:, 3] - found.image[:, 1]) < LEAST_HEIGHT[difficulty]
        taken = np.flatnonzero(low | (found.kind == name))
        return _Case(
            np.ascontiguousarray(self.overlap[:, taken][:, :, rows]),
            self.dont_care[taken],
            found.score[taken],
            low[taken],
            (hidden | ~same)[rows],
        )


def _image_intersection(first: Array, second: Array) -> Array:
    sides = np.minimum(first[:, None, 2:], second[None, :, 2:]) - np.maximum(first[:, None, :2], second[None, :, :2])
    return sides.clip(0).prod(2)


def _image_iou(first: Array, second: Array) -> Array:
    shared = _image_intersection(first, second)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (first, second)]
    return np.divide(shared, areas[0][:, None] + areas[1] - shared, out=np.zeros_like(shared), where=shared > 0)


def _ground_and_box_iou(found: Objects, truth: Objects) -> tuple[Array, Array]:
    """IoU on the ground plane (x, z) and of the volumes, each [D, G]."""
    # y points down in camera 0, so rotation_y is clockwise in the plane of x and z.
    ground = [np.c_[o.place[:, [0, 2]], o.size[:, [2, 1]], -o.turn] for o in (found, truth)]
    shared = intersection_areas(*ground)
    areas = [g[:, 2] * g[:, 3] for g in ground]
    ground_iou = np.divide(shared, areas[0][:, None] + areas[1] - shared, out=np.zeros_like(shared), where=shared > 0)
    low, high = [o.place[:, 1] for o in (found, truth)], [o.place[:, 1] - o.size[:, 0] for o in (found, truth)]
    volume = shared * (np.minimum(low[0][:, None], low[1]) - np.maximum(high[0][:, None], high[1])).clip(0)
    volumes = [o.size.prod(1) for o in (found, truth)]
    whole = volumes[0][:, None] + volumes[1] - volume
    return ground_iou, np.divide(volume, whole, out=np.zeros_like(volume), where=volume > 0)


def _precision(cases: Sequence[_Case], metric: int, least: float, counted: int) -> Array:
    """The precision at the 41 recall positions, monotonous from the right: [41]."""
    hit = [_scores_of_hits(c.overlap[metric], c.score, c.ignored_found, c.ignored_truth, least) for c in cases]
    thresholds = _thresholds(np.concatenate(hit) if hit else np.zeros(0), counted)
    totals = np.zeros((len(thresholds), 2), np.int64)
    for case in cases:
        spared = case.dont_care > least if metric == 0 else np.zeros(len(case.score), bool)
        _count(
            case.overlap[metric],
            case.score,
            case.ignored_found,
            case.ignored_truth,
            spared,
            least,
            thresholds,
            totals,
        )
    curve = np.zeros(_STEPS + 1)
    right, made = totals[:, 0], totals.sum(1)
    curve[: len(thresholds)] = np.divide(right, made, out=np.zeros(len(made)), where=made > 0)
    return np.maximum.accumulate(curve[::-1])[::-1]


def _thresholds(score: Array, counted: int) -> Array:
    """Of the scores of the hits those that step the recall by 1/40, descending."""
    score = np.sort(score)[::-1]
    chosen, recall = [], 0.0
    for i in range(len(score)):
        last = i == len(score) - 1
        left = (i + 1) / counted
        right = left if last else (i + 2) / counted
        if last or right - recall >= recall - left:
            chosen.append(score[i])
            recall += 1 / _STEPS
    return np.array(chosen, np.float64)


@compiled()
def _scores_of_hits(overlap, score, ignored_found, ignored_truth, least):  # type: ignore[no-untyped-def]
    """The scores with which counted objects are found, where each takes the free detection of the highest score."""
    taken = np.zeros(len(score), np.bool_)
    hit = np.empty(len(ignored_truth))
    count = 0
    for g in range(len(ignored_truth)):
        best = -1
        for d in range(len(score)):
            if not taken[d] and overlap[d, g] > least and (best < 0 or score[d] > score[best]):
                best = d
        if best >= 0:
            taken[best] = True
            if not ignored_truth[g] and not ignored_found[best]:
                hit[count] = score[best]
                count += 1
    return hit[:count]


@compiled()
def _count(overlap, score, ignored_found, ignored_truth, spared, least, thresholds, totals):  # type: ignore[no-untyped-def]
    """Add a frame's true and false positives at each threshold to ``totals`` [T, 2].

    An object takes the free counted detection of the largest overlap, and without one the first free ignored one.
    """
    for t in range(len(thresholds)):
        taken = score < thresholds[t]
        out = taken.copy()
        right = 0
        for g in range(len(ignored_truth)):
            best = -1
            for d in range(len(score)):
                if taken[d] or overlap[d, g] <= least:
                    continue
                if best < 0 or (not ignored_found[d] and (ignored_found[best] or overlap[d, g] > overlap[best, g])):
                    best = d
            if best >= 0:
                taken[best] = True
                if not ignored_truth[g] and not ignored_found[best]:
                    right += 1
        wrong = 0
        for d in range(len(score)):
            if not out[d] and not taken[d] and not ignored_found[d] and not spared[d]:
                wrong += 1
        totals[t, 0] += right
        totals[t, 1] += wrong


def ap_table(result: AveragePrecision) -> str:
    """A Markdown table: a row for each class and metric; AP at 40 positions, and at 11, in percent."""
    lines = [
        "| AP / % | easy | moderate | hard | at 11: easy | moderate | hard |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for c, name in enumerate(result.classes):
        for m, metric in enumerate(METRICS):
            values = [*result.at_40[c, m], *result.at_11[c, m]]
            label = f"{name}, {metric} (IoU {LEAST_IOU[name]:g})"
            lines.append(f"| {label} | " + " | ".join(f"{v:.2f}" for v in values) + " |")
    means = [result.mean(difficulty=difficulty) for difficulty in DIFFICULTIES]
    means += [float(v) for v in result.at_11[:, 2].mean(0)]
    lines.append("| mean, 3d | " + " | ".join(f"{v:.2f}" for v in means) + " |")
    few = [
        f"{name} {int(result.counted[c, 1])}" for c, name in enumerate(result.classes) if result.counted[c, 1] <= _STEPS
    ]
    lines.append("")
    if few:
        lines.append(
            f"Objects that count at moderate: {', '.join(few)}. With n of at most {_STEPS} the rule cannot give more than "
            f"(n − 1)/{_STEPS}."
        )
    return "\n".join(lines) + "\n"


def read_results(folder: PathLike, names: Sequence[str]) -> list[Objects]:
    """The result files ``<name>.txt`` of a folder, of exactly these frames.

    Raises:
        OlivineError: a file is missing, or one is there of another frame.
    """
    folder = Path(folder)
    there = {path.stem for path in folder.glob("*.txt")}
    if absent := sorted(set(names) - there):
        raise OlivineError(
            f"has no result of frame {absent[0]} ({len(absent)} of {len(names)} are missing)",
            where=folder,
            remedy="give the results of the frames that are evaluated; a frame without a detection has an empty file",
        )
    if foreign := sorted(there - set(names)):
        raise OlivineError(
            f"holds a result of frame {foreign[0]}, which is none of the {len(names)} frames evaluated",
            where=folder,
            remedy="give the results of the frames that are evaluated, alone in a folder",
        )
    return [read_objects(folder / f"{name}.txt", scored=True) for name in names]
