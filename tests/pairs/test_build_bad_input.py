"""build-pairs on bad input: a line that names the file, and the rest is done."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from olivine.common import OlivineError, sha256_file, write_json
from olivine.labelgen.store import LabelStore
from olivine.pairs import unit
from olivine.pairs.build import build_pairs
from olivine.pairs.check import check_shards
from olivine.pairs.settings import PairSettings
from olivine.pairs.shards import open_shards
from olivine.readers.frame import Frame

MakeStore = Callable[..., LabelStore]
Contents = Callable[[Path], dict[str, bytes]]
SETTINGS = PairSettings()


def _spoil_image(frame: Frame, store: LabelStore) -> str:
    path = frame.image_path(frame.cameras[0])
    path.write_bytes(path.read_bytes()[:-200])
    return path.name


def _spoil_points(frame: Frame, store: LabelStore) -> str:
    path = frame.root / frame.point_file
    path.write_bytes(path.read_bytes()[:-3])
    return path.name


def _nan_points(frame: Frame, store: LabelStore) -> str:
    points = frame.points()
    points[3, 1] = np.nan
    points.tofile(frame.root / frame.point_file)
    return "not finite"


def _empty_cloud(frame: Frame, store: LabelStore) -> str:
    (frame.root / frame.point_file).write_bytes(b"")
    return "empty"


def _cloud_behind(frame: Frame, store: LabelStore) -> str:
    points = frame.points()
    points[:, :3] = (0.1, 0.1, 5)
    points.tofile(frame.root / frame.point_file)
    return "no camera sees"


def _no_label_map(frame: Frame, store: LabelStore) -> str:
    store.label_path(frame.cameras[1]).unlink()
    return "label map"


def _small_label_map(frame: Frame, store: LabelStore) -> str:
    from PIL import Image

    Image.fromarray(np.zeros((18, 32), np.uint8)).save(store.label_path(frame.cameras[1]))
    return "32x18"


def _class_beyond(frame: Frame, store: LabelStore) -> str:
    from PIL import Image

    Image.fromarray(np.full((36, 64), 9, np.uint8)).save(store.label_path(frame.cameras[1]))
    return "the value 9"


def _short_point_labels(frame: Frame, store: LabelStore) -> str:
    assert frame.point_label_file
    (frame.root / frame.point_label_file).write_bytes(b"\0\0")
    return "2 labels for"


SPOILERS = [
    _spoil_image, _spoil_points, _nan_points, _empty_cloud, _cloud_behind, _no_label_map, _small_label_map,
    _class_beyond, _short_point_labels,
]  # fmt: skip


def test_a_bad_frame_is_left_out_and_named_and_made_when_repaired(
    contents: Contents, make_store: MakeStore, tmp_path: Path
) -> None:
    """A scene for each fault: its second frame of three is bad."""
    faults = {spoil.__name__.strip("_"): spoil for spoil in SPOILERS}
    store, out = make_store({**dict.fromkeys(faults, 3), "good": 1}), tmp_path / "out"
    shutil.copytree(tmp_path / "raw", tmp_path / "raw-good")
    shutil.copytree(tmp_path / "labels", tmp_path / "labels-good")
    bad = {frame.scene: frame for frame in store.index().frames() if frame.token.endswith("-0001")}
    said = {scene: spoil(bad[scene], store) for scene, spoil in faults.items()}
    summary = build_pairs(store, out, SETTINGS, split="train")
    reasons = {failure.unit: failure.reason for failure in summary.failures}
    assert set(reasons) == {f"{scene} frame {scene}-token-0001" for scene in faults}
    for scene, what in said.items():
        reason = reasons[f"{scene} frame {scene}-token-0001"]
        assert what in reason and "\n" not in reason
    shards = open_shards(out)
    kept = [f"{scene}-token-{k:04d}" for scene in faults for k in (0, 2)] + ["good-token-0000"]
    assert sorted(record.token for record in shards) == sorted(kept)
    assert not shards.complete and sum(bool(shard["left_out"]) for shard in shards.manifest["shards"]) == len(faults)
    again = build_pairs(store, out, SETTINGS, split="train")
    assert len(again.failures) == again.frames_left_out == len(faults) and again.frames_kept == 1

    shutil.copytree(tmp_path / "raw-good", tmp_path / "raw", dirs_exist_ok=True)
    shutil.copytree(tmp_path / "labels-good", tmp_path / "labels", dirs_exist_ok=True)
    repaired = build_pairs(store, out, SETTINGS, split="train")
    assert not repaired.failures and open_shards(out).complete
    build_pairs(store, tmp_path / "fresh", SETTINGS, split="train")
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_camera_that_sees_nothing_is_no_mistake(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 1})
    (frame,) = store.index().frames()
    points = frame.points()
    points[:, 0] = np.abs(points[:, 0])
    points.tofile(frame.root / frame.point_file)
    assert not build_pairs(store, tmp_path / "out", SETTINGS, split="train").failures
    (record,) = open_shards(tmp_path / "out")
    assert set(record.pair_camera) == {0} and len(record.image or []) == 2


def test_a_cloud_of_one_point_is_stored(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 1})
    (frame,) = store.index().frames()
    np.array([[5, 0.1, 0.2, 9]], np.float32).tofile(frame.root / frame.point_file)
    assert frame.point_label_file
    (frame.root / frame.point_label_file).write_bytes(b"\1")
    build_pairs(store, tmp_path / "out", SETTINGS, split="train")
    (record,) = open_shards(tmp_path / "out")
    assert record.point_count == record.pair_count == 1 and record.bandwidth == 1e-3
    assert record.pair_density[0] == pytest.approx(1 / (1e-3 * np.sqrt(2 * np.pi)))


def test_when_no_frame_can_be_built_it_says_why(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 1})
    _empty_cloud(next(store.index().frames()), store)
    summary = build_pairs(store, tmp_path / "out", SETTINGS, split="train")  # no error: another split may come next
    assert (summary.frames, summary.shards, summary.frames_left_out) == (0, 0, 1)
    (failure,) = summary.failures
    assert failure.unit == "a frame a-token-0000" and "empty" in failure.reason
    assert len(open_shards(tmp_path / "out")) == 0


def test_a_shard_that_is_a_link_is_left_alone_and_the_rest_is_done(make_store: MakeStore, tmp_path: Path) -> None:
    store, out = make_store({"a": 2, "b": 2, "c": 1}), tmp_path / "out"
    good = _spoil_then_build(store, out, "a")
    # The unit has a frame left out, so the next run tries it again.
    shutil.move(out / "shard-00000.zarr", tmp_path / "elsewhere.zarr")
    (out / "shard-00000.zarr").symlink_to(tmp_path / "elsewhere.zarr")
    before = (tmp_path / "elsewhere.zarr" / "zarr.json").read_bytes()
    shutil.rmtree(out / "shard-00001.zarr")
    good()
    summary = build_pairs(store, out, SETTINGS, split="train")
    (failure,) = summary.failures
    assert "shard-00000.zarr: is a link" in failure.reason
    assert (summary.frames, summary.frames_built, summary.frames_kept) == (4, 2, 2)
    assert (tmp_path / "elsewhere.zarr" / "zarr.json").read_bytes() == before
    assert [record.token for record in open_shards(out)] == [
        "a-token-0000", "b-token-0000", "b-token-0001", "c-token-0000"
    ]  # fmt: skip


def _spoil_then_build(store: LabelStore, out: Path, scene: str) -> Callable[[], object]:
    """Build with the last frame of a scene left out; returns what repairs it."""
    frame = [f for f in store.index().frames() if f.scene == scene][-1]
    path = frame.root / frame.point_file
    data = path.read_bytes()
    path.write_bytes(b"")
    assert build_pairs(store, out, SETTINGS, split="train").frames_left_out == 1
    return lambda: path.write_bytes(data)


def test_a_unit_tried_again_keeps_the_frames_that_are_stored(make_store: MakeStore, tmp_path: Path) -> None:
    store, out = make_store({"a": 3}), tmp_path / "out"
    repair = _spoil_then_build(store, out, "a")
    before = {p: p.read_bytes() for p in (out / "shard-00000.zarr").rglob("*") if p.is_file()}
    repair()
    first = next(store.index().frames())
    image = first.image_path(first.cameras[0])
    data = image.read_bytes()
    image.write_bytes(data[:100])  # a frame that is stored cannot be built now
    summary = build_pairs(store, out, SETTINGS, split="train")
    assert (summary.frames, summary.frames_built, summary.frames_kept, summary.frames_left_out) == (2, 0, 2, 1)
    assert [failure.unit for failure in summary.failures] == ["a frame a-token-0000"]
    assert before == {p: p.read_bytes() for p in (out / "shard-00000.zarr").rglob("*") if p.is_file()}
    image.write_bytes(data)
    assert build_pairs(store, out, SETTINGS, split="train").frames == 3


def test_a_shard_whose_replacement_fails_stays_in_the_set(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = make_store({"a": 2}), tmp_path / "out"
    _spoil_then_build(store, out, "a")()
    real = os.replace

    def full(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        if Path(target).name == "shard-00000.zarr":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OlivineError, match="disk is full"):
            build_pairs(store, out, SETTINGS, split="train")
    assert [record.token for record in open_shards(out)] == ["a-token-0000"]
    assert not check_shards(out).failures
    assert build_pairs(store, out, SETTINGS, split="train").frames == 2


@pytest.mark.filterwarnings("ignore:coroutine")
def test_a_thread_that_could_not_be_started_is_not_waited_for(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zarr's thread, where memory is short: the unit is tried again, and zarr alone would wait for ever."""
    from zarr.core import sync

    monkeypatch.setattr(sync, "loop", [None])
    monkeypatch.setattr(sync, "iothread", [None])
    real, refused = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if thread.name == "zarr_io" and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    store = make_store({"a": 1})
    assert build_pairs(store, tmp_path / "out", SETTINGS, split="train").failures == []
    assert refused


def test_files_that_are_no_units_are_no_units(make_store: MakeStore, tmp_path: Path) -> None:
    store, out = make_store({"a": 1}), tmp_path / "out"
    build_pairs(store, out, SETTINGS, split="train")
    for name in ("shard-abc.json", "shard-.json", "shard-1-2.json", "shard-00007.json"):
        (out / "units" / name).write_text("{}")
    assert build_pairs(store, out, SETTINGS, split="train").frames == 1


def test_a_changed_label_map_a_changed_index_and_a_point_too_far_are_named(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store({"a": 2, "b": 2, "c": 1})
    frames = list(store.index().frames())
    camera = frames[0].cameras[0]
    record = {"images": [camera.key], "sha256": [sha256_file(store.label_path(camera))], "detections": {}}
    record |= {"pixels": [], "notes": {}}
    record["detections"] = {c: [] for c in ("image", "box", "score", "text_score", "class", "area")}
    write_json(store.root / "units" / "a.json", record)
    data = bytearray(store.label_path(camera).read_bytes())
    data[-20] ^= 1
    store.label_path(camera).write_bytes(data)
    index = store.root / "frames" / "b.jsonl"
    index.write_text(index.read_text().replace("31.5", "31.6", 1))
    points = frames[4].points()
    points[0, 0] = 1e38
    points.tofile(frames[4].root / frames[4].point_file)
    summary = build_pairs(store, tmp_path / "out", SETTINGS, split="train")
    assert summary.frames == 1
    reasons = {failure.unit: failure.reason for failure in summary.failures}
    assert "has other bytes than its record says" in reasons["a frame a-token-0000"]
    assert "b.jsonl: has other bytes than the index says" in reasons["b frames 0-1"]
    assert "1 points are over 100000 m away" in reasons["c frame c-token-0000"]


def test_a_split_without_frames_names_those_that_have_some(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(OlivineError, match=r"no val frames.*Choose one of: train"):
        build_pairs(make_store({"a": 1}), tmp_path / "out", SETTINGS, split="val")


def test_a_full_disk_is_one_line_and_leaves_what_was_finished(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = make_store({"a": 1, "b": 1}), tmp_path / "out"
    real, written = unit.write_shard, []

    def full(folder: Path, *rest: object) -> None:
        if written:
            (folder / "points").mkdir(parents=True)
            raise OSError(28, "No space left on device")
        written.append(folder)
        real(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(unit, "write_shard", full)
    with pytest.raises(OlivineError, match="disk is full"):
        build_pairs(store, out, SETTINGS, split="train")
    assert len(open_shards(out)) == 1 and len(open_shards(out)[0].points)
    assert not [path for path in out.rglob("*") if "partial" in path.name]
    monkeypatch.setattr(unit, "write_shard", real)
    assert build_pairs(store, out, SETTINGS, split="train").frames_built == 1


@pytest.mark.parametrize("change", [{"image_scale": 2.0}, {"image_scale": "big"}, {"bandwidth": "box"}, {"workers": 0}])
def test_settings_that_make_no_sense_are_refused_by_name(change: dict) -> None:
    with pytest.raises(OlivineError, match=next(iter(change))):
        PairSettings(**change)


def test_segments_of_a_store_without_any_are_refused_at_once(keyframe_store: LabelStore, tmp_path: Path) -> None:
    with pytest.raises(OlivineError, match="no segment maps"):
        build_pairs(keyframe_store, tmp_path / "out", PairSettings(segments=True), split="val")
    assert not (tmp_path / "out").exists()
