"""Promises of the stream of frames."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.train.augment import AugmentSettings
from olivine.train.loader import FrameStream, StreamSettings, epoch_order
from olivine.train.mixture import ShardMixture
from olivine.train.slots import Slots

AUGMENT = AugmentSettings(crop_min_pairs=20, cuboid_min_pairs=20)
COLUMNS = ("image", "pair_label", "pair_density")


def stream(
    shards: Path, batch: int = 2, part: tuple[int, int] = (0, 2), seed: int = 3, workers: int = 0
) -> FrameStream:
    return FrameStream(shards, StreamSettings(seed, batch, part, (40, 72), AUGMENT, columns=COLUMNS), workers=workers)


def test_an_epoch_holds_every_frame_once_over_all_processes(small_shards: Path) -> None:
    """Five frames, batches of 4 over two processes: 5 steps are four epochs."""
    parts = [stream(small_shards, 4, (0, 2)), stream(small_shards, 4, (2, 4))]
    work = [item for step in range(5) for part in parts for item in part.work_of(step)]
    assert Counter(epoch for epoch, _ in work) == {0: 5, 1: 5, 2: 5, 3: 5}
    for epoch in range(4):
        assert sorted(frame for e, frame in work if e == epoch) == [0, 1, 2, 3, 4]


def test_the_order_changes_with_epoch_and_seed_and_repeats() -> None:
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert epoch_order(50, 1, 1).tolist() == orders[3]


def test_the_order_depends_on_the_batch_in_nothing(small_shards: Path) -> None:
    a, b = stream(small_shards, 2, (0, 2)), stream(small_shards, 5, (0, 5))
    first = [item for step in range(5) for item in a.work_of(step)]
    assert first == [item for step in range(2) for item in b.work_of(step)]


def test_workers_and_the_step_one_starts_at_change_no_byte(small_shards: Path) -> None:
    with stream(small_shards) as alone:
        expected = list(alone.batches(0, 5))
        resumed = list(alone.batches(3, 5))
    with stream(small_shards, workers=2) as helped:
        found = list(helped.batches(0, 5))
        assert helped.waited_s > 0
    for batch, other in [*zip(expected, found), *zip(expected[3:], resumed)]:
        for a, b in zip(batch, other):
            assert a.token == b.token
            for name in ("points", "image", "pair_point", "pair_camera", "pair_label", "pair_uv", "pair_density"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_a_worker_hands_over_in_shared_memory_that_is_taken_back(small_shards: Path) -> None:
    with stream(small_shards, workers=1) as helped:
        count, memory = len(helped.slots.free), np.frombuffer(helped.slots.memory, np.uint8)
        kept = next(iter(helped.batches(0, 5)))
        copy = kept[0].image.copy()
        assert sum(map(len, helped.batches(0, 20))) == 40
        np.testing.assert_array_equal(kept[0].image, copy, err_msg="a sample in use was written over")
        del kept
        for batch in helped.batches(0, 20):
            assert all(np.shares_memory(sample.image, memory) for sample in batch), "came through the pipe"
        del batch
        assert sorted(helped.slots.free) == list(range(count))


def test_what_does_not_fit_into_shared_memory_comes_through_the_pipe() -> None:
    slots = Slots(get_context("spawn"), 1, 1000)
    value = [np.arange(200), np.arange(100, dtype=np.uint8), np.arange(2.0)]
    found = slots.get(*slots.put(value, 0), 0)
    memory = np.frombuffer(slots.memory, np.uint8)
    assert [np.shares_memory(a, memory) for a in found] == [False, True, True]
    for a, b in zip(value, found):
        np.testing.assert_array_equal(a, b)


def test_a_worker_imports_no_torch() -> None:
    code = "import sys, olivine.train.loader, olivine.pairs.shards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_damaged_frame_and_a_set_without_images_are_refused(make_shards: Callable[..., Path]) -> None:
    with pytest.raises(OlivineError, match=r"hold no 'image'.* olivine build-pairs without --no-images"):
        stream(make_shards({"a": 1}, images=False))
    shards = make_shards({"a": 2})
    (chunk,) = [p for p in shards.rglob("*") if p.is_file() and "points" in p.parts and p.name != "zarr.json"]
    data = bytearray(chunk.read_bytes())
    data[len(data) // 3] ^= 1
    chunk.write_bytes(bytes(data))
    with pytest.raises(OlivineError, match="points"):
        list(stream(shards).batches(0, 2))


def test_what_is_not_asked_for_is_neither_read_nor_decoded(small_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from olivine.pairs.shards import Shard

    read: list[str] = []
    whole = Shard.frame
    monkeypatch.setattr(Shard, "frame", lambda self, name, *rest: read.append(name) or whole(self, name, *rest))
    monkeypatch.setattr("olivine.train.augment.decode_crop", None)
    monkeypatch.setattr("olivine.train.augment.decode_segments", None)
    plain = FrameStream(small_shards, StreamSettings(3, 2, (0, 2), (40, 72), AUGMENT))
    (sample,) = next(iter(plain.batches(0, 1)))[:1]
    assert set(read) == {"points", "pair_point", "pair_tag", "pair_uv"}
    assert set(sample.columns) == {"points", "pair_point", "pair_camera", "pair_uv", "image_size"}
    with pytest.raises(AttributeError, match="no column 'pair_label'"):
        _ = sample.pair_label


def test_a_column_that_the_shards_lack_names_the_command_that_adds_it(small_shards: Path) -> None:
    with pytest.raises(OlivineError, match=r"hold no 'segment'.*then olivine build-pairs --segments"):
        FrameStream(small_shards, StreamSettings(3, 2, (0, 2), (40, 72), AUGMENT, columns=("segment",)))


def test_no_voxel_of_a_kitti_frame_has_the_feature_0(kitti_world, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """In pre-training and downstream, on raw intensities of which some are 0; nuScenes' stay as they are."""
    import torch

    from olivine.downstream.data import CloudExamples
    from olivine.pairs.shards import open_shards
    from olivine.train.voxelize import VoxelSettings, voxelize

    shards = open_shards(kitti_world.splits[0])
    raw = shards.points(0)[:, 3]
    loader = FrameStream(kitti_world.splits[0], StreamSettings(0, 1, (0, 1), (40, 72), AUGMENT, shuffle=False))
    (sample,) = next(iter(loader.batches(0, 1)))
    settings = VoxelSettings(size_m=0.1)
    feature = voxelize(torch.from_numpy(sample.points), None, settings).feature
    assert feature.min() >= 1 > raw.min()
    whole = CloudExamples(shards, settings, torch.device("cpu")).whole(0).inputs
    assert whole.voxels.feature.min() >= 1 and whole.points[:, 3].max() == raw.max() + 1


def test_shards_from_before_the_intensity_rule_are_refused_before_a_frame_is_read(
    kitti_world, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    from olivine.pairs.manifest import read_manifest

    def before(path: Path) -> dict:
        manifest = read_manifest(path)
        manifest["recipe"].pop("intensity_offset")
        return manifest

    monkeypatch.setattr("olivine.pairs.shards.read_manifest", before)
    with pytest.raises(OlivineError, match=r"intensity rule.*olivine build-pairs"):
        FrameStream(kitti_world.splits[0], StreamSettings(0, 1, (0, 1), (40, 72), AUGMENT))


SCANS = StreamSettings(
    3, 2, (0, 2), (40, 72), AUGMENT, columns=("image",), scans=(1, -1), scan_columns=("pair_label", "point_label")
)


@pytest.fixture(scope="module")
def split_shards(make_shards: Callable[..., Path]) -> Path:
    """Scenes of five frames and of one, two frames a shard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("olivine.pairs.unit.FRAMES_PER_SHARD", 2)
        return make_shards({"a": 5, "b": 1})


def test_a_frame_comes_with_the_scans_after_and_before_it_across_shards(split_shards: Path) -> None:
    from olivine.pairs.shards import open_shards

    shards = open_shards(split_shards)
    assert [len(frames) for frames in shards.shard_ranges] == [2, 2, 1, 1]
    # A cuboid is dropped; the other points are those of the other frame, by their intensity.
    seen = 0
    for batch in FrameStream(split_shards, SCANS).batches(0, 3):
        for sample in batch:
            scene, number = sample.token.split("-")
            for after in (1, -1):
                scan, wanted = sample.scans[after], int(number) + after
                if scene == "b" or not 0 <= wanted < 5:
                    assert scan is None
                    continue
                assert scan is not None and scan.token == f"a-{wanted:04d}"
                record = shards[scan.frame]
                assert record.token == scan.token
                place = {value: row for row, value in enumerate(record.points[:, 3])}
                row = np.array([place[value] for value in scan.points[:, 3]])
                assert len(row) > 0.5 * len(place)
                np.testing.assert_array_equal(scan.point_label, record.point_label[row])
                pairs = np.flatnonzero(np.isin(record.pair_point, row))
                np.testing.assert_array_equal(row[scan.pair_point], record.pair_point[pairs])
                np.testing.assert_array_equal(scan.pair_label, record.pair_label[pairs])
                seen += 1
    assert seen == 8


def test_scans_are_the_same_with_workers_and_from_any_step_and_leave_the_frame_as_it_is(split_shards: Path) -> None:
    from dataclasses import replace

    with FrameStream(split_shards, SCANS) as alone:
        expected, resumed = list(alone.batches(0, 4)), list(alone.batches(2, 4))
    with FrameStream(split_shards, SCANS, workers=1) as helped:
        found = list(helped.batches(0, 4))
    single = list(FrameStream(split_shards, replace(SCANS, scans=())).batches(0, 4))
    for batch, other in [*zip(expected, found), *zip(expected[2:], resumed)]:
        for a, b in zip(batch, other):
            assert a.token == b.token and a.scans.keys() == b.scans.keys() == {1, -1}
            for after in (1, -1):
                one, two = a.scans[after], b.scans[after]
                assert (one is None) == (two is None)
                if one is not None and two is not None:
                    assert one.columns.keys() == two.columns.keys()
                    for name in one.columns:
                        np.testing.assert_array_equal(one.columns[name], two.columns[name], err_msg=name)
    for batch, other in zip(expected, single):
        for a, b in zip(batch, other):
            assert not b.scans
            for name in a.columns:
                np.testing.assert_array_equal(a.columns[name], b.columns[name], err_msg=name)


def test_of_another_scan_nothing_is_read_but_its_points_and_what_is_asked_for(
    split_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from olivine.pairs.shards import Shard

    read: list[str] = []
    whole = Shard.frame
    monkeypatch.setattr(Shard, "frame", lambda self, name, *rest: read.append(name) or whole(self, name, *rest))

    def names(scans: tuple[int, ...], columns: tuple[str, ...] = ()) -> Counter[str]:
        settings = replace(SCANS, batch=6, part=(0, 6), columns=(), scans=scans, scan_columns=columns)
        read.clear()
        assert len(next(iter(FrameStream(split_shards, settings).batches(0, 1)))) == 6
        return Counter(read)

    alone = names(())
    assert names((1,)) - alone == Counter({"points": 4})
    assert names((1,), ("pair_label",)) - alone == Counter({"points": 4, "pair_point": 4, "pair_tag": 4})


@pytest.mark.parametrize("several", [False, True])
def test_workers_refuse_shards_that_build_pairs_has_changed_since_the_run_opened_them(
    several: bool, make_shards: Callable[..., Path], enter_more: Callable[[Path], None]
) -> None:
    shards = make_shards({"a": 2})
    settings = StreamSettings(3, 2, (0, 2), (40, 72), AUGMENT, columns=COLUMNS)
    with FrameStream(ShardMixture({str(shards): 1.0}) if several else shards, settings, workers=1) as opened:
        enter_more(shards)
        with pytest.raises(OlivineError, match=r"has changed since this run opened it.*run the command again"):
            list(opened.batches(0, 1))
