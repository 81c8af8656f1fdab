"""Ctrl-C in every stage: one line, nothing half-written, everything finished kept."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from olivine.readers.index import open_index

# More than can be done before the signal comes.
LONG = {
    "synth": ("--scenes", "30", "--frames", "20", "--workers", "2"),
    "labelgen": (),
    "build-pairs": (),
    "pretrain": ("--set", "run.steps=100000"),
}
# The first thing that a stage finishes.
FIRST = {"synth": "**/*.jpg", "labelgen": "CAM_*/*.png", "build-pairs": "train/units/*.json", "pretrain": "steps.csv"}


@contextmanager
def held(stage: str, world: Path) -> Iterator[None]:
    """Keep labelgen and build-pairs from their end: what they read last is a pipe that nobody writes to."""
    if stage not in ("labelgen", "build-pairs"):
        yield
        return
    last = list(open_index(world / "data/labels/nuscenes/frames", world / "data/nuscenes").frames())[-1]
    path = last.image_truth[-1][0] if stage == "labelgen" else last.image_path(last.cameras[-1])
    data = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    try:
        yield
    finally:
        path.unlink()
        path.write_bytes(data)


def wait_for(pattern: str | None, case: Path, pid: int) -> None:
    """Until the folder is there, and something in it that matches; the process must not have ended by then."""
    for _ in range(6000):
        # synth works in a hidden folder beside its own until all is written.
        if any(pattern is None or next(place.glob(pattern), None) for place in case.glob("*out*")):
            return
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        time.sleep(0.01)
    raise AssertionError(f"no {pattern} after 60 s")


@pytest.mark.parametrize("stage", [pytest.param(s, marks=pytest.mark.soak) if s == "synth" else s for s in LONG])
@pytest.mark.parametrize("moment", ["at its start", "under way"])
def test_ctrl_c_is_one_line_and_leaves_nothing_half_written(stage, moment, machine, world):
    machine.clean()
    with held(stage, world):
        started = machine.start((*machine.stages[stage], *LONG[stage]))
        wait_for(None if moment == "at its start" else FIRST[stage], machine.case, started[0])
        os.killpg(started[0], signal.SIGINT)  # as a terminal does: the whole group
        done = machine.wait(started)
    assert done.is_one_line(), done.said
    assert done.code == 1
    assert "run the same command again to go on" in done.errors
    assert not machine.leftovers()


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
