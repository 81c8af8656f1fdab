"""Promises of the scores on corrupted clouds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from olivine.downstream.data import CloudExamples
from olivine.downstream.finetune import finetune
from olivine.downstream.metrics import confusion_matrix, scores
from olivine.downstream.network import new_head, read_source
from olivine.downstream.predict import predicted_points, read_segmenter
from olivine.downstream.probe import linear_probe
from olivine.downstream.robustness import finetune_corrupted, linear_probe_corrupted, score_corrupted
from olivine.downstream.segment import open_ground
from olivine.downstream.settings import FinetuneSettings, ProbeSettings
from olivine.pairs.shards import open_shards
from olivine.train.augment import generator_of
from olivine.train.checkpoint import load_checkpoint
from olivine.train.corruptions import CORRUPTIONS, every_beam

QUICK = ProbeSettings(epochs=2, batch=2, lr=0.5, augment=False, accelerator="cpu")


def test_a_probes_head_is_scored_on_every_corruption_at_the_points_it_leaves(nuscenes_world, checkpoint, tmp_path):
    """Every second beam, by hand: features of the thinned cloud at its points, scored without the rest."""
    splits = nuscenes_world.splits
    results = linear_probe_corrupted(checkpoint, *splits, tmp_path, QUICK)
    plain = json.loads((tmp_path / "corruptions.json").read_text())
    assert [one["name"] for one in plain] == ["random weights", "pre-trained"]
    for one, result in zip(plain, results):
        assert one["clean"] == pytest.approx(result.scores.mean_iou)
        assert list(one["corrupted"]) == sorted(CORRUPTIONS)
    table = (tmp_path / "corruptions.md").read_text()
    assert "| clean |" in table and all(f"| {name} |" in table for name in CORRUPTIONS)

    shards, source = open_shards(splits[1]), read_source(checkpoint)
    backbone = source.build(0).eval()
    head = new_head(backbone.feature_channels, len(shards.point_classes) + 1, 0)
    head.load_state_dict(load_checkpoint(tmp_path / "pre-trained")["head_state"])
    hits, union, truths = np.zeros((3, len(shards.point_classes) + 1))
    for frame in range(len(shards)):
        points, label = shards.points(frame), shards.point_label(frame)
        kept = every_beam(points, 2)
        assert 0.3 < kept.mean() < 0.7
        clouds = CloudExamples(shards, source.voxels, torch.device("cpu"))
        example = clouds.corrupted(lambda cloud, _: (cloud, every_beam(cloud, 2))).whole(frame)
        with torch.no_grad():
            found = head(backbone.encode(example.inputs).raw())[:, 1:].argmax(1) + 1
        predicted, truth = found[example.inverse].numpy(), label[kept]
        predicted, truth = predicted[truth > 0], truth[truth > 0]
        for k in range(1, len(hits)):
            hits[k] += ((predicted == k) & (truth == k)).sum()
            union[k] += ((predicted == k) | (truth == k)).sum()
            truths[k] += (truth == k).sum()
    present = truths > 0
    expected = (hits[present] / np.maximum(union[present], 1)).mean()
    assert plain[1]["corrupted"]["every 2nd beam"] == pytest.approx(expected, abs=1e-6)
    clean = [results[1].scores.iou[name] for name, there in zip(shards.point_classes, present[1:]) if there]
    assert plain[1]["kept"]["every 2nd beam"] == pytest.approx(expected / np.mean(clean), abs=1e-6)


def test_the_same_frame_is_corrupted_in_the_same_way_each_time(nuscenes_world, checkpoint, tmp_path):
    short = replace(QUICK, epochs=1)
    (result,) = linear_probe_corrupted(checkpoint, *nuscenes_world.splits, tmp_path, short, random=False)
    source, ground = read_source(checkpoint), open_ground(*nuscenes_world.splits)
    first, second = (score_corrupted(source, tmp_path / "pre-trained", ground, short, result) for _ in range(2))
    assert first == second
    cloud = open_shards(nuscenes_world.splits[1]).points(0)
    a, b = (CORRUPTIONS["range noise 0.2 m"](cloud, generator_of(0, 0, 2, frame))[0] for frame in (0, 1))
    assert (a != b).any()


def test_a_fine_tuning_is_scored_on_every_corruption_and_trains_on_dropped_beams(nuscenes_world, checkpoint, tmp_path):
    """Its own network, not the checkpoint's: the clean score again from the file; beams are dropped in training alone."""
    splits, short = nuscenes_world.splits, FinetuneSettings(epochs=2, batch=2, beams=0.7, accelerator="cpu")
    result = finetune_corrupted(checkpoint, *splits, tmp_path / "run", short)
    (one,) = json.loads((tmp_path / "run" / "corruptions.json").read_text())
    assert one["clean"] == pytest.approx(result.scores.mean_iou) and sorted(one["corrupted"]) == sorted(CORRUPTIONS)
    model, clouds, _ = read_segmenter(tmp_path / "run" / "last.pt", open_shards(splits[1]), "cpu")
    half = clouds.corrupted(lambda cloud, _: (cloud, every_beam(cloud, 2)))
    found = np.zeros((len(result.classes) + 1,) * 2, np.int64)
    for frame, predicted, _ in predicted_points(model, half, range(len(half.shards)), "half"):
        found += confusion_matrix(half.labels(frame), predicted, len(result.classes))
    expected = scores(found, result.classes, half.shards.benchmark.mean_over).mean_iou
    assert one["corrupted"]["every 2nd beam"] == pytest.approx(expected)

    shards, voxels = open_shards(splits[0]), read_source(checkpoint).voxels
    training = CloudExamples(shards, voxels, torch.device("cpu"), short.as_augmentation(), seed=1)
    counts = [len(training.batch([(epoch, 0)]).inverse) for epoch in range(4)]
    assert len(set(counts)) > 1 and max(counts) <= len(training.whole(0).inverse) == len(shards.points(0))


def test_scores_on_corruptions_go_with_the_run_that_is_replaced(nuscenes_world, checkpoint, tmp_path):
    splits, one = nuscenes_world.splits, {"epochs": 1, "batch": 4, "accelerator": "cpu"}
    for name, corrupted, plain, settings in (
        ("finetune", finetune_corrupted, finetune, FinetuneSettings(**one)),
        ("probe", linear_probe_corrupted, linear_probe, ProbeSettings(augment=False, **one)),
    ):
        out, only = tmp_path / name, {"random": False}
        corrupted(checkpoint, *splits, out, settings, **only)
        assert (out / "corruptions.md").is_file() and (out / "corruptions.json").is_file()
        plain(checkpoint, *splits, out, replace(settings, lr=0.01), overwrite=True, **only)
        assert (out / "scores.json").is_file() and not list(out.rglob("corruptions.*"))
