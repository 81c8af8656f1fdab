"""Joining frames: every column as its row of the table says, whatever the frames hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from olivine.pairs.shards import open_shards
from olivine.train.augment import AugmentSettings, generator_of, make_sample, make_scan, scan_columns
from olivine.train.batch import Batch, collate
from olivine.train.sample import Sample

COLUMNS = ("image", "pair_label", "pair_density", "class_count", "timestamp")


@pytest.fixture(scope="module")
def samples(small_shards: Path) -> list[Sample]:
    shards = open_shards(small_shards)
    settings = AugmentSettings(crop_min_pairs=20, cuboid_min_pairs=20)
    return [make_sample(shards[i], i, (40, 72), settings, generator_of(0, 1, i), COLUMNS) for i in (4, 0, 2)]


@pytest.fixture(scope="module")
def batch(samples: list[Sample]) -> Batch:
    return collate(samples)


def test_a_pair_has_its_own_point_image_label_and_row_in_the_batch(batch: Batch, samples: list[Sample]) -> None:
    first = 0
    for number, sample in enumerate(samples):
        rows = slice(first, first + len(sample.pair_point))
        first = rows.stop
        assert (batch.pair_frame[rows] == number).all()
        point, camera = batch.pair_point[rows], batch.pair_camera[rows]
        np.testing.assert_array_equal(batch.points[point].numpy(), sample.points[sample.pair_point])
        np.testing.assert_array_equal(batch.image[camera].numpy(), sample.image[sample.pair_camera])
        for name in ("pair_label", "pair_uv", "pair_density"):
            np.testing.assert_array_equal(getattr(batch, name)[rows].numpy(), getattr(sample, name), err_msg=name)
    assert first == len(batch.pair_point)
    assert batch.point_count == tuple(len(s.points) for s in samples) and batch.image_count == (2, 2, 2)


def test_what_is_of_a_frame_is_stacked_and_what_a_value_numbers_is_wide(batch: Batch, samples: list[Sample]) -> None:
    for name in ("class_count", "timestamp", "image_size"):
        np.testing.assert_array_equal(getattr(batch, name).numpy(), np.stack([getattr(s, name) for s in samples]))
    assert all(getattr(batch, name).dtype == torch.int64 for name in ("pair_point", "pair_camera", "pair_label"))
    assert batch.point_cloud().bincount().tolist() == list(batch.point_count)


def test_choosing_pairs_takes_the_same_rows_of_every_column_over_pairs(batch: Batch) -> None:
    kept = torch.tensor([5, 17, len(batch.pair_point) - 1])
    some = batch.select_pairs(kept)
    for name in ("pair_point", "pair_camera", "pair_label", "pair_uv", "pair_density"):
        assert torch.equal(getattr(some, name), getattr(batch, name)[kept]), name
    assert torch.equal(some.pair_frame, batch.pair_frame[kept])
    assert torch.equal(some.points, batch.points) and torch.equal(some.class_count, batch.class_count)
    with pytest.raises(AttributeError, match="no column 'segment' here"):
        _ = batch.segment


def test_other_scans_are_joined_to_batches_of_their_own(small_shards: Path) -> None:
    shards, settings = open_shards(small_shards), AugmentSettings(cuboid=0.0)
    columns = scan_columns(("pair_label",))
    samples = [make_sample(shards[i], i, (40, 72), settings, generator_of(0, 0, i), ("image",)) for i in (0, 2, 3)]
    for sample, other in zip(samples, (1, None, 4)):
        sample.scans[1], sample.scans[2] = None, None
        if other is not None:
            generator = generator_of(0, 0, sample.frame, 1)
            sample.scans[1] = make_scan(shards[other], other, settings, generator, columns)
    batch = collate(samples)
    assert list(batch.scans) == [1]
    scan = batch.scans[1]
    assert (scan.owner, scan.frames, scan.image_count) == ((0, 2), (1, 4), (0, 0))
    points, count = batch.clouds()
    assert count == [*batch.point_count, *scan.point_count] and len(points) == sum(count)
    assert torch.equal(points[len(batch.points) :], scan.points)
    second = scan.pair_frame == 1
    expected = shards[4].points[shards[4].pair_point, 3]
    np.testing.assert_array_equal(scan.points[scan.pair_point[second], 3].numpy(), expected)
