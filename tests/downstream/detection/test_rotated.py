"""Rotated rectangles against shapely's polygons."""

from __future__ import annotations

import numpy as np
import pytest

from olivine.downstream.detection.rotated import bev_iou, bev_of, box_iou, intersection_areas, suppress

shapely = pytest.importorskip("shapely")
affinity = pytest.importorskip("shapely.affinity")


def polygon(row):
    x, y, length, width, heading = row
    box = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    return affinity.translate(affinity.rotate(box, heading, (0, 0), use_radians=True), x, y)


def crowd(count: int, seed: int) -> np.ndarray:
    """Boxes that overlap much, some of them the same, some parallel, some touching."""
    generator = np.random.default_rng(seed)
    place = generator.uniform([-4, -4, -1], [4, 4, 1], (count, 3))
    size = generator.uniform(0.3, 5, (count, 3))
    heading = generator.choice([generator.uniform(-4, 4), 0, np.pi / 2, -np.pi, 1e-9], count)
    heading[: count // 2] = generator.uniform(-7, 7, count // 2)
    boxes = np.c_[place, size, heading]
    boxes[1] = boxes[0]  # the same
    boxes[2] = [0, 0, 0, 4, 2, 1, 0]
    boxes[3] = [4, 0, 0, 4, 2, 1, 0]  # side by side
    boxes[4] = [0, 0, 0, 1, 1, 1, 0.3]  # within another
    boxes[5] = boxes[2] + [0, 0, 0, 0, 0, 0, np.pi]  # the same, turned round
    return boxes


def test_intersection_and_iou_are_those_of_shapelys_polygons():
    first, second = crowd(60, 1), crowd(50, 2)
    shapes = [[polygon(row) for row in bev_of(boxes)] for boxes in (first, second)]
    shared = np.array([[a.intersection(b).area for b in shapes[1]] for a in shapes[0]])
    union = np.array([[a.union(b).area for b in shapes[1]] for a in shapes[0]])
    assert (shared > 0).mean() > 0.2
    assert np.abs(intersection_areas(bev_of(first), bev_of(second)) - shared).max() < 1e-6
    assert np.abs(bev_iou(bev_of(first), bev_of(second)) - shared / union).max() < 1e-6
    height = np.minimum((first[:, 2] + first[:, 5] / 2)[:, None], second[:, 2] + second[:, 5] / 2) - np.maximum(
        (first[:, 2] - first[:, 5] / 2)[:, None], second[:, 2] - second[:, 5] / 2
    )
    volume = shared * height.clip(0)
    whole = first[:, 3:6].prod(1)[:, None] + second[:, 3:6].prod(1) - volume
    assert np.abs(box_iou(first, second) - volume / whole).max() < 1e-6


def test_a_rectangle_without_area_overlaps_nothing():
    flat = np.array([[0, 0, 2, 0, 0.4]])
    assert bev_iou(flat, np.array([[0, 0, 2, 2, 0.0]])) == 0 and bev_iou(flat, flat) == 0
    assert bev_iou(np.zeros((0, 5)), flat).shape == (0, 1)


@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.7])
def test_suppression_keeps_what_the_greedy_rule_over_shapelys_polygons_keeps(threshold):
    boxes = crowd(80, 3)
    score = np.round(np.random.default_rng(4).uniform(size=80), 1)  # many ties
    shapes = [polygon(row) for row in bev_of(boxes)]
    kept: list[int] = []
    for i in sorted(range(80), key=lambda i: -score[i]):
        ratios = (shapes[i].intersection(shapes[k]).area / shapes[i].union(shapes[k]).area for k in kept)
        if all(ratio <= threshold for ratio in ratios):
            kept.append(i)
    assert suppress(boxes, score, threshold).tolist() == kept
    assert suppress(boxes, score, threshold, most=2).tolist() == kept[:2]
    highest = set(np.argsort(-score, kind="stable")[:10].tolist())
    assert set(suppress(boxes, score, threshold, before=10).tolist()) == set(kept) & highest
