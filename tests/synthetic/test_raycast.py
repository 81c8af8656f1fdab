"""Rays meet solids where geometry says, whichever search finds them."""

from __future__ import annotations

import numpy as np
import pytest

from olivine.synthetic.camera import take_picture
from olivine.synthetic.capture import ego_matrix
from olivine.synthetic.lidar import trace
from olivine.synthetic.parts import BOX, ELLIPSOID, Builder, Parts
from olivine.synthetic.raycast import DEPTH, FAR, blocked, build_hierarchy, closest, surface
from olivine.synthetic.rig import nuscenes_rig
from olivine.synthetic.stage import stage_at
from olivine.synthetic.sun import shaded, sun_grid
from olivine.synthetic.tiles import look
from olivine.synthetic.world import World, make_world


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(5, 1, 8.0)


def cast(parts: Parts, origin: np.ndarray, direction: np.ndarray) -> tuple[float, int]:
    tree = build_hierarchy(parts)
    return closest(*tree.arrays, *origin, *direction, FAR, np.empty(DEPTH, np.int64), np.empty(DEPTH))


def inside(parts: Parts, k: int, points: np.ndarray) -> np.ndarray:
    """Whether points lie in part k, from the definition of its shape and from nothing of the ray caster."""
    local = (points - parts.center[k]) @ parts.rotation[k].T / parts.half[k]
    x, y, z = local.T
    up = (z + 1) / 2
    ax, ay, shear = parts.taper[k]
    if parts.shape[k] == BOX:
        middle = shear * up
        return (abs(x - middle) <= 1 - ax * up) & (abs(y) <= 1 - ay * up) & (abs(z) <= 1)
    if parts.shape[k] == ELLIPSOID:
        return x * x + y * y + z * z <= 1
    return (x * x + y * y <= (1 - ax * up) ** 2) & (abs(z) <= 1)


def some_solids() -> Parts:
    b = Builder()
    rng = np.random.default_rng(3)
    for k in range(60):
        place, size = rng.uniform(-6, 6, 3), rng.uniform(0.3, 3, 3)
        taper = (float(rng.uniform(0, 0.9)), float(rng.uniform(0, 0.9)), float(rng.uniform(-0.4, 0.4)))
        if k % 5 == 0:
            taper = (-0.5, -0.3, 0.0)  # wider at the top
        axis = "xyz"[k % 3]
        b.add(
            k % 3,
            5,
            "metal",
            place,
            size,
            (1, 1, 1),
            taper=taper,
            yaw=rng.uniform(0, 6),
            pitch=rng.uniform(-1, 1),
            axis=axis,
        )
    return b.parts()


def test_the_first_hit_is_where_marching_along_the_ray_first_enters_a_solid() -> None:
    parts = some_solids()
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(70):
        origin = rng.normal(size=3)
        origin *= 14 / np.linalg.norm(origin)
        direction = rng.uniform(-4, 4, 3) - origin
        direction /= np.linalg.norm(direction)
        t, found = cast(parts, origin, direction)
        steps = np.arange(7, 21, 2e-3)
        points = origin + steps[:, None] * direction
        first, which = FAR, -1
        for k in range(len(parts)):
            there = inside(parts, k, points)
            if there.any() and steps[there.argmax()] < first:
                first, which = steps[there.argmax()], k
        if which < 0:
            # Marching may step over a sliver that the ray touches; nothing thicker.
            assert (
                found < 0
                or not inside(parts, found, origin + np.linspace(t + 2e-3, t + 4e-3, 3)[:, None] * direction).all()
            )
            continue
        hits += 1
        assert t == pytest.approx(first, abs=2.1e-3) or t < first
        if abs(t - first) < 2.1e-3:
            nx, ny, nz, *_ = surface(build_hierarchy(parts).solids, found, *(origin + t * direction))
            assert np.dot((nx, ny, nz), direction) < 1e-9, "normals look against the ray"
            assert np.linalg.norm((nx, ny, nz)) == pytest.approx(1)
    assert hits > 25


def test_surfaces_lie_inside_the_boxes_the_search_uses() -> None:
    parts = some_solids()
    low, high = parts.bounds()
    rng = np.random.default_rng(5)
    for k in range(len(parts)):
        points = parts.center[k] + rng.uniform(-4, 4, (4000, 3))
        points = points[inside(parts, k, points)]
        assert ((points >= low[k]) & (points <= high[k])).all()


def test_tiles_and_the_search_tree_see_the_same(world: World) -> None:
    stage = stage_at(world, 2.0)
    for mount in nuscenes_rig().cameras[::2]:
        to_street = ego_matrix(world.ego.pose(2.0)) @ mount.to_ego
        width, height, lens = mount.scaled(0.13)
        distance, part = look(stage.still, stage.moving, to_street, lens, width, height)
        v, u = np.mgrid[:height, :width]
        rays = np.stack([(u - lens[0, 2]) / lens[0, 0], (v - lens[1, 2]) / lens[1, 1], np.ones_like(u)], -1)
        rays = rays.reshape(-1, 3) / np.linalg.norm(rays.reshape(-1, 3), axis=1, keepdims=True)
        rays = np.ascontiguousarray(rays @ to_street[:3, :3].T)
        expected, expected_part, _ = trace(stage, to_street[:3, 3].copy(), rays, FAR)
        np.testing.assert_allclose(distance.ravel(), expected, rtol=1e-9)
        other = expected_part.reshape(height, width) != part
        assert other.mean() < 1e-3, "only where two surfaces coincide"
        kinds = stage.kind[expected_part.reshape(height, width)]
        assert (kinds == stage.kind[part]).all()


def test_the_shadow_grid_and_the_search_tree_agree(world: World) -> None:
    sun = world.light.to_sun
    tree = world.tree
    grid = sun_grid(tree.solids, sun)
    rng = np.random.default_rng(6)
    stack = np.empty(DEPTH, np.int64)
    results = []
    for _ in range(3000):
        p = (float(rng.uniform(-40, 60)), float(rng.uniform(-30, 30)), float(rng.uniform(0.3, 8)))
        a = shaded(grid.arrays, *p)
        b = blocked(*tree.arrays, *p, *sun, FAR, stack)
        results.append((a, b))
    assert all(a == b for a, b in results)
    assert 0.05 < np.mean([a for a, _ in results]) < 0.95


def test_a_picture_has_light_and_shade_and_no_flat_class(world: World) -> None:
    stage = stage_at(world, 2.0)
    mount = nuscenes_rig().cameras[0]
    width, height, lens = mount.scaled(0.2)
    to_street = ego_matrix(world.ego.pose(2.0)) @ mount.to_ego
    picture = take_picture(world, stage, to_street, lens, width, height, gain=1.0, grain=0.0, noise_seed=1)
    for value in np.unique(picture.prompt):
        pixels = picture.image[picture.prompt == value].reshape(-1, 3)
        if len(pixels) > 300:
            assert pixels.astype(float).std(axis=0).mean() > 4, f"class {value} is one flat colour"
