"""Scenes: boxes in the LiDAR frame and back, and what training makes of a scene."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from olivine.commands.detect import kitti_scenes
from olivine.common import OlivineError
from olivine.downstream.detection.rotated import bev_iou, bev_of, box_iou
from olivine.downstream.detection.scenes import points_in
from olivine.downstream.detection.settings import DetectionSettings
from olivine.downstream.detection.training_scenes import build_database, training_sample
from olivine.readers import open_dataset

STILL = DetectionSettings(flip=False, rotate_deg=0, scale=0, sampled=(0, 0, 0), preset="pretraining")


def test_boxes_are_the_readers_and_come_back_as_the_label_file_has_them(kitti_objects):
    frames = open_dataset("kitti-object", kitti_objects).frames("train")[:2]
    for frame, scene in zip(frames, kitti_scenes(kitti_objects, "train")):
        objects = scene.objects()
        boxes = scene.camera.boxes_of(objects)
        cloud = frame.points()
        for box, ours in zip(frame.boxes(), boxes, strict=True):
            assert np.allclose(ours[:3], box.center, atol=1e-9) and np.allclose(ours[3:6], box.size)
            # The reader keeps the tilt of the calibration, half a degree; the points inside are as good as the same.
            assert abs(int(points_in(cloud, ours).sum()) - box.point_count) <= 5 + 0.1 * box.point_count
        back = scene.camera.objects_of(boxes, objects.kind.tolist(), np.ones(len(boxes)))
        assert len(back) >= 0.9 * len(objects)
        for i in range(len(back)):
            row = np.abs(objects.place - back.place[i]).sum(1).argmin()
            assert np.allclose(back.place[i], objects.place[row], atol=1e-6)
            assert np.allclose(back.size[i], objects.size[row], atol=1e-9)
            assert np.cos(back.turn[i] - objects.turn[row]) > 1 - 1e-6
            assert np.cos(back.alpha[i] - objects.alpha[row]) > 1 - 1e-3  # the file has two decimals
            # The image box around the corners, cut at the border.
            assert np.abs(back.image[i] - objects.image[row]).max() < 2.5


def test_a_cloud_is_what_the_image_shows(kitti_objects):
    scene = kitti_scenes(kitti_objects, "train")[0]
    points = scene.points()
    assert 0.03 < len(points) / len(scene.cloud()) < 0.4 and points[:, 0].min() > 0
    assert scene.camera.sees(points).all()
    assert points[:, 3].min() >= 1  # the intensity's offset of this sensor


def test_normalised_intensities_are_those_of_the_whole_cloud(kitti_objects):
    """As in a pre-training over several data sets, not by the mean of what the image shows."""
    scene = kitti_scenes(kitti_objects, "train")[0]
    raw = scene.cloud()
    expected = raw[:, 3].astype(np.float64) / raw[:, 3].mean(dtype=np.float64) + 0.1
    points = dataclasses.replace(scene, normalised=True).points()
    np.testing.assert_allclose(points[:, 3], expected[scene.camera.sees(raw)], rtol=1e-5)
    np.testing.assert_array_equal(points[:, :3], scene.points()[:, :3])


def test_without_augmentation_a_sample_is_the_scene(kitti_objects):
    scenes = kitti_scenes(kitti_objects, "train")
    database = build_database(scenes, STILL)
    for scene in scenes:
        sample = training_sample(scene, database, STILL, np.random.default_rng(0))
        assert sorted(map(tuple, sample.points.tolist())) == sorted(map(tuple, scene.points().tolist()))
        objects = scene.objects()
        boxes = scene.camera.boxes_of(objects.where(np.isin(objects.kind, STILL.classes)))
        assert box_iou(sample.boxes, boxes).max(1, initial=1).min(initial=1) > 0.999


def test_augmentation_moves_points_and_boxes_together_and_puts_in_objects_where_there_is_room(kitti_objects):
    settings = dataclasses.replace(STILL, flip=True, rotate_deg=45, scale=0.05, sampled=(12, 4, 4))
    scenes = kitti_scenes(kitti_objects, "train")
    database = build_database(scenes, settings)
    stored = [len(one.points) for objects in database for one in objects]
    assert min(stored) >= 5
    for k in range(6):
        scene = scenes[k % len(scenes)]
        sample = training_sample(scene, database, settings, np.random.default_rng(k))
        again = training_sample(scene, database, settings, np.random.default_rng(k))
        assert np.array_equal(sample.points, again.points) and np.array_equal(sample.boxes, again.boxes)
        # Objects that were put in have at least their five points; the scene's own may have fewer.
        held = [int(points_in(sample.points, box).sum()) for box in sample.boxes]
        assert np.median(held) >= 5
        limits = np.array(settings.voxel_settings().range_m)
        assert np.all(sample.boxes[:, :3] >= limits[:3]) and np.all(sample.boxes[:, :3] <= limits[3:])


def test_objects_that_are_put_in_overlap_nothing_and_no_point_of_the_scene_is_left_in_them(kitti_objects):
    settings = dataclasses.replace(STILL, sampled=(12, 4, 4))
    scenes = kitti_scenes(kitti_objects, "train")
    database = build_database(scenes, settings)
    put = 0
    for k, scene in enumerate(scenes):
        sample = training_sample(scene, database, settings, np.random.default_rng(k))
        objects = scene.objects()
        own = scene.camera.boxes_of(objects.where(objects.kind != "DontCare"))
        new = box_iou(sample.boxes, own).max(1) < 0.99
        put += int(new.sum())
        overlap = bev_iou(bev_of(sample.boxes[new]), bev_of(np.concatenate([own, sample.boxes[new]])))
        overlap[:, len(own) :][np.diag_indices(int(new.sum()))] = 0
        assert overlap.max(initial=0) < 1e-6
        here = set(map(tuple, scene.points().tolist()))
        for box in sample.boxes[new]:
            inner = sample.points[points_in(sample.points, box * [1, 1, 1, 0.99, 0.99, 0.99, 1])]
            assert len(inner) and not here & set(map(tuple, inner.tolist()))
        for c, most in enumerate(settings.fill, 1):
            assert int((sample.kind == c).sum()) <= max(most, int((objects.kind == settings.classes[c - 1]).sum()))
    assert put > 3


def test_a_class_that_the_labels_do_not_hold_is_refused(kitti_objects, tmp_path):
    scenes = kitti_scenes(kitti_objects, "train")
    empty = [dataclasses.replace(scene, labels=tmp_path / "none.txt") for scene in scenes]
    (tmp_path / "none.txt").write_text("Car 0 0 0.1 1 2 30 40 1.5 1.6 3.9 1 2 13 0.5\n")
    with pytest.raises(OlivineError, match=r"the labels of the \d+ training frames hold no Pedestrian"):
        build_database(empty, STILL)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"classes": ("Car", "Lorry")}, "the class 'Lorry' is unknown"),
        ({"classes": ()}, "no class"),
        ({"fraction": 30.0}, "30 % is not every k-th frame"),
        ({"sampled": (1, -1, 0)}, "sampled is"),
        ({"scale": 1.0}, "scale"),
        ({"batch": 0}, "batch"),
        ({"plane_channels": (0, 4)}, r"plane_channels is \[0, 4\]\. Use numbers from 1"),
        ({"plane_up_channels": (0, 0)}, "plane_up_channels is"),
        ({"plane_layers": (-1, 0)}, "plane_layers is"),
    ],
)
def test_wrong_settings_are_one_line(settings, says):
    with pytest.raises(OlivineError, match=says) as error:
        DetectionSettings(**settings)
    assert "\n" not in str(error.value)
