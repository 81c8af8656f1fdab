"""--visibility occlusion: what a nearer surface hides goes, what nothing hides stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from olivine.labelgen.store import LabelStore
from olivine.pairs.build import build_pairs
from olivine.pairs.project import project_points
from olivine.pairs.settings import PairSettings
from olivine.pairs.shards import open_shards
from olivine.pairs.visibility import CLEARANCE, HALF_HEIGHT, HALF_WIDTH, NEARER_FACTOR, NEARER_METRES, visible_pairs
from olivine.readers.frame import Camera, Frame

CAMERA = Camera("c", "samples/c/x.jpg", 800, 450, np.array([[600.0, 0, 400], [0, 600, 225], [0, 0, 1]]), np.eye(4))


def _wall(depth: float, width: float, step: float) -> np.ndarray:
    x, y = np.meshgrid(np.arange(-width, width + step, step), np.arange(-width, width + step, step))
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, depth)], axis=1).astype(np.float32)


def _visible(points: np.ndarray) -> np.ndarray:
    point, camera, uv = project_points(points, [CAMERA])
    keep = np.zeros(len(points), bool)
    keep[point[visible_pairs(points, [CAMERA], point, camera, uv)]] = True
    return keep


def test_a_wall_behind_a_plate_is_hidden_and_the_rest_of_it_is_not() -> None:
    plate, wall = _wall(5, 0.5, 0.03), _wall(20, 5, 0.1)
    keep = _visible(np.concatenate([plate, wall]))
    behind = (np.abs(wall[:, :2]) < 0.5 * 4).all(1)  # seen from the camera the plate covers 4 times its size
    beside = (np.abs(wall[:, :2]) > 0.5 * 4 + 20 * max(HALF_WIDTH, HALF_HEIGHT) + 0.1).any(1)
    assert keep[: len(plate)].all()
    assert not keep[len(plate) :][behind].any() and keep[len(plate) :][beside].all()


def test_a_road_seen_at_a_low_angle_hides_nothing_of_itself() -> None:
    x, z = np.meshgrid(np.linspace(-10, 10, 80), np.linspace(4, 60, 120))
    road = np.stack([x.ravel(), np.full(x.size, 1.7), z.ravel()], axis=1).astype(np.float32)
    seen = project_points(road, [CAMERA])[0]
    assert _visible(road)[seen].mean() > 0.97


def test_it_does_what_its_definition_says_on_the_keyframe(keyframe: Frame) -> None:
    """Against the definition, pair by pair."""
    points = keyframe.points()
    point, camera, uv = project_points(points, keyframe.cameras)
    keep = visible_pairs(points, keyframe.cameras, point, camera, uv)
    assert 0.8 < keep.mean() < 1
    for c in (0, 3):
        view, mine = keyframe.cameras[c], camera == c
        depth = points[point[mine], :3].astype(np.float64) @ view.lidar_to_camera[2, :3] + view.lidar_to_camera[2, 3]
        x, y = (uv[mine].astype(np.float64) / np.diag(view.intrinsic)[:2]).T
        for i in range(0, len(depth), 7):
            window = (np.abs(x - x[i]) <= HALF_WIDTH) & (np.abs(y - y[i]) <= HALF_HEIGHT)
            nearer = depth < NEARER_FACTOR * depth[i] - NEARER_METRES
            off_the_road = 1 / depth > 1 / depth[i] + np.abs(y - y[i]) / CLEARANCE
            assert keep[mine][i] != (window & nearer & off_the_road).any()


def test_the_setting_drops_the_pairs_from_the_shards(make_store: Callable[..., LabelStore], tmp_path: Path) -> None:
    store = make_store({"a": 1}, points=3000)
    all_pairs = build_pairs(store, tmp_path / "all", PairSettings(), split="train").pairs
    fewer = build_pairs(store, tmp_path / "some", PairSettings(visibility="occlusion"), split="train").pairs
    assert 0 < fewer < all_pairs
    (record,) = open_shards(tmp_path / "some")
    assert record.class_count.sum() == fewer
