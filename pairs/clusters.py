"""Segments of two scans of a scene: the ground left out, both scans clustered together in one frame of reference.

Seal's temporal segments (Liu et al., NeurIPS 2023) by TARL's steps and settings (Nunes et al., CVPR 2023): an object
that stands still, or moves little, becomes one cluster of the joint cloud, and so has one number in both scans.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from ..readers.frame import UP, Frame

NONE = -1
"""The number of points in no cluster."""


@dataclass(frozen=True)
class ClusterSettings:
    """How two scans are cut into clusters.

    Attributes:
        near: metres in the plane from the sensor; nearer points (the vehicle itself) are in no cluster.
        ground_distance: metres; points this near the fitted plane are ground.
        ground_iterations: planes tried, each through three points drawn at random.
        ground_slope: degrees; a plane steeper than this is a wall and not tried.
        min_size: HDBSCAN's ``min_cluster_size``.
        largest: clusters kept.
        most_points: of both scans that are clustered; where there are more, that many are drawn, and each of the others
            joins the nearest one.
    """

    near: float = 2.0
    ground_distance: float = 0.25
    ground_iterations: int = 200
    ground_slope: float = 45.0
    min_size: int = 20
    largest: int = 50
    most_points: int = 100_000


class SceneClusters:
    """The clusters of a scene's scans, each pair of scans done once where frames are asked for in order.

    Args:
        frames: all of the scene's, in time order.
        gap: n, of frame t with frame t + n.
        settings: see :class:`ClusterSettings`.
    """

    def __init__(self, frames: Sequence[Frame], gap: int, settings: ClusterSettings) -> None:
        self._frames, self._gap, self._settings = frames, gap, settings
        self._scans: dict[int, NDArray[np.float64]] = {}
        self._grounds: dict[int, NDArray[np.bool_]] = {}
        self._later: dict[int, NDArray[np.int16]] = {}

    def columns(self, position: int) -> dict[str, NDArray[np.int16]]:
        """``cluster_previous`` and ``cluster_next`` of the frame at ``position`` of the scene, int16 [P], −1 = none.

        A frame that has no partner (at the scene's ends) has no cluster there.

        Raises:
            OlivineError: the cloud or the pose of the frame or of a partner is missing or damaged; names that file.
        """
        for known in (self._scans, self._grounds, self._later):
            for done in [number for number in known if number < position - self._gap]:
                del known[done]
        found = {}
        for name, first in (("cluster_previous", position - self._gap), ("cluster_next", position)):
            second = first + self._gap
            if first < 0 or second >= len(self._frames):
                found[name] = np.full(len(self._scan(position)), NONE, np.int16)
            elif first == position:
                found[name], self._later[second] = self._pair(first, second)
            else:
                previous = self._later.pop(position, None)
                found[name] = self._pair(first, second)[1] if previous is None else previous
        return found

    def _scan(self, position: int) -> NDArray[np.float64]:
        if position not in self._scans:
            self._scans[position] = self._frames[position].points()[:, :3].astype(np.float64)
        return self._scans[position]

    def _usable(self, position: int) -> NDArray[np.bool_]:
        """Which points of a scan are clustered: those off the ground and off the vehicle."""
        if position not in self._grounds:
            scan, settings = self._scan(position), self._settings
            frame = self._frames[position]
            upright = level(scan, frame)
            far = np.hypot(upright[:, 0], upright[:, 1]) >= settings.near
            usable = far.copy()
            usable[far] = ~fit_ground(upright[far], settings, _generator(frame))
            self._grounds[position] = usable
        return self._grounds[position]

    def _pair(self, first: int, second: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        one, two = self._frames[first], self._frames[second]
        for frame in (one, two):
            if not np.isfinite(frame.pose).all():
                raise OlivineError(
                    f"frame {frame.token} of {frame.scene} has no pose, which --clusters needs",
                    where=frame.root,
                    remedy="leave out --clusters, or add the data set's poses",
                )
        scans = [self._scan(first), self._scan(second)]
        second_to_first = np.linalg.inv(one.pose) @ two.pose
        moved = move(scans[1], second_to_first)
        usable = [self._usable(first), self._usable(second)]
        joint = np.concatenate([scans[0][usable[0]], moved[usable[1]]])
        label = cluster(joint, self._settings, _generator(one, two))
        columns = []
        for rows, part in zip(usable, np.split(label, [int(usable[0].sum())])):
            column = np.full(len(rows), NONE, np.int16)
            column[rows] = part
            columns.append(column)
        return columns[0], columns[1]


def _generator(*frames: Frame) -> np.random.Generator:
    """Random numbers of some frames, by their names: the same whoever asks, and in what order."""
    name = "\n".join(f"{frame.dataset} {frame.scene} {frame.token}" for frame in frames)
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little"))


def move(xyz: NDArray[np.float64], transform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points float64 [N, 3] by a transform float64 [4, 4]."""
    # Sums written out: a matrix product's bits depend on the number of BLAS threads.
    x, y, z = xyz.T
    return np.stack([m[0] * x + m[1] * y + m[2] * z + m[3] for m in transform[:3]], axis=1)


def level(xyz: NDArray[np.float64], frame: Frame) -> NDArray[np.float64]:
    """Points of a frame's LiDAR, float64 [N, 3], rotated so that z is up; as they are where it is already."""
    if frame.up == UP:
        return xyz
    x, y, z = frame.up
    turn = np.diag([1.0, -1.0, -1.0, 1.0])  # upside down, where no axis is nearer than another
    if z > -1 + 1e-9:  # Rodrigues' formula, about the axis up x z
        cross = np.array([[0, 0, -x], [0, 0, -y], [x, y, 0]])
        turn[:3, :3] = np.eye(3) + cross + cross @ cross / (1 + z)
    return move(xyz, turn)


def fit_ground(
    xyz: NDArray[np.float64], settings: ClusterSettings, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Which points lie on the ground, bool [N]: the inliers of the plane with the most of them (RANSAC).

    Args:
        xyz: float64 [N, 3], metres, z up.
        generator: of the three points of each plane.
    """
    ground = np.zeros(len(xyz), bool)
    if len(xyz) < 3:
        return ground
    x, y, z = np.ascontiguousarray(xyz.T)
    steepest = np.cos(np.radians(settings.ground_slope))
    most = 0
    for corners in generator.integers(len(xyz), size=(settings.ground_iterations, 3)):
        a, b, c = xyz[corners]
        normal = np.cross(b - a, c - a)
        length = np.sqrt((normal * normal).sum())
        if length < 1e-9 or abs(normal[2]) < steepest * length:
            continue
        n = normal / length
        distance = n[0] * (x - a[0]) + n[1] * (y - a[1]) + n[2] * (z - a[2])
        inlier = np.abs(distance) <= settings.ground_distance
        count = int(inlier.sum())
        if count > most:
            ground, most = inlier, count
    return ground


def cluster(xyz: NDArray[np.float64], settings: ClusterSettings, generator: np.random.Generator) -> NDArray[np.int16]:
    """The cluster of each point by HDBSCAN, int16 [N]: 0 for the largest, −1 for noise and what is not among the largest.

    Args:
        xyz: float64 [N, 3], metres.
        generator: of the points drawn where there are more than ``settings.most_points``.

    Raises:
        OlivineError: hdbscan is not installed.
    """
    if len(xyz) < settings.min_size:
        return np.full(len(xyz), NONE, np.int16)
    drawn = np.arange(len(xyz))
    if len(xyz) > settings.most_points:
        drawn = np.sort(generator.choice(len(xyz), settings.most_points, replace=False))
    # TARL's package and settings, but the exact tree, whose clusters are those of the definition: Euclidean, excess of
    # mass, alpha 1, min_samples as min_cluster_size. One job: the bits depend on no thread.
    model = hdbscan_class()(min_cluster_size=settings.min_size, approx_min_span_tree=False, core_dist_n_jobs=1)
    label = model.fit_predict(xyz[drawn])
    if len(drawn) < len(xyz):
        from scipy.spatial import cKDTree

        label = label[cKDTree(xyz[drawn]).query(xyz)[1]]
    held = np.bincount(label[label >= 0])
    number = np.full(len(held) + 1, NONE, np.int16)  # the last place is that of noise, −1
    order = np.argsort(-held, kind="stable")[: settings.largest]
    number[order] = np.arange(len(order))
    return number[label]


def hdbscan_class() -> Any:
    """The class of the package hdbscan.

    Raises:
        OlivineError: it is not installed.
    """
    try:
        from hdbscan import HDBSCAN
    except ImportError as error:
        raise OlivineError(
            f"hdbscan is not usable ({error})", remedy="install it: pip install 'olivine[clusters]'"
        ) from error
    return HDBSCAN
