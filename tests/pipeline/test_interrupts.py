"""Ctrl-C and a full disk in every stage: one line, nothing half-written, everything finished kept."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from olivine.readers.index import open_index

STAGES = {
    "synth": (["synth", "--scenes", "4", "--frames", "4", "--out", "again"], "again"),
    "labelgen": (["labelgen", "--out", "again"], "again"),
    "build-pairs": (["build-pairs", "--out", "again"], "again"),
    "pretrain": (["pretrain", "--config", "cpu", "--out", "again"], "again"),
}
# More than can be done before the signal comes, and the first thing that a stage finishes.
LONG = {"synth": ["--scenes", "30", "--frames", "20"], "pretrain": ["--set", "run.epochs=1000"]}
FIRST = {"synth": "**/*.jpg", "labelgen": "CAM_*/*.png", "build-pairs": "train/units/*.json", "pretrain": "steps.csv"}


@pytest.fixture(scope="module")
def world(olivine, tmp_path_factory):
    """A small synthetic data set with labels and shards by the default paths."""
    folder = tmp_path_factory.mktemp("world")
    olivine("synth", "--scenes", 4, "--frames", 4, "--out", "data/nuscenes", cwd=folder)
    olivine("labelgen", cwd=folder)
    olivine("build-pairs", cwd=folder)
    return folder


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if ".partial-" in p.name]


@contextmanager
def held(stage: str, world: Path) -> Iterator[None]:
    """Keep build-pairs from its end: the last training frame's first image is a pipe that nobody writes to."""
    if stage != "build-pairs":
        yield
        return
    last = list(open_index(world / "data/labels/nuscenes/frames", world / "data/nuscenes").frames("train"))[-1]
    path = last.image_path(last.cameras[0])
    data = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    try:
        yield
    finally:
        path.unlink()
        path.write_bytes(data)


def start(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "olivine.cli", *arguments]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(pattern: str | None, folder: Path, process: subprocess.Popen[str]) -> None:
    """Until the folder is there, and something in it that matches; the process must not have ended by then."""
    for _ in range(1200):
        # synth works in a hidden folder beside its own until all is written.
        places = folder.parent.glob(f"*{folder.name}*")
        if any(pattern is None or next(place.glob(pattern), None) for place in places):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} after 60 s")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("moment", ["at its start", "under way"])
def test_ctrl_c_is_one_line_and_leaves_nothing_half_written(stage, moment, world, tmp_path):
    arguments, out = STAGES[stage]
    (tmp_path / "data").symlink_to(world / "data")
    with held(stage, world):
        process = start([*arguments, *LONG.get(stage, [])], tmp_path)
        wait_for(None if moment == "at its start" else FIRST[stage], tmp_path / out, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors, errors
    assert process.returncode == 1, errors
    assert "run the same command again to go on" in errors
    assert not leftovers(tmp_path / out)


IN_COMPILED_SOURCE = """
import typer
from olivine.commands.console import run

app = typer.Typer()

@app.command()
def main():
    exec("raise KeyboardInterrupt")  # as while a dataclass is made

if __name__ == "__main__":
    run(app)
"""


def test_ctrl_c_in_source_compiled_at_run_time_has_the_same_exit_code(tmp_path):
    (tmp_path / "small.py").write_text(IN_COMPILED_SOURCE)
    done = subprocess.run([sys.executable, "-m", "small"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done


def test_a_stage_that_was_killed_is_finished_by_the_same_command(olivine, world, tmp_path):
    (tmp_path / "data").symlink_to(world / "data")
    with held("build-pairs", world):
        process = start(["build-pairs", "--out", "again"], tmp_path)
        wait_for(FIRST["build-pairs"], tmp_path / "again", process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    olivine("build-pairs", "--out", "again", cwd=tmp_path)
    expected = sorted((world / "data/pairs/nuscenes").rglob("*"))
    made = {p.relative_to(world / "data/pairs/nuscenes"): p for p in expected if p.is_file()}
    for name, path in made.items():
        assert (tmp_path / "again" / name).read_bytes() == path.read_bytes(), name
    assert not leftovers(tmp_path / "again")


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of half a mebibyte."""
    place = tmp_path / "tiny"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_line_and_leaves_nothing_that_looks_whole(stage, olivine, world, tiny_disk):
    arguments, out = STAGES[stage]
    cwd = world / f"full-{stage}"
    cwd.mkdir()
    (cwd / "data").symlink_to(world / "data")
    (cwd / out).symlink_to(tiny_disk / "out") if stage != "synth" else None
    arguments = [a if a != out else str(tiny_disk / "out") for a in arguments]
    command = [sys.executable, "-m", "olivine.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (1, 2), done.stderr
    # synth looks at the free space first; the others meet the end of it.
    assert ("are free" if stage == "synth" else "disk is full") in (done.stderr + done.stdout)
    assert not leftovers(tiny_disk)
    shutil.rmtree(cwd)
