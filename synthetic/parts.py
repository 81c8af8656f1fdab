"""Primitive solids in arrays: what every object of the world is built of.

A part is a unit solid (box, ellipsoid, frustum) that is scaled, turned and moved. Arrays of parts are
placed, coloured and joined without loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

BOX, ELLIPSOID, FRUSTUM = 0, 1, 2

# How a surface looks and how it reflects a laser: see shading.py and lidar.py.
MATERIALS = (
    "asphalt",
    "paving",
    "grass",
    "facade",
    "leaf",
    "bark",
    "paint",
    "glass",
    "rubber",
    "cloth",
    "skin",
    "cone",
    "barrier",
    "metal",
    "light",
    "concrete",
    "roof",
    "coach",
    "cargo",
    "plate",
)
MATERIAL = {name: index for index, name in enumerate(MATERIALS)}


@dataclass(frozen=True)
class Parts:
    """P solids.

    Attributes:
        center: float64 [P, 3], metres.
        rotation: float64 [P, 3, 3], world to the part's own axes.
        half: float64 [P, 3], half sizes along the part's own axes, metres.
        taper: float64 [P, 3], for boxes the shrinking of x and of y towards the top (0 none, 1 to an edge) and
            the shift of the top along x (in half lengths); for frustums the shrinking of the radius.
        shape: int64 [P], BOX, ELLIPSOID or FRUSTUM (axis z).
        kind: int64 [P], index into ``kinds.KINDS``.
        material: int64 [P], index into ``MATERIALS``.
        color: float64 [P, 3], linear RGB in 0..1.
        instance: int64 [P], 0 = no instance.
        seed: int64 [P], for the texture.
        moving: int64 [P], 1 while the object moves.
    """

    center: NDArray[np.float64]
    rotation: NDArray[np.float64]
    half: NDArray[np.float64]
    taper: NDArray[np.float64]
    shape: NDArray[np.int64]
    kind: NDArray[np.int64]
    material: NDArray[np.int64]
    color: NDArray[np.float64]
    instance: NDArray[np.int64]
    seed: NDArray[np.int64]
    moving: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.center)

    def placed(self, x: float, y: float, z: float, yaw: float) -> Parts:
        """The same parts turned by ``yaw`` about the vertical and then moved."""
        turn = turn_z(yaw)
        return replace(
            self, center=self.center @ turn.T + np.array([x, y, z], np.float64), rotation=self.rotation @ turn.T
        )

    def marked(self, *, instance: int, seed: int, moving: bool) -> Parts:
        """The same parts as one object."""
        count = len(self)
        return replace(
            self,
            instance=np.full(count, instance, np.int64),
            seed=np.full(count, seed, np.int64),
            moving=np.full(count, int(moving), np.int64),
        )

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper corners of each part's axis-aligned box, float64 [P, 3] both."""
        half = self.half.copy()
        half[:, 0] *= 1 + np.abs(self.taper[:, 2]) * (self.shape == BOX)
        extent = np.einsum("pij,pi->pj", np.abs(self.rotation), half)
        return self.center - extent, self.center + extent


def turn_z(yaw: float) -> NDArray[np.float64]:
    """Rotation matrix about z, float64 [3, 3], angle in radians."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float64)


def join(groups: Sequence[Parts]) -> Parts:
    """All parts of several groups, in order."""
    columns: dict[str, Any] = {f.name: np.concatenate([getattr(g, f.name) for g in groups]) for f in fields(Parts)}
    return Parts(**columns)


def place_each(
    parts: Parts, owner: NDArray[np.int64], position: NDArray[np.float64], yaw: NDArray[np.float64]
) -> Parts:
    """Place many objects at once.

    Args:
        owner: int64 [P], the object each part belongs to.
        position: float64 [O, 3], metres.
        yaw: float64 [O], radians.
    """
    c, s = np.cos(yaw)[owner], np.sin(yaw)[owner]
    x, y = parts.center[:, 0], parts.center[:, 1]
    center = np.stack([c * x - s * y, s * x + c * y, parts.center[:, 2]], axis=1) + position[owner]
    rotation = parts.rotation.copy()
    # Each row r of the world-to-part matrix becomes r @ turn(yaw).T.
    a, b = parts.rotation[:, :, 0], parts.rotation[:, :, 1]
    rotation[:, :, 0] = c[:, None] * a - s[:, None] * b
    rotation[:, :, 1] = s[:, None] * a + c[:, None] * b
    return replace(parts, center=center, rotation=rotation)


class Builder:
    """Collects the solids of one object in its own frame: x forward, z up, origin on the ground."""

    def __init__(self) -> None:
        self._rows: list[tuple[object, ...]] = []

    def add(
        self,
        shape: int,
        kind: int,
        material: str,
        center: Sequence[float],
        size: Sequence[float],
        color: Sequence[float],
        *,
        taper: Sequence[float] = (0.0, 0.0, 0.0),
        yaw: float = 0.0,
        axis: str = "z",
        pitch: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Add one solid.

        Args:
            size: full sizes along the part's own axes, metres.
            axis: which way the part's own z points: ``z``, or ``x`` or ``y`` for lying cylinders.
            taper: as in :class:`Parts`; negative values widen towards the top (then without a shift).
            pitch: turn about the part's y axis before ``yaw``, radians.
        """
        turn = turn_z(yaw)
        if pitch:
            c, s = np.cos(pitch), np.sin(pitch)
            turn = turn @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float64)
        if axis == "y":
            turn = turn @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float64)
        elif axis == "x":
            turn = turn @ np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], np.float64)
        half = [max(s / 2, 1e-3) for s in size]
        if min(taper[0], taper[1]) < 0:
            # Wider at the top: the same solid upside down, so that its half sizes bound it.
            grown = [1 - taper[0], 1 - taper[1] if shape == BOX else 1 - taper[0]]
            half = [half[0] * grown[0], half[1] * grown[1], half[2]]
            taper = (1 - 1 / grown[0], 1 - 1 / grown[1], 0.0)
            turn = turn @ np.diag([1.0, -1.0, -1.0])
        self._rows.append((center, turn.T, half, taper, shape, kind, MATERIAL[material], color, 0, seed, 0))

    def parts(self) -> Parts:
        """The solids as arrays."""
        columns = list(zip(*self._rows))
        kinds = (np.float64,) * 4 + (np.int64,) * 3 + (np.float64,) + (np.int64,) * 3
        names = [f.name for f in fields(Parts)]
        arrays: dict[str, Any] = {n: np.array(c, k) for n, c, k in zip(names, columns, kinds)}
        return Parts(**arrays)


def blobs(
    kind: int,
    material: str,
    center: NDArray[np.float64],
    size: NDArray[np.float64],
    color: NDArray[np.float64],
    seed: NDArray[np.int64],
) -> Parts:
    """Upright ellipsoids, P at once: centres, full sizes and colours float64 [P, 3], seeds int64 [P]."""
    count = len(center)
    zeros = np.zeros(count, np.int64)
    return Parts(
        center=np.asarray(center, np.float64),
        rotation=np.tile(np.eye(3), (count, 1, 1)),
        half=np.asarray(size, np.float64) / 2,
        taper=np.zeros((count, 3)),
        shape=np.full(count, ELLIPSOID, np.int64),
        kind=np.full(count, kind, np.int64),
        material=np.full(count, MATERIAL[material], np.int64),
        color=np.asarray(color, np.float64),
        instance=zeros,
        seed=np.asarray(seed, np.int64),
        moving=zeros,
    )
