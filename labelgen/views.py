"""Other views of an image: the labeler sees it mirrored, or one half after the other, and its map is laid back in place.

A network errs otherwise in another view of the same picture; so a second label folder of such maps may vote beside the
first (``olivine build-pairs --consolidate --also FOLDER``). In the halves small things are larger to a labeler that
shrinks its images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from .labeler import BatchResult, ImageTask, Labeler, Labelled
from .settings import LabelSettings

OVERLAP = 0.2
"""Of the image's width, in both halves, in the middle: a thing there is whole in one of them."""
A = TypeVar("A", bound=np.generic)


class ViewLabeler:
    """A labeler that sees another view of each image.

    Args:
        labeler: that takes pixels.
        view: ``mirrored`` (left and right change places) or ``halves``.
    """

    needs_image = True

    def __init__(self, labeler: Labeler, view: str) -> None:
        self.labeler, self.view = labeler, view
        self.name, self.batch_size, self.packages = labeler.name, labeler.batch_size, labeler.packages

    def resolved(self) -> dict[str, Any]:
        """The labeler's settings, and the view."""
        return {**self.labeler.resolved(), "view": self.view}

    def weights(self) -> dict[str, str]:
        """The labeler's."""
        return self.labeler.weights()

    def prepare(self) -> None:
        """Load the labeler."""
        self.labeler.prepare()

    def label(self, tasks: Sequence[ImageTask], images: Sequence[NDArray[np.uint8]]) -> BatchResult:
        """The labeler's results on the view, where they lie in the images."""
        if self.view == "mirrored":
            found = self.labeler.label(tasks, [_mirrored(image) for image in images])
            back = [_mirrored_result(one, image.shape[1]) for one, image in zip(found.images, images)]
            return BatchResult(tuple(back), found.notes)
        cuts = [_cuts(image.shape[1]) for image in images]
        left = self.labeler.label(tasks, [image[:, :last].copy() for image, (_, _, last) in zip(images, cuts)])
        right = self.labeler.label(tasks, [image[:, first:].copy() for image, (first, _, _) in zip(images, cuts)])
        both = [_joined(a, b, *cut) for a, b, cut in zip(left.images, right.images, cuts)]
        return BatchResult(tuple(both), (*left.notes, *right.notes))


def seen_as(labeler: Labeler, settings: LabelSettings) -> Labeler:
    """The labeler on the view that the settings ask for."""
    return labeler if settings.view == "whole" else ViewLabeler(labeler, settings.view)


def _cuts(width: int) -> tuple[int, int, int]:
    """The right half's first column, the middle, and the column after the left half's last."""
    middle, over = width // 2, round(OVERLAP / 2 * width)
    return middle - over, middle, middle + over


def _mirrored(values: NDArray[A]) -> NDArray[A]:
    return np.ascontiguousarray(values[:, ::-1])


def _mirrored_result(found: Labelled | OlivineError, width: int) -> Labelled | OlivineError:
    if isinstance(found, OlivineError):
        return found
    boxes = [(width - box.box[2], box.box[1], width - box.box[0], box.box[3]) for box in found.detections]
    detections = tuple(replace(one, box=box) for one, box in zip(found.detections, boxes))
    score = None if found.score is None else _mirrored(found.score)
    return Labelled(_mirrored(found.label), detections, score=score)


def _joined(
    left: Labelled | OlivineError, right: Labelled | OlivineError, first: int, middle: int, last: int
) -> Labelled | OlivineError:
    """Each column from the half that holds it deeper; objects of either, with their boxes in the image."""
    if isinstance(left, OlivineError):
        return left
    if isinstance(right, OlivineError):
        return right
    moved = [
        replace(one, box=(one.box[0] + first, one.box[1], one.box[2] + first, one.box[3])) for one in right.detections
    ]
    label = np.concatenate([left.label[:, :middle], right.label[:, middle - first :]], axis=1)
    score = None
    if left.score is not None and right.score is not None:
        score = np.concatenate([left.score[:, :middle], right.score[:, middle - first :]], axis=1)
    return Labelled(label, (*left.detections, *moved), score=score)
