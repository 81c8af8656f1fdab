"""The linear probe on a small real-format shard set: what it learns, and what it refuses."""

import json

import numpy as np
import pytest
import torch

from olivine.common import OlivineError
from olivine.downstream import probe
from olivine.downstream.metrics import Scores
from olivine.downstream.results import ProbeResult, score_table


class Records(list):
    """Stands for a shard set: frames with points and labels."""

    point_classes = ("ground", "wall", "never")
    digest = "0" * 64


class Record:
    def __init__(self, seed):
        generator = np.random.default_rng(seed)
        label = generator.integers(0, 3, 800).astype(np.uint8)
        points = generator.uniform(-20, 20, (800, 4)).astype(np.float32)
        points[:, 2] = np.where(label == 1, -1.5, 1.5)
        points[:, 3] = np.where(label == 1, 5.0, 60.0)
        self.points, self.point_label = points, label


class Identity(torch.nn.Module):
    """A backbone whose features are the intensity and one constant."""

    def features(self, tensor):
        feature = torch.cat([tensor.feature / 50, torch.ones_like(tensor.feature)], 1)
        return type("Features", (), {"feature": feature})


@pytest.fixture
def sets():
    return Records([Record(i) for i in range(6)]), Records([Record(i) for i in range(6, 9)])


def run_probe(sets, **changes):
    from olivine.train.settings import PretrainSettings

    settings = probe.ProbeSettings(**{"epochs": 30, **changes})
    return probe._probe_one("test", "", Identity(), PretrainSettings(), sets, settings)


def test_a_head_on_features_that_tell_the_classes_apart_finds_them(sets):
    result = run_probe(sets)
    assert result.scores.iou["ground"] > 0.99
    assert result.scores.iou["wall"] > 0.99
    assert result.scores.absent == ("never",)
    assert result.scores.point_count == sum(int((r.point_label > 0).sum()) for r in sets[1])


def test_the_same_seed_gives_the_same_scores_with_or_without_kept_features(sets):
    assert run_probe(sets, epochs=3).scores == run_probe(sets, epochs=3, memory=0).scores


def test_shards_without_point_labels_are_refused(tmp_path, monkeypatch, sets):
    sets[0].point_classes = ()
    monkeypatch.setattr(probe, "open_shards", lambda path: sets[0])
    with pytest.raises(OlivineError, match="the shards have no point labels"):
        probe.linear_probe("run", "train", "val", tmp_path)


def test_the_table_names_every_class_and_what_was_left_out():
    score = Scores({"car": 0.5, "road": 0.25}, ("bus",), 0.375, 0.3, 0.6, 1234)
    result = ProbeResult("pre-trained", "runs/a", score, {}, 8, 2, {})
    table = score_table([result])
    assert "| car" in table
    assert "50.0" in table
    assert "37.5" in table
    assert "left out of the means: bus" in table
    assert "1,234 labelled points" in table
    json.dumps(score.iou)
