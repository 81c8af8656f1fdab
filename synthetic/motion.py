"""How the ego vehicle and the other road users move: closed forms of time, so any sensor asks at its own time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Pose = tuple[float, float, float]
"""x and y in metres, yaw in radians."""


@dataclass(frozen=True)
class Speed:
    """Distance driven as a function of time.

    Attributes:
        cruise: metres per second.
        sway: amplitude in metres of a slow variation around the even drive.
        stop_from: time at which braking begins, seconds; infinite for never.
        stop_for: seconds the braking takes.
    """

    cruise: float
    sway: float = 0.0
    stop_from: float = np.inf
    stop_for: float = 4.0

    def distance(self, t: float) -> float:
        """Metres driven since time 0."""
        driven = self.cruise * min(t, self.stop_from)
        if t > self.stop_from:
            braked = min(t - self.stop_from, self.stop_for)
            driven += self.cruise * (braked - braked * braked / (2 * self.stop_for))
        free = min(t, self.stop_from)
        return driven + self.sway * float(np.sin(0.45 * free))


@dataclass(frozen=True)
class Straight:
    """A drive along a line from (x, y) in the direction ``yaw``; with speed 0, standing."""

    x: float
    y: float
    yaw: float
    speed: Speed

    def pose(self, t: float) -> Pose:
        """Where it is at time ``t`` in seconds."""
        s = self.speed.distance(t)
        return self.x + s * float(np.cos(self.yaw)), self.y + s * float(np.sin(self.yaw)), self.yaw


@dataclass(frozen=True)
class RightTurn:
    """A drive along +x, a right turn of the given radius that begins at ``turn_x``, then along -y."""

    x: float
    y: float
    turn_x: float
    radius: float
    speed: Speed

    def pose(self, t: float) -> Pose:
        """Where it is at time ``t`` in seconds."""
        s = self.x + self.speed.distance(t)
        if s <= self.turn_x:
            return s, self.y, 0.0
        arc = self.radius * np.pi / 2
        angle = min((s - self.turn_x) / self.radius, np.pi / 2)
        x = self.turn_x + self.radius * float(np.sin(angle))
        y = self.y - self.radius * (1 - float(np.cos(angle)))
        return x, y - max(s - self.turn_x - arc, 0.0), -angle


@dataclass(frozen=True)
class BackAndForth:
    """A walk along x between ``low`` and ``high``, turning round at the ends; begins at x towards +x or -x.

    Attributes:
        sign: 1 for a start towards +x, -1 for -x.
    """

    x: float
    y: float
    sign: float
    low: float
    high: float
    speed: Speed

    def pose(self, t: float) -> Pose:
        """Where it is at time ``t`` in seconds."""
        length = self.high - self.low
        # Unfolded, the walk goes on for ever; folded, every second length runs back.
        start = self.x - self.low if self.sign > 0 else 2 * length - (self.x - self.low)
        place = (start + self.speed.distance(t)) % (2 * length)
        if place < length:
            return self.low + place, self.y, 0.0
        return self.low + 2 * length - place, self.y, float(np.pi)


Path = Straight | RightTurn | BackAndForth
