"""The main job: a nuScenes keyframe and a KITTI frame through every stage."""

import csv
import json

import numpy as np
import pykitti
import pytest
from PIL import Image
from pyquaternion import Quaternion

from olivine.labelgen.store import open_store
from olivine.pairs.shards import open_shards

SMALL_RUN = ("--config", "cpu", "--set", "run.steps=20", "--set", "run.batch=1", "--set", "run.group=1")


@pytest.fixture(scope="module")
def keyframe(olivine, nuscenes_keyframe, keyframe_camseg, tmp_path_factory):
    """A folder in which the keyframe went through labelgen and build-pairs by the default paths."""
    folder = tmp_path_factory.mktemp("keyframe")
    (folder / "data").mkdir()
    (folder / "data" / "nuscenes").symlink_to(nuscenes_keyframe)
    camseg = ("--labeler", "import", "--camseg", keyframe_camseg)
    olivine("labelgen", "--dataset", "nuscenes", *camseg, cwd=folder, check=True)
    olivine("build-pairs", cwd=folder, check=True)
    return folder


def test_every_pair_of_the_keyframe_has_the_label_at_its_pixel(keyframe, keyframe_camseg):
    record = open_shards(keyframe / "data/pairs/nuscenes/val")[0]
    frame = next(open_store(keyframe / "data/labels/nuscenes").index().frames("val"))
    assert record.points.shape == (34688, 4)
    points = np.c_[record.points[:, :3].astype(np.float64), np.ones(34688)]
    pairs = 0
    for c, camera in enumerate(frame.cameras):
        with Image.open(keyframe_camseg / f"{camera.key}.png") as image:
            label = np.asarray(image)
        x, y, depth = (points @ camera.lidar_to_camera[:3].T @ camera.intrinsic.T).T
        with np.errstate(divide="ignore"):
            u, v = x / depth, y / depth
        seen = np.flatnonzero((depth > 1) & (u > 0) & (u < 1599) & (v > 0) & (v < 899))
        mine = record.pair_camera == c
        assert np.array_equal(record.pair_point[mine], seen)
        expected = label[np.rint(v[seen]).astype(int), np.rint(u[seen]).astype(int)]
        assert np.array_equal(record.pair_label[mine], expected)
        pairs += len(seen)
    assert len(record.pair_point) == len(record.pair_label) == pairs > 20_000


@pytest.mark.frames("real")
def test_the_real_keyframe_gives_22115_pairs(keyframe):
    record = open_shards(keyframe / "data/pairs/nuscenes/val")[0]
    assert len(record.pair_point) == len(record.pair_label) == 22115


def agreement_with_boxes(keyframe, shards, column="pair_label"):
    """Percent of the 1,090 pairs in annotated boxes whose label is the box's class."""
    shards = open_shards(shards)
    record, classes = shards[0], shards.classes
    frame = next(open_store(keyframe / "data/labels/nuscenes").index().frames("val"))
    named = {
        "human.pedestrian": "pedestrian",
        "movable_object.barrier": "barrier",
        "movable_object.trafficcone": "traffic cone",
    }
    points = record.points[:, :3].astype(np.float64)
    box_class = np.zeros(len(points), np.int64)
    for box in frame.boxes():
        family = ".".join(box.category.split(".")[:2])
        name = named.get(family, family.split(".")[1])
        if name not in classes:  # a construction vehicle: no prompt for it
            continue
        local = (points - box.center) @ Quaternion(box.rotation).rotation_matrix
        box_class[(np.abs(local) <= np.array(box.size) / 2).all(axis=1)] = classes.index(name) + 1
    wanted = box_class[record.pair_point]
    inside = wanted > 0
    assert inside.sum() == 1090
    return 100 * np.mean(getattr(record, column)[inside] == wanted[inside])


@pytest.mark.frames("real")
def test_91_percent_of_the_1090_real_pairs_in_annotated_boxes_carry_the_boxs_class(keyframe):
    assert agreement_with_boxes(keyframe, keyframe / "data/pairs/nuscenes/val") == pytest.approx(91.2, abs=0.05)


@pytest.mark.frames("real")
def test_a_vote_of_the_one_frames_cameras_costs_three_of_the_1090_pairs(keyframe, olivine):
    olivine("build-pairs", "--consolidate", "--out", "voted", cwd=keyframe, check=True)
    assert agreement_with_boxes(keyframe, keyframe / "voted/val", "pair_pixel_label") == pytest.approx(91.2, abs=0.05)
    assert agreement_with_boxes(keyframe, keyframe / "voted/val") == pytest.approx(100 * 991 / 1090)


@pytest.mark.frames("synthetic")
def test_20_steps_on_the_keyframe_run_and_the_loss_falls(olivine, keyframe):
    done = olivine("pretrain", *SMALL_RUN, "--name", "keyframe", cwd=keyframe, process=True, check=True)
    assert "there is no train split" in done.stdout  # the keyframe's scene is a validation scene
    with open(keyframe / "runs/keyframe/steps.csv", newline="") as handle:
        table = list(csv.DictReader(handle))
    assert [int(row["step"]) for row in table] == list(range(20))
    for name in ("loss_ppkt", "loss_wcd"):
        loss = [float(row[name]) for row in table]
        assert np.mean(loss[-5:]) < np.mean(loss[:5]), name
    assert list((keyframe / "runs/keyframe/tensorboard").iterdir())


@pytest.mark.frames("synthetic")
def test_running_every_stage_again_does_nothing(olivine, keyframe, keyframe_camseg):
    # (The log folders beside them, nuscenes.logs, say that there was a second run.)
    folders = (keyframe / "data/pairs/nuscenes", keyframe / "data/labels/nuscenes")
    before = {p: p.stat().st_mtime_ns for folder in folders for p in folder.rglob("*") if p.is_file()}
    assert len(before) > 10
    camseg = ("--labeler", "import", "--camseg", keyframe_camseg)
    olivine("labelgen", "--dataset", "nuscenes", *camseg, cwd=keyframe, check=True)
    olivine("build-pairs", cwd=keyframe, check=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.fixture(scope="module")
def kitti(olivine, kitti_frame, tmp_path_factory):
    """The KITTI frame with a label map whose left half is road and right half is building."""
    folder = tmp_path_factory.mktemp("kitti")
    maps = folder / "maps" / "00" / "image_2"
    maps.mkdir(parents=True)
    label = np.zeros((375, 1242), np.uint8)
    label[:, :621], label[:, 621:] = 9, 13
    Image.fromarray(label).save(maps / "000000.png")
    root = ("--dataset", "kitti", "--root", kitti_frame)
    olivine("labelgen", *root, "--labeler", "import", "--camseg", folder / "maps", cwd=folder, check=True)
    olivine("build-pairs", cwd=folder, check=True)
    return folder


def test_the_kitti_frame_gives_pykittis_points_and_the_pairs_of_the_whole_p2(kitti, kitti_frame):
    record = open_shards(kitti / "data/pairs/kitti/train")[0]
    data = pykitti.odometry(str(kitti_frame), "00")
    cloud = data.get_velo(0)
    assert np.array_equal(record.points, cloud)
    camera = np.c_[cloud[:, :3].astype(np.float64), np.ones(len(cloud))] @ data.calib.T_cam0_velo.T
    pixel = camera @ data.calib.P_rect_20.T
    u, v = pixel[:, 0] / pixel[:, 2], pixel[:, 1] / pixel[:, 2]
    seen = (pixel[:, 2] > 1) & (u > 0) & (u < 1241) & (v > 0) & (v < 374)
    assert np.array_equal(np.sort(record.pair_point), np.flatnonzero(seen))
    order = np.argsort(record.pair_point)
    # KITTI's 375 rows stay: the stored image has the original pixels.
    assert np.abs(record.pair_uv[order] - np.c_[u, v][seen]).max() < 1e-3
    expected = np.where(np.rint(u[seen]) < 621, 9, 13)
    assert np.array_equal(record.pair_label[order], expected)


@pytest.mark.frames("real")
def test_the_real_kitti_frame_gives_17238_points_and_17186_pairs(kitti):
    record = open_shards(kitti / "data/pairs/kitti/train")[0]
    assert (record.points.shape, len(record.pair_point)) == ((17238, 4), 17_186)


@pytest.mark.frames("synthetic")
def test_a_summary_for_machines_is_one_json_object(olivine, keyframe):
    done = olivine("build-pairs", "--json", cwd=keyframe, check=True)
    summary = json.loads(done.stdout)
    assert summary["command"] == "build-pairs"
    assert summary["failures"] == []
