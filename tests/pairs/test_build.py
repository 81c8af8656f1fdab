"""build-pairs: whole or not at all, resumable, the same bytes however it is run."""

from __future__ import annotations

import multiprocessing
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from olivine.common import OlivineError, sha256_file
from olivine.labelgen.store import LabelStore, encode_label_map, open_store, write_record
from olivine.pairs.build import build_pairs
from olivine.pairs.frames import build_frame
from olivine.pairs.label_report import check_labels
from olivine.pairs.project import project_points
from olivine.pairs.settings import PairSettings
from olivine.pairs.shards import open_shards
from olivine.readers.frame import Frame

MakeStore = Callable[..., LabelStore]
Contents = Callable[[Path], dict[str, bytes]]
SETTINGS = PairSettings()


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
def test_the_bytes_do_not_depend_on_how_it_ran(
    contents: Contents, make_store: MakeStore, tmp_path: Path, case: str
) -> None:
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


def test_two_writers_at_once_leave_one_whole_set(contents: Contents, make_store: MakeStore, tmp_path: Path) -> None:
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


def test_shards_made_otherwise_are_not_mixed_and_not_replaced_unasked(
    contents: Contents, make_store: MakeStore, tmp_path: Path
) -> None:
    store, out = make_store({"a": 1, "b": 1}), tmp_path / "out"
    build_pairs(store, out, SETTINGS, split="train")
    other = PairSettings(images=False)
    with pytest.raises(OlivineError, match=r"settings\.images was True, now False.*--overwrite"):
        build_pairs(store, out, other, split="train")
    build_pairs(store, out, other, split="train", overwrite=True)
    assert open_shards(out)[1].image is None
    build_pairs(store, tmp_path / "fresh", other, split="train")
    assert contents(out) == contents(tmp_path / "fresh")


def _record_maps(store: LabelStore, scene: str) -> None:
    """Enter a scene's label maps as they are now, as labelgen does at its end."""
    frames = [frame for frame in store.index().frames() if frame.scene == scene]
    paths = {camera.key: store.label_path(camera) for frame in frames for camera in frame.cameras}
    record = {
        "images": list(paths),
        "sha256": [sha256_file(path) for path in paths.values()],
        "pixels": [],
        "notes": {},
        "detections": {"image": [], "box": [], "score": [], "text_score": [], "class": [], "area": []},
    }
    write_record(store.root / "units" / f"{scene}.json", record)


def test_label_maps_made_again_are_not_mixed_with_shards_of_those_before(
    contents: Contents, make_store: MakeStore, tmp_path: Path
) -> None:
    """The manifest says how labels were made; imported ones can be others all the same."""
    store, out = make_store({"a": 1, "b": 1, "c": 1}), tmp_path / "out"
    for scene in "ab":
        _record_maps(store, scene)
    build_pairs(store, out, SETTINGS, split="train")
    _record_maps(store, "c")  # not known when its shard was built, so nothing is known against it
    assert build_pairs(store, out, SETTINGS, split="train").frames_kept == 3
    first = next(store.index().frames()).cameras[0]
    label = store.label_map(first)
    store.label_path(first).write_bytes(
        encode_label_map(np.where(label == 1, 2, label).astype(np.uint8), store.classes)
    )
    _record_maps(store, "a")
    before = contents(out)
    with pytest.raises(OlivineError, match=r"1 of its 3 shards, that of a the first, were built of other label maps"):
        build_pairs(store, out, SETTINGS, split="train")
    with pytest.raises(OlivineError, match="holds other labels than these shards were made of"):
        check_labels(out, store)
    assert contents(out) == before
    build_pairs(store, out, SETTINGS, split="train", overwrite=True)
    build_pairs(store, tmp_path / "fresh", SETTINGS, split="train")
    assert contents(out) == contents(tmp_path / "fresh")
    check_labels(out, store)


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
