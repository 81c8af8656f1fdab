"""Promises of training by several processes: what they compute together is what one computes alone."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from olivine.common.settings import settings_to_plain
from olivine.train.checkpoint import load_checkpoint
from olivine.train.loop import pretrain
from olivine.train.settings import PretrainSettings

Settings = Callable[..., PretrainSettings]

PROGRAM = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from olivine.common import OlivineError
from olivine.train.loop import pretrain
from olivine.train.settings import read_settings
try:
    pretrain(read_settings(json.loads(sys.argv[1]), "test"), Path(sys.argv[2]))
except OlivineError as error:
    print("REFUSED", error)
    sys.exit(2)
"""


def run_two(settings: PretrainSettings, out: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """The run by two processes on this machine, through torchrun and gloo."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*torchrun, str(program), json.dumps(settings_to_plain(settings)), str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_processes_of_one_group_are_one_process_of_two_groups(
    small_shards: Path, small_settings: Settings, tmp_path: Path
) -> None:
    # In double precision, so that a difference would be one of method: in float32 the weight gradients of a sparse
    # U-Net differ by some 1e-4 with the order of additions alone.
    changes = ("run.steps=4", "run.precision=64-true", "optimizer.lr=0.02")
    settings = small_settings(small_shards, *changes)
    pretrain(settings, tmp_path / "one")
    done = run_two(settings, tmp_path / "two", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = load_checkpoint(tmp_path / "one"), load_checkpoint(tmp_path / "two")
    for part in ("backbone_state", "method_state"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    tables = []
    for name in ("one", "two"):
        with open(tmp_path / name / "steps.csv", newline="") as handle:
            tables.append(list(csv.DictReader(handle)))
    assert len(tables[0]) == len(tables[1]) == 4
    for a, b in zip(*tables):
        assert a["pairs"] == b["pairs"]
        assert a["share/car"] == b["share/car"]
        for column in ("loss", "loss_ppkt", "loss_wcd", "gradient_norm"):
            assert float(b[column]) == pytest.approx(float(a[column]), rel=1e-5), column


def test_more_processes_than_shards_are_refused(
    make_shards: Callable[..., Path], small_settings: Settings, tmp_path: Path
) -> None:
    done = run_two(small_settings(make_shards({"a": 4})), tmp_path / "run", tmp_path)
    assert done.returncode != 0
    assert "REFUSED" in done.stdout and "2 processes for 1 shards" in done.stdout
