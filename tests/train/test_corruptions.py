"""Promises of clouds as another LiDAR, or a worse one, would have measured them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.pairs.shards import open_shards
from olivine.train.augment import NO_AUGMENTATION, AugmentSettings, generator_of, make_sample, stored_columns
from olivine.train.corruptions import CORRUPTIONS, beams_of, drop_beams, every_beam, range_noise
from olivine.train.loop import pretrain
from olivine.train.settings import PretrainSettings


def spinning(elevations: np.ndarray, columns: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A cloud of a spinning LiDAR in a square room, and the beam of each point."""
    rng = np.random.default_rng(seed)
    azimuth = rng.uniform(-np.pi, np.pi, (len(elevations), columns))
    distance = 20 / np.maximum(np.abs(np.cos(azimuth)), np.abs(np.sin(azimuth)))
    level = np.radians(elevations)[:, None] + rng.normal(0, 2e-4, azimuth.shape)
    xyz = np.stack([distance * np.cos(azimuth), distance * np.sin(azimuth), distance * np.tan(level)], -1).reshape(
        -1, 3
    )
    cloud = np.concatenate([xyz, rng.uniform(1, 2, (len(xyz), 1))], 1).astype(np.float32)
    return cloud, np.repeat(np.arange(len(elevations)), columns)


UPPER_AND_LOWER = np.concatenate(
    [np.linspace(-24.3, -8.8, 32), np.linspace(-8.33, 2, 32)]
)  # as a 64-beam LiDAR has them


@pytest.mark.parametrize("elevations", [UPPER_AND_LOWER, np.linspace(-30, 10, 32), np.linspace(-15, 15, 16)])
def test_beams_are_found_from_the_angles(elevations: np.ndarray) -> None:
    cloud, beam = spinning(elevations)
    np.testing.assert_array_equal(beams_of(cloud), beam)


def test_the_beams_of_a_keyframe_are_its_rings(nuscenes_keyframe: Path) -> None:
    """Points under 3 m, on the vehicle itself, are of no elevation; a ring's own spread is up to half the distance to the
    next one near the ground."""
    (path,) = nuscenes_keyframe.glob("samples/LIDAR_TOP/*.bin")
    stored = np.fromfile(path, np.float32).reshape(-1, 5)
    stored = stored[np.hypot(stored[:, 0], stored[:, 1]) > 3]
    found, ring = beams_of(stored[:, :3]), stored[:, 4].astype(int)
    assert len(np.unique(ring)) == 32 and abs(len(np.unique(found)) - 32) <= 1
    right = sum(np.bincount(ring[found == beam]).max() for beam in np.unique(found))
    assert right > 0.85 * len(ring)


def test_every_second_beam_of_64_is_the_32_beam_cloud() -> None:
    cloud, beam = spinning(UPPER_AND_LOWER)
    np.testing.assert_array_equal(every_beam(cloud, 2), beam % 2 == 0)
    np.testing.assert_array_equal(every_beam(cloud, 4, 1), beam % 4 == 1)


def test_a_dropped_beam_goes_whole_and_about_the_share_asked_for() -> None:
    cloud, beam = spinning(UPPER_AND_LOWER)
    shares = []
    for seed in range(30):
        stays = drop_beams(cloud, 0.5, np.random.default_rng(seed))
        by_beam = np.bincount(beam, stays) / np.bincount(beam)
        assert set(by_beam) <= {0.0, 1.0}
        shares.append(1 - by_beam.mean())
    assert 0.45 < np.mean(shares) < 0.55 and np.std(shares) > 0.02
    assert drop_beams(cloud, 1.0, np.random.default_rng(0)).all(), "a cloud without points is no cloud"


def test_noise_moves_points_along_their_rays_alone() -> None:
    cloud, _ = spinning(UPPER_AND_LOWER)
    moved = range_noise(cloud, 0.1, np.random.default_rng(1))
    before, after = (np.linalg.norm(c[:, :3].astype(float), axis=1) for c in (cloud, moved))
    directions = [c[:, :3] / d[:, None] for c, d in ((cloud, before), (moved, after))]
    np.testing.assert_allclose(*directions, atol=1e-5)
    assert 0.095 < np.std(after - before) < 0.105 and abs(np.mean(after - before)) < 0.003
    np.testing.assert_array_equal(moved[:, 3], cloud[:, 3])


def test_every_corruption_of_the_report_leaves_the_cloud_it_is_given_alone() -> None:
    cloud, _ = spinning(UPPER_AND_LOWER)
    given = cloud.copy()
    for name, corruption in CORRUPTIONS.items():
        made, kept = corruption(cloud, np.random.default_rng(0))
        np.testing.assert_array_equal(cloud, given, err_msg=name)
        assert len(made) == len(kept) == len(cloud) and made.dtype == np.float32
        assert (made != cloud).any() or not kept.all(), name
    flat, _ = CORRUPTIONS["no intensity"](cloud, np.random.default_rng(0))
    assert np.unique(flat[:, 3]).tolist() == [pytest.approx(cloud[:, 3].mean())]


def sample_of(shards: Path, settings: AugmentSettings, epoch: int = 0):  # type: ignore[no-untyped-def]
    record = open_shards(shards).read(0, stored_columns(("pair_label",)))
    return make_sample(record, 0, (40, 72), settings, generator_of(0, epoch, 0), ("pair_label",)), record


def test_a_dropped_point_takes_its_pairs_with_it_and_the_others_stay_right(small_shards: Path) -> None:
    found, record = sample_of(small_shards, replace(NO_AUGMENTATION, beams=0.9))
    assert 0 < len(found.points) < len(record.points)
    place = {tuple(p): n for n, p in enumerate(record.points.tolist())}
    kept = [place[tuple(p)] for p in found.points.tolist()]
    assert kept == sorted(kept)
    expected = [pair for pair, point in enumerate(record.pair_point) if point in set(kept)]
    np.testing.assert_array_equal([kept[k] for k in found.pair_point], record.pair_point[expected])
    np.testing.assert_array_equal(found.pair_label, record.pair_label[expected])


def test_each_setting_does_its_own_and_what_is_off_draws_nothing(small_shards: Path) -> None:
    plain = AugmentSettings(crop_min_pairs=20, cuboid=0)
    whole, _ = sample_of(small_shards, plain)
    for change in ({"beams": 0.5}, {"range_noise": 0.2}, {"intensity_off": 1.0}):
        other, _ = sample_of(small_shards, replace(plain, **change))
        same_points = len(other.points) == len(whole.points)
        assert same_points != ("beams" in change)
        if "intensity_off" in change:
            assert len(np.unique(other.points[:, 3])) == 1
    again, _ = sample_of(small_shards, replace(plain, beams=0.0, range_noise=0.0, intensity_off=0.0))
    for name in whole.columns:
        np.testing.assert_array_equal(whole.columns[name], again.columns[name])


def test_a_run_from_before_these_settings_goes_on_and_wrong_values_are_named(
    small_shards: Path, small_settings: Callable[..., PretrainSettings], tmp_path: Path
) -> None:
    pretrain(small_settings(small_shards, "run.steps=2"), tmp_path)
    identity = json.loads((tmp_path / "run.json").read_text())
    for name in ("beams", "range_noise", "intensity_off"):
        del identity["settings"]["augment"][name]
    (tmp_path / "run.json").write_text(json.dumps(identity))
    assert pretrain(small_settings(small_shards, "run.steps=2"), tmp_path).resumed_from == 2
    with pytest.raises(OlivineError, match=r"augment\.beams is 0\.0 there and 0\.5 here"):
        pretrain(small_settings(small_shards, "run.steps=2", "augment.beams=0.5"), tmp_path)
    for wrong in ("augment.beams=1", "augment.range_noise=-1", "augment.intensity_off=2"):
        with pytest.raises(OlivineError, match=wrong.partition("=")[0]):
            small_settings(small_shards, wrong)
