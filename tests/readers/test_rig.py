"""A recording of one's own: the sample frames rewritten as such a folder, and what is wrong with one in a line."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from olivine.common import OlivineError
from olivine.readers import check_current, index_dataset, open_dataset, recognize
from olivine.readers.frame import UP
from olivine.readers.project import project_points
from olivine.readers.rig import RigDataset


def kitti_as_rig(kitti_frame, folder):
    """The KITTI frame: P2 and Tr from calib.txt, the pose of camera 0 as it is."""
    sequence = kitti_frame / "sequences" / "00"
    lines = (line.split(":") for line in (sequence / "calib.txt").read_text().splitlines() if ":" in line)
    numbers = {key: np.array(values.split(), float).reshape(3, 4) for key, values in lines}
    intrinsic = numbers["P2"][:, :3]
    to_camera = np.vstack([numbers["Tr"], [0, 0, 0, 1]])
    left = np.eye(4)
    left[:3, 3] = np.linalg.solve(intrinsic, numbers["P2"][:, 3])
    for name, source in (
        ("lidar", sequence / "velodyne" / "000000.bin"),
        ("left", sequence / "image_2" / "000000.png"),
    ):
        (folder / name).mkdir(parents=True)
        shutil.copy(source, folder / name)
    shutil.copy(kitti_frame / "poses" / "00.txt", folder / "all.txt")
    (folder / "poses.txt").write_text((folder / "all.txt").read_text().splitlines()[0] + "\n")
    clock = {"times": "number", "rate": 10}
    grey = {"files": "left/*.png", **clock, "intrinsic": [1, 1, 0, 0], "lidar_to_camera": to_camera.tolist()}
    colour = {**grey, "intrinsic": intrinsic.tolist(), "lidar_to_camera": (left @ to_camera).tolist()}
    plain = {
        "lidars": {"lidar": {"files": "lidar/*.bin", **clock}},
        "cameras": {"image_2": colour, "camera_0": grey},
        "poses": {"file": "poses.txt", "format": "kitti", "of": "camera_0"},
        "intensity_offset": 1,
    }
    (folder / "rig.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    return folder


def assert_same_pairs(frame, mine, cameras):
    points = frame.points()
    assert np.array_equal(points, mine.points())
    one = project_points(points, frame.cameras[:cameras])
    other = project_points(points, mine.cameras[:cameras])
    assert len(one[0]) > 1000
    assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])
    assert np.abs(one[2] - other[2]).max() < 1e-3
    for a, b in zip(frame.cameras, mine.cameras[:cameras], strict=True):
        assert (a.name, a.width, a.height) == (b.name, b.width, b.height)
        assert frame.image_path(a).read_bytes() == mine.image_path(b).read_bytes()
    np.testing.assert_allclose(frame.pose, mine.pose, rtol=0, atol=1e-6)


def test_the_keyframe_as_a_recording_gives_the_same_pairs(nuscenes_keyframe, rig_of_keyframes, tmp_path):
    (frame,) = open_dataset("nuscenes", nuscenes_keyframe).frames()
    dataset = open_dataset("rig", rig_of_keyframes(nuscenes_keyframe, tmp_path))
    (mine,) = dataset.frames("val")
    assert dataset.doubts == ()
    assert_same_pairs(frame, mine, 6)
    assert (mine.timestamp, mine.split, mine.scene) == (frame.timestamp, "val", "recording")
    assert recognize(tmp_path) == ["rig"]


def test_the_kitti_frame_as_a_recording_gives_the_same_pairs(kitti_frame, tmp_path):
    (frame,) = open_dataset("kitti", kitti_frame).frames()
    dataset = open_dataset("rig", kitti_as_rig(kitti_frame, tmp_path))
    (mine,) = dataset.frames("train")
    assert_same_pairs(frame, mine, 1)
    assert dataset.doubts == () and dataset.intensity_offset == 1 and mine.token == "recording/000000"


# --- what can be wrong ------------------------------------------------------------------------------------------------


@pytest.fixture
def drive(tmp_path):
    """A small recording: three clouds, one camera at the same times, everything said."""
    rng = np.random.default_rng(0)
    for k in range(3):
        for name in ("lidar", "front"):
            (tmp_path / name).mkdir(exist_ok=True)
        cloud = rng.uniform((2, -3, -1.5, 0), (30, 3, 2, 1), (200, 4)).astype(np.float32)
        cloud.tofile(tmp_path / "lidar" / f"{1_700_000_000 + k}.100000.bin")
        image = Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8))
        image.save(tmp_path / "front" / f"{1_700_000_000 + k}.110000.png")
    plain = {
        "lidars": {"top": {"files": "lidar/*.bin"}},
        "cameras": {
            "front": {
                "files": "front/*.png",
                "intrinsic": [40, 40, 31.5, 23.5],
                "lidar_to_camera": [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]],
            }
        },
    }
    write(tmp_path, plain)
    return tmp_path, plain


def write(root, plain):
    plain = json.loads(json.dumps(plain))  # else what two sensors share becomes an alias
    (root / "rig.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))


def test_a_recording_without_poses_has_none(drive):
    root, _ = drive
    dataset = open_dataset("rig", root)
    frames = dataset.frames()
    assert [f.timestamp for f in frames] == [1_700_000_000_100_000 + k * 1_000_000 for k in range(3)]
    assert all(np.isnan(f.pose).all() and len(f.points()) == 200 for f in frames)
    assert len(project_points(frames[0].points(), frames[0].cameras)[0]) > 20
    assert RigDataset.delays(frames[1]) == {"front": 0.01}
    assert dataset.note == "rig.yaml with top, front" and dataset.frames("val") == []


CAMERA = ("cameras", "front")


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (("cameras",), None, "cameras names none"),
        (("cameras",), {}, "cameras names none"),
        (("lidars",), "none", "lidars is 'none', expected names"),
        ((*CAMERA, "files"), "left/*.png", r"front has no file left/\*\.png.*take the sensor out"),
        ((*CAMERA, "files"), "front/*.tif", "name images: a pattern that ends in .jpg"),
        ((*CAMERA, "files"), "../x/*.png", "names the path"),
        ((*CAMERA, "intrinsic"), None, "cameras.front.intrinsic is"),
        ((*CAMERA, "intrinsic"), "FILL IN", "cameras.front.intrinsic is not filled in"),
        ((*CAMERA, "intrinsic"), [1, 2, 3], "give .fx, fy, cx, cy"),
        ((*CAMERA, "intrinsic"), [-40, 40, 31, 23], "is no camera matrix"),
        ((*CAMERA, "lidar_to_camera"), [[0, -2, 0, 0], [0, 0, -2, 0], [2, 0, 0, 0]], r"is no rotation \(determinant 8\.000"),
        ((*CAMERA, "lidar_to_camera"), [[-1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0]], r"left-handed \(determinant -1\.000\)"),
        ((*CAMERA, "lidar_to_camera"), [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [1, 2, 3, 1]], "is it transposed"),
        ((*CAMERA, "lidar_to_camera"), [1, 2, 3], "give 4 rows of 4 numbers"),
        ((*CAMERA, "lidar_to_camera"), {"translation": [0, 0, 0], "quaternion_wxyz": [1, 1, 0, 0]}, "has the length 1.41"),
        ((*CAMERA, "camera_to_lidar"), [1] * 12, "has camera_to_lidar and lidar_to_camera"),
        ((*CAMERA, "clock_offset"), 5.0, r"no cloud of top has a file of front within 0\.05 s: the nearest is 3\.01 s"),
        ((*CAMERA, "clock_ofset"), 5.0, "did you mean 'clock_offset'"),
        ((*CAMERA, "unit"), "days", "use s or ms or us or ns"),
        ((*CAMERA, "times"), "times.txt", r"times\.txt: no such file"),
        ((*CAMERA, "model"), "fisheye", "fisheye has 4"),
        (("lidars", "top", "columns"), ["x", "y", "z"], "is not a whole number of points of 12 bytes|no column"),
        (("lidars", "top", "columns"), ["a", "b", "c", "d"], "no column 'x' for x, y, z; it has a, b, c, d"),
        (("lidars", "top", "xyz"), ["x"], "name the three of x, y and z"),
        (("scenes",), {"day": "train"}, "the folder day, which is not there"),
        (("scenes",), {".": "training"}, "use train, val, test"),
        (("poses",), {"file": "poses.txt"}, r"poses\.txt: no such file"),
        (("matching",), {"limit": -1}, "use a number of at least 0"),
        (("speed",), 3, "no key speed is known"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_recording_is_one_line(drive, at, value, says):
    root, plain = drive
    place = plain
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    write(root, plain)
    with pytest.raises(OlivineError, match=f"(?i){says}") as error:
        for frame in open_dataset("rig", root).frames():
            frame.points()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        ([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0]], "is it not lidar_to_camera but its inverse"),
        ([[-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, 0]], "does not stand upright"),
        ({"translation": [0, 0, 0], "quaternion_wxyz": [0.5, -0.5, 0.5, 0.5]}, "if its quaternion is x, y, z, w"),
        ({"translation": [0, 0, 0], "quaternion_xyzw": [0.5, -0.5, 0.5, 0.5]}, ""),
        (
            {"translation": [0, 0, 0], "quaternion_xyzw": [0, 0, -0.70710678, 0.70710678]},
            "if its quaternion is w, x, y, z",
        ),
    ],
)
def test_a_camera_that_looks_elsewhere_is_said(drive, matrix, says):
    root, plain = drive
    plain["cameras"]["front"]["lidar_to_camera"] = matrix
    write(root, plain)
    dataset = open_dataset("rig", root)
    assert says in dataset.note
    assert [says in doubt.reason for doubt in dataset.doubts] == [True] * bool(says)


def test_without_the_yaml_the_command_that_writes_one_is_named(tmp_path):
    with pytest.raises(OlivineError, match=r"no rig\.yaml here\. Write one with: olivine init-rig"):
        open_dataset("rig", tmp_path)


def test_images_too_late_are_left_out_and_counted(drive):
    root, _ = drive
    late = root / "front" / "1700000002.110000.png"
    late.rename(late.with_name("1700000002.700000.png"))
    dataset = open_dataset("rig", root)
    assert len(dataset.frames()) == 2
    assert "1 clouds of recording have no file of every sensor within 0.05 s and are left out" in dataset.note


@pytest.mark.parametrize("form", ["times", "names"])
def test_times_come_from_a_table(drive, form):
    root, plain = drive
    lines = [f"{2000 + 100 * k}" for k in range(3)]
    if form == "names":
        lines = [f"{name.name},{time}" for name, time in zip(sorted((root / "front").iterdir()), lines)][::-1]
    (root / "front.csv").write_text("# image times\n" + "\n".join(lines) + "\n")
    plain["cameras"]["front"] |= {"times": "front.csv", "unit": "ms", "clock_offset": -0.5}
    plain["lidars"]["top"] |= {"times": "number", "rate": 10}
    for k, path in enumerate(sorted((root / "lidar").iterdir())):
        path.rename(root / "lidar" / f"cloud_{15 + k}.bin")
    write(root, plain)
    frames = open_dataset("rig", root).frames()
    assert [f.timestamp for f in frames] == [1_500_000, 1_600_000, 1_700_000]
    assert [f.cameras[0].image for f in frames] == [f"front/{1_700_000_000 + k}.110000.png" for k in range(3)]
    assert [f.token for f in frames] == [f"recording/cloud_{15 + k}" for k in range(3)]


def test_a_second_lidar_is_moved_into_the_first_ones_frame_at_its_own_time(drive):
    """The vehicle drives along x at 10 m/s; the rear LiDAR looks back, and its sweep is 20 ms later."""
    root, plain = drive
    (root / "rear").mkdir()
    rear = np.array([[5, 1, 0, 0.5]], np.float32)
    for k in range(3):
        np.save(root / "rear" / f"{1_700_000_000 + k}.120000.npy", rear)
    turn = [[-1, 0, 0, -2], [0, -1, 0, 0], [0, 0, 1, 1]]
    plain["lidars"]["rear"] = {"files": "rear/*.npy", "lidar_to_vehicle": turn}
    times = np.arange(-1, 40) * 0.1 + 1_700_000_000
    rows = [f"{t:.6f} {10 * (t - 1_700_000_000):.9f} 0 0 0 0 0 1" for t in times]
    (root / "poses.txt").write_text("\n".join(rows))
    plain["poses"] = {"file": "poses.txt"}
    write(root, plain)
    (frame, *_) = open_dataset("rig", root).frames()
    points = frame.points()
    assert len(points) == 201
    names = [sorted((root / folder).iterdir())[0].relative_to(root).as_posix() for folder in ("lidar", "rear")]
    assert RigDataset.files(frame) == tuple(names)  # build-pairs sees where either has changed
    assert np.allclose(points[-1], [-5 - 2 + 0.2, -1, 1, 0.5], atol=1e-5)
    assert np.allclose(frame.pose[:3, 3], [1, 0, 0], atol=1e-6)
    # The image is taken 10 ms later, 0.1 m further on.
    assert np.allclose(frame.cameras[0].lidar_to_camera[:3, 3], [0, 0, -0.1], atol=1e-6)


@pytest.mark.parametrize(
    ("quaternion", "up", "said"),
    [
        ([0.8, 0, 0, 0.6], (0, 0, 1), False),  # rotated about the vehicle's z axis
        ([0, 1, 0, 0], (0, 0, -1), True),  # hangs upside down
        ([0.8, 0, 0.6, 0], (-0.96, 0, 0.28), True),  # looks down by 74°
    ],
)
def test_up_is_the_vehicles_z_axis(drive, tmp_path_factory, quaternion, up, said):
    root, plain = drive
    plain["lidars"]["top"]["lidar_to_vehicle"] = {"translation": [0, 0, 2], "quaternion_wxyz": quaternion}
    front = plain["cameras"]["front"]
    front["camera_to_vehicle"] = np.linalg.inv(front.pop("lidar_to_camera")).tolist()
    write(root, plain)
    index, note = index_dataset(tmp_path_factory.mktemp("labels"), "rig", root)
    frame = next(index.frames())
    assert np.allclose(frame.up, up, atol=1e-9) and (frame.up == UP) == (up == (0, 0, 1))
    assert ("the z axis of top is" in note) == said


def test_near_points_and_every_second_cloud_can_be_left_out(drive):
    root, plain = drive
    plain |= {"min_range": 10, "matching": {"every": 2, "limit": 0.05}}
    write(root, plain)
    frames = open_dataset("rig", root).frames()
    assert len(frames) == 2
    raw = np.fromfile(root / "lidar" / "1700000000.100000.bin", np.float32).reshape(-1, 4)
    assert np.array_equal(frames[0].points(), raw[np.linalg.norm(raw[:, :3], axis=1) >= 10])


@pytest.mark.parametrize("visibility", ["none", "occlusion"])
def test_a_lens_goes_into_the_shards_and_their_pixels_are_checked_through_it(drive, tmp_path_factory, visibility):
    from olivine.labelgen.run import generate_labels
    from olivine.labelgen.settings import LabelSettings
    from olivine.labelgen.store import open_store
    from olivine.pairs.build import build_pairs
    from olivine.pairs.check import check_shards
    from olivine.pairs.settings import PairSettings
    from olivine.pairs.shards import open_shards
    from olivine.readers import index_dataset

    root, plain = drive
    out = tmp_path_factory.mktemp("out")
    plain["cameras"]["front"] |= {"model": "brown-conrady", "distortion": [-0.3, 0.1, 0.001, -0.002, 0.0]}
    plain["cameras"]["fish"] = {
        **plain["cameras"]["front"],
        "model": "fisheye",
        "distortion": [0.01, -0.02, 0.003, 0.0],
        "files": "fish/*.png",
    }
    shutil.copytree(root / "front", root / "fish")
    write(root, plain)
    index, _ = index_dataset(out / "labels" / "frames", "rig", root)
    for frame in index.frames():
        for camera in frame.cameras:
            path = out / "maps" / f"{camera.key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((48, 64), 4, np.uint8)).save(path)
    generate_labels(index, out / "labels", LabelSettings("import", camseg=out / "maps"))
    settings = PairSettings(visibility=visibility, image_scale=0.5)
    summary = build_pairs(open_store(out / "labels"), out / "pairs", settings, split="train")
    assert not summary.failures and summary.pairs > 100
    assert check_shards(out / "pairs").failures == []
    lenses = open_shards(out / "pairs").lenses(0)
    assert lenses == [("brown-conrady", (-0.3, 0.1, 0.001, -0.002, 0.0)), ("fisheye", (0.01, -0.02, 0.003, 0.0))]
    # Without the lens the pixels are elsewhere: the check would say so.
    shards = open_shards(out / "pairs")
    shards.lenses = lambda index: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("olivine.pairs.check.open_shards", lambda path: shards)
        assert "px from where the calibration projects" in check_shards(out / "pairs").failures[0].reason


# --- a start ----------------------------------------------------------------------------------------------------------


def test_a_start_knows_the_files_and_asks_for_the_rest(drive):
    from olivine.readers.recording_start import start_description

    root, finished = drive
    (root / "rig.yaml").unlink()
    (root / "poses.txt").write_text("1700000000.0 0 0 0 0 0 0 1\n1700000009.0 1 0 0 0 0 0 1\n")
    summary = start_description(root)
    assert (summary.lidars, summary.cameras, summary.poses) == (("lidar",), ("front",), "poses.txt")
    assert summary.to_fill_in == ("cameras.front.intrinsic", "cameras.front.lidar_to_camera")
    with pytest.raises(OlivineError, match=r"cameras\.front\.intrinsic is not filled in"):
        open_dataset("rig", root)
    text = (root / "rig.yaml").read_text()
    assert "64 x 48" in text and "unit: s" in text
    text = text.replace("intrinsic: FILL IN", "intrinsic: [40, 40, 31.5, 23.5]")
    matrix = json.dumps(finished["cameras"]["front"]["lidar_to_camera"])
    text = text.replace("lidar_to_camera: FILL IN", f"lidar_to_camera: {matrix}").replace(
        "of: vehicle", "of: vehicle\n  max_gap: 20"
    )
    (root / "rig.yaml").write_text(text)
    frames = open_dataset("rig", root).frames()
    assert len(frames) == 3 and np.isfinite(frames[0].pose).all()
    with pytest.raises(OlivineError, match="is there already"):
        start_description(root)


def test_folders_alike_are_scenes_and_the_last_is_for_validation(drive, tmp_path):
    from olivine.readers.recording_start import start_description

    root, _ = drive
    for name in ("day-1", "day-2"):
        for part in ("lidar", "front"):
            shutil.copytree(root / part, root / "all" / name / part)
    summary = start_description(root / "all")
    plain = yaml.safe_load((root / "all" / "rig.yaml").read_text())
    assert summary.scenes == ("day-1", "day-2")
    assert plain["scenes"] == {"day-1": "train", "day-2": "val"}
    assert plain["lidars"]["lidar"]["files"] == "lidar/*.bin"
    assert plain["lidars"]["lidar"]["columns"] == ["x", "y", "z", "intensity"]


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_the_columns_of_files_that_name_none_are_counted(drive, count):
    """Of 60 points, so that rows of 3, 4, 5 and 6 numbers all fit the file's size."""
    from olivine.readers.recording_start import start_description

    root, _ = drive
    (root / "rig.yaml").unlink()
    random = np.random.default_rng(0)
    for path in (root / "lidar").iterdir():
        rows = np.concatenate([random.normal(0, 20, (60, 3)), random.uniform(0, 255, (60, count - 3))], axis=1)
        rows.astype("<f4").tofile(path)
    start_description(root)
    columns = yaml.safe_load((root / "rig.yaml").read_text())["lidars"]["lidar"]["columns"]
    assert columns == ["x", "y", "z", "intensity", "column_5", "column_6"][:count]


def test_two_cameras_whose_files_differ_in_the_suffix_alone_are_refused_until_one_is_moved(drive):
    root, plain = drive
    for path in (root / "front").iterdir():
        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"))
    plain["cameras"]["front_2"] = {**plain["cameras"]["front"], "files": "front/*.jpg"}
    write(root, plain)
    with pytest.raises(OlivineError, match=r"0\.110000\.png and front/\S*0\.110000\.jpg would share one label map"):
        open_dataset("rig", root).frames()
    (root / "front_2").mkdir()
    for path in (root / "front").glob("*.jpg"):
        path.rename(root / "front_2" / path.name)
    plain["cameras"]["front_2"]["files"] = "front_2/*.jpg"
    write(root, plain)
    keys = [camera.key for frame in open_dataset("rig", root).frames() for camera in frame.cameras]
    assert len(set(keys)) == len(keys) == 6


def test_images_of_another_size_in_another_scene_are_refused(drive):
    root, plain = drive
    for name in ("day-1", "day-2"):
        for part in ("lidar", "front"):
            shutil.copytree(root / part, root / name / part)
    for path in (root / "day-2" / "front").iterdir():
        Image.open(path).resize((32, 24)).save(path)
    plain["scenes"] = {"day-1": "train", "day-2": "val"}
    write(root, plain)
    with pytest.raises(OlivineError, match=r"front has one intrinsic.*day-1/front/\S+ is 64x48, day-2/front/\S+ 32x24"):
        open_dataset("rig", root).frames()


@pytest.mark.parametrize(("size", "said"), [((64, 48), False), ((32, 24), True)])
def test_a_principal_point_far_from_the_middle_is_a_remark(drive, size, said):
    from olivine.readers.checks import check_frames

    root, _ = drive
    for path in (root / "front").iterdir():
        Image.open(path).resize(size).save(path)
    notes = check_frames(open_dataset("rig", root).frames()).notes
    assert (
        any("front: the principal point (32, 24) is far from the middle of images of 32x24" in n for n in notes) == said
    )


def test_columns_that_are_others_than_named_are_said(drive):
    from olivine.readers.checks import check_frames

    root, _ = drive
    assert not any("negative" in f.reason for f in check_frames(open_dataset("rig", root).frames()).failures)
    for path in (root / "lidar").iterdir():  # five numbers a point, and the description says four
        rows = np.random.default_rng(0).normal(0, 20, (200, 5))
        np.abs(rows, out=rows, where=[False, False, False, True, True])
        rows.astype("<f4").tofile(path)
    said = [f.reason for f in check_frames(open_dataset("rig", root).frames()).failures]
    assert any("% of the intensities are negative: the columns of its file are others than named" in s for s in said)


def test_a_folder_without_images_is_said(drive):
    from olivine.readers.recording_start import start_description

    root, _ = drive
    shutil.rmtree(root / "front")
    (root / "rig.yaml").unlink()
    with pytest.raises(OlivineError, match=r"holds no images \(\.jpg"):
        start_description(root)
    assert not Path(root / "rig.yaml").exists()


def test_a_rig_that_was_changed_after_the_labels_is_not_built_from(drive, tmp_path_factory):
    """Calibrating again is what people do when they have seen their pairs."""
    root, plain = drive
    index, _ = index_dataset(tmp_path_factory.mktemp("labels"), "rig", root)
    assert check_current(index) == ""
    os.utime(root / "rig.yaml", ns=(0, 0))  # a copy has other times
    assert check_current(index) == ""
    plain["cameras"]["front"]["lidar_to_camera"][0][3] = 1
    write(root, plain)
    with pytest.raises(
        OlivineError, match=r"changed since its frames were listed: 1 of 1 scenes.*olivine labelgen again"
    ):
        check_current(index)
