"""Projection: the devkit's own results, and a plain projection by KITTI's P2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pyquaternion import Quaternion

from olivine.common import OlivineError
from olivine.labelgen.store import LabelStore
from olivine.pairs.project import look_up, project_points
from olivine.readers import open_dataset
from olivine.readers.frame import Camera, Frame

if TYPE_CHECKING:  # the devkit takes two seconds to import: only where a test runs it
    from nuscenes import NuScenes

# Where the annotated categories of the keyframe are in the order of the 13 prompts.
PROMPT_OF = {
    "movable_object.barrier": 1, "vehicle.bicycle": 2, "vehicle.bus.rigid": 3, "vehicle.bus.bendy": 3, "vehicle.car": 4,
    "vehicle.motorcycle": 5, "human.pedestrian.adult": 6, "human.pedestrian.child": 6,
    "human.pedestrian.construction_worker": 6, "human.pedestrian.police_officer": 6, "movable_object.trafficcone": 7,
    "vehicle.truck": 8,
}  # fmt: skip


def _devkit_projection(devkit: NuScenes, sample: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The points and pixels of each camera by the devkit's own steps and classes, the cloud in float64."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import view_points

    root, data = Path(devkit.dataroot), sample["data"]
    lidar = devkit.get("sample_data", data["LIDAR_TOP"])
    result = {}
    for name in [key for key in data if key.startswith("CAM")]:
        camera = devkit.get("sample_data", data[name])
        cloud = LidarPointCloud.from_file(str(root / lidar["filename"]))
        cloud.points = cloud.points.astype(np.float64)  # its float32 loses centimetres in the world
        for record, inverse in ((lidar, False), (camera, True)):
            sensor = devkit.get("calibrated_sensor", record["calibrated_sensor_token"])
            ego = devkit.get("ego_pose", record["ego_pose_token"])
            for step in (ego, sensor) if inverse else (sensor, ego):
                if inverse:
                    cloud.translate(-np.array(step["translation"]))
                    cloud.rotate(Quaternion(step["rotation"]).rotation_matrix.T)
                else:
                    cloud.rotate(Quaternion(step["rotation"]).rotation_matrix)
                    cloud.translate(np.array(step["translation"]))
        depth = cloud.points[2]
        uv = view_points(cloud.points[:3], np.array(sensor["camera_intrinsic"]), normalize=True)[:2]
        seen = (depth > 1) & (uv[0] > 0) & (uv[0] < camera["width"] - 1) & (uv[1] > 0) & (uv[1] < camera["height"] - 1)
        result[name] = (np.flatnonzero(seen), uv[:, seen].T)
    return result


@pytest.mark.frames("real")
def test_the_real_keyframe_has_22115_pairs(keyframe: Frame) -> None:
    point, camera, uv = project_points(keyframe.points(), keyframe.cameras)
    assert len(point) == len(camera) == len(uv) == 22_115
    assert (point.dtype, camera.dtype, uv.dtype) == (np.int32, np.uint8, np.float32)


def _assert_as_the_devkit(devkit: NuScenes, frame: Frame, sample: dict) -> None:
    point, camera, uv = project_points(frame.points(), frame.cameras)
    for name, (seen, pixel) in _devkit_projection(devkit, sample).items():
        c = [view.name for view in frame.cameras].index(name)
        assert np.array_equal(point[camera == c], seen)
        assert np.abs(uv[camera == c] - pixel).max() < 0.01


def test_the_devkit_sees_the_same_points_at_the_same_pixels(keyframe: Frame, nuscenes_keyframe: Path) -> None:
    from nuscenes import NuScenes

    devkit = NuScenes("v1.0-mini", str(nuscenes_keyframe), verbose=False)
    _assert_as_the_devkit(devkit, keyframe, devkit.sample[0])


@pytest.mark.soak
def test_the_devkit_sees_the_same_on_100_synthetic_frames(tmp_path: Path) -> None:
    from nuscenes import NuScenes

    from olivine.synthetic.settings import SyntheticSettings
    from olivine.synthetic.write import write_dataset

    write_dataset(SyntheticSettings(scenes=4, frames=25, image_scale=0.1, workers=2), tmp_path / "nuscenes")
    dataset = open_dataset("nuscenes", tmp_path / "nuscenes")
    devkit = NuScenes(dataset.version, str(tmp_path / "nuscenes"), verbose=False)
    sample_of = {sample["data"]["LIDAR_TOP"]: sample for sample in devkit.sample}
    frames = list(dataset.frames())
    assert len(frames) == 100
    for frame in frames:
        _assert_as_the_devkit(devkit, frame, sample_of[frame.token])


def _by_matrix(points: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Every point's pixel by a plain 3 x 4 projection, and whether it is seen."""
    pixel = np.c_[points[:, :3].astype(np.float64), np.ones(len(points))] @ matrix.T
    uv = pixel[:, :2] / pixel[:, 2:]
    return uv, (pixel[:, 2] > 1) & (uv > 0).all(1) & (uv < (size[0] - 1, size[1] - 1)).all(1)


def _assert_by_the_whole_p2(root: Path, frame: Frame) -> np.ndarray:
    """The frame's pairs are those of P2 @ Tr as read from calib.txt; returns which points are seen."""
    rows = (line.split(": ") for line in (root / "sequences" / frame.scene / "calib.txt").read_text().splitlines())
    calibration = {name: np.array(values.split(), np.float64).reshape(3, 4) for name, values in rows}
    matrix = calibration["P2"] @ np.r_[calibration["Tr"], [[0, 0, 0, 1]]]
    assert (calibration["P2"][:, 3] != 0).all()
    view, points = frame.cameras[0], frame.points()
    pixel, seen = _by_matrix(points, matrix, (view.width, view.height))
    point, _, uv = project_points(points, frame.cameras)
    assert np.array_equal(point, np.flatnonzero(seen))
    assert np.abs(uv - pixel[seen]).max() < 1e-3
    return seen


def test_kitti_is_projected_by_the_whole_p2(kitti: Frame, kitti_frame: Path) -> None:
    assert _assert_by_the_whole_p2(kitti_frame, kitti).sum() > 10_000


@pytest.mark.frames("real")
def test_the_real_kitti_frame_has_17186_pairs(kitti: Frame) -> None:
    assert len(kitti.points()) == 17_238
    assert len(project_points(kitti.points(), kitti.cameras)[0]) == 17_186


def test_synthetic_kitti_is_projected_by_the_whole_p2(kitti_world: Any) -> None:
    for frame in open_dataset("semantickitti", kitti_world.root).frames():
        assert _assert_by_the_whole_p2(kitti_world.root, frame).any()


@pytest.mark.frames("real")
def test_what_pykittis_k_and_t_would_change_on_the_real_frame(kitti: Frame, kitti_frame: Path) -> None:
    """The figures in docs/datasets.md."""
    import pykitti

    calibration = pykitti.odometry(str(kitti_frame), "00").calib
    points = kitti.points()
    ours, seen = _by_matrix(points, kitti.cameras[0].intrinsic @ kitti.cameras[0].lidar_to_camera[:3], (1242, 375))
    other, seen_too = _by_matrix(points, calibration.K_cam2 @ calibration.T_cam2_velo[:3], (1242, 375))
    assert (seen.sum(), seen_too.sum()) == (17_186, 17_178)
    both = seen & seen_too
    assert np.abs(ours - other)[both].max().round(2) == 0.74
    assert (100 * (np.rint(ours) != np.rint(other))[both].any(1).mean()).round() == 22


def test_pairs_come_by_camera_and_then_by_point(keyframe: Frame) -> None:
    point, camera, _ = project_points(keyframe.points(), keyframe.cameras)
    assert (np.diff(camera.astype(int) * len(keyframe.points()) + point) > 0).all()


def _labels_and_boxes(keyframe: Frame, keyframe_store: LabelStore) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair inside an annotated box the value of the label map and the class of the box."""
    points = keyframe.points()
    point, camera, uv = project_points(points, keyframe.cameras)
    label = np.concatenate(
        [look_up(keyframe_store.label_map(view), uv[camera == c]) for c, view in enumerate(keyframe.cameras)]
    )
    truth = np.zeros(len(points), int)
    for box in keyframe.boxes() or []:
        local = (points[:, :3] - box.center) @ Quaternion(box.rotation).rotation_matrix
        truth[(np.abs(local) <= np.array(box.size) / 2).all(1)] = PROMPT_OF.get(box.category, 0)
    inside = truth[point] > 0
    return label[inside], truth[point][inside]


def test_most_pairs_in_annotated_boxes_carry_the_class_of_the_box(keyframe: Frame, keyframe_store: LabelStore) -> None:
    label, truth = _labels_and_boxes(keyframe, keyframe_store)
    # Not all: what the LiDAR sees from the roof may be hidden from a camera.
    assert len(label) > 1000 and (label == truth).mean() > 0.75


@pytest.mark.frames("real")
def test_of_the_1090_real_pairs_in_boxes_912_of_1000_carry_the_class(
    keyframe: Frame, keyframe_store: LabelStore
) -> None:
    label, truth = _labels_and_boxes(keyframe, keyframe_store)
    assert len(label) == 1090
    assert round(100 * (label == truth).mean(), 1) == 91.2


def _camera(width: int = 101, height: int = 51) -> Camera:
    intrinsic = np.array([[50.0, 0, 50], [0, 50, 25], [0, 0, 1]])
    return Camera("c", "samples/c/x.jpg", width, height, intrinsic, np.eye(4))


@pytest.mark.parametrize(
    ("xyz", "seen"),
    [
        ((0, 0, 2), True),
        ((0, 0, 1.0), False),  # depth has to be over 1 m
        ((0, 0, 1.001), True),
        ((0, 0, -5), False),
        ((-2, 0, 2), False),  # u = 0 exactly
        ((-1.999, 0, 2), True),
        ((2, 0, 2), False),  # u = W - 1 exactly
        ((1.999, 0, 2), True),
        ((0, -1, 2), False),  # v = 0
        ((0, 1, 2), False),  # v = H - 1
        ((np.nan, 0, 2), False),
        ((0, 0, np.inf), False),
    ],
)
def test_the_border_rule(xyz: tuple[float, float, float], seen: bool) -> None:
    assert len(project_points(np.array([xyz], np.float32), [_camera()])[0]) == seen


def test_no_points_or_no_cameras_give_no_pairs() -> None:
    for points, cameras in ((np.empty((0, 4), np.float32), [_camera()]), (np.ones((3, 4), np.float32), [])):
        point, camera, uv = project_points(points, cameras)
        assert point.shape == camera.shape == (0,) and uv.shape == (0, 2)


def test_a_cloud_without_three_columns_is_refused() -> None:
    with pytest.raises(OlivineError, match="shape"):
        project_points(np.ones((3, 2), np.float32), [_camera()])


def test_labels_are_looked_up_at_the_rounded_pixel() -> None:
    label = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert look_up(label, np.array([[0.4, 0.6], [2.6, 1.2]], np.float32)).tolist() == [4, 7]
