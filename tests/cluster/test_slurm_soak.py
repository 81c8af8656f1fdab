"""A real SLURM of two machines on this host, and the make targets on it."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from olivine.cluster.slurm import has_jobs

pytestmark = pytest.mark.soak

Run = Callable[..., Any]
Contents = Callable[[Path], dict[str, bytes]]
SLURM = ("CLUSTER=slurm", "PARTITION=main", "NODES=2", "SUBMIT_ARGS=--wait --parts 3")


def test_arrays_make_what_one_process_makes(
    slurm: dict[str, str],
    make: Run,
    olivine: Run,
    world: Path,
    fresh: Path,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = make("labelgen", *SLURM, cwd=fresh, env=slurm)
    assert re.search(r"array\s+0-2\n", done.stdout), done.stdout
    make("build-pairs", *SLURM[:-1], "SUBMIT_ARGS=--parts 3", cwd=fresh, env=slurm)  # not waited for, but watched
    watched = olivine("status", "data/pairs/nuscenes", "--watch", cwd=fresh, env=slurm)
    assert watched.stdout.count("waiting                  0") == 2 and "nobody works" not in watched.stdout
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    while has_jobs():  # the job that merges
        time.sleep(0.2)
    for made in ("labels/nuscenes", "pairs/nuscenes"):
        here, there = contents(world / "data" / made), contents(fresh / "data" / made)
        assert here == there
    again = make("build-pairs", *SLURM, cwd=fresh, env=slurm)
    assert "jobs" not in again.stdout  # nothing is left, so nothing is submitted
    status = make("status", cwd=fresh)
    assert status.stdout.count("running                  0") == 3


def test_a_task_that_fails_fails_the_job_after_it_and_once_mended_it_alone_is_done_again(
    slurm: dict[str, str], make: Run, olivine: Run, world: Path, fresh: Path, contents: Contents
) -> None:
    shutil.copytree(world / "data/labels", fresh / "data/labels")
    shutil.rmtree(fresh / "data/labels/nuscenes/frames")  # the index knows where the data set lay
    olivine("labelgen", cwd=fresh)  # makes the index; the maps are as good
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
