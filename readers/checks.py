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
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import Failure, OlivineError, track
from .check_edges import LEAST, Look, View, edge_fit, gain_over, look_at, rotated, taken_later
from .frame import Frame

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
        least_motion: metres that a scene must drive for its direction to be judged.
        rising: share of its motion along up from which on the poses are not the vehicle's.
        off_middle: share of an image's width or height that a principal point is usually not from the middle.
    """

    frames: int = 24
    rotation_deg: float = 0.5
    late_s: float = 0.04
    sure: float = 4.0
    few: float = 0.6
    blocks: int = 4
    speed: float = 70.0
    least_motion: float = 2.0
    rising: float = 0.7
    off_middle: float = 0.15


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
    result.notes += _off_middle(frames, settings)
    delays: dict[str, list[float]] = {}
    counts: dict[str, list[tuple[Frame, int]]] = {}
    seen: dict[str, str] = {}
    looks: dict[str, list[Look]] = {}
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
                    look, share = look_at(frame, camera, points, twists[frame.token])
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
    return found + _rising(members, settings)


def _rising(members: Sequence[Frame], settings: CheckSettings) -> list[Failure]:
    """A failure where most of a scene's motion is along up: the poses are another sensor's than said."""
    total = along = 0.0
    for before, after in pairwise(members):
        step = before.pose[:3, :3].T @ (after.pose[:3, 3] - before.pose[:3, 3])
        moved, seconds = float(np.linalg.norm(step)), (after.timestamp - before.timestamp) / 1e6
        if max(seconds, 0) < moved < settings.speed * seconds:  # over 1 m/s: a pose's noise has any direction
            total, along = total + moved, along + abs(float(step @ np.array(before.up)))
    if total < settings.least_motion or along < settings.rising * total:
        return []
    what = f"{100 * along / total:.0f} % of its motion by the poses is straight up or down"
    return [Failure(members[0].scene, f"{what}: they are of another sensor than said (in rig.yaml, poses.of)")]


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


def _off_middle(frames: Sequence[Frame], settings: CheckSettings) -> list[str]:
    """A line for each camera whose principal point is far from the middle of its images."""
    notes: dict[str, str] = {}
    for camera in (camera for frame in frames for camera in frame.cameras if camera.name not in notes):
        size, place = np.array([camera.width, camera.height]), camera.intrinsic[:2, 2]
        if (np.abs(place - (size - 1) / 2) > settings.off_middle * size).any():
            notes[camera.name] = (
                f"{camera.name}: the principal point ({place[0]:.0f}, {place[1]:.0f}) is far from the middle of images of "
                f"{size[0]}x{size[1]}: they are cropped, or the intrinsic is of images of another size"
            )
    return list(notes.values())


# -- edges --------------------------------------------------------------------------------------------------------------


def _misplaced(name: str, looks: Sequence[Look], settings: CheckSettings, result: DataCheck) -> list[Failure]:
    """A camera that fits better rotated, or its images at another time."""
    here = edge_fit(looks, lambda look: look.camera.lidar_to_camera, settings.blocks)
    if np.isfinite(here).any():
        result.fit[name] = float(np.nanmean(here))
    if np.isfinite(here).sum() < LEAST:
        result.notes.append(f"{name}: too few frames or steps in depth to judge its calibration")
        return []

    def fit_rotated(degrees: Sequence[float]) -> NDArray[np.float64]:
        return edge_fit(looks, lambda look: rotated(look, degrees), settings.blocks)

    best, place = here, (0.0, 0.0, 0.0)
    for width, step in ((2.0, 0.5), (0.5, 0.25)):  # first far and coarse, then near and fine
        offsets = np.arange(-width, width + step / 2, step)
        centre = place
        tries = [(centre[0] + a, centre[1] + b, centre[2]) for a in offsets for b in offsets]
        tries += [(centre[0], centre[1], centre[2] + c) for c in offsets]
        for degrees in tries:
            found = fit_rotated(degrees)
            if gain_over(found, best)[0] > 0:
                best, place = found, degrees
    angle = float(np.linalg.norm(place))
    gain, sure = gain_over(best, here)
    late_gain, late_sure, late = 0.0, 0.0, 0.0
    if moving := [look for look in looks if look.twist is not None and np.linalg.norm(look.twist[:3, 3]) > 1]:
        still = edge_fit(moving, lambda look: look.camera.lidar_to_camera, settings.blocks)
        for seconds in np.arange(-0.2, 0.21, 0.02):
            found = edge_fit(moving, lambda look, s=float(seconds): taken_later(look, s), settings.blocks)  # type: ignore[misc]
            a_gain, a_sure = gain_over(found, still)
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


def _swapped(looks: dict[str, list[Look]], settings: CheckSettings, result: DataCheck) -> set[str]:
    """Cameras whose images fit better exchanged; noted as failures."""
    found: list[tuple[float, str, str]] = []
    for one, other in combinations(looks, 2):
        if len(looks[one]) != len(looks[other]):
            continue
        pairs = [(looks[one], looks[other]), (looks[other], looks[one])]
        here = [edge_fit(mine, lambda look: look.camera.lidar_to_camera, settings.blocks) for mine, _ in pairs]
        there = [
            edge_fit(mine, lambda look: look.camera.lidar_to_camera, settings.blocks, theirs) for mine, theirs in pairs
        ]
        _, sure = gain_over(np.concatenate(there), np.concatenate(here))
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
