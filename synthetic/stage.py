"""The world at one moment, ready for rays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .kinds import KIND
from .raycast import Hierarchy, build_hierarchy, closest
from .sun import SunGrid, sun_grid
from .world import World

GROUND = -2
"""The index that stands for the road plane z = 0; -1 is the sky."""


@dataclass(frozen=True)
class Stage:
    """The world at one moment, as the compiled functions take it.

    Attributes:
        still, moving: search trees.
        shade: what throws shadows, of the still and of the moving parts.
        kind, material, seed, instance: int64 [P], of the still parts and then the moving ones.
        color: float64 [P, 3].
    """

    still: Hierarchy
    moving: Hierarchy
    shade: tuple[SunGrid, SunGrid]
    kind: NDArray[np.int64]
    material: NDArray[np.int64]
    seed: NDArray[np.int64]
    instance: NDArray[np.int64]
    color: NDArray[np.float64]


_NOTHING = Hierarchy(np.zeros((0, 20)), np.zeros((1, 6)), np.zeros((1, 2), np.int64), np.zeros(0, np.int64))


def stage_at(world: World, t: float) -> Stage:
    """The world at time ``t`` in seconds."""
    still, moving = world.still, world.moving_at(t)
    tree = _NOTHING if moving is None else build_hierarchy(moving)

    def looks(name: str) -> NDArray[Any]:
        """One column of the still and the moving parts."""
        column: NDArray[Any] = getattr(still, name)
        return column if moving is None else np.concatenate([column, getattr(moving, name)])

    return Stage(
        world.tree,
        tree,
        (world.shade, sun_grid(tree.solids, world.light.to_sun)),
        *map(looks, ("kind", "material", "seed", "instance", "color")),
    )


def part_kind(stage: Stage, part: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The kind of each part as rays give it (-2 the road, -1 nothing), uint8, same shape."""
    kind = np.zeros(part.shape, np.uint8)
    real = part >= 0
    kind[real] = stage.kind[part[real]]
    kind[part == GROUND] = KIND["road"]
    return kind


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
