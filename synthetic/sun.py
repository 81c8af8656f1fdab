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
from .raycast import enter, to_unit

CELL = 1.0
"""Side of a cell, metres."""


@dataclass(frozen=True)
class SunGrid:
    """The cells, as the compiled functions take them.

    Attributes:
        solids: float64 [P, 20].
        frame: float64 [3, 3]: two axes across the sun's rays and the direction to the sun.
        low: float64 [2], the grid's corner along the two axes.
        start: int64 [rows, columns + 1] flattened entries' range of each cell.
        entry: int64 [E], solids; in each cell those nearest to the sun first.
        top: float64 [P], how far each solid reaches towards the sun.
    """

    solids: NDArray[np.float64]
    frame: NDArray[np.float64]
    low: NDArray[np.float64]
    size: NDArray[np.int64]
    start: NDArray[np.int64]
    entry: NDArray[np.int64]
    top: NDArray[np.float64]

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The arrays in the order of the compiled functions' arguments."""
        return self.solids, self.frame, self.low, self.size, self.start, self.entry, self.top


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
    count = len(solids)
    if count == 0:
        none = np.zeros(0, np.int64)
        return SunGrid(solids, frame, np.zeros(2), np.zeros(2, np.int64), np.zeros(1, np.int64), none, np.zeros(0))
    # Rows of the matrix are axis / half; the half axes in the world are axis * half.
    half = solids[:, 12:15].copy()
    axes = solids[:, 3:12].reshape(count, 3, 3) * (half**2)[:, :, None]
    axes[:, 0] *= 1 + np.abs(solids[:, 17:18]) * (solids[:, 18:19] == 0)
    middle = solids[:, :3] @ frame.T
    extent = np.abs(axes @ frame.T).sum(axis=1) + 1e-6
    low = (middle - extent)[:, :2].min(axis=0)
    first = np.floor(((middle - extent)[:, :2] - low) / CELL).astype(np.int64)
    last = np.floor(((middle + extent)[:, :2] - low) / CELL).astype(np.int64)
    size = last.max(axis=0) + 1
    top = middle[:, 2] + extent[:, 2]
    order = np.argsort(-top, kind="stable")
    if skip is not None:
        order = order[~skip[order]]
    cells = np.column_stack([first[:, 0], last[:, 0], first[:, 1], last[:, 1]])
    start, entry = _fill(cells, order, size)
    return SunGrid(solids, frame, low, size, start, entry, top)


@compiled
def shaded(grid: Any, x: float, y: float, z: float) -> bool:
    """Whether a solid stands between a point and the sun. ``grid`` as :attr:`SunGrid.arrays`."""
    solids, frame, low, size, start, entry, top = grid
    i = int(np.floor((frame[0, 0] * x + frame[0, 1] * y + frame[0, 2] * z - low[0]) / CELL))
    j = int(np.floor((frame[1, 0] * x + frame[1, 1] * y + frame[1, 2] * z - low[1]) / CELL))
    if i < 0 or j < 0 or i >= size[0] or j >= size[1]:
        return False
    sx, sy, sz = frame[2, 0], frame[2, 1], frame[2, 2]
    depth = sx * x + sy * y + sz * z
    cell = i * size[1] + j
    for k in range(start[cell], start[cell + 1]):
        p = entry[k]
        if top[p] <= depth:
            return False
        solid = solids[p]
        ax, ay, az = to_unit(solid, x - solid[0], y - solid[1], z - solid[2])
        bx, by, bz = to_unit(solid, sx, sy, sz)
        if enter(solid, ax, ay, az, bx, by, bz) < 1e29:
            return True
    return False
