"""Promises of probe and fine-tuning: they learn, they resume to the bit, they refuse what does not fit."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from olivine.common import OlivineError
from olivine.common.settings import settings_to_plain
from olivine.downstream import segment, segment_training
from olivine.downstream.data import CloudExamples
from olivine.downstream.finetune import finetune
from olivine.downstream.network import read_source
from olivine.downstream.predict import predict
from olivine.downstream.probe import linear_probe
from olivine.downstream.results import read_result
from olivine.downstream.settings import FinetuneSettings, ProbeSettings, settings_of
from olivine.pairs.shards import open_shards
from olivine.readers import dataset_class
from olivine.train.backbone import build_backbone
from olivine.train.build import backbone_arguments
from olivine.train.checkpoint import load_backbone, load_checkpoint, save_checkpoint
from olivine.train.settings import load_settings
from olivine.train.voxelize import VoxelSettings

SHORT = FinetuneSettings(epochs=2, batch=2, lr=0.5, accelerator="cpu")
HEAD = ProbeSettings(epochs=4, batch=2, augment=False, accelerator="cpu")
AUGMENTED = replace(HEAD, augment=True)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    content = load_checkpoint(path)
    momentum = {f"momentum/{i}": s["momentum_buffer"] for i, s in content["optimizer_state"]["state"].items()}
    return {**content["head_state"], **content.get("backbone_state", {}), **momentum}


@pytest.fixture(scope="module")
def whole(nuscenes_world, checkpoint, tmp_path_factory):
    """A fine-tuning of eight steps that nothing stopped."""
    out = tmp_path_factory.mktemp("finetune") / "whole"
    return out, finetune(checkpoint, *nuscenes_world.splits, out, SHORT)


def stop_at(monkeypatch, step):
    """A signal in the given step's loss."""
    true_loss, calls = segment_training.segmentation_loss, []

    def loss(*arguments):
        calls.append(1)
        if len(calls) == step + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return true_loss(*arguments)

    monkeypatch.setattr(segment_training, "segmentation_loss", loss)


# --- what they do ---------------------------------------------------------------------------------------------------


def test_the_network_learns_and_every_labelled_point_is_scored(whole, nuscenes_world):
    out, result = whole
    loss = [float(row["loss"]) for row in rows(out / "steps.csv")]
    assert len(loss) == 8 and np.mean(loss[-2:]) < loss[0] - 0.5
    truth = [open_shards(nuscenes_world.pairs / "val").point_label(i) for i in range(result.validation_frames)]
    assert result.scores.point_count == sum(int((t > 0).sum()) for t in truth) == np.sum(result.confusion)
    held = {result.classes[c - 1] for t in truth for c in np.unique(t) if c}
    assert set(result.scores.iou) == held and set(result.scores.absent) == set(result.classes) - held
    assert "left out of the means: " + ", ".join(result.scores.absent) in (out / "scores.md").read_text()
    shards = open_shards(nuscenes_world.pairs / "val")
    for scene, frames in shards.scenes.items():  # each scene's points are counted with it
        of_scene = np.concatenate([truth[frame] for frame in frames])
        for name, (points, hit, union) in result.by_scene[scene].items():
            assert points == (of_scene == result.classes.index(name) + 1).sum() and hit <= points <= union
    for name, iou in result.scores.iou.items():
        _, hit, union = np.sum([scene.get(name, (0, 0, 0)) for scene in result.by_scene.values()], axis=0)
        assert hit / max(union, 1) == pytest.approx(iou)


def test_head_and_backbone_have_rates_of_their_own_and_every_layer_moves(whole, checkpoint):
    out, _ = whole
    start, end = load_backbone(checkpoint)[0].state_dict(), load_backbone(out)[0].state_dict()
    moved = {n for n in start if not torch.equal(start[n], end[n])}
    assert {n for n in start if n.endswith("kernel")} <= moved and start.keys() == end.keys()
    groups = load_checkpoint(out)["optimizer_state"]["param_groups"]
    assert [g["lr"] / (0.5 * (1 + np.cos(np.pi / 2))) for g in groups] == pytest.approx([0.5, 0.05])


def test_rates_of_layers_fall_with_depth_and_no_parameter_is_left_out():
    backbone = build_backbone("srunet-small")
    groups = segment_training._backbone_groups(backbone, FinetuneSettings(backbone_lr=0.1, layer_decay=0.5))
    rate = {id(parameter): rate for parameters, rate in groups for parameter in parameters}
    assert rate.keys() == {id(parameter) for parameter in backbone.parameters()}
    assert sum(len(parameters) for parameters, _ in groups) == len(rate)
    assert rate[id(backbone.block8[0].conv1.kernel)] == 0.1
    assert rate[id(backbone.conv0p1s1.kernel)] == pytest.approx(0.1 * 0.5**8)  # the first of nine layers
    ((every, one),) = segment_training._backbone_groups(backbone, FinetuneSettings(backbone_lr=0.1))
    assert one == 0.1 and len(every) == len(rate)


def test_a_run_from_before_layer_rates_and_heads_of_checkpoints_goes_on(whole, nuscenes_world, checkpoint, monkeypatch):
    identity = json.loads((whole[0] / "run.json").read_text())
    for name, value in (("layer_decay", 1.0), ("head", "new"), ("least_score", 0.0), ("drop_path", 0.0)):
        assert identity["settings"].pop(name) == value
    (whole[0] / "run.json").write_text(json.dumps(identity))
    monkeypatch.setattr(segment_training, "segmentation_loss", None)  # nothing is trained again
    finetune(checkpoint, *nuscenes_world.splits, whole[0], SHORT)


def test_the_rate_falls_with_a_cosine_of_the_epochs(whole):
    rates = [float(row["lr"]) for row in rows(whole[0] / "steps.csv")]
    assert rates == pytest.approx([0.5] * 4 + [0.25] * 4)


@pytest.mark.parametrize(("kind", "at"), [("finetune", 0), ("finetune", 3), ("probe", 4), ("augmented probe", 9)])
def test_a_run_stopped_at_a_step_and_resumed_ends_with_the_same_bits(
    kind, at, whole, nuscenes_world, checkpoint, tmp_path, monkeypatch
):
    def run(out):
        if kind == "finetune":
            return finetune(checkpoint, *nuscenes_world.splits, out, SHORT)
        settings = HEAD if kind == "probe" else AUGMENTED
        return linear_probe(checkpoint, *nuscenes_world.splits, out, settings, random=False)[0]

    inner = "." if kind == "finetune" else "pre-trained"
    expected = whole[0] if kind == "finetune" else tmp_path / "whole" / inner
    result = whole[1] if kind == "finetune" else run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, at)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped")
    found = tmp_path / "stopped" / inner
    assert load_checkpoint(found)["step"] == at + 1 and not (found / "scores.json").exists()
    assert run(tmp_path / "stopped").scores == result.scores
    a, b = tensors(expected), tensors(found)
    assert set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)
    columns = ("step", "epoch", "loss", "lr")
    steps = [[[row[c] for c in columns] for row in rows(f / "steps.csv")] for f in (expected, found)]
    assert steps[0] == steps[1]


def test_stochastic_depth_is_drawn_again_where_a_run_goes_on(nuscenes_world, tmp_path, monkeypatch):
    changes = ["backbone.name=waffle-iron-small", "backbone.depth=2", "backbone.channels=8"]
    changes += ["voxels.first_channel=0", "voxels.feature_channels=4"]
    network = load_settings("cpu", changes)

    def run(out, **options):
        settings = replace(SHORT, epochs=1, **options)
        finetune(None, *nuscenes_world.splits, tmp_path / out, settings, random=True, network=network)
        return tensors(tmp_path / out)

    torch.manual_seed(0)
    whole, without = run("whole", drop_path=0.3), run("without")
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run("stopped", drop_path=0.3)
    torch.manual_seed(7)
    found = run("stopped", drop_path=0.3)
    assert whole.keys() == found.keys() and all(torch.equal(whole[name], found[name]) for name in whole)
    assert not all(torch.equal(whole[name], without[name]) for name in whole)
    assert not any("drop" in name for name in whole)  # nothing of it is in a checkpoint


def test_the_scale_of_16_mixed_goes_on_where_a_run_was_stopped(nuscenes_world, checkpoint, tmp_path, monkeypatch):
    """A CPU has no such precision: what its state is stands for the scaler's."""
    from lightning_fabric.plugins import Precision

    taken, settings = [], replace(SHORT, epochs=1)
    monkeypatch.setattr(Precision, "state_dict", lambda self: {"scale": 4.0})
    monkeypatch.setattr(Precision, "load_state_dict", lambda self, state: taken.append(state))
    with monkeypatch.context() as patch:
        stop_at(patch, 0)
        with pytest.raises(KeyboardInterrupt):
            finetune(checkpoint, *nuscenes_world.splits, tmp_path, settings)
    assert taken == []
    finetune(checkpoint, *nuscenes_world.splits, tmp_path, settings)
    assert taken == [{"scale": 4.0}]


def test_stochastic_depth_is_refused_where_there_is_none(nuscenes_world, checkpoint, tmp_path):
    with pytest.raises(OlivineError, match=r"drop_path is 0.2 and srunet-small has no stochastic depth"):
        finetune(checkpoint, *nuscenes_world.splits, tmp_path / "run", replace(SHORT, drop_path=0.2))


def test_what_is_finished_is_not_done_again(whole, nuscenes_world, checkpoint, monkeypatch):
    out, result = whole
    monkeypatch.setattr(segment, "fit", None)
    assert finetune(checkpoint, *nuscenes_world.splits, out, SHORT) == result


def test_random_weights_are_the_seeds_and_not_the_checkpoints(checkpoint):
    fresh, trained = read_source(checkpoint, random=True), read_source(checkpoint)
    states = [s.state_dict() for s in (fresh.build(0), fresh.build(0), fresh.build(1), trained.build(0))]
    kernels = [s["conv0p1s1.kernel"] for s in states]
    assert torch.equal(kernels[0], kernels[1])
    assert not torch.equal(kernels[0], kernels[2]) and not torch.equal(kernels[0], kernels[3])
    assert torch.equal(kernels[3], load_backbone(checkpoint)[1]["backbone_state"]["conv0p1s1.kernel"])


def test_voxels_are_the_checkpoints_and_no_point_is_lost(make_checkpoint, nuscenes_world):
    source = read_source(make_checkpoint("voxels.grid=cylindrical", "voxels.crop=false"))
    shards = open_shards(nuscenes_world.pairs / "val")
    example = CloudExamples(shards, source.voxels, torch.device("cpu")).whole(0)
    points = shards.points(0).astype(np.float32)
    rho, azimuth = np.hypot(points[:, 0], points[:, 1]), np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    cells = np.floor(np.stack([rho / np.float32(0.8), azimuth, points[:, 2] / np.float32(0.8)], 1))
    assert len(example.label) == pytest.approx(len(np.unique(cells, axis=0)), rel=1e-3)
    assert len(example.inverse) == len(points) and int(example.inverse.min()) == 0
    far = CloudExamples(shards, VoxelSettings(crop=True, range_m=(-1, -1, -1, 1, 1, 1)), torch.device("cpu")).whole(0)
    assert int(far.inverse.min()) == 0


def test_a_voxels_label_is_its_first_points(nuscenes_world):
    shards = open_shards(nuscenes_world.pairs / "train")
    clouds = CloudExamples(
        shards, VoxelSettings(size_m=0.8), torch.device("cpu"), ProbeSettings().as_augmentation(), seed=3
    )
    frames = [0, 3]
    example = clouds.batch([(5, frame) for frame in frames])
    label = np.concatenate([shards.point_label(frame) for frame in frames])
    first = {}
    for point, voxel in enumerate(example.inverse.tolist()):
        first.setdefault(voxel, point)
    assert example.label.tolist() == [label[first[v]] for v in range(len(first))]
    again = clouds.batch([(5, frame) for frame in frames])
    other = clouds.batch([(6, frame) for frame in frames])
    one, same, another = (e.inputs.voxels.coordinate for e in (example, again, other))
    assert torch.equal(one, same)
    assert one.shape != another.shape or not torch.equal(one, another)
    # Each point belongs to the cloud of its frame, and its voxel to the same.
    counts = [len(shards.points(frame)) for frame in frames]
    assert torch.equal(example.inputs.cloud, torch.repeat_interleave(torch.arange(2), torch.tensor(counts)))
    assert torch.equal(one[example.inverse, 0].long(), example.inputs.cloud)


# --- a network that interpolates at points ---------------------------------------------------------------------------

OWN = """
from olivine.train.backbones import SRUNetSmall
class Own(SRUNetSmall):
    def __init__(self, in_channels=1, **options):
        super().__init__(in_channels, 32, **options)
    def features(self, tensor):
        return self.final(super().features(tensor))
    def forward(self, tensor):
        return self.features(tensor)
"""


def test_a_backbone_from_elsewhere_keeps_a_layer_named_as_published_heads_are(
    make_checkpoint, nuscenes_world, tmp_path, monkeypatch
):
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    start = make_checkpoint("backbone.name=own_networks:Own", method_state={})
    finetune(start, *nuscenes_world.splits, tmp_path / "run", replace(SHORT, epochs=1, batch=4))
    before, after = (load_backbone(path)[0].state_dict() for path in (start, tmp_path / "run"))
    assert "final.kernel" in after and not torch.equal(before["final.kernel"], after["final.kernel"])


# --- fractions ------------------------------------------------------------------------------------------------------


def test_a_fraction_that_leaves_no_frame_or_has_no_rule_is_refused(nuscenes_world, checkpoint, tmp_path):
    with pytest.raises(
        OlivineError, match=r"1 % leaves no frame: it is every 100th scene, and there are 8\. .* from 25 % on"
    ):
        finetune(checkpoint, *nuscenes_world.splits, tmp_path, replace(SHORT, fraction=1))
    with pytest.raises(OlivineError, match="fraction of 0 %"):
        FinetuneSettings(fraction=0)
    assert not list(tmp_path.iterdir())


def test_epochs_and_batch_are_the_published_ones():
    assert [FinetuneSettings(fraction=f).length() for f in (1, 5, 100)] == [100, 50, 50]
    published = [dataset_class(name).benchmark("").batch for name in ("nuscenes", "semantickitti")]
    assert [FinetuneSettings().batch_of(batch, 10_000, 1) for batch in published] == [16, 10]
    assert FinetuneSettings().batch_of(16, 40, 1) == 4
    with pytest.raises(OlivineError, match="does not divide over 3 processes"):
        FinetuneSettings(batch=8).batch_of(16, 100, 3)


# --- refusals -------------------------------------------------------------------------------------------------------


def refuse(message, checkpoint, splits, out, settings=SHORT, **options):
    with pytest.raises(OlivineError, match=message) as caught:
        finetune(checkpoint, *splits, out, settings, **options)
    assert "\n" not in str(caught.value)


def test_checkpoints_that_do_not_fit_are_refused(whole, nuscenes_world, checkpoint, make_checkpoint, tmp_path):
    splits = nuscenes_world.splits
    paper = load_settings("paper")
    refuse(r"another network: backbone\.name is srunet-small there", checkpoint, splits, tmp_path, network=paper)
    other = load_settings("cpu", ["voxels.grid=cylindrical", "voxels.size_m=0.8"])
    refuse(r"voxels\.grid is cartesian there and cylindrical", checkpoint, splits, tmp_path, network=other)
    deep = load_settings("voxelnet", ["backbone.residual=true"])
    trunk = {"backbone": backbone_arguments(load_settings("voxelnet")), "voxels": settings_to_plain(deep.voxels)}
    save_checkpoint(tmp_path / "trunk.pt", {**load_checkpoint(checkpoint), **trunk})
    message = r"another network: backbone\.residual is False there and True in voxelnet"
    refuse(message, tmp_path / "trunk.pt", splits, tmp_path / "out", network=deep)
    voxelnet = tmp_path / "voxelnet.pt"
    save_checkpoint(voxelnet, {**load_checkpoint(checkpoint), "backbone": {"name": "voxelnet"}})
    refuse("another network's tensors", voxelnet, splits, tmp_path / "out")
    head = tmp_path / "head.pt"
    save_checkpoint(head, {"kind": "probe", "head_state": {}})
    refuse("a probe's checkpoint holds no backbone", head, splits, tmp_path / "out")
    with pytest.raises(OlivineError, match="holds a probe's head alone"):
        load_backbone(head)
    refuse("no such checkpoint", tmp_path / "nowhere", splits, tmp_path / "out")
    with pytest.raises(OlivineError, match="to predict classes a fine-tuned one"):
        predict(head, splits[1], tmp_path / "out")
    for number in (2, 10):
        save_checkpoint(tmp_path / "rounds" / f"round-{number}" / "last.pt", {"kind": "finetune"})
    with pytest.raises(OlivineError, match=r"no such checkpoint\. Give one of its rounds, the last is .*/round-10$"):
        predict(tmp_path / "rounds", splits[1], tmp_path / "out")


def test_a_folder_of_another_run_is_refused_and_overwrite_replaces_it(
    whole, nuscenes_world, checkpoint, make_checkpoint, tmp_path
):
    splits, out = nuscenes_world.splits, whole[0]
    refuse("holds another run: seed is 0 there and 1 here", checkpoint, splits, out, replace(SHORT, seed=1))
    refuse("holds another run: it starts from another checkpoint", make_checkpoint(seed=8), splits, out)
    refuse("holds another run: it starts from another checkpoint", checkpoint, splits, out, random=True)
    refuse("holds another run: its frames are others", checkpoint, splits[:1] * 2, out)
    quick = replace(SHORT, epochs=1, batch=8)
    finetune(checkpoint, *splits, tmp_path / "run", quick)
    finetune(checkpoint, *splits, tmp_path / "run", replace(quick, seed=1), overwrite=True)
    assert load_checkpoint(tmp_path / "run")["settings"]["seed"] == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refuse("not empty and holds no run", checkpoint, splits, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_a_run_of_another_length_is_not_gone_on_with(whole, nuscenes_world, checkpoint, tmp_path):
    """The batch that is chosen here depends on the number of processes, and the number of steps on the batch."""
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run" / "scores.json").unlink()
    save_checkpoint(tmp_path / "run" / "last.pt", {**load_checkpoint(whole[0]), "step": 3, "steps": 9})
    refuse(r"9 steps there and 8 here.* Give the batch", checkpoint, nuscenes_world.splits, tmp_path / "run")


def test_shards_without_point_labels_or_with_other_classes_are_refused(
    nuscenes_world, kitti_world, checkpoint, tmp_path, monkeypatch
):
    splits = nuscenes_world.splits[0], kitti_world.splits[1]
    refuse("other point classes", checkpoint, splits, tmp_path)
    monkeypatch.setattr(
        segment, "open_shards", lambda path: SimpleNamespace(point_classes=(), has_point_label=False, path=path)
    )
    refuse("train: the shards have no point labels", checkpoint, nuscenes_world.splits, tmp_path)


def test_an_unfinished_run_says_how_far_it_got(nuscenes_world, make_checkpoint, tmp_path):
    from olivine.commands.defaults import choose_checkpoint

    early = make_checkpoint(step=12)
    assert choose_checkpoint(early)[1] == "as asked; step 12 of 40: the run is not finished"
    (result,) = linear_probe(early, *nuscenes_world.splits, tmp_path, replace(HEAD, epochs=1), random=False)
    assert "step 12 of 40: the run is not finished" in result.notes[0]
    assert result.notes[0] in (tmp_path / "scores.md").read_text()


def test_wrong_settings_are_refused_with_their_name():
    for changes, message in (
        (["lrr=1"], "no setting 'lrr'. Did you mean 'lr'"),
        (["lr=fast"], "lr is 'fast', expected a number"),
        (["lr"], "not key=value"),
        (["batch=0"], "batch is 0"),
        (["lr=-1"], "lr is -1"),
        (["layer_decay=0"], "layer_decay is 0"),
        (["drop_path=1"], "drop_path is 1"),
        (["drop_path=0.2", "backbone_lr=0"], "drop_path is 0.2 and the backbone is frozen"),
    ):
        with pytest.raises(OlivineError, match=message):
            settings_of(FinetuneSettings, changes)
    assert settings_of(FinetuneSettings, ["backbone_lr=0.02"], fraction=5).backbone_lr == 0.02


def test_a_loss_that_is_not_finite_stops_the_run(nuscenes_world, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(segment_training, "segmentation_loss", lambda logit, label: logit.sum() * torch.nan)
    refuse("the loss of step 0 is not finite. Lower lr", checkpoint, nuscenes_world.splits, tmp_path / "run")
    assert not (tmp_path / "run" / "last.pt").exists()


BAD_FILE = "noise.pt: holds more than tensors and plain values, or is no file of PyTorch|cannot be read as a checkpoint"


def test_the_commands_answer_bad_input_with_one_line_and_code_2(
    nuscenes_world, build_world, checkpoint, tmp_path, monkeypatch, capsys
):
    from olivine.cli import main

    monkeypatch.chdir(tmp_path)
    unlabelled = build_world(tmp_path / "kitti", "semantickitti", 2, 1, read_as="kitti").pairs
    (tmp_path / "noise.pt").write_bytes(b"noise")
    run = ["--checkpoint", str(checkpoint)]
    for arguments, says in (
        (["finetune", *run, "--shards", str(unlabelled)], "the shards have no point labels. Build them from"),
        (["probe", *run, "--shards", str(unlabelled)], "the shards have no point labels. Build them from"),
        (["finetune", *run, "--shards", str(nuscenes_world.pairs), "--fraction", "1"], "1 % leaves no frame"),
        (
            ["finetune", *run, "--shards", str(nuscenes_world.pairs), "--fraction", "1", "--dry-run"],
            "1 % leaves no frame",
        ),
        (
            ["finetune", *run, "--shards", str(nuscenes_world.pairs), "--fraction", "3", "--dry-run"],
            "is not every k-th",
        ),
        (["probe", *run, "--shards", str(unlabelled), "--dry-run"], "the shards have no point labels"),
        (["probe", *run, "--shards", str(nuscenes_world.pairs), "--config", "paper"], "of another network"),
        (["finetune", "--checkpoint", "noise.pt"], BAD_FILE),
        (["finetune", *run, "--set", "epoch=3"], "did you mean 'epochs'?"),
        (["import-weights", "noise.pt"], BAD_FILE),
        (["export", *run, "--layout", "openpcdet"], "Use --layout minkowski"),
    ):
        monkeypatch.setattr("sys.argv", ["olivine", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("olivine: ")]
        assert caught.value.code == 2 and len(lines) == 1, (arguments, lines)
        assert any(what.lower() in lines[0].lower() for what in says.split("|")), (arguments, lines)


PROGRAM = """
import json, sys, torch
torch.set_num_threads(1)
from olivine.downstream.finetune import finetune
from olivine.downstream.settings import FinetuneSettings
finetune(*sys.argv[2:], FinetuneSettings(**json.loads(sys.argv[1])))
"""


@pytest.mark.soak
def test_two_processes_train_and_score_as_one_but_for_lovasz_over_parts(nuscenes_world, checkpoint, tmp_path):
    """The same frames, steps and points; the loss of a part is over its own voxels, so weights differ a little."""
    one = finetune(checkpoint, *nuscenes_world.splits, tmp_path / "one", SHORT)
    (tmp_path / "program.py").write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    plain = json.dumps({"epochs": 2, "batch": 2, "lr": 0.5, "accelerator": "cpu"})
    command = [*torchrun, tmp_path / "program.py", plain, checkpoint, *nuscenes_world.splits, tmp_path / "two"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    two = read_result(tmp_path / "two" / "scores.json")
    assert two.scores.point_count == one.scores.point_count
    assert two.provenance == one.provenance
    losses = [[float(r["loss"]) for r in rows(tmp_path / n / "steps.csv")] for n in ("one", "two")]
    assert len(losses[1]) == len(losses[0]) and losses[1][0] == pytest.approx(losses[0][0], rel=0.1)
    assert two.scores.mean_iou == pytest.approx(one.scores.mean_iou, abs=0.05)
