"""What each pixel of an image sees: the tiles of the image first gather the few solids before them.

A tile's solids come from the search tree through the tile's pyramid of sight, sorted by distance, so that a
pixel tests a handful and stops. The result is the same as casting each pixel's ray through the tree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .raycast import DEPTH, FAR, Hierarchy, enter, to_unit

TILE, PATCH = 32, 8
"""Side of a tile, whose solids are searched for, and of the patches that share it out, in pixels."""


@compiled
def _rectangle(solid: NDArray[Any], origin: NDArray[Any], turn: NDArray[Any], lens: NDArray[Any], out: Any) -> None:
    """The solid's bounding rectangle in the image (u0, u1, v0, v1); everything where it reaches behind the camera."""
    out[0], out[1], out[2], out[3] = FAR, -FAR, FAR, -FAR
    hx = solid[12] * solid[12]
    hy = solid[13] * solid[13]
    hz = solid[14] * solid[14]
    if solid[18] == 0:
        hx *= 1.0 + abs(solid[17])
    for corner in range(8):
        a = hx if corner & 1 else -hx
        b = hy if corner & 2 else -hy
        c = hz if corner & 4 else -hz
        x = solid[0] + solid[3] * a + solid[6] * b + solid[9] * c - origin[0]
        y = solid[1] + solid[4] * a + solid[7] * b + solid[10] * c - origin[1]
        z = solid[2] + solid[5] * a + solid[8] * b + solid[11] * c - origin[2]
        depth = turn[0, 2] * x + turn[1, 2] * y + turn[2, 2] * z
        if depth < 0.02:
            out[0], out[1], out[2], out[3] = -FAR, FAR, -FAR, FAR
            return
        u = lens[0, 0] * (turn[0, 0] * x + turn[1, 0] * y + turn[2, 0] * z) / depth + lens[0, 2]
        v = lens[1, 1] * (turn[0, 1] * x + turn[1, 1] * y + turn[2, 1] * z) / depth + lens[1, 2]
        out[0], out[1] = min(out[0], u - 0.01), max(out[1], u + 0.01)
        out[2], out[3] = min(out[2], v - 0.01), max(out[3], v + 0.01)


@compiled
def _gather(
    solids: NDArray[Any],
    bound: NDArray[Any],
    link: NDArray[Any],
    order: NDArray[Any],
    planes: NDArray[Any],
    origin: NDArray[Any],
    offset: int,
    found: NDArray[Any],
    count: int,
    stack: NDArray[Any],
) -> int:
    """Append to ``found`` the solids whose boxes reach into a pyramid of four planes; the new count."""
    if len(order) == 0:
        return count
    stack[0] = 0
    top = 1
    while top > 0:
        top -= 1
        node = stack[top]
        outside = False
        for k in range(4):
            reach = 0.0
            for a in range(3):
                n = planes[k, a]
                reach += n * ((bound[node, 3 + a] if n > 0 else bound[node, a]) - origin[a])
            if reach < 0:
                outside = True
                break
        if outside:
            continue
        if link[node, 1] > 0:
            for k in range(link[node, 0], link[node, 0] + link[node, 1]):
                found[count] = order[k] + offset
                count += 1
        else:
            stack[top], stack[top + 1] = link[node, 0], link[node, 0] + 1
            top += 2
    return count


@compiled
def _sort(key: NDArray[Any], value: NDArray[Any], count: int) -> None:
    """Shell sort of ``value`` by ``key``, both in place."""
    gap = 1
    while gap < count // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, count):
            k, v = key[i], value[i]
            j = i
            while j >= gap and key[j - gap] > k:
                key[j], value[j] = key[j - gap], value[j - gap]
                j -= gap
            key[j], value[j] = k, v
        gap //= 3


@compiled
def _look(
    still: Any,
    moving: Any,
    origin: NDArray[Any],
    turn: NDArray[Any],
    lens: NDArray[Any],
    distance: NDArray[Any],
    part: NDArray[Any],
) -> None:
    height, width = part.shape
    ours = len(still[0])
    total = ours + len(moving[0])
    rectangle = np.empty((total, 4))
    known = np.zeros(total, np.bool_)
    found = np.empty(total, np.int64)
    near = np.empty(total)
    start = np.empty((total, 3))  # the camera in each solid's unit coordinates
    mine = np.empty(total, np.int64)
    planes = np.empty((4, 3))
    corner = np.empty((4, 3))
    stack = np.empty(DEPTH, np.int64)
    for v0 in range(0, height, TILE):
        for u0 in range(0, width, TILE):
            u1, v1 = min(u0 + TILE, width), min(v0 + TILE, height)
            for k in range(4):
                u = (u0 if k in (0, 3) else u1) - 0.5
                v = (v0 if k < 2 else v1) - 0.5
                x, y = (u - lens[0, 2]) / lens[0, 0], (v - lens[1, 2]) / lens[1, 1]
                for a in range(3):
                    corner[k, a] = turn[a, 0] * x + turn[a, 1] * y + turn[a, 2]
            for k in range(4):
                after = (k + 1) % 4
                for a in range(3):
                    b, c = (a + 1) % 3, (a + 2) % 3
                    planes[k, a] = corner[after, b] * corner[k, c] - corner[after, c] * corner[k, b]
                side = 0.0
                for a in range(3):
                    side += planes[k, a] * corner[(k + 2) % 4, a]
                if side < 0:
                    for a in range(3):
                        planes[k, a] = -planes[k, a]
            count = _gather(still[0], still[1], still[2], still[3], planes, origin, 0, found, 0, stack)
            count = _gather(moving[0], moving[1], moving[2], moving[3], planes, origin, ours, found, count, stack)
            kept = 0
            for k in range(count):
                p = found[k]
                solid = still[0][p] if p < ours else moving[0][p - ours]
                if not known[p]:
                    known[p] = True
                    _rectangle(solid, origin, turn, lens, rectangle[p])
                    ax, ay, az = to_unit(solid, origin[0] - solid[0], origin[1] - solid[1], origin[2] - solid[2])
                    start[p, 0], start[p, 1], start[p, 2] = ax, ay, az
                r = rectangle[p]
                if r[0] > u1 - 1 or r[1] < u0 or r[2] > v1 - 1 or r[3] < v0:
                    continue
                wide = 1.0 + (abs(solid[17]) if solid[18] == 0 else 0.0)
                x = max(abs(start[p, 0]) - wide, 0.0) * solid[12]
                y = max(abs(start[p, 1]) - 1.0, 0.0) * solid[13]
                z = max(abs(start[p, 2]) - 1.0, 0.0) * solid[14]
                found[kept] = p
                near[kept] = np.sqrt(x * x + y * y + z * z)
                kept += 1
            _sort(near, found, kept)
            for pv in range(v0, v1, PATCH):
                for pu in range(u0, u1, PATCH):
                    qu, qv = min(pu + PATCH, u1), min(pv + PATCH, v1)
                    few = 0
                    for k in range(kept):
                        r = rectangle[found[k]]
                        if r[0] <= qu - 1 and r[1] >= pu and r[2] <= qv - 1 and r[3] >= pv:
                            mine[few] = k
                            few += 1
                    for v in range(pv, qv):
                        for u in range(pu, qu):
                            cx, cy = (u - lens[0, 2]) / lens[0, 0], (v - lens[1, 2]) / lens[1, 1]
                            norm = 1.0 / np.sqrt(cx * cx + cy * cy + 1.0)
                            dx = (turn[0, 0] * cx + turn[0, 1] * cy + turn[0, 2]) * norm
                            dy = (turn[1, 0] * cx + turn[1, 1] * cy + turn[1, 2]) * norm
                            dz = (turn[2, 0] * cx + turn[2, 1] * cy + turn[2, 2]) * norm
                            best, hit = FAR, -1
                            if dz < 0:
                                best, hit = -origin[2] / dz, -2
                            for m in range(few):
                                k = mine[m]
                                if near[k] >= best:
                                    break
                                p = found[k]
                                r = rectangle[p]
                                if u < r[0] or u > r[1] or v < r[2] or v > r[3]:
                                    continue
                                solid = still[0][p] if p < ours else moving[0][p - ours]
                                bx, by, bz = to_unit(solid, dx, dy, dz)
                                t = enter(solid, start[p, 0], start[p, 1], start[p, 2], bx, by, bz)
                                if t < best:
                                    best, hit = t, p
                            distance[v, u] = best
                            part[v, u] = hit


def look(
    still: Hierarchy,
    moving: Hierarchy,
    camera_to_street: NDArray[np.float64],
    intrinsic: NDArray[np.float64],
    width: int,
    height: int,
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """First surface of each pixel's ray: distance float64 [H, W]; part int32 [H, W], -2 the road, -1 nothing."""
    distance = np.empty((height, width))
    part = np.empty((height, width), np.int32)
    origin = np.ascontiguousarray(camera_to_street[:3, 3])
    turn = np.ascontiguousarray(camera_to_street[:3, :3])
    _look(still.arrays, moving.arrays, origin, turn, intrinsic, distance, part)
    return distance, part
