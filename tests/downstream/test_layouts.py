"""Weights of other code bases' files."""

from __future__ import annotations

import pytest
import torch

from olivine.common import OlivineError
from olivine.downstream.layouts import export_weights, load_weights, read_weights, split_heads
from olivine.train.backbones import build_backbone


def foreign_state(shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state with OLIVINE's names and shapes that this package's code did not make."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(s, generator=generator) if s else torch.tensor(7) for n, s in shapes.items()}


def new_heads(net: torch.nn.Module, *names: str) -> dict[str, torch.Tensor]:
    """The tensors of heads on a network's features, by their names in files."""
    generator = torch.Generator().manual_seed(5)
    heads = {name: net.new_head(64, generator) for name in names}
    return {f"{name}.{key}": tensor for name, head in heads.items() for key, tensor in head.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def write(path, content):
    torch.save(content, path)
    return path


def test_slidrs_container_loads_and_gives_back_its_one_head(srunet34_shapes, tmp_path):
    state = {n: t for n, t in foreign_state(srunet34_shapes).items() if not n.startswith("final_class_level")}
    path = write(tmp_path / "slidr.pt", {"model_points": state, "model_images": {"x": torch.ones(1)}, "epoch": 50})
    layout, weights = read_weights(path)
    net = build_backbone("srunet34")
    heads = load_weights(net, weights, layout=layout, where=path)
    assert layout == "slidr"
    assert set(heads) == {"final.kernel", "final.bias"}
    assert equal({**net.state_dict(), **heads}, state)


def test_olivines_lightning_container_loads_whole_and_gives_back_both_heads(srunet34_shapes, tmp_path):
    state = foreign_state(srunet34_shapes)
    prefixed = {f"model_points.{n}": t for n, t in state.items()} | {"model_images.decoder.0.weight": torch.ones(2)}
    path = write(tmp_path / "olivine.ckpt", {"state_dict": prefixed, "epoch": 49, "global_step": 1})
    layout, weights = read_weights(path)
    net = build_backbone("srunet34")
    heads = load_weights(net, weights, layout=layout, where=path)
    assert set(heads) == {f"{head}.{key}" for head in ("final", "final_class_level") for key in ("kernel", "bias")}
    assert equal({**net.state_dict(), **heads}, state)


def test_a_network_with_a_last_layer_takes_the_files_and_its_shape_is_checked(srunet34_shapes):
    state = foreign_state(srunet34_shapes)
    net = build_backbone("srunet34", out_channels=64)
    heads = load_weights(net, state, where="a.pt")
    assert set(heads) == {"final_class_level.kernel", "final_class_level.bias"}
    assert equal({**net.state_dict(), **heads}, state)
    with pytest.raises(OlivineError, match=r"final.kernel is \[96, 64\], the network's \[96, 128\]"):
        load_weights(build_backbone("srunet34", out_channels=128), state, where="a.pt")


@pytest.mark.parametrize("names", [(), ("final",), ("final", "final_class_level")])
def test_a_minkowski_export_reads_back_and_has_slidrs_container(names, tmp_path):
    net = build_backbone("srunet-small", seed=1)
    heads = new_heads(net, *names)
    assert export_weights(net, tmp_path / "out.pt", "minkowski", heads) == []
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    assert set(content) == {"model_points"}
    other = build_backbone("srunet-small", seed=2)
    layout, weights = read_weights(tmp_path / "out.pt")
    assert equal(load_weights(other, weights, layout=layout, where="out.pt"), heads)
    assert equal(net.state_dict(), other.state_dict())


@pytest.mark.parametrize("last", [None, 64])
@pytest.mark.parametrize("residual", [False, True])
def test_an_openpcdet_export_reads_back_and_names_what_it_leaves_out(residual, last, tmp_path):
    net = build_backbone("voxelnet", residual=residual, out_channels=last, seed=1)
    heads = new_heads(net, "final", "final_class_level")
    left = export_weights(net, tmp_path / "out.pth", "openpcdet", heads)
    assert left == ["final.kernel", "final_class_level.kernel"]
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert all(key.startswith("backbone_3d.") for key in content["model_state"])
    assert not any("final" in key for key in content["model_state"])
    other = build_backbone("voxelnet", residual=residual, seed=2)
    layout, weights = read_weights(tmp_path / "out.pth")
    assert load_weights(other, weights, layout=layout, where="out.pth") == {}
    trunk, _ = split_heads(net.state_dict())
    assert equal(other.state_dict(), trunk)


def test_openpcdets_kernel_is_indexed_out_z_y_x_in(tmp_path):
    net = build_backbone("voxelnet")
    with torch.no_grad():
        net.conv_out[0].kernel.zero_()
        # The cell at z = 2 of a 1 x 1 x 3 kernel (x, y, z), from input 5 to output 7.
        net.conv_out[0].kernel[2, 5, 7] = 1.0
        net.conv_input[0].kernel.zero_()
        # x = 2, y = 1, z = 0 of 3 x 3 x 3, x fastest.
        net.conv_input[0].kernel[2 + 3 * 1 + 9 * 0, 3, 11] = 1.0
    export_weights(net, tmp_path / "out.pth", "openpcdet")
    state = torch.load(tmp_path / "out.pth", weights_only=True)["model_state"]
    assert state["backbone_3d.conv_out.0.weight"].nonzero().tolist() == [[7, 2, 0, 0, 5]]
    assert state["backbone_3d.conv_input.0.weight"].nonzero().tolist() == [[11, 0, 1, 2, 3]]


def test_missing_extra_and_misshapen_names_are_errors_with_the_shape(tmp_path):
    net = build_backbone("srunet-small")
    before = {n: t.clone() for n, t in net.state_dict().items()}
    state = dict(net.state_dict())
    missing = {n: t for n, t in state.items() if n != "conv1p1s2.kernel"}
    extra = {**state, "block9.0.conv1.kernel": torch.ones(27, 3, 3)}
    wrong = {**state, "conv1p1s2.kernel": torch.ones(8, 16, 32)}
    for weights, line in (
        (missing, r"conv1p1s2.kernel \[8, 16, 16\] is missing"),
        (extra, r"block9.0.conv1.kernel \[27, 3, 3\] is not in the network"),
        (wrong, r"conv1p1s2.kernel is \[8, 16, 32\], the network's \[8, 16, 16\]"),
    ):
        with pytest.raises(OlivineError, match=line) as caught:
            load_weights(net, weights, where="a.pt")
        assert "a.pt" in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())


def test_files_that_are_no_checkpoint_are_one_line(tmp_path):
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    for path, line in (
        (tmp_path / "nothing.pt", "no such file"),
        (tmp_path / "noise.pt", "is no file of PyTorch|cannot be read as a checkpoint"),
        (write(tmp_path / "other.pt", {"optimizer": 3, "epoch": 1}), "no 3D network in it"),
    ):
        with pytest.raises(OlivineError, match=line) as caught:
            read_weights(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_export_to_a_layout_of_other_networks_is_refused(tmp_path):
    with pytest.raises(OlivineError, match="--layout minkowski"):
        export_weights(build_backbone("srunet-small"), tmp_path / "x.pth", "openpcdet")
    assert not (tmp_path / "x.pth").exists()
