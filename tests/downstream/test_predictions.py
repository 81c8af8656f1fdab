"""Written predictions against the benchmarks' own scorers: nuscenes-devkit's, and SemanticKITTI's published formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from olivine.common import OlivineError
from olivine.downstream import predict
from olivine.downstream.benchmarks import PredictionWriter
from olivine.downstream.finetune import finetune
from olivine.downstream.metrics import confusion_matrix, scores
from olivine.downstream.probe import linear_probe
from olivine.downstream.settings import FinetuneSettings, ProbeSettings
from olivine.pairs.shards import open_shards
from olivine.train.checkpoint import load_checkpoint, save_checkpoint

# semantic-kitti.yaml of semantic-kitti-api: raw id -> class, and the id that each class is written as.
LEARNING_MAP = {0: 0, 1: 0, 10: 1, 11: 2, 13: 5, 15: 3, 16: 5, 18: 4, 20: 5, 30: 6, 31: 7, 32: 8, 40: 9, 44: 10}
LEARNING_MAP |= {48: 11, 49: 12, 50: 13, 51: 14, 52: 0, 60: 9, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 99: 0}
LEARNING_MAP |= {252: 1, 253: 7, 254: 6, 255: 8, 256: 5, 257: 5, 258: 4, 259: 5}
LEARNING_MAP_INV = [0, 10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]


def semantickitti_iou(root, folder):
    """semantic-kitti-api's iouEval: conf[prediction, truth] without ignored truth, tp / (tp + fp + fn + 1e-15)."""
    lookup = np.zeros(max(LEARNING_MAP) + 1, int)
    lookup[list(LEARNING_MAP)] = list(LEARNING_MAP.values())
    conf = np.zeros((20, 20))
    files = sorted((root / "sequences" / "08" / "labels").glob("*.label"))
    for file in files:
        truth = lookup[np.fromfile(file, "<u4") & 0xFFFF]
        raw = np.fromfile(folder / "sequences" / "08" / "predictions" / file.name, "<u4")
        assert len(raw) == len(truth) and set(raw.tolist()) <= set(LEARNING_MAP_INV[1:])
        np.add.at(conf, (lookup[raw], truth), 1)
    conf[:, 0] = 0
    tp = np.diag(conf)
    iou = tp / (conf.sum(1) + conf.sum(0) - tp + 1e-15)
    return iou[1:], iou[1:].mean()


@pytest.mark.filterwarnings("ignore")
def test_nuscenes_predictions_score_the_same_with_the_devkit(nuscenes_world, checkpoint, tmp_path):
    from nuscenes import NuScenes
    from nuscenes.eval.lidarseg.evaluate import LidarSegEval
    from nuscenes.eval.lidarseg.validate_submission import validate_submission

    settings = FinetuneSettings(epochs=4, batch=2, lr=0.5, accelerator="cpu")
    folder = tmp_path / "submission"
    result = finetune(checkpoint, *nuscenes_world.splits, tmp_path / "run", settings, predictions=folder)
    devkit = NuScenes("v1.0-mini", str(nuscenes_world.root), verbose=False)
    validate_submission(devkit, str(folder), "mini_val")
    theirs = LidarSegEval(devkit, str(folder), "mini_val").evaluate()
    ours = result.scores
    assert theirs["miou"] == pytest.approx(ours.scorer_mean_iou, abs=1e-6)
    assert theirs["freq_weighted_iou"] == pytest.approx(ours.frequency_weighted_iou, abs=1e-6)
    assert {n: theirs["iou_per_class"][n] for n in ours.iou} == pytest.approx(ours.iou, abs=1e-6)
    # A class that the truth lacks is in the devkit's mean, as 0, where it was predicted, and in ours never.
    predicted = np.array(result.confusion).sum(0)
    counted = [c for i, c in enumerate(result.classes, 1) if c in ours.iou or predicted[i]]
    assert ours.mean_iou * len(ours.iou) == pytest.approx(theirs["miou"] * len(counted), abs=1e-6)


def test_the_means_are_the_same_where_every_class_is_there():
    from nuscenes.eval.lidarseg.utils import ConfusionMatrix

    generator = np.random.default_rng(0)
    truth, predicted = generator.integers(0, 17, 20_000), generator.integers(1, 17, 20_000)
    ours = scores(confusion_matrix(truth, predicted, 16), tuple(map(str, range(16))), "present")
    devkit = ConfusionMatrix(17, 0)
    devkit.update(truth, predicted)
    assert ours.mean_iou == ours.scorer_mean_iou == pytest.approx(devkit.get_mean_iou(), abs=1e-6)


def test_semantickitti_predictions_score_the_same_with_the_published_formula(kitti_world, checkpoint, tmp_path):
    settings = ProbeSettings(epochs=4, batch=1, accelerator="cpu")
    folder = tmp_path / "submission"
    options = {"random": False, "predictions": folder}
    (result,) = linear_probe(checkpoint, *kitti_world.splits, tmp_path / "probe", settings, **options)
    iou, mean = semantickitti_iou(kitti_world.root, folder)
    ours = result.scores
    assert [ours.iou.get(name, 0.0) for name in result.classes] == pytest.approx(iou.tolist(), abs=1e-6)
    assert ours.scorer_mean_iou == pytest.approx(mean, abs=1e-6)
    assert ours.mean_iou == pytest.approx(iou[[c in ours.iou for c in result.classes]].mean(), abs=1e-6)


def test_a_finished_run_writes_predictions_without_training_again(kitti_world, checkpoint, tmp_path, monkeypatch):
    from olivine.downstream import segment_training

    settings = FinetuneSettings(epochs=1, batch=2, lr=0.5, accelerator="cpu")
    first = finetune(checkpoint, *kitti_world.splits, tmp_path / "run", settings)
    monkeypatch.setattr(segment_training, "segmentation_loss", None)
    second = finetune(checkpoint, *kitti_world.splits, tmp_path / "run", settings, predictions=tmp_path / "out")
    assert second == first
    assert len(list((tmp_path / "out").rglob("*.label"))) == second.validation_frames


def test_a_fine_tuned_network_predicts_unlabelled_shards_as_it_did_the_scored_ones(
    kitti_world, nuscenes_world, checkpoint, tmp_path
):
    settings = FinetuneSettings(epochs=1, batch=2, lr=0.5, accelerator="cpu")
    finetune(checkpoint, *kitti_world.splits, tmp_path / "run", settings, predictions=tmp_path / "a")
    # A test split's shards name the classes but hold no label, and no raw id of a class.
    bare = open_shards(kitti_world.splits[1])
    bare.point_label = lambda frame: None
    bare.shard(0).attributes["point_class_raw"] = []
    bare.manifest["planned_frames"] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "open_shards", lambda path: bare)
        summary = predict.predict(tmp_path / "run", "test", tmp_path / "b", accelerator="cpu")
    files = [sorted(p for p in (tmp_path / name).rglob("*.label")) for name in "ab"]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]] and len(files[0]) == summary.frames
    assert sum(summary.shares.values()) == pytest.approx(100) and summary.changed is None
    assert f"holds {summary.frames} of the {summary.frames + 1} frames of its split" in summary.failures[0].reason
    smoothed = predict.predict(tmp_path / "run", kitti_world.splits[1], tmp_path / "d", smooth="afi", accelerator="cpu")
    other = [p.read_bytes() for p in sorted((tmp_path / "d").rglob("*.label"))]
    assert smoothed.changed is not None and (smoothed.changed > 0) == (other != [p.read_bytes() for p in files[0]])
    assert [len(data) for data in other] == [p.stat().st_size for p in files[0]]
    with pytest.raises(OlivineError, match=r"--smooth median.*none, afi"):
        predict.predict(tmp_path / "run", kitti_world.splits[1], tmp_path / "c", smooth="median", accelerator="cpu")
    for source, shards, message in (
        (checkpoint, kitti_world.splits[1], "holds no head for classes"),
        (tmp_path / "run", nuscenes_world.splits[1], "the classes of semantickitti, these shards are nuscenes's"),
    ):
        with pytest.raises(OlivineError, match=message):
            predict.predict(source, shards, tmp_path / "c", accelerator="cpu")


def test_a_network_fine_tuned_by_the_first_release_predicts_the_same(kitti_world, checkpoint, tmp_path):
    """There the embedding heads stood in the backbone, unused in fine-tuning."""
    settings = FinetuneSettings(epochs=1, batch=4, lr=0.5, accelerator="cpu")
    finetune(checkpoint, *kitti_world.splits, tmp_path / "run", settings, predictions=tmp_path / "a")
    content = load_checkpoint(tmp_path / "run")
    heads = {f"{head}.kernel": torch.ones(32, 64) for head in ("final", "final_class_level")}
    heads |= {f"{head}.bias": torch.ones(1, 64) for head in ("final", "final_class_level")}
    content = {key: value for key, value in content.items() if key not in ("method_state", "exported_heads")}
    released = {"backbone": {**content["backbone"], "out_channels": 64}}
    save_checkpoint(
        tmp_path / "old.pt", {**content, **released, "backbone_state": {**content["backbone_state"], **heads}}
    )
    predict.predict(tmp_path / "old.pt", kitti_world.splits[1], tmp_path / "b", accelerator="cpu")
    files = [sorted(p for p in (tmp_path / name).rglob("*.label")) for name in "ab"]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]] and files[0]


def test_every_semantickitti_class_is_written_as_its_published_id(kitti_world, tmp_path):
    shards = open_shards(kitti_world.splits[1])
    raw = shards.shard(0).attributes["point_class_raw"]
    writer = PredictionWriter(tmp_path, shards, shards.point_classes, raw, pre_trained=True)
    writer.write(0, np.arange(1, 20))
    (file,) = tmp_path.rglob("*.label")
    assert file.relative_to(tmp_path).as_posix() == "sequences/08/predictions/000000.label"
    assert np.fromfile(file, "<u4").tolist() == LEARNING_MAP_INV[1:]


def test_the_submission_says_what_went_into_the_weights(nuscenes_world, tmp_path):
    import json

    shards = open_shards(nuscenes_world.splits[1])
    for name, pre_trained in (("a", True), ("b", False)):
        PredictionWriter(tmp_path / name, shards, shards.point_classes, [], pre_trained=pre_trained).finish()
        meta = json.loads((tmp_path / name / "mini_val" / "submission.json").read_text())["meta"]
        assert meta["use_lidar"] and meta["use_camera"] is meta["use_external"] is pre_trained
