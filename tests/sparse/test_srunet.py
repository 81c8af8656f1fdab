"""SR-UNet34 and its small relative."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from olivine.common import OlivineError
from olivine.downstream.checkpoints import exported_heads
from olivine.train.backbone import Clouds
from olivine.train.backbones import build_backbone
from olivine.train.build import build_model
from olivine.train.settings import load_settings
from olivine.train.sparse import SparseTensor
from olivine.train.sparse.engines import Plan
from olivine.train.sparse.modules import Conv3d, ConvTranspose3d
from olivine.train.voxelize import VoxelSettings, voxelize


def line_cloud(seed: int = 0, count: int = 400) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    coordinate = torch.unique(torch.randint(-20, 20, (count, 4), generator=generator, dtype=torch.int32), dim=0)
    coordinate[:, 0] %= 2
    coordinate = torch.unique(coordinate, dim=0)
    return SparseTensor(torch.rand(len(coordinate), 1, generator=generator), coordinate)


@pytest.mark.parametrize("name", ["srunet-small", "voxelnet"])
def test_the_plan_of_one_cloud_makes_every_map_of_another_before_its_pass(name):
    def cloud(seed: int) -> SparseTensor:
        coordinate = line_cloud(seed).coordinate
        coordinate[:, 1:] += 20
        feature = torch.rand(len(coordinate), net.conv_in, generator=torch.Generator().manual_seed(seed))
        return SparseTensor(feature, coordinate, shape=(48, 48, 48))

    def results(tensor: SparseTensor) -> list[torch.Tensor]:
        net.zero_grad()
        out = net(tensor).feature
        out.square().sum().backward()
        return [out, *(p.grad.clone() for p in net.parameters())]

    net = build_backbone(name)
    net.conv_in = 4 if name == "voxelnet" else 1
    first, plain, planned = cloud(0), cloud(1), cloud(1)
    results(first)
    planned.manager.follow(planned.voxels, first.manager.plan())
    made, built = planned.manager.plan(), planned.manager.maps_built
    assert built == first.manager.maps_built > 4

    def described(plan: Plan) -> list[tuple[object, ...]]:
        return [(m.way, m.source, m.shape, [d.__reduce__()[1] for d in m.derivations]) for m in plan]

    assert all(torch.equal(a, b) for a, b in zip(results(planned), results(plain), strict=True))
    assert planned.manager.maps_built == built
    assert described(planned.manager.plan()) == described(made) == described(first.manager.plan())


def test_the_table_of_names_and_shapes_is_that_of_olivines_checkpoint(srunet34_shapes, published_shapes):
    assert srunet34_shapes == published_shapes


def parameters(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def exported(*changes: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The network of a run of the paper's preset, and the heads that its method exports."""
    model = build_model(load_settings("paper", changes), 8, ("none", "car"), 10)
    content = {"method_state": model.method.state_dict(), "exported_heads": model.method.exported}
    return model.backbone, exported_heads(content)


def test_srunet34_and_the_exported_heads_have_the_names_and_shapes_of_olivines_checkpoint(srunet34_shapes):
    net, heads = exported()
    found = {**net.state_dict(), **heads}
    assert {name: list(value.shape) for name, value in found.items()} == srunet34_shapes
    assert {name: list(value.shape) for name, value in build_backbone("srunet34").state_dict().items()} == {
        name: shape for name, shape in srunet34_shapes.items() if not name.startswith("final")
    }


def test_the_trunk_and_its_heads_have_the_published_numbers_of_parameters():
    net, generator = build_backbone("srunet34"), torch.Generator().manual_seed(0)
    point, category = net.new_head(64, generator), net.new_head(64, generator)
    assert parameters(net) == 37_842_976
    assert parameters(point) == parameters(category) == 6_208
    assert parameters(net, point) == 37_849_184  # SLidR's
    assert parameters(net, point, category) == 37_855_392  # OLIVINE's
    trained, heads = exported()
    assert parameters(trained) + sum(tensor.numel() for tensor in heads.values()) == 37_855_392
    trained, heads = exported("method.decoupled_heads=false")
    assert parameters(trained) + sum(tensor.numel() for tensor in heads.values()) == 37_849_184


@pytest.mark.parametrize("name", ["srunet-small", "voxelnet"])
def test_heads_draw_from_the_generator_after_the_trunk_and_change_nothing_of_it(name):
    whole = build_backbone(name, out_channels=64, seed=4)
    generator = torch.Generator().manual_seed(4)
    trunk = build_backbone(name, seed=generator)
    head, other = trunk.new_head(64, generator), trunk.new_head(64, generator)
    state = whole.state_dict()
    assert state.keys() - trunk.state_dict().keys() == {f"final.{key}" for key in head.state_dict()}
    assert all(torch.equal(state[n], value) for n, value in trunk.state_dict().items())
    assert all(torch.equal(state[f"final.{n}"], value) for n, value in head.state_dict().items())
    assert not torch.equal(head.kernel, other.kernel)


@pytest.mark.parametrize(("training", "momentum"), [("pre-training", 0.05), ("fine-tuning", 0.02)])
def test_norms_inside_blocks_keep_their_momentum_and_the_others_follow_the_stage(training, momentum):
    net = build_backbone("srunet-small", norm_momentum=momentum)
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            inside = ".norm1." in name or ".norm2." in name
            assert module.momentum == (0.1 if inside else momentum), name


@pytest.mark.parametrize("name", ["srunet34", "srunet-small"])
def test_features_on_the_inputs_voxels_and_a_last_layer_where_asked_for(name):
    cloud = line_cloud()
    net, headed = build_backbone(name).eval(), build_backbone(name, out_channels=64).eval()
    with torch.no_grad():
        feature, out, before = net(cloud), headed(cloud), headed.features(cloud)
        head, other = (net.new_head(64, torch.Generator().manual_seed(seed))(feature) for seed in (1, 2))
    assert net.final is None and not any(n.startswith("final") for n in net.state_dict())
    assert feature.feature.shape == (len(cloud), net.feature_channels)
    assert torch.equal(feature.feature, before.feature)
    assert out.feature.shape == head.feature.shape == other.feature.shape == (len(cloud), 64)
    assert out.coordinate is feature.coordinate is head.coordinate is cloud.coordinate
    # The head, written out.
    expected = before.feature @ headed.final.kernel.view(-1, 64) + headed.final.bias
    torch.testing.assert_close(out.feature, expected)
    assert not torch.allclose(head.feature, other.feature)
    assert net.feature_channels == {"srunet34": 96, "srunet-small": 32}[name]


def test_encoding_gives_each_point_its_voxels_feature_and_unit_embedding():
    points = torch.rand(500, 4, generator=torch.Generator().manual_seed(2)) * torch.tensor([9.0, 9.0, 3.0, 1.0])
    settings = VoxelSettings(size_m=0.5, crop=True, range_m=(0, 0, 0, 8, 8, 3))
    voxels = voxelize(points, [200, 300], settings)
    cloud = torch.tensor([0] * 200 + [1] * 300)
    net = build_backbone("srunet-small").eval()
    head = net.new_head(8, torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = net.encode(Clouds(points, cloud, voxels, settings))
        expected = net.features(SparseTensor(voxels.feature, voxels.coordinate))
        raw, embedding = found.raw(), found.embed(head)
    assert torch.equal(found.place, voxels.inverse) and int((found.place < 0).sum()) > 0
    assert torch.equal(raw, expected.feature)
    projected = head(expected).feature.detach().numpy()
    np.testing.assert_allclose(
        embedding.numpy(), projected / np.linalg.norm(projected, axis=1, keepdims=True), rtol=1e-5, atol=1e-6
    )


def test_a_training_step_reaches_every_parameter_and_repeats_bit_for_bit():
    def step():
        generator = torch.Generator().manual_seed(3)
        net = build_backbone("srunet-small", seed=generator)
        heads = [net.new_head(64, generator), net.new_head(64, generator)]
        feature = net(line_cloud(1))
        point, category = (head(feature) for head in heads)
        (point.feature.square().mean() + category.feature.abs().mean()).backward()
        modules = torch.nn.ModuleList([net, *heads])
        return [p.grad for p in modules.parameters()] + list(modules.buffers())

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
    with pytest.raises(OlivineError, match="no backbone 'resnet'") as caught:
        build_backbone("resnet")
    assert all(name in str(caught.value) for name in ("srunet34", "srunet-small", "voxelnet"))


@pytest.mark.parametrize("first_weights", ["minkowski", "kaiming"])
def test_first_weights_are_those_that_the_setting_names(first_weights: str) -> None:
    """MinkowskiEngine's default: uniform in ± (cells · inputs)^(−1/2), of transposed layers outputs; heads too."""
    net = build_backbone("srunet34", first_weights=first_weights, seed=3)
    heads = [net.new_head(64, torch.Generator().manual_seed(5))]
    for module in [m for root in (net, *heads) for m in root.modules() if isinstance(m, Conv3d | ConvTranspose3d)]:
        kernel = module.kernel.detach()
        transposed = isinstance(module, ConvTranspose3d)
        bound = (kernel.numel() // (module.in_channels if transposed else module.out_channels)) ** -0.5
        expected = bound / 3**0.5
        if first_weights == "kaiming" and isinstance(module, Conv3d):
            expected = (2 * module.in_channels / kernel.numel()) ** 0.5
        else:
            assert kernel.abs().max() <= bound
        assert kernel.std().item() == pytest.approx(expected, rel=6 / kernel.numel() ** 0.5)
        assert abs(kernel.mean().item()) < 5 * expected / kernel.numel() ** 0.5
