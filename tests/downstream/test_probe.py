"""Promises of the probe: it learns from features it kept or made again, and augments where it is told."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from olivine.common import OlivineError
from olivine.downstream import segment
from olivine.downstream.data import CloudExamples, FrozenFeatures, KeptFeatures
from olivine.downstream.network import read_source
from olivine.downstream.probe import linear_probe
from olivine.downstream.settings import ProbeSettings, settings_of
from olivine.pairs.shards import open_shards
from olivine.train.checkpoint import load_checkpoint
from olivine.train.voxelize import VoxelSettings

HEAD = ProbeSettings(epochs=4, batch=2, augment=False, accelerator="cpu")
AUGMENTED = replace(HEAD, augment=True)


def test_a_probe_keeps_features_or_computes_them_again_with_the_same_scores(nuscenes_world, checkpoint, tmp_path):
    probes = [
        linear_probe(checkpoint, *nuscenes_world.splits, tmp_path / str(m), replace(HEAD, memory=m), random=r)
        for m, r in ((HEAD.memory, True), (0, False))
    ]
    assert [r.name for r in probes[0]] == ["random weights", "pre-trained"]
    assert probes[0][1].scores == probes[1][0].scores != probes[0][0].scores
    assert "backbone_state" not in load_checkpoint(tmp_path / "0" / "pre-trained")


def test_heads_that_share_a_backbones_features_score_as_alone_and_it_sees_each_frame_once(
    nuscenes_world, checkpoint, tmp_path, monkeypatch
):
    true, seen = FrozenFeatures._features, []
    monkeypatch.setattr(FrozenFeatures, "_features", lambda self, example: seen.append(1) or true(self, example))

    def scores(name, kept):
        seen.clear()
        settings = [ProbeSettings(epochs=2, batch=2, augment=False, seed=seed) for seed in (0, 1)]
        places = [(checkpoint, *nuscenes_world.splits, tmp_path / f"{name}-{one.seed}", one) for one in settings]
        return [linear_probe(*place, random=False, kept=kept)[0].scores for place in places], len(seen)

    alone, one_by_one = scores("alone", None)
    together, once = scores("together", KeptFeatures(1 << 30))
    assert together == alone and alone[0] != alone[1]
    assert one_by_one == 2 * once


def test_scoring_rounds_no_factor_that_training_does_not(nuscenes_world, checkpoint, tmp_path, monkeypatch):
    """PyTorch's own convolutions round to TF32 on a GPU unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    true, rounded = segment._evaluate, []
    monkeypatch.setattr(
        segment, "_evaluate", lambda *args: rounded.append(torch.backends.cudnn.allow_tf32) or true(*args)
    )
    linear_probe(checkpoint, *nuscenes_world.splits, tmp_path / "probe", replace(HEAD, epochs=1), random=False)
    assert rounded == [False] and torch.backends.cudnn.allow_tf32


def test_a_probe_rotates_and_flips_by_default_and_each_epoch_differs(nuscenes_world, checkpoint):
    """What the frozen network gets are the stored clouds up to a rotation about z and flips, drawn by epoch and frame."""
    assert ProbeSettings().augment and settings_of(ProbeSettings, ["augment=false"]) == ProbeSettings(augment=False)
    source, shards = read_source(checkpoint), open_shards(nuscenes_world.splits[0])
    clouds = CloudExamples(shards, source.voxels, torch.device("cpu"), ProbeSettings().as_augmentation(), seed=3)
    network, seen = source.build(0), []
    examples = FrozenFeatures(clouds, network, KeptFeatures(1 << 30), "train")
    encode = network.encode

    def recorded(cloud):
        seen.append(cloud.points.numpy().astype(np.float64))
        return encode(cloud)

    network.encode = recorded
    members = [(0, 1), (1, 1), (2, 1), (0, 2), (0, 1)]
    features = [examples.batch([member]).inputs for member in members]
    assert len(seen) == len(members)  # nothing was kept
    matrices = []
    for (_, frame), moved in zip(members, seen):
        stored = shards.points(frame).astype(np.float64)
        np.testing.assert_array_equal(moved[:, 2:], stored[:, 2:])
        matrix = np.linalg.lstsq(stored[:, :2], moved[:, :2], rcond=None)[0]
        np.testing.assert_allclose(moved[:, :2], stored[:, :2] @ matrix, atol=1e-4)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(2), atol=1e-6)
        matrices.append(matrix)
    assert np.array_equal(seen[0], seen[-1]) and torch.equal(features[0], features[-1])
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(matrices[:-1]) for b in matrices[:i])
    # Over many draws both flips and every quarter of the circle occur.
    cloud = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.float32)
    lone = SimpleNamespace(
        intensity_offset=0.0, points=lambda frame: cloud.copy(), point_label=lambda frame: None, token=str
    )
    draws = CloudExamples(lone, VoxelSettings(), torch.device("cpu"), ProbeSettings().as_augmentation())
    images = np.stack([draws.batch([(epoch, 0)]).inputs.points[:, :2].numpy() for epoch in range(400)])
    turned = np.arctan2(images[:, 0, 1], images[:, 0, 0])
    assert np.histogram(turned, 4, (-np.pi, np.pi))[0].min() > 60
    assert 150 < (np.linalg.det(images) < 0).sum() < 250  # one flip of the two mirrors the cloud, in half of the draws


def test_a_probe_with_and_without_augmentation_are_two_scores(nuscenes_world, checkpoint, tmp_path):
    splits = nuscenes_world.splits
    (plain,) = linear_probe(checkpoint, *splits, tmp_path / "probe", HEAD, random=False)
    with pytest.raises(OlivineError, match="holds another run: augment is False there and True here"):
        linear_probe(checkpoint, *splits, tmp_path / "probe", AUGMENTED, random=False)
    (augmented,) = linear_probe(checkpoint, *splits, tmp_path / "other", AUGMENTED, random=False)
    assert augmented.settings["augment"] and not plain.settings["augment"]
    assert augmented.confusion != plain.confusion and augmented.train_frames == plain.train_frames
