"""Weights of other code bases' files."""

from __future__ import annotations

import pytest
import torch

from olivine.common import OlivineError
from olivine.train.backbones import build_backbone
from olivine.train.backbones.layouts import export_weights, load_weights, read_weights


def foreign_state(shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state with OLIVINE's names and shapes that this package's code did not make."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(s, generator=generator) if s else torch.tensor(7) for n, s in shapes.items()}


def write(path, content):
    torch.save(content, path)
    return path


def test_slidrs_container_loads_and_leaves_the_second_head(srunet34_shapes, tmp_path):
    state = {n: t for n, t in foreign_state(srunet34_shapes).items() if not n.startswith("final_class_level")}
    path = write(tmp_path / "slidr.pt", {"model_points": state, "model_images": {"x": torch.ones(1)}, "epoch": 50})
    layout, weights = read_weights(path)
    net = build_backbone("srunet34")
    left = load_weights(net, weights, layout=layout, where=path)
    assert layout == "slidr"
    assert left == ["final_class_level.kernel", "final_class_level.bias"]
    assert all(torch.equal(net.state_dict()[n], t) for n, t in state.items())


def test_olivines_lightning_container_loads_whole(srunet34_shapes, tmp_path):
    state = foreign_state(srunet34_shapes)
    prefixed = {f"model_points.{n}": t for n, t in state.items()} | {"model_images.decoder.0.weight": torch.ones(2)}
    path = write(tmp_path / "olivine.ckpt", {"state_dict": prefixed, "epoch": 49, "global_step": 1})
    layout, weights = read_weights(path)
    net = build_backbone("srunet34")
    assert load_weights(net, weights, layout=layout, where=path) == []
    assert all(torch.equal(net.state_dict()[n], t) for n, t in state.items())


def test_a_minkowski_export_reads_back_and_has_slidrs_container(tmp_path):
    net = build_backbone("srunet-small", seed=1)
    assert export_weights(net, tmp_path / "out.pt", "minkowski") == []
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    assert set(content) == {"model_points"}
    other = build_backbone("srunet-small", seed=2)
    layout, weights = read_weights(tmp_path / "out.pt")
    load_weights(other, weights, layout=layout, where="out.pt")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize("name", ["voxelnet", "voxelnet-residual"])
def test_an_openpcdet_export_reads_back_and_names_what_it_leaves_out(name, tmp_path):
    net = build_backbone(name, seed=1)
    assert export_weights(net, tmp_path / "out.pth", "openpcdet") == ["final.kernel", "final_class_level.kernel"]
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert all(key.startswith("backbone_3d.") for key in content["model_state"])
    other = build_backbone(name, seed=2)
    layout, weights = read_weights(tmp_path / "out.pth")
    left = load_weights(other, weights, layout=layout, where="out.pth")
    assert left == ["final.kernel", "final_class_level.kernel"]
    own = net.state_dict()
    assert all(torch.equal(t, own[n]) for n, t in other.state_dict().items() if not n.startswith("final"))


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
    wrong = {**state, "final.kernel": torch.ones(32, 128)}
    for weights, line in (
        (missing, r"conv1p1s2.kernel \[8, 16, 16\] is missing"),
        (extra, r"block9.0.conv1.kernel \[27, 3, 3\] is not in the network"),
        (wrong, r"final.kernel is \[32, 128\], the network's \[32, 64\]"),
    ):
        with pytest.raises(OlivineError, match=line):
            load_weights(net, weights, where="a.pt")
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())


def test_files_that_are_no_checkpoint_are_one_line(tmp_path):
    (tmp_path / "noise.pt").write_bytes(b"not a checkpoint")
    for path, line in (
        (tmp_path / "nothing.pt", "no such file"),
        (tmp_path / "noise.pt", "cannot be read as a checkpoint"),
        (write(tmp_path / "other.pt", {"optimizer": 3, "epoch": 1}), "no 3D network in it"),
    ):
        with pytest.raises(OlivineError, match=line) as caught:
            read_weights(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_export_to_a_layout_of_other_networks_is_refused(tmp_path):
    with pytest.raises(OlivineError, match="--layout minkowski"):
        export_weights(build_backbone("srunet-small"), tmp_path / "x.pth", "openpcdet")
    assert not (tmp_path / "x.pth").exists()
