"""Promises of training by several processes: what they compute together is what one computes alone."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from olivine.common import OlivineError, digest
from olivine.common.settings import settings_to_plain
from olivine.common.together import check_same_start
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
from olivine.common.ahead import THREADED
from olivine.train.loop import pretrain
from olivine.train.settings import read_settings
for name, settings in json.loads(sys.argv[1]).items():
    if name == "both":  # with a thread that makes each next pass ready, as on GPUs
        THREADED.add("cpu")
    try:
        pretrain(read_settings(settings, "test"), Path(sys.argv[2]) / name)
    except OlivineError as error:
        print("REFUSED", name, error)
"""


@pytest.fixture(scope="module")
def settings(small_shards: Path, small_settings: Settings) -> PretrainSettings:
    # In double precision, so that a difference would be one of method: in float32 the weight gradients of a sparse
    # U-Net differ by some 1e-4 with the order of additions alone.
    return small_settings(small_shards, "run.steps=4", "run.precision=64-true", "optimizer.lr=0.02")


@pytest.fixture(scope="module")
def both(settings: PretrainSettings, make_shards: Callable[..., Path]) -> PretrainSettings:
    """The run over two sets, of two cameras and of one."""
    other = make_shards({"a": 3}, seed=5, classes=("tree", "road", "person", "car"), kitti=True)
    return replace(settings, data=replace(settings.data, shards={str(settings.data.shards): 1.0, str(other): 1.5}))


@pytest.fixture(scope="module")
def by_two(
    settings: PretrainSettings,
    make_shards: Callable[..., Path],
    small_settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str]:
    """The run, then one on one shard; see :func:`in_two_processes`."""
    runs = {"run": settings, "one-shard": small_settings(make_shards({"a": 4}))}
    return in_two_processes(runs, tmp_path_factory.mktemp("two"))


def in_two_processes(runs: dict[str, PretrainSettings], folder: Path) -> tuple[Path, str]:
    """Runs by two processes on this machine, through torchrun and gloo, which starts once.

    The folder of their runs, and what they printed.
    """
    (folder / "program.py").write_text(PROGRAM)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    plain = json.dumps({name: settings_to_plain(value) for name, value in runs.items()})
    done = subprocess.run(
        [*torchrun, str(folder / "program.py"), plain, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def test_two_processes_of_one_group_are_one_process_of_two_groups(
    settings: PretrainSettings, by_two: tuple[Path, str], tmp_path: Path
) -> None:
    pretrain(settings, tmp_path)
    check_same(tmp_path, by_two[0] / "run")


@pytest.mark.soak
def test_so_are_those_over_two_sets_with_the_thread_that_prepares_passes(
    both: PretrainSettings, tmp_path: Path
) -> None:
    pretrain(both, tmp_path / "one")
    (tmp_path / "two").mkdir()
    check_same(tmp_path / "one", in_two_processes({"both": both}, tmp_path / "two")[0] / "both")


def check_same(*folders: Path) -> None:
    one, two = (load_checkpoint(folder) for folder in folders)
    for part in ("backbone_state", "method_state"):
        for key, value in one[part].items():
            torch.testing.assert_close(two[part][key], value, rtol=1e-5, atol=1e-7, msg=lambda m, n=key: f"{n}: {m}")
    tables = []
    for folder in folders:
        with open(folder / "steps.csv", newline="") as handle:
            tables.append(list(csv.DictReader(handle)))
    assert len(tables[0]) == len(tables[1]) == 4
    for a, b in zip(*tables):
        assert a["pairs"] == b["pairs"]
        assert a["share/car"] == b["share/car"]
        for column in ("loss", "loss_ppkt", "loss_wcd", "gradient_norm"):
            assert float(b[column]) == pytest.approx(float(a[column]), rel=1e-5), column


def test_more_processes_than_shards_are_refused(by_two: tuple[Path, str]) -> None:
    folder, said = by_two
    assert "REFUSED one-shard" in said and "2 processes for 1 shards" in said and "REFUSED run" not in said
    assert not (folder / "one-shard" / "last.pt").exists()


FAILING = """
import sys, time
from olivine import cli
from olivine.common import OlivineError
from olivine.train.forward import Distiller
import torch.distributed as dist
true = Distiller.forward

def forward(self, *arguments):
    if dist.get_rank() == int(FAILS):
        raise OlivineError("this frame is broken", where="here")
    time.sleep(300)  # stands for a collective of NCCL, which waits for the one that failed

Distiller.forward = forward
cli.main()
"""


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_an_error_in_one_process_ends_all_and_is_told_once(rank: int, small_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(FAILING.replace("FAILS", repr(rank)))
    small = ["backbone.name=srunet-small", "image.encoder=small", "run.batch=2", "run.group=1", "run.devices=2"]
    changes = [word for change in (*small, "run.accelerator=cpu") for word in ("--set", change)]
    done = subprocess.run(
        [
            sys.executable,
            tmp_path / "program.py",
            "pretrain",
            "--shards",
            small_shards,
            "--out",
            tmp_path / "run",
            *changes,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("olivine: ")]
    assert len(lines) == 1, done.stderr
    assert "here: this frame is broken" in lines[0]
    assert f"in process {rank} of 2" in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("step", "data", "says"),
    [
        (4, "its shards", ""),
        (0, "its shards", "process 1 goes on from step 0 and process 0 from step 4"),
        (4, "others", "process 1 has opened other shards than process 0"),
    ],
)
def test_processes_that_go_on_from_different_steps_or_shards_all_refuse(step: int, data: str, says: str) -> None:
    mine, other = [4, int(digest("its shards")[:15], 16)], [step, int(digest(data)[:15], 16)]
    for own in (mine, other):  # each process gathers both
        fabric = SimpleNamespace(world_size=2, device="cpu", all_gather=lambda _: torch.tensor([mine, other]))
        arguments = (fabric, own[0], "its shards" if own is mine else data)
        if not says:
            check_same_start(*arguments)  # type: ignore[arg-type]
            continue
        with pytest.raises(OlivineError, match=f"{says}.*share under one path"):
            check_same_start(*arguments)  # type: ignore[arg-type]
