"""A scene: the still street, the road users on it, and the ego vehicle's drive, all from one seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kinds import KIND
from .motion import Path, RightTurn, Speed, Straight
from .parts import Parts, join, place_each
from .raycast import Hierarchy, build_hierarchy
from .street import Layout, plan, still_parts
from .sun import SunGrid, sun_grid
from .traffic import Actor, populate


@dataclass(frozen=True)
class Light:
    """Sun and sky of a scene: unit vector to the sun, strengths, colours (linear RGB), exposure, cloudiness."""

    to_sun: tuple[float, float, float]
    sun: tuple[float, float, float]
    sky: tuple[float, float, float]
    exposure: float
    clouds: float
    haze: float


@dataclass(frozen=True)
class World:
    """One scene.

    Attributes:
        layout: the plan of the streets.
        still: the parts that never move (parked vehicles and standing people included).
        tree: their search tree.
        shade: what of them throws shadows.
        still_actors, moving_actors: the annotated objects.
        crowd: the parts of the moving objects, each in its own frame; None where nothing moves.
        crowd_owner: int64, which moving object each of them belongs to.
        ego: the drive.
        light: sun and sky.
        seed: of the textures.
        origin: (x, y, yaw) of the scene in the map, which places the street frame in the world.
    """

    layout: Layout
    still: Parts
    tree: Hierarchy
    shade: SunGrid
    still_actors: tuple[Actor, ...]
    moving_actors: tuple[Actor, ...]
    crowd: Parts | None
    crowd_owner: NDArray[np.int64]
    ego: Path
    light: Light
    seed: int
    origin: tuple[float, float, float]

    @property
    def actors(self) -> tuple[Actor, ...]:
        """All annotated objects; instance k is ``actors[k - 1]``."""
        return self.still_actors + self.moving_actors

    @cached_property
    def looks(self) -> tuple[NDArray[Any], ...]:
        """What each part is at any time, the still parts and then the moving ones: ``Stage``'s kind to color."""
        parts = self.still if self.crowd is None else join([self.still, self.crowd])
        kind = np.append(parts.kind, (KIND["road"], KIND["nothing"])).astype(np.uint8)
        instance = np.append(parts.instance, (0, 0)).astype(np.uint16)
        return kind, instance, parts.material, parts.seed, parts.color

    def moving_at(self, t: float) -> Parts | None:
        """The moving parts at time ``t`` in seconds, None where nothing moves."""
        if self.crowd is None:
            return None
        pose = np.array([actor.path.pose(t) for actor in self.moving_actors])
        height = np.array([actor.z for actor in self.moving_actors])
        return place_each(self.crowd, self.crowd_owner, np.column_stack([pose[:, :2], height]), pose[:, 2])


def make_world(data_seed: int, scene: int, duration: float) -> World:
    """The scene with number ``scene`` of the data set with seed ``data_seed``, for a drive of ``duration`` seconds."""
    rng = np.random.default_rng((data_seed, scene, 1))
    kind = str(rng.choice(("drive", "turn", "stop"), p=(0.6, 0.2, 0.2)))
    cruise = float(rng.uniform(4.5, 10.5)) if kind == "drive" else float(rng.uniform(3.5, 6.0))
    stop_from = float(rng.uniform(0.2, 0.6)) * duration if kind == "stop" else np.inf
    speed = Speed(cruise, sway=float(rng.uniform(0, 1.2)), stop_from=stop_from)
    layout = plan(rng, speed.distance(duration))
    lane = -layout.main.lane(0)
    ego: Path = Straight(0.0, lane, 0.0, speed)
    if kind == "turn":
        ahead = [c for c in layout.crossings if c.center > 15]
        if ahead:
            corner = ahead[0].center - ahead[0].lane(0)
            ego = RightTurn(0.0, lane, corner - 8.0, 8.0, speed)
    still = still_parts(rng, layout)
    standing, moving = populate(rng, layout, ego, duration)
    placed = []
    for actor in standing:
        x, y, yaw = actor.path.pose(0.0)
        placed.append(actor.parts.placed(x, y, actor.z, yaw))
    parts = join(still + placed)
    origin = (float(rng.uniform(300, 900)), float(rng.uniform(300, 900)), float(rng.uniform(-np.pi, np.pi)))
    light = _light(rng)
    tree = build_hierarchy(parts)
    # Slabs a kerb high lie in every cell and shade next to nothing.
    flat = (parts.kind == KIND["sidewalk"]) | (parts.kind == KIND["terrain"])
    shade = sun_grid(tree.solids, light.to_sun, flat)
    crowd = join([actor.parts for actor in moving]) if moving else None
    owner = np.repeat(np.arange(len(moving)), [len(actor.parts) for actor in moving])
    seed = int(rng.integers(1 << 30))
    return World(layout, parts, tree, shade, standing, moving, crowd, owner, ego, light, seed, origin)


def _light(rng: np.random.Generator) -> Light:
    azimuth, height = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.45, 1.1))
    to_sun = (
        float(np.cos(azimuth) * np.cos(height)),
        float(np.sin(azimuth) * np.cos(height)),
        float(np.sin(height)),
    )
    clouds = float(rng.choice((0.0, 1.0), p=(0.35, 0.65)) * rng.uniform(0.2, 0.75))
    warm = float(rng.uniform(0.80, 0.95)) * (0.9 + 0.1 * height)
    strength = 2.9 * (1 - 0.45 * clouds)
    fill = 0.50 + 0.25 * clouds
    return Light(
        to_sun,
        (strength, strength * warm**0.5, strength * warm),
        (fill * 0.84, fill * 0.94, fill * 1.10),
        float(rng.uniform(0.85, 1.15)),
        clouds,
        float(rng.uniform(0.0003, 0.0016)),
    )
