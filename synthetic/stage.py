"""The world at one moment, ready for rays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .raycast import Hierarchy, build_hierarchy, closest
from .sun import SunGrid, sun_grid
from .world import World


@dataclass(frozen=True)
class Stage:
    """The world at one moment, as the compiled functions take it.

    Rays say what they hit by a part's number: the still parts and then the moving ones, -2 the road (the plane
    z = 0), -1 nothing. ``kind`` and ``instance`` end with the road and nothing, so that any such number finds its own.

    Attributes:
        still, moving: search trees.
        shade: what throws shadows, of the still and of the moving parts.
        kind: uint8 [P + 2], index into ``kinds.KINDS``.
        instance: uint16 [P + 2], 0 = none.
        material, seed: int64 [P].
        color: float64 [P, 3].
    """

    still: Hierarchy
    moving: Hierarchy
    shade: tuple[SunGrid, SunGrid]
    kind: NDArray[np.uint8]
    instance: NDArray[np.uint16]
    material: NDArray[np.int64]
    seed: NDArray[np.int64]
    color: NDArray[np.float64]


_NOTHING = Hierarchy(np.zeros((0, 20)), np.zeros((1, 6)), np.zeros((1, 2), np.int64), np.zeros(0, np.int64))


def stage_at(world: World, t: float) -> Stage:
    """The world at time ``t`` in seconds."""
    moving = world.moving_at(t)
    tree = _NOTHING if moving is None else build_hierarchy(moving)
    return Stage(world.tree, tree, (world.shade, sun_grid(tree.solids, world.light.to_sun)), *world.looks)


@compiled
def first_hit(
    still: Any,
    moving: Any,
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
    """The first surface along a ray: (t, index); index of the joined parts, -2 the road, -1 nothing."""
    t, found = closest(still[0], still[1], still[2], still[3], ox, oy, oz, dx, dy, dz, limit, stack, entry)
    s, other = closest(moving[0], moving[1], moving[2], moving[3], ox, oy, oz, dx, dy, dz, t, stack, entry)
    if other >= 0:
        t, found = s, other + len(still[0])
    if dz < 0:
        s = -oz / dz
        if s < t:
            t, found = s, -2
    return t, found
