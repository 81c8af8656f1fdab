"""AFI: predictions smoothed over a scan's surfaces, without training or images (Sun et al., the UOV system).

A scan is thinned four times. Each centre looks at its 20 nearest points in 20 directions and notes, for each direction,
how far they are and how much they weigh; in later rounds a neighbour weighs by how well its own directions agree with the
line between the two, so that class shares spread along surfaces and lines and not across gaps. Then the shares are carried
back, from the thinnest cloud to every point. Written from the formulas; the constants are the authors'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..common.compiled import compiled

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class AfiSettings:
    """The authors' constants.

    Attributes:
        points, shrink, stages: the cloud is thinned to points / shrink, points / shrink², …, each rounded down.
        neighbours: of a centre, itself included.
        directions: over the sphere.
        agreement: cosine over which two directions are the same (5.7°).
        carried: coarse points that a finer point takes its shares from.
    """

    points: int = 4096
    shrink: int = 3
    stages: int = 4
    neighbours: int = 20
    directions: int = 20
    agreement: float = 0.995
    carried: int = 6


@dataclass(frozen=True, eq=False)
class _Level:
    """A thinned cloud: places [n, 3], class shares [n, C], and of each direction the weight [n, A] and the way [n, A, 3]."""

    xyz: Array
    share: Array
    weight: Array
    way: Array


def smooth(
    xyz: NDArray[np.floating],
    label: NDArray[np.integer],
    classes: tuple[str, ...],
    flat: tuple[str, ...] = (),
    settings: AfiSettings | None = None,
) -> Index:
    """Labels smoothed over the scan, int64 [N], 1..K.

    Args:
        xyz: [N, 3], metres, the LiDAR frame as stored.
        label: the predicted class of each point, 1..K.
        classes: names of the classes 1..K.
        flat: what the ground right around the vehicle can be. Where the benchmark names such classes, that ground is found,
            takes no part and becomes one of them, and points within 2 m take no part.

    A point that no share reaches keeps its label.
    """
    settings = settings or AfiSettings()
    places = np.ascontiguousarray(xyz, np.float64)
    share = np.zeros((len(places), len(classes) + 1))
    share[np.arange(len(places)), label] = 1
    ground = np.zeros(len(places), bool)
    if flat:
        ground = near_ground(places)
        share[ground | (np.hypot(places[:, 0], places[:, 1]) <= 2)] = 0
    share = _carried_back(_thinned(places, share, settings), places, share, settings)
    if any(name in flat for name in classes):
        others = np.flatnonzero([name not in flat for name in ("", *classes)])
        share[np.ix_(ground, others)] = 0
    smoothed = share[:, 1:].argmax(axis=1) + 1
    return np.where(share[:, 1:].max(axis=1) > 0, smoothed, label).astype(np.int64)


def near_ground(xyz: Array) -> NDArray[np.bool_]:
    """The ground within 5 m of the vehicle, bool [N]: within 0.1 m of a plane fitted by RANSAC, 20 trials."""
    from sklearn.linear_model import RANSACRegressor

    distance = np.sqrt(xyz[:, 0] ** 2 + xyz[:, 1] ** 2)
    near = np.flatnonzero((distance > 2) & (distance < 5) & (xyz[:, 2] < -1.4))
    ground = np.zeros(len(xyz), bool)
    if len(near) >= 10:
        plane = RANSACRegressor(min_samples=10, residual_threshold=0.1, max_trials=20, random_state=42)
        try:
            plane.fit(xyz[near, :2], xyz[near, 2])
        except ValueError:  # no plane has a point within the distance
            return ground
        ground[near[plane.inlier_mask_]] = True
    return ground


def _thinned(xyz: Array, share: Array, settings: AfiSettings) -> list[_Level]:
    """The thinned clouds, from the fullest to the emptiest."""
    ways = _sphere(settings.directions)
    count, levels = settings.points, list[_Level]()
    weight, way = np.zeros((1, settings.directions)), np.zeros((1, settings.directions, 3))
    for _ in range(settings.stages):
        count //= settings.shrink
        centre = _farthest(xyz, max(1, min(count, len(xyz))))
        member = _nearest(xyz[centre], xyz, min(settings.neighbours, len(xyz)))
        length, unit = _lengths(way)
        mixed, influence, peak, weight, way = _gathered(
            xyz, share, weight, length, unit, centre, member, ways, settings.agreement, not levels
        )
        if levels:
            influence = influence / (influence.mean() + 1e-8)
        share = _normalised(influence[:, None] * mixed + 0.1 * share[centre] + 1e-8 * peak)
        xyz = xyz[centre]
        levels.append(_Level(xyz, share, weight, way))
    return levels


def _carried_back(levels: list[_Level], xyz: Array, share: Array, settings: AfiSettings) -> Array:
    """The shares of every point of the cloud, [N, C]."""
    found = levels[-1].share
    finer = [(xyz, share), *((level.xyz, level.share) for level in levels[:-1])]
    for coarse, (places, own) in zip(reversed(levels), reversed(finer)):
        member = _nearest(places, coarse.xyz, min(settings.carried, len(coarse.xyz)))
        _, unit = _lengths(coarse.way)
        mixed, total = _spread(places, coarse.xyz, found, coarse.weight, unit, member, settings.agreement)
        kept = 0.3 if len(places) == settings.shrink * len(coarse.xyz) else 0.01
        found = _normalised(total[:, None] * mixed + (1e-8 + kept * total.mean()) * own)
    return found


def _normalised(share: Array) -> Array:
    normalised: Array = share / (share.sum(axis=-1, keepdims=True) + 1e-9)
    return normalised


def _lengths(way: Array) -> tuple[Array, Array]:
    length = np.sqrt(way[..., 0] ** 2 + way[..., 1] ** 2 + way[..., 2] ** 2)
    return length, way / (length[..., None] + 1e-8)


def _sphere(count: int) -> Array:
    """Directions over the sphere by the golden angle, [A, 3]."""
    number = np.arange(count)
    y = 1 - 2 * number / (count - 1)
    radius, angle = np.sqrt(1 - y * y), number * (math.pi * (3 - math.sqrt(5)))
    return np.stack([radius * np.cos(angle), y, radius * np.sin(angle)], axis=1)


@compiled()
def _farthest(xyz: Array, count: int) -> Index:
    """Farthest-point sampling from point 0; a point at the sensor (lost returns) is never chosen."""
    chosen = np.zeros(count, np.int64)
    distance = np.full(len(xyz), np.inf)
    last = 0
    for k in range(1, count):
        best, where = -1.0, 0
        for i in range(len(xyz)):
            x, y, z = xyz[i, 0], xyz[i, 1], xyz[i, 2]
            if x * x + y * y + z * z <= 1e-3:
                continue
            dx, dy, dz = x - xyz[last, 0], y - xyz[last, 1], z - xyz[last, 2]
            d = dx * dx + dy * dy + dz * dz
            if d < distance[i]:
                distance[i] = d
            if distance[i] > best:
                best, where = distance[i], i
        chosen[k] = last = where
    return chosen


@compiled()
def _nearest(query: Array, xyz: Array, count: int) -> Index:
    """The nearest places of each query, nearest first, the first of equals first; int64 [Q, count]."""
    found = np.empty((len(query), count), np.int64)
    distance = np.empty(count)
    for q in range(len(query)):
        held = 0
        for i in range(len(xyz)):
            dx, dy, dz = query[q, 0] - xyz[i, 0], query[q, 1] - xyz[i, 1], query[q, 2] - xyz[i, 2]
            d = dx * dx + dy * dy + dz * dz
            if held == count and d >= distance[count - 1]:
                continue
            place = held if held < count else count - 1
            while place > 0 and distance[place - 1] > d:
                distance[place] = distance[place - 1]
                found[q, place] = found[q, place - 1]
                place -= 1
            distance[place] = d
            found[q, place] = i
            held = min(held + 1, count)
    return found


@compiled()
def _agreeing(u, unit, length, weight, agreement):  # type: ignore[no-untyped-def]
    """Of a point's directions that lie along the line ``u``: their weight, and the longest one along and against it."""
    total, along, against = 0.0, 0.0, 0.0
    for b in range(len(weight)):
        cosine = u[0] * unit[b, 0] + u[1] * unit[b, 1] + u[2] * unit[b, 2]
        if cosine > agreement:
            total += weight[b]
            along = max(along, length[b])
        elif -cosine > agreement:
            total += weight[b]
            against = max(against, length[b])
    return total, along, against


@compiled()
def _gathered(xyz, share, weight, length, unit, centre, member, ways, agreement, first):  # type: ignore[no-untyped-def]
    """What each centre sees: mixed shares [M, C], influence [M], largest shares [M, C], weight [M, A] and way [M, A, 3].

    ``weight``, ``length``, ``unit`` are the directions of the cloud that is thinned; not read in the ``first`` round.
    """
    centres, bins, classes = len(centre), len(ways), share.shape[1]
    mixed, peak = np.zeros((centres, classes)), np.zeros((centres, classes))
    influence = np.ones(centres)
    new_weight, new_way = np.zeros((centres, bins)), np.zeros((centres, bins, 3))
    u = np.empty(3)
    for m in range(centres):
        c = centre[m]
        count, seen = np.zeros(bins), np.zeros((bins, classes))
        for k in member[m]:
            rx, ry, rz = xyz[k, 0] - xyz[c, 0], xyz[k, 1] - xyz[c, 1], xyz[k, 2] - xyz[c, 2]
            rho = math.sqrt(rx * rx + ry * ry + rz * rz)
            u[0], u[1], u[2] = rx / (rho + 1e-8), ry / (rho + 1e-8), rz / (rho + 1e-8)
            best, a = -np.inf, 0
            for b in range(bins):
                cosine = u[0] * ways[b, 0] + u[1] * ways[b, 1] + u[2] * ways[b, 2]
                if cosine > best:
                    best, a = cosine, b
            count[a] += 1
            new_way[m, a, 0] += rx
            new_way[m, a, 1] += ry
            new_way[m, a, 2] += rz
            for s in range(classes):
                seen[a, s] += share[k, s]
                peak[m, s] = max(peak[m, s], share[k, s])
            if not first:
                own, own_along, own_against = _agreeing(u, unit[c], length[c], weight[c], agreement)
                other, along, against = _agreeing(u, unit[k], length[k], weight[k], agreement)
                if own_along + own_against > 0 and along + against > 0:
                    reach = own_along + own_against + along + against
                    new_weight[m, a] += own * other * (reach / (rho + own_against + along + 1e-8))
        count[0] -= 1  # the centre itself
        if first:
            new_weight[m] = count / (count.sum() + 1e-8)
        else:
            influence[m] = new_weight[m].sum()
            new_weight[m] /= influence[m] + 1e-7
        near = np.zeros(bins)
        for a in range(bins):
            new_way[m, a] /= count[a] + 1e-8
            x, y, z = new_way[m, a, 0], new_way[m, a, 1], new_way[m, a, 2]
            near[a] = new_weight[m, a] / (math.sqrt(x * x + y * y + z * z) + 1e-8)
        near /= near.sum() + 1e-9
        for a in range(bins):
            mixed[m] += near[a] * (seen[a] / (seen[a].sum() + 1e-9))
    return mixed, influence, peak, new_weight, new_way


@compiled()
def _spread(places, xyz, share, weight, unit, member, agreement):  # type: ignore[no-untyped-def]
    """Coarse shares at finer places: their mean by agreement [N, C], and the agreement's sum [N]."""
    mixed, total = np.zeros((len(places), share.shape[1])), np.empty(len(places))
    v, omega = np.empty(3), np.empty(member.shape[1])
    for i in range(len(places)):
        for n in range(len(omega)):
            j = member[i, n]
            for axis in range(3):
                v[axis] = xyz[j, axis] - places[i, axis]
            v /= math.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]) + 1e-8
            omega[n], _, _ = _agreeing(v, unit[j], weight[j], weight[j], agreement)  # lengths do not matter here
        total[i] = omega.sum() + 1e-8
        omega[:] = omega / total[i] + 1e-6 + 1e-10
        omega /= omega.sum() + 1e-8
        for n in range(len(omega)):
            mixed[i] += omega[n] * share[member[i, n]]
    return mixed, total
