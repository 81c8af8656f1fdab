"""VoxelNet: its names and layout, its grids, and embeddings at points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from olivine.train.backbones import build_backbone
from olivine.train.backbones.bev import sample_bilinear
from olivine.train.backbones.layouts import to_openpcdet
from olivine.train.backbones.voxelnet import VOXELNET_VOXELS
from olivine.train.sparse import SparseTensor, to_dense
from olivine.train.voxelize import voxelize


def small_grid(seed: int = 0, count: int = 300) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (64, 48, 40)
    place = torch.stack([torch.randint(0, n, (count,), generator=generator) for n in (2, *shape)], 1)
    coordinate = torch.unique(place, dim=0).int()
    return SparseTensor(torch.randn(len(coordinate), 4, generator=generator), coordinate, shape=shape)


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


@pytest.mark.parametrize(
    ("name", "expected", "tensors"), [("voxelnet", PLAIN, 72), ("voxelnet-residual", RESIDUAL, 142)]
)
def test_the_trunk_has_openpcdets_names_and_shapes(name, expected, tensors):
    weights = to_openpcdet(build_backbone(name))
    for key, shape in expected.items():
        assert list(weights[key].shape) == shape, key
    # 12 layers of a kernel and a norm of five; the residual form has 5 such and 16 with a bias.
    assert len(weights) == tensors
    assert not any("kernel" in key or ".bn." in key or key.startswith("final") for key in weights)


@pytest.mark.frames("synthetic")
def test_the_grids_are_those_of_the_detectors(nuscenes_keyframe):
    (file,) = (nuscenes_keyframe / "samples" / "LIDAR_TOP").glob("*.bin")
    points = torch.from_numpy(np.fromfile(file, np.float32).reshape(-1, 5)[:, :4].copy())
    voxels = voxelize(points, None, VOXELNET_VOXELS)
    assert VOXELNET_VOXELS.shape == (1024, 1024, 40)
    tensor = SparseTensor(voxels.feature, voxels.coordinate, shape=VOXELNET_VOXELS.shape)
    net = build_backbone("voxelnet").eval()
    shapes = []
    with torch.no_grad():
        for stage in (net.conv_input, net.conv1, net.conv2, net.conv3, net.conv4, net.conv_out):
            tensor = stage(tensor)
            shapes.append(tensor.shape)
    assert shapes == [(1024, 1024, 40)] * 2 + [(512, 512, 20), (256, 256, 10), (128, 128, 4), (128, 128, 1)]
    inside = voxels.inverse >= 0
    with torch.no_grad():
        head = net.final(tensor)
        embedding = net.point_embedding(head, points[inside], torch.zeros(int(inside.sum()), dtype=torch.int64))
    # Independent: torch's own bilinear sampling of the dense map at the same places.
    plane = to_dense(head.replace(F.normalize(head.feature, dim=1)))[..., 0]
    place = ((points[inside, :2] + 51.2) / 0.8).clamp(0, 127)
    grid = (place.flip(1) / 127 * 2 - 1)[None, None]
    expected = F.grid_sample(plane, grid, mode="bilinear", align_corners=True)[0, :, 0].T
    torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["voxelnet", "voxelnet-residual"])
def test_a_training_step_reaches_every_parameter(name):
    net = build_backbone(name)
    tensor = small_grid()
    points = torch.rand(50, 2) * 4 - 51.0
    point, category = net(tensor)
    batch = torch.arange(50) % 2
    # The wide range's clamping is not at work here: the grid is a corner of it.
    loss = net.point_embedding(point, points, batch).sum() + net.point_embedding(category, points, batch).square().sum()
    loss.backward()
    reached = [n for n, p in net.named_parameters() if p.grad is not None and torch.isfinite(p.grad).all()]
    assert len(reached) == len(list(net.parameters()))


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
    settings = replace(VOXELNET_VOXELS, max_voxels=500)
    whole, kept = (voxelize(points, [1500, 2500], s) for s in (VOXELNET_VOXELS, settings))
    for voxel in range(0, len(whole.feature), 400):
        rows = points[whole.inverse == voxel][:10]
        torch.testing.assert_close(whole.feature[voxel], rows.mean(0))
    for cloud, start, end in ((0, 0, 1500), (1, 1500, 4000)):
        seen = list(dict.fromkeys(whole.inverse[start:end].tolist()))[:500]
        expected = whole.coordinate[torch.tensor(sorted(seen))]
        assert torch.equal(kept.coordinate[kept.coordinate[:, 0] == cloud], expected)
    inside = kept.inverse >= 0
    assert torch.equal(kept.coordinate[kept.inverse[inside]], whole.coordinate[whole.inverse[inside]])
