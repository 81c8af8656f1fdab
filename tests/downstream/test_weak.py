"""Weak labels as a benchmark's classes, and a network that learns from them alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from olivine.common import OlivineError
from olivine.downstream.finetune import finetune
from olivine.downstream.predict import predict
from olivine.downstream.probe import linear_probe
from olivine.downstream.rounds import OwnLabels, finetune_rounds
from olivine.downstream.settings import FinetuneSettings, ProbeSettings, settings_of
from olivine.downstream.weak import WeakLabels, class_of_prompt
from olivine.pairs.label_report import check_labels
from olivine.pairs.round_labels import compare_rounds
from olivine.pairs.shards import open_shards
from olivine.readers import dataset_class
from olivine.readers.benchmark import Benchmark

SHORT = FinetuneSettings(epochs=10, batch=2, lr=0.5, accelerator="cpu", labels="weak")


@pytest.mark.parametrize(
    ("dataset", "prompt", "name"),
    [
        ("nuscenes", "traffic cone", "traffic_cone"),
        ("nuscenes", "road", "driveable_surface"),
        ("nuscenes", "building", "manmade"),
        ("nuscenes", "trailer", "trailer"),  # not of the 13: the class of its name
        ("nuscenes", "sky", None),
        ("semantickitti", "road", "road"),  # the table gives it parking too
        ("semantickitti", "vegetation", "vegetation"),
        ("semantickitti", "barrier", "fence"),
        ("semantickitti", "pedestrian", "person"),
    ],
)
def test_a_prompt_is_the_class_of_its_name_or_the_tables(dataset: str, prompt: str, name: str | None) -> None:
    classes = {"nuscenes": NUSCENES, "semantickitti": SEMANTICKITTI}[dataset]
    table = {name: prompt for name, prompt in dataset_class(dataset).prompts.items() if prompt}
    (none, found) = class_of_prompt(table, [prompt], classes)
    assert none == 0
    assert found == (0 if name is None else classes.index(name) + 1)


NUSCENES = (
    "barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "traffic_cone", "trailer",
    "truck", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation",
)  # fmt: skip
SEMANTICKITTI = (
    "car", "bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist", "road", "parking",
    "sidewalk", "other-ground", "building", "fence", "vegetation", "trunk", "terrain", "pole", "traffic-sign",
)  # fmt: skip


def test_a_point_has_the_label_that_most_of_its_cameras_give(nuscenes_world) -> None:
    shards = open_shards(nuscenes_world.pairs / "train")
    weak = WeakLabels(shards, shards.point_classes)
    assert weak.absent == ("construction_vehicle", "trailer", "other_flat")
    record, found = shards[0], weak(0)
    assert len(found) == len(record.points)
    table = class_of_prompt(shards.benchmark.prompts, shards.classes, shards.point_classes)
    several = 0
    for point in range(0, len(found), 7):
        given = record.pair_label[record.pair_point == point]
        given = given[given > 0]
        several += len(given) > 1
        votes = np.bincount(given, minlength=1)
        assert found[point] == (table[votes.argmax()] if len(given) else 0)
    assert several


def test_a_camera_counts_by_its_score_and_labels_under_the_least_are_none() -> None:
    # Points 0 to 3; a car is 1, a road 2, a bus 3, which is no class here.
    point, label = [0, 0, 0, 1, 1, 2, 3], [1, 2, 2, 1, 2, 3, 2]
    score = [250, 100, 120, 0, 10, 255, 51]
    record = SimpleNamespace(
        points=np.zeros((5, 4)), pair_point=np.array(point), pair_label=np.array(label, np.uint8),
        pair_score=np.array(score, np.uint8), point_weak=np.array([1, 2, 3, 2, 0]),
        point_agreement=np.array([255, 128, 255, 100, 0], np.uint8),
    )  # fmt: skip

    def labels(least: float, *, scored: bool = True, voted: bool = False) -> list[int]:
        shards = SimpleNamespace(
            path="shards", dataset="made up", classes=("car", "road", "bus"), benchmark=Benchmark(), has_vote=voted,
            has=lambda column: scored, read=lambda frame, columns: record,
        )  # fmt: skip
        return WeakLabels(shards, ("car", "road"), least)(0).tolist()  # type: ignore[arg-type]

    assert labels(0, scored=False) == [2, 1, 0, 2, 0]  # the most cameras; of two alike the first
    assert labels(0) == [1, 2, 0, 2, 0]  # 250 is more than 100 and 120
    assert labels(0.1) == [1, 0, 0, 2, 0] and labels(0.5) == [1, 0, 0, 0, 0]
    assert labels(0, voted=True) == [1, 2, 0, 2, 0] and labels(0.5, voted=True) == [1, 2, 0, 0, 0]
    with pytest.raises(OlivineError, match=r"holds no confidence of its labels.*olivine build-pairs --consolidate"):
        labels(0.5, scored=False)
    with pytest.raises(OlivineError, match=r"least_score is 0\.5 and the labels are the truth"):
        FinetuneSettings(least_score=0.5)


def test_a_network_learns_without_annotation_and_says_what_it_cannot_know(nuscenes_world, checkpoint, tmp_path) -> None:
    result = finetune(checkpoint, *nuscenes_world.splits, tmp_path / "run", SHORT)
    (note,) = [note for note in result.notes if "weak labels" in note]
    assert "no prompt is construction_vehicle, trailer, other_flat" in note
    shards = open_shards(nuscenes_world.pairs / "val")
    weak = WeakLabels(shards, shards.point_classes)
    truth, said = (np.concatenate([of(frame) for frame in range(len(shards))]) for of in (shards.point_label, weak))
    both = [
        np.sum((truth == k) & (said == k)) / np.sum((truth == k) | (said == k) & (truth > 0)) for k in set(truth) - {0}
    ]
    assert result.labels_mean_iou == pytest.approx(np.mean(both))
    confusion = np.array(result.confusion)[1:, 1:]
    assert np.trace(confusion) > 1.2 * confusion.sum(axis=1).max()  # the largest class everywhere
    predicted = confusion.sum(axis=0)
    assert not predicted[[NUSCENES.index(name) for name in ("construction_vehicle", "trailer", "other_flat")]].any()
    with pytest.raises(OlivineError, match="labels is weak there and truth here"):
        finetune(checkpoint, *nuscenes_world.splits, tmp_path / "run", replace(SHORT, labels="truth"))


def test_a_submission_says_that_weak_labels_are_of_camera_images(nuscenes_world, checkpoint, tmp_path) -> None:
    short = replace(SHORT, epochs=1)
    finetune(checkpoint, *nuscenes_world.splits, tmp_path / "run", short, random=True, predictions=tmp_path / "scored")
    predict(tmp_path / "run", nuscenes_world.pairs / "val", tmp_path / "predicted")
    for folder in ("scored", "predicted"):
        (path,) = (tmp_path / folder).rglob("submission.json")
        meta = json.loads(path.read_text())["meta"]
        assert meta["use_camera"] and meta["use_external"] and meta["use_lidar"]


def test_uovs_preset_is_its_published_settings_and_can_be_changed() -> None:
    found = settings_of(FinetuneSettings, [], "uov")
    assert (found.labels, found.epochs, found.lr, found.backbone_lr) == ("weak", 5, 2.0, 0.02)
    assert settings_of(FinetuneSettings, ["lr=1"], "uov", epochs=7).epochs == 7
    with pytest.raises(OlivineError, match=r"--preset seal. Choose one of uov"):
        settings_of(FinetuneSettings, [], "seal")


def test_a_probe_may_start_from_the_head_of_the_fine_tuning_and_says_so(nuscenes_world, checkpoint, tmp_path) -> None:
    finetune(checkpoint, *nuscenes_world.splits, tmp_path / "run", replace(SHORT, epochs=1))
    still = ProbeSettings(epochs=1, batch=2, lr=0, augment=False, accelerator="cpu")  # what it starts from is scored
    scored = {}
    for head in ("new", "checkpoint"):
        settings = replace(still, head=head)
        scored[head] = linear_probe(tmp_path / "run", *nuscenes_world.splits, tmp_path / head, settings)
    random, own = scored["checkpoint"]
    before = json.loads((tmp_path / "run/scores.json").read_text())[0]["confusion"]
    assert own.confusion == before != scored["new"][1].confusion
    assert random.confusion == scored["new"][0].confusion
    assert any("head starts from the checkpoint's own" in note for note in own.notes)
    assert not any("head starts" in note for note in (*random.notes, *scored["new"][1].notes))
    with pytest.raises(OlivineError, match="holds no head for classes, and head=checkpoint asks for it"):
        linear_probe(
            checkpoint, *nuscenes_world.splits, tmp_path / "x", replace(still, head="checkpoint"), random=False
        )


def test_rounds_of_two_runs_never_lie_side_by_side(nuscenes_world, checkpoint, tmp_path) -> None:
    short, out = replace(SHORT, epochs=1, batch=8), tmp_path / "run"
    train = open_shards(nuscenes_world.pairs / "train")

    def run(rounds: int, overwrite: bool = False, **changes: object) -> list:
        splits, settings = nuscenes_world.splits, replace(short, **changes)
        return finetune_rounds(checkpoint, *splits, out, settings, rounds=rounds, overwrite=overwrite)

    notes = run(2)[1].notes
    assert any("own labels on 5" in note and "the weak ones elsewhere" in note for note in notes)
    assert len(compare_rounds(train, out)) == 1
    shutil.copytree(out / "labels-1", tmp_path / "labels-1")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(OlivineError, match=r"round-1: holds another run: surest is 0\.5 there and 0\.7 here"):
        run(2, surest=0.7)
    assert {path: path.read_bytes() for path in before} == before
    run(1, overwrite=True, seed=1)
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"round-0", "round-1", "labels-1"}
    # Round 0 knows no share: it is taken, and the round after it is trained again.
    at = (out / "round-0/last.pt").stat().st_mtime_ns
    shutil.rmtree(out / "round-1")
    run(1, seed=1, surest=0.7)
    assert (out / "round-0/last.pt").stat().st_mtime_ns == at
    assert json.loads((out / "labels-1/labels.json").read_text())["identity"]["surest"] == 0.7
    shutil.rmtree(out / "labels-1")
    shutil.copytree(tmp_path / "labels-1", out / "labels-1")
    with pytest.raises(OlivineError, match=r"labels-1: holds labels of another network than .*round-0/last\.pt"):
        compare_rounds(train, out)


def test_labels_of_no_class_are_refused(nuscenes_world) -> None:
    shards = open_shards(nuscenes_world.pairs / "train")
    with pytest.raises(OlivineError, match="no prompt is a point class of nuscenes"):
        WeakLabels(shards, ("sky", "water"))


def test_rounds_teach_what_the_network_before_is_surest_of_in_each_class(nuscenes_world, checkpoint, tmp_path) -> None:
    settings = replace(SHORT, epochs=2, surest=0.3)
    first, second = finetune_rounds(checkpoint, *nuscenes_world.splits, tmp_path / "run", settings, rounds=1)
    assert (first.name, second.name) == ("round 0", "round 1")
    summary = predict(tmp_path / "run/round-0", nuscenes_world.pairs / "train", tmp_path / "predicted", confidence=True)
    shards, parts = open_shards(nuscenes_world.pairs / "train"), []
    assert summary.frames == len(shards)
    for frame in range(len(shards)):
        token = shards.token(frame)
        predicted = np.fromfile(next((tmp_path / "predicted/lidarseg").rglob(f"{token}_lidarseg.bin")), np.uint8)
        sure = np.fromfile(tmp_path / "predicted/confidence" / f"{token}.bin", np.uint8)
        parts.append((predicted, sure, np.fromfile(tmp_path / "run/labels-1" / f"{frame:06d}.bin", np.uint8)))
    predicted, sure, label = (np.concatenate(part) for part in zip(*parts))
    assert set(np.unique(label)) == {0, *np.unique(predicted)}  # no class is lost
    for kind in np.unique(predicted):
        of_kind, kept = predicted == kind, label == kind
        assert not (kept & ~of_kind).any()
        assert 0.3 <= kept.sum() / of_kind.sum() < 0.35 or sure[of_kind].max() - sure[of_kind].min() <= 1
        assert sure[kept].min() + 1 >= sure[of_kind & ~kept].max(initial=0)
    weak = WeakLabels(shards, shards.point_classes)
    taught = OwnLabels(shards, weak, tmp_path / "run/round-0", tmp_path / "run/labels-1", settings)
    for frame, (_, _, own) in enumerate(parts):
        np.testing.assert_array_equal(taught(frame), np.where(own > 0, own, weak(frame)))
    assert any("surest of" in note for note in second.notes) and not any("surest of" in note for note in first.notes)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert finetune_rounds(checkpoint, *nuscenes_world.splits, tmp_path / "run", settings, rounds=1)[1] == second
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(OlivineError, match="holds the labels of one round"):  # so it can read them
        check_labels(nuscenes_world.pairs / "train", rounds=tmp_path / "run")
    first_labels = tmp_path / "run/labels-1/000000.bin"
    first_labels.write_bytes(bytes(len(first_labels.read_bytes())))
    (tmp_path / "run/round-1/scores.json").unlink()
    with pytest.raises(OlivineError, match=r"000000\.bin: has changed since it was written. Remove .*labels-1"):
        finetune_rounds(checkpoint, *nuscenes_world.splits, tmp_path / "run", settings, rounds=1, overwrite=True)
    with pytest.raises(OlivineError, match="0 rounds"):
        finetune_rounds(checkpoint, *nuscenes_world.splits, tmp_path / "x", settings, rounds=0)
    with pytest.raises(OlivineError, match="rounds of labels are for weak ones"):
        finetune_rounds(checkpoint, *nuscenes_world.splits, tmp_path / "x", replace(settings, labels="truth"), rounds=1)
