"""Runs: resuming, parts, other settings, interruption, a full disk."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import olivine.labelgen.units as units_module
import olivine.labelgen.work as work_module
from olivine.common import OlivineError
from olivine.labelgen.labeler import BatchResult, Labelled
from olivine.labelgen.run import generate_labels, plan_labels
from olivine.labelgen.score import score_labels
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store, read_record
from olivine.labelgen.units import unit_batches
from olivine.labelgen.verify import verify_labels
from olivine.readers.index import write_index

ORACLE = LabelSettings("oracle")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_second_run_does_nothing(make_world, tmp_path):
    world = make_world()
    first = generate_labels(world.index, tmp_path / "labels", ORACLE)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "labels").rglob("*")}
    second = generate_labels(world.index, tmp_path / "labels", ORACLE)
    assert (first.images, second.images, second.images_kept, second.units_kept) == (12, 0, 12, 2)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "labels").rglob("*")}
    assert (first.detections, first.pixels) == (second.detections, second.pixels)


def test_what_is_missing_is_made_again_and_nothing_else(make_world, tmp_path):
    world = make_world()
    generate_labels(world.index, tmp_path / "labels", ORACLE)
    before = contents(tmp_path / "labels")
    gone = open_store(tmp_path / "labels").label_path(next(world.index.frames()).cameras[0])
    gone.unlink()
    again = generate_labels(world.index, tmp_path / "labels", ORACLE)
    assert (again.units_kept, again.images) == (1, 6)
    assert contents(tmp_path / "labels") == before


def test_parts_make_together_what_one_run_makes(make_world, tmp_path):
    world = make_world(3, 2)
    generate_labels(world.index, tmp_path / "one", ORACLE)
    done = [generate_labels(world.index, tmp_path / "parts", ORACLE, part=(i, 2)).units for i in range(2)]
    assert done == [2, 1]
    assert contents(tmp_path / "one") == contents(tmp_path / "parts")
    for part in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(OlivineError, match="is not a part"):
            generate_labels(world.index, tmp_path / "parts", ORACLE, part=part)


def test_a_store_made_with_other_settings_is_refused_unless_overwritten(make_world, tmp_path):
    world = make_world()
    labels = tmp_path / "labels"
    generate_labels(world.index, labels, ORACLE)
    other = LabelSettings("oracle", seed=5)
    before = contents(labels)
    with pytest.raises(OlivineError, match=r"settings\.seed was 0 and is now 5.*--overwrite"):
        generate_labels(world.index, labels, other)
    assert contents(labels) == before
    summary = generate_labels(world.index, labels, other, overwrite=True)
    assert summary.images == 12
    generate_labels(world.index, tmp_path / "fresh", other)
    assert contents(labels) == contents(tmp_path / "fresh")


def test_other_settings_leave_no_old_map_even_in_other_parts(make_world, tmp_path):
    world = make_world()
    generate_labels(world.index, tmp_path / "labels", ORACLE)
    generate_labels(world.index, tmp_path / "labels", LabelSettings("oracle", seed=5), part=(0, 2), overwrite=True)
    assert len(list((tmp_path / "labels").glob("CAM_*/*.png"))) == 6
    generate_labels(world.index, tmp_path / "labels", LabelSettings("oracle", seed=5), part=(1, 2))
    assert len(list((tmp_path / "labels").glob("CAM_*/*.png"))) == 12


def test_other_settings_leave_no_old_map_beyond_the_limit(make_world, tmp_path):
    world, other, labels = make_world(), LabelSettings("oracle", seed=5), tmp_path / "labels"
    generate_labels(world.index, labels, ORACLE)
    assert generate_labels(world.index, labels, other, limit=1, overwrite=True).units == 1
    generate_labels(world.index, labels, other)
    generate_labels(world.index, tmp_path / "fresh", other)
    assert contents(labels) == contents(tmp_path / "fresh")


def test_images_that_were_replaced_under_their_names_are_labelled_again(make_world, tmp_path):
    """Files are numbered alike in every recording, and in every synthetic SemanticKITTI."""
    world, labels = make_world(2, 2), tmp_path / "labels"
    generate_labels(world.index, labels, ORACLE)
    path = next(world.index.frames()).image_path(next(world.index.frames()).cameras[0])
    Image.new("RGB", Image.open(path).size).save(path)
    assert plan_labels(world.index, labels, ORACLE, 2).open == (0,)  # nor does a cluster leave them out
    summary = generate_labels(world.index, labels, ORACLE)
    assert (summary.images_kept, summary.images) == (4, 4)  # that scene's
    assert plan_labels(world.index, labels, ORACLE, 2).open == ()
    path.unlink()
    assert generate_labels(world.index, labels, ORACLE).images == 0


def test_a_list_of_other_frames_than_the_labels_is_refused(make_world, tmp_path):
    world, labels = make_world(1, 1), tmp_path / "labels"
    generate_labels(world.index, labels, ORACLE)
    shutil.copytree(world.root / "frames", labels / "frames")
    assert open_store(labels).index().digest == world.index.digest
    frames = [replace(frame, version="v1.0-trainval") for frame in world.index.frames()]
    write_index(labels / "frames", frames, dataset="nuscenes", version="v1.0-trainval", root=world.root)
    with pytest.raises(
        OlivineError, match=r"frames of nuscenes v1\.0-trainval.*maps are of nuscenes v1\.0-mini.*again"
    ):
        open_store(labels).index()


def test_a_run_that_failed_before_its_first_batch_binds_nobody(make_world, tmp_path, monkeypatch):
    world = make_world(1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(
            "olivine.labelgen.oracle.OracleLabeler.prepare", lambda self: (_ for _ in ()).throw(OlivineError("x"))
        )
        with pytest.raises(OlivineError):
            generate_labels(world.index, tmp_path / "labels", LabelSettings("oracle", seed=5))
    assert generate_labels(world.index, tmp_path / "labels", ORACLE).images == 2


def test_new_scenes_join_a_store(make_world, tmp_path):
    small = make_world(1, 2)
    generate_labels(small.index, tmp_path / "labels", ORACLE)
    summary = generate_labels(make_world(2, 2).index, tmp_path / "labels", ORACLE)
    assert (summary.images_kept, summary.images) == (4, 4)


class Interrupting:
    """The real labeler's label method, with Ctrl-C in the n-th batch."""

    def __init__(self, after: int):
        self.left = after
        from olivine.labelgen.oracle import OracleLabeler

        self.original = OracleLabeler.label

    def __call__(self, labeler, tasks, images):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.original(labeler, tasks, images)


@pytest.mark.parametrize("after", [0, 1, 5, 7, 11])
def test_ctrl_c_keeps_what_is_finished_and_the_next_run_ends_the_same(after, make_world, tmp_path, monkeypatch):
    world = make_world()
    generate_labels(world.index, tmp_path / "whole", ORACLE)
    with monkeypatch.context() as patch:
        interrupting = Interrupting(after)
        patch.setattr(
            "olivine.labelgen.oracle.OracleLabeler.label", lambda self, tasks, images: interrupting(self, tasks, images)
        )
        with pytest.raises(KeyboardInterrupt):
            generate_labels(world.index, tmp_path / "labels", ORACLE)
    kept = list((tmp_path / "labels").glob("CAM_*/*.png"))
    assert not list((tmp_path / "labels").rglob("*.partial-*"))
    for path in kept:
        assert path.read_bytes() == (tmp_path / "whole" / path.relative_to(tmp_path / "labels")).read_bytes()
    summary = generate_labels(world.index, tmp_path / "labels", ORACLE)
    assert summary.images_kept == len(kept) and summary.images == 12 - len(kept)
    assert contents(tmp_path / "labels") == contents(tmp_path / "whole")


def test_a_full_disk_stops_the_run_with_one_line_and_keeps_what_is_finished(make_world, tmp_path, monkeypatch):
    world = make_world()
    written = []
    original = units_module.write_bytes

    def write_until_full(path, data):
        if len(written) == 9:
            from olivine.common import disk_error

            raise disk_error(OSError(errno.ENOSPC, "No space left on device"), path)
        written.append(path)
        original(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(units_module, "write_bytes", write_until_full)
        with pytest.raises(OlivineError, match="the disk is full"):
            generate_labels(world.index, tmp_path / "labels", ORACLE)
    assert all(path.exists() for path in written)
    generate_labels(world.index, tmp_path / "labels", ORACLE)
    generate_labels(world.index, tmp_path / "whole", ORACLE)
    assert contents(tmp_path / "labels") == contents(tmp_path / "whole")


class StubLabeler:
    """Sees pixels, and says what it saw: the batches and their sizes."""

    name, needs_image, batch_size, packages = "stub", True, 3, ("numpy",)

    def __init__(self):
        self.batches: list[list[str]] = []

    def resolved(self):
        return {}

    def weights(self):
        return {}

    def prepare(self):
        self.batches.append([])

    def label(self, tasks, images):
        assert len({image.shape for image in images}) == 1
        self.batches.append([task.camera.key for task in tasks])
        return BatchResult(tuple(Labelled((image[..., 0] % 14).astype(np.uint8)) for image in images))


def test_batches_hold_images_of_one_size_and_an_incomplete_one_is_redone_whole(make_world, tmp_path, monkeypatch):
    world = make_world(1, 4)  # 8 images, two sizes of 4: batches of 3, 1, 3, 1
    frames = list(world.index.frames())
    bad = frames[1].image_path(frames[1].cameras[0])
    image = bad.read_bytes()
    bad.write_bytes(image[:100])
    stub = StubLabeler()
    monkeypatch.setattr(work_module, "make_labeler", lambda *_: stub)
    summary = generate_labels(world.index, tmp_path / "labels", LabelSettings("oracle"))
    assert [len(b) for b in stub.batches] == [0, 2, 1, 3, 1] and len(summary.failures) == 1
    bad.write_bytes(image)
    again = generate_labels(world.index, tmp_path / "labels", LabelSettings("oracle"))
    assert [len(b) for b in stub.batches[5:]] == [0, 3]
    assert (again.images, again.images_kept, again.failures) == (3, 5, [])
    record = open_store(tmp_path / "labels").unit("scene-0000")
    assert record["batches"] == [3, 1, 3, 1] and len(record["images"]) == 8


def test_batches_are_a_fixed_function_of_unit_and_batch_size(make_world):
    from olivine.labelgen.labeler import ImageTask

    frames = list(make_world(1, 4).index.frames())
    tasks = [ImageTask(f, i) for f in frames for i in range(2)]
    assert [[t.camera.key for t in b] for b in unit_batches(tasks, 3)] == [
        [f"CAM_FRONT/scene-0000-{i}" for i in (0, 1, 2)],
        ["CAM_FRONT/scene-0000-3"],
        [f"CAM_BACK/scene-0000-{i}" for i in (0, 1, 2)],
        ["CAM_BACK/scene-0000-3"],
    ]


def test_an_image_that_several_frames_have_is_labelled_once(make_world, tmp_path, monkeypatch):
    """Of a camera that is slower than the LiDAR."""
    world, labels = make_world(1, 4), tmp_path / "labels"
    frames = list(world.index.frames())
    slow = [replace(f, cameras=(frames[k // 2 * 2].cameras[0], f.cameras[1])) for k, f in enumerate(frames)]
    index = write_index(tmp_path / "slow", slow, dataset="nuscenes", version="v1.0-mini", root=world.index.root)
    stub = StubLabeler()
    monkeypatch.setattr(work_module, "make_labeler", lambda *_: stub)
    summary = generate_labels(index, labels, ORACLE)
    assert (summary.images, summary.failures, [len(b) for b in stub.batches]) == (6, [], [0, 2, 3, 1])
    images = open_store(labels).unit("scene-0000")["images"]
    assert len(images) == len(set(images)) == 6
    assert generate_labels(index, labels, ORACLE).units_kept == 1


def test_a_change_of_the_list_of_images_keeps_the_maps_of_those_that_stay(make_world, tmp_path, monkeypatch):
    """As where a user takes every cloud of a recording and not every second one."""
    world, labels = make_world(1, 4), tmp_path / "labels"
    frames = list(world.index.frames())

    def listed(name, some):
        root = world.index.root
        return write_index(tmp_path / name, some, dataset="nuscenes", version="v1.0-mini", root=root)

    stub = StubLabeler()
    monkeypatch.setattr(work_module, "make_labeler", lambda *_: stub)
    generate_labels(listed("half", frames[::2]), labels, ORACLE)  # two batches of 2
    maps = {path: path.read_bytes() for path in labels.glob("CAM_*/*.png")}
    stub.batches.clear()
    summary = generate_labels(listed("all", frames), labels, ORACLE)  # batches of 3, 1, 3, 1
    assert (summary.images, summary.images_kept, summary.failures) == (4, 4, [])
    made = [key for batch in stub.batches for key in batch]
    assert sorted(made) == sorted(c.key for f in frames[1::2] for c in f.cameras)
    assert all(path.read_bytes() == data for path, data in maps.items())
    # The record is that of a run on all of them, but for the notes.
    generate_labels(world.index, tmp_path / "whole", ORACLE)
    mine, whole = (open_store(folder).unit("scene-0000") for folder in (labels, tmp_path / "whole"))
    assert mine["notes"] and {**mine, "notes": {}} == whole
    # Back again: nothing is labelled, no model loaded, and the batches are what they were.
    stub.batches.clear()
    assert generate_labels(listed("again", frames[::2]), labels, ORACLE).images == 0 and stub.batches == []
    # A map that was changed is made again.
    (labels / f"{frames[0].cameras[0].key}.png").write_bytes(b"")
    assert generate_labels(listed("more", frames[:3]), labels, ORACLE).images == 3


def test_detections_stay_with_the_maps_that_are_kept(make_world, tmp_path):
    world, labels = make_world(1, 4), tmp_path / "labels"
    frames = list(world.index.frames())
    for name, some in (("half", frames[1::2]), ("all", frames)):
        root = world.index.root
        index = write_index(tmp_path / name, some, dataset="nuscenes", version="v1.0-mini", root=root)
        summary = generate_labels(index, labels, ORACLE)
    generate_labels(world.index, tmp_path / "whole", ORACLE)
    mine, whole = (open_store(folder).unit("scene-0000") for folder in (labels, tmp_path / "whole"))
    assert summary.images_kept == 4 and mine["detections"]["image"] and {**mine, "notes": {}} == whole


def test_the_store_refuses_what_is_no_store_and_names_what_is_wrong_with_a_map(make_world, tmp_path):
    world = make_world(1, 1)
    with pytest.raises(OlivineError, match="Run olivine labelgen first"):
        open_store(tmp_path / "nowhere")
    labels = tmp_path / "labels"
    generate_labels(world.index, labels, ORACLE)
    store = open_store(labels)
    assert (
        store.digest == open_store(labels).digest and store.segment_map(next(world.index.frames()).cameras[0]) is None
    )
    camera = next(world.index.frames()).cameras[0]
    path = store.label_path(camera)
    shutil.rmtree(labels / "units")  # nothing on record to compare the bytes with
    for image, message in (
        (Image.fromarray(np.full((96, 160), 14, np.uint8)), "holds the value 14"),
        (Image.new("L", (80, 48)), "is 80x48, not 160x96"),
        (Image.new("RGB", (160, 96)), "has RGB colours"),
    ):
        image.save(path)
        with pytest.raises(OlivineError, match=message) as caught:
            store.label_map(camera)
        assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(OlivineError, match="no such label map"):
        store.label_map(camera)
    manifest = json.loads((labels / "manifest.json").read_text())
    (labels / "manifest.json").write_text(json.dumps({**manifest, "schema": "9.0"}))
    with pytest.raises(OlivineError, match=r"schema 9\.0"):
        open_store(labels)
    (labels / "manifest.json").write_text(json.dumps({**manifest, "labeler": "import"}))
    with pytest.raises(OlivineError, match=r"manifest\.json: damaged: its content does not match its digest"):
        open_store(labels)
    (labels / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "digest"}))
    assert open_store(labels).digest == store.digest  # as an older olivine wrote it


def test_a_changed_map_is_named_by_whoever_reads_it(make_world, tmp_path):
    world = make_world(1, 2)
    labels = tmp_path / "labels"
    settings = LabelSettings("oracle", segments="masks")
    generate_labels(world.index, labels, settings)
    shutil.copytree(world.root / "frames", labels / "frames")
    store, frame = open_store(labels), next(world.index.frames())
    camera = frame.cameras[0]
    for path, read in (
        (store.label_path(camera), store.label_map),
        (store.segment_path(camera), store.segment_map),
    ):
        data = path.read_bytes()
        with Image.open(path) as image:
            values = np.array(image)
            values[0, 0] ^= 1
            changed = Image.fromarray(values)
            if image.mode == "P":
                changed.putpalette(image.getpalette())
        changed.save(path)
        for scene in (frame.scene, None):
            with pytest.raises(OlivineError, match=r"other bytes than its record says\. Delete it and run"):
                read(camera, scene)
        assert score_labels(store).failures if path == store.label_path(camera) else True
        assert [f.unit for f in verify_labels(world.index, labels, settings, batches=9).failures] == [camera.key]
        merged = generate_labels(world.index, labels, settings, merge_only=True)
        assert [f.unit for f in merged.failures] == [f"{frame.scene} {camera.key}"]
        path.unlink()
        assert generate_labels(world.index, labels, settings).failures == []
        assert path.read_bytes() == data


def test_a_changed_record_is_found_and_made_again(make_world, tmp_path):
    world = make_world(1, 2)
    labels = tmp_path / "labels"
    first = generate_labels(world.index, labels, ORACLE)
    (path,) = (labels / "units").glob("*.json")
    data = path.read_bytes()
    plain = json.loads(data)
    table = plain["detections"]
    changes = [{"pixels": [n + 1 for n in plain["pixels"]]}, {"notes": {"0": ["x"]}}]
    changes += [{"detections": {**table, "score": [0.5 for _ in table["score"]]}}]
    for change in changes:
        path.write_text(json.dumps({**plain, **change}))
        with pytest.raises(OlivineError, match=r"damaged: its content does not match its digest\. Delete it and run"):
            read_record(path)
        again = generate_labels(world.index, labels, ORACLE)
        assert (again.images, again.pixels) == (first.images, first.pixels)
        assert path.read_bytes() == data
    older = {key: value for key, value in plain.items() if key != "digest"}
    path.write_text(json.dumps(older))
    assert generate_labels(world.index, labels, ORACLE).units_kept == 1  # as an older olivine wrote it


def test_a_second_run_says_that_it_reads_no_map_again(make_world, tmp_path):
    world = make_world(2, 1)
    assert generate_labels(world.index, tmp_path / "labels", ORACLE).notes == []
    (note,) = generate_labels(world.index, tmp_path / "labels", ORACLE).notes
    assert note.startswith("2 scenes were finished before") and "--merge" in note


def test_merging_without_a_manifest_is_an_error(make_world, tmp_path):
    with pytest.raises(OlivineError, match=r"manifest\.json: no manifest"):
        generate_labels(make_world(1, 1).index, tmp_path / "labels", ORACLE, merge_only=True)


def test_a_link_out_of_the_label_folder_is_not_written_through(make_world, tmp_path):
    world, labels, elsewhere = make_world(1, 1), tmp_path / "labels", tmp_path / "elsewhere"
    elsewhere.mkdir()
    labels.mkdir()
    (labels / "CAM_FRONT").symlink_to(elsewhere)
    with pytest.raises(OlivineError, match="which a link leads out of"):
        generate_labels(world.index, labels, ORACLE)
    assert not any(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labeler": "seem"}, "--labeler.*auto, grounded-sam"),
        ({"overlap": "up"}, "--overlap"),
        ({"box_threshold": 1.5}, "--box-threshold"),
        ({"batch_size": 0}, "--batch-size"),
        ({"short_side": 900, "long_side": 800}, "image size"),
        ({"min_area": -1}, "--min-area"),
    ],
)
def test_bad_settings_are_named(wrong, message):
    with pytest.raises(OlivineError, match=message):
        LabelSettings(**wrong)
