"""Pre-training by several processes through the make target: killed and run again, on SLURM's machines, on Ray's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from olivine.cluster.ray_actors import RayCluster
from olivine.cluster.ray_torchrun import launch
from olivine.common import OlivineError

pytestmark = pytest.mark.soak

Run = Callable[..., Any]
# Large voxels and small pictures: what is compared is bits, and any network has them.
SMALL = "--set voxels.size_m=0.5 --set image.height=56 --set image.width=104"
RUN = (
    f"ARGS=--config cpu {SMALL} --set run.steps=6 --set run.batch=4 --set run.checkpoint_minutes=0 --set data.workers=0"
)
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
    assert _checkpoint(folder)["step"] == 6
    return folder


def test_two_processes_killed_and_run_again_end_where_uninterrupted_ones_do(
    uninterrupted: Path, world: Path, make: Run, tmp_path: Path
) -> None:
    (tmp_path / "data").symlink_to(world / "data")
    root = Path(__file__).resolve().parents[2]
    command = ["make", "pretrain", "GPUS=2", RUN, f"WORKDIR={tmp_path}", f"PYTHON_IN_VENV={sys.executable}"]
    process = subprocess.Popen([*command, "-o", "setup"], cwd=root, env={**os.environ, **THREADS})
    rows = tmp_path / "runs/cpu/steps.csv"
    while not (rows.is_file() and len(rows.read_text().splitlines()) >= 3):
        assert process.poll() is None
        time.sleep(0.02)
    for pid in [process.pid, *_descendants(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert 0 < _checkpoint(tmp_path)["step"] < 6
    done = make("pretrain", "GPUS=2", RUN, cwd=tmp_path, env=THREADS)
    assert "resumed from" in done.stdout and done.stdout.count("steps per second") == 1
    a, b = _checkpoint(uninterrupted), _checkpoint(tmp_path)
    assert a["step"] == b["step"] == 6
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


def test_two_machines_of_ray_train_what_two_processes_of_one_machine_do(
    cluster: Any, uninterrupted: Path, world: Path, make: Run, tmp_path: Path
) -> None:
    (tmp_path / "data").symlink_to(world / "data")
    variables = ("CLUSTER=ray", f"ADDRESS={cluster.address}", RUN)
    crowded = make("pretrain", *variables, "NODES=2", "GPUS=2", cwd=tmp_path, env=THREADS, code=2)
    assert "no room for 2 machines with 2 cores each: it has 2 machines with 1 core. Ask for" in crowded.stderr
    make("pretrain", *variables, "NODES=2", "GPUS=1", cwd=tmp_path, env=THREADS)
    a, b = _checkpoint(uninterrupted), _checkpoint(tmp_path)
    for part in ("backbone_state", "heads_state", "vmf_state", "optimizer_state"):
        assert _equal(a[part], b[part]), part


def test_machines_at_other_work_are_waited_for_and_that_is_said(
    cluster: Any, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RayCluster(cluster.address).connect()
    from ray.util.placement_group import placement_group

    monkeypatch.chdir(world)
    assert placement_group([{"CPU": 1}]).wait(30)
    said: list[str] = []
    with pytest.raises(OlivineError, match="did not have 2 machines with 1 core each free within 1 s"):
        launch(["pretrain", "--config", "cpu"], 2, 1, cluster.address, say=said.append, patience=1)
    assert said == ["the Ray cluster is at other work; waiting up to 1 s for 2 machines with 1 core each"]
