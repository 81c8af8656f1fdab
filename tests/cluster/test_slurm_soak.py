"""A real SLURM of two machines on this host, and the make targets on it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.soak

Run = Callable[..., Any]
Contents = Callable[[Path], dict[str, bytes]]
SLURM = ("CLUSTER=slurm", "PARTITION=main", "NODES=2", "SUBMIT_ARGS=--wait --parts 3")


def _without_root(found: dict[str, bytes]) -> dict[str, bytes]:
    """The frame index says where the data set lies, which is another place here."""
    return {name: data for name, data in found.items() if not name.endswith("frames/index.json")}


def test_arrays_make_what_one_process_makes(
    slurm: dict[str, str], make: Run, world: Path, fresh: Path, contents: Contents
) -> None:
    done = make("labelgen", *SLURM, cwd=fresh, env=slurm)
    assert re.search(r"array\s+0-2\n", done.stdout), done.stdout
    make("build-pairs", *SLURM, cwd=fresh, env=slurm)
    for made in ("labels/nuscenes", "pairs/nuscenes"):
        here, there = contents(world / "data" / made), contents(fresh / "data" / made)
        assert _without_root(here) == _without_root(there)
    again = make("build-pairs", *SLURM, cwd=fresh, env=slurm)
    assert "jobs" not in again.stdout  # nothing is left, so nothing is submitted
    status = make("status", cwd=fresh)
    assert status.stdout.count("running                  0") == 3


def test_a_task_that_fails_fails_the_job_after_it_and_once_mended_it_alone_is_done_again(
    slurm: dict[str, str], make: Run, olivine: Run, world: Path, fresh: Path, contents: Contents
) -> None:
    shutil.copytree(world / "data/labels", fresh / "data/labels")
    make("labelgen", *SLURM, cwd=fresh, env=slurm)  # the copied maps are as good, and the index is made anew
    image = sorted((fresh / "data/nuscenes/samples/CAM_FRONT").iterdir())[0]
    good = image.read_bytes()
    image.write_bytes(good[:200])
    failed = make("build-pairs", *SLURM, cwd=fresh, env=slurm, code=2)  # make's own code for a command that failed
    assert "1 failed:" in failed.stdout
    report = next(p for p in (fresh / "data/pairs/nuscenes.logs/slurm").glob("*.log") if "_" not in p.name)
    assert "not built, or not whole" in report.read_text()
    status = make("status", cwd=fresh, code=2)
    assert image.name in status.stdout and "cannot be read" in status.stdout

    image.write_bytes(good)
    mended = make("build-pairs", *SLURM, cwd=fresh, env=slurm)
    assert re.search(r"array\s+\d\n", mended.stdout), mended.stdout  # one part of the three
    here, there = contents(world / "data/pairs/nuscenes"), contents(fresh / "data/pairs/nuscenes")
    assert here == there


def test_what_slurm_does_not_have_is_said_before_anything_is_submitted(
    slurm: dict[str, str], make: Run, olivine: Run, fresh: Path
) -> None:
    wrong = make("labelgen", "CLUSTER=slurm", "PARTITION=gpu", cwd=fresh, env=slurm, code=2)
    assert "no partition 'gpu'. Choose one of: main" in wrong.stderr
    wrong = make("labelgen", "CLUSTER=slurm", "NODES=3", cwd=fresh, env=slurm, code=2)
    assert "has 2 nodes" in wrong.stderr
    wrong = make("labelgen", "CLUSTER=nomad", cwd=fresh, code=2)
    assert "local, ray or slurm" in wrong.stderr
    wrong = olivine("submit", "--", "labelgen", "--labeler", "seem", cwd=fresh, env=slurm, code=2)
    assert "auto, grounded-sam" in wrong.stderr
    silent = {"SLURM_CONF": str(fresh / "slurm.conf")}
    config = Path(slurm["SLURM_CONF"]).read_text()
    (fresh / "slurm.conf").write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=9", config) + "MessageTimeout=2\n")
    wrong = make("labelgen", "CLUSTER=slurm", cwd=fresh, env=silent, code=2)
    assert "SLURM does not answer" in wrong.stderr
    assert not (fresh / "data/labels").exists()


# -- pre-training ------------------------------------------------------------------------------------

RUN = "ARGS=--config cpu --set run.steps=10 --set run.batch=4 --set run.checkpoint_minutes=0 --set data.workers=0"
THREADS = {"OMP_NUM_THREADS": "1"}  # what torchrun sets, said aloud


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(status.parent.name))
    found, waiting = [], [pid]
    while waiting:
        found += (more := children.get(waiting.pop(), []))
        waiting += more
    return found


def _checkpoint(folder: Path) -> dict[str, Any]:
    import torch

    return torch.load(folder / "runs/cpu/last.pt", weights_only=True)


def _equal(a: Any, b: Any) -> bool:
    import torch

    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def uninterrupted(world: Path, make: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, from the first step to the last."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "data").symlink_to(world / "data")
    make("pretrain", "GPUS=2", RUN, cwd=folder, env=THREADS)
    assert _checkpoint(folder)["step"] == 10
    return folder


def test_two_processes_killed_and_run_again_end_where_uninterrupted_ones_do(
    uninterrupted: Path, world: Path, make: Run, tmp_path: Path
) -> None:
    (tmp_path / "data").symlink_to(world / "data")
    root = Path(__file__).resolve().parents[2]
    command = ["make", "pretrain", "GPUS=2", RUN, f"WORKDIR={tmp_path}", f"PYTHON_IN_VENV={sys.executable}"]
    process = subprocess.Popen([*command, "-o", "setup"], cwd=root, env={**os.environ, **THREADS})
    rows = tmp_path / "runs/cpu/steps.csv"
    while not (rows.is_file() and len(rows.read_text().splitlines()) >= 4):
        assert process.poll() is None
        time.sleep(0.02)
    for pid in [process.pid, *_descendants(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert 0 < _checkpoint(tmp_path)["step"] < 10
    done = make("pretrain", "GPUS=2", RUN, cwd=tmp_path, env=THREADS)
    assert "resumed from" in done.stdout and done.stdout.count("steps per second") == 1
    a, b = _checkpoint(uninterrupted), _checkpoint(tmp_path)
    assert a["step"] == b["step"] == 10
    for part in ("backbone_state", "heads_state", "vmf_state", "optimizer_state"):
        assert _equal(a[part], b[part]), part


def test_two_machines_of_slurm_train_what_two_processes_of_one_machine_do(
    slurm: dict[str, str], uninterrupted: Path, world: Path, make: Run, tmp_path: Path
) -> None:
    (tmp_path / "data").symlink_to(world / "data")
    variables = ("CLUSTER=slurm", "PARTITION=main", "NODES=2", "GPUS=1", "SUBMIT_ARGS=--wait", RUN)
    make("pretrain", *variables, cwd=tmp_path, env={**slurm, **THREADS})
    a, b = _checkpoint(uninterrupted), _checkpoint(tmp_path)
    for part in ("backbone_state", "heads_state", "vmf_state", "optimizer_state"):
        assert _equal(a[part], b[part]), part
