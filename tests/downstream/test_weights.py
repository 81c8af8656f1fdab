"""Weights that leave for other code bases and come from them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from olivine.common import OlivineError
from olivine.common.settings import settings_to_plain
from olivine.downstream.checkpoints import exported_heads
from olivine.downstream.finetune import finetune
from olivine.downstream.network import read_source
from olivine.downstream.settings import FinetuneSettings
from olivine.downstream.weights import export_backbone, import_weights
from olivine.train.backbones import build_backbone
from olivine.train.build import backbone_arguments, build_model
from olivine.train.checkpoint import load_backbone, load_checkpoint, save_checkpoint
from olivine.train.settings import load_settings
from olivine.train.sparse import SparseTensor
from olivine.train.sparse.engines import engine_problem

# OpenPCDet's VoxelBackBone8x with four input features: layer -> (in, out, kernel z, y, x).
VOXEL_BACKBONE_8X = {
    "conv_input": (4, 16, 3, 3, 3),
    "conv1.0": (16, 16, 3, 3, 3),
    "conv2.0": (16, 32, 3, 3, 3),
    "conv2.1": (32, 32, 3, 3, 3),
    "conv2.2": (32, 32, 3, 3, 3),
    "conv3.0": (32, 64, 3, 3, 3),
    "conv3.1": (64, 64, 3, 3, 3),
    "conv3.2": (64, 64, 3, 3, 3),
    "conv4.0": (64, 64, 3, 3, 3),
    "conv4.1": (64, 64, 3, 3, 3),
    "conv4.2": (64, 64, 3, 3, 3),
    "conv_out": (64, 128, 3, 1, 1),
}


def voxel_backbone_shapes() -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for layer, (inputs, outputs, *kernel) in VOXEL_BACKBONE_8X.items():
        shapes[f"backbone_3d.{layer}.0.weight"] = [outputs, *kernel, inputs]
        norm = ("weight", "bias", "running_mean", "running_var")
        shapes |= {f"backbone_3d.{layer}.1.{name}": [outputs] for name in norm}
        shapes[f"backbone_3d.{layer}.1.num_batches_tracked"] = []
    return shapes


def random_state(network: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """The network's kernels, with norms and biases away from their first values, so that every one counts."""
    generator, state = torch.Generator().manual_seed(seed), dict(network.state_dict())
    for name, value in state.items():
        if name.endswith(("running_var", "bn.weight")):
            state[name] = 0.5 + torch.rand(value.shape, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            state[name] = 0.1 * torch.randn(value.shape, generator=generator)
    return state


def save_run(path: Path, preset: str, seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A run of a preset with random weights; its trunk and its point heads, these by their names in exports."""
    settings = load_settings(preset)
    model = build_model(settings, 8, ("none", "car"), 10)
    state = random_state(model.backbone, seed)
    method = random_state(model.method, seed + 1)
    content = {
        "settings": settings_to_plain(settings),
        "backbone": backbone_arguments(settings),
        "backbone_state": state,
        "method_state": method,
        "exported_heads": model.method.exported,
    }
    save_checkpoint(path, {"kind": "pretrain", "step": 1, "steps": 1, **content})
    heads = {"final": "point_head", "final_class_level": "category_point_head"}
    keys = ("kernel", "bias") if preset != "voxelnet" else ("kernel",)
    return state, {f"{theirs}.{key}": method[f"{ours}.{key}"] for theirs, ours in heads.items() for key in keys}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_an_exported_voxelnet_has_every_name_and_shape_of_seconds_trunk(tmp_path):
    trunk, _ = save_run(tmp_path / "last.pt", "voxelnet")
    summary = export_backbone(tmp_path, tmp_path / "second.pth")
    state = torch.load(tmp_path / "second.pth", weights_only=True)["model_state"]
    assert {name: list(value.shape) for name, value in state.items()} == voxel_backbone_shapes()
    assert summary.layout == "openpcdet" and summary.left_out == ["final.kernel", "final_class_level.kernel"]
    assert summary.parameters == len(state) == len(trunk)


def test_an_exported_srunet34_has_every_name_and_shape_of_the_published_network(tmp_path, srunet34_shapes):
    trunk, heads = save_run(tmp_path / "last.pt", "paper")
    summary = export_backbone(tmp_path, tmp_path / "out.pt", "minkowski")
    written = torch.load(tmp_path / "out.pt", weights_only=True)["model_points"]
    assert {name: list(value.shape) for name, value in written.items()} == srunet34_shapes
    assert equal(written, {**trunk, **heads})
    assert summary.parameters == len(srunet34_shapes) and not summary.left_out


@pytest.mark.parametrize(
    ("preset", "layout"), [("cpu", "minkowski"), ("cpu", "state_dict"), ("voxelnet", "state_dict")]
)
def test_what_was_exported_comes_back_the_same(preset, layout, tmp_path):
    trunk, heads = save_run(tmp_path / "last.pt", preset)
    export_backbone(tmp_path / "last.pt", tmp_path / "out.pt", layout)
    summary = import_weights(tmp_path / "out.pt", tmp_path / "back" / "last.pt", load_settings(preset))
    network, content = load_backbone(tmp_path / "back")
    assert equal(network.state_dict(), trunk) and equal(exported_heads(content), heads) and not summary.left_out
    assert summary.parameters == len(trunk) + len(heads)
    # Once more: what was imported is exported with its heads.
    export_backbone(tmp_path / "back", tmp_path / "again.pt", layout)
    again, first = (torch.load(tmp_path / name, weights_only=True) for name in ("again.pt", "out.pt"))
    assert equal(again.get("model_points", again), first.get("model_points", first))
    assert content["kind"] == "imported" and content["voxels"] == settings_to_plain(load_settings(preset).voxels)


def test_openpcdets_trunk_comes_back_but_for_the_heads(tmp_path):
    trunk, heads = save_run(tmp_path / "last.pt", "voxelnet")
    left_out = export_backbone(tmp_path, tmp_path / "second.pth").left_out
    detector = torch.load(tmp_path / "second.pth", weights_only=True)
    detector["model_state"]["dense_head.conv_box.weight"] = torch.ones(3)
    torch.save({**detector, "epoch": 80, "it": 1}, tmp_path / "detector.pth")
    summary = import_weights(tmp_path / "detector.pth", tmp_path / "back.pt")
    assert (summary.layout, summary.backbone) == ("openpcdet", "voxelnet")
    network, content = load_backbone(tmp_path / "back.pt")
    assert equal(network.state_dict(), trunk)
    assert left_out == list(heads) and exported_heads(content) == {}


def test_published_checkpoints_are_read_with_the_public_codes_voxels(tmp_path):
    generator = torch.Generator().manual_seed(9)
    network = build_backbone("srunet34", seed=generator)
    network.final = network.new_head(64, generator)
    network.final_class_level = network.new_head(64, generator)
    state = random_state(network, 3)
    slidr = {n: v for n, v in state.items() if not n.startswith("final_class_level")}
    torch.save({"model_points": slidr, "model_images": {}, "epoch": 50}, tmp_path / "slidr.pt")
    prefixed = {f"model_points.{n}": v for n, v in state.items()} | {"model_images.decoder.weight": torch.ones(1)}
    torch.save({"state_dict": prefixed, "epoch": 49}, tmp_path / "olivine.ckpt")
    one = import_weights(tmp_path / "slidr.pt", tmp_path / "a.pt")
    two = import_weights(tmp_path / "olivine.ckpt", tmp_path / "b.pt")
    assert (one.parameters, two.parameters) == (len(slidr), len(state)) and one.left_out == two.left_out == []
    assert read_source(tmp_path / "b.pt").voxels.grid == "cylindrical" and "cylindrical" in two.voxels
    for name, whole in (("a.pt", slidr), ("b.pt", state)):
        network, content = load_backbone(tmp_path / name)
        assert equal({**network.state_dict(), **exported_heads(content)}, whole)


def test_an_imported_backbone_is_fine_tuned_and_exported_again(nuscenes_world, checkpoint, tmp_path):
    export_backbone(checkpoint, tmp_path / "out.pt", "minkowski")
    settings = load_settings("cpu", ["voxels.size_m=0.8"])
    import_weights(tmp_path / "out.pt", tmp_path / "run" / "last.pt", settings)
    quick = FinetuneSettings(epochs=1, batch=8, accelerator="cpu")
    finetune(tmp_path / "run", *nuscenes_world.splits, tmp_path / "tuned", quick)
    summary = export_backbone(tmp_path / "tuned", tmp_path / "tuned.pt")
    written = torch.load(tmp_path / "tuned.pt", weights_only=True)["model_points"]
    # Fine-tuning has a head for classes and none for embeddings; the trunk is what it leaves.
    assert equal(written, load_backbone(tmp_path / "tuned")[0].state_dict())
    assert written.keys() == load_checkpoint(checkpoint)["backbone_state"].keys()
    assert "0.8 m" in summary.voxels and summary.left_out == ["head.weight", "head.bias"]


def test_weights_of_another_network_are_refused(tmp_path):
    save_run(tmp_path / "last.pt", "cpu")
    export_backbone(tmp_path, tmp_path / "small.pt")
    with pytest.raises(OlivineError, match=r"another network's tensors.* missing.*the first: "):
        import_weights(tmp_path / "small.pt", tmp_path / "back.pt")
    save_run(tmp_path / "voxelnet" / "last.pt", "voxelnet")
    with pytest.raises(OlivineError, match="has no form in the layout minkowski"):
        export_backbone(tmp_path / "voxelnet", tmp_path / "x.pt", "minkowski")
    export_backbone(tmp_path / "voxelnet", tmp_path / "second.pth")
    with pytest.raises(OlivineError, match="OpenPCDet's trunk, not a srunet-small"):
        import_weights(tmp_path / "second.pth", tmp_path / "back.pt", load_settings("cpu"))
    with pytest.raises(OlivineError, match="no layout 'spconv'"):
        export_backbone(tmp_path, tmp_path / "x.pt", "spconv")
    assert not (tmp_path / "back.pt").exists() and not (tmp_path / "x.pt").exists()


@pytest.mark.soak
@pytest.mark.skipif(engine_problem("minkowski") is not None, reason=str(engine_problem("minkowski")))
def test_an_exported_srunet34_loads_into_minkowski_engine_with_the_same_features(tmp_path, nuscenes_keyframe):
    """A MinkowskiEngine network of the public code's shape, loaded by name from the exported file, in float64."""
    import numpy as np

    from olivine.train.sparse.minkowski import import_minkowski
    from olivine.train.voxelize import voxelize

    path = Path(__file__).resolve().parents[2] / "benchmarks" / "sparse_speed.py"
    spec = importlib.util.spec_from_file_location("sparse_speed", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    save_run(tmp_path / "last.pt", "reference")
    export_backbone(tmp_path, tmp_path / "out.pt", "minkowski")
    theirs = module.minkowski_srunet34()
    theirs.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True)["model_points"])
    source = read_source(tmp_path)
    ours = source.build(0)
    (file,) = (nuscenes_keyframe / "samples" / "LIDAR_TOP").glob("*.bin")
    points = torch.from_numpy(np.fromfile(file, np.float32).reshape(-1, 5)[:, :4].copy())
    voxels = voxelize(points, None, source.voxels)
    feature = voxels.feature.double() / 255
    package = import_minkowski()
    generator, heads = torch.Generator().manual_seed(0), exported_heads(load_checkpoint(tmp_path))
    with torch.no_grad():
        trunk = ours.double().eval()(SparseTensor(feature, voxels.coordinate))
        expected = theirs.double().eval()(package.SparseTensor(feature, voxels.coordinate))
        found = []
        for name in ("final", "final_class_level"):
            head = ours.new_head(64, generator).double()
            head.load_state_dict({key: heads[f"{name}.{key}"] for key in ("kernel", "bias")})
            found.append(head(trunk))
    for mine, other in zip(found, expected, strict=True):
        order = torch.from_numpy(np.lexsort(other.C.numpy().T[::-1]))
        apart = float((mine.feature - other.F[order]).norm() / other.F.norm())
        print(f"exported SR-UNet34 in MinkowskiEngine: outputs {apart:.1e} apart, norm-relative")
        assert apart < 1e-9 and float(mine.feature.std(0).mean()) > 1e-3
