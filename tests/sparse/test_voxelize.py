"""Points to voxels, against NumPy's unique."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from olivine.common import OlivineError
from olivine.train.voxelize import VoxelSettings, voxelize


def random_points(seed: int, count: int = 3000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 4, generator=generator) - 0.5) * torch.tensor([6.0, 6.0, 3.0, 255.0])


def keyframe_points(folder) -> torch.Tensor:
    (file,) = (folder / "samples" / "LIDAR_TOP").glob("*.bin")
    return torch.from_numpy(np.fromfile(file, np.float32).reshape(-1, 5)[:, :4])


def test_voxels_are_numpys_unique_floored_coordinates_and_inverse_leads_back():
    points = random_points(1)
    voxels = voxelize(points, None, VoxelSettings(size_m=0.3))
    floored = np.floor(points[:, :3].numpy() / np.float32(0.3)).astype(np.int32)
    expected, first, inverse = np.unique(floored, axis=0, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(voxels.coordinate[:, 1:].numpy(), expected)
    np.testing.assert_array_equal(voxels.inverse.numpy(), inverse.ravel())
    np.testing.assert_array_equal(voxels.first.numpy(), first)
    np.testing.assert_array_equal(voxels.feature[:, 0].numpy(), points[first, 3].numpy())


def test_a_mean_feature_is_the_mean_of_the_voxels_points():
    points = random_points(2)
    voxels = voxelize(points, None, VoxelSettings(size_m=0.5, feature="mean", first_channel=0, feature_channels=4))
    for voxel in (0, 7, len(voxels.feature) - 1):
        mean = points[voxels.inverse == voxel].double().mean(0)
        torch.testing.assert_close(voxels.feature[voxel].double(), mean, rtol=1e-5, atol=1e-5)


def test_counts_and_batch_indices_say_the_same_and_clouds_stay_apart():
    points = random_points(3, 500)
    settings = VoxelSettings(size_m=1.0)
    by_count = voxelize(points, [200, 300], settings)
    by_index = voxelize(points, torch.tensor([0] * 200 + [1] * 300), settings)
    assert torch.equal(by_count.coordinate, by_index.coordinate)
    assert torch.equal(by_count.inverse, by_index.inverse)
    alone = voxelize(points[200:], None, settings)
    second = by_count.coordinate[:, 0] == 1
    assert torch.equal(by_count.coordinate[second, 1:], alone.coordinate[:, 1:])


def cells_in_float64(points: torch.Tensor, grid: str) -> np.ndarray:
    """Where each point is, counted in cells of 10 cm (and of one degree)."""
    x, y, z = points[:, :3].double().numpy().T
    if grid == "cartesian":
        return np.stack([x / 0.1, y / 0.1, z / 0.1], 1)
    return np.stack([np.hypot(x, y) / 0.1, np.degrees(np.arctan2(y, x)), z / 0.1], 1)


@pytest.mark.parametrize("grid", ["cartesian", "cylindrical"])
def test_each_point_of_the_keyframe_is_in_the_cell_that_its_place_gives(grid, nuscenes_keyframe):
    points = keyframe_points(nuscenes_keyframe)
    voxels = voxelize(points, None, VoxelSettings(grid=grid))
    place = cells_in_float64(points, grid)
    # In float32 a point this near to a border may fall on the other side.
    clear = (np.abs(place - np.rint(place)) > 1e-3).all(1)
    assert clear.sum() > 20_000
    found = voxels.coordinate[voxels.inverse][:, 1:].numpy()
    np.testing.assert_array_equal(found[clear], np.floor(place[clear]))


@pytest.mark.parametrize("grid", ["cartesian", "cylindrical"])
def test_the_keyframes_voxels_are_as_many_as_numpys_unique_cells(grid, nuscenes_keyframe):
    points = keyframe_points(nuscenes_keyframe)
    count = len(np.unique(np.floor(cells_in_float64(points, grid)), axis=0))
    # Points on the edge of a voxel may fall to either side in float32.
    assert len(voxelize(points, None, VoxelSettings(grid=grid)).coordinate) == pytest.approx(count, rel=2e-3)


@pytest.mark.frames("real")
def test_the_real_keyframe_has_the_known_numbers_of_voxels(nuscenes_keyframe):
    points = keyframe_points(nuscenes_keyframe)
    assert len(points) == 34_688
    assert len(voxelize(points, None, VoxelSettings()).coordinate) == 17_885
    assert len(voxelize(points, None, VoxelSettings(grid="cylindrical")).coordinate) == 15_947


def test_cropped_points_have_no_voxel(nuscenes_keyframe):
    points = keyframe_points(nuscenes_keyframe)
    voxels = voxelize(points, None, VoxelSettings(crop=True))
    low, high = np.array([-51.2, -51.2, -5]), np.array([51.2, 51.2, 3])
    inside = ((points[:, :3].numpy() >= low) & (points[:, :3].numpy() < high)).all(1)
    np.testing.assert_array_equal(voxels.inverse.numpy() >= 0, inside)
    assert len(voxels.coordinate) == len(torch.unique(voxels.inverse[voxels.inverse >= 0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_points_that_are_not_finite_are_refused(bad):
    points = random_points(4, 10)
    points[3, 1] = bad
    with pytest.raises(OlivineError, match="1 points are not finite"):
        voxelize(points, None, VoxelSettings())


def test_points_too_far_for_a_key_are_refused():
    points = random_points(5, 10)
    points[0, 0] = 1e6
    with pytest.raises(OlivineError, match="1 points lie more than 60000 voxels away"):
        voxelize(points, None, VoxelSettings())


def test_counts_that_do_not_sum_to_the_points_are_refused():
    with pytest.raises(OlivineError, match="7 points together"):
        voxelize(random_points(6, 10), [3, 4], VoxelSettings())
