"""The front door in Python: every example of docs/api.md, and networks on points of one's own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import olivine
from olivine.common import OlivineError
from olivine.downstream.data import CloudExamples
from olivine.downstream.finetune import finetune
from olivine.downstream.predict import predicted_points, read_segmenter
from olivine.downstream.settings import FinetuneSettings
from olivine.pairs.shards import open_shards
from olivine.train.checkpoint import checkpoint_file, load_backbone
from olivine.train.settings import load_settings
from olivine.train.voxelize import VoxelSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finetuned(nuscenes_world, checkpoint, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("api") / "finetune-100"
    finetune(checkpoint, *nuscenes_world.splits, out, FinetuneSettings(epochs=1, batch=4, accelerator="cpu"))
    return out


def test_every_example_of_the_page_runs(nuscenes_world, checkpoint, finetuned, tmp_path, monkeypatch) -> None:
    (tmp_path / "data/pairs").mkdir(parents=True)
    (tmp_path / "data/pairs/nuscenes").symlink_to(nuscenes_world.pairs)
    (tmp_path / "data/nuscenes").symlink_to(nuscenes_world.root)
    (tmp_path / "runs/cpu").mkdir(parents=True)
    (tmp_path / "runs/cpu/last.pt").symlink_to(checkpoint)
    (tmp_path / "runs/cpu/finetune-100").symlink_to(finetuned)
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    assert len(examples) >= 6
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "docs/api.md", "exec"), names)
    assert (tmp_path / "runs/mine/last.pt").is_file()


def test_importing_olivine_imports_nothing_heavy() -> None:
    code = "import sys, olivine; print(sorted({'torch', 'numpy', 'zarr', 'numba'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = olivine.nonsense
    assert all(getattr(olivine, name) is not None for name in olivine.__all__)


def test_features_and_classes_of_points_are_those_of_the_shards_own_path(nuscenes_world, finetuned) -> None:
    shards = open_shards(nuscenes_world.pairs / "val")
    points = shards.points(0)
    before = points.copy()
    network = olivine.load(finetuned)
    backbone, content = load_backbone(checkpoint_file(finetuned))
    voxels = VoxelSettings(**{**content["voxels"], "range_m": tuple(content["voxels"]["range_m"])})
    example = CloudExamples(shards, voxels, torch.device("cpu")).whole(0)
    with torch.no_grad():
        expected = backbone.eval().encode(example.inputs).raw()[example.inverse]
    found = network.features(points)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, expected.numpy())
    np.testing.assert_array_equal(network.features(torch.from_numpy(points)).numpy(), found)
    model, examples, _ = read_segmenter(checkpoint_file(finetuned), shards)
    _, label, sure = next(predicted_points(model, examples, range(1), "x"))
    mine, mine_sure = network.predict(points)
    np.testing.assert_array_equal(mine, label)
    np.testing.assert_allclose(mine_sure, sure, atol=1e-6)
    assert network.in_range(points).all()
    np.testing.assert_array_equal(points, before)  # the caller's points stay as they are


def test_points_outside_a_fixed_grid_have_no_features_and_are_told(tmp_path) -> None:
    from olivine.common.settings import settings_to_plain
    from olivine.train.build import backbone_arguments, seeded_backbone
    from olivine.train.checkpoint import save_checkpoint

    changes = ["voxels.size_m=0.8", "voxels.height_m=0.1", "voxels.range_m=[0, -25.6, -3, 51.2, 25.6, 1]"]
    settings = load_settings("voxelnet", changes)
    content = {"settings": settings_to_plain(settings), "backbone": backbone_arguments(settings), "kind": "pretrain"}
    save_checkpoint(
        tmp_path / "last.pt",
        {**content, "step": 1, "steps": 1, "backbone_state": seeded_backbone(settings, 0).state_dict()},
    )
    network = olivine.load(tmp_path)
    points = np.random.default_rng(0).uniform((-10, -20, -2, 0), (40, 20, 0, 1), (500, 4)).astype(np.float32)
    inside = network.in_range(points)
    np.testing.assert_array_equal(inside, points[:, 0] >= 0)
    features = network.features(points)
    assert not features[~inside].any() and features[inside].any(axis=1).mean() > 0.9


def test_what_does_not_fit_is_one_line(finetuned, checkpoint) -> None:
    with pytest.raises(OlivineError, match="no head for classes"):
        olivine.load(checkpoint).predict(np.zeros((3, 4), np.float32))
    with pytest.raises(OlivineError, match=r"points of shape \[3, 3\]"):
        olivine.load(checkpoint).features(np.zeros((3, 3), np.float32))
    with pytest.raises(OlivineError, match="no such checkpoint"):
        olivine.load("nowhere")
    for device in ("toaster", "cuda:99"):
        with pytest.raises(OlivineError, match=f"no device '{device}' here"):
            olivine.load(checkpoint, device)


def test_a_file_of_points_is_embedded_by_a_command(nuscenes_world, finetuned, tmp_path) -> None:
    points = open_shards(nuscenes_world.pairs / "val").points(0)
    ring = np.zeros((len(points), 1), np.float32)
    np.concatenate([points, ring], axis=1).tofile(tmp_path / "scan.pcd.bin")
    np.concatenate([points, ring], axis=1).tofile(tmp_path / "five.bin")
    command = [sys.executable, "-m", "olivine", "embed"]
    named = ["--columns", "x,y,z,intensity,ring"]
    for name, more in (
        ("scan.pcd.bin", []),
        ("five.bin", named),
    ):  # the first is by its name nuScenes', of five columns
        given = [*command, name, *more, "--checkpoint", str(finetuned)]
        done = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = np.load(tmp_path / f"embeddings/{name.removesuffix('.bin')}.npy")
        np.testing.assert_array_equal(found, olivine.load(finetuned).features(points))
    done = subprocess.run([*command[:3], "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"olivine {olivine.__version__}\n"
    done = subprocess.run(command[:3], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "build-pairs" in done.stdout
