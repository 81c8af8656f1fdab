"""Points of a cloud onto the camera images around it: the one projection of all rooms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from ..common.compiled import compiled
from .frame import Camera
from .lens import distort, field_limit, lens_numbers


@compiled()
def _project(points, matrices, sizes, min_depth, point, uv):  # type: ignore[no-untyped-def]
    """Fill ``point`` [C, N] and ``uv`` [C, N, 2] from the front; return the pairs of each camera."""
    count = np.zeros(len(matrices), np.int64)
    for i in range(len(points)):
        x, y, z = np.float64(points[i, 0]), np.float64(points[i, 1]), np.float64(points[i, 2])
        for c in range(len(matrices)):
            m = matrices[c]
            depth = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
            # Written so that a NaN fails every test.
            if not depth > min_depth:
                continue
            u = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / depth
            if not 0.0 < u < sizes[c, 0] - 1.0:
                continue
            v = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / depth
            if not 0.0 < v < sizes[c, 1] - 1.0:
                continue
            k = count[c]
            point[c, k] = i
            uv[c, k, 0] = u
            uv[c, k, 1] = v
            count[c] = k + 1
    return count


@compiled()
def _project_through_lens(points, transform, intrinsic, model, k, limit, width, height, min_depth, point, uv):  # type: ignore[no-untyped-def]
    """Fill ``point`` [N] and ``uv`` [N, 2] of one camera from the front; return its pairs."""
    count = 0
    for i in range(len(points)):
        x, y, z = np.float64(points[i, 0]), np.float64(points[i, 1]), np.float64(points[i, 2])
        depth = transform[2, 0] * x + transform[2, 1] * y + transform[2, 2] * z + transform[2, 3]
        # Written so that a NaN fails every test.
        if not depth > min_depth:
            continue
        a = (transform[0, 0] * x + transform[0, 1] * y + transform[0, 2] * z + transform[0, 3]) / depth
        b = (transform[1, 0] * x + transform[1, 1] * y + transform[1, 2] * z + transform[1, 3]) / depth
        if not a * a + b * b <= limit:
            continue
        a, b = distort(model, k, a, b)
        u = intrinsic[0, 0] * a + intrinsic[0, 1] * b + intrinsic[0, 2]
        v = intrinsic[1, 1] * b + intrinsic[1, 2]
        if not 0.0 < u < width - 1.0 or not 0.0 < v < height - 1.0:
            continue
        point[count] = i
        uv[count, 0] = u
        uv[count, 1] = v
        count += 1
    return count


def project_points(
    points: NDArray[np.floating], cameras: Sequence[Camera], min_depth: float = 1.0
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.float32]]:
    """The pairs of a cloud's points with the pixels they are seen at.

    A point is seen by a camera of size W x H when its depth is over ``min_depth`` and its
    pixel has 0 < u < W - 1 and 0 < v < H - 1, the rule of nuScenes and of the public code.
    One pass over the cloud, geometry in float64; points that are not finite are not seen. Through a lens that distorts,
    points go where the lens puts them, and those beyond its field (see :mod:`~olivine.readers.lens`) are not seen.

    Args:
        points: float [N, >= 3], x, y, z in metres in the LiDAR frame, then anything.
        cameras: the frame's cameras, at most 256.
        min_depth: metres along the camera's axis.

    Returns:
        point int32 [M], camera uint8 [M] (position in ``cameras``) and uv float32 [M, 2],
        sub-pixel, in each camera's own pixels, integers at pixel centres. Ordered by
        camera, and within a camera by point.

    Raises:
        OlivineError: ``points`` has not at least three columns.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] < 3:
        raise OlivineError(f"points of shape {points.shape}", remedy="give an array of shape [N, 3] or wider")
    if len(cameras) > 256:
        raise OlivineError(f"{len(cameras)} cameras; a camera is stored in one byte", remedy="give at most 256")
    if not cameras or not len(points):
        return np.empty(0, np.int32), np.empty(0, np.uint8), np.empty((0, 2), np.float32)
    matrices = np.stack([c.intrinsic @ c.lidar_to_camera[:3] for c in cameras]).astype(np.float64)
    # The last row of K is (0, 0, 1), so the product's last row is the depth.
    sizes = np.array([(c.width, c.height) for c in cameras], np.float64)
    # Pages that no pair reaches are never touched, so the worst case costs nothing.
    point = np.empty((len(cameras), len(points)), np.int32)
    uv = np.empty((len(cameras), len(points), 2), np.float32)
    plain = np.array([c.model == "pinhole" for c in cameras])
    if plain.all():
        count = _project(points, matrices, sizes, float(min_depth), point, uv)
    else:
        count = np.zeros(len(cameras), np.int64)
        for c, camera in enumerate(cameras):
            one = slice(c, c + 1)
            if plain[c]:
                count[one] = _project(points, matrices[one], sizes[one], float(min_depth), point[one], uv[one])
                continue
            model, k = lens_numbers(camera.model, camera.distortion)
            limit = field_limit(camera.model, camera.distortion)
            transform = np.ascontiguousarray(camera.lidar_to_camera, np.float64)
            intrinsic = np.ascontiguousarray(camera.intrinsic, np.float64)
            bounds = (limit, sizes[c, 0], sizes[c, 1], float(min_depth))
            count[c] = _project_through_lens(points, transform, intrinsic, model, k, *bounds, point[c], uv[c])
    return (
        np.concatenate([row[:n] for row, n in zip(point, count)]),
        np.repeat(np.arange(len(cameras), dtype=np.uint8), count),
        np.concatenate([row[:n] for row, n in zip(uv, count)]),
    )


def look_up(label_map: NDArray[np.uint8], uv: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The label of each pair: the label map's value at the rounded pixel.

    Args:
        label_map: [H, W], of the size that ``uv`` refers to.
        uv: float32 [M, 2].
    """
    column, row = np.rint(uv.T).astype(np.int32)
    return label_map[row, column]
