"""The KITTI readers against pykitti's points and calibration and the published label mapping."""

import shutil

import numpy as np
import pykitti
import pytest

from olivine.common import OlivineError
from olivine.readers import open_dataset


def test_the_frame_has_pykittis_points_and_calibration(kitti_frame):
    frame = open_dataset("kitti", kitti_frame).frames("train")[0]
    data = pykitti.odometry(str(kitti_frame), "00")
    calib = data.calib
    assert frame.token == "00/000000"
    assert np.array_equal(frame.points(), data.get_velo(0))
    camera = frame.cameras[0]
    assert (camera.width, camera.height, camera.key) == (1242, 375, "00/image_2/000000")
    assert np.array_equal(camera.intrinsic, calib.K_cam2)
    assert np.array_equal(camera.lidar_to_camera, calib.T_cam2_velo)
    np.testing.assert_allclose(frame.pose, data.poses[0] @ calib.T_cam0_velo, rtol=0, atol=1e-12)
    assert frame.point_labels() is None


@pytest.mark.frames("real")
def test_the_real_frame_has_its_17238_points(kitti_frame):
    assert open_dataset("kitti", kitti_frame).frames("train")[0].points().shape == (17238, 4)


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
    (sequence / "calib.txt").unlink()
    with pytest.raises(OlivineError, match=r"calib\.txt: missing"):
        open_dataset("kitti", semantic).frames()


def test_validation_is_sequence_08_and_training_the_rest_of_the_labelled(semantic):
    shutil.copytree(semantic / "sequences" / "00", semantic / "sequences" / "08")
    dataset = open_dataset("semantickitti", semantic)
    assert [f.token for f in dataset.frames("val")] == ["08/000000"]
    assert [f.token for f in dataset.frames("train")] == ["00/000000"]
