"""The viewer without a browser: what its scene holds as its slider and switches are moved, against the shards and files."""

from __future__ import annotations

import io
import shutil
import socket
import sys

import numpy as np
import pytest
from PIL import Image

from olivine.common import OlivineError
from olivine.common.colors import NO_LABEL, class_colors
from olivine.downstream.benchmarks import PredictionWriter
from olivine.labelgen.store import open_store
from olivine.pairs.shards import open_shards
from olivine.readers import open_dataset
from olivine.report.contents import Sources
from olivine.report.shown import UNSEEN, UNSEEN_COLOR
from olivine.report.view import Viewer, open_scenes

viser = pytest.importorskip("viser", reason="no viser here: pip install 'olivine[view]'")


@pytest.fixture
def start():
    """``start(scenes)``: a viewer on a free port, which ends with the test."""
    begun = []

    def start(scenes):
        begun.append(Viewer(scenes, port=0))
        return begun[-1]

    yield start
    for viewer in begun:
        viewer.server.stop()


@pytest.fixture(scope="module")
def predictions(nuscenes_world, tmp_path_factory):
    shards = open_shards(nuscenes_world.pairs / "val")
    folder = tmp_path_factory.mktemp("view") / "predictions-val"
    raw = shards.shard(0).attributes["point_class_raw"]
    writer = PredictionWriter(folder, shards, shards.point_classes, raw, pre_trained=True)
    for frame in range(len(shards)):
        count = len(shards.points(frame))
        writer.write(frame, np.arange(count) % 16 + 1)
        writer.write_confidence(frame, np.linspace(0, 1, count))
    return folder


def weak_colors(record, classes):
    """The colour of each point by a loop over its pairs; the first pair of a point counts."""
    table = class_colors(classes)
    colors = np.tile(np.uint8(UNSEEN_COLOR), (len(record.points), 1))
    for point, label in reversed(list(zip(record.pair_point, record.pair_label))):
        colors[point] = table[label] if label else NO_LABEL
    return colors


def test_the_slider_changes_cloud_colours_and_images_to_the_shards_frame(nuscenes_world, start):
    shards = open_shards(nuscenes_world.pairs / "val")
    viewer = start(open_scenes(Sources(nuscenes_world.pairs.parent / "labels", shards=shards.path)))
    viewer.marks.value = False
    for number in (1, 2, 1):
        viewer.frame.value = number
        record = shards[number - 1]
        assert viewer.mode.value == "weak label"
        np.testing.assert_array_equal(viewer.cloud.points, record.points[:, :3])
        np.testing.assert_array_equal(viewer.cloud.colors, weak_colors(record, shards.classes))
        assert list(viewer.images) == list(shards.cameras)
        for place, name in enumerate(shards.cameras):
            with Image.open(io.BytesIO(record.image[place])) as image:
                np.testing.assert_array_equal(viewer.images[name].image, np.asarray(image.convert("RGB")))
            eye = -record.lidar_to_camera[place][:3, :3].T @ record.lidar_to_camera[place][:3, 3]
            np.testing.assert_allclose(viewer.placed[name].position, eye, atol=1e-6)


def test_each_colouring_that_there_is_can_be_chosen_and_no_other(nuscenes_world, predictions, start):
    shards = open_shards(nuscenes_world.pairs / "val")
    without = start(open_scenes(Sources(shards=shards.path)))
    assert without.mode.options == ("weak label", "ground truth", "camera", "distance", "intensity")
    viewer = start(open_scenes(Sources(shards=shards.path, predictions=predictions)))
    assert set(viewer.mode.options) - set(without.mode.options) == {"prediction", "confidence"}
    record, table = shards[0], class_colors(shards.point_classes)
    table[0] = NO_LABEL
    viewer.mode.value = "ground truth"
    np.testing.assert_array_equal(viewer.cloud.colors, table[record.point_label])
    viewer.mode.value = "prediction"
    np.testing.assert_array_equal(viewer.cloud.colors, table[np.arange(len(record.points)) % 16 + 1])
    distance = np.linalg.norm(record.points[:, :3], axis=1)
    rising = {"confidence": np.arange(len(distance)), "distance": distance, "intensity": record.points[:, 3]}
    for name, value in rising.items():
        viewer.mode.value = name
        assert not viewer.switches
        color = viewer.cloud.colors.astype(int)
        assert color[np.argmin(value)].tolist() == [68, 1, 84], name  # the ends of viridis
        assert color[np.argmax(value)].tolist() == [253, 231, 36], name
        assert (np.diff(color[np.argsort(value), 1]) >= 0).all(), name


def test_a_class_that_is_switched_off_is_gone_from_cloud_and_images(nuscenes_world, start):
    shards = open_shards(nuscenes_world.pairs / "val")
    viewer = start(open_scenes(Sources(shards=shards.path)))
    record = shards[0]
    viewer.mode.value = "ground truth"
    value = int(np.bincount(record.point_label[record.pair_point]).argmax())
    marked = {name: image.image.copy() for name, image in viewer.images.items()}
    viewer.switches[value].value = False
    np.testing.assert_array_equal(viewer.cloud.points, record.points[record.point_label != value, :3])
    assert any((viewer.images[name].image != image).any() for name, image in marked.items())
    viewer.mode.value = "weak label"
    viewer.switches[UNSEEN].value = False
    np.testing.assert_array_equal(viewer.cloud.points, record.points[np.unique(record.pair_point), :3])
    viewer.mode.value = "ground truth"  # what was off there still is
    assert not viewer.switches[value].value
    viewer.switches[value].value = True
    assert len(viewer.cloud.points) == len(record.points)
    for name, image in marked.items():
        np.testing.assert_array_equal(viewer.images[name].image, image)


def test_label_maps_alone_show_the_clouds_with_the_labels_that_the_shards_got(nuscenes_world, start):
    labels = nuscenes_world.pairs.parent / "labels"
    shards = open_shards(nuscenes_world.pairs / "val")
    viewer = start(open_scenes(Sources(labels), split="val"))
    for number, record in enumerate(shards, 1):
        viewer.frame.value = number
        assert viewer.shown.token == record.token
        np.testing.assert_array_equal(viewer.cloud.points, record.points[:, :3])
        np.testing.assert_array_equal(viewer.cloud.colors, weak_colors(record, shards.classes))
    viewer.marks.value = False
    camera = next(iter(open_store(labels).index().frames("val"))).cameras[0]
    viewer.frame.value = 1
    plain = viewer.images[camera.name].image.copy()
    viewer.overlay.value = True
    changed = (viewer.images[camera.name].image != plain).any(axis=2)
    label = open_store(labels).label_map(camera)
    assert changed.any() and not changed[label == 0].any()


def test_a_data_set_shows_its_clouds_without_labels(kitti_world, start):
    plain = open_dataset("kitti", kitti_world.root)
    assert start(open_scenes(Sources(), plain.frames(), plain.point_classes)).mode.value == "distance"
    data = open_dataset("semantickitti", kitti_world.root)
    frames = data.frames()
    viewer = start(open_scenes(Sources(), frames, data.point_classes))
    assert "weak label" not in viewer.mode.options and "ground truth" in viewer.mode.options
    viewer.frame.value = len(frames)
    np.testing.assert_array_equal(viewer.cloud.points, frames[-1].points()[:, :3])
    assert not viewer.overlay.visible


def test_only_the_frame_that_is_shown_is_read_and_a_damaged_one_is_said(nuscenes_world, start, monkeypatch):
    scenes = open_scenes(Sources(shards=nuscenes_world.pairs / "val"))
    read, asked = scenes.read, []

    def counted(number):
        asked.append(number)
        if number == 1 and len(asked) == 2:
            raise OlivineError("array points is damaged", where="<b>shard</b>")
        return read(number)

    object.__setattr__(scenes, "read", counted)
    viewer = start(scenes)
    viewer.mode.value = "distance"
    assert asked == [0]
    viewer.frame.value = 2
    assert len(viewer.cloud.points) == 0 and not any(image.visible for image in viewer.images.values())
    assert "&lt;b&gt;shard&lt;/b&gt;: array points is damaged" in viewer._caption.content
    viewer.frame.value = 1
    assert len(viewer.cloud.points) and all(image.visible for image in viewer.images.values())
    assert "damaged" not in viewer._caption.content
    assert asked == [0, 1, 0]


def test_what_cannot_be_shown_is_one_line(nuscenes_world, predictions, olivine, tmp_path, monkeypatch):
    def said(*arguments):
        done = olivine("view", *arguments, cwd=tmp_path)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and line.startswith("olivine: ")
        return line

    (tmp_path / "empty").mkdir()
    assert "no data set in data/" in said()
    assert "no data set is recognized here" in said("--root", "empty")
    assert "no shards here" in said("--shards", "empty")
    assert "Run olivine labelgen" in said("--labels", "empty")
    assert "no run here" in said("--run", "empty")
    (tmp_path / "runs/some").mkdir(parents=True)
    (tmp_path / "runs/some/run.json").write_text("{}")
    assert "Run olivine build-pairs first" in said("--run", "runs/some")
    shutil.copytree(nuscenes_world.pairs / "val", tmp_path / "val")
    assert "predictions" in said("--shards", "val", "--predictions", "empty")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: the port is taken. Name another with --port" in said(
            "--shards", "val", "--port", port
        )
    assert "no server can listen there" in said("--shards", "val", "--host", "192.0.2.1")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "viser", None)
        assert said("--shards", "val").endswith("Install it: pip install 'olivine[view]'")
    for shard in (tmp_path / "val").glob("*.zarr"):
        shutil.rmtree(shard)
    assert "a file is gone" in said("--shards", "val", "--run", "runs/some")


def test_the_command_says_where_it_listens_plays_and_ends_with_ctrl_c(nuscenes_world, olivine, tmp_path, monkeypatch):
    passed, seen = [], []

    def sleep(seconds):
        passed.append(seconds)
        if len(passed) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("olivine.report.view.time.sleep", sleep)
    kept = Viewer.run

    def run(viewer):
        viewer.playing.value = True
        viewer.frame.on_update(lambda _: seen.append(viewer.frame.value))
        kept(viewer)

    monkeypatch.setattr(Viewer, "run", run)
    done = olivine("view", "--shards", nuscenes_world.pairs, "--port", 0, cwd=tmp_path, check=True)
    assert "nuscenes val, shards, 2 frames: open http://127.0.0.1:" in done.stdout
    assert seen == [2, 1, 2]
