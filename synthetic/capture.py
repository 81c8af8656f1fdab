"""One frame of a scene as the rig's sensors take it, each at its own time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .camera import Picture, Stage, stage_at, take_picture
from .lidar import LidarModel, Sweep, scan, trace
from .parts import turn_z
from .rig import CameraMount, LidarMount, Rig, rigid
from .traffic import Actor
from .world import World

VISIBILITY_EDGES = (0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Annotation:
    """A box in the street frame: centre, (length, width, height) in metres, yaw; points in it; visibility 1..4."""

    actor: Actor
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw: float
    point_count: int
    visibility: int
    standing: bool


@dataclass(frozen=True)
class Shot:
    """A camera's picture: the ego pose (x, y, yaw) in the street frame at its time."""

    mount: CameraMount
    width: int
    height: int
    intrinsic: NDArray[np.float64]
    ego: tuple[float, float, float]
    picture: Picture


@dataclass(frozen=True)
class Capture:
    """One frame: ``points`` float32 [N, 4] in the LiDAR frame and raw intensity, beams and kinds uint8 [N]."""

    ego: tuple[float, float, float]
    points: NDArray[np.float32]
    beam: NDArray[np.uint8]
    sweep: Sweep
    shots: tuple[Shot, ...]
    annotations: tuple[Annotation, ...]


def ego_matrix(pose: tuple[float, float, float]) -> NDArray[np.float64]:
    """Ego vehicle to street, float64 [4, 4], of (x, y, yaw)."""
    return rigid(turn_z(pose[2]), (pose[0], pose[1], 0.0))


def capture(
    world: World,
    rig: Rig,
    *,
    seconds: float,
    frame: int,
    image_scale: float,
    model: LidarModel,
    keep_lost: bool,
) -> Capture:
    """Take one frame.

    Args:
        seconds: the LiDAR's time in the scene.
        frame: the frame's number, for its random numbers.
        keep_lost: give rays without a return as points at the sensor, as nuScenes does.
    """
    rng = np.random.default_rng((world.seed, frame, 2))
    ego = world.ego.pose(seconds)
    stage = stage_at(world, seconds)
    mount = rig.lidar
    directions = mount.directions()
    lidar_to_street = ego_matrix(ego) @ mount.to_ego
    sweep = scan(stage, model, rng, lidar_to_street=lidar_to_street, lidar_to_ego=mount.to_ego, directions=directions)
    beam = np.tile(np.arange(len(mount.elevation), dtype=np.uint8), mount.columns)
    xyz = directions * sweep.distance[:, None]
    lost = sweep.kind == 0
    if keep_lost:
        xyz[lost] = _smeared(world, mount, seconds)[lost]
        kept = np.ones(len(beam), bool)
    else:
        kept = ~lost
    points = np.column_stack([xyz, sweep.intensity]).astype(np.float32)[kept]
    sweep = Sweep(sweep.distance[kept], sweep.intensity[kept], sweep.kind[kept], sweep.part[kept])
    shots = []
    exposure = np.random.default_rng((world.seed, 3)).uniform(0.88, 1.14, len(rig.cameras))
    for number, camera in enumerate(rig.cameras):
        when = seconds + camera.delay_us * 1e-6
        pose = world.ego.pose(when)
        width, height, intrinsic = camera.scaled(image_scale)
        picture = take_picture(
            world,
            stage_at(world, when),
            ego_matrix(pose) @ camera.to_ego,
            intrinsic,
            width,
            height,
            gain=float(exposure[number]),
            grain=2.5,
            noise_seed=world.seed + 1000 * frame + number,
        )
        shots.append(Shot(camera, width, height, intrinsic, pose, picture))
    annotations = _annotate(world, stage, seconds, points, lidar_to_street, shots)
    return Capture(ego, points, beam[kept], sweep, tuple(shots), annotations)


def _smeared(world: World, mount: LidarMount, seconds: float) -> NDArray[np.float64]:
    """Where de-skewing puts a range of zero: at the sensor, moved by the drive since that firing, [N, 3]."""
    here = ego_matrix(world.ego.pose(seconds)) @ mount.to_ego
    before = ego_matrix(world.ego.pose(seconds - mount.period_us * 1e-6)) @ mount.to_ego
    shift = (np.linalg.inv(here) @ before)[:3, 3]
    age = 1.0 - np.arange(mount.columns) / mount.columns
    return np.repeat(age[:, None] * shift, len(mount.elevation), axis=0)


def _annotate(
    world: World,
    stage: Stage,
    seconds: float,
    points: NDArray[np.float32],
    lidar_to_street: NDArray[np.float64],
    shots: list[Shot],
) -> tuple[Annotation, ...]:
    xyz = points[:, :3].astype(np.float64) @ lidar_to_street[:3, :3].T + lidar_to_street[:3, 3]
    annotations = []
    for actor in world.actors:
        x, y, yaw = actor.path.pose(seconds)
        offset = turn_z(yaw) @ np.array(actor.box_center)
        center = (x + offset[0], y + offset[1], actor.z + offset[2])
        reach = float(np.hypot(actor.size[0], actor.size[1]))
        if np.hypot(center[0] - lidar_to_street[0, 3], center[1] - lidar_to_street[1, 3]) > 110:
            continue
        near = xyz[(np.abs(xyz[:, 0] - center[0]) < reach) & (np.abs(xyz[:, 1] - center[1]) < reach)]
        local = (near - np.array(center)) @ turn_z(yaw)
        inside = int((np.abs(local) <= np.array(actor.size) / 2).all(axis=1).sum())
        if inside == 0:
            continue
        later = actor.path.pose(seconds + 0.1)
        standing = float(np.hypot(later[0] - x, later[1] - y)) < 0.02
        seen = _visibility(stage, actor, (x, y, yaw), shots)
        level = 1 + int(np.searchsorted(VISIBILITY_EDGES, seen, side="right"))
        annotations.append(Annotation(actor, center, actor.size, yaw, inside, level, standing))
    return tuple(annotations)


def _visibility(stage: Stage, actor: Actor, pose: tuple[float, float, float], shots: list[Shot]) -> float:
    """Share of the object's parts that the camera which sees most of it has in view."""
    targets = actor.parts.placed(pose[0], pose[1], actor.z, pose[2]).center
    best = 0.0
    for shot in shots:
        to_street = ego_matrix(shot.ego) @ shot.mount.to_ego
        local = (targets - to_street[:3, 3]) @ to_street[:3, :3]
        with np.errstate(divide="ignore", invalid="ignore"):
            u = shot.intrinsic[0, 0] * local[:, 0] / local[:, 2] + shot.intrinsic[0, 2]
            v = shot.intrinsic[1, 1] * local[:, 1] / local[:, 2] + shot.intrinsic[1, 2]
        framed = (local[:, 2] > 0.5) & (u > 0) & (u < shot.width - 1) & (v > 0) & (v < shot.height - 1)
        if not framed.any():
            continue
        ray = targets[framed] - to_street[:3, 3]
        span = np.linalg.norm(ray, axis=1, keepdims=True)
        _, part, _ = trace(stage, np.ascontiguousarray(to_street[:3, 3]), ray / span, 200.0)
        hit = (part >= 0) & (stage.instance[np.maximum(part, 0)] == actor.instance)
        best = max(best, float(hit.sum()) / len(targets))
    return best
