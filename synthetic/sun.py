"""Shadows of the sun: solids sorted into the cells of a grid across the sun's rays.

All shadow rays are parallel. Seen along them, a point lies in one cell, and only the solids over that cell
can shade it: a look-up in place of a search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .raycast import FAR, enter

CELL = 1.0
"""Side of a cell, metres."""


@dataclass(frozen=True)
class SunGrid:
    """The cells, as the compiled functions take them.

    Attributes:
        solids: float64 [P, 20].
        frame: float64 [3, 3]: two axes across the sun's rays and the direction to the sun.
        reach: float64 [P, 5], each solid's extent along the two axes across, and how far it reaches towards the sun.
        low: float64 [2], the grid's corner along the two axes.
        size: int64 [2], rows and columns.
        start: int64 [rows * columns + 1], where each cell's entries begin.
        entry: int64 [E], solids; in each cell those nearest to the sun first.
    """

    solids: NDArray[np.float64]
    frame: NDArray[np.float64]
    reach: NDArray[np.float64]
    low: NDArray[np.float64]
    size: NDArray[np.int64]
    start: NDArray[np.int64]
    entry: NDArray[np.int64]

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays in the order of the compiled functions' arguments."""
        return self.solids, self.frame, self.reach, self.low, self.size, self.start, self.entry


@compiled
def _reach(solids: NDArray[Any], frame: NDArray[Any]) -> NDArray[np.float64]:
    """``SunGrid.reach``."""
    reach = np.empty((len(solids), 5))
    for p in range(len(solids)):
        for k in range(3):
            middle = solids[p, 0] * frame[k, 0] + solids[p, 1] * frame[k, 1] + solids[p, 2] * frame[k, 2]
            extent = 1e-6
            for axis in range(3):
                # Rows of the matrix are axis / half; the half axes in the world are axis * half.
                a, half = 3 + 3 * axis, solids[p, 12 + axis]
                along = solids[p, a] * frame[k, 0] + solids[p, a + 1] * frame[k, 1] + solids[p, a + 2] * frame[k, 2]
                wide = 1.0 + abs(solids[p, 17]) if axis == 0 and solids[p, 18] == 0 else 1.0
                extent += abs(along) * half * half * wide
            if k < 2:
                reach[p, 2 * k] = middle - extent
            reach[p, min(2 * k + 1, 4)] = middle + extent
    return reach


@compiled
def _fill(cells: NDArray[Any], order: NDArray[Any], size: NDArray[Any]) -> Any:
    start = np.zeros(size[0] * size[1] + 1, np.int64)
    for p in order:
        for i in range(cells[p, 0], cells[p, 1] + 1):
            for j in range(cells[p, 2], cells[p, 3] + 1):
                start[i * size[1] + j + 1] += 1
    start = np.cumsum(start)
    entry = np.empty(start[-1], np.int64)
    place = start[:-1].copy()
    for p in order:
        for i in range(cells[p, 0], cells[p, 1] + 1):
            for j in range(cells[p, 2], cells[p, 3] + 1):
                cell = i * size[1] + j
                entry[place[cell]] = p
                place[cell] += 1
    return start, entry


def sun_grid(
    solids: NDArray[np.float64], to_sun: tuple[float, float, float], skip: NDArray[np.bool_] | None = None
) -> SunGrid:
    """Sort solids into cells.

    Args:
        solids: float64 [P, 20], as in :mod:`raycast`.
        to_sun: unit vector.
        skip: bool [P], solids too flat to matter.
    """
    sun = np.array(to_sun)
    across = np.cross(sun, (0.0, 0.0, 1.0))
    across /= np.linalg.norm(across)
    frame = np.stack([across, np.cross(sun, across), sun])
    reach = _reach(solids, frame)
    if len(solids) == 0:
        none = np.zeros(0, np.int64)
        return SunGrid(solids, frame, reach, np.zeros(2), np.zeros(2, np.int64), np.zeros(1, np.int64), none)
    low = reach[:, (0, 2)].min(axis=0)
    cells = np.floor((reach[:, :4] - low[[0, 0, 1, 1]]) / CELL).astype(np.int64)
    size = cells[:, (1, 3)].max(axis=0) + 1
    order = np.argsort(-reach[:, 4], kind="stable")
    if skip is not None:
        order = order[~skip[order]]
    start, entry = _fill(cells, order, size)
    return SunGrid(solids, frame, reach, low, size, start, entry)


@compiled
def shaded(grid: Any, x: float, y: float, z: float) -> bool:
    """Whether a solid stands between a point and the sun. ``grid`` as :attr:`SunGrid.arrays`."""
    solids, frame, reach, low, size, start, entry = grid
    sx, sy, sz = frame[2, 0], frame[2, 1], frame[2, 2]
    a = frame[0, 0] * x + frame[0, 1] * y + frame[0, 2] * z
    b = frame[1, 0] * x + frame[1, 1] * y + frame[1, 2] * z
    depth = sx * x + sy * y + sz * z
    i, j = int(np.floor((a - low[0]) / CELL)), int(np.floor((b - low[1]) / CELL))
    if i < 0 or j < 0 or i >= size[0] or j >= size[1]:
        return False
    cell = i * size[1] + j
    for k in range(start[cell], start[cell + 1]):
        p = entry[k]
        if reach[p, 4] <= depth:
            return False
        if a < reach[p, 0] or a > reach[p, 1] or b < reach[p, 2] or b > reach[p, 3]:
            continue
        if enter(solids, p, x, y, z, sx, sy, sz) < FAR:
            return True
    return False
