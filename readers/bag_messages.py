"""ROS messages as files and numbers: a point cloud, an image, a camera's lens, a transform. Knows no bag and no ROS."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from .frame import rotation_of

Matrix = NDArray[np.float64]

# sensor_msgs/PointField's datatype.
_KINDS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
# Channels of 8 bits, and their order in red, green and blue.
_ENCODINGS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "8UC3": (3, (2, 1, 0)),  # what cv_bridge writes, whose images are BGR
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "8UC4": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
    "8UC1": (1, (0, 0, 0)),
}
# sensor_msgs/CameraInfo's distortion_model: ours, and how many coefficients are taken.
_LENSES = {
    "plumb_bob": ("brown-conrady", 5),
    "rational_polynomial": ("brown-conrady", 8),
    "equidistant": ("fisheye", 4),
}


def cloud_of(message: Any, where: str) -> NDArray[Any]:
    """The points of a ``sensor_msgs/PointCloud2``: a structured array [N], a field for each column, little-endian.

    Raises:
        OlivineError: no x, y, z, a field of an unknown kind or beyond the point, or fewer bytes than points.
    """
    order = ">" if message.is_bigendian else "<"
    names, formats, offsets = [], [], []
    for field in message.fields:
        if field.datatype not in _KINDS:
            raise OlivineError(
                f"field {field.name} has the unknown datatype {field.datatype}",
                where=where,
                remedy="leave this topic out",
            )
        size = np.dtype(_KINDS[field.datatype]).itemsize
        for k in range(max(1, field.count)):
            names.append(field.name if field.count <= 1 else f"{field.name}_{k}")
            formats.append(order + _KINDS[field.datatype])
            offsets.append(field.offset + k * size)
    names = _unique(names)
    if not {"x", "y", "z"} <= set(names):
        raise OlivineError(
            f"points without x, y, z; the fields are {', '.join(names) or 'none'}",
            where=where,
            remedy="give another --lidar",
        )
    step, height, width = message.point_step, message.height, message.width
    for name, form, offset in zip(names, formats, offsets):
        if (end := offset + np.dtype(form).itemsize) > step:
            raise OlivineError(
                f"field {name} ends at byte {end} of points of {step} bytes",
                where=where,
                remedy="correct what publishes it, or leave this topic out",
            )
    data = np.asarray(message.data, np.uint8)
    rows = message.row_step or step * width
    if len(data) < rows * (height - 1) + step * width or rows < step * width:
        raise OlivineError(
            f"{len(data)} bytes for {height} rows of {width} points of {step} bytes",
            where=where,
            remedy="record it again",
        )
    kind = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": step})
    points = np.concatenate(
        [np.zeros(0, kind)] + [data[r * rows :][: step * width].copy().view(kind) for r in range(height)]
    )
    packed = np.empty(len(points), [(name, f"<{form[1:]}") for name, form in zip(names, formats)])
    for name in names:
        packed[name] = points[name]
    return packed


def _unique(names: list[str]) -> list[str]:
    """Names of which none is empty or there twice: padding may be several fields called ``_``; the first x stays x."""
    taken, found = set(names), []
    for k, name in enumerate(names):
        if not name or name == "_" or name in names[:k]:
            name = next(new for n in range(len(names) + 1) if (new := f"_{k}" + "_" * n) not in taken)
            taken.add(name)
        found.append(name)
    return found


def image_of(message: Any, where: str) -> tuple[bytes, str]:
    """An image file and its suffix: a ``sensor_msgs/CompressedImage`` as it is, an ``Image`` as a PNG of the same pixels.

    Raises:
        OlivineError: an encoding that is not read; those that are are named.
    """
    if not hasattr(message, "encoding"):
        data = bytes(message.data)
        suffix = ".jpg" if data[:2] == b"\xff\xd8" else ".png" if data[:8] == b"\x89PNG\r\n\x1a\n" else ""
        if not suffix:
            raise OlivineError(
                f"a compressed image of the format {message.format!r}, neither JPEG nor PNG",
                where=where,
                remedy="record JPEG, PNG or raw images (compressed video and compressedDepth are not read)",
            )
        return data, suffix
    if message.encoding not in _ENCODINGS:
        raise OlivineError(
            f"an image of the encoding {message.encoding!r}",
            where=where,
            remedy="choose other topics with --camera, or convert it first, for example with image_proc; read are "
            f"{', '.join(_ENCODINGS)}, JPEG and PNG",
        )
    from PIL import Image

    channels, rgb = _ENCODINGS[message.encoding]
    values = np.asarray(message.data, np.uint8)
    if len(values) < message.step * message.height or message.step < channels * message.width:
        raise OlivineError(
            f"{len(values)} bytes for {message.width} x {message.height} pixels", where=where, remedy="record it again"
        )
    lines = values[: message.step * message.height].reshape(message.height, message.step)
    pixels = lines[:, : channels * message.width].reshape(message.height, message.width, channels)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[:, :, list(rgb)])).save(file, "PNG", compress_level=1)
    return file.getvalue(), ".png"


def lens_of(message: Any, rectified: bool, size: tuple[int, int], where: str) -> dict[str, Any]:
    """A ``sensor_msgs/CameraInfo`` as the keys of a camera in ``rig.yaml``; {} where it is not calibrated (fx is 0).

    Args:
        rectified: the images are those after rectification, whose matrix is P.
        size: of the images, width and height in pixels.

    Raises:
        OlivineError: a distortion model that is not read, or it is of images of another size.
    """
    matrix = _projection(message)[:, :3] if rectified else _array(message, "k").reshape(3, 3)
    if matrix[0, 0] == 0:
        return {}
    keys: dict[str, Any] = {"intrinsic": _on_the_images(matrix, message, size, where).tolist()}
    d = _array(message, "d")
    # Without coefficients a lens is a pinhole's, but an equidistant one still is not: it maps the angle, not its tangent.
    if rectified or not (np.any(d) or message.distortion_model == "equidistant"):
        return keys
    if message.distortion_model not in _LENSES:
        raise OlivineError(
            f"the distortion model {message.distortion_model!r}",
            where=where,
            remedy=f"read are {', '.join(_LENSES)}; record the rectified images instead",
        )
    model, most = _LENSES[message.distortion_model]
    if len(d) > most and np.any(d[most:]):
        raise OlivineError(
            f"{len(d)} coefficients of {message.distortion_model}, read are {most}",
            where=where,
            remedy="calibrate again",
        )
    distortion = [float(v) for v in d[:most]]
    if model == "fisheye":
        distortion += [0.0] * (most - len(distortion))
    return {**keys, "model": model, "distortion": distortion}


def beside_its_frame(message: Any) -> Matrix:
    """Where a ``sensor_msgs/CameraInfo`` puts its camera in the frame of its P: x, y, z in metres.

    Not 0 for the right camera of a stereo pair, whose P is for points in the left camera's frame.
    """
    p = _projection(message)
    place = np.zeros(3) if np.linalg.det(p[:, :3]) == 0 else -np.linalg.solve(p[:, :3], p[:, 3])
    return np.where(np.abs(place) > 1e-6, place, 0.0)


def rotated_in_its_frame(message: Any) -> Matrix:
    """The rotation [3, 3] of a stereo pair's left camera, before rectification, in the frame of its P, which is after it.

    R of a ``sensor_msgs/CameraInfo``, read as ROS's image_geometry reads it; the identity where nobody filled it in.
    """
    r = _array(message, "r").reshape(-1, 3)
    return r if r.shape == (3, 3) and abs(np.linalg.det(r) - 1) < 1e-3 else np.eye(3)


def _array(message: Any, name: str) -> Matrix:
    """One of d, k, p and r; ROS 1 writes the names in capitals."""
    return np.array(getattr(message, name, getattr(message, name.upper(), ())), float)


def _projection(message: Any) -> Matrix:
    return _array(message, "p").reshape(3, 4)


def _on_the_images(matrix: Matrix, message: Any, size: tuple[int, int], where: str) -> Matrix:
    """K, or the left of P, for the images as they are.

    A CameraInfo's matrices are for all pixels of the sensor. The images may be a region of them (``roi``), and each pixel
    the mean of several (``binning``; 0 is 1).
    """
    region, offsets = message.roi, (message.roi.x_offset, message.roi.y_offset)
    full = region.width or message.width, region.height or message.height
    binning = [max(1, int(b)) for b in (message.binning_x, message.binning_y)]
    if all(full) and any(abs(its * b - of) >= b for its, b, of in zip(size, binning, full)):
        said = f"{full[0]} x {full[1]} pixels"
        said += f" binned by {binning[0]} x {binning[1]}" if max(binning) > 1 else ""
        raise OlivineError(
            f"is of images of {said}, and the images are of {size[0]} x {size[1]}",
            where=where,
            remedy="choose the images that it belongs to with --camera, or take it out of the bag and fill in the intrinsic",
        )
    matrix = matrix.copy()
    for row in range(2):
        matrix[row, 2] -= offsets[row]
        matrix[row] /= binning[row]
    return matrix


def rigid(translation: Any, rotation: Any, where: object) -> Matrix:
    """A transform [4, 4] of a message's vector and quaternion.

    Raises:
        OlivineError: the quaternion has no length, as a message that nobody filled in has; ``where`` names it.
    """
    quaternion = np.array([rotation.w, rotation.x, rotation.y, rotation.z], float)
    if not np.linalg.norm(quaternion) > 1e-6:
        raise OlivineError(
            f"the quaternion {quaternion.tolist()} is no rotation", where=where, remedy="correct what publishes it"
        )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_of(quaternion)
    matrix[:3, 3] = translation.x, translation.y, translation.z
    return matrix


def between(transforms: dict[tuple[str, str], Matrix], source: str, target: str) -> Matrix | None:
    """The transform from one frame to another along static ones, [4, 4]; None where they are not joined.

    Args:
        transforms: (parent, child): child → parent.
    """
    known = {source: np.eye(4)}
    waiting = [source]
    while waiting:
        frame = waiting.pop(0)
        for (parent, child), to_parent in transforms.items():
            if child == frame and parent not in known:
                known[parent] = to_parent @ known[frame]
                waiting.append(parent)
            elif parent == frame and child not in known:
                known[child] = np.linalg.inv(to_parent) @ known[frame]
                waiting.append(child)
    return known.get(target)
