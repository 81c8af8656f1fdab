"""``olivine check-data``: is a data set what its calibration, times and files say?

The geometry is checked by edges. Where a cloud has a step in depth (the rim of a car against the street behind it) the image
has an edge; the share of such points that fall on edges is largest where calibration and times are right (Levinson and
Thrun, "Automatic online calibration of cameras and lasers", 2013). Every camera is rotated a little, and moved along the
drive a little; where another place fits clearly better, it is named.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import Failure, OlivineError, track
from ..common.compiled import compiled
from ..common.images import open_image
from .frame import Camera, Frame
from .lens import distort, field_limit, lens_numbers
from .project import project_points

Matrix = NDArray[np.float64]
_END = 1 << 16


@dataclass(frozen=True)
class CheckSettings:
    """When something is taken to be wrong.

    Attributes:
        frames: looked at, spread over the data set; files, times and poses are checked in all.
        rotation_deg: a camera that fits better when rotated by this much or more.
        late_s: images that fit better when taken this much earlier or later.
        sure: how many standard errors better the other place must fit.
        few: a cloud of less than this share of its scene's median is truncated.
        blocks: vertical strips of an image that count as separate looks.
        speed: metres per second that no vehicle drives.
    """

    frames: int = 24
    rotation_deg: float = 0.5
    late_s: float = 0.04
    sure: float = 4.0
    few: float = 0.6
    blocks: int = 4
    speed: float = 70.0


@dataclass(frozen=True, eq=False)
class View:
    """What is drawn of one camera of a frame: the image's path, and the points on it."""

    token: str
    camera: str
    image: Path
    uv: NDArray[np.float32]
    distance: NDArray[np.float32]
    edge: NDArray[np.bool_]


@dataclass
class DataCheck:
    """What was found.

    Attributes:
        frames, scenes: of the data set.
        looked_at: frames whose points were projected.
        share: percent of a cloud's points that each camera sees, on average.
        fit: how much rather points at steps in depth lie on edges than others do, in standard deviations of the edge map.
        delay: milliseconds from a cloud to each camera's image, where the data set says: least, median and largest.
        speed: median, metres per second; None without poses.
        points: median of the clouds.
        notes: what is worth knowing.
        failures: one for each thing that is wrong.
        views: for the page.
    """

    frames: int
    scenes: int
    looked_at: int
    share: dict[str, float] = field(default_factory=dict)
    fit: dict[str, float] = field(default_factory=dict)
    delay: dict[str, list[float]] = field(default_factory=dict)
    speed: float | None = None
    points: int = 0
    notes: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    views: list[View] = field(default_factory=list)


def check_frames(frames: Sequence[Frame], settings: CheckSettings | None = None) -> DataCheck:
    """Check the frames of a data set (all of them, scene by scene and in time order)."""
    settings = settings or CheckSettings()
    scenes: dict[str, list[Frame]] = {}
    for frame in frames:
        scenes.setdefault(frame.scene, []).append(frame)
    chosen = {round(k) for k in np.linspace(0, len(frames) - 1, min(settings.frames, len(frames)))}
    result = DataCheck(len(frames), len(scenes), len(chosen))
    for members in scenes.values():
        result.failures += _wrong_times(members)
        result.failures += _wrong_poses(members, settings)
    speeds = [v for members in scenes.values() for v in _speeds(members)]
    result.speed = float(np.median(speeds)) if speeds else None
    if result.speed is None:
        alone = all(len(members) == 1 for members in scenes.values())
        what = "there is one frame of each scene" if alone else "there are no poses"
        result.notes.append(f"{what}: whether the times fit cannot be seen")
    delays: dict[str, list[float]] = {}
    counts: dict[str, list[tuple[Frame, int]]] = {}
    seen: dict[str, str] = {}
    looks: dict[str, list[_Look]] = {}
    shares: dict[str, list[float]] = {}
    twists = {f.token: twist for members in scenes.values() for f, twist in zip(members, _twists(members))}
    for k, frame in enumerate(track(frames, "check", total=len(frames), unit="frame")):
        try:
            points = frame.points()
        except OlivineError as error:
            result.failures.append(Failure(frame.token, str(error)))
            continue
        counts.setdefault(frame.scene, []).append((frame, len(points)))
        if (negative := 100 * float(np.mean(points[:, 3] < 0)) if len(points) else 0.0) > 1:
            what = f"{negative:.0f} % of the intensities are negative: the columns of its file are others than named"
            result.failures.append(Failure(frame.token, what))
        result.failures += _duplicate(frame, points.tobytes(), frame.point_file, seen)
        for camera in frame.cameras:
            try:
                data = _ends(frame.image_path(camera))
            except OSError as error:
                what = f"the image {camera.image} cannot be read ({error.strerror})"
                result.failures.append(Failure(frame.token, what))
                continue
            result.failures += _duplicate(frame, data, camera.image, seen)
        if k in chosen:
            for name, seconds in frame.source.delays(frame).items():
                delays.setdefault(name, []).append(1000 * seconds)
            for camera in frame.cameras:
                try:
                    look, share = _look(frame, camera, points, twists[frame.token])
                except OlivineError as error:
                    result.failures.append(Failure(f"{frame.token} {camera.name}", str(error)))
                    continue
                looks.setdefault(camera.name, []).append(look)
                shares.setdefault(camera.name, []).append(share)
    for rows in counts.values():
        result.failures += _truncated(rows, settings)
    every = [n for rows in counts.values() for _, n in rows]
    result.points = int(np.median(every)) if every else 0
    result.share = {name: 100 * float(np.mean(values)) for name, values in shares.items()}
    for name, value in result.share.items():
        if value < 0.1:
            result.failures.append(
                Failure(name, f"sees {value:.2g} % of the points: it looks elsewhere, or lidar_to_camera is wrong")
            )
    result.delay = {n: [float(f(v)) for f in (np.min, np.median, np.max)] for n, v in delays.items()}
    swapped = _swapped(looks, settings, result)
    for name, several in looks.items():
        if name not in swapped:
            result.failures += _misplaced(name, several, settings, result)
    result.views = [look.view for several in looks.values() for look in several[:3]]
    return result


# -- files, times, poses ------------------------------------------------------------------------------------------------


def _ends(path: Path) -> bytes:
    """Size, beginning and end of a file: two photographs differ in them, and a large data set is soon read."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        begin = file.read(_END)
        file.seek(max(0, size - _END))
        return b"%d" % size + begin + file.read()


def _duplicate(frame: Frame, data: bytes, file: str, seen: dict[str, str]) -> list[Failure]:
    mark = hashlib.blake2b(data, digest_size=16).hexdigest()
    first = seen.setdefault(mark, file)
    return (
        []
        if first == file
        else [Failure(frame.token, f"{file} has the same content as {first}: a sensor that stood still, or a copy")]
    )


def _truncated(rows: Sequence[tuple[Frame, int]], settings: CheckSettings) -> list[Failure]:
    if len(rows) < 3:
        return []
    median = float(np.median([n for _, n in rows]))
    return [
        Failure(f.token, f"{f.point_file} has {n} points, the clouds of {f.scene} have {median:.0f}: it is truncated")
        for f, n in rows
        if n < settings.few * median
    ]


def _wrong_times(members: Sequence[Frame]) -> list[Failure]:
    times = np.array([f.timestamp for f in members], np.int64)
    steps = np.diff(times)
    found = [
        Failure(f.token, f"its time is {-step / 1e6:g} s before the frame before it, or the same")
        for f, step in zip(members[1:], steps)
        if step <= 0
    ]
    usual = float(np.median(steps)) if len(steps) > 3 else 0.0
    return found + [
        Failure(f.token, f"comes {step / 1e6:.3g} s after the frame before it, the others {usual / 1e6:.3g} s: frames are missing")
        for f, step in zip(members[1:], steps)
        if 0 < 2.5 * usual < step
    ]  # fmt: skip


def _wrong_poses(members: Sequence[Frame], settings: CheckSettings) -> list[Failure]:
    found = []
    for before, after in pairwise(members):
        seconds = (after.timestamp - before.timestamp) / 1e6
        if seconds <= 0 or not (np.isfinite(before.pose).all() and np.isfinite(after.pose).all()):
            continue
        moved = float(np.linalg.norm(after.pose[:3, 3] - before.pose[:3, 3]))
        rotated = math.degrees(_angle(before.pose[:3, :3].T @ after.pose[:3, :3]))
        if moved > settings.speed * seconds:
            found.append(Failure(after.token, f"its pose jumps {moved:.1f} m in {seconds:.3g} s"))
        elif rotated > 30 + 90 * seconds:
            found.append(Failure(after.token, f"its pose rotates by {rotated:.0f} degrees in {seconds:.3g} s"))
    return found


def _angle(rotation: Matrix) -> float:
    return float(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))


def _speeds(members: Sequence[Frame]) -> list[float]:
    pairs = [(a, b, (b.timestamp - a.timestamp) / 1e6) for a, b in pairwise(members)]
    moved = [(float(np.linalg.norm(b.pose[:3, 3] - a.pose[:3, 3])), s) for a, b, s in pairs if s > 0]
    return [m / s for m, s in moved if math.isfinite(m)]


def _twists(members: Sequence[Frame]) -> Iterable[Matrix | None]:
    """The LiDAR's motion at each frame, float64 [4, 4]: the matrix whose exponential is a second of it."""
    from scipy.linalg import logm

    for k in range(len(members)):
        a, b = members[max(k - 1, 0)], members[min(k + 1, len(members) - 1)]
        seconds = (b.timestamp - a.timestamp) / 1e6
        if not 0 < seconds < 3 or not (np.isfinite(a.pose).all() and np.isfinite(b.pose).all()):
            yield None
            continue
        step = np.real(logm(np.linalg.inv(a.pose) @ b.pose)) / seconds
        yield step if np.isfinite(step).all() else None


# -- edges --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Look:
    """One camera of one frame: points in the LiDAR's frame near its view, which of them are at steps, and the edge map."""

    camera: Camera
    xyz: Matrix
    edge: NDArray[np.bool_]
    strength: NDArray[np.float32]
    twist: Matrix | None
    view: View


_LEAST = 8  # strips with enough steps in depth; a judgement of fewer is chance
_MARGIN = 1.3  # of an image's size: points that may come in when a camera is rotated
_FARTHEST = 60.0  # metres; steps further away have too few points


def _look(frame: Frame, camera: Camera, points: NDArray[np.float32], twist: Matrix | None) -> tuple[_Look, float]:
    with open_image(frame.image_path(camera), size=(camera.width, camera.height)) as image:
        grey = np.asarray(image.convert("L"), np.float32)
    point, _, uv = project_points(points, [camera])
    wide = replace(
        camera,
        width=round(camera.width * _MARGIN),
        height=round(camera.height * _MARGIN),
        intrinsic=camera.intrinsic
        + np.array([[0, 0, camera.width * (_MARGIN - 1) / 2], [0, 0, camera.height * (_MARGIN - 1) / 2], [0, 0, 0]]),
    )
    step = steps_in_depth(points)
    near, _, _ = project_points(points, [wide])
    near = near[np.linalg.norm(points[near, :3], axis=1) < _FARTHEST]
    view = View(
        frame.token,
        camera.name,
        frame.image_path(camera),
        uv,
        np.linalg.norm(points[point, :3], axis=1),
        step[point],
    )
    look = _Look(camera, points[near, :3].astype(np.float64), step[near], edge_map(grey), twist, view)
    return look, len(point) / max(len(points), 1)


def steps_in_depth(points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Points with another one well behind them, right beside them on the same ring, bool [N].

    Rings are told by the elevation angle, so any cloud of a spinning or solid-state LiDAR will do.
    """
    xyz = points[:, :3].astype(np.float64)
    distance = np.linalg.norm(xyz, axis=1)
    flat = np.hypot(xyz[:, 0], xyz[:, 1])
    row = np.round(np.degrees(np.arctan2(xyz[:, 2], flat)) / 0.2)
    azimuth = np.arctan2(xyz[:, 1], xyz[:, 0])
    order = np.lexsort((azimuth, row))
    gap = np.diff(azimuth[order])
    beside = (np.diff(row[order]) == 0) & (gap < math.radians(0.8))
    further = np.diff(distance[order])
    least = np.maximum(0.7, 0.1 * np.minimum(distance[order][1:], distance[order][:-1]))
    step = np.zeros(len(points), bool)
    step[order[:-1][beside & (further > least)]] = True
    step[order[1:][beside & (-further > least)]] = True
    return step & (distance > 1)


def edge_map(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much of an edge is near each pixel, float32 [H, W], of mean 0 and deviation 1."""
    from scipy.ndimage import gaussian_filter

    across, down = np.zeros_like(grey), np.zeros_like(grey)
    across[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    down[1:-1] = grey[2:] - grey[:-2]
    strength = np.sqrt(np.hypot(across, down))
    # As wide as 0.2 degrees of a usual camera: about the gap between two of a cloud's points.
    blurred = gaussian_filter(strength, max(0.9, grey.shape[1] / 500))
    made: NDArray[np.float32] = ((blurred - blurred.mean()) / max(float(blurred.std()), 1e-6)).astype(np.float32)
    return made


@compiled()
def _sum(xyz, edge, transform, intrinsic, model, k, limit, width, height, strength, sums):  # type: ignore[no-untyped-def]
    """Add up ``strength`` under the points at steps and under the others, for each vertical strip; ``sums`` [B, 4]."""
    rows, columns = strength.shape
    blocks = len(sums)
    for i in range(len(xyz)):
        x, y, z = xyz[i]
        # Written out, as in project.py: with a function for both a projection takes 2 to 4 times as long.
        depth = transform[2, 0] * x + transform[2, 1] * y + transform[2, 2] * z + transform[2, 3]
        if not depth > 1.0:
            continue
        a = (transform[0, 0] * x + transform[0, 1] * y + transform[0, 2] * z + transform[0, 3]) / depth
        b = (transform[1, 0] * x + transform[1, 1] * y + transform[1, 2] * z + transform[1, 3]) / depth
        if not a * a + b * b <= limit:
            continue
        a, b = distort(model, k, a, b)
        u = intrinsic[0, 0] * a + intrinsic[0, 1] * b + intrinsic[0, 2]
        v = intrinsic[1, 1] * b + intrinsic[1, 2]
        if not 0.0 < u < width - 1.0 or not 0.0 < v < height - 1.0:
            continue
        value = strength[int(v * (rows - 1) / (height - 1) + 0.5), int(u * (columns - 1) / (width - 1) + 0.5)]
        block = min(int(u * blocks / width), blocks - 1)
        at = 0 if edge[i] else 2
        sums[block, at] += value
        sums[block, at + 1] += 1


def _fit(
    looks: Sequence[_Look],
    moved: Callable[[_Look], Matrix],
    blocks: int,
    others: Sequence[_Look] | None = None,
) -> NDArray[np.float64]:
    """How much rather points at steps lie on edges than others do, of each strip of each look, float64 [looks * blocks].

    Args:
        moved: the transform to use for a look.
        others: looks whose images are taken instead.
    """
    sums = np.zeros((len(looks), blocks, 4))
    for n, look in enumerate(looks):
        camera = look.camera
        model, k = lens_numbers(camera.model, camera.distortion)
        limit = field_limit(camera.model, camera.distortion)
        strength = (look if others is None else others[n]).strength
        transform, intrinsic = np.ascontiguousarray(moved(look)), np.ascontiguousarray(camera.intrinsic)
        size = float(camera.width), float(camera.height)
        _sum(look.xyz, look.edge, transform, intrinsic, model, k, limit, *size, strength, sums[n])
    sums = sums.reshape(-1, 4)
    with np.errstate(invalid="ignore", divide="ignore"):
        fit = sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]
    return np.where((sums[:, 1] >= 10) & (sums[:, 3] >= 10), fit, np.nan)


def _better(there: NDArray[np.float64], here: NDArray[np.float64]) -> tuple[float, float]:
    """By how much one place fits better than another, and how many standard errors that is."""
    gain = there - here
    gain = gain[np.isfinite(gain)]
    if len(gain) < _LEAST:
        return 0.0, 0.0
    return float(gain.mean()), float(gain.mean() / max(gain.std(ddof=1) / math.sqrt(len(gain)), 1e-9))


def _rotated(look: _Look, degrees: Sequence[float]) -> Matrix:
    x, y, z = np.radians(degrees)
    # Small angles: the order does not matter.
    vector = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    left, _, right = np.linalg.svd(np.eye(3) + vector)
    matrix = np.eye(4)
    matrix[:3, :3] = left @ right
    rotated: Matrix = matrix @ look.camera.lidar_to_camera
    return rotated


def fit_when_rotated(frame: Frame, degrees: Sequence[float], blocks: int = 4) -> float:
    """How well a frame's edges fit when every camera is rotated by so much about its x, y and z axes."""
    points = frame.points()
    looks = [_look(frame, camera, points, None)[0] for camera in frame.cameras]
    return float(np.nanmean(_fit(looks, lambda look: _rotated(look, degrees), blocks)))


def _later(look: _Look, seconds: float) -> Matrix:
    """The transform if the image was taken so much later than its time says."""
    from scipy.linalg import expm

    assert look.twist is not None
    later: Matrix = look.camera.lidar_to_camera @ expm(-look.twist * seconds)
    return later


def _misplaced(name: str, looks: Sequence[_Look], settings: CheckSettings, result: DataCheck) -> list[Failure]:
    """A camera that fits better rotated, or its images at another time."""
    here = _fit(looks, lambda look: look.camera.lidar_to_camera, settings.blocks)
    if np.isfinite(here).any():
        result.fit[name] = float(np.nanmean(here))
    if np.isfinite(here).sum() < _LEAST:
        result.notes.append(f"{name}: too few frames or steps in depth to judge its calibration")
        return []

    def fit_rotated(degrees: Sequence[float]) -> NDArray[np.float64]:
        return _fit(looks, lambda look: _rotated(look, degrees), settings.blocks)

    best, place = here, (0.0, 0.0, 0.0)
    for width, step in ((2.0, 0.5), (0.5, 0.25)):  # first far and coarse, then near and fine
        offsets = np.arange(-width, width + step / 2, step)
        centre = place
        tries = [(centre[0] + a, centre[1] + b, centre[2]) for a in offsets for b in offsets]
        tries += [(centre[0], centre[1], centre[2] + c) for c in offsets]
        for degrees in tries:
            found = fit_rotated(degrees)
            if _better(found, best)[0] > 0:
                best, place = found, degrees
    angle = float(np.linalg.norm(place))
    gain, sure = _better(best, here)
    late_gain, late_sure, late = 0.0, 0.0, 0.0
    if moving := [look for look in looks if look.twist is not None and np.linalg.norm(look.twist[:3, 3]) > 1]:
        still = _fit(moving, lambda look: look.camera.lidar_to_camera, settings.blocks)
        for seconds in np.arange(-0.2, 0.21, 0.02):
            found = _fit(moving, lambda look, s=float(seconds): _later(look, s), settings.blocks)  # type: ignore[misc]
            a_gain, a_sure = _better(found, still)
            if a_gain > late_gain:
                late_gain, late_sure, late = a_gain, a_sure, float(seconds)
    is_late = abs(late) >= settings.late_s - 1e-9 and late_sure > settings.sure
    is_rotated = angle >= settings.rotation_deg - 1e-9 and sure > settings.sure
    if is_late and (late_gain >= 0.8 * gain or not is_rotated):
        when = "earlier" if late < 0 else "later"
        return [
            Failure(
                name,
                f"edges fit better if its images were taken {1000 * abs(late):.0f} ms {when} than their times say "
                f"(by {late_sure:.0f} standard errors): check its clock",
            )
        ]
    if is_rotated:
        axes = ", ".join(
            f"{v:+.2f} about {axis}" for v, axis in zip(place, ("x (right)", "y (down)", "z (ahead)")) if v
        )
        return [
            Failure(
                name,
                f"edges fit better if the camera is rotated by {angle:.1f} degrees ({axes}; by {sure:.0f} standard errors): "
                "check its extrinsic",
            )
        ]
    return []


def _swapped(looks: dict[str, list[_Look]], settings: CheckSettings, result: DataCheck) -> set[str]:
    """Cameras whose images fit better exchanged; noted as failures."""
    found: list[tuple[float, str, str]] = []
    for one, other in combinations(looks, 2):
        if len(looks[one]) != len(looks[other]):
            continue
        pairs = [(looks[one], looks[other]), (looks[other], looks[one])]
        here = [_fit(mine, lambda look: look.camera.lidar_to_camera, settings.blocks) for mine, _ in pairs]
        there = [
            _fit(mine, lambda look: look.camera.lidar_to_camera, settings.blocks, theirs) for mine, theirs in pairs
        ]
        _, sure = _better(np.concatenate(there), np.concatenate(here))
        if sure > settings.sure:
            found.append((sure, one, other))
    swapped: set[str] = set()
    for sure, one, other in sorted(found, reverse=True):
        if not {one, other} & swapped:
            swapped |= {one, other}
            what = f"edges fit better if the images of {one} and {other} change places (by {sure:.0f} standard errors)"
            result.failures.append(Failure(f"{one}, {other}", f"{what}: they are swapped"))
    return swapped


@dataclass(frozen=True)
class CheckReport:
    """What is printed of a :class:`DataCheck`; see there."""

    frames: int
    scenes: int
    looked_at: int
    points: int
    share: dict[str, float]
    fit: dict[str, float]
    delay: dict[str, list[float]]
    speed: float | None
    notes: list[str]
    failures: list[Failure]


def report_of(check: DataCheck) -> CheckReport:
    """A check without its drawings."""
    return CheckReport(**{f.name: getattr(check, f.name) for f in fields(CheckReport)})


def summary_of(check: DataCheck) -> dict[str, Any]:
    """The same as JSON has it."""
    return asdict(report_of(check))
