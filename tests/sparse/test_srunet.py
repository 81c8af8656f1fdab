"""SR-UNet34 and its small relative."""

from __future__ import annotations

import pytest
import torch

from olivine.common import OlivineError
from olivine.train.backbones import build_backbone
from olivine.train.sparse import SparseTensor


def line_cloud(seed: int = 0, count: int = 400) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    coordinate = torch.unique(torch.randint(-20, 20, (count, 4), generator=generator, dtype=torch.int32), dim=0)
    coordinate[:, 0] %= 2
    coordinate = torch.unique(coordinate, dim=0)
    return SparseTensor(torch.rand(len(coordinate), 1, generator=generator), coordinate)


def test_the_table_of_names_and_shapes_is_that_of_olivines_checkpoint(srunet34_shapes, published_shapes):
    assert srunet34_shapes == published_shapes


def test_srunet34_has_the_names_and_shapes_of_olivines_checkpoint(srunet34_shapes):
    net = build_backbone("srunet34")
    assert {name: list(value.shape) for name, value in net.state_dict().items()} == srunet34_shapes
    assert sum(p.numel() for p in net.parameters()) == 37_855_392


def test_srunet34_with_one_head_has_slidrs_number_of_parameters():
    net = build_backbone("srunet34", category_head=False)
    assert sum(p.numel() for p in net.parameters()) == 37_849_184


@pytest.mark.parametrize(("training", "momentum"), [("pre-training", 0.05), ("fine-tuning", 0.02)])
def test_norms_inside_blocks_keep_their_momentum_and_the_others_follow_the_stage(training, momentum):
    net = build_backbone("srunet-small", norm_momentum=momentum)
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            inside = ".norm1." in name or ".norm2." in name
            assert module.momentum == (0.1 if inside else momentum), name


@pytest.mark.parametrize("name", ["srunet34", "srunet-small"])
def test_two_heads_of_64_on_the_inputs_voxels_and_features_before_them(name):
    cloud = line_cloud()
    net = build_backbone(name).eval()
    with torch.no_grad():
        point, category = net(cloud)
        feature = net.features(cloud)
    assert point.feature.shape == category.feature.shape == (len(cloud), 64)
    assert feature.feature.shape == (len(cloud), net.feature_channels)
    assert point.coordinate is cloud.coordinate
    torch.testing.assert_close(point.feature, net.final(feature).feature)
    assert net.feature_channels == {"srunet34": 96, "srunet-small": 32}[name]


def test_a_training_step_reaches_every_parameter_and_repeats_bit_for_bit():
    def step():
        net = build_backbone("srunet-small", seed=3)
        point, category = net(line_cloud(1))
        (point.feature.square().mean() + category.feature.abs().mean()).backward()
        return [p.grad for p in net.parameters()] + list(net.buffers())

    first, second = step(), step()
    assert all(a is not None and torch.isfinite(a).all() for a in first)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_initial_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    one = build_backbone("srunet-small", seed=5).state_dict()
    torch.manual_seed(2)
    two = build_backbone("srunet-small", seed=5).state_dict()
    other = build_backbone("srunet-small", seed=6).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["conv0p1s1.kernel"], other["conv0p1s1.kernel"])


def test_an_unknown_backbone_names_the_known_ones():
    with pytest.raises(OlivineError, match="srunet34, srunet-small"):
        build_backbone("resnet")
