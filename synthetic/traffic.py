"""The road users and the movable things of a scene: who stands where, who drives how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from . import furniture, people, vehicles
from .motion import BackAndForth, Path, Speed, Straight
from .parts import Parts
from .street import KERB, Layout

Size = tuple[float, float, float]


@dataclass(frozen=True)
class Actor:
    """One annotated object.

    Attributes:
        parts: its solids in its own frame (x forward, z up, origin on the ground), marked with its instance.
        size: length, width and height of its box in metres.
        box_center: the middle of the box in the object's own frame, metres.
        category: the nuScenes category.
        attribute: the nuScenes attribute, "" for none.
        path: where it is at any time.
        z: height of the ground it stands on, metres.
        instance: its number in the scene, from 1.
        moving: whether it ever moves.
    """

    parts: Parts
    size: Size
    box_center: Size
    category: str
    attribute: str
    path: Path
    z: float
    instance: int
    moving: bool


class _Cast:
    """Collects actors; instance numbers are given at the end, the standing ones first."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.actors: list[Actor] = []

    def add(self, made: tuple[Parts, Size], category: str, path: Path, *, attribute: str = "", z: float = 0.0) -> None:
        parts = made[0]
        low, high = parts.bounds()
        low, high = low.min(axis=0) - 0.02, high.max(axis=0) + 0.02
        size = tuple(float(s) for s in high - low)
        middle = tuple(float(s) for s in (low + high) / 2)
        moving = path.speed.cruise != 0
        self.actors.append(
            Actor(parts, size, middle, category, attribute, path, z, 0, moving)  # type: ignore[arg-type]
        )

    def stand(
        self,
        made: tuple[Parts, Size],
        category: str,
        x: float,
        y: float,
        yaw: float,
        *,
        attribute: str = "",
        z: float = 0.0,
    ) -> None:
        self.add(made, category, Straight(x, y, yaw, Speed(0.0)), attribute=attribute, z=z)

    def done(self) -> tuple[tuple[Actor, ...], tuple[Actor, ...]]:
        standing = [a for a in self.actors if not a.moving]
        moving = [a for a in self.actors if a.moving]
        numbered = []
        for number, actor in enumerate(standing + moving, 1):
            seed = int(self.rng.integers(1, 1 << 30))
            marked = actor.parts.marked(instance=number, seed=seed, moving=actor.moving)
            numbered.append(replace(actor, parts=marked, instance=number))
        return tuple(numbered[: len(standing)]), tuple(numbered[len(standing) :])


def populate(
    rng: np.random.Generator, layout: Layout, ego: Path, duration: float
) -> tuple[tuple[Actor, ...], tuple[Actor, ...]]:
    """The standing and the moving objects of a scene.

    Args:
        ego: the ego vehicle's drive; what drives in its lane keeps its speed, so that gaps stay.
        duration: seconds the scene lasts.
    """
    cast = _Cast(rng)
    reach = ego.speed.distance(duration)
    works = _works(cast, layout, reach)
    _driving(cast, layout, ego.speed, reach, duration)
    _parked(cast, layout, reach, works)
    _cycles(cast, layout, reach)
    _walkers(cast, layout, reach)
    cast.actors = [actor for actor in cast.actors if not _meets(actor, ego, duration)]
    return cast.done()


def _meets(actor: Actor, ego: Path, duration: float) -> bool:
    """Whether an object and the ego vehicle (4.1 m long, its rear axle at the pose) would come into one another."""
    reach = actor.size[0] / 2 + 3.4
    for t in np.arange(-0.5, duration + 0.5, 0.25):
        x, y, yaw = actor.path.pose(float(t))
        ex, ey, eyaw = ego.pose(float(t))
        dx, dy = x - ex, y - ey
        if abs(dx) > reach or abs(dy) > reach:
            continue
        ahead = dx * np.cos(eyaw) + dy * np.sin(eyaw) - 1.4
        aside = -dx * np.sin(eyaw) + dy * np.cos(eyaw)
        turned = abs(float(np.sin(yaw - eyaw)))
        along = actor.size[0] / 2 * np.sqrt(1 - turned**2) + actor.size[1] / 2 * turned
        across = actor.size[1] / 2 * np.sqrt(1 - turned**2) + actor.size[0] / 2 * turned
        if abs(ahead) < along + 2.2 and abs(aside) < across + 1.0:
            return True
    return False


def _vehicle(rng: np.random.Generator) -> tuple[tuple[Parts, Size], str]:
    draw = rng.random()
    if draw < 0.06:
        return vehicles.motorcycle(rng, True), "vehicle.motorcycle"
    if draw < 0.82:
        return vehicles.car(rng), "vehicle.car"
    if draw < 0.95:
        return vehicles.truck(rng), "vehicle.truck"
    return vehicles.bus(rng), "vehicle.bus.rigid"


def _moving(category: str) -> str:
    return "cycle.with_rider" if category == "vehicle.motorcycle" else "vehicle.moving"


def _driving(cast: _Cast, layout: Layout, ego: Speed, reach: float, duration: float) -> None:
    rng, main = cast.rng, layout.main
    # The ego lane: everybody keeps the ego vehicle's speed.
    for direction in (1, -1):
        gap = float(rng.uniform(14, 30))
        x = direction * (gap + 4)
        while -70 < x < 110:
            made, category = _vehicle(rng)
            cast.add(made, category, Straight(x, -main.lane(0), 0.0, ego), attribute=_moving(category))
            x += direction * (made[1][0] + float(rng.uniform(10, 40)))
    for lane in range(1, main.lanes):
        speed = Speed(ego.cruise * float(rng.uniform(0.6, 1.3)))
        _stream(cast, -main.lane(lane), 0.0, speed, -80 - speed.distance(duration), reach + 90)
    for lane in range(main.lanes):
        speed = Speed(float(rng.uniform(5, 11)))
        _stream(cast, main.lane(lane), np.pi, speed, -90, reach + 90 + speed.distance(duration))
    # Cross streets: a queue waits at the stop line on each side.
    for cross in layout.crossings:
        if not -60 < cross.center < reach + 80:
            continue
        for side in (-1, 1):
            for lane in range(cross.lanes):
                y = side * (main.half + 6.0)
                for _ in range(int(rng.integers(0, 3))):
                    made, category = _vehicle(rng)
                    y += side * made[1][0] / 2
                    x = cross.center - side * cross.lane(lane)
                    yaw = -side * np.pi / 2
                    attribute = "vehicle.stopped" if category != "vehicle.motorcycle" else "cycle.with_rider"
                    cast.stand(made, category, x, y, yaw, attribute=attribute)
                    y += side * (made[1][0] / 2 + 1.8)


def _stream(cast: _Cast, y: float, yaw: float, speed: Speed, start: float, end: float) -> None:
    rng = cast.rng
    x = start + float(rng.uniform(0, 20))
    while x < end:
        made, category = _vehicle(rng)
        x += made[1][0] / 2
        cast.add(made, category, Straight(x, y, yaw, speed), attribute=_moving(category))
        x += made[1][0] / 2 + float(rng.uniform(9, 45))


def _near_crossing(layout: Layout, x: float, margin: float) -> bool:
    return any(abs(x - c.center) < c.half + margin for c in layout.crossings)


def _block(layout: Layout, x: float) -> tuple[float, float]:
    """The stretch of sidewalk around x, between two crossings."""
    before = [c.center + c.half for c in layout.crossings if c.center < x]
    after = [c.center - c.half for c in layout.crossings if c.center > x]
    return max(before, default=layout.start) + 0.6, min(after, default=layout.end) - 0.6


def _parked(cast: _Cast, layout: Layout, reach: float, works: list[tuple[float, float, float]]) -> None:
    rng, main = cast.rng, layout.main
    if not main.parking:
        return
    for side in (-1, 1):
        x = -85.0
        y = side * (main.half - 1.15)
        filled = float(rng.uniform(0.35, 0.8))
        while x < reach + 85:
            closed = any(side == where and low - 8 < x < high + 4 for low, high, where in works)
            if closed or rng.random() > filled or _near_crossing(layout, x, 11):
                x += 5.5
                continue
            truck = rng.random() < 0.06
            made = vehicles.truck(rng) if truck else vehicles.car(rng)
            x += made[1][0] / 2
            yaw = (0.0 if side < 0 else np.pi) + float(rng.normal(0, 0.015))
            category = "vehicle.truck" if truck else "vehicle.car"
            cast.stand(made, category, x, y + float(rng.normal(0, 0.06)), yaw, attribute="vehicle.parked")
            x += made[1][0] / 2 + float(rng.uniform(0.7, 1.6))


def _cycles(cast: _Cast, layout: Layout, reach: float) -> None:
    rng, main = cast.rng, layout.main
    # Racks on the sidewalk: two-wheelers side by side.
    x = -50.0
    while x < reach + 60:
        x += float(rng.uniform(8, 22))
        side = float(rng.choice((-1, 1)))
        if _near_crossing(layout, x, 6):
            continue
        verge = layout.verge[0 if side > 0 else 1]
        y = side * (main.half + 1.1 + verge)
        lean = float(rng.uniform(-0.3, 0.3)) + np.pi / 2
        make: Callable[..., tuple[Parts, Size]] = vehicles.bicycle if rng.random() < 0.7 else vehicles.motorcycle
        category = "vehicle.bicycle" if make is vehicles.bicycle else "vehicle.motorcycle"
        for k in range(int(rng.integers(3, 9))):
            cast.stand(make(rng, False), category, x + 0.75 * k, y, lean, attribute="cycle.without_rider", z=KERB)
    # Riders at the edge of the driving lanes.
    for side in (-1, 1):
        yaw = 0.0 if side < 0 else np.pi
        y = side * (main.half - main.parking - 0.62)
        speed = Speed(float(rng.uniform(3.2, 5.5)))
        x = -70.0
        while x < reach + 90:
            x += float(rng.uniform(9, 36))
            made = vehicles.bicycle(rng, True)
            cast.add(made, "vehicle.bicycle", Straight(x, y, yaw, speed), attribute="cycle.with_rider")


def _walkers(cast: _Cast, layout: Layout, reach: float) -> None:
    rng, main = cast.rng, layout.main
    category = "human.pedestrian.adult"
    for side in (-1, 1):
        verge = layout.verge[0 if side > 0 else 1]
        inner, outer = main.half + verge + 1.9, main.half + layout.sidewalk - 0.4
        x = -60.0
        while x < reach + 70:
            x += float(rng.exponential(9.0))
            y = side * float(rng.uniform(inner, max(outer, inner + 0.3)))
            for _ in range(1 if rng.random() < 0.7 else 2):
                walking = rng.random() < 0.7
                yaw = float(rng.choice((0.0, np.pi))) if walking else float(rng.uniform(0, 2 * np.pi))
                made = people.pedestrian(rng, walking)
                low, high = _block(layout, x)
                if walking and high - low > 4 and low < x < high:
                    sign = 1.0 if yaw == 0 else -1.0
                    path = BackAndForth(x, y, sign, low, high, Speed(float(rng.uniform(0.9, 1.6))))
                    cast.add(made, category, path, attribute="pedestrian.moving", z=KERB)
                else:
                    cast.stand(made, category, x, y, yaw, attribute="pedestrian.standing", z=KERB)
                y += 0.7
    # Some wait at the corners to cross.
    for cross in layout.crossings:
        for _ in range(int(rng.integers(0, 4))):
            corner = float(rng.choice((-1, 1)))
            x = cross.center + float(rng.choice((-1, 1))) * (cross.half + float(rng.uniform(1.2, 3)))
            y = corner * (main.half + float(rng.uniform(0.4, 1.0)))
            made = people.pedestrian(rng, False)
            cast.stand(made, category, x, y, -corner * np.pi / 2, attribute="pedestrian.standing", z=KERB)


def _works(cast: _Cast, layout: Layout, reach: float) -> list[tuple[float, float, float]]:
    """Road works: lines of barriers with cones at their ends; each as (from x, to x, side).

    They stand at the parking strip's edge, or behind the kerb where there is no such strip.
    """
    rng, main = cast.rng, layout.main
    spans = []
    x = float(rng.uniform(-40, 15))
    while x < reach + 60:
        side = float(rng.choice((-1, 1)))
        length = float(rng.uniform(8, 30))
        style = int(rng.choice((0, 2, 3)))
        if main.parking and rng.random() < 0.6:
            y, z = side * (main.half - main.parking + 0.4), 0.0
            spans.append((x, x + length, side))
        else:
            y, z = side * (main.half + 0.45), KERB
        for k in range(int(length / 2.02) + 1):
            place = x + 2.02 * k
            if not _near_crossing(layout, place, 2.5):
                kind = style if style != 0 else int(rng.choice((0, 1)))
                made = furniture.barrier(kind)
                cast.stand(made, "movable_object.barrier", place, y, float(rng.normal(0, 0.02)), z=z)
        for end, away in ((x - 1.8, -1.1), (x + length + 1.2, 1.1)):
            for j in range(int(rng.integers(2, 5))):
                place = end + j * away
                if not _near_crossing(layout, place, 1.0):
                    sideways, turn = float(rng.normal(0, 0.08)), float(rng.uniform(0, 3))
                    cast.stand(furniture.cone(), "movable_object.trafficcone", place, y + sideways, turn, z=z)
        x += length + float(rng.uniform(25, 80))
    return spans
