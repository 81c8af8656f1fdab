"""AFI against a plain NumPy version, written from the formulas alone, on a full cloud."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from olivine.downstream.afi import AfiSettings, near_ground, smooth
from olivine.readers import open_dataset

CLASSES = (
    "barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "traffic_cone", "trailer",
    "truck", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation",
)  # fmt: skip
FLAT = ("driveable_surface", "other_flat", "sidewalk", "terrain")  # nuScenes, as the authors have it
GAMMA = 0.995


def l1(f: np.ndarray) -> np.ndarray:
    return f / (f.sum(-1, keepdims=True) + 1e-9)


def square_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a[0] - b[:, 0]) ** 2 + (a[1] - b[:, 1]) ** 2 + (a[2] - b[:, 2]) ** 2


def nearest(queries: np.ndarray, xyz: np.ndarray, count: int) -> np.ndarray:
    rows = []
    for query in queries:
        d = square_distances(query, xyz)
        close = np.flatnonzero(d <= np.partition(d, count - 1)[count - 1])
        rows.append(close[np.argsort(d[close], kind="stable")][:count])
    return np.array(rows)


def farthest(xyz: np.ndarray, count: int) -> np.ndarray:
    chosen, d = [0], np.full(len(xyz), np.inf)
    lost = square_distances(np.zeros(3), xyz) <= 1e-3
    while len(chosen) < count:
        d = np.minimum(d, square_distances(xyz[chosen[-1]], xyz))
        chosen.append(int(np.where(lost, -1, d).argmax()))
    return np.array(chosen)


def units(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    length = np.sqrt((direction**2).sum(-1))
    return length, direction / (length[..., None] + 1e-8)


def plain_shares(xyz: np.ndarray, x: np.ndarray, first: int, k: int = 20) -> np.ndarray:
    """Section by section: four stages of centres, then back; float64 [N, C]."""
    a = np.arange(20)
    y = 1 - 2 * a / 19
    s = np.stack([np.sqrt(1 - y**2) * np.cos(a * np.pi * (3 - 5**0.5)), y,
                  np.sqrt(1 - y**2) * np.sin(a * np.pi * (3 - 5**0.5))], 1)  # fmt: skip
    clouds, shares, bags = [xyz], [x], []
    count = first
    for stage in range(4):
        count //= 3
        centre = farthest(xyz, count)
        near = nearest(xyz[centre], xyz, k)
        r = xyz[near] - xyz[centre][:, None]
        rho = np.sqrt((r**2).sum(-1))
        u = r / (rho[..., None] + 1e-8)
        member = np.eye(20)[(u @ s.T).argmax(-1)]  # [M, k, A]
        counts = member.sum(1)
        counts[:, 0] -= 1
        new_direction = np.einsum("mka,mkd->mad", member, r) / (counts[..., None] + 1e-8)
        feature = l1(np.einsum("mka,mkc->mac", member, x[near]))
        if stage == 0:
            part, influence = counts / (counts.sum(-1, keepdims=True) + 1e-8), np.ones(count)
        else:
            pi, direction = bags[-1]
            length, unit = units(direction)
            of_centre = np.einsum("mkd,mad->mka", u, unit[centre])
            of_other = np.einsum("mkd,mkad->mka", u, unit[near])
            c_plus = (length[centre][:, None] * (of_centre > GAMMA)).max(-1)
            c_minus = (length[centre][:, None] * (of_centre < -GAMMA)).max(-1)
            k_plus = (length[near] * (of_other > GAMMA)).max(-1)
            k_minus = (length[near] * (of_other < -GAMMA)).max(-1)
            both = (pi[centre][:, None] * (abs(of_centre) > GAMMA)).sum(-1) * (pi[near] * (abs(of_other) > GAMMA)).sum(
                -1
            )
            reach = (c_plus + c_minus + k_plus + k_minus) * (c_plus + c_minus != 0) * (k_plus + k_minus != 0)
            p = both * reach / (rho + c_minus + k_plus + 1e-8)
            influence = p.sum(-1)
            part = np.einsum("mk,mka->ma", p / (influence[:, None] + 1e-7), member)
            influence = influence / (influence.mean() + 1e-8)
        w = l1(part / (units(new_direction)[0] + 1e-8))
        mixed = influence[:, None] * np.einsum("ma,mac->mc", w, feature)
        x = l1(mixed + 0.1 * x[centre] + 1e-8 * x[near].max(1))
        xyz = xyz[centre]
        clouds.append(xyz)
        shares.append(x)
        bags.append((part, new_direction))
    for level in (3, 2, 1, 0):
        fine, coarse, (pi, direction) = clouds[level], clouds[level + 1], bags[level]
        near = nearest(fine, coarse, 6)
        v = coarse[near] - fine[:, None]
        v = v / (np.sqrt((v**2).sum(-1, keepdims=True)) + 1e-8)
        w = (pi[near] * (abs(np.einsum("njd,njad->nja", v, units(direction)[1][near])) > GAMMA)).sum(-1)
        total = w.sum(-1) + 1e-8
        omega = w / total[:, None] + 1e-6 + 1e-10
        omega = omega / (omega.sum(-1, keepdims=True) + 1e-8)
        c = 0.3 if len(fine) == 3 * len(coarse) else 0.01
        mixed = total[:, None] * np.einsum("nj,njc->nc", omega, x[near])
        x = l1(mixed + (1e-8 + c * total.mean()) * shares[level])
    return x


def plain_afi(xyz: np.ndarray, label: np.ndarray, first: int, ground: np.ndarray) -> np.ndarray:
    x = np.eye(17)[label]
    x[ground | (np.hypot(xyz[:, 0], xyz[:, 1]) <= 2)] = 0
    x = plain_shares(xyz, x, first)
    x[ground, 1:11] = x[ground, 15:] = 0
    return np.where(x.max(1) > 0, x.argmax(1), label)


def noisy_labels(xyz: np.ndarray, seed: int) -> np.ndarray:
    """A class for each block of 4 m, and one point in five another."""
    rng = np.random.default_rng(seed)
    block = np.floor(xyz / 4).astype(int) % 50
    label = rng.integers(1, 17, (50, 50, 50))[tuple(block.T)]
    return np.where(rng.random(len(xyz)) < 0.2, rng.integers(1, 17, len(xyz)), label)


@pytest.mark.frames("synthetic")
def test_the_labels_of_a_full_cloud_are_those_of_the_plain_version(nuscenes_keyframe: Path) -> None:
    (frame,) = open_dataset("nuscenes", nuscenes_keyframe).frames()
    xyz = frame.points()[:, :3].astype(np.float64)
    label = noisy_labels(xyz, 0)
    ours = smooth(xyz, label, CLASSES, FLAT)
    assert len(xyz) == 34_688 and np.array_equal(ours, plain_afi(xyz, label, 4096, near_ground(xyz)))
    assert 0.1 < (ours != label).mean() < 0.9 and ours.min() >= 1
    assert np.array_equal(ours, smooth(xyz, label, CLASSES, FLAT))


@pytest.mark.parametrize("seed", [0, 1])
def test_on_random_points_too_and_without_a_ground_on_other_data_sets(seed: int) -> None:
    xyz = np.random.default_rng(seed).normal(0, 10, (1500, 3))
    label = noisy_labels(xyz, seed)
    settings = AfiSettings(points=600)
    x = plain_shares(xyz, np.eye(17)[label], 600)
    ours = smooth(xyz, label, CLASSES, (), settings)
    assert np.array_equal(ours, np.where(x.max(1) > 0, x.argmax(1), label))


def test_the_near_ground_becomes_flat_and_the_rest_keeps_what_no_share_reaches() -> None:
    rng = np.random.default_rng(0)
    angle, radius = rng.uniform(0, 2 * np.pi, 3000), rng.uniform(2.1, 30, 3000)
    road = np.c_[radius * np.cos(angle), radius * np.sin(angle), rng.normal(-1.8, 0.02, 3000)]
    vehicle = rng.normal(0, 0.3, (50, 3))
    xyz = np.concatenate([road, vehicle])
    label = np.r_[np.where(radius < 5, 4, 11), np.full(50, 4)]  # cars all around, by mistake
    found = smooth(xyz, label, CLASSES, FLAT)
    near = near_ground(xyz)
    assert near[:3000][radius < 5].mean() > 0.99 and not near[:3000][radius > 5].any()
    assert set(found[near]) == {11} and found.min() >= 1


@pytest.mark.parametrize("count", [1, 5, 30])
def test_clouds_of_a_few_points_are_smoothed_too(count: int) -> None:
    xyz = np.random.default_rng(count).normal(0, 10, (count, 3))
    label = np.full(count, 3)
    assert (smooth(xyz, label, CLASSES, FLAT) == 3).all()


def test_a_wrong_label_in_a_wall_takes_the_walls_class() -> None:
    grid = np.stack(np.meshgrid(np.arange(0, 20, 0.1), [8.0], np.arange(0, 5, 0.1), indexing="ij"), -1).reshape(-1, 3)
    label = np.full(len(grid), 15)
    wrong = np.random.default_rng(0).choice(len(grid), len(grid) // 20, replace=False)
    label[wrong] = 4
    found = smooth(grid, label, CLASSES)
    assert (found == 15).mean() > 0.99 > (label == 15).mean() and (found[wrong] == 15).mean() > 0.8
