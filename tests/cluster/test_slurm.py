"""What is asked of SLURM, by its commands' arguments; a real SLURM is in test_slurm_soak.py."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from olivine.cluster import slurm
from olivine.cluster.slurm import SlurmSettings, submit
from olivine.train.settings import load_settings


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
    submit(command, SlurmSettings(nodes=2, gpus=8))
    workers = load_settings("cpu").data.workers
    assert f"--cpus-per-task={8 * (1 + workers)}" in asked[0] and "--gpus-per-node=8" in asked[0]
    submit([*command, "--set", "data.workers=2"], SlurmSettings(gpus=8))
    assert "--cpus-per-task=24" in asked[1]
    submit(command, SlurmSettings(gpus=8, cpus=32))
    assert "--cpus-per-task=32" in asked[2]
