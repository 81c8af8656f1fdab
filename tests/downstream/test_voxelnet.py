"""Probe and fine-tuning of a network with a fixed range: every point is scored, also beyond it."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from olivine.common import OlivineError
from olivine.downstream.data import CloudExamples
from olivine.downstream.finetune import finetune
from olivine.downstream.network import read_source
from olivine.downstream.predict import predict
from olivine.downstream.probe import linear_probe
from olivine.downstream.settings import FinetuneSettings, ProbeSettings
from olivine.pairs.shards import open_shards
from olivine.train.checkpoint import load_backbone

SHORT = FinetuneSettings(epochs=2, batch=2, lr=0.5, accelerator="cpu")
HEAD = ProbeSettings(epochs=4, batch=2, augment=False, accelerator="cpu")
REACH = 25.6


@pytest.fixture(scope="module")
def voxelnet(make_checkpoint) -> Path:
    """A VoxelNet on 128 x 128 x 40 coarse voxels, whose range ends before the clouds do."""
    grid = ["size_m=0.4", "height_m=0.2", "feature=mean", "first_channel=0", "feature_channels=4", "crop=true"]
    grid += ["from_corner=true", f"range_m=[{-REACH},{-REACH},-5,{REACH},{REACH},3]"]
    return make_checkpoint("backbone.name=voxelnet", *(f"voxels.{setting}" for setting in grid))


def test_the_places_of_a_voxelnet_are_the_points_also_beyond_its_range(voxelnet, nuscenes_world):
    source = read_source(voxelnet)
    network = source.build(0).eval()
    shards = open_shards(nuscenes_world.pairs / "val")
    examples = CloudExamples(shards, source.voxels, torch.device("cpu"), per_point=network.per_point)
    example = examples.batch([(0, 0), (0, 1)])
    label = np.concatenate([shards.point_label(frame) for frame in (0, 1)])
    points = np.concatenate([shards.points(frame) for frame in (0, 1)]).astype(np.float32)
    outside = (np.abs(points[:, :2]) > REACH).any(1)
    assert example.label.tolist() == label.tolist() and outside.any()
    assert torch.equal(example.inverse, torch.arange(len(label)))
    with torch.no_grad():
        feature = network.encode(example.inputs).raw()
        cells = network.features(example.inputs.tensor)
    # By hand: the cell of each point and its neighbours, each 3.2 m wide, on the map of 16 x 16 cells.
    plane = torch.zeros(2, 16, 16, 128)
    batch, x, y, z = cells.coordinate.long().T
    assert not z.any()
    plane[batch, x, y] = cells.feature
    place = np.clip((points[:, :2] + np.float32(REACH)) / np.float32(3.2), 0, 15)
    first = len(shards.points(0))
    for i in (*range(0, len(points), 97), *np.flatnonzero(outside)[::53], first - 1, first):
        (left, low), (a, b) = np.floor(place[i]).astype(int), place[i] - np.floor(place[i])
        at = plane[int(i >= first)]
        right, high = min(left + 1, 15), min(low + 1, 15)
        below = (1 - a) * at[left, low] + a * at[right, low]
        above = (1 - a) * at[left, high] + a * at[right, high]
        torch.testing.assert_close(feature[i], (1 - b) * below + b * above, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("far", [0, 1])
def test_a_frame_beyond_a_voxelnets_range_is_named(far, voxelnet):
    cloud = np.random.default_rng(0).uniform(-9, 9, (40, 4)).astype(np.float32)
    clouds = [cloud + 900 * np.eye(4, dtype=np.float32)[0] if frame == far else cloud for frame in (0, 1)]
    shards = SimpleNamespace(
        intensity_offset=0.0,
        points=clouds.__getitem__,
        point_label=lambda frame: None,
        token=lambda frame: f"frame {frame}",
    )
    examples = CloudExamples(shards, read_source(voxelnet).voxels, torch.device("cpu"), per_point=True)
    for call in (lambda: examples.batch([(0, 0), (0, 1)]), lambda: examples.whole(far)):
        with pytest.raises(OlivineError, match=f"^frame {far}: no point of this frame lies in the network's range"):
            call()
    assert len(examples.whole(1 - far).label) == 40


@pytest.mark.parametrize("kind", ["probe", pytest.param("finetune", marks=pytest.mark.soak)])
def test_a_voxelnet_is_trained_and_every_point_is_scored(kind, voxelnet, nuscenes_world, tmp_path):
    splits, out = nuscenes_world.splits, tmp_path / kind
    if kind == "probe":
        short = replace(HEAD, epochs=2)
        (result,) = linear_probe(voxelnet, *splits, out, short, random=False, predictions=tmp_path / "a")
        out = out / "pre-trained"
    else:
        result = finetune(voxelnet, *splits, out, SHORT, predictions=tmp_path / "a")
    loss = [float(row["loss"]) for row in csv.DictReader((out / "steps.csv").read_text().splitlines())]
    assert len(loss) == 8 and np.isfinite(loss).all() and np.mean(loss[-2:]) < loss[0]
    assert result.provenance["backbone"] == "voxelnet"
    shards = open_shards(splits[1])
    truth = [shards.point_label(frame) for frame in range(len(shards))]
    assert result.scores.point_count == sum(int((t > 0).sum()) for t in truth) == np.sum(result.confusion)
    # The written predictions, one byte a point, give the same confusion matrix.
    found = np.zeros_like(np.array(result.confusion))
    files = {path.name.split("_")[0]: path for path in (tmp_path / "a").rglob("*.bin")}
    assert len(files) == len(shards)
    for frame, label in enumerate(truth):
        predicted = np.fromfile(files[shards.token(frame)], np.uint8)
        assert len(predicted) == len(shards.points(frame))
        np.add.at(found, (label[label > 0], predicted[label > 0]), 1)
    assert found.tolist() == result.confusion
    if kind == "finetune":
        start, end = load_backbone(voxelnet)[0].state_dict(), load_backbone(out)[0].state_dict()
        assert all(not torch.equal(start[n], end[n]) for n in start if n.endswith("kernel"))
        predict(out, splits[1], tmp_path / "b", accelerator="cpu")
        again = {path.name: path.read_bytes() for path in (tmp_path / "b").rglob("*.bin")}
        assert again == {path.name: path.read_bytes() for path in files.values()}


def test_a_network_of_voxels_with_a_border_is_refused_before_anything_is_written(
    make_checkpoint, nuscenes_world, tmp_path
):
    """Points beyond its range have no voxel, and a probe scores every point."""
    path = make_checkpoint("voxels.crop=true", "voxels.from_corner=true")
    for run, settings in ((linear_probe, HEAD), (finetune, SHORT)):
        with pytest.raises(OlivineError, match=r"voxels\.from_corner=true: points beyond its range have no voxel"):
            run(path, *nuscenes_world.splits, tmp_path / "out", settings, predictions=tmp_path / "predictions")
    assert not list(tmp_path.iterdir())
