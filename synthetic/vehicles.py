"""Cars, trucks, buses and two-wheelers built of solids, x forward, standing on z = 0."""

from __future__ import annotations

import colorsys

import numpy as np

from .kinds import KIND
from .parts import BOX, ELLIPSOID, FRUSTUM, Builder, Parts
from .people import add_rider

GLASS = (0.05, 0.06, 0.08)
RUBBER = (0.03, 0.03, 0.03)
CHROME = (0.45, 0.46, 0.48)
WHITE_LIGHT = (0.95, 0.95, 0.9)
RED_LIGHT = (0.55, 0.03, 0.03)

# Most cars are white, grey, black or silver; the rest are what makes a street lively.
CAR_COLORS = (
    (0.85, 0.85, 0.84),
    (0.80, 0.81, 0.82),
    (0.45, 0.46, 0.48),
    (0.25, 0.26, 0.28),
    (0.04, 0.04, 0.05),
    (0.06, 0.06, 0.07),
    (0.50, 0.04, 0.04),
    (0.05, 0.10, 0.35),
    (0.08, 0.22, 0.45),
    (0.04, 0.20, 0.10),
    (0.60, 0.45, 0.05),
    (0.55, 0.50, 0.42),
)


def _wheels(b: Builder, kind: int, xs: tuple[float, ...], width: float, radius: float, thick: float) -> None:
    for x in xs:
        for side in (-1, 1):
            y = side * (width / 2 - thick / 2 + 0.012)
            b.add(FRUSTUM, kind, "rubber", (x, y, radius), (2 * radius, 2 * radius, thick), RUBBER, axis="y")
            b.add(
                FRUSTUM,
                kind,
                "metal",
                (x, side * (width / 2 + 0.008), radius),
                (1.15 * radius, 1.15 * radius, 0.02),
                CHROME,
                axis="y",
            )


def _spoked(b: Builder, kind: int, x: float, radius: float) -> None:
    """A bicycle's wheel: a tyre of straight pieces, and a few spokes."""
    pieces = 10
    for k in range(pieces):
        angle = 2 * np.pi * k / pieces
        place = (x + radius * np.cos(angle), 0, radius + 0.01 + radius * np.sin(angle))
        long = 2 * radius * np.sin(np.pi / pieces) + 0.03
        b.add(BOX, kind, "rubber", place, (0.05, 0.05, long), RUBBER, pitch=-angle)
    for k in range(3):
        b.add(BOX, kind, "metal", (x, 0, radius + 0.01), (0.015, 0.03, 2 * radius), CHROME, pitch=np.pi * k / 3 + 0.3)


def car(rng: np.random.Generator) -> tuple[Parts, tuple[float, float, float]]:
    """A hatchback, saloon, estate or van; returns its parts and (length, width, height) in metres."""
    kind = KIND["car"]
    b = Builder()
    style = rng.choice(4, p=(0.3, 0.35, 0.2, 0.15))
    length = float(rng.uniform(*((3.7, 4.2), (4.4, 4.9), (4.4, 4.9), (4.6, 5.2))[style]))
    width = float(rng.uniform(1.70, 1.92))
    height = float(rng.uniform(*((1.44, 1.55), (1.40, 1.50), (1.50, 1.75), (1.85, 2.05))[style]))
    color = CAR_COLORS[rng.integers(len(CAR_COLORS))]
    belt, floor = 0.58 * height, 0.20
    # Lower body: a sill box and a shoulder box that draws in towards the top.
    b.add(BOX, kind, "paint", (0, 0, (floor + 0.62 * belt) / 2), (length, width, 0.62 * belt - floor), color)
    b.add(
        BOX,
        kind,
        "paint",
        (0, 0, 0.81 * belt),
        (length, width, 0.38 * belt),
        color,
        taper=(0.06, 0.10, 0.0),
    )
    start, end, slope, shear = (
        (-0.47, 0.24, 0.26, -0.12),
        (-0.36, 0.24, 0.38, -0.04),
        (-0.48, 0.24, 0.20, -0.12),
        (-0.49, 0.34, 0.18, -0.12),
    )[style]
    cabin, middle = (end - start) * length, (start + end) / 2 * length
    b.add(
        BOX,
        kind,
        "glass",
        (middle, 0, (belt + height) / 2 - 0.02),
        (cabin, 0.90 * width, height - belt - 0.04),
        GLASS,
        taper=(slope, 0.18, shear),
    )
    roof = middle + shear * cabin / 2
    b.add(
        BOX,
        kind,
        "paint",
        (roof, 0, height - 0.03),
        (cabin * (1 - slope), 0.76 * width, 0.06),
        color,
        taper=(0.06, 0.08, 0.0),
    )
    for x in (middle + 0.02 * cabin, middle - 0.27 * cabin):  # pillars between the windows
        b.add(
            BOX,
            kind,
            "paint",
            (x + shear * cabin / 4, 0, (belt + height) / 2),
            (0.07, 0.905 * width, height - belt - 0.05),
            color,
            taper=(0.0, 0.18, shear),
        )
    _wheels(b, kind, (0.32 * length, -0.30 * length), width, 0.315, 0.21)
    for side in (-1, 1):
        y = side * 0.36 * width
        b.add(BOX, kind, "light", (length / 2 - 0.01, y, 0.66), (0.06, 0.26, 0.14), WHITE_LIGHT)
        b.add(BOX, kind, "light", (-length / 2 + 0.01, y, 0.74), (0.06, 0.22, 0.18), RED_LIGHT)
        b.add(
            ELLIPSOID, kind, "paint", (0.20 * length, side * (width / 2 + 0.04), belt + 0.06), (0.14, 0.2, 0.14), color
        )
    b.add(BOX, kind, "plate", (length / 2, 0, 0.42), (0.04, 0.5, 0.12), (0.8, 0.8, 0.75))
    b.add(BOX, kind, "plate", (-length / 2, 0, 0.5), (0.04, 0.5, 0.12), (0.8, 0.8, 0.75))
    return b.parts(), (length + 0.06, width + 0.1, height)


def truck(rng: np.random.Generator) -> tuple[Parts, tuple[float, float, float]]:
    """A delivery lorry with a box or an open bed; parts and (length, width, height)."""
    kind = KIND["truck"]
    b = Builder()
    length, width, height = float(rng.uniform(6.5, 9.5)), float(rng.uniform(2.2, 2.5)), float(rng.uniform(2.9, 3.6))
    paint = colorsys.hsv_to_rgb(float(rng.random()), float(rng.uniform(0.1, 0.8)), float(rng.uniform(0.3, 0.8)))
    cargo = colorsys.hsv_to_rgb(float(rng.random()), float(rng.uniform(0.0, 0.35)), float(rng.uniform(0.5, 0.85)))
    cab = 2.0
    front = length / 2
    b.add(BOX, kind, "metal", (0, 0, 0.7), (length - 0.3, 0.9 * width * 0.6, 0.25), (0.08, 0.08, 0.08))
    b.add(BOX, kind, "paint", (front - cab / 2, 0, 1.05), (cab, 0.95 * width, 1.1), paint)
    b.add(
        BOX,
        kind,
        "glass",
        (front - cab / 2 - 0.04, 0, 1.95),
        (cab - 0.12, 0.92 * width, 0.7),
        GLASS,
        taper=(0.1, 0.05, -0.1),
    )
    b.add(
        BOX,
        kind,
        "paint",
        (front - cab / 2 - 0.1, 0, 2.4),
        (cab - 0.3, 0.86 * width, 0.22),
        paint,
        taper=(0.2, 0.1, 0.0),
    )
    bed = length - cab - 0.15
    if rng.random() < 0.7:
        b.add(BOX, kind, "cargo", (-front + bed / 2, 0, (0.95 + height) / 2), (bed, width, height - 0.95), cargo)
    else:
        b.add(BOX, kind, "cargo", (-front + bed / 2, 0, 1.3), (bed, width, 0.7), cargo)
        b.add(
            BOX,
            kind,
            "cloth",
            (-front + bed / 2, 0, (1.6 + height) / 2),
            (bed - 0.4, width - 0.3, height - 1.6),
            (0.2, 0.25, 0.2),
            taper=(0.1, 0.25, 0.0),
        )
    _wheels(b, kind, (front - 1.0, -front + 0.22 * length, -front + 0.22 * length + 1.1), width, 0.46, 0.3)
    for side in (-1, 1):
        b.add(BOX, kind, "light", (front, side * 0.4 * width, 0.8), (0.06, 0.3, 0.16), WHITE_LIGHT)
        b.add(BOX, kind, "light", (-front, side * 0.42 * width, 0.85), (0.06, 0.25, 0.15), RED_LIGHT)
    return b.parts(), (length + 0.06, width + 0.06, height)


def bus(rng: np.random.Generator) -> tuple[Parts, tuple[float, float, float]]:
    """A city bus; parts and (length, width, height)."""
    kind = KIND["bus"]
    b = Builder()
    length, width, height = float(rng.uniform(10.5, 12.5)), 2.55, float(rng.uniform(3.0, 3.3))
    hue = float(rng.choice((0.0, 0.12, 0.33, 0.58, 0.62)))
    paint = colorsys.hsv_to_rgb(hue, float(rng.uniform(0.6, 0.9)), float(rng.uniform(0.35, 0.7)))
    b.add(BOX, kind, "coach", (0, 0, (0.35 + height) / 2), (length, width, height - 0.35), paint)
    b.add(BOX, kind, "glass", (length / 2 + 0.01, 0, 1.85), (0.04, 0.9 * width, 1.5), GLASS)
    b.add(BOX, kind, "glass", (-length / 2 - 0.01, 0, 2.1), (0.04, 0.8 * width, 0.9), GLASS)
    b.add(BOX, kind, "light", (length / 2 + 0.01, 0, height - 0.25), (0.05, 1.6, 0.3), (0.9, 0.5, 0.05))
    b.add(
        BOX,
        kind,
        "metal",
        (-0.15 * length, 0, height + 0.1),
        (0.4 * length, 1.8, 0.22),
        (0.6, 0.6, 0.6),
        taper=(0.05, 0.1, 0.0),
    )
    _wheels(b, kind, (length / 2 - 2.6, -length / 2 + 3.2), width, 0.48, 0.3)
    for side in (-1, 1):
        b.add(BOX, kind, "light", (length / 2 + 0.01, side * 0.95, 0.75), (0.05, 0.35, 0.2), WHITE_LIGHT)
        b.add(BOX, kind, "light", (-length / 2 - 0.01, side * 1.0, 1.0), (0.05, 0.25, 0.35), RED_LIGHT)
    return b.parts(), (length + 0.08, width + 0.06, height + 0.2)


def bicycle(rng: np.random.Generator, rider: bool) -> tuple[Parts, tuple[float, float, float]]:
    """A bicycle, with its rider or without; parts and (length, width, height)."""
    kind = KIND["cyclist" if rider else "bicycle"]
    b = Builder()
    paint = colorsys.hsv_to_rgb(float(rng.random()), float(rng.uniform(0.4, 0.9)), float(rng.uniform(0.1, 0.6)))
    for x in (-0.52, 0.52):
        _spoked(b, kind, x, 0.33)
    b.add(FRUSTUM, kind, "paint", (-0.02, 0, 0.80), (0.05, 0.05, 0.62), paint, axis="x")
    b.add(FRUSTUM, kind, "paint", (0.14, 0, 0.55), (0.05, 0.05, 0.75), paint, axis="x", pitch=-0.75)
    b.add(FRUSTUM, kind, "paint", (-0.22, 0, 0.62), (0.05, 0.05, 0.75), paint, pitch=-0.35)
    b.add(FRUSTUM, kind, "paint", (-0.36, 0, 0.36), (0.04, 0.04, 0.42), paint, axis="x")
    b.add(FRUSTUM, kind, "paint", (0.44, 0, 0.70), (0.05, 0.05, 0.8), paint, pitch=-0.25)
    b.add(FRUSTUM, kind, "metal", (0.36, 0, 1.05), (0.04, 0.04, 0.56), CHROME, axis="y")
    b.add(BOX, kind, "rubber", (-0.32, 0, 0.98), (0.27, 0.16, 0.07), RUBBER, taper=(0.2, 0.3, 0.0))
    if rng.random() < 0.4:
        b.add(BOX, kind, "metal", (0.58, 0, 0.88), (0.3, 0.34, 0.24), (0.2, 0.2, 0.2), taper=(-0.0, 0.0, 0.0))
    if not rider:
        return b.parts(), (1.75, 0.6, 1.12)
    add_rider(b, kind, rng, saddle=1.0, grip=(0.34, 1.05), foot=0.3)
    return b.parts(), (1.75, 0.62, 1.82)


def motorcycle(rng: np.random.Generator, rider: bool) -> tuple[Parts, tuple[float, float, float]]:
    """A motorcycle or scooter, with its rider or without; parts and (length, width, height)."""
    kind = KIND["motorcyclist" if rider else "motorcycle"]
    b = Builder()
    paint = colorsys.hsv_to_rgb(float(rng.random()), float(rng.uniform(0.2, 0.9)), float(rng.uniform(0.1, 0.7)))
    for x in (-0.66, 0.68):
        b.add(FRUSTUM, kind, "rubber", (x, 0, 0.31), (0.62, 0.62, 0.15), RUBBER, axis="y")
        b.add(FRUSTUM, kind, "metal", (x, 0, 0.31), (0.26, 0.26, 0.17), (0.2, 0.2, 0.21), axis="y")
    b.add(BOX, kind, "metal", (0.0, 0, 0.45), (0.75, 0.34, 0.42), (0.15, 0.15, 0.16), taper=(0.2, 0.1, 0.0))
    b.add(ELLIPSOID, kind, "paint", (0.18, 0, 0.84), (0.62, 0.34, 0.34), paint)
    b.add(BOX, kind, "rubber", (-0.38, 0, 0.80), (0.72, 0.28, 0.13), (0.04, 0.04, 0.04), taper=(0.1, 0.2, 0.0))
    b.add(BOX, kind, "paint", (-0.66, 0, 0.68), (0.4, 0.24, 0.22), paint, taper=(0.3, 0.2, 0.2))
    b.add(BOX, kind, "paint", (0.62, 0, 0.66), (0.36, 0.2, 0.12), paint, taper=(0.2, 0.2, 0.0))
    b.add(FRUSTUM, kind, "metal", (0.55, 0, 0.68), (0.1, 0.2, 0.78), CHROME, pitch=-0.4)
    b.add(FRUSTUM, kind, "metal", (0.38, 0, 1.04), (0.05, 0.05, 0.72), CHROME, axis="y")
    b.add(ELLIPSOID, kind, "light", (0.6, 0, 0.9), (0.2, 0.22, 0.22), WHITE_LIGHT)
    if not rider:
        return b.parts(), (2.05, 0.75, 1.16)
    add_rider(b, kind, rng, saddle=0.88, grip=(0.38, 1.06), foot=0.32, helmet=True)
    return b.parts(), (2.05, 0.78, 1.72)
