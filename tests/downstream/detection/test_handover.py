"""Weights and configurations for OpenPCDet's detectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from olivine.common import OlivineError
from olivine.common.settings import settings_to_plain
from olivine.downstream.detection.handover import export_for
from olivine.downstream.detection.second import VOXELS, Second
from olivine.downstream.detection.settings import DetectionSettings
from olivine.downstream.detection.training import head_state, load_detector
from olivine.downstream.weights import import_weights
from olivine.train.backbone import build_backbone
from olivine.train.checkpoint import load_backbone, save_checkpoint

# Made by OpenPCDet itself, in benchmarks/second_expectations.py.
EXPECTED = Path(__file__).with_name("second_expectations.npz")


def save(
    folder: Path, preset: str = "pretraining", kind: str = "pretrain", name: str = "voxelnet", settings=None, **options
) -> Path:
    arguments = {"name": name, **options}
    network = build_backbone(**arguments, seed=3)
    content = {"kind": kind, "backbone": arguments, "voxels": settings_to_plain(VOXELS[preset]), "method_state": {},
               "backbone_state": network.state_dict()}  # fmt: skip
    if kind == "detect":
        content["settings"] = settings_to_plain(DetectionSettings(preset=preset, **(settings or {})))
        content["head_state"] = head_state(Second(network, VOXELS[preset]))
    save_checkpoint(folder / "last.pt", content)
    return folder / "last.pt"


@pytest.mark.parametrize("detector", ["second", "pv_rcnn", "centerpoint"])
def test_the_trunk_goes_out_and_comes_back_the_same(detector, tmp_path):
    path = save(tmp_path)
    summary = export_for(detector, path, tmp_path / "out.pth")
    state = torch.load(tmp_path / "out.pth", weights_only=True)["model_state"]
    assert all(name.startswith("backbone_3d.") for name in state) and summary.parameters == len(state)
    assert state["backbone_3d.conv_out.0.weight"].shape == (128, 3, 1, 1, 64) and not summary.head
    import_weights(tmp_path / "out.pth", tmp_path / "back.pt")
    ours, theirs = load_backbone(path)[0].state_dict(), load_backbone(tmp_path / "back.pt")[0].state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_kernels_of_spconv_1_as_the_published_checkpoints_have_them_are_read(tmp_path):
    path = save(tmp_path)
    export_for("second", path, tmp_path / "new.pth")
    state = torch.load(tmp_path / "new.pth", weights_only=True)["model_state"]
    old = {name: v.permute(1, 2, 3, 4, 0).contiguous() if v.ndim == 5 else v for name, v in state.items()}
    assert old["backbone_3d.conv_input.0.weight"].shape == (3, 3, 3, 4, 16)
    others = {"global_step": torch.zeros(1), "dense_head.conv_cls.bias": torch.zeros(18)}
    torch.save({"model_state": {**old, **others}, "epoch": 80}, tmp_path / "old.pth")
    import_weights(tmp_path / "old.pth", tmp_path / "back.pt")
    ours, theirs = load_backbone(path)[0].state_dict(), load_backbone(tmp_path / "back.pt")[0].state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_published_trunk_gets_the_voxels_that_are_set_and_detection_takes_it(tmp_path):
    from typer.testing import CliRunner

    from olivine.cli import app
    from olivine.downstream.detection.detect import check_voxels
    from olivine.downstream.network import read_source

    export_for("second", save(tmp_path), tmp_path / "second.pth")
    words = ["import-weights", str(tmp_path / "second.pth"), "--out", str(tmp_path / "back.pt")]
    voxels = ["--set", "voxels.size_m=0.05", "--set", "voxels.height_m=0.1"]
    done = CliRunner().invoke(app, [*words, *voxels])
    assert done.exit_code == 0, done.output
    source, settings = read_source(tmp_path / "back.pt"), DetectionSettings()
    assert source.arguments["name"] == "voxelnet" and source.voxels.from_corner
    check_voxels(source, settings.voxel_settings(), settings)


def test_a_trained_detector_goes_out_whole_with_the_names_of_openpcdets_secondnet(tmp_path):
    path = save(tmp_path, "second", "detect")
    summary = export_for("second", path, tmp_path / "second.pth")
    state = torch.load(tmp_path / "second.pth", weights_only=True)["model_state"]
    with np.load(EXPECTED) as file:
        wanted = set(file["full shapes"].tolist())
    found = {f"{name} {list(value.shape)}" for name, value in state.items() if not name.startswith("backbone_3d.")}
    assert found == wanted and summary.head
    assert "trained on another form of the intensity" in summary.notes[0]
    raw = save(tmp_path / "raw", "second", "detect", settings={"intensity": "raw"})
    assert export_for("second", raw, tmp_path / "raw.pth").notes == ()
    # For another detector the head is none.
    assert not export_for("pv_rcnn", path, tmp_path / "other.pth").head
    # What a run keeps goes back into the network.
    again = Second(build_backbone("voxelnet"), VOXELS["second"], seed=9)
    from olivine.train.checkpoint import load_checkpoint

    load_detector(again, load_checkpoint(path), path)
    assert torch.equal(again.dense_head.conv_cls.weight, state["dense_head.conv_cls.weight"])


def test_the_configuration_has_the_voxels_that_the_trunk_was_trained_with(tmp_path):
    for preset, edge, low, high in (
        ("pretraining", [0.1, 0.1, 0.2], -5.0, 3.0),
        ("second", [0.05, 0.05, 0.1], -3.0, 1.0),
    ):
        folder = tmp_path / preset
        export_for("second", save(folder, preset), folder / "a.pth")
        data = yaml.safe_load((folder / "a.yaml").read_text())["DATA_CONFIG"]
        assert data["DATA_PROCESSOR"][-1]["VOXEL_SIZE"] == edge
        assert data["POINT_CLOUD_RANGE"] == [0.0, -40.0, low, 70.4, 40.0, high]
        # 41 layers with the one on top, which the trunk brings down to two: 256 channels.
        assert round((high - low) / edge[2]) == 40
    export_for("centerpoint", save(tmp_path / "residual", residual=True), tmp_path / "residual" / "a.pth")
    plain = yaml.safe_load((tmp_path / "residual" / "a.yaml").read_text())
    assert plain["MODEL"]["BACKBONE_3D"]["NAME"] == "VoxelResBackBone8x"
    assert plain["DATA_CONFIG"]["POINT_FEATURE_ENCODING"]["used_feature_list"] == ["x", "y", "z", "intensity"]


def test_what_cannot_be_handed_over_is_one_line(tmp_path):
    path = save(tmp_path)
    with pytest.raises(OlivineError, match="--for yolo"):
        export_for("yolo", path, tmp_path / "a.pth")
    with pytest.raises(OlivineError, match="holds a srunet-small, and second stands on VoxelNet"):
        export_for("second", save(tmp_path / "unet", name="srunet-small"), tmp_path / "a.pth")
    with pytest.raises(OlivineError, match=r"voxels of 0\.05 x 0\.05 x 0\.1 m .* centerpoint has no configuration"):
        export_for("centerpoint", save(tmp_path / "fine", "second"), tmp_path / "a.pth")
    export_for("second", path, tmp_path / "a.pth")
    with pytest.raises(OlivineError, match="exists already"):
        export_for("second", path, tmp_path / "a.pth")
    export_for("second", path, tmp_path / "a.pth", overwrite=True)
    (tmp_path / "b.yaml").write_text("mine: 1\n")
    with pytest.raises(OlivineError, match=r"b\.yaml: exists, and this command did not write it"):
        export_for("second", path, tmp_path / "b.pth", overwrite=True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"range_m": (0.0, -12.8, -5.0, 25.6, 12.8, 3.0)}, "range_m="),
        ({"classes": ("Pedestrian", "Car", "Cyclist")}, "classes="),
        ({"plane_channels": (4, 4)}, "plane_channels="),
    ],
)
def test_a_detector_that_openpcdets_configuration_does_not_fit_is_refused_and_its_trunk_is_not(
    settings, says, tmp_path
):
    path = save(tmp_path, kind="detect", settings=settings)
    with pytest.raises(OlivineError, match=f"was trained with {says}.*second.yaml has"):
        export_for("second", path, tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists() and not (tmp_path / "a.yaml").exists()
    assert not export_for("pv_rcnn", path, tmp_path / "a.pth").head
    same = {"range_m": VOXELS["pretraining"].range_m}
    assert export_for("second", save(tmp_path / "same", kind="detect", settings=same), tmp_path / "b.pth").head


def test_weights_and_configuration_are_two_files(tmp_path):
    for name in ("two.yaml", "two.YML"):
        with pytest.raises(OlivineError, match=r"written beside it as \.yaml"):
            export_for("second", save(tmp_path), tmp_path / name)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("failing", ["write_tensors", "write_bytes"])
def test_the_same_command_goes_through_after_a_full_disk(failing, tmp_path, monkeypatch):
    def full(path, *_):
        raise OlivineError("the disk is full", where=path, remedy="run the command again")

    path = save(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(OlivineError, match="disk is full"):
        patch.setattr(f"olivine.downstream.detection.handover.{failing}", full)
        export_for("second", path, tmp_path / "a.pth")
    export_for("second", path, tmp_path / "a.pth")
    export_for("second", path, tmp_path / "b.pth")
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
