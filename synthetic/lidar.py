"""The LiDAR: one ray for each beam and firing, with range noise, drop-outs and intensity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .kinds import KIND
from .parts import MATERIALS
from .raycast import DEPTH, surface
from .stage import Stage, first_hit

# Reflectance at 905 nm relative to a white wall: (base, share of the visible brightness).
REFLECTANCE = {
    "asphalt": (0.12, 0.0),
    "paving": (0.10, 0.45),
    "grass": (0.42, 0.5),
    "facade": (0.10, 0.6),
    "leaf": (0.45, 0.4),
    "bark": (0.25, 0.3),
    "paint": (0.06, 0.5),
    "glass": (0.03, 0.0),
    "rubber": (0.04, 0.0),
    "cloth": (0.15, 0.6),
    "skin": (0.45, 0.0),
    "cone": (0.7, 0.3),
    "barrier": (0.6, 0.4),
    "metal": (0.15, 0.4),
    "light": (0.9, 0.3),
    "concrete": (0.12, 0.6),
    "roof": (0.10, 0.5),
    "coach": (0.10, 0.5),
    "cargo": (0.15, 0.5),
    "plate": (1.6, 0.0),
}
_BASE = np.array([REFLECTANCE[m][0] for m in MATERIALS])
_SHARE = np.array([REFLECTANCE[m][1] for m in MATERIALS])


@dataclass(frozen=True)
class LidarModel:
    """What the receiver does.

    Attributes:
        range_noise: standard deviation of a range, metres.
        max_range: metres.
        sensitivity: a return is lost half the time where reflectance x cos(incidence) / range^2 equals this, 1/m^2.
        dropout: share of rays lost for no reason.
        gain, gamma: intensity = 255 (gain x power)^gamma, power the reflectance of a white wall that is hit
            straight on being 1.
        speckle: standard deviation of the logarithm of the power, from point to point.
        hull: the ego vehicle's roof in the ego frame: x from, x to, half width, height; metres.
    """

    range_noise: float = 0.015
    max_range: float = 105.0
    sensitivity: float = 1.0e-5
    dropout: float = 0.01
    gain: float = 0.36
    gamma: float = 1.0
    speckle: float = 0.55
    hull: tuple[float, float, float, float] = (0.224, 1.664, 0.51, 1.505)


@dataclass(frozen=True)
class Sweep:
    """One turn of the LiDAR.

    Attributes:
        distance: float64 [N], metres; 0 where nothing came back.
        intensity: float32 [N], 0..255.
        kind: uint8 [N], index into ``kinds.KINDS``; 0 where nothing came back.
        part: int64 [N], the part that was hit, -2 the road, -1 nothing or the ego vehicle.
    """

    distance: NDArray[np.float64]
    intensity: NDArray[np.float32]
    kind: NDArray[np.uint8]
    part: NDArray[np.int64]


@compiled
def _trace(
    still: Any,
    moving: Any,
    origin: NDArray[Any],
    direction: NDArray[Any],
    limit: float,
    distance: NDArray[Any],
    part: NDArray[Any],
    cosine: NDArray[Any],
) -> None:
    count = len(still[0])
    stack, entry = np.empty(DEPTH, np.int64), np.empty(DEPTH)
    for k in range(len(direction)):
        dx, dy, dz = direction[k, 0], direction[k, 1], direction[k, 2]
        t, found = first_hit(still, moving, origin[0], origin[1], origin[2], dx, dy, dz, limit, stack, entry)
        distance[k] = t
        part[k] = found
        if found == -2:
            cosine[k] = -dz
        elif found >= 0:
            x, y, z = origin[0] + t * dx, origin[1] + t * dy, origin[2] + t * dz
            hit = surface(still[0], found, x, y, z) if found < count else surface(moving[0], found - count, x, y, z)
            cosine[k] = abs(hit[0] * dx + hit[1] * dy + hit[2] * dz)


def trace(
    stage: Stage, origin: NDArray[np.float64], direction: NDArray[np.float64], limit: float
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Exact first hits: distance [N] (``limit`` for none), part [N] (-2 road, -1 none), cosine of incidence [N]."""
    count = len(direction)
    distance, part, cosine = np.empty(count), np.empty(count, np.int64), np.ones(count)
    _trace(stage.still.arrays, stage.moving.arrays, origin, direction, limit, distance, part, cosine)
    return distance, part, cosine


def scan(
    stage: Stage,
    model: LidarModel,
    rng: np.random.Generator,
    *,
    lidar_to_street: NDArray[np.float64],
    lidar_to_ego: NDArray[np.float64],
    directions: NDArray[np.float64],
) -> Sweep:
    """One turn at one moment (the points are given at the sweep's time, as de-skewed clouds are).

    Args:
        directions: unit vectors in the LiDAR frame, float64 [N, 3].
    """
    count = len(directions)
    origin = np.ascontiguousarray(lidar_to_street[:3, 3])
    direction = directions @ lidar_to_street[:3, :3].T
    exact, part, cosine = trace(stage, origin, direction, model.max_range)
    kind = stage.kind[part]
    reflectance = np.full(count, _BASE[0])
    real = part >= 0
    brightness = stage.color[part[real]].mean(axis=1)
    material = stage.material[part[real]]
    reflectance[real] = _BASE[material] + _SHARE[material] * brightness
    power = reflectance * (0.25 + 0.75 * cosine)
    signal = reflectance * cosine / np.maximum(exact, 1.0) ** 2
    chance = (signal / (signal + model.sensitivity)) * (1 - model.dropout)
    lost = (part == -1) | (rng.random(count) > chance)
    distance = exact + rng.normal(0, model.range_noise, count)
    roof = _roof(model, lidar_to_ego, directions)
    on_roof = roof < exact
    distance = np.where(on_roof, roof + 0.3 * model.range_noise * rng.normal(size=count), distance)
    kind = np.where(on_roof, np.uint8(KIND["ego"]), kind)
    part = np.where(on_roof, -1, part)
    lost &= ~on_roof
    power *= np.exp(model.speckle * rng.normal(size=count))
    intensity = np.clip(255 * (model.gain * power) ** model.gamma, 0, 255)
    intensity = np.floor(np.where(on_roof, rng.integers(1, 50, count), intensity))
    intensity[lost] = np.floor(rng.exponential(9.0, int(lost.sum())))
    return Sweep(
        np.where(lost, 0.0, distance),
        np.clip(intensity, 0, 255).astype(np.float32),
        np.where(lost, np.uint8(0), kind),
        np.where(lost, -1, part),
    )


def _roof(model: LidarModel, lidar_to_ego: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance to the ego vehicle's flat roof along each ray, infinite where it is missed."""
    x0, x1, half, top = model.hull
    origin = lidar_to_ego[:3, 3]
    ray = directions @ lidar_to_ego[:3, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (top - origin[2]) / ray[:, 2]
        x, y = origin[0] + t * ray[:, 0], origin[1] + t * ray[:, 1]
    hit = (ray[:, 2] < 0) & (x > x0) & (x < x1) & (np.abs(y) < half)
    return np.where(hit, t, np.inf)
