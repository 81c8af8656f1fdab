"""Cameras: an image and the exact class and instance of every pixel, by ray casting with sun shadows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .kinds import KIND, PROMPT_OF_KIND
from .parts import MATERIAL, Parts, join
from .raycast import FAR, Hierarchy, blocked, closest, intersect
from .texture import albedo, noise3, sky
from .world import World

ROAD = KIND["road"]
ASPHALT = MATERIAL["asphalt"]
GROUND = -2
"""The index that stands for the road plane z = 0."""


@dataclass(frozen=True)
class Stage:
    """The world at one moment, as the compiled functions take it.

    Attributes:
        still, moving: search trees.
        kind, material, seed, instance: int64 [P], of the still parts and then the moving ones.
        color: float64 [P, 3].
    """

    still: Hierarchy
    moving: Hierarchy
    kind: NDArray[np.int64]
    material: NDArray[np.int64]
    seed: NDArray[np.int64]
    instance: NDArray[np.int64]
    is_moving: NDArray[np.int64]
    color: NDArray[np.float64]


_EMPTY = Hierarchy(np.zeros((0, 20)), np.zeros((1, 6)), np.zeros((1, 2), np.int64), np.zeros(0, np.int64))


def stage_at(world: World, t: float) -> Stage:
    """The world at time ``t`` in seconds."""
    from .raycast import build_hierarchy

    moving = world.moving_at(t)
    everything: Parts = world.still if moving is None else join([world.still, moving])
    return Stage(
        world.tree,
        _EMPTY if moving is None else build_hierarchy(moving),
        everything.kind,
        everything.material,
        everything.seed,
        everything.instance,
        everything.moving,
        everything.color,
    )


def light_row(world: World) -> NDArray[np.float64]:
    """Sun and sky as float64 [12]: direction 0-2, sun 3-5, sky 6-8, exposure 9, clouds 10, haze 11."""
    light = world.light
    return np.array([*light.to_sun, *light.sun, *light.sky, light.exposure, light.clouds, light.haze], np.float64)


@compiled
def first_hit(
    still: Any, moving: Any, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float, limit: float
) -> Any:
    """The first surface along a ray: (t, index); index of the joined parts, -2 the road, -1 the sky."""
    t, found = closest(still[0], still[1], still[2], still[3], ox, oy, oz, dx, dy, dz, limit)
    s, other = closest(moving[0], moving[1], moving[2], moving[3], ox, oy, oz, dx, dy, dz, t)
    if other >= 0:
        t, found = s, other + len(still[0])
    if dz < 0:
        s = -oz / dz
        if s < t:
            t, found = s, -2
    return t, found


@compiled
def _render(
    still: Any,
    moving: Any,
    kind: NDArray[Any],
    material: NDArray[Any],
    seed: NDArray[Any],
    instance: NDArray[Any],
    color: NDArray[Any],
    streets: NDArray[Any],
    light: NDArray[Any],
    world_seed: int,
    origin: NDArray[Any],
    turn: NDArray[Any],
    intrinsic: NDArray[Any],
    curve: NDArray[Any],
    grain: float,
    gain: float,
    noise_seed: int,
    image: NDArray[Any],
    kinds: NDArray[Any],
    instances: NDArray[Any],
    row0: int,
    row1: int,
) -> None:
    ox, oy, oz = origin[0], origin[1], origin[2]
    sx, sy, sz = light[0], light[1], light[2]
    height, width = kinds.shape
    steps = len(curve) - 1
    tint = np.empty(3)
    for v in range(row0, row1):
        state = (noise_seed * 2654435761 + v * 40503 + 12345) & 0xFFFFFFFF
        for u in range(width):
            cx = (u - intrinsic[0, 2]) / intrinsic[0, 0]
            cy = (v - intrinsic[1, 2]) / intrinsic[1, 1]
            norm = np.sqrt(cx * cx + cy * cy + 1.0)
            dx = (turn[0, 0] * cx + turn[0, 1] * cy + turn[0, 2]) / norm
            dy = (turn[1, 0] * cx + turn[1, 1] * cy + turn[1, 2]) / norm
            dz = (turn[2, 0] * cx + turn[2, 1] * cy + turn[2, 2]) / norm
            t, found = first_hit(still, moving, ox, oy, oz, dx, dy, dz, FAR)
            sky_r, sky_g, sky_b = sky(dx, dy, dz, light, world_seed)
            if found == -1:
                r, g, b = sky_r, sky_g, sky_b
                kinds[v, u] = 0
                instances[v, u] = 0
            else:
                x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
                footprint = t * norm / intrinsic[0, 0]
                if found == -2:
                    nx, ny, nz = 0.0, 0.0, 1.0
                    r, g, b, mirror, rough = albedo(
                        ASPHALT, tint, world_seed, (x, y, z), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0), streets, footprint
                    )
                    kinds[v, u] = ROAD
                    instances[v, u] = 0
                    fabric = ASPHALT
                else:
                    count = len(still[0])
                    solid = still[0][found] if found < count else moving[0][found - count]
                    _, nx, ny, nz, lx, ly, lz = intersect(solid, ox, oy, oz, dx, dy, dz)
                    size = np.sqrt(nx * nx + ny * ny + nz * nz)
                    nx, ny, nz = nx / size, ny / size, nz / size
                    fabric = material[found]
                    r, g, b, mirror, rough = albedo(
                        fabric,
                        color[found],
                        seed[found],
                        (x, y, z),
                        (lx, ly, lz),
                        (solid[12], solid[13], solid[14]),
                        streets,
                        footprint,
                    )
                    kinds[v, u] = kind[found]
                    instances[v, u] = instance[found]
                if rough > 0:
                    nx += rough * (noise3(x * 6, y * 6, z * 6, 1) - 0.5) * 1.6
                    ny += rough * (noise3(x * 6, y * 6, z * 6, 2) - 0.5) * 1.6
                    nz += rough * (noise3(x * 6, y * 6, z * 6, 3) - 0.5) * 1.6
                    size = np.sqrt(nx * nx + ny * ny + nz * nz)
                    nx, ny, nz = nx / size, ny / size, nz / size
                facing = nx * sx + ny * sy + nz * sz
                lit = 0.0
                if facing > 0:
                    px, py, pz = x + 2e-3 * nx, y + 2e-3 * ny, z + 2e-3 * nz
                    if not (
                        blocked(still[0], still[1], still[2], still[3], px, py, pz, sx, sy, sz, 120.0)
                        or blocked(moving[0], moving[1], moving[2], moving[3], px, py, pz, sx, sy, sz, 60.0)
                    ):
                        lit = facing
                ambient = 0.55 + 0.45 * nz
                bounce = 0.16 * (1 - nz)
                if z < 0.6:  # close to the ground little sky is left between things
                    ambient *= 0.80 + 0.33 * max(z, 0.0)
                er = light[6] * ambient + bounce + light[3] * lit
                eg = light[7] * ambient + bounce + light[4] * lit
                eb = light[8] * ambient + 0.93 * bounce + light[5] * lit
                r, g, b = r * er, g * eg, b * eb
                if mirror > 0:
                    back = 2 * (dx * nx + dy * ny + dz * nz)
                    mx, my, mz = dx - back * nx, dy - back * ny, dz - back * nz
                    glance = 1.0 + 0.5 * back
                    fresnel = mirror * (0.25 + 0.75 * max(glance, 0.0) ** 3)
                    if mz > 0.0:
                        ar, ag, ab = sky(mx, my, mz, light, world_seed)
                        shine = max(mx * sx + my * sy + mz * sz, 0.0) ** 60 * 6.0 * (lit > 0)
                        ar, ag, ab = ar + shine, ag + shine, ab + shine
                    else:
                        ar, ag, ab = 0.16, 0.16, 0.16
                    r, g, b = r + fresnel * ar, g + fresnel * ag, b + fresnel * ab
                veil = 1.0 - np.exp(-light[11] * t)
                r, g, b = r + veil * (0.85 - r), g + veil * (0.90 - g), b + veil * (0.97 - b)
            du, dv = (u - 0.5 * width) / width, (v - 0.5 * height) / width
            shade = gain * (1.0 - 0.55 * (du * du + dv * dv))
            for c in range(3):
                value = r if c == 0 else (g if c == 1 else b)
                # Two steps of a linear congruential generator: triangular noise of the sensor.
                state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
                first = state
                state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
                speck = (first + state) / 4294967296.0 - 1.0
                place = value * shade * steps / 4.0
                level = curve[int(min(max(place, 0.0), steps))] + grain * speck
                image[v, u, c] = np.uint8(min(max(level, 0.0), 255.0))


def tone_curve() -> NDArray[np.float32]:
    """Linear radiance 0..4 in 4096 steps to 8-bit values: a soft shoulder, then the sRGB exponent."""
    x = np.linspace(0, 4, 4097)
    return (255 * np.clip(1 - np.exp(-1.35 * x), 0, 1) ** (1 / 2.2) + 0.5).astype(np.float32)


@dataclass(frozen=True)
class Picture:
    """What a camera sees: ``image`` uint8 [H, W, 3]; ``kind`` uint8 and ``instance`` uint16 [H, W]."""

    image: NDArray[np.uint8]
    kind: NDArray[np.uint8]
    instance: NDArray[np.uint16]

    @property
    def prompt(self) -> NDArray[np.uint8]:
        """The prompt's number of each pixel, uint8 [H, W], 0 = none."""
        return PROMPT_OF_KIND[self.kind]


def take_picture(
    world: World,
    stage: Stage,
    camera_to_street: NDArray[np.float64],
    intrinsic: NDArray[np.float64],
    width: int,
    height: int,
    *,
    gain: float,
    grain: float,
    noise_seed: int,
) -> Picture:
    """Render one camera.

    Args:
        camera_to_street: float64 [4, 4]; the camera looks along its z, x to the right, y down.
        intrinsic: float64 [3, 3] for this size.
        gain: of this camera, on top of the scene's exposure.
        grain: of the sensor noise, in 8-bit steps.
    """
    image = np.empty((height, width, 3), np.uint8)
    kinds = np.empty((height, width), np.uint8)
    instances = np.empty((height, width), np.uint16)
    light = light_row(world)
    _render(
        stage.still.arrays,
        stage.moving.arrays,
        stage.kind,
        stage.material,
        stage.seed,
        stage.instance,
        stage.color,
        world.layout.table(),
        light,
        world.seed,
        np.ascontiguousarray(camera_to_street[:3, 3]),
        np.ascontiguousarray(camera_to_street[:3, :3]),
        intrinsic,
        tone_curve(),
        grain,
        gain * world.light.exposure,
        noise_seed,
        image,
        kinds,
        instances,
        0,
        height,
    )
    return Picture(image, kinds, instances)
