"""``olivine import-bag``: a ROS 1 or ROS 2 bag, or an MCAP file, as a scene of a folder that ``--dataset rig`` reads."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from scipy.spatial.transform import Rotation

from ..common import MARK, OlivineError, atomic_directory, atomic_file, check_output, track, write_bytes
from ..common.images import open_image
from .bag_messages import Matrix, beside_its_frame, between, cloud_of, image_of, lens_of, rigid, rotated_in_its_frame
from .bag_rig import check_names, check_scene, entered
from .lidar_odometry import poses_from_clouds
from .recording import FILE, FILL_IN, SPLITS

_CLOUDS = ("sensor_msgs/msg/PointCloud2",)
_IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_POSES = ("nav_msgs/msg/Odometry", "geometry_msgs/msg/PoseStamped", "geometry_msgs/msg/PoseWithCovarianceStamped")
_INFO, _TRANSFORMS = "sensor_msgs/msg/CameraInfo", ("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage")
_STATIC = "/tf_static"
_DULL = ("compressed", "image_raw", "image_color", "image", "image_rect", "image_rect_color", "points", "points_raw")
FROM_CLOUDS = "kiss-icp"
_INTENSITIES = ("intensity", "reflectivity", "i", "remission")


@dataclass(frozen=True)
class BagSettings:
    """What is taken of a bag.

    Attributes:
        lidars: topics of the clouds, the first is the frame of reference; () for all.
        cameras: topics of the images; () for all, and of an image that is there raw and compressed the raw one.
        odometry: topic of the vehicle's poses; empty: the only one there is; ``none`` takes none; ``kiss-icp`` computes
            them from the first LiDAR's clouds.
        vehicle: frame whose poses they are; empty: the odometry's own child frame. Without poses, the frame in which
            the sensors' places are said; empty: the first LiDAR's.
        stamps: ``header``, the sensor's own time, or ``received``, when the message was recorded.
        split: of the scene; empty: the one that ``rig.yaml`` has for it, else train.
    """

    lidars: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    odometry: str = ""
    vehicle: str = ""
    stamps: str = "header"
    split: str = ""


@dataclass(frozen=True)
class BagSummary:
    """What was written.

    Attributes:
        sensors: files of each.
        poses: of the vehicle.
        repeated: messages left out because the sensor had one of the same time.
        to_fill_in: keys of ``rig.yaml`` that the bag does not say.
    """

    out: Path
    scene: str
    sensors: dict[str, int]
    poses: int
    repeated: int
    to_fill_in: tuple[str, ...]


@dataclass
class _Sensor:
    topic: str
    name: str
    is_camera: bool
    frame: str = ""
    suffix: str = ""
    size: tuple[int, int] = (0, 0)
    columns: tuple[str, ...] = ()
    times: set[int] = field(default_factory=set)


def import_bag(
    paths: Sequence[Path], out: Path, scene: str = "", settings: BagSettings | None = None, *, overwrite: bool = False
) -> BagSummary:
    """Write a bag into the folder ``out``: a folder of its own for the scene, and the scene's line in ``rig.yaml``.

    Points keep all their fields (.npy), compressed images their bytes; raw images become PNG. Where ``rig.yaml`` is there
    already, and says the same of the sensors, only the scene is added to it. Where anything is wrong, nothing is changed.

    Args:
        paths: one ROS 2 bag (its folder, or its .mcap or .db3 file), or the .bag files of one ROS 1 recording.
        scene: its name; the bag's without it.
        overwrite: replace the scene, if one of this name is there.

    Raises:
        OlivineError: rosbags is not installed; the bag is damaged; a topic is not there (those that are are listed); an
            encoding is not read; poses and sensors are not joined by a static transform, or the poses do not say whose
            they are; the scene is there already; ``rig.yaml`` says something else of the sensors than the bag.
    """
    settings = settings or BagSettings()
    if settings.split not in ("", *SPLITS) or settings.stamps not in ("header", "received"):
        wrong_split = settings.split not in ("", *SPLITS)
        remedy = f"choose one of {', '.join(SPLITS)}" if wrong_split else "choose header or received"
        raise OlivineError(f"{settings.split!r}, {settings.stamps!r}", where="--split, --stamps", remedy=remedy)
    if settings.odometry == FROM_CLOUDS and settings.vehicle:
        raise OlivineError(
            f"--vehicle {settings.vehicle} does not go with --odometry {FROM_CLOUDS}",
            remedy="leave --vehicle out: those poses are of the first LiDAR",
        )
    scene = scene or re.sub(r"[^\w-]", "_", paths[0].stem)
    if not re.fullmatch(r"[\w-]+", scene):
        raise OlivineError(f"{scene!r} is no name of a scene", where="--scene", remedy="use letters, digits, - and _")
    check_output(out, inputs=paths, known=(FILE, f"{scene}/{MARK}"))
    check_scene(out, scene, settings.split, overwrite=overwrite)
    with _opened(paths) as reader:
        types = {name: info.msgtype or "" for name, info in reader.topics.items()}
        sensors = _sensors(types, settings)
        odometry = _odometry(types, settings, paths[0])
        check_names(out, *([s.name for s in sensors if s.is_camera == camera] for camera in (False, True)))
        with _scene_and_line(out, scene) as (folder, rig):
            found = _Found()
            wanted = {sensor.topic: sensor for sensor in sensors}
            _read(reader, wanted, odometry, settings, folder, found, paths[0])
            for sensor in sensors:
                if not sensor.times:
                    raise OlivineError(
                        f"the topic {sensor.topic} has no message",
                        where=paths[0],
                        remedy="leave it out, or take another",
                    )
            if settings.odometry == FROM_CLOUDS:
                _add_poses_of_clouds(sensors[0], folder, found)
            if found.poses:
                lines = (
                    f"{t // 10**9}.{t % 10**9:09d} {' '.join(map(repr, row))}" for t, row in sorted(found.poses.items())
                )
                write_bytes(folder / "poses.txt", ("\n".join(lines) + "\n").encode())
            plain = _describe(sensors, found, settings, paths[0])
            text, to_fill_in = entered(
                out, scene, settings.split, paths[0], plain, {s.name: s.columns for s in sensors}
            )
            rig.write(text.encode())
            rig.flush()
            os.fsync(rig.fileno())  # a full disk is found before anything has its name
    counts = {sensor.name: len(sensor.times) for sensor in sensors}
    return BagSummary(out, scene, counts, len(found.poses), found.repeated, to_fill_in)


@contextmanager
def _scene_and_line(out: Path, scene: str) -> Iterator[tuple[Path, IO[bytes]]]:
    """A scene's folder and the new ``rig.yaml``, which appear one after the other, or none of them."""
    fresh, entire = not (out / scene).exists(), False
    try:
        with atomic_file(out / FILE) as rig:
            with atomic_directory(out / scene) as folder:
                yield folder, rig
            entire = True
    except BaseException:
        if entire and fresh:  # the scene is there, its line is not
            shutil.rmtree(out / scene, ignore_errors=True)
        raise


@dataclass
class _Found:
    """What a bag says besides its clouds and images.

    Attributes:
        transforms: (parent, child): child → parent.
        infos: the first CameraInfo of each topic.
        poses: by time in ns: x, y, z, qx, qy, qz, qw.
        vehicle: the frame whose poses these are.
    """

    transforms: dict[tuple[str, str], Matrix] = field(default_factory=dict)
    infos: dict[str, Any] = field(default_factory=dict)
    poses: dict[int, list[float]] = field(default_factory=dict)
    vehicle: str = ""
    repeated: int = 0


@contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[Any]:
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise OlivineError(
            f"rosbags is not usable ({error})", remedy="install it: pip install 'olivine[bags]'"
        ) from error
    if missing := [path for path in paths if not path.exists()]:
        raise OlivineError("no such bag", where=missing[0], remedy="name a .bag or .mcap file, or a ROS 2 bag's folder")
    try:
        # Old ROS 2 bags do not hold their messages' definitions; those of the sensors have not changed since.
        reader = AnyReader(paths, default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        reader.open()
    except Exception as error:  # it has no exception type of its own for all that may be wrong with a file
        raise OlivineError(
            f"cannot be read as a bag ({error})",
            where=paths[0],
            remedy="name a .bag or .mcap file, or a ROS 2 bag's folder",
        ) from error
    try:
        yield reader
    finally:
        reader.close()


def _named(types: dict[str, str], kinds: Sequence[str]) -> list[str]:
    return [name for name, kind in types.items() if kind in kinds]


def _listed(types: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind.rpartition('/')[2]})" for name, kind in sorted(types.items())) or "none"


def _sensors(types: dict[str, str], settings: BagSettings) -> list[_Sensor]:
    """The LiDARs, then the cameras.

    Raises:
        OlivineError: there is none, or a topic that was asked for is not there or of another type.
    """
    found: list[_Sensor] = []
    for asked, kinds, option in ((settings.lidars, _CLOUDS, "--lidar"), (settings.cameras, _IMAGES, "--camera")):
        topics = list(asked) or _named(types, kinds)
        if not asked:  # of an image that is there twice the raw one
            topics = [t for t in topics if t.rpartition("/")[2] != "compressed" or t.rpartition("/")[0] not in topics]
        wanted = " or ".join(kind.rpartition("/")[2] for kind in kinds)
        wrong = [topic for topic in topics if types.get(topic) not in kinds]
        if wrong or not topics:
            what = f"no topic {wrong[0]} of {wanted}" if wrong else f"no topic of {wanted}"
            raise OlivineError(f"{what}; there are {_listed(types)}", where=option, remedy="name one of these")
        for topic in topics:
            found.append(_Sensor(topic, _name(topic, [s.name for s in found]), option == "--camera"))
    return found


def _name(topic: str, taken: Sequence[str]) -> str:
    parts = [re.sub(r"[^\w-]", "_", part) for part in topic.strip("/").split("/")]
    useful = [part for part in parts if part not in _DULL] or parts
    options = ["_".join(useful), "_".join(parts), *(f"{'_'.join(parts)}_{k}" for k in range(2, len(taken) + 3))]
    return next(name for name in options if name not in taken)


def _odometry(types: dict[str, str], settings: BagSettings, where: Path) -> str:
    """The topic of the poses, empty for none."""
    there = _named(types, _POSES)
    if settings.odometry in ("none", FROM_CLOUDS) or (not settings.odometry and not there):
        return ""
    if settings.odometry and settings.odometry not in there:
        raise OlivineError(
            f"no topic {settings.odometry} of poses; there are {_listed(types)}",
            where="--odometry",
            remedy=f"name one of Odometry or PoseStamped, or {FROM_CLOUDS}, or none",
        )
    if not settings.odometry and len(there) > 1:
        raise OlivineError(
            f"several topics of poses: {', '.join(there)}", where=where, remedy="choose one with --odometry, or none"
        )
    return settings.odometry or there[0]


def _read(
    reader: Any,
    sensors: dict[str, _Sensor],
    odometry: str,
    settings: BagSettings,
    folder: Path,
    found: _Found,
    where: Path,
) -> None:
    """Write the sensors' files into ``folder`` and collect what is said of them."""
    connections = [
        c
        for c in reader.connections
        if c.topic in (*sensors, odometry)
        or c.msgtype == _INFO
        or (c.topic.endswith(_STATIC) and c.msgtype in _TRANSFORMS)
    ]
    total = sum(c.msgcount for c in connections)
    messages = _messages(reader, connections, where)
    for connection, received, message in track(messages, "import-bag", unit="messages", total=total):
        topic = connection.topic
        if topic in sensors:
            _write(sensors[topic], message, _time(message, received, settings, topic), folder, found)
        elif topic == odometry:
            pose = message.pose.pose if hasattr(message.pose, "pose") else message.pose
            found.vehicle = settings.vehicle or getattr(message, "child_frame_id", "")
            if not found.vehicle:
                raise OlivineError(
                    f"the poses of {topic} do not say whose they are",
                    where=where,
                    remedy="name their frame with --vehicle FRAME, or leave them out: --odometry none",
                )
            p, q = pose.position, pose.orientation
            values = [float(v) for v in (p.x, p.y, p.z, q.x, q.y, q.z, q.w)]
            found.poses[_time(message, received, settings, topic)] = values
        elif connection.msgtype == _INFO:
            found.infos.setdefault(topic, message)
        else:
            for one in message.transforms:
                pair = one.header.frame_id.lstrip("/"), one.child_frame_id.lstrip("/")
                name = f"transform from {pair[1]} to {pair[0]}"
                found.transforms[pair] = rigid(one.transform.translation, one.transform.rotation, name)


def _add_poses_of_clouds(lidar: _Sensor, folder: Path, found: _Found) -> None:
    """Poses of a LiDAR from its own clouds."""
    times = sorted(lidar.times)
    clouds = (np.load(folder / lidar.name / f"{time:019d}{lidar.suffix}") for time in times)
    points = (np.stack([cloud[axis] for axis in "xyz"], axis=1) for cloud in clouds)
    for time, pose in zip(times, track(poses_from_clouds(points), "kiss-icp", unit="clouds", total=len(times))):
        found.poses[time] = [*pose[:3, 3].tolist(), *Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()]
    found.vehicle = lidar.frame


def _messages(reader: Any, connections: Sequence[Any], where: Path) -> Iterator[tuple[Any, int, Any]]:
    try:
        for connection, received, raw in reader.messages(connections=connections):
            yield connection, received, reader.deserialize(raw, connection.msgtype)
    except OlivineError:
        raise
    except Exception as error:  # as in _opened
        raise OlivineError(
            f"damaged ({type(error).__name__}: {error})", where=where, remedy="run rosbag reindex or ros2 bag reindex"
        ) from error


def _time(message: Any, received: int, settings: BagSettings, topic: str) -> int:
    """Nanoseconds."""
    if settings.stamps == "received":
        return int(received)
    stamp = message.header.stamp
    time = int(stamp.sec) * 10**9 + int(stamp.nanosec)
    if time == 0:
        raise OlivineError(
            f"the messages of {topic} have no time in their header",
            where="--stamps",
            remedy="take the times at which they were recorded: --stamps received",
        )
    return time


def _write(sensor: _Sensor, message: Any, time: int, folder: Path, found: _Found) -> None:
    """One cloud or image, by its time."""
    if time in sensor.times:
        found.repeated += 1
        return
    where = f"{sensor.topic} at {time} ns"
    if sensor.is_camera:
        data, suffix = image_of(message, where)
        if not sensor.times:
            with open_image(data, where=where, remedy="choose other topics with --camera") as image:
                sensor.size = image.size
    else:
        points = cloud_of(message, where)
        file = io.BytesIO()
        np.save(file, points, allow_pickle=False)
        data, suffix, sensor.columns = file.getvalue(), ".npy", points.dtype.names or ()
    sensor.frame = _frame(message)
    if sensor.suffix not in ("", suffix):
        raise OlivineError(f"{suffix} after {sensor.suffix}", where=where, remedy="record one encoding for each camera")
    sensor.suffix = suffix
    path = folder / sensor.name / f"{time:019d}{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)  # the whole folder appears at once
    sensor.times.add(time)


# -- rig.yaml -----------------------------------------------------------------------------------------------------------


def _describe(sensors: Sequence[_Sensor], found: _Found, settings: BagSettings, where: Path) -> dict[str, Any]:
    """``rig.yaml`` without its scenes."""
    lidars = [sensor for sensor in sensors if not sensor.is_camera]
    first = lidars[0].frame
    vehicle = (found.vehicle or settings.vehicle or first).lstrip("/")
    if found.poses and between(found.transforms, first, vehicle) is None:
        raise OlivineError(
            f"the poses are of the frame {vehicle}, which {_STATIC} does not join to the LiDAR's frame {first}",
            where=where,
            remedy="name the frame whose poses they are with --vehicle, or leave them out: --odometry none",
        )
    plain: dict[str, Any] = {"lidars": {}, "cameras": {}}
    for sensor in sensors:
        keys: dict[str, Any] = {"files": f"{sensor.name}/*{sensor.suffix}", "times": "name", "unit": "ns"}
        to_vehicle = between(found.transforms, sensor.frame, vehicle)
        if not sensor.frame and (sensor.is_camera or len(lidars) > 1):
            to_vehicle = None  # several sensors without a frame are not at the same place
        if sensor.is_camera:
            lens, camera = _lens(sensor, found)
            keys |= lens or {"intrinsic": FILL_IN}
            if to_vehicle is not None:
                to_vehicle = to_vehicle @ camera
        else:
            keys["intensity"] = next((c for c in _INTENSITIES if c in sensor.columns), "none")
        key = "camera_to_vehicle" if sensor.is_camera else "lidar_to_vehicle"
        keys[key] = FILL_IN if to_vehicle is None else to_vehicle.tolist()
        plain["cameras" if sensor.is_camera else "lidars"][sensor.name] = keys
    plain["matching"] = {"limit": 0.05, "every": 1}
    if found.poses:
        plain["poses"] = {"file": "poses.txt", "format": "tum", "of": "vehicle"}
    return plain


def _lens(sensor: _Sensor, found: _Found) -> tuple[dict[str, Any], Matrix]:
    """Of the CameraInfo beside the images' topic; {} where there is none, or it is not calibrated.

    The second value is the camera in its own frame, [4, 4].
    """
    topic, camera = sensor.topic.removesuffix("/compressed"), np.eye(4)
    beside = topic.rpartition("/")[0] + "/camera_info"
    message = found.infos.get(beside)
    if message is None:
        return {}, camera
    rectified = "image_rect" in topic.rpartition("/")[2]
    place = beside_its_frame(message)
    others = (name for name, m in found.infos.items() if _frame(m) == sensor.frame and not beside_its_frame(m).any())
    # Of a stereo pair the right camera has the left one's frame, and P for its rectified images, or a frame of its own.
    left = next(others, "") if place.any() else ""
    if place.any() and rectified and not left:
        raise OlivineError(
            f"puts its camera {np.linalg.norm(place):.3g} m beside the frame {sensor.frame}, which no other camera has",
            where=beside,
            remedy="choose the raw images with --camera, or leave this camera out",
        )
    if left and not rectified:
        raise OlivineError(
            f"its raw images are in the frame {sensor.frame} of {left}, {np.linalg.norm(place):.3g} m beside this camera",
            where=beside,
            remedy="choose the rectified images with --camera, or leave this camera out",
        )
    if left:
        camera[:3, 3] = place
    elif not rectified and not place.any():
        camera[:3, :3] = rotated_in_its_frame(message)
    return lens_of(message, rectified, sensor.size, beside), camera


def _frame(message: Any) -> str:
    return str(message.header.frame_id).lstrip("/")
