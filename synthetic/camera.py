"""Cameras: an image and the exact class and instance of every pixel, by ray casting with sun shadows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .kinds import PROMPT_OF_KIND
from .parts import MATERIAL
from .raycast import surface
from .stage import Stage
from .sun import shaded
from .texture import albedo, noise3, sky
from .tiles import look
from .world import World

ASPHALT = MATERIAL["asphalt"]
TOP = 4.0
"""Radiance at which the tone curve ends."""


def light_row(world: World) -> NDArray[np.float64]:
    """Sun and sky as float64 [12]: direction 0-2, sun 3-5, sky 6-8, exposure 9, clouds 10, haze 11."""
    light = world.light
    return np.array([*light.to_sun, *light.sun, *light.sky, light.exposure, light.clouds, light.haze], np.float64)


@compiled
def _shade(
    still: Any,
    moving: Any,
    still_shade: Any,
    moving_shade: Any,
    material: NDArray[Any],
    seed: NDArray[Any],
    color: NDArray[Any],
    streets: NDArray[Any],
    light: NDArray[Any],
    world_seed: int,
    origin: NDArray[Any],
    turn: NDArray[Any],
    lens: NDArray[Any],
    distance: NDArray[Any],
    part: NDArray[Any],
    curve: NDArray[Any],
    grain: float,
    gain: float,
    noise_seed: int,
    image: NDArray[Any],
) -> None:
    sx, sy, sz = light[0], light[1], light[2]
    height, width = part.shape
    ours = len(still[0])
    steps = len(curve) - 1
    tint = np.zeros(3)
    for v in range(height):
        state = (noise_seed * 2654435761 + v * 40503 + 12345) & 0xFFFFFFFF
        for u in range(width):
            cx, cy = (u - lens[0, 2]) / lens[0, 0], (v - lens[1, 2]) / lens[1, 1]
            norm = np.sqrt(cx * cx + cy * cy + 1.0)
            dx = (turn[0, 0] * cx + turn[0, 1] * cy + turn[0, 2]) / norm
            dy = (turn[1, 0] * cx + turn[1, 1] * cy + turn[1, 2]) / norm
            dz = (turn[2, 0] * cx + turn[2, 1] * cy + turn[2, 2]) / norm
            found = part[v, u]
            t = distance[v, u]
            if found == -1:
                r, g, b = sky(dx, dy, dz, light, world_seed)
            else:
                x, y, z = origin[0] + t * dx, origin[1] + t * dy, origin[2] + t * dz
                footprint = t * norm / lens[0, 0]
                if found == -2:
                    nx, ny, nz = 0.0, 0.0, 1.0
                    r, g, b, mirror, rough = albedo(
                        ASPHALT, tint, world_seed, (x, y, z), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0), streets, footprint
                    )
                else:
                    if found < ours:
                        nx, ny, nz, lx, ly, lz = surface(still[0], found, x, y, z)
                        half = (still[0][found, 12], still[0][found, 13], still[0][found, 14])
                    else:
                        row = found - ours
                        nx, ny, nz, lx, ly, lz = surface(moving[0], row, x, y, z)
                        half = (moving[0][row, 12], moving[0][row, 13], moving[0][row, 14])
                    r, g, b, mirror, rough = albedo(
                        material[found], color[found], seed[found], (x, y, z), (lx, ly, lz), half, streets, footprint
                    )
                px, py, pz = x + 2e-3 * nx, y + 2e-3 * ny, z + 2e-3 * nz
                if rough > 0:
                    bump = noise3(x * 6, y * 6, z * 6, 1)
                    nx += rough * (bump - 0.5) * 1.6
                    ny += rough * ((3.7 * bump) % 1.0 - 0.5) * 1.2
                    nz += rough * ((7.3 * bump) % 1.0 - 0.5) * 1.2
                    size = np.sqrt(nx * nx + ny * ny + nz * nz)
                    nx, ny, nz = nx / size, ny / size, nz / size
                facing = nx * sx + ny * sy + nz * sz
                lit = 0.0
                if facing > 0 and not shaded(still_shade, px, py, pz) and not shaded(moving_shade, px, py, pz):
                    lit = facing
                ambient = 0.55 + 0.45 * nz
                bounce = 0.12 * (1 - nz)
                if z < 0.6:  # close to the ground little sky is left between things
                    ambient *= 0.80 + 0.33 * max(z, 0.0)
                r *= light[6] * ambient + bounce + light[3] * lit
                g *= light[7] * ambient + bounce + light[4] * lit
                b *= light[8] * ambient + 0.93 * bounce + light[5] * lit
                if mirror > 0:
                    back = dx * nx + dy * ny + dz * nz
                    mx, my, mz = dx - 2 * back * nx, dy - 2 * back * ny, dz - 2 * back * nz
                    glance = max(1.0 + back, 0.0)
                    fresnel = mirror * (0.25 + 0.75 * glance * glance * glance)
                    if mz > 0.0:
                        ar, ag, ab = sky(mx, my, mz, light, world_seed)
                        if lit > 0:
                            shine = 6.0 * max(mx * sx + my * sy + mz * sz, 0.0) ** 60
                            ar, ag, ab = ar + shine, ag + shine, ab + shine
                    else:
                        ar, ag, ab = 0.16, 0.16, 0.16
                    r, g, b = r + fresnel * ar, g + fresnel * ag, b + fresnel * ab
                veil = 1.0 - np.exp(-light[11] * t)
                r, g, b = r + veil * (0.70 - r), g + veil * (0.78 - g), b + veil * (0.88 - b)
            du, dv = (u - 0.5 * width) / width, (v - 0.5 * height) / width
            shade = gain * (1.0 - 0.55 * (du * du + dv * dv)) * steps / TOP
            # A linear congruential generator's upper bits, two draws a channel: triangular noise of the sensor.
            state = (state * 6364136223846793005 + 1442695040888963407) & 0x7FFFFFFFFFFFFFFF
            draws = state >> 15
            for c in range(3):
                value = r if c == 0 else (g if c == 1 else b)
                speck = ((draws & 255) + ((draws >> 8) & 255)) / 255.0 - 1.0
                draws >>= 16
                level = curve[int(min(max(value * shade, 0.0), steps))] + grain * speck
                image[v, u, c] = np.uint8(min(max(level, 0.0), 255.0))


@lru_cache(maxsize=1)
def tone_curve() -> NDArray[np.float32]:
    """Linear radiance 0..TOP in 4096 steps to 8-bit values: a shoulder, the display's exponent, contrast."""
    x = np.linspace(0, TOP, 4097)
    level = np.clip(1 - np.exp(-1.3 * x), 0, 1) ** (1 / 2.2)
    # A gentle S: blacks deepen, whites stay.
    level = level + 0.35 * level * (1 - level) * (2 * level - 1)
    return (255 * level + 0.5).astype(np.float32)


@dataclass(frozen=True)
class Picture:
    """What a camera sees.

    Attributes:
        image: uint8 [H, W, 3].
        kind: uint8 [H, W], index into ``kinds.KINDS``.
        instance: uint16 [H, W], 0 = none.
        distance: float64 [H, W], metres to the surface, 1e30 in the sky.
        part: int32 [H, W], the part, -2 the road, -1 the sky.
    """

    image: NDArray[np.uint8]
    kind: NDArray[np.uint8]
    instance: NDArray[np.uint16]
    distance: NDArray[np.float64]
    part: NDArray[np.int32]

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
    distance, part = look(stage.still, stage.moving, camera_to_street, intrinsic, width, height)
    image = np.empty((height, width, 3), np.uint8)
    _shade(
        stage.still.arrays,
        stage.moving.arrays,
        stage.shade[0].arrays,
        stage.shade[1].arrays,
        stage.material,
        stage.seed,
        stage.color,
        world.layout.table(),
        light_row(world),
        world.seed,
        np.ascontiguousarray(camera_to_street[:3, 3]),
        np.ascontiguousarray(camera_to_street[:3, :3]),
        intrinsic,
        distance,
        part,
        tone_curve(),
        grain,
        gain * world.light.exposure,
        noise_seed,
        image,
    )
    return Picture(image, stage.kind[part], stage.instance[part], distance, part)
