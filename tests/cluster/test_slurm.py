"""What is asked of SLURM, by its commands' arguments; a real SLURM is in test_slurm_soak.py."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from olivine.cluster import slurm
from olivine.cluster.slurm import SlurmSettings, submit
from olivine.common import OlivineError
from olivine.train.settings import load_settings

ROOT = Path(slurm.__file__).parents[1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments of each sbatch on a cluster of machines with 8 GPUs."""
    found: list[list[str]] = []

    def run(command: list[str], environment: object = None) -> subprocess.CompletedProcess[str]:
        found.extend([command] if command[0] == "sbatch" else [])
        return subprocess.CompletedProcess(command, 0, "77\n" if command[0] == "sbatch" else "gpu* 4 gpu:8\n", "")

    monkeypatch.setattr(slurm, "_run", run)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    return found


def test_pre_training_asks_for_the_cores_of_its_processes_and_their_loaders(
    asked: list[list[str]], tmp_path: Path
) -> None:
    command = ["pretrain", "--config", "cpu", "--shards", str(tmp_path / "train"), "--out", str(tmp_path / "run")]
    command += ["--set", "run.batch=32", "--set", "run.group=1"]
    submit(command, SlurmSettings(nodes=2, gpus=8))
    workers = load_settings("cpu").data.workers
    assert f"--cpus-per-task={8 * (1 + workers)}" in asked[0] and "--gpus-per-node=8" in asked[0]
    submit([*command, "--set", "data.workers=2"], SlurmSettings(gpus=8))
    assert "--cpus-per-task=24" in asked[1]
    submit(command, SlurmSettings(gpus=8, cpus=32))
    assert "--cpus-per-task=32" in asked[2]


def test_a_run_for_gpus_takes_the_preset_for_gpus_wherever_it_is_submitted_and_its_batch_divides(
    asked: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    submit(["pretrain", "--shards", "train", "--config", "auto"], SlurmSettings(nodes=2, gpus=2))
    assert asked[-1][-2:] == ["--config", "paper"] and any("runs/paper.logs/" in word for word in asked[-1])
    with pytest.raises(OlivineError, match=r"--nodes 2 --gpus 8: .*over 16 processes\. Take 1 or 2 or 4 in all"):
        submit(["pretrain", "--shards", "train"], SlurmSettings(nodes=2, gpus=8))
    assert len(asked) == 1


def test_one_gpu_that_is_asked_for_is_one() -> None:
    for gpus, one in ((0, False), (1, True), (2, False)):
        told = subprocess.run(["make", "-n", "pretrain", f"GPUS={gpus}"], cwd=ROOT, capture_output=True, text=True)
        assert ("pretrain --set run.devices=1 --shards" in told.stdout) is one, told.stdout + told.stderr
