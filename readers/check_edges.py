"""How well a cloud's steps in depth lie on the edges of an image: where the rim of a car stands against the street behind it.

:mod:`olivine.readers.checks` judges calibrations by it. After Levinson and Thrun, "Automatic online calibration of cameras and
lasers", 2013.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..common.compiled import compiled
from ..common.images import open_image
from .frame import Camera, Frame
from .lens import distort, field_limit, lens_numbers
from .project import project_points

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class View:
    """What is drawn of one camera of a frame: the image's path, and the points on it."""

    token: str
    camera: str
    image: Path
    uv: NDArray[np.float32]
    distance: NDArray[np.float32]
    edge: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Look:
    """One camera of one frame: points in the LiDAR's frame near its view, which of them are at steps, and the edge map."""

    camera: Camera
    xyz: Matrix
    edge: NDArray[np.bool_]
    strength: NDArray[np.float32]
    twist: Matrix | None
    view: View


LEAST = 8  # strips with enough steps in depth; a judgement of fewer is chance
_MARGIN = 1.3  # of an image's size: points that may come in when a camera is rotated
_FARTHEST = 60.0  # metres; steps further away have too few points


def look_at(frame: Frame, camera: Camera, points: NDArray[np.float32], twist: Matrix | None) -> tuple[Look, float]:
    """A camera's look at a cloud, and the share of the points that it sees.

    Args:
        points: float32 [N, 4], metres in the LiDAR's frame.
        twist: the vehicle's motion in a second, float64 [4, 4], the logarithm of its transform; None where it is not known.

    Raises:
        OlivineError: the image cannot be read, or has another size.
    """
    with open_image(frame.image_path(camera), size=(camera.width, camera.height)) as image:
        grey = np.asarray(image.convert("L"), np.float32)
    point, _, uv = project_points(points, [camera])
    wide = replace(
        camera,
        width=round(camera.width * _MARGIN),
        height=round(camera.height * _MARGIN),
        intrinsic=camera.intrinsic
        + np.array([[0, 0, camera.width * (_MARGIN - 1) / 2], [0, 0, camera.height * (_MARGIN - 1) / 2], [0, 0, 0]]),
    )
    step = steps_in_depth(points)
    near, _, _ = project_points(points, [wide])
    near = near[np.linalg.norm(points[near, :3], axis=1) < _FARTHEST]
    view = View(
        frame.token,
        camera.name,
        frame.image_path(camera),
        uv,
        np.linalg.norm(points[point, :3], axis=1),
        step[point],
    )
    look = Look(camera, points[near, :3].astype(np.float64), step[near], edge_map(grey), twist, view)
    return look, len(point) / max(len(points), 1)


def steps_in_depth(points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Points with another one well behind them, right beside them on the same ring, bool [N].

    Rings are told by the elevation angle, so any cloud of a spinning or solid-state LiDAR will do.
    """
    xyz = points[:, :3].astype(np.float64)
    distance = np.linalg.norm(xyz, axis=1)
    flat = np.hypot(xyz[:, 0], xyz[:, 1])
    row = np.round(np.degrees(np.arctan2(xyz[:, 2], flat)) / 0.2)
    azimuth = np.arctan2(xyz[:, 1], xyz[:, 0])
    order = np.lexsort((azimuth, row))
    gap = np.diff(azimuth[order])
    beside = (np.diff(row[order]) == 0) & (gap < math.radians(0.8))
    further = np.diff(distance[order])
    least = np.maximum(0.7, 0.1 * np.minimum(distance[order][1:], distance[order][:-1]))
    step = np.zeros(len(points), bool)
    step[order[:-1][beside & (further > least)]] = True
    step[order[1:][beside & (-further > least)]] = True
    return step & (distance > 1)


def edge_map(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much of an edge is near each pixel, float32 [H, W], of mean 0 and deviation 1."""
    from scipy.ndimage import gaussian_filter

    across, down = np.zeros_like(grey), np.zeros_like(grey)
    across[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    down[1:-1] = grey[2:] - grey[:-2]
    strength = np.sqrt(np.hypot(across, down))
    # As wide as 0.2 degrees of a usual camera: about the gap between two of a cloud's points.
    blurred = gaussian_filter(strength, max(0.9, grey.shape[1] / 500))
    made: NDArray[np.float32] = ((blurred - blurred.mean()) / max(float(blurred.std()), 1e-6)).astype(np.float32)
    return made


@compiled()
def _sum(xyz, edge, transform, intrinsic, model, k, limit, width, height, strength, sums):  # type: ignore[no-untyped-def]
    """Add up ``strength`` under the points at steps and under the others, for each vertical strip; ``sums`` [B, 4]."""
    rows, columns = strength.shape
    blocks = len(sums)
    for i in range(len(xyz)):
        x, y, z = xyz[i]
        # Written out, as in project.py: with a function for both a projection takes 2 to 4 times as long.
        depth = transform[2, 0] * x + transform[2, 1] * y + transform[2, 2] * z + transform[2, 3]
        if not depth > 1.0:
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
        value = strength[int(v * (rows - 1) / (height - 1) + 0.5), int(u * (columns - 1) / (width - 1) + 0.5)]
        block = min(int(u * blocks / width), blocks - 1)
        at = 0 if edge[i] else 2
        sums[block, at] += value
        sums[block, at + 1] += 1


def edge_fit(
    looks: Sequence[Look],
    moved: Callable[[Look], Matrix],
    blocks: int,
    others: Sequence[Look] | None = None,
) -> NDArray[np.float64]:
    """How much rather points at steps lie on edges than others do, of each strip of each look, float64 [looks * blocks].

    Args:
        moved: the transform to use for a look.
        others: looks whose images are taken instead.
    """
    sums = np.zeros((len(looks), blocks, 4))
    for n, look in enumerate(looks):
        camera = look.camera
        model, k = lens_numbers(camera.model, camera.distortion)
        limit = field_limit(camera.model, camera.distortion)
        strength = (look if others is None else others[n]).strength
        transform, intrinsic = np.ascontiguousarray(moved(look)), np.ascontiguousarray(camera.intrinsic)
        size = float(camera.width), float(camera.height)
        _sum(look.xyz, look.edge, transform, intrinsic, model, k, limit, *size, strength, sums[n])
    sums = sums.reshape(-1, 4)
    with np.errstate(invalid="ignore", divide="ignore"):
        rather = sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]
    return np.where((sums[:, 1] >= 10) & (sums[:, 3] >= 10), rather, np.nan)


def gain_over(there: NDArray[np.float64], here: NDArray[np.float64]) -> tuple[float, float]:
    """By how much one place fits better than another, and how many standard errors that is."""
    gain = there - here
    gain = gain[np.isfinite(gain)]
    if len(gain) < LEAST:
        return 0.0, 0.0
    return float(gain.mean()), float(gain.mean() / max(gain.std(ddof=1) / math.sqrt(len(gain)), 1e-9))


def rotated(look: Look, degrees: Sequence[float]) -> Matrix:
    """The transform, float64 [4, 4], of a camera that is rotated by so many degrees about its x, y and z axes."""
    x, y, z = np.radians(degrees)
    # Small angles: the order does not matter.
    vector = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    left, _, right = np.linalg.svd(np.eye(3) + vector)
    matrix = np.eye(4)
    matrix[:3, :3] = left @ right
    moved: Matrix = matrix @ look.camera.lidar_to_camera
    return moved


def fit_when_rotated(frame: Frame, degrees: Sequence[float], blocks: int = 4) -> float:
    """How well a frame's edges fit when every camera is rotated by so much about its x, y and z axes."""
    points = frame.points()
    looks = [look_at(frame, camera, points, None)[0] for camera in frame.cameras]
    return float(np.nanmean(edge_fit(looks, lambda look: rotated(look, degrees), blocks)))


def taken_later(look: Look, seconds: float) -> Matrix:
    """The transform if the image was taken so much later than its time says."""
    from scipy.linalg import expm

    assert look.twist is not None
    moved: Matrix = look.camera.lidar_to_camera @ expm(-look.twist * seconds)
    return moved
