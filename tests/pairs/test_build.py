"""build-pairs: whole or not at all, resumable, the same bytes however it is run."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from olivine.common import OlivineError, sha256_file, write_json
from olivine.labelgen.store import LabelStore, open_store
from olivine.pairs import unit
from olivine.pairs.build import build_pairs
from olivine.pairs.check import check_shards
from olivine.pairs.frames import build_frame
from olivine.pairs.project import project_points
from olivine.pairs.settings import PairSettings
from olivine.pairs.shards import open_shards
from olivine.readers.frame import Frame

MakeStore = Callable[..., LabelStore]
SETTINGS = PairSettings()


def contents(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def test_the_keyframe_is_stored_with_its_pairs(keyframe: Frame, keyframe_store: LabelStore, tmp_path: Path) -> None:
    summary = build_pairs(keyframe_store, tmp_path / "val", SETTINGS, split="val")
    (record,) = open_shards(tmp_path / "val")
    point, camera, _ = project_points(keyframe.points(), keyframe.cameras)
    assert summary.pairs == record.pair_count == len(point) > 20_000 and record.point_count == 34_688
    assert np.array_equal(record.pair_point, point) and np.array_equal(record.pair_camera, camera)
    assert np.array_equal(record.points, keyframe.points())
    # The stored geometry stands on its own: its intrinsics project the pairs onto their pixels.
    xyz = np.c_[record.points[record.pair_point, :3].astype(np.float64), np.ones(len(point))]
    in_camera = np.einsum("mij,mj->mi", record.lidar_to_camera[record.pair_camera], xyz)[:, :3]
    pixel = np.einsum("mij,mj->mi", record.intrinsic[record.pair_camera], in_camera)
    assert np.abs(pixel[:, :2] / pixel[:, 2:] - record.pair_uv).max() < 0.01
    assert np.array_equal(np.bincount(record.pair_label, minlength=14), record.class_count)


def test_a_run_after_the_end_does_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 2, "b": 2})
    first = build_pairs(store, tmp_path / "out", SETTINGS, split="train")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    second = build_pairs(store, tmp_path / "out", SETTINGS, split="train")
    assert (first.frames_built, second.frames_built, second.frames_kept) == (4, 0, 4)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


def test_long_scenes_are_cut_into_runs_of_64_frames(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 70, "b": 1}, points=20)
    build_pairs(store, tmp_path / "out", SETTINGS, split="train")
    shards = open_shards(tmp_path / "out")
    assert [len(frames) for frames in shards.shard_ranges] == [64, 6, 1]
    assert shards.scenes == {"a": range(70), "b": range(70, 71)}
    assert [record.frame_index for record in shards] == [*range(70), 0]


@pytest.mark.parametrize("case", ["two workers", "parts", "killed between rename and entry", "a shard is gone"])
def test_the_bytes_do_not_depend_on_how_it_ran(make_store: MakeStore, tmp_path: Path, case: str) -> None:
    store = make_store({"a": 2, "b": 2, "c": 1})
    build_pairs(store, tmp_path / "one", SETTINGS, split="train")
    out = tmp_path / "other"
    if case == "two workers":
        build_pairs(store, out, PairSettings(workers=2), split="train")
    elif case == "parts":
        for i in (2, 0, 1):
            build_pairs(store, out, SETTINGS, split="train", part=(i, 3))
    else:
        build_pairs(store, out, SETTINGS, split="train")
        if case == "a shard is gone":
            shutil.rmtree(out / "shard-00001.zarr")
        else:
            (out / "units" / "shard-00001.json").unlink()
            (out / "manifest.json").unlink()
        assert build_pairs(store, out, SETTINGS, split="train").frames_built == 2
    assert contents(tmp_path / "one") == contents(out)


def _build_in_turn(labels: Path, runs: list[tuple[Path, tuple[int, int]]], together: threading.Barrier) -> None:
    for out, part in runs:
        together.wait()
        build_pairs(open_store(labels), out, SETTINGS, split="train", part=part)


def test_two_writers_at_once_leave_one_whole_set(make_store: MakeStore, tmp_path: Path) -> None:
    """On the same units, and on a part each."""
    store = make_store(dict.fromkeys("abcdefgh", 1), points=20)
    build_pairs(store, tmp_path / "one", SETTINGS, split="train")
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(2)
    same, halves = tmp_path / "same", tmp_path / "halves"
    writers = [
        context.Process(target=_build_in_turn, args=(store.root, [(same, (0, 1)), (halves, (i, 2))], together))
        for i in (0, 1)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert contents(tmp_path / "one") == contents(same) == contents(halves)


def test_shards_made_otherwise_are_not_mixed_and_not_replaced_unasked(make_store: MakeStore, tmp_path: Path) -> None:
    store, out = make_store({"a": 1, "b": 1}), tmp_path / "out"
    build_pairs(store, out, SETTINGS, split="train")
    other = PairSettings(images=False)
    with pytest.raises(OlivineError, match=r"settings\.images was True, now False.*--overwrite"):
        build_pairs(store, out, other, split="train")
    build_pairs(store, out, other, split="train", overwrite=True)
    assert open_shards(out)[1].image is None
    build_pairs(store, tmp_path / "fresh", other, split="train")
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_set_without_images_needs_no_label_maps(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"a": 2})
    for path in store.root.glob("CAM_*"):
        shutil.rmtree(path)
    summary = build_pairs(store, tmp_path / "out", PairSettings(images=False), split="train")
    shards = open_shards(tmp_path / "out")
    assert (
        not summary.failures
        and not shards.has_image
        and shards.read(0, ["image"]).image is None
        and shards.has_point_label
    )
    assert shards.class_count.tolist() == [summary.pairs, 0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        (PairSettings(distance="plane"), lambda p: np.hypot(p[:, 0], p[:, 1])),
        (PairSettings(), lambda p: np.linalg.norm(p[:, :3], axis=1)),
    ],
)
def test_the_density_is_of_the_whole_clouds_distances(
    make_store: MakeStore, settings: PairSettings, check: Callable[[np.ndarray], np.ndarray]
) -> None:
    store = make_store({"a": 1})
    (frame,) = store.index().frames()
    made = build_frame(frame, 0, store, settings)
    d = check(frame.points().astype(np.float64))
    h = 1.06 * np.std(d, ddof=1) * len(d) ** -0.2
    exact = np.exp(-0.5 * ((d[:, None] - d) / h) ** 2).sum(1) / (len(d) * h * np.sqrt(2 * np.pi))
    assert made.bandwidth == pytest.approx(h) and np.allclose(
        made.columns["pair_density"], exact[made.columns["pair_point"]], rtol=1e-3
    )


# -- bad input -------------------------------------------------------------------------------------


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


def test_a_bad_frame_is_left_out_and_named_and_made_when_mended(make_store: MakeStore, tmp_path: Path) -> None:
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
    mended = build_pairs(store, out, SETTINGS, split="train")
    assert not mended.failures and open_shards(out).complete
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
    """Build with the last frame of a scene left out; returns what mends it."""
    frame = [f for f in store.index().frames() if f.scene == scene][-1]
    path = frame.root / frame.point_file
    data = path.read_bytes()
    path.write_bytes(b"")
    assert build_pairs(store, out, SETTINGS, split="train").frames_left_out == 1
    return lambda: path.write_bytes(data)


def test_a_unit_tried_again_keeps_the_frames_that_are_stored(make_store: MakeStore, tmp_path: Path) -> None:
    store, out = make_store({"a": 3}), tmp_path / "out"
    mend = _spoil_then_build(store, out, "a")
    before = {p: p.read_bytes() for p in (out / "shard-00000.zarr").rglob("*") if p.is_file()}
    mend()
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


PROGRAM = """
import sys
from olivine.labelgen.store import open_store
from olivine.pairs.build import build_pairs
from olivine.pairs.check import check_shards
from olivine.pairs.settings import PairSettings
if __name__ == "__main__":
    print("ready", flush=True)
    settings = PairSettings(workers=int(sys.argv[3]))
    for failure in build_pairs(open_store(sys.argv[1]), sys.argv[2], settings, split="train").failures:
        print(f"{failure.unit}: {failure.reason}")
"""


def _start(program: Path, store: LabelStore, out: Path, workers: int) -> subprocess.Popen[str]:
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(store.root), str(out), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@contextmanager
def _held(store: LabelStore) -> Iterator[None]:
    """The last frame's image is a pipe that nobody writes to: no run comes to its end."""
    last = list(store.index().frames())[-1]
    path = last.image_path(last.cameras[0])
    data = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    yield
    path.unlink()
    path.write_bytes(data)


def _wait_for_a_shard(out: Path) -> None:
    for _ in range(1200):
        if list(out.glob("units/*.json")):
            return
        time.sleep(0.05)
    raise AssertionError("no shard after 60 s")


def test_ctrl_c_keeps_what_is_finished_and_leaves_nothing_half_done(make_store: MakeStore, tmp_path: Path) -> None:
    store, out = make_store({f"s{k:02d}": 1 for k in range(8)}, points=20), tmp_path / "out"
    with _held(store):
        process = _start(tmp_path / "program.py", store, out, 2)
        _wait_for_a_shard(out)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and errors.count("Traceback") <= 1
    assert not [path for path in out.rglob("*") if "partial" in path.name]
    kept = open_shards(out)
    assert 0 < len(kept) < 8 and all(len(record.points) for record in kept)
    build_pairs(store, out, SETTINGS, split="train")
    build_pairs(store, tmp_path / "fresh", SETTINGS, split="train")
    assert contents(out) == contents(tmp_path / "fresh")


def test_workers_end_with_their_parent(make_store: MakeStore, tmp_path: Path) -> None:
    store, out = make_store({f"s{k:02d}": 1 for k in range(8)}, points=20), tmp_path / "out"
    with _held(store):
        process = _start(tmp_path / "program.py", store, out, 2)
        _wait_for_a_shard(out)
        process.kill()
        process.communicate(timeout=60)  # returns when the last holder of the pipes, a worker, is gone
    assert len(list(out.glob("units/*.json"))) < 8


def _workers(parent: int) -> list[int]:
    """The worker processes of a run (not multiprocessing's own helper)."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            pid, (_, ppid) = int(status.parent.name), status.read_text().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and b"spawn_main" in (status.parent / "cmdline").read_bytes():
                found.append(pid)
    return found


def test_a_unit_whose_worker_dies_again_and_again_is_set_aside_and_the_rest_is_done(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store, out = make_store({f"s{k:02d}": 1 for k in range(4)}, points=20), tmp_path / "out"
    with _held(store):
        process = _start(tmp_path / "program.py", store, out, 2)
        while len(list(out.glob("units/*.json"))) < 3:
            time.sleep(0.05)
        while process.poll() is None:
            for pid in _workers(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "s03 frames 0-0: its worker process died (signal 9; out of memory?) (3 attempts)" in said
    assert len(open_shards(out)) == 3 and not [path for path in out.rglob("*") if "partial" in path.name]
    assert build_pairs(store, out, SETTINGS, split="train").frames_built == 1
    build_pairs(store, tmp_path / "fresh", SETTINGS, split="train")
    assert contents(out) == contents(tmp_path / "fresh")
