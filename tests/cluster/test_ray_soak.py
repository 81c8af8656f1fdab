"""A real Ray cluster of several nodes on this machine: the same bytes, a node that goes away, workers that must not begin."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from olivine.cluster.journal import Journal
from olivine.cluster.work import Job, WorkUnit, execute
from olivine.common import OlivineError
from olivine.readers.index import open_index

pytestmark = pytest.mark.soak
ray = pytest.importorskip("ray", reason="no Ray here: pip install 'olivine[cluster]'")

Contents = Callable[[Path], dict[str, bytes]]
LOOPBACK = "127.0.0.2"


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _at_work(logs: Path, raylet: int) -> int | None:
    """The worker of a node that has begun a unit and not ended it."""
    for log in logs.glob("*.log"):
        lines = [line.split() for line in log.read_text().splitlines() if " begins" in line or " ends" in line]
        if lines and lines[-1][-1] == "begins" and _parent(pid := int(lines[-1][-2])) == raylet:
            return pid
    return None


def _kill_a_node_at_work(cluster: Any, logs: Path, process: subprocess.Popen[str]) -> None:
    node = min(cluster.worker_nodes, key=id)
    raylet = node.all_processes["raylet"][0].process.pid
    for _ in range(2400):
        if pid := _at_work(logs, raylet):
            os.kill(pid, signal.SIGSTOP)  # so that it does not finish meanwhile
            cluster.remove_node(node, allow_graceful=False)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # a stopped process may outlive its machine
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.025)
    raise AssertionError("the node was never at work")


def test_a_node_killed_in_the_middle_changes_no_byte(
    cluster: Any, world: Path, fresh: Path, contents: Contents, olivine: Callable[..., Any]
) -> None:
    for stage, logs, made in (
        ("labelgen", "labels/nuscenes.logs", "labels/nuscenes"),
        ("build-pairs", "pairs/nuscenes.logs/train", "pairs/nuscenes"),
    ):
        command = [sys.executable, "-m", "olivine.cli", stage, "--executor", "ray", "--address", cluster.address]
        process = subprocess.Popen(
            command, cwd=fresh, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            _kill_a_node_at_work(cluster, fresh / "data" / logs, process)
            said, errors = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == 0, said + errors
        tried = [path.read_text().count(" begins") for path in (fresh / "data" / logs).glob("*.log")]
        assert sorted(tried)[-2:] == [1, 2]  # one unit was given out again
        here, there = contents(world / "data" / made), contents(fresh / "data" / made)
        assert here == there
        cluster.add_node(num_cpus=1, node_ip_address=LOOPBACK)
    status = olivine("status", "--json", cwd=fresh)
    assert '"running": 0' in status.stdout


def test_a_unit_that_always_fails_is_set_aside_and_a_later_run_does_it_alone(
    cluster: Any, job: Job, units: Callable[..., list[WorkUnit]], tmp_path: Path
) -> None:
    from olivine.cluster.ray_actors import RayCluster

    place, out, logs = RayCluster(cluster.address), tmp_path / "out", tmp_path / "out.logs"
    with Journal(logs, "test", out, 6) as journal:
        row = units(6, {1: "raise", 3: "die", 4: "die once"})
        outcomes = {o.unit.key: o for o in execute(job, row, place, journal=journal)}
    assert sorted(key for key, o in outcomes.items() if o.error) == ["unit-1", "unit-3"]
    assert outcomes["unit-1"].error == "ValueError: number 1 is wrong (3 attempts)"
    assert "died" in outcomes["unit-3"].error
    assert not [p for p in out.iterdir() if "partial" in p.name]
    assert (logs / "unit-1.log").read_text().count("Traceback") == 3
    with Journal(logs, "test", out, 6) as journal:
        left = [unit for unit in units(6) if not (out / f"{unit.content.number}.txt").exists()]
        done = [o.unit.key for o in execute(job, left, place, journal=journal) if not o.error]
    assert sorted(done) == ["unit-1", "unit-3"]


def test_workers_with_other_packages_or_without_the_folder_are_refused_before_any_work(
    cluster: Any, fresh: Path, tmp_path: Path, olivine: Callable[..., Any]
) -> None:
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)
    here = ["--executor", "ray", "--address", cluster.address]
    other = tmp_path / "site/numpy-9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9\n")
    paths = {"PYTHONPATH": f"{tmp_path / 'site'}:{os.environ['PYTHONPATH']}"}
    node = cluster.add_node(num_cpus=1, node_ip_address=LOOPBACK, env_vars=paths)
    done = olivine("labelgen", *here, cwd=fresh, code=2)
    assert "has other packages: numpy 9.9" in done.stderr
    cluster.remove_node(node)

    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("hiding a folder from a node needs root and unshare")
    hide = f"mount -t tmpfs none {fresh} && exec {sys.executable} -m ray.scripts.scripts start --block " \
        f"--address={cluster.address} --num-cpus=1 --node-ip-address={LOOPBACK}"  # fmt: skip
    blind = subprocess.Popen(["unshare", "--mount", "sh", "-c", hide], cwd="/", stdout=subprocess.DEVNULL)
    try:
        done = olivine("labelgen", *here, cwd=fresh, code=2)
    finally:
        blind.terminate()
        blind.wait(30)
    assert "does not see this folder" in done.stderr and str(fresh) in done.stderr
    assert not (fresh / "data/labels/nuscenes/units").exists()


def _processes(mark: str) -> list[str]:
    """What runs of the processes that were started with this variable, and of all that they started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if mark.encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
    return found


@pytest.mark.parametrize("moment", ["while Ray starts", "under way"])
def test_ctrl_c_is_one_line_and_leaves_no_process_and_what_is_finished_is_kept(
    moment: str, world: Path, tmp_path: Path, contents: Contents, olivine: Callable[..., Any]
) -> None:
    shutil.copytree(world / "data/nuscenes", tmp_path / "data/nuscenes", symlinks=True)
    shutil.copytree(world / "data/labels", tmp_path / "data/labels")
    last = list(open_index(tmp_path / "data/labels/nuscenes/frames", tmp_path / "data/nuscenes").frames("train"))[-1]
    image = last.image_path(last.cameras[0])
    data = image.read_bytes()
    image.unlink()
    os.mkfifo(image)  # nobody writes to it: the last unit stays under way
    stage = ["build-pairs", "--root", "data/nuscenes", "--executor", "ray", "--workers", "2"]
    records, logs = tmp_path / "data/pairs/nuscenes/train/units", tmp_path / "data/pairs/nuscenes.logs/train"
    mark = f"OLIVINE_TEST={tmp_path}"
    process = subprocess.Popen(
        [sys.executable, "-m", "olivine.cli", *stage],
        cwd=tmp_path,
        env={**os.environ, "OLIVINE_TEST": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def reached() -> bool:
        if moment == "while Ray starts":
            return any("raylet" in name for name in _processes(mark))
        return len(list(records.glob("*.json"))) >= 2

    try:
        while not reached():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1, errors
    lines = [line for line in errors.splitlines() if not line.startswith("build-pairs: ")]  # those are of progress
    assert len(lines) == 1 and "run the same command again to go on" in lines[0], errors
    for _ in range(100):
        if not (left := _processes(mark)):
            break
        time.sleep(0.1)
    assert not left
    assert not [path for path in (tmp_path / "data/pairs").rglob("*") if ".partial-" in path.name]
    kept = {path.stem for path in records.glob("*.json")}

    image.unlink()
    image.write_bytes(data)
    olivine(*stage, cwd=tmp_path)
    begun = {path.stem: path.read_text().count(" begins") for path in logs.glob("*.log")}
    assert all(begun[name] == 1 for name in kept) and len(kept) < len(begun)
    here, there = contents(world / "data/pairs/nuscenes"), contents(tmp_path / "data/pairs/nuscenes")
    assert here == there


def test_a_cluster_without_cores_to_give_is_said(cluster: Any, job: Job, units: Callable[..., list[WorkUnit]]) -> None:
    from olivine.cluster.ray_actors import RayCluster

    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)
    with pytest.raises(OlivineError, match="no machine with a core to give"):
        list(execute(job, units(1), RayCluster(cluster.address)))


def test_a_program_that_is_no_ray_is_no_cluster() -> None:
    """Something listens there, and never answers as a cluster does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        program = f"from olivine.cluster.ray_actors import RayCluster; RayCluster({address!r}).connect()"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=200)
    assert "no Ray cluster answers" in done.stderr.splitlines()[-1], done.stderr[-2000:]
