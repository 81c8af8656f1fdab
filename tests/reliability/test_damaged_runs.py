"""Damaged checkpoints, weights, rows, scores and metrics, two runs in one folder, and full disks: one line each."""

import errno
import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from olivine.commands import console
from olivine.common import OlivineError, write_json
from olivine.downstream.metrics import scores
from olivine.downstream.results import Result, read_result, write_results
from olivine.downstream.weights import export_backbone, import_weights
from olivine.pairs.feature_maps import FeatureMaps
from olivine.report.contents import read_losses, read_scores
from olivine.study.rows import Run, read_row, read_rows, write_row
from olivine.train.build import backbone_arguments, seeded_backbone
from olivine.train.checkpoint import load_backbone, load_checkpoint, save_checkpoint
from olivine.train.decode import decode_crop, decode_segments
from olivine.train.devices import make_fabric
from olivine.train.metrics_log import MetricsLog
from olivine.train.run_folder import claim, read_identity
from olivine.train.settings import OptimizerSettings, RunSettings, load_settings


@pytest.fixture(scope="module")
def content():
    settings = load_settings("cpu")
    network = seeded_backbone(settings, 0)
    return {
        "kind": "pretrain",
        "step": 1,
        "steps": 1,
        "settings": {"voxels": asdict(settings.voxels)},
        "backbone": backbone_arguments(settings),
        "backbone_state": network.state_dict(),
        "method_state": {},
    }


@pytest.fixture
def checkpoint(content, tmp_path):
    save_checkpoint(tmp_path / "last.pt", content)
    return tmp_path / "last.pt"


def test_a_flipped_bit_of_a_checkpoint_is_found_or_changes_nothing(checkpoint):
    expected = load_backbone(checkpoint)[0].state_dict()
    data = checkpoint.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(60):
        changed = bytearray(data)
        changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        checkpoint.write_bytes(changed)
        try:
            found = load_backbone(checkpoint)[0].state_dict()
        except OlivineError as error:
            assert checkpoint.name in str(error)
            refused += 1
        else:  # a bit that means nothing, such as a date of the archive's
            assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert refused > 50


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_compressed_archive_and_one_with_an_entry_twice_are_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for name, method, twice in (("small", zipfile.ZIP_DEFLATED, False), ("twice", zipfile.ZIP_STORED, True)):
        path = tmp_path / f"{name}.pt"
        with zipfile.ZipFile(path, "w", method) as archive:
            for entry, data in [*entries.items(), *(list(entries.items())[-1:] if twice else [])]:
                archive.writestr(entry, data)
        with pytest.raises(OlivineError, match="no archive as PyTorch writes it"):
            load_checkpoint(path)


def test_weights_that_are_not_finite_are_not_written_exported_or_imported(checkpoint, content, tmp_path):
    state = {name: tensor.clone() for name, tensor in content["backbone_state"].items()}
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    state[name].reshape(-1)[0] = torch.nan
    before = checkpoint.read_bytes()
    with pytest.raises(OlivineError, match=f"not written.*{name}"):
        save_checkpoint(checkpoint, {**content, "backbone_state": state})
    assert checkpoint.read_bytes() == before
    torch.save({"format": "olivine-checkpoint", "schema": "1.0", **content, "backbone_state": state}, checkpoint)
    with pytest.raises(OlivineError, match=rf"last\.pt: {name} holds numbers that are not finite"):
        export_backbone(checkpoint, tmp_path / "out.pt")
    torch.save({"model_points": state}, tmp_path / "foreign.pt")
    with pytest.raises(OlivineError, match=rf"foreign\.pt: {name} holds numbers that are not finite"):
        import_weights(tmp_path / "foreign.pt", tmp_path / "x" / "last.pt", load_settings("cpu"))
    assert not (tmp_path / "out.pt").exists()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": -1}, "step is -1"),
        ({"backbone": 3}, "backbone is 3"),
        ({"backbone": {"name": "srunet-small", "width": "x", "in_channels": 1}}, "cannot be built"),
        ({"backbone_state": {"a": 1}}, "backbone_state.a is no tensor"),
        ({"settings": None}, "settings is None"),
        ({"exported_heads": {"final": 1}}, "exported_heads.final is 1"),
    ],
)
def test_a_checkpoint_of_wrong_content_is_one_line(change, says, content, tmp_path):
    torch.save({"format": "olivine-checkpoint", "schema": "1.0", **content, **change}, tmp_path / "x.pt")
    with pytest.raises(OlivineError, match=says) as caught:
        load_backbone(tmp_path / "x.pt")
    assert "x.pt" in str(caught.value)


def a_result() -> Result:
    table = scores(np.array([[0, 0], [1, 3]]), ("car",))
    return Result("pre-trained", "x.pt", table, ("car",), [[0, 0], [1, 3]], {}, 1, 1, {"steps": 1})


def test_changed_scores_and_rows_do_not_pass(tmp_path):
    write_results(tmp_path, [a_result()])
    path = tmp_path / "scores.json"
    assert read_result(path) == a_result()
    plain = json.loads(path.read_text())
    older = {key: value for key, value in plain[0].items() if key != "digest"}
    write_json(path, [older])
    assert read_result(path) == a_result()
    for change in ({"train_frames": 2}, {"scores": {**plain[0]["scores"], "mean_iou": 0.9}}):
        write_json(path, [{**plain[0], **change}])
        with pytest.raises(OlivineError, match=r"scores\.json: damaged"):
            read_result(path)
    for wrong in ([plain[0], plain[0]], [{**plain[0], "notes": ["x"]}]):
        write_json(path, wrong)
        with pytest.raises(OlivineError, match=r"scores\.json: (holds two results|damaged)"):
            read_scores(path)
    for wrong in (
        [older, older],
        [],
        {},
        [{**older, "scores": None}],
        [{**older, "extra": 1}],
        [{**older, "confusion": [[-1]]}],
    ):
        write_json(path, wrong)
        with pytest.raises(OlivineError, match=r"scores\.json"):
            read_result(path)
    write_json(path, [{"name": "x", "scores": {"iou": {"car": "high"}, "mean_iou": 0}}])
    with pytest.raises(OlivineError, match=r"scores\.json: \[0\]\.scores\.iou\.car is 'high'"):
        read_scores(path)

    run = Run("whole", 0, "probe", {"a": 1})
    row = write_row(tmp_path, run, {"mean_iou": 0.5, "frequency_weighted_iou": 0.5})
    file = run.file(tmp_path)
    assert read_row(file) == row
    stored = json.loads(file.read_text())
    write_json(file, {**stored, "result": {**stored["result"], "mean_iou": 0.6}})
    with pytest.raises(OlivineError, match="its result does not match its digest"):
        read_row(file)
    for wrong in (3, {**stored, "seed": "0"}, {**stored, "result": []}, {**stored, "row": "other"}):
        write_json(file, wrong)
        with pytest.raises(OlivineError, match="whole"):
            read_rows([tmp_path])


def test_damaged_metrics_are_one_line(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.add("steps", {"step": 0, "epoch": 0, "loss": 1.5, "loss_wcd": 1.0})
    log.close()
    path = tmp_path / "steps.csv"
    good = path.read_text()
    assert read_losses(path)["loss_wcd"].tolist() == [[0, 1.0]]
    changes = [
        ("0,0", "x,0"),
        ("1.5", "high"),
        ("step", "pets"),
        ("0,0,1.5", "0,0"),
        ("1.5", '"1.5'),
        ("1.5", "\udcff"),
    ]
    for old, new in changes:
        path.write_text(good.replace(old, new, 1), errors="surrogateescape")
        with pytest.raises(OlivineError, match=r"steps\.csv"):
            MetricsLog(tmp_path, 1)
    path.write_text(good.replace(",1\n", ",one\n"))
    with pytest.raises(OlivineError, match=r"steps\.csv: loss_wcd or step is no number"):
        read_losses(path)


def test_tensorboard_reads_what_the_log_writes(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first in (0, 2):  # the second is a resumed run, which makes steps 2 and 3 again
        log = MetricsLog(tmp_path, first)
        for step in range(first, 4):
            log.add("steps", {"step": step, "epoch": 0, "loss": 10.0 * first + step})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("steps/loss")] == [(0, 0), (1, 1), (2, 22), (3, 23)]


def test_a_full_disk_is_one_line_in_metrics_and_exports(tmp_path, checkpoint, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    log = MetricsLog(tmp_path / "a", 0)
    log.add("steps", {"step": 0, "epoch": 0})
    (tmp_path / "a/full").symlink_to("/dev/full")
    monkeypatch.setattr("olivine.train.metrics_log._header", lambda path: ["step", "epoch"])
    (tmp_path / "a/steps.csv").unlink()
    (tmp_path / "a/steps.csv").symlink_to("/dev/full")
    with pytest.raises(OlivineError, match=r"steps\.csv: the disk is full"):
        log.add("steps", {"step": 1, "epoch": 0})
    log._events._file.close()
    log._events._file = open("/dev/full", "wb")  # noqa: SIM115
    log._events._records._writer = log._events._file
    with pytest.raises(OlivineError, match=r"events.*the disk is full"):
        log._events.add({"x": 1.0}, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OlivineError, match=r"out\.pt: the disk is full"):
        export_backbone(checkpoint, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_stored_maps_that_changed_are_not_used(tmp_path):
    identity = {"image_digest": "", "encoder": "", "weights": "", "images": [4, 8], "map": [2, 3, 4]}
    maps = FeatureMaps.create(tmp_path, {**identity, "cameras": 2, "dtype": "float16", "mirrored": False})
    values = np.random.default_rng(0).random((5, 2, 1, 2, 3, 4)).astype(np.float32)
    maps.write(0, values)
    path = maps.folder / "maps-00000.bin"
    assert np.array_equal(maps.read(0, 3, 1, False), values[3, 1, 0].astype(np.float16).astype(np.float32))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    maps.read(0, 3, 1, False)  # the changed map is not asked for
    with pytest.raises(OlivineError, match="a map of frame 4 is not what was written"):
        maps.read(0, 4, 1, False)
    with pytest.raises(OlivineError, match="no map of frame 5"):
        maps.read(0, 5, 0, False)
    for wrong in (b"", data[:90]):
        path.write_bytes(wrong)
        with pytest.raises(OlivineError, match=r"maps-00000\.bin: ends .* early"):
            maps.read(0, 3, 1, False)
    for wrong in (b"{", b"[]", b'{"size": 3}'):
        (maps.folder / "maps-00000.json").write_bytes(wrong)
        with pytest.raises(OlivineError, match=r"maps-00000\.json"):
            FeatureMaps(maps.folder).read(0, 3, 1, False)


_HOLDER = """
import sys, time
from pathlib import Path
from olivine.train.run_folder import claim, read_identity
from olivine.train.settings import load_settings
claim(Path(sys.argv[1]), load_settings("cpu"), {"kind": "pretrain", "settings": {}, "data": {}}, resume=True)
print("claimed", flush=True)
time.sleep(600)
"""


def test_two_processes_do_not_run_in_one_folder_and_a_dead_one_holds_nobody_up(tmp_path):
    out = tmp_path / "run"
    settings, identity = load_settings("cpu"), {"kind": "pretrain", "settings": {}, "data": {}}
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(out)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "claimed\n"
            with pytest.raises(OlivineError, match=rf"run: another run writes here \(process {other.pid} on "):
                claim(out, settings, identity, resume=True)
        finally:
            other.kill()
    claim(out, settings, identity, resume=True)
    claim(out, settings, identity, resume=True)  # a second run of this process


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"steps": 0},
        {"validate_epochs": 0},
        {"batch": 0},
        {"group": 0},
        {"batch": 1 << 40},
        {"accumulate": 0},
        {"nodes": 0},
        {"keep": -1},
        {"checkpoint_minutes": float("nan")},
    ],
)
def test_a_run_of_settings_out_of_range_is_refused_by_key(wrong):
    (key,) = wrong
    with pytest.raises(OlivineError, match=rf"run\.{key} is .*Use a number (in|from)"):
        RunSettings(**wrong)


@pytest.mark.parametrize("wrong", [{"momentum": float("nan")}, {"momentum": 2.0}, {"lr": -1.0}, {"warmup": 2.0}])
def test_an_optimizer_out_of_range_is_refused_by_key(wrong):
    (key,) = wrong
    with pytest.raises(OlivineError, match=rf"optimizer\.{key} is .*Use a number (in|from)"):
        OptimizerSettings(**wrong)


def test_several_nodes_that_nobody_starts_are_refused(monkeypatch):
    for name in ("NODE_RANK", "GROUP_RANK", "SLURM_NTASKS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OlivineError, match=r"run\.nodes is 2.*olivine submit"):
        make_fabric(load_settings("cpu", ["run.nodes=2"]))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"%!PS-Adobe", b"\x89PNG\r\n\x1a\nxxxx"])
def test_a_damaged_picture_of_a_shard_is_one_line(data):
    with pytest.raises(OlivineError, match="build-pairs --check"):
        decode_crop(data, (0, 0, 2, 2), False, np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(OlivineError, match="build-pairs --check"):
        decode_segments(data, (0, 0, 2, 2), False, (2, 2))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3 GiB"),
        RuntimeError("can't start new thread"),
        RuntimeError("could not create a primitive"),
        ImportError("x.so: failed to map segment from shared object"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_is_used_up_is_one_line_and_no_bug(error, monkeypatch, capsys):
    app = typer.Typer()

    @app.command()
    def takes() -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["olivine"])
    monkeypatch.delenv("OLIVINE_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as ended:
        console.run(app)
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("olivine: not enough memory")


def test_events_of_a_resumed_run_come_last_by_name_where_the_clock_was_set_back(tmp_path, monkeypatch):
    MetricsLog(tmp_path, 0).close()
    monkeypatch.setattr("time.time_ns", lambda: 5)
    MetricsLog(tmp_path, 3).close()
    first, second = sorted((tmp_path / "tensorboard").iterdir())  # as TensorBoard takes them
    assert first.stat().st_mtime_ns <= second.stat().st_mtime_ns
    assert int(second.name.split(".")[3]) == int(first.name.split(".")[3]) + 1


def test_a_file_that_ends_too_early_is_no_interruption(monkeypatch, capsys):
    app = typer.Typer()

    @app.command()
    def reads() -> None:
        raise EOFError("No data left in file")

    monkeypatch.setattr("sys.argv", ["olivine"])
    monkeypatch.delenv("OLIVINE_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as ended:
        console.run(app)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "No data left in file" in said
    assert "interrupted" not in said


@pytest.mark.parametrize("index", ["3", "{}", '{"scenes": 3}', '{"scenes": [{"frames": "x"}]}', '{"scenes": [[]]}'])
def test_a_damaged_index_is_named_where_labels_are_chosen(index, tmp_path, monkeypatch):
    from olivine.commands.defaults import choose_labels

    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        folder = Path("data/labels", name, "frames")
        folder.mkdir(parents=True)
        folder.with_name("manifest.json").write_text("{}")
        (folder / "index.json").write_text(index)
    with pytest.raises(OlivineError, match=r"index\.json"):
        choose_labels(None, None)


@pytest.mark.parametrize(
    "plain",
    [3, {}, {"kind": "pretrain", "data": {}, "settings": {"method": 3}}, {"kind": 1, "settings": {}, "data": {}}],
)
def test_a_damaged_identity_of_a_run_is_one_line(plain, tmp_path):
    write_json(tmp_path / "run.json", plain)
    with pytest.raises(OlivineError, match=r"run\.json"):
        read_identity(tmp_path / "run.json", "choose another folder")


@pytest.mark.parametrize(
    "text",
    ["backbone: {name: srunev-small}", "method: 3\nloss: {wcd: true}", "run: {steps: *a}", "- a", "run: {steps: .nan}"],
)
def test_a_wrong_file_of_settings_is_named(text, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(OlivineError, match=r"x\.yaml"):
        load_settings(tmp_path / "x.yaml")
