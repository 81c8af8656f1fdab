"""No command removes or replaces what olivine did not make, nor what it reads from, whatever folder --out names."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from olivine.common import OlivineError, atomic_directory, check_replaceable, files

# Each with the folder it reads from, which --out names in one of the cases.
SHORT = ["--set", "run.steps=1", "--set", "method.pairs=256", "--set", "method.scr=false"]
COMMANDS = {
    "synth": (["synth", "--scenes", "4", "--frames", "1", "--image-scale", "0.05", "--workers", "1"], "data/nuscenes"),
    "labelgen": (["labelgen"], "data/nuscenes"),
    "labelgen-labels": (["labelgen", "--overwrite"], "data"),
    "score-labels": (["score-labels"], "data/labels/nuscenes"),
    "check-labels": (["check-labels"], "data/pairs/nuscenes/train"),
    "build-pairs": (["build-pairs", "--workers", "1", "--overwrite"], "data/labels"),
    "pretrain": (["pretrain", *SHORT], "data/pairs/nuscenes/train"),
    "features": (["features"], "data/pairs/nuscenes/train"),
    "pretrain-over-shards": (["pretrain", *SHORT], "data/pairs"),
    "probe": (["probe", "--overwrite", "--epochs", "1"], "runs/cpu"),
    "finetune": (["finetune", "--overwrite", "--epochs", "1"], "runs/cpu"),
    "predict": (["predict", "--checkpoint", "runs/cpu/finetune-100"], "runs/cpu/finetune-100"),
    "study": (["study"], "data/pairs/nuscenes"),
    "study-merge": (["study", "--merge", "runs/study"], "runs/study"),
    "report": (["report"], "runs/cpu"),
    "report-data": (["report"], "data"),
    "figures": (["figures", "--per-class", "3"], "runs/cpu"),
    "export": (["export", "--overwrite"], "runs/cpu/last.pt"),
    "import-weights": (["import-weights", "backbone.pt", "--overwrite"], "runs/cpu/last.pt"),
}


digests = {}
"""By a file's number, size and time, which one that is written to does not keep."""


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with its SHA-256, every link with its target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            stat = path.stat()
            key = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
            if key not in digests:
                digests[key] = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = digests[key]
    return found


@pytest.fixture(scope="module")
def made(olivine, tmp_path_factory):
    """A folder with all that the commands make, by their default paths."""
    folder = tmp_path_factory.mktemp("made")
    for arguments in [
        COMMANDS["synth"][0],
        ["labelgen"],
        ["build-pairs", "--workers", 1],
        ["pretrain", *SHORT],
        ["finetune", "--epochs", "1"],
        ["export", "--out", "backbone.pt"],
    ]:
        assert olivine(*arguments, cwd=folder).returncode == 0, arguments
    (folder / "runs/study").mkdir()
    (folder / "runs/study/study.json").write_text("{}")
    (folder / "foreign").mkdir()
    (folder / "foreign/thesis.pt").write_text("years of work")
    (folder / "link").symlink_to("foreign")
    return folder


@pytest.fixture
def world(made, tmp_path):
    # The same files by other names: they are not copied, and were read before.
    return Path(shutil.copytree(made, tmp_path / "world", symlinks=True, copy_function=os.link))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("where", ["foreign", "input", ".", "link"])
def test_out_never_costs_a_file_that_was_there(command, where, world, olivine):
    arguments, source = COMMANDS[command]
    before = contents(world)
    is_file = command in ("export", "import-weights")
    out = {"input": source, "foreign": "foreign/thesis.pt" if is_file else "foreign"}.get(where, where)
    code = olivine(*arguments, "--out", out, cwd=world).returncode
    after = contents(world)
    gone = [name for name in before if name not in after]
    changed = [name for name in before if name in after and before[name] != after[name]]
    assert not gone
    assert not changed
    assert code == 2 or command in ("build-pairs", "synth")  # these write beside, or find what they would make


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("export", "import-weights")])
def test_the_root_folder_is_refused_before_anything_is_written(command, world, olivine, monkeypatch):
    written = []
    monkeypatch.setattr(files, "_partial_name", lambda path: written.append(path) or world / "x")
    dry = (
        ["--dry-run"]
        if command in ("synth", "labelgen", "build-pairs", "features", "pretrain", "probe", "finetune")
        else []
    )
    assert olivine(*COMMANDS[command][0], *dry, "--out", "/", cwd=world).returncode in (
        (0,) if "build" in command else (2,)
    )
    assert not written


def test_an_imported_checkpoint_never_takes_the_place_of_a_run(world, olivine):
    shutil.copy(world / "backbone.pt", world / "cpu.pt")
    before = contents(world / "runs")
    assert olivine("import-weights", "cpu.pt", "--config", "cpu", cwd=world).returncode == 2
    assert olivine("import-weights", "cpu.pt", "--config", "cpu", "--overwrite", cwd=world).returncode == 2
    assert contents(world / "runs") == before


def test_a_report_and_a_data_set_of_ours_are_replaced_and_foreign_files_in_them_stay(world, olivine):
    assert olivine("report", cwd=world).returncode == 0
    assert olivine("report", cwd=world).returncode == 0
    (world / "report/notes.txt").write_text("mine")
    assert olivine("report", cwd=world).returncode == 2
    assert (world / "report/notes.txt").read_text() == "mine"
    (world / "data/nuscenes/samples/mine.jpg").write_text("mine")
    assert olivine(*COMMANDS["synth"][0], "--seed", 1, "--out", "data/nuscenes", cwd=world).returncode == 2
    assert (world / "data/nuscenes/samples/mine.jpg").read_text() == "mine"


def test_a_finetuning_begun_anew_keeps_foreign_files_in_its_folder(world, olivine):
    folder = world / "runs/cpu/finetune-100"
    (folder / "notes.txt").write_text("mine")
    assert olivine("finetune", "--overwrite", "--epochs", "2", cwd=world).returncode == 0
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_shard_that_is_a_link_or_holds_foreign_files_is_left_alone(world, olivine):
    shard = world / "data/pairs/nuscenes/train/shard-00000.zarr"
    (shard / "mine.txt").write_text("mine")
    before = contents(world / "data/pairs/nuscenes/train")
    assert olivine("build-pairs", "--workers", 1, "--jpeg-quality", 50, "--overwrite", cwd=world).returncode == 2
    assert contents(world / "data/pairs/nuscenes/train") == before


@pytest.mark.parametrize("more", [(), ("--verify",)])
def test_labelgen_for_another_data_set_leaves_a_folder_of_labels_alone(more, world, olivine):
    labels, before = "data/labels/nuscenes", contents(world)
    for other in (("--dataset", "semantickitti", "--root", "data/nuscenes"), ("--version", "v1.0-trainval")):
        done = olivine("labelgen", "--root", "data/nuscenes", "--out", labels, *other, *more, cwd=world)
        assert done.returncode == 2 and "holds labels of nuscenes v1.0-" in done.stderr
    assert olivine("labelgen", "--out", labels, "--batch-size", "nan", cwd=world).returncode == 2
    assert contents(world) == before


def test_only_marked_folders_are_replaced(tmp_path, monkeypatch):
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub/a").write_text("1")
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "b").write_text("2")
    assert sorted(contents(tmp_path / "out")) == [files.MARK, "b"]
    (tmp_path / "empty").mkdir()
    with atomic_directory(tmp_path / "empty") as folder:
        (folder / "c").write_text("3")
    (tmp_path / "out/foreign").symlink_to(tmp_path)
    with pytest.raises(OlivineError, match="holds 'foreign'"), atomic_directory(tmp_path / "out"):
        raise AssertionError("must not begin")
    (tmp_path / "to").symlink_to(tmp_path / "empty")
    with pytest.raises(OlivineError, match="is a link"):
        check_replaceable(tmp_path / "to")
    for place in ("/", tmp_path):
        monkeypatch.chdir(tmp_path / "empty")
        with pytest.raises(OlivineError, match="is the folder you are in"):
            check_replaceable(place)


def test_what_comes_in_while_a_folder_is_made_is_not_lost(tmp_path):
    with pytest.raises(OlivineError, match="late"), atomic_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        (tmp_path / "out").mkdir()
        (tmp_path / "out/late").write_text("mine")
    assert contents(tmp_path) == {"out/late": hashlib.sha256(b"mine").hexdigest()}
