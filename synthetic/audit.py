"""How exact a scene's labels are: pairs of points and pixels whose classes are both known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .capture import ego_matrix
from .kinds import PROMPT_OF_KIND
from .lidar import LidarModel, scan, trace
from .rig import Rig
from .stage import stage_at
from .tiles import look
from .world import World


@dataclass(frozen=True)
class Exactness:
    """Counts over the pairs of one frame, or of several added up.

    Attributes:
        pairs: all pairs (depth over 1 m, inside the image by more than nothing and less than a pixel's border).
        visible: those whose camera ray, at its own time, first meets the very solid the point lies on.
        visible_right: those of them whose rounded pixel carries the point's class.
        hidden: the others: another surface stands before the point (parallax, or something moved meanwhile).
        hidden_right: those of them whose pixel carries the point's class all the same.
    """

    pairs: int = 0
    visible: int = 0
    visible_right: int = 0
    hidden: int = 0
    hidden_right: int = 0

    def __add__(self, other: Exactness) -> Exactness:
        return Exactness(
            self.pairs + other.pairs,
            self.visible + other.visible,
            self.visible_right + other.visible_right,
            self.hidden + other.hidden,
            self.hidden_right + other.hidden_right,
        )


def exactness(
    world: World, rig: Rig, *, seconds: float, frame: int, image_scale: float, model: LidarModel
) -> Exactness:
    """Compare the exact class of each point with the exact mask's at its pixel, for the frame at ``seconds``."""
    rng = np.random.default_rng((world.seed, frame, 2))
    stage = stage_at(world, seconds)
    to_street = ego_matrix(world.ego.pose(seconds)) @ rig.lidar.to_ego
    directions = rig.lidar.directions()
    sweep = scan(stage, model, rng, lidar_to_street=to_street, lidar_to_ego=rig.lidar.to_ego, directions=directions)
    returned = sweep.part != -1
    # As stored: float32 in the LiDAR frame.
    local = (directions * sweep.distance[:, None])[returned].astype(np.float32).astype(np.float64)
    xyz = local @ to_street[:3, :3].T + to_street[:3, 3]
    own, truth = sweep.part[returned], PROMPT_OF_KIND[sweep.kind[returned]]
    total = Exactness()
    for mount in rig.cameras:
        when = seconds + mount.delay_us * 1e-6
        then = stage_at(world, when)
        camera = ego_matrix(world.ego.pose(when)) @ mount.to_ego
        width, height, lens = mount.scaled(image_scale)
        _, part = look(then.still, then.moving, camera, lens, width, height)
        mask = PROMPT_OF_KIND[then.kind[part]]
        ray = xyz - camera[:3, 3]
        seen = ray @ camera[:3, :3]
        depth = np.where(seen[:, 2] > 1.0, seen[:, 2], np.inf)
        u, v = lens[0, 0] * seen[:, 0] / depth + lens[0, 2], lens[1, 1] * seen[:, 1] / depth + lens[1, 2]
        inside = (seen[:, 2] > 1.0) & (u > 0) & (u < width - 1) & (v > 0) & (v < height - 1)
        ray = ray[inside] / np.linalg.norm(ray[inside], axis=1, keepdims=True)
        _, met, _ = trace(then, np.ascontiguousarray(camera[:3, 3]), ray, 1e30)
        right = mask[np.rint(v[inside]).astype(int), np.rint(u[inside]).astype(int)] == truth[inside]
        visible = met == own[inside]
        total += Exactness(
            int(inside.sum()),
            int(visible.sum()),
            int((visible & right).sum()),
            int((~visible).sum()),
            int((~visible & right).sum()),
        )
    return total
