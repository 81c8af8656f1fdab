"""The nuScenes reader on a keyframe, against the devkit's own geometry."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.readers import open_dataset
from olivine.readers.index import open_index, write_index


@pytest.fixture(scope="module")
def frame(nuscenes_keyframe):
    return open_dataset("nuscenes", nuscenes_keyframe).frames("val")[0]


@pytest.fixture
def broken(nuscenes_keyframe, tmp_path):
    """A copy of the keyframe whose files may be damaged."""
    shutil.copytree(nuscenes_keyframe, tmp_path / "set")
    return tmp_path / "set"


def test_the_keyframe_has_its_34688_points_and_six_cameras(frame):
    assert frame.points().shape == (34688, 4)
    assert frame.points().dtype == np.float32
    assert frame.cameras[0].name == "CAM_FRONT"
    assert {(c.width, c.height) for c in frame.cameras} == {(1600, 900)}
    assert all(frame.image_path(c).is_file() for c in frame.cameras)


def test_points_are_the_devkits(frame):
    from nuscenes.utils.data_classes import LidarPointCloud

    cloud = LidarPointCloud.from_file(str(frame.root / frame.point_file))
    assert np.array_equal(frame.points(), cloud.points.T)


def test_lidar_to_camera_goes_through_the_world_at_each_sensors_own_time(frame):
    from nuscenes import NuScenes
    from pyquaternion import Quaternion

    devkit = NuScenes("v1.0-mini", str(frame.root), verbose=False)
    points = frame.points()[:, :3].astype(np.float64).T
    lidar = devkit.get("sample_data", frame.token)
    for camera in frame.cameras:
        image = devkit.get("sample_data", devkit.get("sample", lidar["sample_token"])["data"][camera.name])
        expected = points
        for record, inverse in ((lidar, False), (image, True)):
            steps = [
                devkit.get("calibrated_sensor", record["calibrated_sensor_token"]),
                devkit.get("ego_pose", record["ego_pose_token"]),
            ]
            for step in reversed(steps) if inverse else steps:
                rotation = Quaternion(step["rotation"]).rotation_matrix
                translation = np.array(step["translation"])[:, None]
                expected = rotation.T @ (expected - translation) if inverse else rotation @ expected + translation
        ours = camera.lidar_to_camera[:3, :3] @ points + camera.lidar_to_camera[:3, 3:]
        assert np.abs(ours - expected).max() < 1e-8


def points_missing(frame):
    """How far the number of points inside each box is from the annotated one."""
    from pyquaternion import Quaternion

    points = frame.points()[:, :3].astype(np.float64)
    missing = []
    for box in frame.boxes():
        local = (points - box.center) @ Quaternion(box.rotation).rotation_matrix
        missing.append(abs(int((np.abs(local) <= np.array(box.size) / 2).all(axis=1).sum()) - box.point_count))
    return np.array(missing)


@pytest.mark.frames("real")
def test_67_of_69_real_boxes_hold_the_annotated_number_of_points_within_two(frame):
    missing = points_missing(frame)
    assert (np.sum(missing <= 2), len(missing)) == (67, 69)


@pytest.mark.frames("synthetic")
def test_every_synthetic_box_holds_the_annotated_number_of_points(frame):
    missing = points_missing(frame)
    assert len(missing) == len(json.loads((frame.root / "v1.0-mini" / "sample_annotation.json").read_text())) > 50
    assert not missing.any()


def test_boxes_name_their_track(frame):
    folder = frame.root / frame.version
    calls = {row["token"]: row["sample_token"] for row in json.loads((folder / "sample_data.json").read_text())}
    rows = json.loads((folder / "sample_annotation.json").read_text())
    expected = [row["instance_token"] for row in rows if row["sample_token"] == calls[frame.token]]
    found = [box.track for box in frame.boxes()]
    assert sorted(found) == sorted(expected) and len(set(found)) == len(found) > 0


def test_a_frame_is_small_and_survives_pickling(frame):
    data = pickle.dumps(frame)
    assert len(data) <= 3000
    again = pickle.loads(data)
    assert again.token == frame.token
    assert np.array_equal(again.pose, frame.pose)
    for a, b in zip(again.cameras, frame.cameras, strict=True):
        assert np.array_equal(a.lidar_to_camera, b.lidar_to_camera)
        assert np.array_equal(a.intrinsic, b.intrinsic)
        assert (a.key, a.width, a.height) == (b.key, b.width, b.height)


def test_the_index_gives_the_same_frames_bit_for_bit_without_the_devkit(frame, nuscenes_keyframe, tmp_path):
    dataset = open_dataset("nuscenes", nuscenes_keyframe)
    index = write_index(tmp_path, dataset.frames(), dataset=dataset.name, version=dataset.version, root=dataset.root)
    assert (len(index), index.splits()) == (1, ["val"])
    again = next(open_index(tmp_path).frames("val"))
    assert again.token == frame.token
    assert again.pose.tobytes() == frame.pose.tobytes()
    assert [c.lidar_to_camera.tobytes() for c in again.cameras] == [c.lidar_to_camera.tobytes() for c in frame.cameras]
    assert np.array_equal(again.points(), frame.points())


def test_a_set_without_lidarseg_has_no_point_labels(frame):
    assert frame.point_labels() is None


def test_lidarseg_is_mapped_to_the_16_challenge_classes(broken):
    version = broken / "v1.0-mini"
    categories = json.loads((version / "category.json").read_text())
    token = json.loads((version / "sample_data.json").read_text())
    token = next(r["token"] for r in token if "LIDAR" in r["filename"])
    (broken / "lidarseg" / "v1.0-mini").mkdir(parents=True)
    raw = np.arange(34688, dtype=np.uint8) % len(categories)
    raw.tofile(broken / "lidarseg" / "v1.0-mini" / f"{token}_lidarseg.bin")
    record = {"token": token, "sample_data_token": token, "filename": f"lidarseg/v1.0-mini/{token}_lidarseg.bin"}
    (version / "lidarseg.json").write_text(json.dumps([record]))
    dataset = open_dataset("nuscenes", broken)
    frame = dataset.frames()[0]
    labels = frame.point_labels()
    assert len(dataset.point_classes) == 16
    names = {r["index"]: r["name"] for r in categories}
    expected = {
        "vehicle.car": "car",
        "flat.driveable_surface": "driveable_surface",
        "human.pedestrian.adult": "pedestrian",
    }
    for fine, coarse in expected.items():
        of_class = np.array([names[i] == fine for i in raw])
        assert {dataset.point_classes[i - 1] for i in labels[of_class]} == {coarse}
    assert set(labels[raw == 0]) == {0}

    record_path = broken / "lidarseg" / "v1.0-mini" / f"{token}_lidarseg.bin"
    raw[:100].tofile(record_path)
    with pytest.raises(OlivineError, match=r"_lidarseg\.bin: 100 labels for 34688 points"):
        frame.point_labels()


def test_bad_point_files_are_named_with_the_remedy(broken):
    frame = open_dataset("nuscenes", broken).frames()[0]
    path = broken / frame.point_file
    whole = path.read_bytes()

    path.write_bytes(whole[:-7])
    with pytest.raises(OlivineError, match=r"pcd\.bin: truncated point file.*Download"):
        frame.points()
    path.write_bytes(b"")
    with pytest.raises(OlivineError, match="the cloud is empty"):
        frame.points()
    cloud = np.frombuffer(whole, np.float32).copy()
    cloud[5 * 7] = np.nan
    path.write_bytes(cloud.tobytes())
    with pytest.raises(OlivineError, match=r"1 points are not finite \(the first is point 7\)"):
        frame.points()
    path.unlink()
    with pytest.raises(OlivineError, match="cannot be read"):
        frame.points()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root / "v1.0-mini"), "no nuScenes tables here"),
        (
            lambda root: (root / "v1.0-mini" / "ego_pose.json").unlink(),
            "ego_pose.json: a table of the data set is missing",
        ),
        (
            lambda root: (root / "v1.0-mini" / "sample_data.json").write_text("[{"),
            "sample_data.json: cannot be read as JSON",
        ),
    ],
)
def test_a_half_data_set_is_one_line(broken, damage, message):
    damage(broken)
    with pytest.raises(OlivineError, match=message) as error:
        open_dataset("nuscenes", broken)
    assert "\n" not in str(error.value)


def test_a_missing_data_set_says_how_to_get_one(tmp_path):
    with pytest.raises(OlivineError, match="olivine synth"):
        open_dataset("nuscenes", tmp_path / "nothing")
    with pytest.raises(OlivineError, match=r"no data set 'waymo'\. .* There are .*kitti, .*nuscenes"):
        open_dataset("waymo", tmp_path)


def test_the_largest_version_is_taken_and_said(broken):
    shutil.copytree(broken / "v1.0-mini", broken / "v1.0-trainval")
    sample = broken / "v1.0-trainval" / "sample.json"
    sample.write_text(sample.read_text() + " " * 1000)
    dataset = open_dataset("nuscenes", broken)
    assert dataset.version == "v1.0-trainval"
    assert "the largest of v1.0-mini, v1.0-trainval" in dataset.note
    with pytest.raises(OlivineError, match="Choose --version from"):
        open_dataset("nuscenes", broken, version="v1.0-test")


def test_the_index_is_written_once_and_again_when_the_tables_change(broken, tmp_path):
    from olivine.readers import index_dataset

    first, note = index_dataset(tmp_path / "frames", "nuscenes", broken)
    assert "1 frames in 1 scenes" in note
    written = (tmp_path / "frames" / "index.json").stat().st_mtime_ns
    again, note = index_dataset(tmp_path / "frames", "nuscenes", broken)
    assert "index at hand" in note
    assert again.digest == first.digest
    assert (tmp_path / "frames" / "index.json").stat().st_mtime_ns == written

    table = broken / "v1.0-mini" / "sample_data.json"
    table.write_text(table.read_text() + "\n")
    _, note = index_dataset(tmp_path / "frames", "nuscenes", broken)
    assert "index at hand" not in note


def change_table(root, name, change):
    path = root / "v1.0-mini" / f"{name}.json"
    records = json.loads(path.read_text())
    change(records)
    path.write_text(json.dumps(records))


def _image_of(records):
    return next(r for r in records if r["filename"].startswith("samples/CAM_FRONT/"))


@pytest.mark.parametrize("name", ["../../etc/x.jpg", "/etc/x.jpg", "samples/../../x.jpg"])
def test_an_image_outside_the_data_set_is_refused(broken, name):
    change_table(broken, "sample_data", lambda records: _image_of(records).update(filename=name))
    with pytest.raises(OlivineError, match=r"sample_data\.json: names the path"):
        open_dataset("nuscenes", broken).frames()


def test_samples_in_a_circle_end(broken):
    change_table(broken, "sample", lambda records: records[0].update(next=records[0]["token"]))
    with pytest.raises(
        OlivineError, match=r"sample\.json: scene .* has 1 samples, and the chain of its samples over 1"
    ):
        open_dataset("nuscenes", broken).frames()


def test_a_scene_with_fewer_samples_than_it_says_is_named(broken):
    change_table(broken, "scene", lambda records: records[0].update(nbr_samples=40))
    with pytest.raises(OlivineError, match="has 40 samples, and the chain of its samples 1"):
        open_dataset("nuscenes", broken).frames()


def test_a_camera_that_every_sample_lacks_is_said(broken):
    change_table(broken, "sample_data", lambda records: records.remove(_image_of(records)))
    dataset = open_dataset("nuscenes", broken)
    assert [len(f.cameras) for f in dataset.frames()] == [5]
    assert dataset.note.endswith("no frame has CAM_FRONT")


def test_a_camera_that_one_sample_lacks_is_an_error(broken, nuscenes_keyframe):
    dataset = open_dataset("nuscenes", nuscenes_keyframe)
    (frame,) = dataset.frames()
    lacking = replace(frame, token="other", cameras=frame.cameras[1:])
    with pytest.raises(OlivineError, match=r"sample_data\.json: the sample of LiDAR sweep other has the cameras"):
        dataset._check_cameras([frame, lacking])


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("sample_data", lambda records: _image_of(records).pop("width")),
        ("sample_data", lambda records: _image_of(records).update(ego_pose_token="nobody")),
        ("sample_data", lambda records: _image_of(records).update(calibrated_sensor_token=["x"])),
        ("ego_pose", lambda records: [r.update(rotation=[0, 0, 0, 0]) for r in records]),
        ("ego_pose", lambda records: [r.update(translation=None) for r in records]),
        ("calibrated_sensor", lambda records: [r.update(camera_intrinsic="x") for r in records]),
        ("calibrated_sensor", lambda records: [r.update(rotation=[1]) for r in records]),
        ("scene", lambda records: records[0].pop("nbr_samples")),
        ("scene", lambda records: records[0].update(nbr_samples="many")),
        ("scene", lambda records: records.append("no scene")),
        ("sample", lambda records: records[0].pop("token")),
        ("sample", lambda records: records.clear()),
        ("map", lambda records: records.append(None)),
        ("map", lambda records: [r.pop("log_tokens") for r in records]),
        ("log", lambda records: records.append([])),
    ],
)
def test_tables_that_do_not_fit_together_are_one_line(broken, table, change):
    change_table(broken, table, change)
    with pytest.raises(OlivineError, match=r"v1\.0-mini") as error:
        [f.points() for f in open_dataset("nuscenes", broken).frames()]
    assert "\n" not in str(error.value) and "again" in str(error.value)


@pytest.mark.parametrize("data", [b"\xff", b"{}", b"[" * 99999, b'[{"token": 3}]', b"null"])
def test_a_table_that_is_none_is_one_line(broken, data):
    (broken / "v1.0-mini" / "calibrated_sensor.json").write_bytes(data)
    with pytest.raises(OlivineError, match=r"v1\.0-mini") as error:
        open_dataset("nuscenes", broken).frames()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("index", [2**64, -1, "3", None])
def test_a_class_index_that_is_no_byte_is_named(broken, index):
    record = {"token": "t", "sample_data_token": "t", "filename": "lidarseg/v1.0-mini/t_lidarseg.bin"}
    (broken / "v1.0-mini" / "lidarseg.json").write_text(json.dumps([record]))
    (broken / "lidarseg" / "v1.0-mini").mkdir(parents=True)
    (broken / "lidarseg" / "v1.0-mini" / "t_lidarseg.bin").write_bytes(b"\0")
    change_table(broken, "category", lambda records: records[3].update(index=index))
    with pytest.raises(OlivineError, match=r"category\.json: index is|v1\.0-mini: the tables of the data set do not"):
        open_dataset("nuscenes", broken)


def test_a_data_set_that_takes_anothers_place_is_read_anew(nuscenes_world, tmp_path):
    root = tmp_path / "nuscenes"
    shutil.copytree(nuscenes_world.root / "v1.0-mini", root / "v1.0-mini")
    for folder in ("samples", "maps", "lidarseg"):
        (root / folder).symlink_to(nuscenes_world.root / folder)
    before = len(open_dataset("nuscenes", root).frames())
    scenes = root / "v1.0-mini" / "scene.json"
    scenes.write_text(json.dumps(json.loads(scenes.read_text())[:1]))
    assert len(open_dataset("nuscenes", root).frames()) < before
