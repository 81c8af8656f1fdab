"""What each pixel of an image sees: the tiles of the image first gather the few solids before them.

A tile's solids come from the search tree through the tile's pyramid of sight, sorted by distance; each patch of it
tests them against all its rays at once, nearest first, until none could be met earlier. The result is the same as
casting each pixel's ray through the tree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled, inlined
from .raycast import DEPTH, FAR, Hierarchy, enter_ball, enter_box, enter_frustum, to_unit

TILE, PATCH = 32, 8
"""Side of a tile, whose solids are searched for, and of the patches that share it out, in pixels."""


@compiled
def _rectangle(
    solids: NDArray[Any], p: int, origin: NDArray[Any], turn: NDArray[Any], lens: NDArray[Any], out: Any
) -> None:
    """The bounding rectangle of solid ``p`` in the image (u0, u1, v0, v1); everything where it reaches behind the camera."""
    out[0], out[1], out[2], out[3] = FAR, -FAR, FAR, -FAR
    hx = solids[p, 12] * solids[p, 12]
    hy = solids[p, 13] * solids[p, 13]
    hz = solids[p, 14] * solids[p, 14]
    if solids[p, 18] == 0:
        hx *= 1.0 + abs(solids[p, 17])
    for corner in range(8):
        a = hx if corner & 1 else -hx
        b = hy if corner & 2 else -hy
        c = hz if corner & 4 else -hz
        x = solids[p, 0] + solids[p, 3] * a + solids[p, 6] * b + solids[p, 9] * c - origin[0]
        y = solids[p, 1] + solids[p, 4] * a + solids[p, 7] * b + solids[p, 10] * c - origin[1]
        z = solids[p, 2] + solids[p, 5] * a + solids[p, 8] * b + solids[p, 11] * c - origin[2]
        depth = turn[0, 2] * x + turn[1, 2] * y + turn[2, 2] * z
        if depth < 0.02:
            out[0], out[1], out[2], out[3] = -FAR, FAR, -FAR, FAR
            return
        u = lens[0, 0] * (turn[0, 0] * x + turn[1, 0] * y + turn[2, 0] * z) / depth + lens[0, 2]
        v = lens[1, 1] * (turn[0, 1] * x + turn[1, 1] * y + turn[2, 1] * z) / depth + lens[1, 2]
        out[0], out[1] = min(out[0], u - 0.01), max(out[1], u + 0.01)
        out[2], out[3] = min(out[2], v - 0.01), max(out[3], v + 0.01)


@compiled
def _approach(
    solids: NDArray[Any],
    p: int,
    origin: NDArray[Any],
    turn: NDArray[Any],
    lens: NDArray[Any],
    rectangle: NDArray[Any],
    start: NDArray[Any],
) -> float:
    """What tiles ask of solid ``p``: its rectangle, the camera in its unit coordinates; returns the distance at least."""
    _rectangle(solids, p, origin, turn, lens, rectangle)
    x, y, z = to_unit(solids, p, origin[0] - solids[p, 0], origin[1] - solids[p, 1], origin[2] - solids[p, 2])
    start[0], start[1], start[2] = x, y, z
    wide = 1.0 + (abs(solids[p, 17]) if solids[p, 18] == 0 else 0.0)
    x = max(abs(x) - wide, 0.0) * solids[p, 12]
    y = max(abs(y) - 1.0, 0.0) * solids[p, 13]
    z = max(abs(z) - 1.0, 0.0) * solids[p, 14]
    return np.sqrt(x * x + y * y + z * z)


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
def _largest(values: NDArray[Any]) -> float:
    worst = values[0]
    for i in range(1, len(values)):
        worst = max(worst, values[i])
    return worst


@inlined
def _turned(matrix: Any, x: float, y: float, z: float) -> Any:
    return (
        matrix[0][0] * x + matrix[0][1] * y + matrix[0][2] * z,
        matrix[1][0] * x + matrix[1][1] * y + matrix[1][2] * z,
        matrix[2][0] * x + matrix[2][1] * y + matrix[2][2] * z,
    )


@compiled
def _meet(
    solids: NDArray[Any],
    row: int,
    name: int,
    start: NDArray[Any],
    dx: NDArray[Any],
    dy: NDArray[Any],
    dz: NDArray[Any],
    best: NDArray[Any],
    hit: NDArray[Any],
    low: int,
    high: int,
) -> bool:
    """Note in ``best`` and ``hit`` which of the rays ``low`` to ``high`` a solid stops earlier; whether any.

    Args:
        row: the solid's row in ``solids``.
        name: its number among the still and the moving parts together.
        dx, dy, dz: the rays' directions, float64 [PATCH * PATCH].
    """
    matrix = (
        (solids[row, 3], solids[row, 4], solids[row, 5]),
        (solids[row, 6], solids[row, 7], solids[row, 8]),
        (solids[row, 9], solids[row, 10], solids[row, 11]),
    )
    ax, ay, az = start[name, 0], start[name, 1], start[name, 2]
    # The three loops take several rays at once. A signed index would spoil it: it might count from the end.
    first, last = np.uint64(low), np.uint64(high)
    shape = int(solids[row, 18])
    closer = 0
    if shape == 1:
        for i in range(first, last):
            bx, by, bz = _turned(matrix, dx[i], dy[i], dz[i])
            t = enter_ball(ax, ay, az, bx, by, bz)
            sooner = t < best[i]
            best[i], hit[i] = t if sooner else best[i], name if sooner else hit[i]
            closer += sooner
    elif shape == 0:
        lean_x, lean_y, shear = solids[row, 15] / 2, solids[row, 16] / 2, solids[row, 17] / 2
        for i in range(first, last):
            bx, by, bz = _turned(matrix, dx[i], dy[i], dz[i])
            t = enter_box(lean_x, lean_y, shear, ax, ay, az, bx, by, bz)
            sooner = t < best[i]
            best[i], hit[i] = t if sooner else best[i], name if sooner else hit[i]
            closer += sooner
    else:
        k = solids[row, 15] / 2
        for i in range(first, last):
            bx, by, bz = _turned(matrix, dx[i], dy[i], dz[i])
            t = enter_frustum(k, ax, ay, az, bx, by, bz)
            sooner = t < best[i]
            best[i], hit[i] = t if sooner else best[i], name if sooner else hit[i]
            closer += sooner
    return closer > 0


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
    near, nearest = np.empty(total), np.empty(total)
    start = np.empty((total, 3))
    dx, dy, dz = np.empty(PATCH * PATCH), np.empty(PATCH * PATCH), np.empty(PATCH * PATCH)
    best, hit = np.empty(PATCH * PATCH), np.empty(PATCH * PATCH, np.int64)
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
                if not known[p]:
                    known[p] = True
                    if p < ours:
                        nearest[p] = _approach(still[0], p, origin, turn, lens, rectangle[p], start[p])
                    else:
                        nearest[p] = _approach(moving[0], p - ours, origin, turn, lens, rectangle[p], start[p])
                if (
                    rectangle[p, 0] <= u1 - 1
                    and rectangle[p, 1] >= u0
                    and rectangle[p, 2] <= v1 - 1
                    and rectangle[p, 3] >= v0
                ):
                    found[kept], near[kept] = p, nearest[p]
                    kept += 1
            _sort(near, found, kept)
            for pv in range(v0, v1, PATCH):
                for pu in range(u0, u1, PATCH):
                    qu, qv = min(pu + PATCH, u1), min(pv + PATCH, v1)
                    for i in range(PATCH * PATCH):  # where a patch reaches over the border, rays that nobody asks for
                        cx = (pu + i % PATCH - lens[0, 2]) / lens[0, 0]
                        cy = (pv + i // PATCH - lens[1, 2]) / lens[1, 1]
                        norm = 1.0 / np.sqrt(cx * cx + cy * cy + 1.0)
                        dx[i] = (turn[0, 0] * cx + turn[0, 1] * cy + turn[0, 2]) * norm
                        dy[i] = (turn[1, 0] * cx + turn[1, 1] * cy + turn[1, 2]) * norm
                        z = (turn[2, 0] * cx + turn[2, 1] * cy + turn[2, 2]) * norm
                        dz[i] = z
                        best[i], hit[i] = (-origin[2] / z, -2) if z < 0 else (FAR, -1)
                    worst = _largest(best)
                    for k in range(kept):
                        if near[k] >= worst:
                            break
                        p = found[k]
                        if (
                            rectangle[p, 0] > qu - 1
                            or rectangle[p, 1] < pu
                            or rectangle[p, 2] > qv - 1
                            or rectangle[p, 3] < pv
                        ):
                            continue
                        low = PATCH * int(max(np.ceil(rectangle[p, 2]) - pv, 0.0))
                        high = PATCH * int(min(np.floor(rectangle[p, 3]) - pv + 1.0, PATCH))
                        if p < ours:
                            closer = _meet(still[0], p, p, start, dx, dy, dz, best, hit, low, high)
                        else:
                            closer = _meet(moving[0], p - ours, p, start, dx, dy, dz, best, hit, low, high)
                        if closer:
                            worst = _largest(best)
                    for v in range(pv, qv):
                        for u in range(pu, qu):
                            i = PATCH * (v - pv) + u - pu
                            distance[v, u] = best[i]
                            part[v, u] = hit[i]


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
