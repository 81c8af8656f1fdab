"""olivine bench: a run's own steps, the time of every stage of them, and one file with what was printed."""

from __future__ import annotations

import csv
import json
import math
from types import SimpleNamespace

import pytest
import torch

from olivine.commands import bench
from olivine.commands.measure import ENGINES, STAGES, measure
from olivine.train.forward import Distiller
from olivine.train.loop import pretrain
from olivine.train.settings import load_settings

SMALL = ["image.height=56", "image.width=104", "voxels.size_m=0.8", "method.pairs=100", "run.batch=2", "run.group=1"]
SMALL += ["augment.crop_min_pairs=50", "augment.cuboid_min_pairs=50"]
KEYS = {"preset", "device", "steps", "warm_up", "data", "step", "stages", "staged_step_s", "images", "network"}
KEYS |= {"modelled", "labelgen", "environment", "settings", "settings_digest", "made_by"}
FRAME = {"command", "ok", "out", "seconds", "failures", "error"}


@pytest.fixture(scope="module")
def arguments(nuscenes_world):
    changes = [word for change in SMALL for word in ("--set", change)]
    words = ["bench", "--device", "cpu", "--steps", 1, "--warm-up", 1, *changes]
    return words, ["--shards", nuscenes_world.pairs]


@pytest.fixture(scope="module")
def done(arguments, olivine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    run = olivine(*arguments[0], *arguments[1], "--json", cwd=folder, check=True)
    return json.loads(run.stdout), json.loads((folder / "bench.json").read_text())


def test_the_file_holds_what_was_printed_with_every_key(done):
    printed, written = done
    assert set(written) == KEYS
    assert {key: value for key, value in printed.items() if key not in FRAME} == written
    assert printed["ok"] and printed["out"] == "bench.json"
    assert set(written["step"]) == {
        *("steps_per_second", "frames_per_second", "seconds", "waiting_share", "peak_memory_mib", "loss")
    }
    assert {"packages", "gpu", "cores", "threads", "python"} <= set(written["environment"])
    assert "shards" not in written["settings"]["data"]  # a path of the user's machine is nobody's business


def test_the_stages_are_a_whole_step(done):
    _, written = done
    stages = written["stages"]
    assert set(stages) == set(STAGES)
    assert all(seconds > 0 for seconds in stages.values())
    assert sum(stages.values()) == pytest.approx(written["staged_step_s"])
    assert written["step"]["frames_per_second"] == pytest.approx(2 * written["step"]["steps_per_second"])
    assert written["images"] == 12


def test_every_engine_has_its_times_or_the_line_that_says_why_not(done):
    network = done[1]["network"]
    assert network["voxels"] > 0
    assert set(network["whole"]) == set(ENGINES) and set(network["layer"]) == {*ENGINES, "spconv", "warpconvnet"}
    for row in (*network["whole"].values(), *network["layer"].values()):
        assert bool(row.get("problem")) != ("forward_s" in row and "backward_s" in row)
    assert network["whole"]["torch"]["forward_s"] > 0 and network["layer"]["torch"]["backward_s"] > 0
    assert "NVIDIA GPU" in network["whole"]["triton"]["problem"]


def test_its_steps_are_those_of_pretraining(nuscenes_world, tmp_path):
    """The loss of the last step that is timed, after two steps of the optimiser, is that of the same run."""
    shards = f"data.shards={nuscenes_world.pairs / 'train'}"
    changes = [*SMALL, shards, "run.accelerator=cpu", "run.devices=1", "method.warmup=0.2", "run.steps=5"]
    settings = load_settings("cpu", changes)
    found = measure(settings, 1, 2)
    pretrain(settings, tmp_path / "run")
    with open(tmp_path / "run/steps.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert found["step"]["loss"] == pytest.approx(float(rows[2]["loss"]), abs=1e-6)  # as the table rounds it
    assert "loss_scr" in rows[2] and not math.isnan(float(rows[2]["loss_scr"]))


def test_without_shards_it_makes_frames_and_prints_a_table(arguments, olivine, tmp_path):
    run = olivine(*arguments[0], "--frames", 2, "--out", "here.json", cwd=tmp_path, check=True)
    for word in (*STAGES, "frames a second", "peak memory", "spconv", "labelgen", "here.json"):
        assert word in run.stdout
    assert json.loads((tmp_path / "here.json").read_text())["data"] == "2 synthetic frames"
    assert [path.name for path in tmp_path.iterdir()] == ["here.json"]


def test_a_file_that_it_did_not_write_stays(arguments, olivine, tmp_path):
    (tmp_path / "bench.json").write_text('{"mine": 1}')
    run = olivine(*arguments[0], *arguments[1], "--overwrite", cwd=tmp_path)
    assert run.returncode == 2 and "left alone" in run.stderr
    assert (tmp_path / "bench.json").read_text() == '{"mine": 1}'


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_error_says_which_device_to_take(olivine, tmp_path):
    run = olivine("bench", cwd=tmp_path)
    assert run.returncode == 2 and "--device cpu" in run.stderr and run.stderr.count("\n") == 1


@pytest.mark.parametrize(("words", "named"), [(["--device", "tpu"], "--device tpu"), (["--warm-up", 0], "--warm-up")])
def test_bad_options_are_one_line(words, named, olivine, tmp_path):
    run = olivine("bench", "--device", "cpu", *words, cwd=tmp_path)
    assert run.returncode == 2 and named in run.stderr and run.stderr.count("\n") == 1


def test_too_little_memory_names_batch_and_group_and_what_to_lower(arguments, olivine, tmp_path, monkeypatch):
    def forward(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Distiller, "forward", forward)
    run = olivine(*arguments[0], *arguments[1], cwd=tmp_path)
    assert run.returncode == 2
    for word in ("run.batch=2", "run.group=1", "--set run.accumulate=2", "image.at_once"):
        assert word in run.stderr.splitlines()[-1]
    assert not (tmp_path / "bench.json").exists()


@pytest.mark.parametrize(
    ("card", "changes", "encoder_ms", "network_ms"),
    [
        # The paper's step of 16 frames at each card's peak, worked out apart from this code.
        ("NVIDIA H100 80GB HBM3", ["run.precision=bf16-mixed"], 26.6, 2.6),
        ("NVIDIA H100 80GB HBM3", ["run.float32_products=tf32", "image.dtype=float32"], 53, 5.2),
        ("NVIDIA H100 80GB HBM3", ["run.float32_products=ieee", "image.dtype=float32"], 392, 39),
        ("NVIDIA A100-SXM4-80GB", ["run.precision=bf16-mixed"], 84, 8.3),
        ("NVIDIA A100-SXM4-80GB", ["run.float32_products=ieee", "image.dtype=float32"], 1347, 133),
    ],
)
def test_the_modelled_times_are_the_arithmetic_of_the_papers_step(card, changes, encoder_ms, network_ms):
    found = {"images": 96, "network": {"voxels": 246_780, "asked": "triton, on a GPU"}}
    least = bench._modelled(load_settings("paper", changes), found, card)["least_s"]
    assert 1000 * least["image encoder"] == pytest.approx(encoder_ms, rel=0.01)
    assert 1000 * least["3D network"] == pytest.approx(network_ms, rel=0.02)


def test_nothing_is_modelled_for_a_card_that_is_not_known():
    assert bench._modelled(load_settings("paper"), {"images": 96, "network": {}}, "some other card") is None


def test_a_labeler_that_fails_costs_none_of_the_times(arguments, olivine, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(bench, "_labelgen", fail)
    olivine(*arguments[0], *arguments[1], cwd=tmp_path, check=True)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["labelgen"] == {"problem": "not measured (RuntimeError: no such operator)"}
    assert written["step"]["steps_per_second"] > 0


def test_labelgen_is_timed_at_the_size_of_nuscenes_where_its_weights_are(nuscenes_world, tmp_path, monkeypatch):
    from olivine.labelgen import grounded_sam, labeler
    from olivine.readers import index_dataset

    index, _ = index_dataset(tmp_path / "frames", "nuscenes", nuscenes_world.root, None)
    sizes = []

    def label(tasks, images):
        sizes.extend((task.camera.width, task.camera.height, image.shape) for task, image in zip(tasks, images))

    stub = SimpleNamespace(batch_size=2, prepare=lambda: None, label=label, resolved=lambda: {"batch_size": 2})
    absent = bench._labelgen(index, "cpu")
    assert "olivine weights fetch swin-t" in absent["problem"]
    monkeypatch.setattr(grounded_sam, "needed_files", lambda settings: {})
    monkeypatch.setattr(labeler, "make_labeler", lambda *arguments: stub)
    found = bench._labelgen(index, "cpu")
    assert found["images_per_second"] > 0 and found["images_at_once"] == 2
    assert sizes == 4 * [(1600, 900, (900, 1600, 3))]
