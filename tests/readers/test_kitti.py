"""The KITTI readers against pykitti's points and calibration and the published label mapping."""

import json
import shutil

import numpy as np
import pykitti
import pytest

from olivine.common import OlivineError
from olivine.readers import check_current, index_dataset, open_dataset
from olivine.readers.index import open_index


def test_the_frame_has_pykittis_points_and_the_whole_p2(kitti_frame):
    frame = open_dataset("kitti", kitti_frame).frames("train")[0]
    data = pykitti.odometry(str(kitti_frame), "00")
    calib = data.calib
    assert frame.token == "00/000000"
    assert np.array_equal(frame.points(), data.get_velo(0))
    camera = frame.cameras[0]
    assert (camera.width, camera.height, camera.key) == (1242, 375, "00/image_2/000000")
    assert np.array_equal(camera.intrinsic, calib.K_cam2)
    assert np.allclose(camera.intrinsic @ camera.lidar_to_camera[:3], calib.P_rect_20 @ calib.T_cam0_velo, atol=1e-9)
    assert np.array_equal(camera.lidar_to_camera[:, :3], calib.T_cam0_velo[:, :3])
    np.testing.assert_allclose(frame.pose, data.poses[0] @ calib.T_cam0_velo, rtol=0, atol=1e-12)
    assert frame.point_labels() is None


@pytest.mark.frames("real")
def test_the_real_frame_has_its_17238_points(kitti_frame):
    assert open_dataset("kitti", kitti_frame).frames("train")[0].points().shape == (17238, 4)


@pytest.mark.frames("real")
def test_the_real_camera_stands_millimetres_from_where_pykitti_has_it(kitti_frame):
    """x but for the millimetres that P2's third row is away, y and z of which pykitti has none."""
    camera = open_dataset("kitti", kitti_frame).frames("train")[0].cameras[0]
    moved = camera.lidar_to_camera[:3, 3] - pykitti.odometry(str(kitti_frame), "00").calib.T_cam2_velo[:3, 3]
    assert np.allclose(moved, (-0.0023, -0.0004, 0.0027), atol=1e-4)


def points_of(folder):
    return (folder / "sequences" / "00" / "velodyne" / "000000.bin").stat().st_size // 16


@pytest.fixture
def semantic(kitti_frame, tmp_path):
    shutil.copytree(kitti_frame, tmp_path / "set")
    labels = tmp_path / "set" / "sequences" / "00" / "labels"
    labels.mkdir()
    raw = np.full(points_of(kitti_frame), (7 << 16) | 10, np.uint32)  # instance 7 of a car
    raw[:4] = [0, 252, 40, 81]
    raw.tofile(labels / "000000.label")
    return tmp_path / "set"


def test_semantickitti_labels_are_the_19_classes_without_the_instance(semantic):
    dataset = open_dataset("semantickitti", semantic)
    labels = dataset.frames("train")[0].point_labels()
    assert len(dataset.point_classes) == 19
    assert [0 if v == 0 else dataset.point_classes[v - 1] for v in labels[:5]] == [
        0,
        "car",
        "road",
        "traffic-sign",
        "car",
    ]


def test_a_raw_class_without_a_meaning_is_an_error(semantic):
    frame = open_dataset("semantickitti", semantic).frames()[0]
    np.full(points_of(semantic), 4000, np.uint32).tofile(semantic / "sequences" / "00" / "labels" / "000000.label")
    with pytest.raises(OlivineError, match=r"000000\.label: raw class 4000"):
        frame.point_labels()


def test_half_data_sets_are_one_line(semantic, tmp_path):
    with pytest.raises(OlivineError, match="no KITTI odometry sequences"):
        open_dataset("kitti", tmp_path)
    sequence = semantic / "sequences" / "00"
    shutil.rmtree(sequence / "labels")
    with pytest.raises(OlivineError, match="labels: SemanticKITTI labels are missing"):
        open_dataset("semantickitti", semantic).frames()
    (sequence / "image_2" / "000000.png").unlink()
    with pytest.raises(OlivineError, match=r"000000\.png: no such image"):
        open_dataset("kitti", semantic).frames()
    calibration = (sequence / "calib.txt").read_text().splitlines()
    calibration[2] = "P2: 700 0 600 40 0 0 180 0 0 0 1 0"
    (sequence / "calib.txt").write_text("\n".join(calibration) + "\n")
    with pytest.raises(OlivineError, match=r"calib\.txt: the left three columns of P2 have no inverse"):
        open_dataset("kitti", semantic).frames()
    (sequence / "calib.txt").unlink()
    with pytest.raises(OlivineError, match=r"calib\.txt: missing"):
        open_dataset("kitti", semantic).frames()


def test_validation_is_sequence_08_and_training_the_rest_of_the_labelled(semantic):
    shutil.copytree(semantic / "sequences" / "00", semantic / "sequences" / "08")
    dataset = open_dataset("semantickitti", semantic)
    assert [f.token for f in dataset.frames("val")] == ["08/000000"]
    assert [f.token for f in dataset.frames("train")] == ["00/000000"]


@pytest.mark.frames("real")
def test_intensity_0_is_common_in_the_real_frame(kitti_frame):
    """The figure in docs/datasets.md."""
    intensity = open_dataset("kitti", kitti_frame).frames()[0].points()[:, 3]
    assert (100 * (intensity == 0).mean()).round() == 20


def test_1_is_to_be_added_to_kittis_intensity(kitti_frame, semantic):
    assert open_dataset("kitti", kitti_frame).intensity_offset == 1.0
    assert open_dataset("semantickitti", semantic).intensity_offset == 1.0


def test_an_index_from_before_the_rules_of_today_is_refused_and_written_anew(kitti_frame, tmp_path):
    first, _ = index_dataset(tmp_path, "kitti", kitti_frame)
    assert first.intensity_offset == 1.0
    file = tmp_path / "index.json"
    old = json.loads(file.read_text())
    del old["intensity_offset"], old["digest"]
    file.write_text(json.dumps({**old, "schema": "1.0"}))
    with pytest.raises(OlivineError, match=r"index\.json: written before .* Run the same olivine labelgen again"):
        open_index(tmp_path)
    again, note = index_dataset(tmp_path, "kitti", kitti_frame)
    assert again == first and "index at hand" not in note
    assert open_index(tmp_path).intensity_offset == 1.0


def test_poses_that_come_later_are_seen(kitti_frame, tmp_path):
    """The remedy of a command that needs poses is to add them."""
    root, poses = tmp_path / "kitti", tmp_path / "poses"
    shutil.copytree(kitti_frame, root, symlinks=False)
    (root / "poses").rename(poses)
    before, _ = index_dataset(tmp_path / "frames", "kitti", root)
    assert np.isnan(next(before.frames()).pose).all()
    poses.rename(root / "poses")
    with pytest.raises(OlivineError, match="changed since its frames were listed: 1 of 1 scenes, 00 the first"):
        check_current(before)
    after, note = index_dataset(tmp_path / "frames", "kitti", root)
    assert np.isfinite(next(after.frames()).pose).all() and "index at hand" not in note and check_current(after) == ""
    (root / "sequences").rename(tmp_path / "elsewhere")
    (root / "poses").rename(poses)
    assert "has none of the data set's tables" in check_current(after)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "calib.txt").write_text("P0: 1 2\n"),
        lambda folder: (folder / "calib.txt").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "calib.txt").write_text((folder / "calib.txt").read_text().replace("P2:", "Q2:")),
        lambda folder: (folder / "calib.txt").write_text(
            (folder / "calib.txt").read_text().replace("Tr: ", "Tr: nan ")
        ),
        lambda folder: (folder / "times.txt").write_text("now\n"),
        lambda folder: (folder / "times.txt").write_text(""),
        lambda folder: (folder / "velodyne" / "first.bin").write_bytes(bytes(16)),
        lambda folder: (folder / "image_2" / "000000.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    ],
)
def test_damaged_files_of_a_sequence_are_one_line(semantic, tmp_path, damage):
    damage(semantic / "sequences" / "00")
    with pytest.raises(OlivineError, match=r"sequences/00") as error:
        index_dataset(tmp_path / "frames", "kitti", semantic)
    assert "\n" not in str(error.value)


def test_fewer_clouds_than_times_are_said(kitti_frame, tmp_path):
    shutil.copytree(kitti_frame, tmp_path / "set")
    times = tmp_path / "set" / "sequences" / "00" / "times.txt"
    times.write_text("".join(f"{k / 10:e}\n" for k in range(5)))
    _, said = index_dataset(tmp_path / "frames", "kitti", tmp_path / "set")
    assert "sequence 00 has 1 clouds for 5 times" in said
    times.write_text("0.0\n")
    _, said = index_dataset(tmp_path / "others", "kitti", tmp_path / "set")
    assert "clouds for" not in said
