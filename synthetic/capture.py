"""One frame of a scene as the rig's sensors take it, each at its own time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .camera import Picture, take_picture
from .compiled import compiled
from .lidar import LidarModel, Sweep, scan, trace
from .parts import turn_z
from .rig import CameraMount, LidarMount, Rig, rigid
from .stage import Stage, stage_at
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
    """One frame.

    Attributes:
        ego: pose (x, y, yaw) in the street frame at the LiDAR's time.
        points: float32 [N, 4], x, y, z in metres in the LiDAR frame and intensity 0..255.
        beam: uint8 [N].
        instance: uint16 [N], 0 = none.
        moving: uint8 [N], 1 on objects that move at this moment.
    """

    ego: tuple[float, float, float]
    points: NDArray[np.float32]
    beam: NDArray[np.uint8]
    instance: NDArray[np.uint16]
    moving: NDArray[np.uint8]
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
    instance, moving = _owners(world, stage, sweep, seconds)
    return Capture(ego, points, beam[kept], instance, moving, sweep, tuple(shots), annotations)


def _owners(world: World, stage: Stage, sweep: Sweep, seconds: float) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """The instance of each point, and whether it moves."""
    instance = stage.instance[sweep.part]
    moves = np.zeros(len(world.actors) + 1, np.uint8)
    for actor in world.moving_actors:
        moves[actor.instance] = not _stands(actor, seconds)
    return instance, moves[instance]


def _stands(actor: Actor, seconds: float) -> bool:
    x, y, _ = actor.path.pose(seconds)
    later = actor.path.pose(seconds + 0.1)
    return float(np.hypot(later[0] - x, later[1] - y)) < 0.02


def _smeared(world: World, mount: LidarMount, seconds: float) -> NDArray[np.float64]:
    """Where de-skewing puts a range of zero: at the sensor, moved by the drive since that firing, [N, 3]."""
    here = ego_matrix(world.ego.pose(seconds)) @ mount.to_ego
    before = ego_matrix(world.ego.pose(seconds - mount.period_us * 1e-6)) @ mount.to_ego
    shift = (np.linalg.inv(here) @ before)[:3, 3]
    age = 1.0 - np.arange(mount.columns) / mount.columns
    return np.repeat(age[:, None] * shift, len(mount.elevation), axis=0)


@compiled
def _count_inside(
    xyz: NDArray[np.float64], center: NDArray[np.float64], half: NDArray[np.float64], yaw: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Points [N, 3], in the order of x, inside each box."""
    count = np.zeros(len(center), np.int64)
    for k in range(len(center)):
        c, s = np.cos(yaw[k]), np.sin(yaw[k])
        reach = np.sqrt(half[k, 0] ** 2 + half[k, 1] ** 2) + 1e-6
        for i in range(np.searchsorted(xyz[:, 0], center[k, 0] - reach), len(xyz)):
            dx = xyz[i, 0] - center[k, 0]
            if dx > reach:
                break
            dy = xyz[i, 1] - center[k, 1]
            along, across = c * dx + s * dy, c * dy - s * dx
            if abs(along) <= half[k, 0] and abs(across) <= half[k, 1] and abs(xyz[i, 2] - center[k, 2]) <= half[k, 2]:
                count[k] += 1
    return count


def _annotate(
    world: World,
    stage: Stage,
    seconds: float,
    points: NDArray[np.float32],
    lidar_to_street: NDArray[np.float64],
    shots: list[Shot],
) -> tuple[Annotation, ...]:
    """The boxes of all objects with at least one point."""
    if not world.actors:
        return ()
    xyz = points[:, :3].astype(np.float64) @ lidar_to_street[:3, :3].T + lidar_to_street[:3, 3]
    xyz = xyz[np.argsort(xyz[:, 0])]
    poses = [actor.path.pose(seconds) for actor in world.actors]
    center = np.array(
        [
            turn_z(yaw) @ np.array(actor.box_center) + np.array([x, y, actor.z])
            for actor, (x, y, yaw) in zip(world.actors, poses)
        ]
    )
    size = np.array([actor.size for actor in world.actors])
    inside = _count_inside(xyz, center, size / 2, np.array([pose[2] for pose in poses]))
    chosen = [k for k in range(len(poses)) if inside[k] > 0]
    seen = _visibility(stage, [(world.actors[k], poses[k]) for k in chosen], shots)
    annotations = []
    for k, share in zip(chosen, seen):
        actor, yaw = world.actors[k], poses[k][2]
        level = 1 + int(np.searchsorted(VISIBILITY_EDGES, share, side="right"))
        where = (float(center[k, 0]), float(center[k, 1]), float(center[k, 2]))
        annotations.append(Annotation(actor, where, actor.size, yaw, int(inside[k]), level, _stands(actor, seconds)))
    return tuple(annotations)


def _visibility(
    stage: Stage, objects: list[tuple[Actor, tuple[float, float, float]]], shots: list[Shot]
) -> NDArray[np.float64]:
    """Share of each object's parts that the camera which sees most of it has in view, float64 [O]."""
    best = np.zeros(len(objects))
    if not objects:
        return best
    targets = np.concatenate([a.parts.placed(x, y, a.z, yaw).center for a, (x, y, yaw) in objects])
    count = np.array([len(a.parts) for a, _ in objects])
    owner = np.repeat(np.arange(len(objects)), count)
    instance = np.array([a.instance for a, _ in objects])[owner]
    for shot in shots:
        to_street = ego_matrix(shot.ego) @ shot.mount.to_ego
        ray = targets - to_street[:3, 3]
        local = ray @ to_street[:3, :3]
        depth = np.where(local[:, 2] > 0.5, local[:, 2], np.inf)
        u = shot.intrinsic[0, 0] * local[:, 0] / depth + shot.intrinsic[0, 2]
        v = shot.intrinsic[1, 1] * local[:, 1] / depth + shot.intrinsic[1, 2]
        framed = (local[:, 2] > 0.5) & (u > 0) & (u < shot.width - 1) & (v > 0) & (v < shot.height - 1)
        if not framed.any():
            continue
        ray = ray[framed] / np.linalg.norm(ray[framed], axis=1, keepdims=True)
        _, part, _ = trace(stage, np.ascontiguousarray(to_street[:3, 3]), ray, 200.0)
        hit = stage.instance[part] == instance[framed]
        best = np.maximum(best, np.bincount(owner[framed][hit], minlength=len(objects)) / count)
    return best
