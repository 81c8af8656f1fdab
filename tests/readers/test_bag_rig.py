"""A bag that comes into a folder with others, and what its CameraInfo, transforms and poses mean."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from olivine.common import OlivineError
from olivine.readers import open_dataset
from olivine.readers.bag_messages import beside_its_frame, lens_of
from olivine.readers.bags import BagSettings, import_bag

spec = importlib.util.spec_from_file_location("bags", Path(__file__).with_name("test_bags.py"))
assert spec is not None and spec.loader is not None
bags = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bags)
Drive, write, K, WIDTH, HEIGHT, FRAMES = bags.Drive, bags.write, bags.K, bags.WIDTH, bags.HEIGHT, bags.FRAMES
LIDAR, FRONT, BACK = bags.LIDAR, bags.FRONT, bags.BACK

WITHOUT_POSES = BagSettings(odometry="none", vehicle="base_link")


def tree(folder: Path) -> dict[str, str]:
    """Everything in a folder, hidden files too."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def info_of(change: Any, camera: str = "front") -> Any:
    """A change of a camera's CameraInfo."""

    def changed(topic: str, kind: str, message: Any, types: Any) -> tuple[str, str, Any]:
        return topic, kind, change(message, types) if topic == f"/{camera}/camera_info" else message

    return changed


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Path]:
    """A folder with one bag's scene, "drive"."""
    import_bag([write(tmp_path / "drive", Drive(), "mcap")], tmp_path / "rig")
    yield tmp_path / "rig"


# --- a scene more -----------------------------------------------------------------------------------------------------


def test_a_scene_that_is_there_is_replaced_only_where_that_is_asked_for(rig: Path, tmp_path: Path) -> None:
    (tmp_path / "day2").mkdir()
    other = write(tmp_path / "day2" / "drive", Drive(1), "mcap")
    before = tree(rig)
    with pytest.raises(OlivineError, match=r"drive: is there already\. .*--scene NAME.*--overwrite"):
        import_bag([other], rig, settings=BagSettings(split="val"))
    assert tree(rig) == before
    import_bag([other], rig, settings=BagSettings(split="val"), overwrite=True)
    first = open_dataset("rig", rig).frames("val")[0]
    np.testing.assert_array_equal(first.points(), Drive(1).clouds[0])
    import_bag([other], rig, overwrite=True)  # which keeps the split that is there
    assert yaml.safe_load((rig / "rig.yaml").read_text())["scenes"] == {"drive": "val"}
    import_bag([other], rig, "drive-2")
    assert {frame.scene for frame in open_dataset("rig", rig).frames()} == {"drive", "drive-2"}


def moved(topic: str, kind: str, message: Any, types: Any) -> tuple[str, str, Any]:
    """The front camera 1 cm further on the LiDAR."""
    if topic == "/tf_static":
        message.transforms[2].transform.translation.x += 0.01
    return topic, kind, message


def compressed(topic: str, kind: str, message: Any, types: Any) -> tuple[str, str, Any]:
    """The front camera's images as JPEG."""
    if topic != "/front/image_raw":
        return topic, kind, message
    kind = "sensor_msgs/msg/CompressedImage"
    return topic, kind, types[kind](message.header, "jpeg", np.frombuffer(Drive().jpeg[0], np.uint8))


def renamed(topic: str, kind: str, message: Any, types: Any) -> tuple[str, str, Any]:
    """Clouds whose intensity has another name."""
    if topic == "/lidar_top/points":
        message.fields[3].name = "power"
    return topic, kind, message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            info_of(lambda m, types: replace(m, k=m.k * [1.2, 1, 1, 1, 1, 1, 1, 1, 1])),
            r"cameras\.front\.intrinsic is \[\[50\.0, .*, and this bag has \[\[60\.0, .*--out",
        ),
        (
            info_of(lambda m, types: replace(m, d=m.d * 2)),
            r"cameras\.front\.distortion is \(-0\.1, .*this bag has \(-0\.2",
        ),
        (
            info_of(lambda m, types: replace(m, distortion_model="rational_polynomial", d=np.r_[m.d, 0.1, 0, 0])),
            r"cameras\.front\.distortion is",
        ),
        (
            info_of(lambda m, types: replace(m, distortion_model="equidistant", d=m.d[:4])),
            r"cameras\.front\.model is brown-conrady, and this bag has fisheye",
        ),
        (moved, r"cameras\.front\.camera_to_vehicle is \[\[.*this bag has \[\["),
        (compressed, r"cameras\.front\.files is front/\*\.png, and this bag has front/\*\.jpg"),
        (renamed, r"lidars\.lidar_top\.intensity is intensity, and this bag has the columns x, y, z, power, ring"),
        (lambda topic, *more: None if topic == "/odom" else (topic, *more[:2]), "has poses, and this bag has none"),
    ],
)
def test_a_bag_that_says_something_else_than_the_yaml_is_refused_and_nothing_is_left_of_it(
    change: Any, said: str, rig: Path, tmp_path: Path
) -> None:
    bag = write(tmp_path / "other", Drive(1), "mcap", change=change)
    before = tree(rig)
    with pytest.raises(OlivineError, match=said) as error:
        import_bag([bag], rig)
    assert "\n" not in str(error.value)
    assert tree(rig) == before and not (rig / "other").exists()


def test_a_bag_of_other_sensors_is_refused_before_it_is_read(
    rig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("olivine.readers.bags._read", lambda *_: pytest.fail("the bag was read"))
    bag = write(tmp_path / "other", Drive(), "mcap")
    with pytest.raises(OlivineError, match="has the cameras back, front, this bag front"):
        import_bag([bag], rig, settings=BagSettings(cameras=("/front/image_raw",)))
    assert not (rig / "other").exists()


def test_poses_that_no_other_scene_has_are_refused(tmp_path: Path) -> None:
    bags = [write(tmp_path / name, Drive(), "mcap") for name in ("one", "two")]
    import_bag(bags[:1], tmp_path / "rig", settings=WITHOUT_POSES)
    with pytest.raises(OlivineError, match=r"has no poses, and this bag has some\. .*--odometry none"):
        import_bag(bags[1:], tmp_path / "rig")
    import_bag(bags[1:], tmp_path / "rig", settings=WITHOUT_POSES)
    assert len(open_dataset("rig", tmp_path / "rig").frames()) == 2 * FRAMES


def test_last_digits_and_another_way_to_write_the_same_are_no_difference(rig: Path, tmp_path: Path) -> None:
    path = rig / "rig.yaml"
    plain = yaml.safe_load(path.read_text())
    front = plain["cameras"]["front"]
    front["intrinsic"] = [K[0], K[4], K[2], K[5]]
    front["lidar_to_camera"] = (np.linalg.inv(FRONT) @ LIDAR).tolist()
    del front["camera_to_vehicle"]
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    change = info_of(lambda m, types: replace(m, k=m.k * [1 + 1e-9, 1, 1, 1, 1, 1, 1, 1, 1]))
    import_bag([write(tmp_path / "other", Drive(1), "mcap", change=change)], rig)
    with pytest.raises(OlivineError, match=r"cameras\.front\.lidar_to_camera is"):
        import_bag([write(tmp_path / "third", Drive(1), "mcap", change=moved)], rig)


def test_what_is_still_to_be_filled_in_is_said_again_and_what_is_filled_in_is_not(tmp_path: Path) -> None:
    bags = [write(tmp_path / "one", Drive(), "mcap", info=False, static=False)]
    bags.append(write(tmp_path / "two", Drive(), "mcap"))
    bags.append(write(tmp_path / "three", Drive(), "mcap", info=False, static=False))
    settings = BagSettings(odometry="none")
    first = import_bag(bags[:1], tmp_path / "rig", settings=settings)
    assert len(first.to_fill_in) == 4
    assert import_bag(bags[1:2], tmp_path / "rig", settings=settings).to_fill_in == first.to_fill_in
    path = tmp_path / "rig" / "rig.yaml"
    plain = yaml.safe_load(path.read_text())
    for name, matrix in (("front", FRONT), ("back", BACK)):
        mounted = np.linalg.inv(LIDAR) @ matrix
        plain["cameras"][name] |= {"intrinsic": [50, 51, 31.5, 23.5], "camera_to_vehicle": mounted.tolist()}
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    assert import_bag(bags[2:], tmp_path / "rig", settings=settings).to_fill_in == ()
    assert len(open_dataset("rig", tmp_path / "rig").frames()) == 3 * FRAMES


@pytest.mark.parametrize("fails", ["rig.yaml", "other"])
def test_a_disk_that_is_full_at_the_end_leaves_neither_the_scene_nor_its_line(
    fails: str, rig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = write(tmp_path / "other", Drive(1), "mcap")
    before = tree(rig)
    rename = os.replace

    def full(source: Any, target: Any, **more: Any) -> None:
        if Path(target).name == fails:
            raise OSError(errno.ENOSPC, "full")
        rename(source, target, **more)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OlivineError, match="full"):
        import_bag([bag], rig)
    monkeypatch.undo()
    assert tree(rig) == before and not (rig / "other").exists()
    import_bag([bag], rig)


def test_the_line_goes_where_the_user_has_the_others_or_is_asked_for(rig: Path, tmp_path: Path) -> None:
    path, bag = rig / "rig.yaml", write(tmp_path / "other", Drive(1), "mcap")
    text = path.read_text()
    path.write_text(text.replace("scenes:\n  drive: train\n", "scenes: {drive: train}\n"))
    with pytest.raises(OlivineError, match=r"scenes each on a line of its own\. .*other: val"):
        import_bag([bag], rig, settings=BagSettings(split="val"))
    path.write_text(text.replace("scenes:\n  drive: train\n", "scenes:  # ours\n\n    'drive': train  # in May\n"))
    import_bag([bag], rig, settings=BagSettings(split="val"))
    import_bag([bag], rig, "drive", BagSettings(split="test"), overwrite=True)
    assert "scenes:  # ours\n    other: val\n\n    'drive': test  # in May\n" in path.read_text()
    with pytest.raises(OlivineError, match="has a scene of the name other-1 in the folder other/1"):
        path.write_text(path.read_text().replace("other: val", "other/1: val"))
        import_bag([bag], rig, "other-1")


@pytest.mark.parametrize("name", ["00", "2024_05_01", "2024-05-01", "on", "null", "1e3", "drive"])
def test_a_scene_may_have_a_name_that_yaml_would_take_for_something_else(name: str, tmp_path: Path) -> None:
    bag = write(tmp_path / name, Drive(), "mcap")
    import_bag([bag], tmp_path / "rig")
    import_bag([bag], tmp_path / "rig", f"{name}0")
    import_bag([bag], tmp_path / "rig", settings=BagSettings(split="val"), overwrite=True)
    assert {frame.scene for frame in open_dataset("rig", tmp_path / "rig").frames("val")} == {name}


# --- whose poses ------------------------------------------------------------------------------------------------------


def stamped(topic: str, kind: str, message: Any, types: Any) -> tuple[str, str, Any]:
    """The odometry as PoseStamped."""
    if topic != "/odom":
        return topic, kind, message
    kind = "geometry_msgs/msg/PoseStamped"
    return topic, kind, types[kind](message.header, message.pose.pose)


def childless(topic: str, kind: str, message: Any, types: Any) -> tuple[str, str, Any]:
    return topic, kind, replace(message, child_frame_id="") if topic == "/odom" else message


@pytest.mark.parametrize("change", [stamped, childless])
def test_poses_that_do_not_say_whose_they_are_are_not_taken_for_the_lidars(change: Any, tmp_path: Path) -> None:
    drive = Drive()
    bag = write(tmp_path / "drive", drive, "mcap", change=change)
    with pytest.raises(
        OlivineError, match=r"the poses of /odom do not say whose they are\. .*--vehicle.*--odometry none"
    ):
        import_bag([bag], tmp_path / "rig")
    import_bag([bag], tmp_path / "rig", settings=BagSettings(vehicle="base_link"))
    frame = open_dataset("rig", tmp_path / "rig").frames()[2]
    np.testing.assert_allclose(frame.pose, drive.pose(drive.times[2]) @ LIDAR, atol=1e-5)


def test_a_lidar_whose_place_in_the_vehicle_is_not_known_is_asked_for(tmp_path: Path) -> None:
    def apart(topic: str, kind: str, message: Any, types: Any) -> tuple[str, str, Any]:
        if topic == "/tf_static":  # the cameras on the vehicle, the LiDAR nowhere
            front, back = message.transforms[2:]
            for one in (front, back):
                one.header.frame_id = "base_link"
            message = replace(message, transforms=[front, back])
        return topic, kind, message

    bag = write(tmp_path / "drive", Drive(), "mcap", change=apart)
    summary = import_bag([bag], tmp_path / "rig", settings=WITHOUT_POSES)
    assert summary.to_fill_in == ("lidars.lidar_top.lidar_to_vehicle",)
    with pytest.raises(OlivineError, match=r"lidars\.lidar_top\.lidar_to_vehicle is not filled in"):
        open_dataset("rig", tmp_path / "rig")


def test_sensors_whose_headers_name_no_frame_are_not_at_one_place(tmp_path: Path) -> None:
    def nameless(topic: str, kind: str, message: Any, types: Any) -> tuple[str, str, Any]:
        if hasattr(message, "header"):
            message.header.frame_id = ""
        return topic, kind, message

    bag = write(tmp_path / "drive", Drive(), "mcap", change=nameless)
    summary = import_bag([bag], tmp_path / "rig", settings=BagSettings(odometry="none"))
    assert summary.to_fill_in == ("cameras.back.camera_to_vehicle", "cameras.front.camera_to_vehicle")


# --- CameraInfo -------------------------------------------------------------------------------------------------------


def imported(tmp_path: Path, change: Any) -> Any:
    """The cameras of the first frame by name."""
    import_bag([write(tmp_path / "drive", Drive(), "mcap", change=change)], tmp_path / "rig", settings=WITHOUT_POSES)
    return {camera.name: camera for camera in open_dataset("rig", tmp_path / "rig").frames()[0].cameras}


@pytest.mark.parametrize("count", [0, 4])
def test_an_equidistant_lens_without_distortion_is_no_pinhole(count: int, tmp_path: Path) -> None:
    back = imported(tmp_path, info_of(lambda m, types: replace(m, d=np.zeros(count)), "back"))["back"]
    assert (back.model, back.distortion) == ("fisheye", (0.0, 0.0, 0.0, 0.0))


def test_binning_and_a_region_are_taken_out_of_the_intrinsic(tmp_path: Path) -> None:
    """The sensor has 160 x 120 pixels; the images are the 128 x 96 from (20, 10) on, binned by 2."""

    def change(message: Any, types: Any) -> Any:
        region = types["sensor_msgs/msg/RegionOfInterest"](20, 10, 2 * HEIGHT, 2 * WIDTH, False)  # x, y, height, width
        k = np.array([2 * K[0], 0, 2 * K[2] + 20, 0, 2 * K[4], 2 * K[5] + 10, 0, 0, 1])
        return replace(message, height=120, width=160, k=k, binning_x=2, binning_y=2, roi=region)

    np.testing.assert_allclose(imported(tmp_path, info_of(change))["front"].intrinsic.ravel(), K)


def test_an_info_of_images_of_another_size_is_refused(tmp_path: Path) -> None:
    bag = write(tmp_path / "drive", Drive(), "mcap", change=info_of(lambda m, types: replace(m, width=128, height=96)))
    with pytest.raises(
        OlivineError, match=r"/front/camera_info: is of images of 128 x 96 pixels, and the images are of 64 x 48"
    ):
        import_bag([bag], tmp_path / "rig")
    assert not (tmp_path / "rig" / "drive").exists()


def stereo(kind: str, frame: str) -> Any:
    """Front is a stereo pair's left camera, back the right one, 0.5 m beside it: images of a kind, in a frame."""
    names = {"/front/image_raw": f"/front/{kind}", "/back/image_raw/compressed": f"/back/{kind}/compressed"}

    def change(topic: str, kind_of: str, message: Any, types: Any) -> tuple[str, str, Any]:
        if topic.startswith("/back/"):
            message.header.frame_id = frame
        if topic.endswith("camera_info"):
            p = np.array([40.0, 0, 30, 0, 0, 41, 20, 0, 0, 0, 1, 0])
            p[3] = -40 * 0.5 if topic.startswith("/back/") else 0
            message = replace(message, p=p)
        return names.get(topic, topic), kind_of, message

    return change


def test_a_stereo_pairs_right_camera_stands_beside_the_left_ones_frame(tmp_path: Path) -> None:
    cameras = imported(tmp_path, stereo("image_rect", "front_optical"))
    left, right = cameras["front"], cameras["back"]
    point = np.array([1.0, 2, 7, 1])  # in the left camera's frame, by P of the right one
    u, v, w = np.array([[40.0, 0, 30, -20], [0, 41, 20, 0], [0, 0, 1, 0]]) @ point
    seen = right.lidar_to_camera @ np.linalg.inv(left.lidar_to_camera) @ point
    np.testing.assert_allclose((right.intrinsic @ seen[:3])[:2] / seen[2], [u / w, v / w], atol=1e-9)
    assert left.model == right.model == "pinhole"


@pytest.mark.parametrize(
    ("kind", "frame", "said"),
    [
        ("image_rect", "back_optical", r"its camera 0\.5 m beside the frame back_optical, which no other.*the raw images"),
        ("image_raw", "front_optical", r"its raw images are in the frame front_optical of /front/camera_info, 0\.5 m.*rectified"),
    ],
)  # fmt: skip
def test_a_stereo_camera_whose_place_is_not_said_clearly_is_refused(
    kind: str, frame: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(OlivineError, match=said):
        imported(tmp_path, stereo(kind, frame))


def test_raw_images_of_a_stereo_camera_with_a_frame_of_its_own_are_where_the_frame_is(tmp_path: Path) -> None:
    back = imported(tmp_path, stereo("image_raw", "back_optical"))["back"]
    np.testing.assert_allclose(back.lidar_to_camera, np.linalg.inv(BACK) @ LIDAR, atol=1e-6)


def test_raw_images_of_a_stereo_pairs_left_camera_are_before_rectification(tmp_path: Path) -> None:
    """A point's raw pixel is the one from which OpenCV takes its rectified pixel."""
    r = Rotation.from_rotvec([0.01, -0.03, 0.02]).as_matrix()

    def change(message: Any, types: Any) -> Any:
        p = np.array([K[0], 0, K[2], 0, 0, K[4], K[5], 0, 0, 0, 1, 0], float)
        return replace(message, r=r.ravel(), p=p, d=np.zeros(5))

    front = imported(tmp_path, info_of(change))["front"]
    k, (u, v) = np.reshape(K, (3, 3)), (42, 18)  # a pixel of the rectified image, and a point that it shows
    point = np.linalg.inv(LIDAR) @ FRONT @ [*(2 * np.linalg.solve(k, [u, v, 1])), 1]
    columns, rows = cv2.initUndistortRectifyMap(k, np.zeros(5), r, k, (WIDTH, HEIGHT), cv2.CV_32FC1)
    seen = front.lidar_to_camera @ point
    np.testing.assert_allclose((k @ seen[:3])[:2] / seen[2], [columns[v, u], rows[v, u]], atol=1e-3)


class _Info:
    """A ROS 1 CameraInfo's fields."""

    def __init__(self, **values: Any) -> None:
        self.roi = _Info.__new__(_Info)
        self.roi.__dict__ = {"x_offset": 0, "y_offset": 0, "width": 0, "height": 0}
        self.__dict__ |= {"width": 5, "height": 3, "binning_x": 0, "binning_y": 0, "D": [], "distortion_model": ""}
        self.__dict__ |= values


def test_sizes_that_binning_does_not_divide_and_sizes_that_nobody_set() -> None:
    matrix = {"K": [4, 0, 2, 0, 4, 1, 0, 0, 1], "P": np.zeros(12)}
    for size in ((2, 1), (3, 2)):
        lens = lens_of(_Info(**matrix, binning_x=2, binning_y=2), False, size, "info")
        assert lens == {"intrinsic": [[2, 0, 1], [0, 2, 0.5], [0, 0, 1]]}
    with pytest.raises(
        OlivineError, match=r"is of images of 5 x 3 pixels binned by 2 x 2, and the images are of 5 x 3"
    ):
        lens_of(_Info(**matrix, binning_x=2, binning_y=2), False, (5, 3), "info")
    assert lens_of(_Info(**matrix, width=0, height=0), False, (640, 480), "info")["intrinsic"][0] == [4, 0, 2]
    assert not beside_its_frame(_Info(**matrix)).any() and lens_of(_Info(**matrix), True, (5, 3), "info") == {}
