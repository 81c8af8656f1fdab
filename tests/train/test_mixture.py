"""Promises of a run over several sets of shards."""

from __future__ import annotations

import csv
import json
import pickle
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from olivine.common import OlivineError
from olivine.downstream.data import CloudExamples
from olivine.downstream.embed import Embedder
from olivine.downstream.network import read_source
from olivine.pairs.shards import open_shards
from olivine.train.augment import NO_AUGMENTATION, AugmentSettings
from olivine.train.build import classes_of_pairs, open_stream
from olivine.train.checkpoint import load_checkpoint, save_checkpoint
from olivine.train.devices import Share
from olivine.train.loader import FrameStream, StreamSettings, frame_after
from olivine.train.loop import pretrain
from olivine.train.mixture import OFFSET, ShardMixture
from olivine.train.settings import PretrainSettings, load_settings

Settings = Callable[..., PretrainSettings]
OTHERS = ("tree", "road", "person", "car")  # three of the first set's four classes, under other numbers


@pytest.fixture(scope="module")
def sets(make_shards: Callable[..., Path]) -> tuple[Path, Path]:
    """Five frames of two cameras with intensities to 255, and three of one wider camera with intensities to 1."""
    other = {"classes": OTHERS, "kitti": True, "point_classes": ("ahead", "up")}
    return make_shards({"a": 3, "b": 2}), make_shards({"a": 3}, seed=5, **other)


def of(sets: tuple[Path, Path], *weights: float) -> ShardMixture:
    return ShardMixture({str(path): weight for path, weight in zip(sets, weights or (1.0, 1.0))})


def stream(shards: ShardMixture, batch: int = 4, part: tuple[int, int] = (0, 4), workers: int = 0) -> FrameStream:
    augment = AugmentSettings(crop_min_pairs=20, cuboid_min_pairs=20)
    columns = ("image", "pair_label", "pair_density")
    return FrameStream(shards, StreamSettings(3, batch, part, (40, 72), augment, columns=columns), workers=workers)


def names_of(sets: tuple[Path, Path]) -> str:
    return "data.shards=" + json.dumps({str(path): 1 for path in sets})


def test_an_epoch_holds_every_frame_of_every_set_once_over_all_processes(sets: tuple[Path, Path]) -> None:
    parts = [stream(of(sets), 4, (0, 2)), stream(of(sets), 4, (2, 4))]
    for epoch in range(3):
        work = [item for step in (2 * epoch, 2 * epoch + 1) for part in parts for item in part.work_of(step)]
        assert sorted(work) == [(epoch, frame) for frame in range(8)]


def test_a_weight_is_how_often_an_epoch_takes_each_frame(sets: tuple[Path, Path]) -> None:
    """Twice the five frames and a third of the three: 11 an epoch, and three epochs hold each of the latter once."""
    found = stream(of(sets, 2.0, 1 / 3), 11, (0, 11))
    epochs = [found.work_of(step) for step in range(3)]
    for work in epochs:
        assert Counter(frame for _, frame in work if frame < 5) == dict.fromkeys(range(5), 2)
    assert sorted(frame for work in epochs for _, frame in work if frame >= 5) == [5, 6, 7]
    every = [item for work in epochs for item in work]
    assert len(set(every)) == len(every), "a frame that comes twice is augmented twice in the same way"


def test_classes_are_the_same_by_name_and_intensities_on_one_scale(sets: tuple[Path, Path]) -> None:
    mixture, parts = of(sets), [open_shards(path) for path in sets]
    assert mixture.classes == ("car", "road", "building", "tree", "person")
    assert mixture.point_classes == ("behind", "ahead", "up")
    count = Counter()
    for number, frame in ((n, f) for n, part in enumerate(parts) for f in range(len(part))):
        stored = parts[number].record(frame)
        found = mixture.read(mixture.first(number) + frame, ("points", "pair_label", "point_label", "class_count"))
        names = ("none", *parts[number].classes)
        expected = [names[label] for label in stored.pair_label]
        assert [("none", *mixture.classes)[label] for label in found.pair_label] == expected
        count.update(expected)
        assert {("none", *mixture.classes)[k]: n for k, n in enumerate(found.class_count) if n} == Counter(expected)
        points = ("", *parts[number].point_classes)
        assert [("", *mixture.point_classes)[k] for k in found.point_label] == [points[k] for k in stored.point_label]
        np.testing.assert_array_equal(found.points[:, :3], stored.points[:, :3])
        raw = stored.points[:, 3].astype(float)
        np.testing.assert_allclose(found.points[:, 3], raw / raw.mean() + OFFSET, rtol=1e-5)
    assert dict(zip(("none", *mixture.classes), mixture.class_count)) == count | Counter({"person": count["person"]})


def test_workers_and_a_copy_in_another_process_change_no_byte(sets: tuple[Path, Path]) -> None:
    mixture = of(sets, 1.0, 2.0)
    assert pickle.loads(pickle.dumps(mixture)).digest == mixture.digest
    with stream(mixture, 2, (0, 2), workers=2) as helped:
        found = list(helped.batches(0, 6))
    for batch, other in zip(stream(mixture, 2, (0, 2)).batches(0, 6), found, strict=True):
        for a, b in zip(batch, other, strict=True):
            assert (a.token, a.frame) == (b.token, b.frame)
            for name in a.columns:
                np.testing.assert_array_equal(a.columns[name], b.columns[name], err_msg=name)


def test_a_scan_after_the_last_of_a_set_is_none_of_the_next_set(sets: tuple[Path, Path]) -> None:
    """Both sets have a scene a: its frames are 0, 1, 2 and 5, 6, 7."""
    mixture = of((sets[1], sets[0]))
    assert [frame_after(mixture, frame, 1) for frame in range(8)] == [1, 2, None, 4, 5, None, 7, None]


@pytest.mark.parametrize("at", [1, 4])
def test_a_run_over_two_sets_stopped_and_resumed_ends_with_the_same_bits_and_scores_each_set(
    at: int,
    sets: tuple[Path, Path],
    small_settings: Settings,
    tmp_path: Path,
    sigterm_in: Callable[[int], AbstractContextManager[None]],
) -> None:
    """Batches of two frames with other numbers and sizes of images in one contrast group."""
    validation = "data.validation=" + json.dumps([str(path) for path in sets])
    settings = small_settings(sets[0], names_of(sets), validation, "run.group=2", "run.validate_epochs=1")
    whole = pretrain(settings, tmp_path / "whole")
    with sigterm_in(at):
        assert pretrain(settings, tmp_path / "stopped").interrupted
    assert pretrain(settings, tmp_path / "stopped").resumed_from == at + 1
    expected, found = (load_checkpoint(tmp_path / name) for name in ("whole", "stopped"))
    for part in ("backbone_state", "method_state"):
        assert all(torch.equal(value, found[part][name]) for name, value in expected[part].items())
    for name in ("whole", "stopped"):
        with open(tmp_path / name / "epochs.csv", newline="") as handle:
            last = list(csv.DictReader(handle))[-1]
        scores = [float(last[f"validation_loss/{part}"]) for part in ("nuscenes", "kitti")]
        assert scores[0] != scores[1] and float(last["validation_loss"]) == pytest.approx(sum(scores) / 2)
    (note,) = [note for note in whole.notes if "frames an epoch" in note]
    assert note == (
        "nuscenes (5 frames an epoch), kitti (3 frames an epoch): 3 of 5 classes in all sets; building only in nuscenes; "
        "person only in kitti"
    )
    identity = json.loads((tmp_path / "whole" / "run.json").read_text())["data"]
    assert [(part["name"], part["weight"]) for part in identity["sets"]] == [("nuscenes", 1), ("kitti", 1)]
    heavier = "data.shards=" + json.dumps({str(sets[0]): 1, str(sets[1]): 2})
    with pytest.raises(OlivineError, match="holds another run: its frames are others"):
        pretrain(small_settings(sets[0], heavier, validation, "run.group=2"), tmp_path / "whole")


@pytest.fixture(scope="module")
def mixed_run(sets: tuple[Path, Path], small_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("run") / "both"
    pretrain(small_settings(sets[0], names_of(sets), "run.steps=2"), out)
    return out


def test_what_reads_the_checkpoint_normalises_the_intensity_as_the_run_did(
    sets: tuple[Path, Path], mixed_run: Path, small_settings: Settings, tmp_path: Path
) -> None:
    source = read_source(mixed_run)
    assert source.normalised and read_source(mixed_run, random=True).normalised
    for path in sets:
        shards = open_shards(path)
        clouds = CloudExamples(shards, source.voxels, torch.device("cpu"), normalised=True).whole(0).inputs
        intensity, raw = clouds.points[:, 3].numpy(), shards.points(0)[:, 3].astype(float)  # type: ignore[union-attr]
        np.testing.assert_allclose(intensity, raw / raw.mean() + OFFSET, rtol=1e-5)
        assert intensity.mean() == pytest.approx(1 + OFFSET, rel=1e-5) and intensity.min() >= OFFSET
    # Whatever unit a sensor gives, the features are the same; and without intensities they are some.
    points = open_shards(sets[0]).points(0)
    scaled = np.concatenate([points[:, :3], points[:, 3:] / 255], 1)
    embedder = Embedder(mixed_run)
    np.testing.assert_allclose(embedder.features(points), embedder.features(scaled), atol=1e-5)
    assert np.isfinite(embedder.features(np.concatenate([points[:, :3], 0 * points[:, 3:]], 1))).all()
    pretrain(small_settings(sets[0], "run.steps=2"), tmp_path)
    assert not read_source(tmp_path).normalised
    old = {**load_checkpoint(mixed_run), "intensity": "normalised"}
    save_checkpoint(tmp_path / "old.pt", old)
    for read in (read_source, Embedder):
        with pytest.raises(
            OlivineError, match=r"old\.pt: takes intensities .* another form \(normalised\).*Train it again"
        ):
            read(tmp_path / "old.pt")


def test_the_sets_weights_weigh_the_class_frequencies(sets: tuple[Path, Path], small_settings: Settings) -> None:
    settings = small_settings(sets[0], "data.shards=" + json.dumps({str(sets[0]): 2, str(sets[1]): 0.5}))
    counts = [dict(zip(part.classes, part.class_count[1:])) for part in map(open_shards, sets)]
    mixture = of(sets, 2.0, 0.5)
    for name, found in zip(mixture.classes, classes_of_pairs(mixture, settings)[1][1:].tolist()):
        assert abs(found - 2 * counts[0].get(name, 0) - 0.5 * counts[1].get(name, 0)) <= 0.5


def test_what_several_sets_cannot_do_is_refused_in_one_line(
    sets: tuple[Path, Path], small_settings: Settings, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    def refused(match: str, *changes: str) -> None:
        with pytest.raises(OlivineError, match=match):
            pretrain(small_settings(sets[0], names_of(sets), *changes), tmp_path / "run")
        assert not (tmp_path / "run" / "last.pt").exists()

    refused(
        "stored feature maps are of one set.*Leave it out",
        *("image.stored=maps", "augment.crop=false", "augment.flip_image=0"),
    )
    refused(
        "label classes that the training shards do not have: bus",
        "data.validation=" + json.dumps([str(make_shards({"c": 1}, classes=("car", "road", "bus", "tree")))]),
    )
    for match, change in (
        ("names several sets, data.shards one", f"data.validation=[{sets[0]}, {sets[1]}]"),
        ("data.shards names a folder twice", f"data.shards=[{sets[0]}, {sets[0]}]"),
        ("data.shards is an empty list", "data.shards=[]"),
        ("has the weight 0", "data.shards={a: 0}"),
        ("data.shards: a is 'often', expected a number", "data.shards={a: often}"),
    ):
        with pytest.raises(OlivineError, match=match):
            small_settings(sets[0], change)
    with pytest.raises(OlivineError, match="regions with their text are of one set"):
        _ = of(sets).text
    with pytest.raises(OlivineError, match="hold no 'segment', which this run needs"):
        FrameStream(of(sets), StreamSettings(0, 1, (0, 1), (40, 72), NO_AUGMENTATION, columns=("segment",)))


def test_sets_are_named_in_yaml_as_a_list_or_with_weights(sets: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"data:\n  shards:\n    {sets[0]}: 1\n    {sets[1]}: 0.5\n")
    (tmp_path / "b.yaml").write_text(f"data:\n  shards: [{sets[0]}, {sets[1]}]\n")
    weights = []
    for name in "ab":
        settings = load_settings(tmp_path / f"{name}.yaml", ["run.accelerator=cpu"])
        with open_stream(settings, Share(0, 1, 1, 1), 1) as found:
            assert isinstance(found.shards, ShardMixture)
            weights.append([part["weight"] for part in found.shards.identity])
    assert weights == [[1, 0.5], [1, 1]]


def test_the_command_takes_several_folders_and_finds_the_held_out_ones_beside_them(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from olivine.cli import main

    for name, source in zip("ab", sets):
        for split in ("train", "val"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / split).symlink_to(source)
    monkeypatch.chdir(tmp_path)

    def printed(*arguments: str) -> dict[str, object]:
        monkeypatch.setattr("sys.argv", ["olivine", "pretrain", "--config", "cpu", "--print-config", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        data: dict[str, object] = yaml.safe_load(capsys.readouterr().out)["data"]
        return {name: data[name] for name in ("shards", "validation")}

    both = ["--shards", "a/train", "--shards", "b/train"]
    assert printed(*both) == {"shards": {"a/train": 1, "b/train": 1}, "validation": ["a/val", "b/val"]}
    assert printed("--shards", "a/train") == {"shards": "a/train", "validation": "a/val"}
    assert printed(*both, "--validation", "b/val")["validation"] == ["b/val"]
    weighted = "data.shards={a/train: 1, b/train: 0.5}"
    assert printed("--set", weighted, "--shards", "a/train")["shards"] == "a/train"
