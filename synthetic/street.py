"""The still part of the world: streets, kerbs, verges, houses, trees, lamps.

The main street runs along x at y = 0, other streets cross it, two more run parallel. Traffic keeps to the
right. Blocks between the streets are slabs one kerb higher than the road, which is the plane z = 0.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .furniture import building, bush, lamp, sign, signal, tree
from .kinds import KIND
from .parts import BOX, Builder, Parts

LANE = 3.3
KERB = 0.14
BEYOND = 125.0  # metres of street before and after the drive: the LiDAR sees 105


@dataclass(frozen=True)
class Street:
    """One street of the grid.

    Attributes:
        along_x: whether it runs along x (else along y).
        center: the other coordinate of its centre line, metres.
        half: half its width from kerb to kerb, metres.
        lanes: lanes in each direction.
        parking: width of the parking strip on each side, metres; 0 = none.
    """

    along_x: bool
    center: float
    half: float
    lanes: int
    parking: float

    def lane(self, number: int) -> float:
        """Distance of a lane's middle from the centre line; 0 is the inner lane."""
        return (number + 0.5) * LANE


@dataclass(frozen=True)
class Layout:
    """The plan of a scene's streets.

    Attributes:
        main: the street of the drive.
        streets: all, the main street first.
        start, end: extent along x, metres.
        sidewalk: distance from the kerb to the lots, metres.
        verge: width of the grass strip at the kerb, metres, of the left (+y) and the right (-y) side.
    """

    main: Street
    streets: tuple[Street, ...]
    start: float
    end: float
    sidewalk: float
    verge: tuple[float, float]

    @property
    def crossings(self) -> list[Street]:
        """The streets that cross the main street, by x."""
        return sorted((s for s in self.streets if not s.along_x), key=lambda s: s.center)

    def table(self) -> NDArray[np.float64]:
        """float64 [S, 5] for the shader: along_x, center, half, lanes, parking."""
        return np.array([[s.along_x, s.center, s.half, s.lanes, s.parking] for s in self.streets], np.float64)


def plan(rng: np.random.Generator, drive: float) -> Layout:
    """Draw a plan for a drive of ``drive`` metres."""
    lanes = int(rng.choice((1, 2), p=(0.8, 0.2)))
    parking = 2.3 if rng.random() < 0.6 else 0.0
    main = Street(True, 0.0, lanes * LANE + 1.1 + parking, lanes, parking)
    streets = [main]
    start, end = -BEYOND, drive + BEYOND
    x = float(rng.uniform(20, 60))
    places = [x]
    while places[-1] < end:
        places.append(places[-1] + float(rng.uniform(65, 130)))
    while places[0] > start:
        places.insert(0, places[0] - float(rng.uniform(65, 130)))
    for place in places:
        cross = int(rng.choice((1, 2), p=(0.7, 0.3)))
        park = 2.3 if rng.random() < 0.5 else 0.0
        streets.append(Street(False, place, cross * LANE + 1.0 + park, cross, park))
    streets += [Street(True, side * float(rng.uniform(62, 95)), 5.5, 1, 0.0) for side in (-1, 1)]
    verge = tuple(float(rng.uniform(1.5, 4.0)) if rng.random() < 0.7 else 0.0 for _ in range(2))
    walk = float(rng.uniform(2.6, 4.5)) + max(verge)
    return Layout(main, tuple(streets), start, end, walk, (verge[0], verge[1]))


def still_parts(rng: np.random.Generator, layout: Layout) -> list[Parts]:
    """Everything of the scene that never moves and is no instance."""
    urban = float(rng.uniform(0, 1))
    rows = sorted((s for s in layout.streets if s.along_x), key=lambda s: s.center)
    columns = layout.crossings
    y_edges = [(-170.0, rows[0].center - rows[0].half)]
    y_edges += [(a.center + a.half, b.center - b.half) for a, b in itertools.pairwise(rows)]
    y_edges.append((rows[-1].center + rows[-1].half, 170.0))
    x_edges = [(layout.start - 60, columns[0].center - columns[0].half)]
    x_edges += [(a.center + a.half, b.center - b.half) for a, b in itertools.pairwise(columns)]
    x_edges.append((columns[-1].center + columns[-1].half, layout.end + 160))
    groups: list[Parts] = []
    for row, (y0, y1) in enumerate(y_edges):
        for x0, x1 in x_edges:
            if x1 - x0 < 8 or x1 < layout.start - 30 or x0 > layout.end + 30:
                continue
            groups.append(_slabs(rng, layout, x0, x1, y0, y1))
            if row in (1, 2):
                groups += _front(rng, layout, urban, x0, x1, y0, y1, left=row == 2)
            else:
                groups += _backdrop(rng, urban, x0, x1, y0, y1)
    for cross in columns:
        for sx, sy in ((-1, -1), (1, 1)):
            x = cross.center + sx * (cross.half + 0.8)
            y = sy * (layout.main.half + 0.8)
            groups.append(signal(rng).placed(x, y, KERB, 0.0 if sy < 0 else np.pi))
    return groups


def _slabs(rng: np.random.Generator, layout: Layout, x0: float, x1: float, y0: float, y1: float) -> Parts:
    b = Builder()
    seed = int(rng.integers(1, 1 << 30))

    def slab(
        kind: str,
        material: str,
        a: tuple[float, float],
        c: tuple[float, float],
        top: float,
        color: tuple[float, float, float],
    ) -> None:
        size = (c[0] - a[0], c[1] - a[1], top)
        b.add(BOX, KIND[kind], material, ((a[0] + c[0]) / 2, (a[1] + c[1]) / 2, top / 2), size, color, seed=seed)

    gray = float(rng.uniform(0.26, 0.38))
    slab("sidewalk", "paving", (x0, y0), (x1, y1), KERB, (gray, 0.97 * gray, 0.92 * gray))
    walk = layout.sidewalk
    green = (0.13, 0.19, 0.055) if rng.random() < 0.75 else (0.27, 0.21, 0.12)
    if x1 - x0 > 2 * walk + 4 and rng.random() < 0.72:
        slab("terrain", "grass", (x0 + walk, y0 + walk), (x1 - walk, y1 - walk), KERB + 0.02, green)
    for side, verge in enumerate(layout.verge):
        near_main = y0 if side == 0 else y1
        if verge and abs(abs(near_main) - layout.main.half) < 1e-6 and (near_main > 0) == (side == 0):
            low, high = (y0 + 0.3, y0 + 0.3 + verge) if side == 0 else (y1 - 0.3 - verge, y1 - 0.3)
            slab("terrain", "grass", (x0 + walk, low), (x1 - walk, high), KERB + 0.015, green)
    return b.parts()


def _front(
    rng: np.random.Generator,
    layout: Layout,
    urban: float,
    x0: float,
    x1: float,
    y0: float,
    y1: float,
    *,
    left: bool,
) -> list[Parts]:
    """The lots and the street furniture of a block beside the main street."""
    groups: list[Parts] = []
    kerb, out = (y0, 1.0) if left else (y1, -1.0)
    yaw = 0.0 if left else np.pi
    walk = layout.sidewalk
    verge = layout.verge[0 if left else 1]
    x = x0 + walk + 0.5
    while x < x1 - walk - 6:
        width = min(float(rng.uniform(10, 26)), x1 - walk - 0.5 - x)
        lot = rng.random()
        setback = float(rng.choice((0.0, 1.0), p=(0.45, 0.55)) * rng.uniform(1.5, 8.0))
        front = kerb + out * (walk + setback)
        if lot < 0.64 and width > 7:
            tall = float(rng.uniform(10, 34)) if rng.random() < urban else float(rng.uniform(4.5, 8.5))
            depth = float(rng.uniform(9, 16))
            length = width - float(rng.choice((0.0, 2.5)))
            groups.append(building(rng, length, depth, tall).placed(x + width / 2, front, KERB, yaw))
            if setback > 1.5:
                y = kerb + out * (walk + 0.8)
                hedge = bush(rng, 0.48 * width, 0.9, float(rng.uniform(0.8, 1.7)))
                groups.append(hedge.placed(x + width * float(rng.choice((0.25, 0.75))), y, KERB, 0.0))
        else:
            for _ in range(int(rng.integers(2, 5))):
                y = kerb + out * (walk + float(rng.uniform(2, 22)))
                groups.append(tree(rng).placed(x + float(rng.uniform(1, max(width - 1, 1.5))), y, KERB, 0.0))
            if rng.random() < 0.9:
                hedge = bush(rng, 0.9 * width, float(rng.uniform(0.8, 1.6)), float(rng.uniform(0.7, 1.6)))
                groups.append(hedge.placed(x + width / 2, kerb + out * (walk + 1.0), KERB, 0.0))
        x += width + float(rng.uniform(0, 3))
    # Along the kerb: trees, lamps and signs take turns.
    x = x0 + 3.0
    spacing = float(rng.uniform(7, 13))
    trees = float(rng.uniform(0.4, 0.85))
    while x < x1 - 3:
        y = kerb + out * (0.8 if verge == 0 else 0.3 + verge / 2)
        draw = rng.random()
        if draw < trees:
            groups.append(tree(rng).placed(x, y, KERB, float(rng.uniform(0, 6))))
        elif draw < trees + 0.15:
            groups.append(lamp(rng).placed(x, kerb + out * 0.5, KERB, -out * np.pi / 2))
        elif draw < trees + 0.23:
            groups.append(sign(rng).placed(x, kerb + out * 0.5, KERB, np.pi if left else 0.0))
        if verge > 1.4 and rng.random() < 0.45:
            hedge = bush(rng, 0.6 * spacing, min(verge - 0.5, 1.3), float(rng.uniform(0.6, 1.1)))
            groups.append(hedge.placed(x + 0.5 * spacing, kerb + out * (0.3 + verge / 2), KERB, 0.0))
        x += spacing * float(rng.uniform(0.7, 1.3))
    # Houses along the cross streets, behind the corner lots.
    for edge, side in ((x0, 1.0), (x1, -1.0)):
        y = walk + 28.0
        while y < (y1 - y0) - 14:
            width = float(rng.uniform(10, 18))
            tall = float(rng.uniform(8, 30)) if rng.random() < urban else float(rng.uniform(4.5, 8.5))
            house = building(rng, width - 1, 9.0, tall)
            turn = -np.pi / 2 if side > 0 else np.pi / 2
            groups.append(house.placed(edge + side * (walk + 1), kerb + out * (y + width / 2), KERB, turn))
            y += width
        groups += [
            tree(rng).placed(edge + side * 1.0, kerb + out * float(y), KERB, 0.0)
            for y in np.arange(10.0, abs(y1 - y0) - 8, 13.0)
            if rng.random() < 0.6
        ]
    return groups


def _backdrop(rng: np.random.Generator, urban: float, x0: float, x1: float, y0: float, y1: float) -> list[Parts]:
    """The blocks behind the parallel streets: seen only through gaps."""
    groups = []
    facing = 0.0 if y0 > 0 else np.pi
    front = y0 + 5 if y0 > 0 else y1 - 5
    x = x0 + 4
    while x < x1 - 16:
        width = float(rng.uniform(16, 40))
        width = min(width, x1 - 4 - x)
        if width > 8 and rng.random() < 0.8:
            tall = float(rng.uniform(12, 45)) if rng.random() < urban else float(rng.uniform(5, 10))
            groups.append(building(rng, width - 2, 14.0, tall).placed(x + width / 2, front, KERB, facing))
        else:
            groups.append(tree(rng).placed(x + width / 2, front, KERB, 0.0))
        x += width
    return groups
