"""Which pairs a nearer surface hides from the camera.

The LiDAR stands higher than the cameras and looks over what hides things from them: such
background points fall on the foreground's pixels and take its labels. A point is taken
for hidden when a point of the same camera lies beside it in the image, well before it in
depth, and nearer than a road through the point would be there (inverse depth falls
linearly along a plane, by 1 / height a unit of tangent). The window is as large as the gaps
that a 32-beam LiDAR leaves between its points.
benchmarks/visibility.py measures on the synthetic world what that removes and costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..common.compiled import compiled
from ..readers.frame import Camera
from ..readers.lens import rays_of

HALF_WIDTH = math.radians(0.4)  # of the window, as tangents of the view angle
HALF_HEIGHT = math.radians(1.0)
NEARER_FACTOR = 0.85  # an occluder is nearer than this part of the depth …
NEARER_METRES = 0.5  # … less this
CLEARANCE = 1.0  # metres; a plane this far below the camera, or farther, hides nothing of itself


@compiled()
def _hidden(x, y, depth, order, half_width, half_height, factor, metres, clearance):  # type: ignore[no-untyped-def]
    """Whether each point is hidden; ``order`` sorts ``x``."""
    n = len(order)
    hidden = np.zeros(n, np.bool_)
    first = 0
    for place in range(n):
        i = order[place]
        while x[i] - x[order[first]] > half_width:
            first += 1
        limit = factor * depth[i] - metres
        other = first
        while other < n:
            k = order[other]
            if x[k] - x[i] > half_width:
                break
            rise = abs(y[k] - y[i])
            if depth[k] < limit and rise <= half_height and 1 / depth[k] > 1 / depth[i] + rise / clearance:
                hidden[i] = True
                break
            other += 1
    return hidden


def visible_pairs(
    points: NDArray[np.float32],
    cameras: Sequence[Camera],
    point: NDArray[np.int32],
    camera: NDArray[np.uint8],
    uv: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """Which pairs no nearer point hides.

    Args:
        points: float32 [N, >= 3], metres, in the LiDAR frame.
        cameras: the frame's cameras.
        point, camera, uv: the pairs, as :func:`olivine.pairs.project.project_points` gives them.

    Returns:
        bool [M], True for the pairs to keep.
    """
    keep = np.ones(len(point), bool)
    for c, view in enumerate(cameras):
        mine = slice(*np.searchsorted(camera, (c, c + 1)))
        if mine.start == mine.stop:
            continue
        row = view.lidar_to_camera[2]
        depth = points[point[mine], :3].astype(np.float64) @ row[:3] + row[3]
        if view.model == "pinhole":
            x = uv[mine, 0].astype(np.float64) / view.intrinsic[0, 0]
            y = uv[mine, 1].astype(np.float64) / view.intrinsic[1, 1]
        else:
            x, y = rays_of(uv[mine], view.intrinsic, view.model, view.distortion).T
        order = np.argsort(x, kind="stable")
        hidden = _hidden(x, y, depth, order, HALF_WIDTH, HALF_HEIGHT, NEARER_FACTOR, NEARER_METRES, CLEARANCE)
        keep[mine] = ~hidden
    return keep
