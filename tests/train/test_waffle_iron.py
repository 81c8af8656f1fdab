"""WaffleIron is the public code's, value by value, and a backbone like the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from olivine.common import OlivineError
from olivine.common.settings import settings_to_plain
from olivine.downstream.weights import export_backbone, import_weights
from olivine.train.backbone import Clouds, build_backbone
from olivine.train.backbones._waffle_iron import WaffleIron, nearest
from olivine.train.build import backbone_arguments
from olivine.train.checkpoint import load_backbone, save_checkpoint
from olivine.train.loop import pretrain
from olivine.train.settings import PretrainSettings, load_settings
from olivine.train.voxelize import VoxelSettings, voxelize

# Made by the public code itself, in benchmarks/waffle_iron_expectations.py.
EXPECTED = Path(__file__).with_name("waffle_iron_expectations.npz")
CASE = {"channels": 8, "depth": 4, "cells": (16, 12, 4), "range_m": (-8.0, -6.0, -2.0, 8.0, 6.0, 2.0)}
VOXELS = VoxelSettings(size_m=0.4, first_channel=0, feature_channels=4)


def network(**options: object) -> WaffleIron:
    built = build_backbone("waffle-iron-small", **options)
    assert isinstance(built, WaffleIron)
    return built


def clouds_of(points: list[Tensor], settings: VoxelSettings = VOXELS) -> Clouds:
    count, joined = [len(p) for p in points], torch.cat(points)
    number = torch.repeat_interleave(torch.arange(len(points)), torch.tensor(count))
    return Clouds(joined, number, voxelize(joined, count, settings), settings)


def scatter(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 4, generator=generator) * torch.tensor([60.0, 60.0, 6.0, 100.0]) - torch.tensor(
        [30.0, 30.0, 3.0, 0.0]
    )


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    with np.load(EXPECTED) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def case(expected: dict[str, Tensor], norm: str) -> tuple[WaffleIron, dict[str, Tensor]]:
    named = f"{norm}norm state "
    state = {name.removeprefix(named): value for name, value in expected.items() if name.startswith(named)}
    head = {name: state.pop(name) for name in list(state) if name.startswith("classif.")}
    built = network(**CASE, neighbors=16, norm=norm, intensity_mean=0.0, intensity_std=1.0)
    built.load_state_dict(state)
    return built.eval(), head


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_batch_of_clouds_gives_what_the_public_code_gives(expected: dict[str, Tensor], norm: str) -> None:
    ours, head = case(expected, norm)
    clouds = [expected["cloud 0"], expected["cloud 1"]]
    points, number = torch.cat(clouds), torch.repeat_interleave(torch.arange(2), torch.tensor([90, 60]))
    with torch.no_grad():
        found = ours.tokens(points, points[:, :3], number) @ head["classif.weight"][:, :, 0].T + head["classif.bias"]
    theirs = torch.cat([expected[f"{norm}norm out {i}"] for i in (0, 1)])
    assert theirs.std() > 0.1
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)


def test_scalrs_preset_is_waffle_iron_48_768_with_the_published_shapes() -> None:
    settings = load_settings("scalr")
    with torch.device("meta"):
        built = build_backbone("waffle-iron", **settings.backbone.options)
    state = built.state_dict()
    blocks = {name.split(".")[2] for name in state if name.startswith("waffleiron.channel_mix.")}
    assert len(blocks) == 48 and state["embed.final.weight"].shape == (768, 1536, 1)
    assert state["embed.conv2.1.weight"].shape == (768, 5, 1, 1)
    assert state["waffleiron.spatial_mix.47.ffn.2.weight"].shape == (768, 1, 3, 3)
    assert settings.backbone.cells == (256, 256, 32)
    assert sum(parameter.numel() for parameter in built.parameters()) == 59_435_540


def test_neighbours_are_the_nearest_others_of_the_same_cloud() -> None:
    points, number = scatter(70, 1)[:, :3], torch.repeat_interleave(torch.arange(3), torch.tensor([40, 25, 5]))
    found = nearest(points, number, 6)
    distance = torch.cdist(points.double(), points.double())
    distance[number[:, None] != number] = torch.inf
    distance.fill_diagonal_(torch.inf)
    brute = distance.topk(6, largest=False)
    assert torch.equal(found[:65].sort().values, brute.indices[:65].sort().values)
    # The last cloud has four others: what is missing is the point itself.
    for row in range(65, 70):
        assert set(found[row].tolist()) == {65, 66, 67, 68, 69} and (found[row] == row).sum() == 2


def test_a_cloud_has_the_same_features_in_any_batch_and_points_have_their_voxels() -> None:
    built, points = network(seed=3).eval(), [scatter(300, 1), scatter(200, 2)]
    with torch.no_grad():
        both = built.encode(clouds_of(points))
        second = built.encode(clouds_of(points[1:]))
    voxels = len(second.cells.feature)
    torch.testing.assert_close(both.cells.feature[-voxels:], second.cells.feature, rtol=1e-5, atol=1e-5)
    assert torch.equal(both.place[300:], second.place + len(both.cells.feature) - voxels)


def test_gradients_reach_every_parameter_and_repeat_bit_for_bit() -> None:
    grad: list[dict[str, Tensor]] = []
    for _ in range(2):
        built = network(seed=3, depth=3).train()
        built.encode(clouds_of([scatter(300, 1)])).raw().square().sum().backward()
        grad.append({name: p.grad for name, p in built.named_parameters() if p.grad is not None})
    assert set(grad[0]) == {name for name, _ in built.named_parameters()}
    assert all(torch.equal(grad[0][name], grad[1][name]) for name in grad[0])


def test_stochastic_depth_leaves_out_half_blocks_cloud_by_cloud_and_keeps_the_mean() -> None:
    clouds, found = clouds_of([scatter(60, i) for i in range(40)]), set()
    built, edges = network(seed=3, depth=1).train(), torch.bincount(clouds.voxels.coordinate[:, 0]).tolist()
    block = built.waffleiron
    gains = {"spatial": block.spatial_mix[0].scale.weight, "channel": block.channel_mix[0].scale.weight}
    ways = {}
    # What is left out has a gain of 0, what is kept one of 1 / 0.75.
    for spatial, channel in ((0, 0), (0, 1), (1, 0), (1, 1)):
        saved = {name: weight.detach().clone() for name, weight in gains.items()}
        with torch.no_grad():
            gains["spatial"].mul_(spatial / 0.75)
            gains["channel"].mul_(channel / 0.75)
            ways[spatial, channel] = built.encode(clouds).raw().split(edges)
            for name, weight in saved.items():
                gains[name].copy_(weight)
    built.drop_path = 0.25
    torch.manual_seed(1)
    with torch.no_grad():
        drawn, again = (built.encode(clouds).raw().split(edges) for _ in range(2))
    for number, feature in enumerate(drawn):
        (way,) = (way for way, made in ways.items() if torch.allclose(made[number], feature, rtol=1e-4, atol=1e-5))
        found.add(way)
    assert found == set(ways)  # clouds of one batch differ, and so do the halves of a block
    assert not all(torch.equal(a, b) for a, b in zip(drawn, again))
    built.waffleiron = network(seed=3, depth=40).waffleiron
    built.settings = network(depth=40).settings
    drops = torch.stack([gain[:, 0] for gain in built.gains(torch.arange(200)) or ()])  # 80 halves, 200 clouds
    assert drops.unique().tolist() == [0, pytest.approx(1 / 0.75)]
    assert abs(float(drops.mean()) - 1) < 4 * (0.25 / 0.75 / drops.numel()) ** 0.5
    assert built.eval().gains(torch.arange(200)) is None
    assert network().train().gains(torch.arange(200)) is None  # off unless it is asked for


def test_without_intensity_it_does_not_matter() -> None:
    settings = VoxelSettings(size_m=0.4, first_channel=0, feature_channels=3)
    built = network(in_channels=3).eval()
    dark = scatter(200, 1)
    bright = dark.clone()
    bright[:, 3] *= 2
    with torch.no_grad():
        a, b = (built.encode(clouds_of([p], settings)).raw() for p in (dark, bright))
        with_intensity = [network().eval().encode(clouds_of([p])).raw() for p in (dark, bright)]
    assert torch.equal(a, b)
    assert not torch.equal(*with_intensity)


def test_another_number_of_channels_is_refused_in_one_line() -> None:
    with pytest.raises(OlivineError, match=r"voxels\.feature_channels.*not 1 columns.*voxels\.first_channel=0"):
        network(in_channels=1)
    with pytest.raises(OlivineError, match=r"cells \[0, 12, 4\]"):
        network(cells=(0, 12, 4))


def test_layers_go_from_the_input_to_the_output_and_hold_every_parameter_once() -> None:
    built = network()
    held = [id(p) for layer in built.layers() for p in layer.parameters()]
    assert sorted(held) == sorted(id(p) for p in built.parameters())
    assert len(built.layers()) == 7 and built.layers()[0] is built.embed


@pytest.mark.parametrize("container", ["model_point", "net"])
def test_published_files_load_and_exports_are_such_files(
    expected: dict[str, Tensor], container: str, tmp_path: Path
) -> None:
    ours, head = case(expected, "layer")
    state = {f"module.{name}": tensor for name, tensor in {**ours.state_dict(), **head}.items()}
    torch.save({"epoch": 3, container: state}, tmp_path / "ckpt_last.pth")
    changes = ["backbone.channels=8", "backbone.depth=4", "backbone.cells=[16, 12, 4]"]
    settings = load_settings("scalr", [*changes, "backbone.range_m=[-8, -6, -2, 8, 6, 2]"])
    summary = import_weights(tmp_path / "ckpt_last.pth", tmp_path / "imported.pt", settings)
    assert summary.layout == "waffleiron"
    found, content = load_backbone(tmp_path / "imported.pt")
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in found.state_dict().items())
    torch.testing.assert_close(content["method_state"]["final.kernel"], head["classif.weight"][:, :, 0].T)
    export_backbone(tmp_path / "imported.pt", tmp_path / "exported.pth")
    content = torch.load(tmp_path / "exported.pth", weights_only=True)
    exported = content["net"]
    # As ScaLR's finetune.py reads --pretrained_ckpt.
    assert content.get("model_points") is None and content["model_point"].keys() == exported.keys()
    assert exported.keys() == {**ours.state_dict(), **head}.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in {**ours.state_dict(), **head}.items())


def test_the_head_of_a_fine_tuning_is_exported_as_classif(expected: dict[str, Tensor], tmp_path: Path) -> None:
    ours, _ = case(expected, "layer")
    changes = ["backbone.channels=8", "backbone.depth=4", "backbone.cells=[16, 12, 4]"]
    settings = load_settings("scalr", [*changes, "backbone.range_m=[-8, -6, -2, 8, 6, 2]"])
    head = {"weight": torch.rand(17, 8), "bias": torch.rand(17)}
    content = {"kind": "finetune", "settings": settings_to_plain(settings), "backbone": backbone_arguments(settings)}
    save_checkpoint(tmp_path / "last.pt", {**content, "backbone_state": ours.state_dict(), "head_state": head})
    summary = export_backbone(tmp_path, tmp_path / "out.pth")
    written = torch.load(tmp_path / "out.pth", weights_only=True)["net"]
    layer = torch.nn.Conv1d(8, 16, 1)
    layer.load_state_dict({name: written[f"classif.{name}"] for name in ("weight", "bias")})
    feature = torch.rand(1, 8, 5)
    logit = torch.nn.functional.linear(feature[0].T, head["weight"], head["bias"])
    torch.testing.assert_close(layer(feature)[0].T, logit[:, 1:])
    assert summary.left_out == [] and summary.parameters == len(written)
    # A plain dictionary of the backbone has no place for it.
    left_out = export_backbone(tmp_path, tmp_path / "plain.pt", "state_dict").left_out
    assert left_out == ["head.weight", "head.bias"]


def test_the_head_of_scalrs_probe_is_left_out_and_its_network_is_read(
    expected: dict[str, Tensor], tmp_path: Path
) -> None:
    ours, _ = case(expected, "layer")
    classif = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Conv1d(8, 16, 1)).state_dict()
    state = {**ours.state_dict(), **{f"classif.{name}": tensor for name, tensor in classif.items()}}
    torch.save({"net": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "probe.pth")
    changes = ["backbone.channels=8", "backbone.depth=4", "backbone.cells=[16, 12, 4]"]
    settings = load_settings("scalr", [*changes, "backbone.range_m=[-8, -6, -2, 8, 6, 2]"])
    summary = import_weights(tmp_path / "probe.pth", tmp_path / "imported.pt", settings)
    assert sorted(summary.left_out) == sorted(f"classif.{name}" for name in classif)
    found, content = load_backbone(tmp_path / "imported.pt")
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in found.state_dict().items())
    assert content["method_state"] == {}


def test_scalr_pluss_network_is_refused_by_name(expected: dict[str, Tensor], tmp_path: Path) -> None:
    ours, _ = case(expected, "layer")
    extra = {"classif.0.weight": torch.zeros(4, 8, 1), "classif.2.weight": torch.zeros(4, 4, 1)}
    torch.save({"model_point": {**ours.state_dict(), **extra}}, tmp_path / "plus.pth")
    with pytest.raises(OlivineError, match=r"plus\.pth: holds the network of ScaLR\+"):
        import_weights(tmp_path / "plus.pth", tmp_path / "out.pt")


@pytest.mark.parametrize(("backbone", "channels"), [("waffle-iron-small", 4), ("srunet-small", 4), ("srunet-small", 3)])
def test_a_run_trains_on_coordinates_with_and_without_intensity(
    backbone: str, channels: int, small_shards: Path, small_settings: Callable[..., PretrainSettings], tmp_path: Path
) -> None:
    settings = small_settings(
        small_shards,
        f"backbone.name={backbone}",
        "method.scr=false",
        "method.wcd=false",
        "voxels.first_channel=0",
        f"voxels.feature_channels={channels}",
        "optimizer.kind=adamw",
        "optimizer.lr=0.01",
        "run.steps=6",
    )
    summary = pretrain(settings, tmp_path / "run")
    assert summary.last_loss < summary.first_loss
    _, content = load_backbone(tmp_path / "run")
    assert content["backbone"]["in_channels"] == channels
