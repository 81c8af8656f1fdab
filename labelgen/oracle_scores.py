"""How sure the oracle is of each label: the chance that it is right, by the error model, before the errors are drawn.

It knows the exact image and how the oracle errs (borders that move, small things that are missed, classes that are
confused, stuff that leaks), and not how the dice fall. So of all pixels with the score s the share s is right, as far as
the error model is followed here: of regions that leak into one another, at most :data:`NEAREST` are looked at, at the
distances that they have before the borders move. At the border of what no prompt names it knows more than a labeler could.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..common.compiled import compiled
from .oracle import ErrorModel, region_facts
from .prompts import Vocabulary

NEAREST = 8
_POINTS = 512
_GOLDEN = 1.1673039782614187  # the root of x^5 = x + 1, whose powers spread points evenly in four dimensions


def displacements(sigma: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The displacements that a pixel may have in :func:`.oracle.displacement_field`: int64 [Q, 2] rows and columns, and
    their chances, float64 [Q].

    The field is interpolated between nodes, so it is wider at a node than amid four of them; a pixel may lie anywhere.
    """
    u = (0.5 + np.arange(1, _POINTS + 1)[:, None] * _GOLDEN ** -np.arange(1.0, 5.0)) % 1
    across = u[:, :2] ** 2 + (1 - u[:, :2]) ** 2  # of the variance, on each axis; 2 / 3 on average
    length = 1.5 * sigma * np.sqrt(across.prod(axis=1)) * np.sqrt(-2 * np.log(u[:, 2]))
    angle = 2 * math.pi * u[:, 3]
    vector = np.rint(length[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)).astype(np.int64)
    found, count = np.unique(np.concatenate([vector, -vector]), axis=0, return_counts=True)
    return found, count / count.sum()


def class_changes(model: ErrorModel, vocabulary: Vocabulary) -> NDArray[np.float64]:
    """The chance that a region of a class (row) gets a class (column), float64 [K + 1, K + 1]; 0 = no label."""
    change = np.eye(len(vocabulary.classes) + 1)
    for value, name in enumerate(vocabulary.classes, 1):
        for other, chance in model.row(name, vocabulary.classes).items():
            change[value, vocabulary.value(other)] = chance
        change[value, value] = 1 - (change[value].sum() - 1)
    return change


def chance_of_right(
    label: NDArray[np.uint8], regions: NDArray[np.int32], model: ErrorModel, vocabulary: Vocabulary
) -> NDArray[np.float32]:
    """The chance that a label which :func:`.oracle.spoil` gives to a pixel is right, float32 [H, W].

    Args:
        label: exact label map, uint8 [H, W].
        regions: int32 [H, W], 0 where there is no label; one value of ``label`` each.

    Returns:
        0 where no label can be.
    """
    area, value, thing = region_facts(label, regions, vocabulary)
    keep = np.where(thing, 1 - model.missed * np.exp2(-area / model.missed_area), value > 0)
    offset, weight = displacements(model.boundary)
    leakage = model.leakage if model.leakage_distance else 0.0
    near = _near(regions, ~thing & (value > 0), model.leakage_distance if leakage else 0.0)
    alone = _alone(regions, int(np.abs(offset).max()))
    facts = (value, thing, keep.astype(np.float64), class_changes(model, vocabulary))
    chance: NDArray[np.float32] = _chance(label, regions, near, alone, *facts, offset, weight, leakage)
    return chance


def encode_chance(chance: NDArray[np.float32], label: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """Chances as the scores of a label map, uint8 [H, W], from 1 on where there is a label.

    Args:
        label: as spoilt, uint8 [H, W].
        kind: ``calibrated``, or ``over``: with the square of each chance of an error, so that it says fewer than there are.
    """
    told = 1 - (1 - chance) ** 2 if kind == "over" else chance
    return np.where(label > 0, np.clip(np.rint(255 * told), 1, 255), 0).astype(np.uint8)


def _alone(regions: NDArray[np.int32], reach: int) -> NDArray[np.bool_]:
    """Whether no other region is within so many pixels, bool [H, W]."""
    from scipy.ndimage import maximum_filter, minimum_filter

    side = 2 * min(reach, max(regions.shape)) + 1
    same: NDArray[np.bool_] = minimum_filter(regions, side, mode="nearest") == maximum_filter(
        regions, side, mode="nearest"
    )
    return same


def _near(regions: NDArray[np.int32], stuff: NDArray[np.bool_], reach: float) -> NDArray[np.int32]:
    """The regions of stuff that may leak to a pixel, its own among them, the nearest first: int32 [H, W, n], 0 = no more."""
    from scipy.ndimage import distance_transform_edt, find_objects

    if not reach:
        return np.zeros((*regions.shape, 1), np.int32)
    near = np.zeros((*regions.shape, NEAREST), np.int32)
    distance = np.full((*regions.shape, NEAREST), np.inf, np.float32)
    margin = math.ceil(reach)
    for region, where in enumerate(find_objects(regions), 1):
        if where is None or not stuff[region]:
            continue
        window = tuple(slice(max(s.start - margin, 0), s.stop + margin) for s in where)
        found = distance_transform_edt(regions[window] != region).astype(np.float32)
        _insert(near[window], distance[window], found, region, reach)
    return near


@compiled()
def _insert(near, distance, found, region, reach):  # type: ignore[no-untyped-def]
    height, width, most = near.shape
    for row in range(height):
        for column in range(width):
            far = found[row, column]
            if far > reach or far >= distance[row, column, most - 1]:
                continue
            place = most - 1
            while place > 0 and distance[row, column, place - 1] > far:
                distance[row, column, place] = distance[row, column, place - 1]
                near[row, column, place] = near[row, column, place - 1]
                place -= 1
            distance[row, column, place] = far
            near[row, column, place] = region


@compiled()
def _chance(label, regions, near, alone, value, thing, keep, change, offset, weight, leakage):  # type: ignore[no-untyped-def]
    """Right labels among those given: over the displacements, what the region that comes to the pixel is called."""
    height, width = label.shape
    chance = np.zeros((height, width), np.float32)
    for row in range(height):
        for column in range(width):
            truth = label[row, column]
            given = right = 0.0
            count = 1 if alone[row, column] else len(offset)
            for k in range(count):
                if count == 1:
                    region, share = regions[row, column], 1.0
                else:
                    there = min(max(row + offset[k, 0], 0), height - 1), min(max(column + offset[k, 1], 0), width - 1)
                    region, share = regions[there], weight[k]
                own = change[value[region], truth] if value[region] > 0 else 0.0
                if thing[region]:
                    given += share * keep[region]
                    right += share * keep[region] * own
                    share *= 1 - keep[region]  # missed: as where no region is
                    region = 0
                elif region > 0:
                    given += share * leakage  # what leaks itself is not leaked over
                    right += share * leakage * own
                    share *= 1 - leakage
                for other in near[row, column]:
                    if other == 0 or share == 0.0:
                        break
                    if other != region:
                        given += share * leakage
                        right += share * leakage * change[value[other], truth]
                        share *= 1 - leakage
                if region > 0:
                    given += share
                    right += share * own
            if given > 0 and truth > 0:
                chance[row, column] = right / given
    return chance
