"""The published parts of data sets."""

from __future__ import annotations

import pytest

from olivine.common import OlivineError
from olivine.downstream.benchmarks import training_frames
from olivine.readers import dataset_class


def stand_in(dataset: str, scenes: int, frames: int):
    ranges = {f"s{i}": range(i * frames, (i + 1) * frames) for i in range(scenes)}

    class Shards(list):
        pass

    shards = Shards(range(scenes * frames))
    shards.benchmark, shards.scenes, shards.path = dataset_class(dataset).benchmark("v1.0-trainval"), ranges, "shards"
    return shards


@pytest.mark.parametrize(("percent", "count"), [(1, 7), (5, 35), (10, 70), (25, 175), (100, 700)])
def test_nuscenes_subsets_are_every_kth_scene_as_published(percent, count):
    frames = training_frames(stand_in("nuscenes", 700, 2), percent)
    every = round(100 / percent)
    assert len(frames) == 2 * count
    assert frames[:2] == [2 * (every - 1), 2 * (every - 1) + 1]
    assert (frames[-1] + 1) // 2 == 700 // every * every


def test_semantickitti_subsets_are_every_kth_frame_from_the_first():
    assert training_frames(stand_in("semantickitti", 2, 150), 1) == [0, 100, 200]
    assert training_frames(stand_in("semantickitti", 2, 150), 100) == list(range(300))


@pytest.mark.parametrize(("dataset", "percent"), [("nuscenes", 1), ("nuscenes", 25), ("semantickitti", 5)])
def test_the_parts_of_a_fraction_are_the_whole_set_without_a_frame_twice(dataset, percent):
    shards = stand_in(dataset, 200, 3)
    parts = [training_frames(shards, percent, part) for part in range(100 // percent)]
    assert parts[0] == training_frames(shards, percent)
    assert sorted(frame for part in parts for frame in part) == list(range(600))
    with pytest.raises(OlivineError, match=rf"part: no part {len(parts)} of {len(parts)}.*Use 0 to {len(parts) - 1}"):
        training_frames(shards, percent, len(parts))


def test_a_fraction_without_a_rule_is_refused():
    with pytest.raises(OlivineError, match="30 % is not every k-th"):
        training_frames(stand_in("nuscenes", 700, 2), 30)
