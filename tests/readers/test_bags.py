"""A bag of two cameras and a LiDAR on a moving vehicle, written with rosbags, as a folder that is read like any other."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from olivine.common import OlivineError
from olivine.readers import open_dataset
from olivine.readers.bag_messages import cloud_of, image_of, rigid
from olivine.readers.bags import BagSettings, import_bag

START = 1_700_000_000_123_456_789  # ns
WIDTH, HEIGHT, FRAMES = 64, 48, 4
SPEED = 10.0
# Of each sensor in the vehicle's frame: x ahead, y left, z up; a camera's axes are x right, y down, z ahead.
LIDAR = np.array([[0, -1, 0, 0.9], [1, 0, 0, 0.1], [0, 0, 1, 1.8], [0, 0, 0, 1]], float)
FRONT = np.array([[0, 0, 1, 1.5], [-1, 0, 0, 0.2], [0, -1, 0, 1.4], [0, 0, 0, 1]], float)
BACK = np.array([[0, 0, -1, -1.5], [1, 0, 0, -0.2], [0, -1, 0, 1.3], [0, 0, 0, 1]], float)
K = [50.0, 0, 31.5, 0, 51.0, 23.5, 0, 0, 1]
D = [-0.1, 0.02, 0.001, -0.002, 0.003]


def quaternion(rotation: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(rotation).as_quat()


class Drive:
    """What the bag holds."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.times = [START + 100_000_000 * k for k in range(FRAMES)]
        self.delay = {"front": 12_345_000, "back": -8_000_000}
        self.clouds = [rng.uniform(-30, 30, (500, 4)).astype("<f4") for _ in range(FRAMES)]
        self.rings = [rng.integers(0, 32, 500).astype("<u2") for _ in range(FRAMES)]
        self.images = {n: rng.integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3)).astype(np.uint8) for n in ("front", "back")}
        self.jpeg = []
        for pixels in self.images["back"]:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG")
            self.jpeg.append(file.getvalue())

    def pose(self, time: int) -> np.ndarray:
        seconds, matrix = (time - START) / 1e9, np.eye(4)
        turn = 0.3 * seconds
        matrix[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        matrix[:3, 3] = SPEED * seconds, 2 * seconds, 0.1
        return matrix


class Street(Drive):
    """Ground, walls and boxes that a LiDAR sees along 20 m of a bend, half a metre a cloud and noise of 2 cm."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.times = [START + 50_000_000 * k for k in range(41)]
        self.images = {name: np.zeros((41, HEIGHT, WIDTH, 3), np.uint8) for name in self.images}
        self.jpeg = self.jpeg[:1] * 41
        flat = [rng.uniform(-60, 60, (60_000, 2)), np.zeros((60_000, 1))]
        sides = [
            np.c_[rng.uniform(-60, 60, 20_000), np.full(20_000, y), rng.uniform(0, 6, 20_000)] for y in (-15.0, 18.0)
        ]
        boxes = [
            np.r_[rng.uniform(-50, 50), rng.choice([-8.0, 9.0]), 0] + rng.uniform(0, 1, (800, 3)) * [4, 1.8, 1.6]
            for _ in range(24)
        ]
        world = np.concatenate([np.hstack(flat), *sides, *boxes])
        self.clouds, self.rings = [], []
        for time in self.times:
            seen = np.linalg.inv(self.pose(time) @ LIDAR)
            points = world @ seen[:3, :3].T + seen[:3, 3]
            points = points[np.linalg.norm(points, axis=1) < 50]
            points = rng.choice(points, 12_000, replace=False) + rng.normal(0, 0.02, (12_000, 3))
            self.clouds.append(np.c_[points, np.zeros(len(points))].astype("<f4"))
            self.rings.append(np.zeros(len(points), "<u2"))


# A message's topic, kind and the message, and the types to make another one of; None to leave it out.
Change = Callable[[str, str, Any, Any], tuple[str, str, Any] | None]


def write(
    path: Path,
    drive: Drive,
    kind: str,
    *,
    encoding: str = "bgr8",
    info: bool = True,
    static: bool = True,
    change: Change = lambda topic, kind, message, types: (topic, kind, message),
) -> Path:
    """The drive as a bag: ``ros1``, ``mcap`` or ``sqlite3``."""
    one = kind == "ros1"
    store = get_typestore(Stores.ROS1_NOETIC if one else Stores.ROS2_HUMBLE)
    if one:  # it holds the common messages of ROS 1 only
        store.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", "tf2_msgs/msg/TFMessage"))
    t = store.types

    def header(frame: str, time: int) -> Any:
        stamp = t["builtin_interfaces/msg/Time"](time // 10**9, time % 10**9)
        return t["std_msgs/msg/Header"](*([0] if one else []), stamp=stamp, frame_id=frame)

    def transform(matrix: np.ndarray) -> Any:
        q = quaternion(matrix[:3, :3])
        return t["geometry_msgs/msg/Transform"](
            t["geometry_msgs/msg/Vector3"](*matrix[:3, 3]), t["geometry_msgs/msg/Quaternion"](*q)
        )

    messages: list[tuple[str, str, int, Any]] = []
    if static:
        stamped = t["geometry_msgs/msg/TransformStamped"]
        # The cameras hang on the LiDAR, and the LiDAR on a mast of the vehicle.
        mast = np.eye(4)
        mast[2, 3] = 1.0
        pairs = [
            ("base_link", "mast", mast),
            ("mast", "lidar", np.linalg.inv(mast) @ LIDAR),
            ("lidar", "front_optical", np.linalg.inv(LIDAR) @ FRONT),
            ("lidar", "back_optical", np.linalg.inv(LIDAR) @ BACK),
        ]
        tree = [stamped(header(parent, START), child, transform(m)) for parent, child, m in pairs]
        messages.append(("/tf_static", "tf2_msgs/msg/TFMessage", START, t["tf2_msgs/msg/TFMessage"](tree)))
    field = t["sensor_msgs/msg/PointField"]
    names = {"x": (0, 7), "y": (4, 7), "z": (8, 7), "intensity": (16, 7), "ring": (20, 4)}
    for k, time in enumerate(drive.times):
        count = len(drive.clouds[k])
        rows = np.zeros(
            count,
            np.dtype(
                {"names": list(names), "formats": ["<f4"] * 4 + ["<u2"], "offsets": [0, 4, 8, 16, 20], "itemsize": 24}
            ),
        )
        for column, name in enumerate(("x", "y", "z", "intensity")):
            rows[name] = drive.clouds[k][:, column]
        rows["ring"] = drive.rings[k]
        fields = [field(name, offset, datatype, 1) for name, (offset, datatype) in names.items()]
        data = np.frombuffer(rows.tobytes(), np.uint8)
        cloud = t["sensor_msgs/msg/PointCloud2"](
            header("lidar", time), 1, count, fields, False, 24, 24 * count, data, True
        )
        messages.append(("/lidar_top/points", "sensor_msgs/msg/PointCloud2", time, cloud))
        shot = time + drive.delay["front"]
        pixels = drive.images["front"][k][:, :, ::-1] if encoding == "bgr8" else drive.images["front"][k]
        padded = np.zeros((HEIGHT, 3 * WIDTH + 8), np.uint8)
        padded[:, : 3 * WIDTH] = pixels.reshape(HEIGHT, -1)
        raw = t["sensor_msgs/msg/Image"](
            header("front_optical", shot), HEIGHT, WIDTH, encoding, False, padded.shape[1], padded.ravel()
        )
        messages.append(("/front/image_raw", "sensor_msgs/msg/Image", shot, raw))
        shot = time + drive.delay["back"]
        packed = np.frombuffer(drive.jpeg[k], np.uint8)
        small = t["sensor_msgs/msg/CompressedImage"](header("back_optical", shot), "jpeg", packed)
        messages.append(("/back/image_raw/compressed", "sensor_msgs/msg/CompressedImage", shot, small))
    if info:
        region = t["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        for name, model, coefficients in (("front", "plumb_bob", D), ("back", "equidistant", D[:4])):
            arrays = [np.array(v, float) for v in (coefficients, K, np.eye(3).ravel(), np.zeros(12))]
            message = t["sensor_msgs/msg/CameraInfo"](
                header(f"{name}_optical", START), HEIGHT, WIDTH, model, *arrays, 0, 0, region
            )
            messages.append((f"/{name}/camera_info", "sensor_msgs/msg/CameraInfo", START, message))
    vector, posed = t["geometry_msgs/msg/Vector3"], t["geometry_msgs/msg/PoseWithCovariance"]
    for time in range(START - 50_000_000, drive.times[-1] + 100_000_000, 25_000_000):
        pose = drive.pose(time)
        where = t["geometry_msgs/msg/Pose"](
            t["geometry_msgs/msg/Point"](*pose[:3, 3]), t["geometry_msgs/msg/Quaternion"](*quaternion(pose[:3, :3]))
        )
        twist = t["geometry_msgs/msg/Twist"](vector(0, 0, 0), vector(0, 0, 0))
        odometry = t["nav_msgs/msg/Odometry"](
            header("odom", time),
            "base_link",
            posed(where, np.zeros(36)),
            t["geometry_msgs/msg/TwistWithCovariance"](twist, np.zeros(36)),
        )
        messages.append(("/odom", "nav_msgs/msg/Odometry", time, odometry))
    if one:
        writer: Any = Writer1(path)
    else:
        plugin = StoragePlugin.MCAP if kind == "mcap" else StoragePlugin.SQLITE3
        writer = Writer2(path, version=9, storage_plugin=plugin)
    with writer:
        connections = {}
        for *said, time, original in sorted(messages, key=lambda m: m[2]):
            changed = change(*said, original, t)
            if changed is None:
                continue
            topic, kind_of, message = changed
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind_of, typestore=store)
            serialize = store.serialize_ros1 if one else store.serialize_cdr
            writer.write(connections[topic], time, serialize(message, kind_of))
    return path


@pytest.mark.parametrize("kind", ["ros1", "sqlite3", "mcap"])
def test_a_bag_comes_out_with_the_same_points_images_times_and_extrinsics(kind: str, tmp_path: Path) -> None:
    drive = Drive()
    summary = import_bag(
        [write(tmp_path / ("drive.bag" if kind == "ros1" else "drive"), drive, kind)], tmp_path / "rig"
    )
    assert summary.sensors == {"lidar_top": FRAMES, "back": FRAMES, "front": FRAMES}
    assert (summary.scene, summary.repeated, summary.to_fill_in) == ("drive", 0, ())
    dataset = open_dataset("rig", tmp_path / "rig")
    frames = dataset.frames("train")
    assert len(frames) == FRAMES
    for k, frame in enumerate(frames):
        assert frame.timestamp == round(drive.times[k] / 1000)
        np.testing.assert_array_equal(frame.points(), drive.clouds[k])
        back, front = frame.cameras  # in the order of their topics
        np.testing.assert_array_equal(np.asarray(Image.open(frame.image_path(front))), drive.images["front"][k])
        assert frame.image_path(back).read_bytes() == drive.jpeg[k]
        assert (front.name, front.model, back.name, back.model) == ("front", "brown-conrady", "back", "fisheye")
        np.testing.assert_array_equal(front.intrinsic.ravel(), K)
        assert front.distortion == tuple(D) and back.distortion == tuple(D[:4])
        # From the LiDAR at its time through the world to the camera at its own.
        world = drive.pose(drive.times[k]) @ LIDAR
        np.testing.assert_allclose(frame.pose, world, atol=1e-5)
        for camera, mounted in ((front, FRONT), (back, BACK)):
            at = drive.pose(drive.times[k] + drive.delay[camera.name]) @ mounted
            np.testing.assert_allclose(camera.lidar_to_camera, np.linalg.inv(at) @ world, atol=1e-4)
            assert dataset.delays(frame)[camera.name] == pytest.approx(drive.delay[camera.name] / 1e9, abs=2e-6)
    stored = np.load(next((tmp_path / "rig" / "drive" / "lidar_top").glob("*.npy")))
    np.testing.assert_array_equal(stored["ring"], drive.rings[0])


def test_without_odometry_the_clouds_own_poses_are_within_a_tenth_of_a_metre_along_20_m(tmp_path: Path) -> None:
    pytest.importorskip("kiss_icp")
    drive = Street()
    bag = write(tmp_path / "drive.bag", drive, "ros1")
    summary = import_bag([bag], tmp_path / "rig", settings=BagSettings(odometry="kiss-icp"))
    assert summary.poses == len(drive.times)
    frames = open_dataset("rig", tmp_path / "rig").frames("train")
    first = drive.pose(START) @ LIDAR
    assert np.linalg.norm(drive.pose(drive.times[-1])[:3, 3] - drive.pose(START)[:3, 3]) > 19
    times = {round(time / 1000): time for time in drive.times}
    assert len(frames) == len(times) - 2  # a camera's image before the first cloud and one after the last have no pose
    for frame in frames:
        true = np.linalg.inv(first) @ drive.pose(times[frame.timestamp]) @ LIDAR
        assert np.linalg.norm(frame.pose[:3, 3] - true[:3, 3]) < 0.1


def test_computed_poses_are_the_lidars_and_take_no_other_frame(tmp_path: Path) -> None:
    settings = BagSettings(odometry="kiss-icp", vehicle="base_link")
    with pytest.raises(OlivineError, match="--vehicle base_link does not go with --odometry kiss-icp"):
        import_bag([tmp_path / "drive.bag"], tmp_path / "rig", settings=settings)


def test_a_second_bag_is_a_scene_more_and_what_was_written_into_the_yaml_stays(tmp_path: Path) -> None:
    bags = [write(tmp_path / f"drive-{k}.bag", Drive(k), "ros1") for k in range(2)]
    import_bag(bags[:1], tmp_path / "rig")
    path = tmp_path / "rig" / "rig.yaml"
    path.write_text(path.read_text() + "intensity_offset: 1  # of our sensor\n")
    import_bag(bags[1:], tmp_path / "rig", settings=BagSettings(split="val"))
    assert "# of our sensor" in path.read_text()
    dataset = open_dataset("rig", tmp_path / "rig")
    assert {frame.scene for frame in dataset.frames("val")} == {"drive-1"} and len(dataset.frames("train")) == FRAMES
    assert dataset.intensity_offset == 1


def test_without_camera_info_and_static_transforms_the_yaml_asks_for_them(tmp_path: Path) -> None:
    bag = write(tmp_path / "drive.bag", Drive(), "ros1", info=False, static=False)
    with pytest.raises(OlivineError, match=r"poses are of the frame base_link.* LiDAR's frame lidar.*--odometry none"):
        import_bag([bag], tmp_path / "rig")
    assert not (tmp_path / "rig").exists() or not list((tmp_path / "rig").iterdir())
    summary = import_bag([bag], tmp_path / "rig", settings=BagSettings(odometry="none"))
    assert summary.to_fill_in == (
        *("cameras.back.intrinsic", "cameras.back.camera_to_vehicle"),
        *("cameras.front.intrinsic", "cameras.front.camera_to_vehicle"),
    )
    with pytest.raises(OlivineError, match=r"cameras\.back.*not filled in"):
        open_dataset("rig", tmp_path / "rig")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            BagSettings(lidars=("/velodyne",)),
            r"no topic /velodyne of PointCloud2; there are .*/lidar_top/points \(PointCloud2\)",
        ),
        (BagSettings(cameras=("/odom",)), r"no topic /odom of Image or CompressedImage; there are /back/camera_info"),
        (BagSettings(odometry="/pose"), r"no topic /pose of poses; there are .*/odom \(Odometry\)"),
        (BagSettings(vehicle="imu"), "poses are of the frame imu"),
        (BagSettings(split="dev"), "choose one of train, val, test"),
        (BagSettings(stamps="now"), "choose header or received"),
    ],
)
def test_a_topic_that_is_not_there_is_said_with_those_that_are(
    settings: BagSettings, said: str, tmp_path: Path
) -> None:
    bag = write(tmp_path / "drive", Drive(), "mcap")
    with pytest.raises(OlivineError, match=f"(?i){said}"):
        import_bag([bag], tmp_path / "rig", settings=settings)
    assert not (tmp_path / "rig" / "drive").exists()


def test_other_encodings_and_damaged_bags_are_one_line(tmp_path: Path) -> None:
    bag = write(tmp_path / "bayer.bag", Drive(), "ros1", encoding="bayer_rggb8")
    with pytest.raises(OlivineError, match=r"/front/image_raw at \d+ ns: an image of the encoding 'bayer_rggb8'.*rgb8"):
        import_bag([bag], tmp_path / "rig")
    whole = write(tmp_path / "drive.bag", Drive(), "ros1")
    for length in (0, 30, len(whole.read_bytes()) // 2):
        short = tmp_path / "short.bag"
        short.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(OlivineError, match=r"cannot be read as a bag|damaged"):
            import_bag([short], tmp_path / "rig")
    for path in (tmp_path / "none.bag", tmp_path / "text.mcap"):
        if path.suffix == ".mcap":
            path.write_text("no bag")
        with pytest.raises(OlivineError, match=r"no such bag|cannot be read as a bag"):
            import_bag([path], tmp_path / "rig")


class _Message:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def test_points_of_a_big_endian_organised_cloud_and_every_pixel_order() -> None:
    values = np.arange(24, dtype=">f4").reshape(2, 4, 3)
    padded = np.zeros((2, 64), np.uint8)
    padded[:, :48] = np.frombuffer(values.tobytes(), np.uint8).reshape(2, 48)
    fields = [_Message(name=n, offset=4 * k, datatype=7, count=1) for k, n in enumerate("xyz")]
    cloud = _Message(
        is_bigendian=True, fields=fields, point_step=12, row_step=64, height=2, width=4, data=padded.ravel()
    )
    points = cloud_of(cloud, "test")
    np.testing.assert_array_equal(np.stack([points[n] for n in "xyz"], -1), np.arange(24.0).reshape(8, 3))
    with pytest.raises(OlivineError, match="without x, y, z; the fields are a"):
        cloud_of(_Message(is_bigendian=False, fields=[_Message(name="a", offset=0, datatype=7, count=1)]), "test")
    rgb = np.arange(30, dtype=np.uint8).reshape(2, 5, 3)
    for encoding, pixels in {
        "rgb8": rgb,
        "bgr8": rgb[:, :, ::-1],
        "rgba8": np.concatenate([rgb, rgb[:, :, :1]], 2),
        "bgra8": np.concatenate([rgb[:, :, ::-1], rgb[:, :, :1]], 2),
    }.items():
        step = pixels.shape[2] * 5
        message = _Message(encoding=encoding, width=5, height=2, step=step, data=np.ascontiguousarray(pixels).ravel())
        data, suffix = image_of(message, "test")
        assert suffix == ".png"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), rgb, err_msg=encoding)
    with pytest.raises(OlivineError, match="neither JPEG nor PNG"):
        image_of(_Message(format="h264", data=b"\0\0\0\1"), "test")


def test_fields_of_one_name_or_none_are_told_apart_and_one_beyond_the_point_is_named() -> None:
    rows = np.zeros(2, [("xyz", "<f4", 3), ("more", "u1", 4)])
    rows["xyz"], rows["more"] = [[1, 2, 3], [4, 5, 6]], [[7, 8, 9, 10], [11, 12, 13, 14]]
    fields = [_Message(name=n, offset=4 * k, datatype=7, count=1) for k, n in enumerate("xyz")]
    named = [
        *fields,
        *(_Message(name=n, offset=12 + k, datatype=2, count=1) for k, n in enumerate(("_", "_", "", "x"))),
    ]
    values = {
        "is_bigendian": False,
        "row_step": 32,
        "height": 1,
        "width": 2,
        "data": np.frombuffer(rows.tobytes(), "u1"),
    }
    points = cloud_of(_Message(fields=named, point_step=16, **values), "test")
    assert points.dtype.names == ("x", "y", "z", "_3", "_4", "_5", "_6")
    assert points["x"].tolist() == [1, 4] and points["_6"].tolist() == [10, 14]
    beyond = [*fields, _Message(name="intensity", offset=14, datatype=7, count=1)]
    with pytest.raises(OlivineError, match=r"^test: field intensity ends at byte 18 of points of 16 bytes"):
        cloud_of(_Message(fields=beyond, point_step=16, **values), "test")


def test_a_transform_that_nobody_filled_in_is_named() -> None:
    nowhere, unset = _Message(x=0.0, y=0.0, z=0.0), _Message(x=0.0, y=0.0, z=0.0, w=0.0)
    with pytest.raises(OlivineError, match=r"transform from lidar to base: the quaternion .* is no rotation"):
        rigid(nowhere, unset, "transform from lidar to base")
    half = _Message(x=0.0, y=0.0, z=1.4, w=1.4)  # not of length 1, as some publishers send it
    np.testing.assert_allclose(rigid(nowhere, half, "")[:2, :2], [[0, -1], [1, 0]], atol=1e-12)
