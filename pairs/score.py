"""The weak labels of pairs against the points' ground truth: how many are right, what a vote changed, calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, PathLike, track
from ..common.calibration import Calibration, calibration_of
from .shards import ShardSet, open_shards


@dataclass(frozen=True)
class PairScore:
    """What :func:`score_pairs` found.

    Attributes:
        frames: of the shards.
        pairs: whose point has a class that a label means; the others are left out.
        labelled: of these, pairs with a label, percent.
        right: of the labelled ones, percent.
        right_before: the same with the labels at the pairs' own pixels; None without a vote.
        repaired, spoilt: of the pairs that were wrong, and right, before the vote, those that are right, and wrong, after
            it, percent; None without a vote.
        score: what the pairs' score is; "" where they have none.
        calibration_error: of the labelled pairs' scores (expected calibration error), percent.
        calibration: of the same, in full.
    """

    frames: int
    pairs: int
    labelled: float
    right: float
    right_before: float | None
    repaired: float | None
    spoilt: float | None
    score: str
    calibration_error: float | None
    calibration: Calibration | None


def label_of_class(shards: ShardSet) -> NDArray[np.uint8]:
    """The weak label that each point class is, as :meth:`ShardSet.prompt_of` says.

    Raises:
        OlivineError: no label is a class of the points, or the points have none.
    """
    table = shards.prompt_of(shards.point_classes)
    if not (shards.has_point_label and table.any()):
        what = "no weak label is a class of the points" if shards.has_point_label else "the points have no labels"
        raise OlivineError(what, where=shards.path, remedy="name shards of a data set with point labels")
    return table


def score_pairs(path: PathLike) -> PairScore:
    """Compare the pairs' weak labels with the classes of their points.

    Raises:
        OlivineError: no shards, no point labels, or damaged shards.
    """
    shards = open_shards(path)
    table = label_of_class(shards)
    scored, voted = shards.has("pair_score"), shards.has("pair_pixel_label")
    columns = ["point_label", "pair_point", "pair_label"]
    columns += ["pair_score"] * scored + ["pair_pixel_label"] * voted
    pairs = labelled = labelled_before = 0
    changed, sure = np.zeros((2, 2), np.int64), np.zeros((256, 2), np.int64)  # wrong and right: before, after
    for frame in track(range(len(shards)), "score", unit="frame"):
        record = shards.read(frame, columns)
        truth = table[record.point_label][record.pair_point]
        known = truth > 0
        label, truth = record.pair_label[known], truth[known]
        before = record.pair_pixel_label[known] if voted else label
        pairs += len(label)
        labelled += int((label > 0).sum())
        labelled_before += int((before > 0).sum())
        np.add.at(changed, ((before == truth).astype(int), (label == truth).astype(int)), 1)
        if scored:
            code = 2 * record.pair_score[known].astype(np.int64) + (label == truth)
            sure += np.bincount(code[label > 0], minlength=512).reshape(256, 2)
    calibration = calibration_of(sure)

    def percent(part: int, whole: int) -> float:
        return 100 * part / max(whole, 1)

    return PairScore(
        frames=len(shards),
        pairs=pairs,
        labelled=percent(labelled, pairs),
        right=percent(int(changed[:, 1].sum()), labelled),
        right_before=percent(int(changed[1].sum()), labelled_before) if voted else None,
        repaired=percent(int(changed[0, 1]), int(changed[0].sum())) if voted else None,
        spoilt=percent(int(changed[1, 0]), int(changed[1].sum())) if voted else None,
        score=shards.score_name,
        calibration_error=None if calibration is None else calibration.error,
        calibration=calibration,
    )
