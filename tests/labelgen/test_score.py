"""Scores: the exact oracle is right, a spoilt one is wrong as its error model says, points agree with a box's class."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from olivine.common import OlivineError
from olivine.labelgen.prompts import DEFAULT_VOCABULARY
from olivine.labelgen.run import generate_labels
from olivine.labelgen.score import _Points, score_labels, scores_of
from olivine.labelgen.settings import LabelSettings
from olivine.labelgen.store import open_store
from olivine.readers.dataset import dataset_class
from olivine.readers.index import write_index
from olivine.readers.nuscenes import PROMPTS as NUSCENES
from olivine.readers.semantickitti import PROMPTS as SEMANTICKITTI

CAR = DEFAULT_VOCABULARY.value("car")


def _score(world, labels, error, **settings):
    generate_labels(world.index, labels, LabelSettings("oracle", error=error, **settings))
    return score_labels(_with_frames(world, labels))


def _with_frames(world, labels):
    """The store as the command leaves it: with the frame index in its folder."""
    write_index(labels / "frames", world.index.frames(), dataset="nuscenes", version="v1.0-mini", root=world.root)
    return open_store(labels)


def test_the_scores_of_a_confusion_matrix_by_hand():
    confusion = np.array([[5, 1, 0], [2, 6, 0], [1, 1, 8]])
    summary = scores_of(confusion, ("car", "road"), "masks")
    assert summary.iou == {"car": pytest.approx(100 * 6 / 10), "road": pytest.approx(100 * 8 / 10)}
    assert summary.precision == {"car": pytest.approx(75.0), "road": pytest.approx(100.0)}
    assert summary.recall == {"car": pytest.approx(75.0), "road": pytest.approx(80.0)}
    assert summary.mean_iou == pytest.approx(70.0) and summary.coverage == pytest.approx(100 * 15 / 18)


def test_the_exact_oracle_scores_over_99_percent(make_world, tmp_path):
    world = make_world()
    summary = _score(world, tmp_path / "labels", "none")
    assert (summary.against, summary.images, summary.failures) == ("masks", 12, [])
    assert summary.mean_iou > 99 and summary.coverage == 100
    assert all(v > 99 for v in summary.iou.values() if v is not None)
    assert summary.iou["bus"] is None


def test_scores_fall_as_the_boundaries_move(make_world, tmp_path):
    world = make_world(2, 6)
    ious = [_score(world, tmp_path / str(s), f"boundary={s}").iou["car"] for s in (0, 1, 2, 4)]
    assert ious == sorted(ious, reverse=True) and ious[0] - ious[-1] > 10


def test_recall_falls_by_the_share_of_missed_instances(make_world, tmp_path):
    world = make_world(8, 12)
    summary = _score(world, tmp_path / "labels", "missed=0.3,missed_area=1e9")
    things = [summary.recall[n] for n in ("car", "pedestrian", "truck")]
    assert np.mean(things) == pytest.approx(70, abs=8)
    assert summary.recall["road"] == 100 and summary.precision["car"] == 100


def test_confused_classes_turn_up_in_the_confusion_matrix(make_world, tmp_path):
    world = make_world(8, 12)
    (tmp_path / "e.yaml").write_text("confusion_matrix: {car: {truck: 0.4}}\n")
    summary = _score(world, tmp_path / "labels", str(tmp_path / "e.yaml"))
    row = np.array(summary.confusion[CAR])
    assert row[DEFAULT_VOCABULARY.value("truck")] / row.sum() == pytest.approx(0.4, abs=0.1)
    assert summary.recall["pedestrian"] == 100 and summary.precision["truck"] < 90


def test_the_json_and_the_picture_are_written(make_world, tmp_path):
    world = make_world(1, 1)
    generate_labels(world.index, tmp_path / "labels", LabelSettings("oracle"))
    store = _with_frames(world, tmp_path / "labels")
    summary = score_labels(store, tmp_path / "score")
    plain = json.loads((tmp_path / "score" / "score.json").read_text())
    assert plain["mean_iou"] == summary.mean_iou and plain["labels"] == store.digest
    with Image.open(tmp_path / "score" / "confusion.png") as picture:
        assert picture.size[0] > 300


def test_the_scores_calibration_is_that_of_the_pixels(make_world, world_label, tmp_path):
    world = make_world(2, 3)
    generate_labels(
        world.index, tmp_path / "labels", LabelSettings("oracle", error="boundary=2,leakage=0.5", scores=True)
    )
    store = _with_frames(world, tmp_path / "labels")
    summary = score_labels(store, tmp_path / "out")
    said, right = [], []
    for frame in world.index.frames():
        for camera in frame.cameras:
            label, score = store.label_map(camera), store.score_map(camera)
            said.append(score[label > 0] / 255)
            right.append((label == world_label(world.classes[camera.key]))[label > 0])
    said, right = np.concatenate(said), np.concatenate(right)
    found = summary.calibration
    assert (found.labels, found.said) == (len(said), pytest.approx(100 * said.mean()))
    assert found.right == pytest.approx(100 * right.mean())
    half = next(row for row in found.levels if row.low == 0.5)
    assert half.right == pytest.approx(100 * right[said >= 0.5].mean())
    plain = json.loads((tmp_path / "out/score.json").read_text())
    assert plain["calibration"]["error"] == plain["calibration_error"] == found.error
    assert (tmp_path / "out/reliability.png").stat().st_size > 1000

    generate_labels(world.index, tmp_path / "plain", LabelSettings("oracle"))
    without = score_labels(_with_frames(world, tmp_path / "plain"), tmp_path / "none")
    assert without.calibration is None and not (tmp_path / "none/reliability.png").exists()


def test_a_missing_label_map_is_named_and_the_others_are_scored(make_world, tmp_path):
    world = make_world(1, 2)
    generate_labels(world.index, tmp_path / "labels", LabelSettings("oracle"))
    store = _with_frames(world, tmp_path / "labels")
    gone = store.label_path(next(world.index.frames()).cameras[1])
    gone.unlink()
    summary = score_labels(store)
    assert summary.images == 3 and str(gone) in summary.failures[0].reason
    with pytest.raises(OlivineError, match="no scene is in the split 'val'"):
        score_labels(store, split="val")


@pytest.fixture(scope="module")
def scored_through_boxes(keyframe_index, keyframe_camseg, tmp_path_factory):
    """The keyframe's points scored: it has no lidarseg, so labels made of its boxes stand in. The summary and they."""
    from nuscenes.utils.data_classes import Box as DevkitBox
    from nuscenes.utils.geometry_utils import points_in_box
    from pyquaternion import Quaternion

    (frame,) = keyframe_index.frames()
    points = frame.points()
    raw = np.zeros(len(points), np.uint8)
    names = list(NUSCENES)
    categories = {
        "vehicle.car": "car", "vehicle.truck": "truck", "movable_object.barrier": "barrier", "human.pedestrian": "pedestrian",
        "movable_object.trafficcone": "traffic_cone", "vehicle.bicycle": "bicycle", "vehicle.motorcycle": "motorcycle",
        "vehicle.bus": "bus",
    }  # fmt: skip
    for box in frame.boxes():
        name = next((v for k, v in categories.items() if box.category.startswith(k)), None)
        if name is not None:
            length, width, height = box.size
            devkit = DevkitBox(list(box.center), [width, length, height], Quaternion(box.rotation))
            raw[points_in_box(devkit, points[:, :3].T)] = names.index(name) + 1
    folder = tmp_path_factory.mktemp("boxes")
    root = folder / "nuscenes"
    (root / "lidarseg").mkdir(parents=True)
    raw.tofile(root / "lidarseg" / "labels.bin")
    (root / "samples").symlink_to(keyframe_index.root / "samples")
    labelled = replace(
        frame, root=root, point_label_file="lidarseg/labels.bin", point_label_lookup=bytes(range(len(names) + 1))
    )
    labels = folder / "labels"
    index = write_index(
        labels / "frames", [labelled], dataset="nuscenes", version="v1.0-mini", root=root, point_classes=tuple(names)
    )
    generate_labels(index, labels, LabelSettings("import", camseg=keyframe_camseg))
    prompt = np.array(
        [0] + [DEFAULT_VOCABULARY.value(NUSCENES[n]) if NUSCENES[n] in DEFAULT_VOCABULARY.classes else 0 for n in names]
    )
    return score_labels(open_store(labels)), prompt[raw]


def test_points_score_a_keyframe_through_its_boxes(scored_through_boxes, keyframe_index, keyframe_camseg):
    summary, truth = scored_through_boxes
    (frame,) = keyframe_index.frames()
    points = np.c_[frame.points()[:, :3].astype(np.float64), np.ones(len(truth))]
    expected = np.zeros((14, 14), np.int64)
    for camera in frame.cameras:
        with Image.open(keyframe_camseg / f"{camera.key}.png") as image:
            label = np.asarray(image)
        x, y, depth = (points @ camera.lidar_to_camera[:3].T @ camera.intrinsic.T).T
        with np.errstate(divide="ignore"):
            u, v = x / depth, y / depth
        seen = (depth > 1) & (u > 0) & (u < camera.width - 1) & (v > 0) & (v < camera.height - 1) & (truth > 0)
        found = label[np.rint(v[seen]).astype(int), np.rint(u[seen]).astype(int)]
        np.add.at(expected, (truth[seen], found), 1)
    confusion = np.array(summary.confusion)
    assert (summary.against, summary.failures) == ("points", [])
    assert np.array_equal(confusion, expected) and confusion.sum() > 1000


@pytest.mark.frames("real")
def test_912_of_1000_of_the_real_keyframes_1090_pairs_in_boxes_agree(scored_through_boxes):
    confusion = np.array(scored_through_boxes[0].confusion)
    assert confusion.sum() == 1090 and not confusion[0].any()
    assert 100 * np.trace(confusion) / confusion.sum() == pytest.approx(91.2, abs=0.05)


def test_points_are_scored_by_labels_that_are_named_as_the_benchmark_names_them():
    """Of its own name first, else by the data set's table; blanks, - and _ are the same."""
    index = SimpleNamespace(point_classes=tuple(NUSCENES), source=dataset_class("nuscenes"))
    store = SimpleNamespace(classes=("driveable_surface", "Traffic_Cone", "building", "car", "manmade"), root="labels")
    lookup = _Points(store, index).lookup[: len(NUSCENES) + 1]
    found = {name: store.classes[v - 1] for name, v in zip(NUSCENES, lookup[1:]) if v}
    assert found == {
        "driveable_surface": "driveable_surface", "traffic_cone": "Traffic_Cone", "manmade": "manmade", "car": "car",
    }  # fmt: skip


def test_a_data_set_without_ground_truth_says_what_is_missing(keyframe_index, keyframe_camseg, tmp_path):
    labels = tmp_path / "labels"
    write_index(
        labels / "frames", keyframe_index.frames(), dataset="nuscenes", version="v1.0-mini", root=keyframe_index.root
    )
    generate_labels(keyframe_index, labels, LabelSettings("import", camseg=keyframe_camseg))
    with pytest.raises(OlivineError, match="no point labels to score against"):
        score_labels(open_store(labels))
    with pytest.raises(OlivineError, match="--against"):
        score_labels(open_store(labels), against="people")


def test_every_prompt_is_some_class_of_nuscenes_and_the_tables_are_the_official_classes():
    assert len(NUSCENES) == 16 and len(SEMANTICKITTI) == 19
    others = {"construction vehicle", "trailer", "other flat"}
    assert set(NUSCENES.values()) == {*DEFAULT_VOCABULARY.classes, *others}
    assert {v for v in SEMANTICKITTI.values() if v} <= set(DEFAULT_VOCABULARY.classes)


def test_a_data_set_without_a_table_is_refused():
    with pytest.raises(OlivineError, match=r"which prompt a point class of kitti is.*table `prompts`") as caught:
        dataset_class("kitti").prompt_of("car")
    assert "\n" not in str(caught.value)


def test_the_readers_class_names_are_the_tables():
    semantickitti = dataset_class("semantickitti")
    assert [semantickitti.prompt_of(n) for n in semantickitti.point_classes] == list(SEMANTICKITTI.values())
    assert semantickitti.prompt_of("other vehicle") is None and semantickitti.prompt_of("Traffic_Sign") is None
