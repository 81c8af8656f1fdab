"""Folders of predictions and features: one network's at a time, shards without labels, and what is somebody else's stays."""

from __future__ import annotations

import json

import numpy as np
import pytest

from olivine.common import MARK, OlivineError
from olivine.downstream import predict
from olivine.downstream.benchmarks import PredictionReader, PredictionWriter
from olivine.downstream.embed import Embedder
from olivine.downstream.finetune import finetune
from olivine.downstream.settings import FinetuneSettings
from olivine.downstream.written import begin_output
from olivine.pairs.shards import open_shards
from olivine.train.checkpoint import load_checkpoint, save_checkpoint

QUICK = FinetuneSettings(epochs=1, batch=4, lr=0.5, accelerator="cpu")


@pytest.fixture(scope="module")
def networks(nuscenes_world, checkpoint, tmp_path_factory):
    """Two fine-tuned networks that never agree, and the first one's predictions of the validation frames."""
    folder = tmp_path_factory.mktemp("networks")
    finetune(checkpoint, *nuscenes_world.splits, folder / "a", QUICK, predictions=folder / "submission")
    content = load_checkpoint(folder / "a")
    other = {name: -value for name, value in content["head_state"].items()}
    save_checkpoint(folder / "b" / "last.pt", {**content, "head_state": other})
    return folder / "a", folder / "b", folder / "submission"


def files_in(folder):
    """The files that are not olivine's mark, by name."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != MARK}


def write(network, world, out, **options):
    return predict.predict(network, world.splits[1], out, accelerator="cpu", **options)


def test_shards_without_labels_are_predicted_and_read_by_the_checkpoints_classes(
    nuscenes_world, networks, tmp_path, monkeypatch
):
    """nuScenes without its lidarseg tables: the shards name no class."""
    bare = open_shards(nuscenes_world.splits[1])
    bare.point_label, bare.point_classes = lambda frame: None, ()
    bare.shard(0).attributes["point_class_raw"] = []
    monkeypatch.setattr(predict, "open_shards", lambda path: bare)
    summary = predict.predict(networks[0], "test", tmp_path / "out", accelerator="cpu")
    assert sum(summary.shares.values()) == pytest.approx(100)
    assert files_in(tmp_path / "out") == files_in(networks[2])
    labelled = open_shards(nuscenes_world.splits[1])
    one, other = (PredictionReader(tmp_path / "out", shards) for shards in (bare, labelled))
    assert one.classes == other.classes == labelled.point_classes
    for frame in range(len(bare)):
        count = len(bare.points(frame))
        np.testing.assert_array_equal(one.read(frame, count), other.read(frame, count))


def test_original_ids_are_read_back_where_the_shards_have_none(kitti_world, tmp_path):
    shards = open_shards(kitti_world.splits[1])
    raw, label = shards.shard(0).attributes["point_class_raw"], np.arange(len(shards.points(0))) % 19 + 1
    writer = PredictionWriter(tmp_path, shards, shards.point_classes, raw, pre_trained=True)
    writer.begin("a" * 64)
    writer.write(0, label)
    shards.shard(0).attributes["point_class_raw"] = []
    np.testing.assert_array_equal(PredictionReader(tmp_path, shards).read(0, len(label)), label)
    shards.point_classes = ("car", "tree")
    with pytest.raises(OlivineError, match="predictions of other classes"):
        PredictionReader(tmp_path, shards)


@pytest.mark.parametrize("earlier_version", [False, True])
def test_another_networks_predictions_are_gone_before_the_first_is_written(
    earlier_version, networks, nuscenes_world, tmp_path, monkeypatch
):
    out, shards = tmp_path / "out", open_shards(nuscenes_world.splits[1])
    write(networks[0], nuscenes_world, out, confidence=True)
    before = files_in(out)
    assert any(name.endswith("submission.json") for name in before) and len(before) == 2 * len(shards) + 1
    (out / "notes.txt").write_text("mine")
    (out / "confidence" / "mine.bin").write_bytes(b"mine")
    if earlier_version:  # which kept no account
        (out / MARK).write_text(json.dumps({"made_by": "olivine"}))
    true = PredictionWriter.write

    def stopped(self, frame, predicted):
        if frame == 1:
            raise KeyboardInterrupt
        true(self, frame, predicted)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PredictionWriter, "write", stopped)
        write(networks[1], nuscenes_world, out)
    left = files_in(out)
    (new,) = set(left) - {"notes.txt", "confidence/mine.bin"}
    assert new.endswith("_lidarseg.bin") and left[new] != before[new]
    write(networks[1], nuscenes_world, out)
    assert PredictionReader(out, shards).confidence(0, len(shards.points(0))) is None
    assert files_in(out)["confidence/mine.bin"] == b"mine"


def test_the_same_networks_predictions_stay_together(networks, nuscenes_world, tmp_path):
    out, shards = tmp_path / "out", open_shards(nuscenes_world.splits[1])
    write(networks[0], nuscenes_world, out, confidence=True)
    before = files_in(out)
    write(networks[0], nuscenes_world, out)
    assert files_in(out) == before
    predict.predict(networks[0], nuscenes_world.splits[0], out, accelerator="cpu")  # of another split too
    assert before.items() < files_in(out).items()
    write(networks[0], nuscenes_world, out, smooth="afi")  # another answer of the same network
    assert PredictionReader(out, shards).confidence(0, len(shards.points(0))) is None
    assert len(files_in(out)) == len(shards) + 1


def test_a_file_that_olivine_did_not_make_is_not_replaced(tmp_path):
    begin_output(tmp_path / "out", {"checkpoint": "a"}, ["one.npy"])
    (tmp_path / "out" / "two.npy").write_text("mine")
    for network in "ab":
        with pytest.raises(OlivineError, match=r"two\.npy: exists, and olivine did not make it"):
            begin_output(tmp_path / "out", {"checkpoint": network}, ["one.npy", "two.npy"])
    assert (tmp_path / "out" / "two.npy").read_text() == "mine"
    (tmp_path / "out" / MARK).write_text(json.dumps({"made_by": "olivine", "written": ["../secret"]}))
    (tmp_path / "secret").write_text("mine")
    with pytest.raises(OlivineError, match=r"names the path '\.\./secret'"):
        begin_output(tmp_path / "out", {"checkpoint": "b"}, ["one.npy"])
    assert (tmp_path / "secret").read_text() == "mine"


def test_an_intensity_that_is_not_finite_is_one_line_that_names_the_file(checkpoint, olivine, tmp_path):
    points = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    points[5, 3], points[7, 3] = np.nan, np.inf
    with pytest.raises(OlivineError, match="the intensity of 2 of 50 points is not finite"):
        Embedder(checkpoint).features(points)
    points.tofile(tmp_path / "scan.bin")
    done = olivine("embed", "scan.bin", "--checkpoint", checkpoint, cwd=tmp_path)
    assert done.returncode == 2 and "scan.bin: points: the intensity of 2 of 50 points" in done.stderr
    points[:, 3] = 1
    points.tofile(tmp_path / "scan.bin")
    done = olivine("embed", "scan.bin", "--checkpoint", checkpoint, "--intensity-offset", "nan", cwd=tmp_path)
    assert done.returncode == 2 and "intensity_offset: is nan" in done.stderr
    assert not list((tmp_path / "embeddings").glob("*.npy"))


def test_embed_keeps_ones_own_files_and_no_two_networks_features(checkpoint, make_checkpoint, olivine, tmp_path):
    for name in ("one", "two"):
        np.random.default_rng(0).random((50, 4), np.float32).tofile(tmp_path / f"{name}.bin")
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / "one.npy", np.zeros(3))
    before = files_in(tmp_path / "mine")
    done = olivine("embed", "one.bin", "--checkpoint", checkpoint, "--out", "mine", cwd=tmp_path)
    assert done.returncode == 2 and "mine: holds .npy files" in done.stderr and "earlier version" in done.stderr
    assert files_in(tmp_path / "mine") == before
    for name in ("one", "two"):
        olivine("embed", f"{name}.bin", "--checkpoint", checkpoint, cwd=tmp_path, check=True)
    assert set(files_in(tmp_path / "embeddings")) == {"one.npy", "two.npy"}
    olivine("embed", "two.bin", "--checkpoint", make_checkpoint(seed=8), cwd=tmp_path, check=True)
    assert set(files_in(tmp_path / "embeddings")) == {"two.npy"}
    # Features of an intensity that was read otherwise are no better beside these than another network's.
    olivine(
        "embed", "one.bin", "--checkpoint", make_checkpoint(seed=8), "--intensity-offset", 1, cwd=tmp_path, check=True
    )
    assert set(files_in(tmp_path / "embeddings")) == {"one.npy"}
