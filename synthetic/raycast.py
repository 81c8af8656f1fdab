"""Exact ray casting: intersections of rays with primitive solids, over a bounding volume hierarchy.

All of it is compiled by numba without the GIL; callers decide how rays are shared between processes.
A solid's row of 20 float64: center 0-2, world to unit coordinates 3-11 (a 3x3 matrix, row by row), half sizes
12-14, taper 15-17, shape 18, spare 19. A ray is taken into the solid's unit coordinates, where the solid is a
unit box, ball or frustum; distances along the ray stay what they are in the world.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled, inlined
from .parts import Parts

FAR = 1e30
NEAR = 1e-4
LEAF = 3
BINS = 12
DEPTH = 64
"""Of the traversal stacks; a hierarchy over 100,000 solids is some 25 deep."""


@inlined
def to_unit(solids: NDArray[Any], p: int, x: float, y: float, z: float) -> Any:
    """A world vector in the unit coordinates of solid ``p`` (without its centre)."""
    return (
        solids[p, 3] * x + solids[p, 4] * y + solids[p, 5] * z,
        solids[p, 6] * x + solids[p, 7] * y + solids[p, 8] * z,
        solids[p, 9] * x + solids[p, 10] * y + solids[p, 11] * z,
    )


@inlined
def _halfspace(rate: float, room: float, near: float, far: float) -> Any:
    # The part of the ray inside n.p <= k: room = k - n.origin, rate = n.direction. Without branches, so that a
    # compiler may take several rays at once.
    t = room / rate
    far = t if (rate > 1e-15) & (t < far) else far
    near = t if (rate < -1e-15) & (t > near) else near
    far = -FAR if (abs(rate) <= 1e-15) & (room < 0) else far
    return near, far


@inlined
def enter_ball(ax: float, ay: float, az: float, bx: float, by: float, bz: float) -> float:
    """:func:`enter` for the unit ball."""
    a = bx * bx + by * by + bz * bz
    b = ax * bx + ay * by + az * bz
    c = ax * ax + ay * ay + az * az - 1.0
    disc = b * b - a * c
    root = (-b - np.sqrt(disc)) / a  # no number where the ray misses
    return root if (disc > 0) & (c > 0) & (root > NEAR) else FAR


@inlined
def enter_box(
    lean_x: float, lean_y: float, shear: float, ax: float, ay: float, az: float, bx: float, by: float, bz: float
) -> float:
    """:func:`enter` for the unit box: six half-spaces n.p <= k; the x and y faces lean by the taper and the shear."""
    near, far = _halfspace(bz, 1.0 - az, -FAR, FAR)
    near, far = _halfspace(-bz, 1.0 + az, near, far)
    k = 1.0 - lean_x + shear - (lean_x - shear) * az
    near, far = _halfspace(bx + (lean_x - shear) * bz, k - ax, near, far)
    k = 1.0 - lean_x - shear - (lean_x + shear) * az
    near, far = _halfspace(-bx + (lean_x + shear) * bz, k + ax, near, far)
    k = 1.0 - lean_y - lean_y * az
    near, far = _halfspace(by + lean_y * bz, k - ay, near, far)
    near, far = _halfspace(-by + lean_y * bz, k + ay, near, far)
    return near if (near > NEAR) & (near <= far) else FAR


@inlined
def enter_frustum(k: float, ax: float, ay: float, az: float, bx: float, by: float, bz: float) -> float:
    """:func:`enter` for a frustum: x^2 + y^2 <= (1 - k - k z)^2 between the caps z = -1 and z = 1."""
    r0, r1 = 1.0 - k - k * az, -k * bz
    a = bx * bx + by * by - r1 * r1
    b = ax * bx + ay * by - r0 * r1
    c = ax * ax + ay * ay - r0 * r0
    disc = b * b - a * c
    root = np.sqrt(disc)  # no number where the ray misses
    steep = abs(a) > 1e-15
    s = (-b - root) / a
    t = s if steep & (s > NEAR) & (abs(az + s * bz) <= 1.0) else FAR
    s = (-b + root) / a
    t = s if steep & (s > NEAR) & (s < t) & (abs(az + s * bz) <= 1.0) else t
    cap = -1.0 if bz > 0 else 1.0
    s = (cap - az) / bz
    x, y = ax + s * bx, ay + s * by
    r = 1.0 - k - k * cap
    return s if (abs(bz) > 1e-15) & (s > NEAR) & (s < t) & (x * x + y * y <= r * r) else t


@compiled
def enter(solids: NDArray[Any], p: int, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> float:
    """Where a ray enters solid ``p``, in lengths of its direction; ``FAR`` where it misses or starts inside."""
    ax, ay, az = to_unit(solids, p, ox - solids[p, 0], oy - solids[p, 1], oz - solids[p, 2])
    bx, by, bz = to_unit(solids, p, dx, dy, dz)
    shape = int(solids[p, 18])
    if shape == 1:
        return enter_ball(ax, ay, az, bx, by, bz)
    if shape == 0:
        return enter_box(solids[p, 15] / 2, solids[p, 16] / 2, solids[p, 17] / 2, ax, ay, az, bx, by, bz)
    return enter_frustum(solids[p, 15] / 2, ax, ay, az, bx, by, bz)


@compiled
def surface(solids: NDArray[Any], p: int, x: float, y: float, z: float) -> Any:
    """The surface at a point of the world that lies on solid ``p``.

    Returns (nx, ny, nz, lx, ly, lz): the unit normal, outward, and the point in unit coordinates.
    """
    lx, ly, lz = to_unit(solids, p, x - solids[p, 0], y - solids[p, 1], z - solids[p, 2])
    shape = int(solids[p, 18])
    if shape == 0:
        lean_x, lean_y, shear = solids[p, 15] / 2, solids[p, 16] / 2, solids[p, 17] / 2
        gx, gy, gz = 0.0, 0.0, 1.0
        most = lz - 1.0
        if -lz - 1.0 > most:
            most, gz = -lz - 1.0, -1.0
        out = lx + (lean_x - shear) * lz - (1.0 - lean_x + shear)
        if out > most:
            most, gx, gy, gz = out, 1.0, 0.0, lean_x - shear
        out = -lx + (lean_x + shear) * lz - (1.0 - lean_x - shear)
        if out > most:
            most, gx, gy, gz = out, -1.0, 0.0, lean_x + shear
        out = ly + lean_y * lz - (1.0 - lean_y)
        if out > most:
            most, gx, gy, gz = out, 0.0, 1.0, lean_y
        out = -ly + lean_y * lz - (1.0 - lean_y)
        if out > most:
            most, gx, gy, gz = out, 0.0, -1.0, lean_y
    elif shape == 1:
        gx, gy, gz = lx, ly, lz
    else:
        k = solids[p, 15] / 2
        r = 1.0 - k - k * lz
        rim = np.sqrt(lx * lx + ly * ly)
        if abs(lz) - 1.0 > rim - r:
            gx, gy, gz = 0.0, 0.0, lz
        else:
            gx, gy, gz = lx, ly, k * r
    # A gradient goes back to the world by the transposed matrix.
    nx = solids[p, 3] * gx + solids[p, 6] * gy + solids[p, 9] * gz
    ny = solids[p, 4] * gx + solids[p, 7] * gy + solids[p, 10] * gz
    nz = solids[p, 5] * gx + solids[p, 8] * gy + solids[p, 11] * gz
    size = np.sqrt(nx * nx + ny * ny + nz * nz)
    return nx / size, ny / size, nz / size, lx, ly, lz


@inlined
def _reach_box(bound: NDArray[Any], node: int, ox: float, oy: float, oz: float, ix: float, iy: float, iz: float) -> Any:
    t0, t1 = (bound[node, 0] - ox) * ix, (bound[node, 3] - ox) * ix
    near, far = min(t0, t1), max(t0, t1)
    t0, t1 = (bound[node, 1] - oy) * iy, (bound[node, 4] - oy) * iy
    near, far = max(near, min(t0, t1)), min(far, max(t0, t1))
    t0, t1 = (bound[node, 2] - oz) * iz, (bound[node, 5] - oz) * iz
    near, far = max(near, min(t0, t1)), min(far, max(t0, t1))
    return near if far >= max(near, 0.0) else FAR


@compiled
def closest(
    solids: NDArray[Any],
    bound: NDArray[Any],
    link: NDArray[Any],
    order: NDArray[Any],
    ox: float,
    oy: float,
    oz: float,
    dx: float,
    dy: float,
    dz: float,
    limit: float,
    stack: NDArray[Any],
    entry: NDArray[Any],
) -> Any:
    """The first solid along a ray: (t, index), (``limit``, -1) where there is none before ``limit``.

    Args:
        stack, entry: int64 and float64 [DEPTH], to work in.
    """
    best, found = limit, -1
    if len(order) == 0:
        return best, found
    tiny = 1e-12
    ix = 1.0 / (dx if abs(dx) > tiny else tiny)
    iy = 1.0 / (dy if abs(dy) > tiny else tiny)
    iz = 1.0 / (dz if abs(dz) > tiny else tiny)
    stack[0] = 0
    entry[0] = _reach_box(bound, 0, ox, oy, oz, ix, iy, iz)
    top = 1
    while top > 0:
        top -= 1
        if entry[top] >= best:
            continue
        node = stack[top]
        count = link[node, 1]
        if count > 0:
            for k in range(link[node, 0], link[node, 0] + count):
                t = enter(solids, order[k], ox, oy, oz, dx, dy, dz)
                if t < best:
                    best, found = t, order[k]
            continue
        left = link[node, 0]
        a = _reach_box(bound, left, ox, oy, oz, ix, iy, iz)
        b = _reach_box(bound, left + 1, ox, oy, oz, ix, iy, iz)
        first, second = left, left + 1
        if b < a:
            first, second = second, first
            a, b = b, a
        if b < best:
            stack[top], entry[top] = second, b
            top += 1
        if a < best:
            stack[top], entry[top] = first, a
            top += 1
    return best, found


@compiled
def blocked(
    solids: NDArray[Any],
    bound: NDArray[Any],
    link: NDArray[Any],
    order: NDArray[Any],
    ox: float,
    oy: float,
    oz: float,
    dx: float,
    dy: float,
    dz: float,
    limit: float,
    stack: NDArray[Any],
) -> bool:
    """Whether anything lies on a ray before ``limit``; ``stack`` int64 [DEPTH] to work in."""
    if len(order) == 0:
        return False
    tiny = 1e-12
    ix = 1.0 / (dx if abs(dx) > tiny else tiny)
    iy = 1.0 / (dy if abs(dy) > tiny else tiny)
    iz = 1.0 / (dz if abs(dz) > tiny else tiny)
    stack[0] = 0
    top = 1
    while top > 0:
        top -= 1
        node = stack[top]
        if _reach_box(bound, node, ox, oy, oz, ix, iy, iz) >= limit:
            continue
        count = link[node, 1]
        if count > 0:
            for k in range(link[node, 0], link[node, 0] + count):
                if enter(solids, order[k], ox, oy, oz, dx, dy, dz) < limit:
                    return True
            continue
        stack[top], stack[top + 1] = link[node, 0], link[node, 0] + 1
        top += 2
    return False


@inlined
def _area(bound: NDArray[Any]) -> float:
    x, y, z = bound[3] - bound[0], bound[4] - bound[1], bound[5] - bound[2]
    return x * y + y * z + z * x


@compiled
def _build(low: NDArray[Any], high: NDArray[Any]) -> Any:
    """Binned surface-area-heuristic hierarchy (Wald, On fast construction of SAH-based BVHs, 2007).

    Returns bounds [N, 6], links [N, 2] (first child or first leaf entry; leaf count, 0 for inner nodes) and
    the order of the solids [P].
    """
    total = len(low)
    order = np.arange(total)
    middle = (low + high) / 2
    bound = np.zeros((2 * total + 1, 6))
    link = np.zeros((2 * total + 1, 2), np.int64)
    used = 1
    todo = np.empty((2 * total + 64, 3), np.int64)
    todo[0] = (0, 0, total)
    waiting = 1
    box = np.empty((BINS, 6))
    count = np.empty(BINS, np.int64)
    right_cost = np.empty(BINS)
    sweep = np.empty(6)
    while waiting > 0:
        waiting -= 1
        node, start, end = todo[waiting]
        c0 = np.full(3, FAR)
        c1 = np.full(3, -FAR)
        bound[node, :3] = FAR
        bound[node, 3:] = -FAR
        for k in range(start, end):
            p = order[k]
            for a in range(3):
                bound[node, a] = min(bound[node, a], low[p, a])
                bound[node, 3 + a] = max(bound[node, 3 + a], high[p, a])
                c0[a] = min(c0[a], middle[p, a])
                c1[a] = max(c1[a], middle[p, a])
        axis = np.argmax(c1 - c0)
        span = c1[axis] - c0[axis]
        if end - start <= LEAF or span <= 1e-9:
            link[node] = (start, end - start)
            continue
        box[:, :3] = FAR
        box[:, 3:] = -FAR
        count[:] = 0
        scale = BINS * (1 - 1e-9) / span
        for k in range(start, end):
            p = order[k]
            bin_ = int((middle[p, axis] - c0[axis]) * scale)
            count[bin_] += 1
            for a in range(3):
                box[bin_, a] = min(box[bin_, a], low[p, a])
                box[bin_, 3 + a] = max(box[bin_, 3 + a], high[p, a])
        sweep[:3] = FAR
        sweep[3:] = -FAR
        seen = 0
        for k in range(BINS - 1, 0, -1):
            for a in range(3):
                sweep[a] = min(sweep[a], box[k, a])
                sweep[3 + a] = max(sweep[3 + a], box[k, 3 + a])
            seen += count[k]
            right_cost[k] = _area(sweep) * seen if seen > 0 else 0.0
        sweep[:3] = FAR
        sweep[3:] = -FAR
        seen = 0
        best, split = FAR, 1
        for k in range(BINS - 1):
            for a in range(3):
                sweep[a] = min(sweep[a], box[k, a])
                sweep[3 + a] = max(sweep[3 + a], box[k, 3 + a])
            seen += count[k]
            if seen == 0 or seen == end - start:
                continue
            cost = _area(sweep) * seen + right_cost[k + 1]
            if cost < best:
                best, split = cost, k + 1
        i, j = start, end - 1
        while i <= j:
            if int((middle[order[i], axis] - c0[axis]) * scale) < split:
                i += 1
            else:
                order[i], order[j] = order[j], order[i]
                j -= 1
        link[node] = (used, 0)
        todo[waiting] = (used, start, i)
        todo[waiting + 1] = (used + 1, i, end)
        waiting += 2
        used += 2
    return bound[:used], link[:used], order


@dataclass(frozen=True)
class Hierarchy:
    """Solids with their search tree, as the compiled functions take them."""

    solids: NDArray[np.float64]
    bound: NDArray[np.float64]
    link: NDArray[np.int64]
    order: NDArray[np.int64]

    @property
    def arrays(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """The four arrays in the order of the compiled functions' arguments."""
        return self.solids, self.bound, self.link, self.order


def build_hierarchy(parts: Parts) -> Hierarchy:
    """The search tree over ``parts``; index i of the solids is part i."""
    count = len(parts)
    solids = np.zeros((count, 20))
    solids[:, 0:3] = parts.center
    solids[:, 3:12] = (parts.rotation / parts.half[:, :, None]).reshape(count, 9)
    solids[:, 12:15] = parts.half
    solids[:, 15:18] = parts.taper
    solids[:, 18] = parts.shape
    low, high = parts.bounds()
    bound, link, order = _build(low - 1e-6, high + 1e-6)
    return Hierarchy(solids, bound, link, order)
