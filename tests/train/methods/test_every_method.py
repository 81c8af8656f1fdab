"""Promises that every pre-training method keeps: it learns, it resumes to the bit, two processes are one."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from olivine.common.settings import settings_to_plain
from olivine.train.checkpoint import load_checkpoint
from olivine.train.loop import pretrain
from olivine.train.settings import PretrainSettings

Quick = Callable[..., PretrainSettings]

#: A preset, and what makes it learn from so few frames in so few steps.
METHODS = {
    "ppkt": ("method.pairs=300", "optimizer.lr=0.1"),
    "slidr": ("optimizer.lr=0.1",),
    "st-slidr": ("optimizer.lr=0.1", "method.quantile=0.05"),
    "seal": ("optimizer.lr=0.1", "method.classes_weight=0.5"),
    "distil": ("optimizer.lr=0.003",),
}
#: Its loss and its resuming are promised in test_uov_tmp.py.
TOGETHER = {**METHODS, "uov-tmp": ("optimizer.lr=0.1",)}


def rows(path: Path) -> list[dict[str, str]]:
    with open(path / "steps.csv", newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize("preset", METHODS)
def test_every_term_of_the_loss_falls(preset: str, streets: Path, quick: Quick, tmp_path: Path) -> None:
    # Twelve: each step reads other frames, and after nine these still differ by more than Seal's class loss falls.
    pretrain(quick(preset, streets, *METHODS[preset], "run.steps=12"), tmp_path / "run")
    table = rows(tmp_path / "run")
    terms = [name for name in table[0] if name.startswith("loss_")]
    assert terms
    for name in terms:
        loss = [float(row[name]) for row in table if row[name]]
        assert np.mean(loss[-4:]) < 0.97 * np.mean(loss[:4]), name


# PPKT and ST-SLidR keep nothing that OLIVINE (test_loop.py) and SLidR do not.
@pytest.mark.parametrize(
    "preset", [pytest.param(m, marks=[pytest.mark.soak] * (m in ("ppkt", "st-slidr"))) for m in METHODS]
)
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    preset: str, streets: Path, quick: Quick, resumes_to_the_bit: Callable[..., None], tmp_path: Path
) -> None:
    resumes_to_the_bit(quick(preset, streets, *METHODS[preset], "run.steps=3"), tmp_path)


PROGRAM = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from olivine.train.loop import pretrain
from olivine.train.settings import read_settings
for name, settings in json.loads(sys.argv[1]).items():
    pretrain(read_settings(settings, name), Path(sys.argv[2]) / name)
"""


@pytest.fixture(scope="module")
def together(
    streets: Path, streets_with_regions: Path, quick: Quick, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Folders of the same runs by one process and by two; torchrun starts once for all of them."""
    folder = tmp_path_factory.mktemp("processes")
    # In double precision, so that a difference would be one of method.
    changes = ("run.steps=3", "run.group=1", "run.precision=64-true", "optimizer.lr=0.01")
    settings = {
        preset: quick(preset, streets_with_regions if preset == "uov-tmp" else streets, *TOGETHER[preset], *changes)
        for preset in TOGETHER
    }
    for preset in TOGETHER:
        pretrain(settings[preset], folder / "one" / preset)
    program = folder / "program.py"
    program.write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    plain = {preset: settings_to_plain(value) for preset, value in settings.items()}
    done = subprocess.run(
        [*torchrun, json.dumps(plain), str(folder / "two")],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[:3000]
    return folder / "one", folder / "two"


@pytest.mark.soak
@pytest.mark.parametrize("preset", TOGETHER)
def test_two_processes_of_one_group_are_one_process_of_two_groups(preset: str, together: tuple[Path, Path]) -> None:
    one, two = (load_checkpoint(folder / preset) for folder in together)
    for part in ("backbone_state", "method_state"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    for a, b in zip(*(rows(folder / preset) for folder in together), strict=True):
        for column in ("loss", "pairs", "gradient_norm"):
            assert float(b[column]) == pytest.approx(float(a[column]), rel=1e-5), column
