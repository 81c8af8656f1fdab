"""The synthetic sensors give what the real ones give, and labels are exact where the surface is in view."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from olivine.synthetic import nuscenes
from olivine.synthetic.audit import exactness
from olivine.synthetic.capture import Capture, capture
from olivine.synthetic.kinds import KIND
from olivine.synthetic.rig import nuscenes_rig
from olivine.synthetic.world import make_world


@pytest.fixture(scope="module")
def frames() -> list[Capture]:
    made = []
    for scene in range(12):
        world = make_world(0, scene, 20.0)
        for second in (3.0, 12.0):
            made.append(  # noqa: PERF401
                capture(
                    world,
                    nuscenes_rig(),
                    seconds=second,
                    frame=int(second),
                    image_scale=0.02,
                    model=nuscenes.MODEL,
                    keep_lost=True,
                )
            )
    return made


def real_points(folder: Path) -> np.ndarray:
    file = next((folder / "samples/LIDAR_TOP").glob("*.bin"))
    return np.fromfile(file, np.float32).reshape(-1, 5).astype(np.float64)


@pytest.mark.frames("real")
def test_distances_are_distributed_as_in_the_real_keyframe(frames: list[Capture], nuscenes_keyframe: Path) -> None:
    real = np.linalg.norm(real_points(nuscenes_keyframe)[:, :3], axis=1)
    made = np.concatenate([np.linalg.norm(f.points[:, :3].astype(float), axis=1) for f in frames])
    assert ks_2samp(real, made).statistic < 0.15
    assert ks_2samp(real[real > 1], made[made > 1]).statistic < 0.15


@pytest.mark.frames("real")
def test_each_beam_returns_as_often_as_the_real_one(frames: list[Capture], nuscenes_keyframe: Path) -> None:
    real = real_points(nuscenes_keyframe)
    far = np.linalg.norm(real[:, :3], axis=1) > 1
    expected = np.bincount(real[far, 4].astype(int), minlength=32)
    counts = [np.bincount(f.beam[np.linalg.norm(f.points[:, :3], axis=1) > 1], minlength=32) for f in frames]
    assert all(len(f.points) == 34_688 for f in frames)
    assert np.abs(np.mean(counts, axis=0) - expected).max() < 200
    assert np.corrcoef(np.mean(counts, axis=0), expected)[0, 1] > 0.95


@pytest.mark.frames("real")
def test_elevations_of_the_beams_are_the_real_ones(nuscenes_keyframe: Path) -> None:
    real = real_points(nuscenes_keyframe)
    distance = np.linalg.norm(real[:, :3], axis=1)
    elevation = np.arcsin(real[:, 2] / np.maximum(distance, 1e-9))
    for beam, angle in enumerate(nuscenes_rig().lidar.elevation):
        if beam >= 16:  # lower beams end so near that the lenses' places inside the sensor show
            measured = np.median(elevation[(real[:, 4] == beam) & (distance > 8)])
            assert measured == pytest.approx(angle, abs=np.deg2rad(0.1))


def test_class_shares_are_skewed_as_in_the_real_data(frames: list[Capture]) -> None:
    kinds = np.concatenate([f.sweep.kind for f in frames])
    kinds = kinds[~np.isin(kinds, [KIND["nothing"], KIND["ego"]])]
    road = np.mean(kinds == KIND["road"])
    bicycle = np.mean(np.isin(kinds, [KIND["bicycle"], KIND["cyclist"]]))
    assert 0.33 < road < 0.44
    assert 0.008 < bicycle < 0.025


def test_labels_are_exact_where_the_camera_meets_the_points_own_surface() -> None:
    world = make_world(0, 2, 20.0)
    found = exactness(world, nuscenes_rig(), seconds=4.0, frame=0, image_scale=1.0, model=nuscenes.MODEL)
    assert found.pairs > 15_000
    assert found.visible + found.hidden == found.pairs
    assert found.visible / found.pairs > 0.85
    assert found.visible_right / found.visible >= 0.995
