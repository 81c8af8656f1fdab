"""One label map from many masks, against painting them one after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from olivine.labelgen.compose import compose, paint_ranks


def _scene(count: int, seed: int = 0):
    generator = np.random.default_rng(seed)
    masks = np.zeros((count, 40, 60), bool)
    for mask in masks:
        top, left = generator.integers(0, 30), generator.integers(0, 45)
        mask[top : top + generator.integers(1, 20), left : left + generator.integers(1, 30)] = True
    scores = generator.choice([0.3, 0.5, 0.5, 0.9], count).astype(np.float32)
    values = generator.integers(1, 14, count).astype(np.uint8)
    return masks, scores, values, values <= 8


def _paint(masks, values, order):
    label = np.zeros(masks.shape[1:], np.uint8)
    segment = np.zeros(masks.shape[1:], np.int32)
    for i in order:
        label[masks[i]] = values[i]
        segment[masks[i]] = i + 1
    return label, segment


@pytest.mark.parametrize("piece", [1, 3, 25])
def test_reference_order_is_painting_in_the_detectors_order(piece):
    masks, scores, values, things = _scene(25)
    ranks = paint_ranks(torch.from_numpy(scores), torch.from_numpy(things), "reference")
    painted = compose(torch.from_numpy(masks).split(piece), ranks, torch.from_numpy(values), (40, 60))
    label, segment = _paint(masks, values, range(25))
    assert np.array_equal(painted.label.numpy(), label)
    assert np.array_equal(painted.segment.numpy(), segment)
    assert painted.area.tolist() == masks.sum((1, 2)).tolist()


def test_layered_order_is_stuff_then_things_each_by_rising_score():
    masks, scores, values, things = _scene(25)
    ranks = paint_ranks(torch.from_numpy(scores), torch.from_numpy(things), "layered")
    painted = compose(torch.from_numpy(masks).split(4), ranks, torch.from_numpy(values), (40, 60))
    order = sorted(range(25), key=lambda i: (bool(things[i]), scores[i], i))
    label, segment = _paint(masks, values, order)
    assert np.array_equal(painted.label.numpy(), label)
    assert np.array_equal(painted.segment.numpy(), segment)
    assert not np.array_equal(label, _paint(masks, values, range(25))[0])


def test_no_mask_makes_an_empty_label_map():
    none = torch.zeros(0)
    painted = compose(iter([]), paint_ranks(none, none.bool(), "layered"), none.to(torch.uint8), (40, 60))
    assert painted.label.shape == (40, 60) and int(painted.label.max()) == 0


def test_small_and_scattered_masks_are_dropped_and_segments_numbered_without_gaps():
    masks = np.zeros((4, 10, 10), bool)
    masks[0, :, :] = True
    masks[1, 0, 0] = True  # one pixel
    masks[2, ::2, ::2] = True  # 25 components
    masks[3, 5:, 5:] = True
    ranks = torch.arange(1, 5, dtype=torch.int32)
    values = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    painted = compose(torch.from_numpy(masks).split(2), ranks, values, (10, 10), min_area=2, max_components=3)
    assert painted.kept.tolist() == [True, False, False, True]
    label, _ = _paint(masks[[0, 3]], np.array([1, 4], np.uint8), range(2))
    assert np.array_equal(painted.label.numpy(), label)
    assert sorted(np.unique(painted.segment.numpy())) == [1, 2]
