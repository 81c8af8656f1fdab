"""A detection run from end to end: train, resume, score, predict, evaluate, and what is wrong in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from olivine.commands.defaults import newest_run
from olivine.commands.detect import kitti_scenes
from olivine.common import OlivineError
from olivine.downstream.detection import training_scenes
from olivine.downstream.detection.detect import detect, predict, score_results
from olivine.downstream.detection.kitti_format import read_objects
from olivine.downstream.detection.runs import compare, comparison_table, runs_of
from olivine.downstream.detection.settings import DetectionSettings, norm_momentum_of
from olivine.downstream.embed import Embedder
from olivine.downstream.network import read_source
from olivine.downstream.predict import read_segmenter
from olivine.downstream.weights import export_backbone
from olivine.train.backbone import build_backbone
from olivine.train.build import backbone_arguments
from olivine.train.checkpoint import load_backbone, load_checkpoint, save_checkpoint
from olivine.train.mixture import NORMALISED
from olivine.train.settings import load_settings

TINY = DetectionSettings(
    preset="pretraining", range_m=(0.0, -12.8, -5.0, 25.6, 12.8, 3.0), epochs=1, batch=2, plane_layers=(1, 1),
    plane_channels=(8, 8), plane_up_channels=(8, 8), accelerator="cpu", workers=0, score=0.005,
)  # fmt: skip


@pytest.fixture(scope="module")
def scenes(kitti_objects):
    return kitti_scenes(kitti_objects, "train")[:4], kitti_scenes(kitti_objects, "val")[:2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A pre-trained trunk."""
    settings = load_settings("voxelnet")
    arguments = backbone_arguments(settings)
    network = build_backbone(**arguments, seed=7)
    from olivine.common.settings import settings_to_plain

    content = {"kind": "pretrain", "step": 1, "steps": 1, "settings": settings_to_plain(settings), "backbone": arguments,
               "backbone_state": network.state_dict(), "method_state": {}, "data": {}}  # fmt: skip
    path = tmp_path_factory.mktemp("trunk") / "last.pt"
    save_checkpoint(path, content)
    return path


@pytest.fixture(scope="module")
def done(scenes, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "detect-100"
    return out, detect(read_source(checkpoint), *scenes, out, TINY)


def test_a_run_writes_its_results_and_their_score_and_is_not_done_again(done, scenes, checkpoint):
    out, result = done
    assert {p.name for p in out.iterdir()} >= {"run.json", "last.pt", "steps.csv", "epochs.csv", "ap.json", "ap.md"}
    assert sorted(p.name for p in (out / "results").glob("*.txt")) == [f"{s.name}.txt" for s in scenes[1]]
    assert result.name == "pre-trained" and result.train_frames == 4 and result.validation_frames == 2
    score = score_results(out / "results", scenes[1], TINY.classes)
    assert result.mean_ap == pytest.approx(score.mean())
    assert json.loads((out / "ap.json").read_text())["ap"]["Car"]["3d"].keys() == {"easy", "moderate", "hard"}
    at = (out / "last.pt").stat().st_mtime_ns
    assert detect(read_source(checkpoint), *scenes, out, TINY) == result
    assert (out / "last.pt").stat().st_mtime_ns == at
    with pytest.raises(OlivineError, match=r"holds another run: lr is 0\.003 there and 0\.01 here"):
        detect(read_source(checkpoint), *scenes, out, dataclasses.replace(TINY, lr=0.01))
    with pytest.raises(OlivineError, match="starts from another checkpoint"):
        detect(read_source(checkpoint, random=True), *scenes, out, TINY)


def test_a_run_of_another_data_set_with_the_same_frame_numbers_is_refused(
    done, kitti_objects, checkpoint, tmp_path, capsys
):
    root = shutil.copytree(kitti_objects, tmp_path / "set")
    first = sorted((root / "training" / "label_2").glob("*.txt"))[0]
    both = lambda: (kitti_scenes(root, "train")[:4], kitti_scenes(root, "val")[:2])  # noqa: E731
    assert detect(read_source(checkpoint), *both(), done[0], TINY) == done[1]  # the same bytes elsewhere
    first.write_text(first.read_text() + "\n")
    with pytest.raises(OlivineError, match="its frames are others, or have changed"):
        detect(read_source(checkpoint), *both(), done[0], TINY)
    # A finished run of before, which did not note whose frames they are, is read, and says so.
    out = shutil.copytree(done[0], tmp_path / "before")
    run = json.loads((out / "run.json").read_text())
    del run["data"]["files"]
    (out / "run.json").write_text(json.dumps(run))
    found = detect(read_source(checkpoint), *both(), out, TINY)
    assert found.ap == done[1].ap and "an earlier version" in found.notes[-1]
    assert "an earlier version" in capsys.readouterr().err


def test_the_trunk_starts_from_the_checkpoint(scenes, checkpoint, tmp_path, monkeypatch):
    """Before the first step the trunk's weights are the checkpoint's; with random weights they are the seed's."""
    seen = []
    monkeypatch.setattr(
        "olivine.downstream.detection.detect.fit", lambda training, *_: seen.append(training.model) or stop()
    )

    def stop():
        raise KeyboardInterrupt

    for random in (False, True):
        with pytest.raises(KeyboardInterrupt):
            detect(read_source(checkpoint, random=random), *scenes, tmp_path / f"{random}", TINY)
    theirs = load_backbone(checkpoint)[0].state_dict()
    same = [all(torch.equal(v, theirs[n]) for n, v in one.backbone_3d.state_dict().items()) for one in seen]
    assert same == [True, False]


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(done, scenes, checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "run"
    stopped = []

    def fit_one_step(*given):
        """Stop as a signal would, after the first step."""
        from olivine.downstream import fit as module

        class Stop:
            requested = True

        import contextlib

        with monkeypatch.context() as patched:
            patched.setattr(module, "stop_signals", lambda: contextlib.nullcontext(Stop))
            stopped.append(True)
            module.fit(*given)

    with monkeypatch.context() as patched:
        patched.setattr("olivine.downstream.detection.detect.fit", fit_one_step)
        with pytest.raises(KeyboardInterrupt):
            detect(read_source(checkpoint), *scenes, out, TINY)
    assert stopped and load_checkpoint(out)["step"] == 1
    # Threads that make scenes and batches ahead, as on a GPU, change nothing.
    monkeypatch.setattr("olivine.common.ahead.THREADED", {"cpu"})
    detect(read_source(checkpoint), *scenes, out, dataclasses.replace(TINY, workers=2))
    assert not [thread for thread in threading.enumerate() if thread.name == "one-ahead"]
    one, other = load_checkpoint(done[0]), load_checkpoint(out)
    for part in ("backbone_state", "head_state"):
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())
    for name in (p.name for p in (done[0] / "results").glob("*.txt")):
        assert (done[0] / "results" / name).read_bytes() == (out / "results" / name).read_bytes()


def test_a_short_run_forgets_the_first_statistics_of_its_batch_norms(done, scenes, checkpoint, tmp_path):
    """From 2,000 steps on OpenPCDet's momentum; the statistics are decided by it, and nothing else is."""
    assert norm_momentum_of(74_240) == norm_momentum_of(2_000) == 0.01
    assert all((1 - norm_momentum_of(steps)) ** steps < 1e-8 for steps in range(200, 4_000, 50))
    detect(read_source(checkpoint), *scenes, tmp_path / "run", dataclasses.replace(TINY, norm_momentum=0.5))
    one, other = load_checkpoint(done[0]), load_checkpoint(tmp_path / "run")
    for part in ("backbone_state", "head_state"):
        differ = {name for name, value in one[part].items() if not torch.equal(value, other[part][name])}
        assert differ and all("running_" in name for name in differ)


def test_prediction_writes_the_same_files_and_the_evaluation_reads_them(done, scenes, kitti_objects, tmp_path):
    out, _ = done
    summary = predict(out, scenes[1], tmp_path / "files")
    assert summary.frames == 2
    for path in (out / "results").glob("*.txt"):
        assert path.read_bytes() == (tmp_path / "files" / path.name).read_bytes()
        found = read_objects(path, scored=True)
        assert np.all(found.image[:, 2] > found.image[:, 0]) and np.all((found.score > 0) & (found.score <= 1))


def test_predict_says_whose_checkpoint_a_detectors_is(done):
    with pytest.raises(OlivineError, match=r"is a detector's\. .*olivine detect --predict"):
        read_segmenter(done[0], None)


def test_a_trunk_of_several_data_sets_gets_the_intensities_that_it_was_trained_on(
    scenes, checkpoint, tmp_path, monkeypatch
):
    """In training, in scoring, and in prediction, where the run's own checkpoint says it."""
    save_checkpoint(tmp_path / "mixed.pt", {**load_checkpoint(checkpoint), "intensity": NORMALISED})
    seen, true = [], training_scenes.voxelize
    monkeypatch.setattr(
        training_scenes, "voxelize", lambda points, *rest: seen.append(points[:, 3].numpy()) or true(points, *rest)
    )
    still = dataclasses.replace(TINY, sampled=(0, 0, 0), batch=1)
    train, validation = scenes[0][:1], scenes[1][:1]
    detect(read_source(tmp_path / "mixed.pt"), train, validation, tmp_path / "run", still)
    predict(tmp_path / "run", validation, tmp_path / "files")
    assert len(seen) == 3
    for scene, intensity in zip((*train, *validation, *validation), seen):
        raw = scene.cloud()
        expected = (raw[:, 3] / raw[:, 3].mean(dtype=np.float64) + 0.1)[scene.camera.sees(raw)]
        np.testing.assert_allclose(np.sort(intensity), np.sort(expected), rtol=1e-5)
    (file,) = (tmp_path / "files").glob("*.txt")
    assert file.read_bytes() == (tmp_path / "run" / "results" / file.name).read_bytes()
    # As OpenPCDet feeds it, whatever the trunk was trained on.
    seen.clear()
    detect(read_source(checkpoint), train, validation, tmp_path / "raw", dataclasses.replace(still, intensity="raw"))
    for scene, intensity in zip((*train, *validation), seen):
        raw = scene.cloud()
        np.testing.assert_array_equal(np.sort(intensity), np.sort(raw[scene.camera.sees(raw), 3]))


def test_another_detectors_results_are_gone_before_the_first_is_written(done, scenes, tmp_path, monkeypatch):
    files = tmp_path / "files"
    predict(done[0], scenes[1], files)
    (files / "notes.txt").write_text("mine")
    monkeypatch.setattr("olivine.downstream.detection.detect.write_results", lambda *_: 0)  # stopped before the first
    predict(done[0], scenes[1], files)
    assert len(list(files.glob("*.txt"))) == 3
    predict(done[0], scenes[1], files, score=0.5)
    assert [path.name for path in files.glob("*.txt")] == ["notes.txt"]


def test_the_results_of_other_frames_are_gone_before_the_first_is_written(done, scenes, tmp_path):
    """The test frames are counted from 0 as the training frames are: one folder would hold both, and look whole."""
    predict(done[0], scenes[0], tmp_path)
    predict(done[0], scenes[1][:1], tmp_path)
    assert [path.stem for path in tmp_path.glob("*.txt")] == [scenes[1][0].name]


def test_validation_frames_that_were_trained_on_are_named(scenes, checkpoint, tmp_path):
    still = dataclasses.replace(TINY, sampled=(0, 0, 0), batch=1)
    found = detect(read_source(checkpoint), scenes[0][:1], [scenes[0][0], scenes[1][0]], tmp_path, still)
    assert found.notes == ("1 of the 2 validation frames were trained on",)


def test_prediction_takes_the_settings_that_decide_no_weights_and_writes_nothing_in_a_dry_run(
    done, kitti_objects, tmp_path
):
    words = ["--predict", "--checkpoint", str(done[0]), "--root", str(kitti_objects), "--out", str(tmp_path / "out")]
    dry = command(*words, "--dry-run")
    assert dry.exit_code == 0 and "would write the results of" in dry.stdout and not (tmp_path / "out").exists()
    for given, says in (
        (("--set", "lr=0.1"), "--predict: lr is no setting of a detector that is trained"),
        (("--set", "klasses=1"), "klasses is no setting"),
        (("--set", "score=2"), "score is 2"),
        (("--set", "score"), "is not key=value"),
        (("--epochs", "2"), "--epochs does not go with --predict"),
    ):
        with pytest.raises(OlivineError, match=says):
            raise command(*words, "--dry-run", *given).exception
    assert command(*words, "--set", "score=0.02", "--set", "workers=0").exit_code == 0
    found = [read_objects(path, scored=True).score for path in (tmp_path / "out").glob("*.txt")]
    low = [read_objects(path, scored=True).score for path in (done[0] / "results").glob("*.txt")]
    assert found and min(np.concatenate(found), default=1) >= 0.02 > np.concatenate(low).min()
    evaluate = ["--evaluate", str(tmp_path / "out"), "--root", str(kitti_objects)]
    dry = command(*evaluate, "--dry-run")
    assert dry.exit_code == 0 and "write nothing" in dry.stdout and "|" not in dry.stdout


def test_the_newest_detector_is_found_also_among_several_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OlivineError, match=r"no run of detect in runs/\. Run olivine detect first"):
        raise command("--predict").exception
    for age, name in enumerate(
        ("detect-100", "detect-5/seed-0", "detect-5/seed-1", "detect-5-beside-random/pre-trained/seed-0",
         "detect-5-beside-random/random/seed-0", "detect-10-beside-random/pre-trained")
    ):  # fmt: skip
        last = tmp_path / "runs" / "voxelnet" / name / "last.pt"
        last.parent.mkdir(parents=True)
        last.touch()
        os.utime(last, (age, age))
        wanted = last.parent if "random/random" not in str(last) else last.parents[2] / "pre-trained" / "seed-0"
        assert newest_run("*/detect-*").absolute() == wanted


def test_a_checkpoint_of_other_voxels_or_another_network_is_refused(scenes, checkpoint, tmp_path):
    fine = dataclasses.replace(TINY, preset="second", range_m=(0.0, -6.4, -3.0, 12.8, 6.4, 1.0))
    with pytest.raises(OlivineError, match=r"trained with voxels\.size_m 0\.1, and --set preset=second has 0\.05"):
        detect(read_source(checkpoint), *scenes, tmp_path / "a", fine)
    # Random weights have no voxels of their own.
    source = read_source(checkpoint, random=True)
    from olivine.downstream.detection.detect import check_voxels

    check_voxels(source, fine.voxel_settings(), fine)
    check_voxels(read_source(checkpoint), fine.voxel_settings(), dataclasses.replace(fine, any_voxels=True))
    unet = read_source(None, random=True, expected=load_settings("cpu"))
    with pytest.raises(OlivineError, match="SECOND stands on the trunk of a VoxelNet"):
        detect(unet, *scenes, tmp_path / "b", TINY)
    with pytest.raises(OlivineError, match="no training frame"):
        detect(source, [], scenes[1], tmp_path / "c", TINY)


def test_the_mean_of_several_runs_has_students_interval(done):
    results = [dataclasses.replace(done[1], mean_ap=value) for value in (60.0, 62.0, 64.0)]
    found = runs_of(results)
    assert (found.best, found.mean) == (64.0, 62.0)
    assert found.interval == pytest.approx(4.303 * 2.0 / 3**0.5, abs=1e-2)  # t at 97.5 %, 2 degrees of freedom
    assert runs_of(results[:1]).interval is None


def of_seed(result, seed: int, car: float):
    """A result of that seed with one AP of cars everywhere, and 0 for the other classes."""
    ap = {
        name: {m: dict.fromkeys(d, car * (name == "Car")) for m, d in metrics.items()}
        for name, metrics in result.ap.items()
    }
    return dataclasses.replace(result, ap=ap, mean_ap=car / 3, settings={**result.settings, "seed": seed})


def test_pre_training_gains_what_is_between_runs_of_the_same_seed(done):
    """Seeds differ by much and the gain is nearly the same in each: paired by seed the interval is narrow."""
    one = [of_seed(done[1], k, value) for k, value in enumerate((33.0, 45.0, 60.0))]
    random = dataclasses.replace(done[1], name="random weights")
    other = [of_seed(random, k, value) for k, value in enumerate((30.0, 43.0, 56.0))]
    found = compare(one, other)
    assert found.gain["bev"]["Car"].mean == pytest.approx(3.0)
    assert found.gain["bev"]["Car"].interval == pytest.approx(4.303 * 1.0 / 3**0.5, abs=1e-2)
    assert found.gain["3d"]["mean"].mean == pytest.approx(1.0)
    assert (found.gain["3d"]["Pedestrian"].mean, found.gain["3d"]["Pedestrian"].interval) == (0, 0)
    assert (found.pre_trained.mean, found.random.mean) == (pytest.approx(46 / 3), pytest.approx(43 / 3))
    table = comparison_table(found)
    assert "+3.00 ± 2.48" in table and table.count("\n| pre-trained, seed ") == 3
    assert compare(one[:1], other[:1]).gain["bev"]["Car"].interval is None


def test_the_command_trains_from_both_and_goes_on_with_what_is_there(kitti_objects, checkpoint, tmp_path):
    small = {"range_m": "[0,-12.8,-5,25.6,12.8,3]", "classes": "[Car]", "plane_layers": "[0,0]", "batch": 2}
    small |= {"plane_channels": "[4,4]", "plane_up_channels": "[4,4]", "preset": "pretraining", "accelerator": "cpu"}
    words = ["--checkpoint", str(checkpoint), "--root", str(kitti_objects), "--out", str(tmp_path / "out")]
    words += ["--beside-random", "--fraction", "50", "--epochs", "1", "--json"]
    words += [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    first = command(*words)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout.splitlines()[-1])["gain"]["3d"]["Car"]["interval"] is None
    made = [tmp_path / "out" / name / "last.pt" for name in ("pre-trained", "random")]
    at = [path.stat().st_mtime_ns for path in made]
    second = command(*words)
    assert second.exit_code == 0 and [path.stat().st_mtime_ns for path in made] == at
    one, other = (load_checkpoint(path.parent)["backbone_state"] for path in made)
    assert not all(torch.equal(value, other[name]) for name, value in one.items())
    assert "| random weights, seed 0 |" in (tmp_path / "out" / "comparison.md").read_text()


def test_the_trunk_of_a_detector_embeds_points(done):
    network = Embedder(done[0])
    points = np.random.default_rng(0).uniform(-5, 5, (200, 4)).astype(np.float32)
    assert network.features(points).shape == (200, network.channels) and network.classes == ()
    with pytest.raises(OlivineError, match="holds no head for classes"):
        network.predict(points)
    assert read_source(done[0]).head is None


def test_an_export_of_the_trunk_names_the_detectors_tensors_that_it_leaves_out(done, tmp_path):
    summary = export_backbone(done[0], tmp_path / "trunk.pth")
    assert summary.left_out == [f"head.{name}" for name in load_checkpoint(done[0])["head_state"]]


def test_a_dry_run_refuses_what_the_run_would(kitti_objects, checkpoint, tmp_path):
    words = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--dry-run"]
    there = ["--root", str(kitti_objects)]
    assert command(*words, *there, "--set", "preset=pretraining").exit_code == 0
    for given, says in (
        (["--root", str(tmp_path)], "no KITTI object data here"),
        (there, r"trained with voxels\.size_m 0\.1, and --set preset=second has 0\.05"),
    ):
        with pytest.raises(OlivineError, match=says):
            raise command(*words, *given).exception


def test_runs_count_from_the_seed_that_is_set(done, kitti_objects, checkpoint, tmp_path, monkeypatch):
    begun = []

    def note(start, train, validation, place, settings):
        begun.append((place.name, settings.seed))
        return done[1]

    monkeypatch.setattr("olivine.downstream.detection.detect.detect", note)
    words = [
        "--checkpoint",
        str(checkpoint),
        "--root",
        str(kitti_objects),
        "--runs",
        "2",
        "--set",
        "preset=pretraining",
    ]
    assert command(*words, "--out", str(tmp_path / "a"), "--set", "seed=3").exit_code == 0
    assert command(*words, "--out", str(tmp_path / "b"), "--seed", "5").exit_code == 0
    assert command(*words, "--out", str(tmp_path / "c")).exit_code == 0
    assert begun == [(f"seed-{k}", k) for k in (3, 4, 5, 6, 0, 1)]


def command(*words: str):
    from olivine.cli import app

    return CliRunner().invoke(app, ["detect", *words])


def test_the_command_scores_labels_as_their_own_results(kitti_objects, tmp_path):
    """Prediction files of the labels themselves, score 1: no miss and no false positive."""
    for scene in kitti_scenes(kitti_objects, "val"):
        lines = [line for line in scene.labels.read_text().splitlines() if line.split()[0] in TINY.classes]
        (tmp_path / f"{scene.name}.txt").write_text("".join(f"{line} 1.0\n" for line in lines))
    found = command("--evaluate", str(tmp_path), "--root", str(kitti_objects), "--json")
    assert found.exit_code == 0, found.output
    plain = json.loads(found.stdout.splitlines()[-1])
    for c, d in np.ndindex(3, 3):
        n = plain["counted"][c][d]
        # With equal scores there is one threshold for each of at most 41 steps of the recall.
        limit = 100.0 if n > 40 else 100 * max(n - 1, 0) / 40
        assert plain["at_40"][c][2][d] == pytest.approx(limit)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--predict", "--evaluate", "x"), "Give one of them"),
        (("--evaluate", "x", "--set", "classes=[Car]"), "--set does not go with --evaluate"),
        (("--predict", "--beside-random"), "--beside-random does not go with --predict"),
        (("--split", "val"), "--split goes with --predict or --evaluate"),
        (("--runs", "0", "--random"), "--runs 0"),
        (("--random", "--beside-random"), "--random and --beside-random"),
        (("--random", "--set", "preset=fine"), "preset is 'fine'"),
        (("--random", "--set", "klasses=x"), "klasses"),
        (("--random", "--fraction", "30"), "is not every k-th frame"),
        (("--random", "--set", "norm_momentum=0"), "norm_momentum"),
        (("--random", "--set", "precision=bf16-true"), "precision is 'bf16-true'"),
        (("--random", "--set", "precision=64-true"), "precision is '64-true'"),
    ],
)
def test_a_wrong_command_is_one_line(words, says):
    with pytest.raises(OlivineError, match=says) as error:
        raise command(*words).exception
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda t: (t / "calib" / "000000.txt").unlink(), r"000000\.txt: no such file"),
        (lambda t: (t / "label_2" / "000000.txt").unlink(), r"label_2/000000\.txt: no such file"),
        (lambda t: (t / "label_2" / "000000.txt").write_text("Car 0 0 0 1 2 3 4 1 -1 1 1 1 9 0\n"), "negative size"),
    ],
)
def test_wrong_labels_are_one_line_before_anything_is_trained(kitti_objects, checkpoint, tmp_path, damage, says):
    shutil.copytree(kitti_objects, tmp_path / "set")
    damage(tmp_path / "set" / "training")
    words = ["--checkpoint", str(checkpoint), "--root", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    with pytest.raises(OlivineError, match=says) as error:
        raise command(*words, "--set", "preset=pretraining").exception
    assert "\n" not in str(error.value) and not (tmp_path / "out" / "last.pt").exists()


@pytest.mark.frames("real")
def test_the_real_frame_goes_through_prediction_and_the_evaluation_reads_its_file(kitti_frame, done, tmp_path):
    """The frame of KITTI odometry in the object benchmark's layout: the same sensors, R0_rect the identity."""
    sequence, folder = kitti_frame / "sequences" / "00", tmp_path / "set" / "training"
    for name, suffix in (("velodyne", "bin"), ("image_2", "png")):
        (folder / name).mkdir(parents=True)
        shutil.copy(sequence / name / f"000000.{suffix}", folder / name)
    lines = (sequence / "calib.txt").read_text().replace("Tr:", "Tr_velo_to_cam:")
    for name, text in (("calib", f"{lines.rstrip()}\nR0_rect: 1 0 0 0 1 0 0 0 1\n"), ("label_2", "")):
        (folder / name).mkdir()
        (folder / name / "000000.txt").write_text(text)
    (scene,) = kitti_scenes(tmp_path / "set", "train")
    assert 10_000 < len(scene.points()) <= len(scene.cloud())
    assert predict(done[0], [scene], tmp_path / "files", score=0.001).frames == 1
    assert len(read_objects(tmp_path / "files" / "000000.txt", scored=True)) > 0
    found = command("--evaluate", str(tmp_path / "files"), "--split", "train", "--root", str(tmp_path / "set"))
    assert found.exit_code == 0 and "| mean, 3d |" in found.stdout
