"""Pedestrians and riders built of solids."""

from __future__ import annotations

import colorsys

import numpy as np

from .kinds import KIND
from .parts import BOX, ELLIPSOID, FRUSTUM, Builder, Parts

Color = tuple[float, float, float]


def _clothes(rng: np.random.Generator) -> tuple[Color, Color, Color, Color]:
    shirt = colorsys.hsv_to_rgb(float(rng.random()), float(rng.uniform(0.1, 0.85)), float(rng.uniform(0.08, 0.75)))
    trousers = colorsys.hsv_to_rgb(
        float(rng.uniform(0.55, 0.7)), float(rng.uniform(0.1, 0.6)), float(rng.uniform(0.03, 0.3))
    )
    tone = float(rng.uniform(0.18, 0.75))
    return shirt, trousers, (tone, 0.68 * tone, 0.52 * tone), (0.06, 0.04, 0.03)


def pedestrian(rng: np.random.Generator, walking: bool) -> tuple[Parts, tuple[float, float, float]]:
    """A standing or striding person facing +x; parts and (length, width, height) in metres."""
    kind = KIND["pedestrian"]
    b = Builder()
    shirt, trousers, skin, hair = _clothes(rng)
    height = float(rng.uniform(1.55, 1.88))
    stride = 0.36 if walking else 0.05
    hip, shoulder = 0.50 * height, 0.82 * height
    for side in (-1, 1):
        lean = side * stride * 0.55
        b.add(
            FRUSTUM,
            kind,
            "cloth",
            (-lean * hip / 2, side * 0.10, hip / 2 + 0.03),
            (0.19, 0.19, hip),
            trousers,
            pitch=lean,
            taper=(-0.25, 0, 0),
        )
        b.add(BOX, kind, "rubber", (-lean * hip + 0.05, side * 0.10, 0.05), (0.28, 0.10, 0.09), (0.04, 0.04, 0.04))
        b.add(
            FRUSTUM,
            kind,
            "cloth",
            (lean * 0.3, side * 0.24, 0.66 * height),
            (0.11, 0.11, 0.34 * height),
            shirt,
            pitch=-lean,
            taper=(-0.15, 0, 0),
        )
        b.add(ELLIPSOID, kind, "skin", (lean * 0.6, side * 0.25, 0.48 * height), (0.1, 0.08, 0.14), skin)
    b.add(
        BOX,
        kind,
        "cloth",
        (0, 0, (hip + shoulder) / 2),
        (0.23, 0.34, shoulder - hip + 0.04),
        shirt,
        taper=(-0.05, -0.16, 0),
    )
    b.add(FRUSTUM, kind, "skin", (0, 0, shoulder + 0.05), (0.11, 0.11, 0.12), skin)
    b.add(ELLIPSOID, kind, "skin", (0.01, 0, height - 0.12), (0.20, 0.17, 0.24), skin)
    b.add(ELLIPSOID, kind, "cloth", (-0.025, 0, height - 0.08), (0.21, 0.19, 0.2), hair)
    if rng.random() < 0.3:
        b.add(BOX, kind, "cloth", (-0.19, 0, 0.68 * height), (0.18, 0.28, 0.42), trousers, taper=(0.2, 0.2, 0))
    return b.parts(), (0.86 if walking else 0.52, 0.64, height)


def add_rider(
    b: Builder,
    kind: int,
    rng: np.random.Generator,
    *,
    saddle: float,
    grip: tuple[float, float],
    foot: float,
    helmet: bool = False,
) -> None:
    """Seat a person on a two-wheeler: heights in metres, ``grip`` the (x, z) of the handlebar."""
    shirt, trousers, skin, hair = _clothes(rng)
    hip = (-0.28, saddle + 0.06)
    neck = (-0.06, saddle + 0.56)
    lean = float(np.arctan2(neck[0] - hip[0], neck[1] - hip[1]))
    middle = ((hip[0] + neck[0]) / 2, (hip[1] + neck[1]) / 2)
    b.add(BOX, kind, "cloth", (middle[0], 0, middle[1]), (0.22, 0.34, 0.58), shirt, pitch=lean, taper=(0, -0.15, 0))
    b.add(ELLIPSOID, kind, "skin", (neck[0] + 0.05, 0, neck[1] + 0.14), (0.2, 0.17, 0.24), skin)
    cap = (0.7, 0.7, 0.72) if helmet else hair
    b.add(ELLIPSOID, kind, "paint" if helmet else "cloth", (neck[0] + 0.03, 0, neck[1] + 0.17), (0.26, 0.22, 0.22), cap)
    for side in (-1, 1):
        reach = (grip[0] - neck[0], grip[1] - (neck[1] - 0.06))
        span = float(np.hypot(*reach))
        b.add(
            FRUSTUM,
            kind,
            "cloth",
            (neck[0] + reach[0] / 2, side * 0.21, neck[1] - 0.06 + reach[1] / 2),
            (0.10, 0.10, span),
            shirt,
            pitch=float(np.arctan2(reach[0], reach[1])),
        )
        knee = (0.14, saddle - 0.08)
        for start, end, thick in ((hip, knee, 0.17), (knee, (0.0, foot + side * 0.08), 0.12)):
            dx, dz = end[0] - start[0], end[1] - start[1]
            b.add(
                FRUSTUM,
                kind,
                "cloth",
                ((start[0] + end[0]) / 2, side * 0.13, (start[1] + end[1]) / 2),
                (thick, thick, float(np.hypot(dx, dz)) + 0.05),
                trousers,
                pitch=float(np.arctan2(dx, dz)),
            )
