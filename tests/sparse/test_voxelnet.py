"""VoxelNet: its names and layout, its grids, and embeddings at points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from olivine.downstream.layouts import to_openpcdet
from olivine.train.backbone import Clouds
from olivine.train.backbones import build_backbone
from olivine.train.backbones._bev import sample_bilinear
from olivine.train.settings import load_settings
from olivine.train.sparse import to_dense
from olivine.train.voxelize import VoxelSettings, voxelize

#: Voxels of 0.1 x 0.1 x 0.2 m, 60,000 of at most 10 points each, with the mean of (x, y, z, intensity).
DETECTORS = VoxelSettings(
    size_m=0.1,
    height_m=0.2,
    feature="mean",
    first_channel=0,
    feature_channels=4,
    crop=True,
    from_corner=True,
    max_points=10,
    max_voxels=60_000,
)


# From the class definitions of OpenPCDet's VoxelBackBone8x and VoxelResBackBone8x and spconv 2's [out, z, y, x, in].
PLAIN = {
    "conv_input.0.weight": [16, 3, 3, 3, 4],
    "conv_input.1.weight": [16],
    "conv1.0.0.weight": [16, 3, 3, 3, 16],
    "conv2.0.0.weight": [32, 3, 3, 3, 16],
    "conv2.2.1.running_var": [32],
    "conv3.1.0.weight": [64, 3, 3, 3, 64],
    "conv4.0.0.weight": [64, 3, 3, 3, 64],
    "conv_out.0.weight": [128, 3, 1, 1, 64],
    "conv_out.1.num_batches_tracked": [],
}
RESIDUAL = {
    "conv1.1.conv2.weight": [16, 3, 3, 3, 16],
    "conv2.1.conv1.bias": [32],
    "conv3.2.bn2.running_mean": [64],
    "conv4.0.0.weight": [128, 3, 3, 3, 64],
    "conv4.2.bn1.bias": [128],
    "conv_out.0.weight": [128, 3, 1, 1, 128],
}


@pytest.mark.parametrize("head", [None, 64])
@pytest.mark.parametrize(("residual", "expected", "tensors"), [(False, PLAIN, 72), (True, RESIDUAL, 142)])
def test_the_trunk_has_openpcdets_names_and_shapes(residual, expected, tensors, head):
    weights = to_openpcdet(build_backbone("voxelnet", residual=residual, out_channels=head))
    for key, shape in expected.items():
        assert list(weights[key].shape) == shape, key
    # 12 layers of a kernel and a norm of five; the residual form has 5 such and 16 with a bias.
    assert len(weights) == tensors
    assert not any("kernel" in key or ".bn." in key or key.startswith("final") for key in weights)


def test_the_presets_voxels_are_those_of_the_detectors():
    assert load_settings("voxelnet").voxels == DETECTORS


@pytest.mark.frames("synthetic")
def test_the_grids_are_those_of_the_detectors(nuscenes_keyframe):
    (file,) = (nuscenes_keyframe / "samples" / "LIDAR_TOP").glob("*.bin")
    points = torch.from_numpy(np.fromfile(file, np.float32).reshape(-1, 5)[:, :4].copy())
    voxels = voxelize(points, None, DETECTORS)
    assert DETECTORS.shape == (1024, 1024, 40)
    clouds = Clouds(points, torch.zeros(len(points), dtype=torch.int64), voxels, DETECTORS)
    tensor = clouds.tensor
    net = build_backbone("voxelnet", out_channels=64).eval()
    shapes = []
    with torch.no_grad():
        for stage in (net.conv_input, net.conv1, net.conv2, net.conv3, net.conv4, net.conv_out):
            tensor = stage(tensor)
            shapes.append(tensor.shape)
    assert shapes == [(1024, 1024, 40)] * 2 + [(512, 512, 20), (256, 256, 10), (128, 128, 4), (128, 128, 1)]
    with torch.no_grad():
        found, head = net.encode(clouds), net.final(tensor)
        embedding, raw = found.embed(net.final), found.raw()
    # Every point is a place, also beyond the range.
    assert torch.equal(found.place, torch.arange(len(points))) and bool((voxels.inverse < 0).any())
    # Independent: torch's own bilinear sampling of the dense map at the same places, clamped to its border.
    place = ((points[:, :2] + 51.2) / 0.8).clamp(0, 127)
    grid = (place.flip(1) / 127 * 2 - 1)[None, None]
    for mine, cells in ((embedding, head.replace(F.normalize(head.feature, dim=1))), (raw, tensor)):
        expected = F.grid_sample(to_dense(cells)[..., 0], grid, mode="bilinear", align_corners=True)[0, :, 0].T
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_a_training_step_reaches_every_parameter(residual):
    net, generator = build_backbone("voxelnet", residual=residual), torch.Generator().manual_seed(0)
    heads = torch.nn.ModuleList([net.new_head(64, generator), net.new_head(64, generator)])
    # Two clouds in a small corner of the sensor's surroundings.
    settings = VoxelSettings(
        size_m=0.1,
        height_m=0.2,
        feature="mean",
        first_channel=0,
        feature_channels=4,
        crop=True,
        range_m=(0, 0, 0, 6.4, 4.8, 8),
        from_corner=True,
    )
    points = torch.rand(600, 4, generator=generator) * torch.tensor([6.4, 4.8, 8.0, 1.0])
    clouds = Clouds(points, torch.tensor([0] * 250 + [1] * 350), voxelize(points, [250, 350], settings), settings)
    found = net.encode(clouds)
    (found.embed(heads[0]).sum() + found.embed(heads[1]).square().sum() + found.raw().square().sum()).backward()
    parameters = {**dict(net.named_parameters()), **dict(heads.named_parameters())}
    assert {n for n, p in parameters.items() if p.grad is None or not torch.isfinite(p.grad).all()} == set()
    assert all(bool(p.grad.any()) for n, p in parameters.items() if n.endswith("kernel"))


def test_interpolation_is_linear_between_cells_and_constant_beyond_the_edge():
    plane = torch.arange(12.0, dtype=torch.float64).view(1, 1, 4, 3)
    place = torch.tensor([[1.0, 1.0], [1.5, 1.0], [1.0, 1.25], [-2.0, 0.0], [9.0, 9.0]], dtype=torch.float64)
    values = sample_bilinear(plane, place, torch.zeros(5, dtype=torch.int64))
    assert values.flatten().tolist() == [4.0, 5.5, 4.25, 0.0, 11.0]


def test_gradients_of_the_interpolation_are_the_finite_differences():
    plane = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    place = torch.rand(20, 2, dtype=torch.float64) * 6 - 1
    assert torch.autograd.gradcheck(lambda p: sample_bilinear(p, place, torch.arange(20) % 2), (plane,))


def test_a_voxel_is_the_mean_of_its_first_ten_points_and_a_cloud_keeps_its_first_voxels():
    from dataclasses import replace

    generator = torch.Generator().manual_seed(1)
    points = torch.rand(4000, 4, generator=generator) * torch.tensor([3.0, 3.0, 2.0, 255.0])
    settings = replace(DETECTORS, max_voxels=500)
    whole, kept = (voxelize(points, [1500, 2500], s) for s in (DETECTORS, settings))
    for voxel in range(0, len(whole.feature), 400):
        rows = points[whole.inverse == voxel][:10]
        torch.testing.assert_close(whole.feature[voxel], rows.mean(0))
    for cloud, start, end in ((0, 0, 1500), (1, 1500, 4000)):
        seen = list(dict.fromkeys(whole.inverse[start:end].tolist()))[:500]
        expected = whole.coordinate[torch.tensor(sorted(seen))]
        assert torch.equal(kept.coordinate[kept.coordinate[:, 0] == cloud], expected)
    inside = kept.inverse >= 0
    assert torch.equal(kept.coordinate[kept.inverse[inside]], whole.coordinate[whole.inverse[inside]])
