"""What stands along a street: trees, hedges, poles, signs, cones, barriers, houses."""

from __future__ import annotations

import colorsys

import numpy as np

from .kinds import KIND
from .parts import BOX, ELLIPSOID, FRUSTUM, Builder, Parts, blobs, join

WALL_COLORS = (
    (0.60, 0.56, 0.48),
    (0.42, 0.40, 0.37),
    (0.68, 0.65, 0.60),
    (0.45, 0.24, 0.16),
    (0.50, 0.33, 0.22),
    (0.30, 0.33, 0.37),
    (0.62, 0.52, 0.36),
    (0.36, 0.38, 0.40),
)


def tree(rng: np.random.Generator) -> Parts:
    """A street tree: a trunk, branches and a crown of leaf clusters with gaps between them."""
    b = Builder()
    height = float(rng.uniform(4.5, 10.0))
    clear = float(rng.uniform(0.28, 0.4)) * height
    girth = 0.045 * height
    bark = (0.16, 0.12, 0.085)
    seed = int(rng.integers(1 << 30))
    b.add(
        FRUSTUM,
        KIND["trunk"],
        "bark",
        (0, 0, (clear + 1) / 2),
        (girth, girth, clear + 1),
        bark,
        taper=(0.4, 0, 0),
        seed=seed,
    )
    for _ in range(3):
        yaw, lean = float(rng.uniform(0, 6.283)), float(rng.uniform(0.4, 0.8))
        b.add(
            FRUSTUM,
            KIND["trunk"],
            "bark",
            (np.cos(yaw) * 0.6, np.sin(yaw) * 0.6, clear + 0.9),
            (0.4 * girth, 0.4 * girth, 1.8),
            bark,
            yaw=yaw,
            pitch=lean,
            seed=seed,
        )
    radius = float(rng.uniform(0.24, 0.36)) * height
    crown = (height - clear) / 2
    # A few boughs, each a cluster of leaf balls: gaps between the boughs, ragged edges.
    boughs = int(5 + 2 * radius)
    direction = rng.normal(size=(boughs, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    spread = np.array([radius, radius, crown])
    bough = direction * rng.uniform(0.30, 0.66, (boughs, 1)) * spread
    each = 9
    offset = np.clip(rng.normal(size=(boughs, each, 3)), -1.4, 1.4) * 0.2 * spread
    center = (bough[:, None] + offset).reshape(-1, 3)
    center[:, 2] = np.clip(center[:, 2], -0.85 * crown, 0.95 * crown)
    center += np.array([0, 0, clear + crown])
    size = rng.uniform(0.26, 0.62, (len(center), 1)) * radius * np.array([1.0, 1.0, 0.72])
    return join([b.parts(), _leaves(rng, center, size, hue=(0.20, 0.33))])


def bush(rng: np.random.Generator, length: float, depth: float, height: float) -> Parts:
    """A hedge or shrubbery that fills length x depth x height metres, centred on the origin along x."""
    count = max(6, int(length * depth * 6))
    center = np.column_stack(
        [
            rng.uniform(-length / 2, length / 2, count),
            rng.uniform(-depth / 2, depth / 2, count) * 0.6,
            rng.uniform(0.2, 0.75, count) * height,
        ]
    )
    size = np.column_stack([rng.uniform(0.4, 0.9, count), rng.uniform(0.4, 0.8, count) * depth, np.full(count, 0.0)])
    size[:, 2] = rng.uniform(0.5, 1.0, count) * height * 0.6
    return _leaves(rng, center, size, hue=(0.22, 0.36))


def _leaves(rng: np.random.Generator, center: np.ndarray, size: np.ndarray, hue: tuple[float, float]) -> Parts:
    count = len(center)
    base = colorsys.hsv_to_rgb(float(rng.uniform(*hue)), float(rng.uniform(0.5, 0.8)), float(rng.uniform(0.10, 0.24)))
    color = np.clip(np.array(base) * rng.uniform(0.75, 1.3, (count, 1)), 0, 1)
    return blobs(KIND["crown"], "leaf", center, size, color, rng.integers(1, 1 << 30, count))


def lamp(rng: np.random.Generator) -> Parts:
    """A street lamp whose arm reaches towards +x."""
    b = Builder()
    height = float(rng.uniform(6.0, 8.5))
    steel = (0.30, 0.31, 0.32)
    b.add(FRUSTUM, KIND["pole"], "metal", (0, 0, height / 2), (0.18, 0.18, height), steel, taper=(0.4, 0, 0))
    b.add(FRUSTUM, KIND["pole"], "metal", (0.9, 0, height), (0.09, 0.09, 1.9), steel, axis="x")
    b.add(BOX, KIND["pole"], "metal", (1.9, 0, height), (0.6, 0.25, 0.1), steel)
    return b.parts()


def sign(rng: np.random.Generator) -> Parts:
    """A traffic sign that faces -x."""
    b = Builder()
    b.add(FRUSTUM, KIND["pole"], "metal", (0, 0, 1.25), (0.07, 0.07, 2.5), (0.4, 0.4, 0.4))
    color = ((0.6, 0.04, 0.04), (0.04, 0.12, 0.5), (0.75, 0.75, 0.72), (0.7, 0.5, 0.03))[rng.integers(4)]
    if rng.random() < 0.6:
        b.add(FRUSTUM, KIND["sign"], "light", (-0.05, 0, 2.25), (0.62, 0.62, 0.04), color, axis="x")
        b.add(FRUSTUM, KIND["sign"], "light", (-0.075, 0, 2.25), (0.42, 0.42, 0.02), (0.8, 0.8, 0.8), axis="x")
    else:
        b.add(BOX, KIND["sign"], "light", (-0.05, 0, 2.2), (0.04, 0.6, 0.75), color)
    return b.parts()


def signal(rng: np.random.Generator) -> Parts:
    """A traffic light that faces -x, its arm over the road towards +y."""
    b = Builder()
    dark = (0.05, 0.05, 0.05)
    b.add(FRUSTUM, KIND["pole"], "metal", (0, 0, 2.9), (0.2, 0.2, 5.8), (0.25, 0.26, 0.25))
    b.add(FRUSTUM, KIND["pole"], "metal", (0, 2.2, 5.7), (0.11, 0.11, 4.4), (0.25, 0.26, 0.25), axis="y")
    lit = int(rng.integers(3))
    for y, z in ((4.2, 5.45), (0.0, 3.1)):
        b.add(BOX, KIND["sign"], "metal", (-0.15, y, z), (0.22, 0.36, 0.95), dark)
        for k, color in enumerate(((0.9, 0.05, 0.03), (0.9, 0.5, 0.02), (0.03, 0.8, 0.3))):
            shown = color if k == lit else tuple(0.12 * c for c in color)
            b.add(ELLIPSOID, KIND["sign"], "light", (-0.26, y, z + 0.3 - 0.3 * k), (0.08, 0.22, 0.22), shown)
    return b.parts()


def cone() -> tuple[Parts, tuple[float, float, float]]:
    """A traffic cone; parts and (length, width, height)."""
    b = Builder()
    b.add(BOX, KIND["cone"], "rubber", (0, 0, 0.03), (0.40, 0.40, 0.06), (0.5, 0.12, 0.02))
    b.add(FRUSTUM, KIND["cone"], "cone", (0, 0, 0.42), (0.30, 0.30, 0.72), (0.85, 0.20, 0.02), taper=(0.8, 0, 0))
    return b.parts(), (0.42, 0.42, 0.79)


def barrier(style: int) -> tuple[Parts, tuple[float, float, float]]:
    """One element of a line of barriers along x: plastic (0, 1), concrete (2) or a striped board (3)."""
    b = Builder()
    kind = KIND["barrier"]
    if style == 3:
        for z in (0.55, 0.9):
            b.add(BOX, kind, "barrier", (0, 0, z), (1.9, 0.06, 0.2), (0.75, 0.72, 0.70))
        for x in (-0.8, 0.8):
            b.add(BOX, kind, "metal", (x, 0, 0.5), (0.08, 0.4, 1.0), (0.4, 0.4, 0.4), taper=(0.0, 0.8, 0.0))
        return b.parts(), (1.92, 0.42, 1.02)
    color = ((0.75, 0.12, 0.06), (0.72, 0.70, 0.68), (0.45, 0.44, 0.42))[style]
    material = "concrete" if style == 2 else "paint"
    b.add(BOX, kind, material, (0, 0, 0.19), (1.95, 0.56, 0.38), color, taper=(0.0, 0.4, 0.0))
    b.add(BOX, kind, material, (0, 0, 0.68), (1.95, 0.34, 0.62), color, taper=(0.02, 0.45, 0.0))
    return b.parts(), (1.97, 0.58, 1.0)


def building(rng: np.random.Generator, length: float, depth: float, height: float) -> Parts:
    """A house of length x depth x height metres whose front is at y = 0 and faces -y; it fills y in 0..depth."""
    b = Builder()
    kind = KIND["building"]
    wall = np.array(WALL_COLORS[rng.integers(len(WALL_COLORS))]) * rng.uniform(0.8, 1.15)
    color = tuple(float(c) for c in np.clip(wall, 0, 0.9))
    seed = int(rng.integers(1, 1 << 30))
    middle = depth / 2
    b.add(BOX, kind, "facade", (0, middle, height / 2), (length, depth, height), color, seed=seed)
    dark = tuple(0.6 * c for c in color)
    if height < 9 and rng.random() < 0.75:
        roof = (0.30, 0.12, 0.08) if rng.random() < 0.6 else (0.16, 0.15, 0.15)
        b.add(
            BOX,
            kind,
            "roof",
            (0, middle, height + 1.4),
            (length + 0.8, depth + 0.8, 2.8),
            roof,
            taper=(0.08, 0.97, 0.0),
            seed=seed,
        )
        b.add(BOX, kind, "roof", (0.25 * length, middle, height + 2.4), (0.7, 0.7, 1.8), (0.3, 0.16, 0.12))
    else:
        b.add(BOX, kind, "concrete", (0, middle, height + 0.3), (length + 0.5, depth + 0.5, 0.6), dark)
        b.add(BOX, kind, "concrete", (0.1 * length, middle, height + 1.6), (0.3 * length, 0.4 * depth, 2.2), dark)
    style = rng.random()
    if style < 0.35:  # pillars in front of the ground floor
        for x in np.arange(-length / 2 + 0.5, length / 2, 4.0):
            b.add(BOX, kind, "concrete", (float(x), -0.25, min(height, 9) / 2), (0.5, 0.5, min(height, 9)), dark)
    elif style < 0.65:  # a canopy over the door
        b.add(
            BOX,
            kind,
            "roof",
            (float(rng.uniform(-0.3, 0.3)) * length, -0.7, 3.0),
            (3.5, 1.4, 0.25),
            (0.3, 0.1, 0.08),
            seed=seed,
        )
        b.add(BOX, kind, "concrete", (0, -0.08, 0.35), (length, 0.16, 0.7), dark)
    elif height > 9:  # balconies
        for z in np.arange(4.2, height - 2, 3.1):
            for x in np.arange(-length / 2 + 2.5, length / 2 - 1.5, 6.5):
                b.add(BOX, kind, "concrete", (float(x), -0.6, float(z)), (2.6, 1.2, 1.0), dark)
    return b.parts()
