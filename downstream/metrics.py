"""Semantic segmentation scores from one confusion matrix over the whole set.

Ground truth 0 is ignored; a class that the ground truth does not hold is left out of the
mean and named, as the benchmarks' own scorers do with their complete sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .benchmarks import scorer_mean_iou


def confusion_matrix(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], class_count: int
) -> NDArray[np.int64]:
    """Counts of (truth, prediction), int64 [K + 1, K + 1], for classes 1..K; row 0 stays empty.

    Args:
        truth: integer [N], 0 = ignored.
        prediction: integer [N], 0..K.
    """
    size = class_count + 1
    kept = truth > 0
    index = truth[kept].astype(np.int64) * size + prediction[kept].astype(np.int64)
    return np.bincount(index, minlength=size * size).reshape(size, size)


@dataclass(frozen=True)
class Scores:
    """Scores in [0, 1].

    Attributes:
        iou: class name to intersection over union, for the classes present in the truth.
        absent: classes without a point in the truth, left out of the means.
        mean_iou: mean over ``iou``.
        frequency_weighted_iou: mean over ``iou`` weighted by the truth's points.
        accuracy: share of the labelled points predicted right.
        point_count: labelled points.
        scorer_mean_iou: what the benchmark's own scorer makes of the same predictions, see
            :func:`~olivine.downstream.benchmarks.scorer_mean_iou`; None where there is none.
    """

    iou: dict[str, float]
    absent: tuple[str, ...]
    mean_iou: float
    frequency_weighted_iou: float
    accuracy: float
    point_count: int
    scorer_mean_iou: float | None = None


def scores(confusion: NDArray[np.integer], classes: tuple[str, ...], mean_over: str = "none") -> Scores:
    """Scores of a confusion matrix [K + 1, K + 1] whose classes 1..K are ``classes``.

    Args:
        mean_over: of the benchmark's own scorer, see :func:`~olivine.downstream.benchmarks.scorer_mean_iou`.
    """
    confusion = confusion.astype(np.float64)
    truth = confusion[1:].sum(axis=1)
    hit = np.diag(confusion)[1:]
    union = truth + confusion[1:, 1:].sum(axis=0) - hit
    present = truth > 0
    iou = np.divide(hit, union, out=np.zeros_like(hit), where=union > 0)
    total = truth.sum()
    return Scores(
        iou={name: float(v) for name, v, p in zip(classes, iou, present, strict=True) if p},
        absent=tuple(name for name, p in zip(classes, present, strict=True) if not p),
        mean_iou=float(iou[present].mean()) if present.any() else 0.0,
        frequency_weighted_iou=float((iou * truth).sum() / total) if total else 0.0,
        accuracy=float(hit.sum() / total) if total else 0.0,
        point_count=int(total),
        scorer_mean_iou=scorer_mean_iou(iou, union, mean_over),
    )


def counts_by_class(confusion: NDArray[np.integer], classes: tuple[str, ...]) -> dict[str, list[int]]:
    """Points of the truth, predicted right, and of truth or prediction, of each class that has any; they add up over scenes."""
    truth, hit = confusion[1:].sum(axis=1), np.diag(confusion)[1:]
    counts = np.stack([truth, hit, truth + confusion[1:, 1:].sum(axis=0) - hit], 1)
    return {name: of.tolist() for name, of in zip(classes, counts, strict=True) if of[2]}
