"""Jobs for any engine; a real SLURM of two machines and a real Ray cluster, on this host."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from olivine.cluster.work import Job, WorkUnit
from olivine.common import remove_leftovers

HELPERS = Path(__file__).parent / "helpers"
sys.path.insert(0, str(HELPERS))  # worker processes inherit it

from cluster_functions import Task, Work  # noqa: E402

LOOPBACK = "127.0.0.2"  # Ray replaces 127.0.0.1 by the machine's outer address
ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job that writes into ``tmp_path / "out"``."""
    out = tmp_path / "out"
    out.mkdir()
    return Job(
        "test", partial(Work, out), paths=(out,), packages=("olivine",), lost=lambda name: remove_leftovers(out, name)
    )


@pytest.fixture(scope="session")
def units() -> Callable[..., list[WorkUnit]]:
    """``units(4, {2: "raise"})``: four units, the third of which fails."""

    def make(count: int, do: dict[int, str] | None = None, seconds: float = 0.0) -> list[WorkUnit]:
        return [WorkUnit(f"unit-{k}", 1, Task(k, (do or {}).get(k, "right"), seconds)) for k in range(count)]

    return make


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, by name; without the frame index's table, which says where the data set lies."""
    return lambda path: {
        str(f.relative_to(path)): f.read_bytes()
        for f in sorted(path.rglob("*"))
        if f.is_file() and f.parts[-2:] != ("frames", "index.json")
    }


@pytest.fixture(scope="session")
def olivine() -> Run:
    """Run a command in ``cwd`` and expect ``code``."""

    def run(*arguments: object, cwd: Path, code: int = 0, env: dict[str, str] | None = None) -> object:
        command = [sys.executable, "-m", "olivine.cli", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done

    return run  # type: ignore[return-value]


@pytest.fixture(scope="session")
def make() -> Run:
    """Run a make target of this repository on the folder ``cwd``, and expect ``code``."""

    def run(target: str, *variables: str, cwd: Path, code: int = 0, env: dict[str, str] | None = None) -> object:
        # What `make setup` does is not under test: the environment is the one that the tests run in.
        command = ["make", target, f"WORKDIR={cwd}", f"OLIVINE={sys.executable} -m olivine.cli", *variables]
        command += [f"PYTHON_IN_VENV={sys.executable}", "-o", "setup", "-o", ".venv/.installed-cluster"]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, f"{target} {variables}\n{done.stdout}\n{done.stderr}"
        return done

    return run  # type: ignore[return-value]


@pytest.fixture(scope="session")
def world(olivine: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic data set, and what the local executor makes of it by the default paths."""
    folder = tmp_path_factory.mktemp("world")
    olivine("synth", "--scenes", 6, "--frames", 2, "--image-scale", 0.1, "--out", "data/nuscenes", cwd=folder)
    olivine("labelgen", cwd=folder)
    olivine("build-pairs", cwd=folder)
    return folder


@pytest.fixture
def fresh(world: Path, tmp_path: Path) -> Path:
    """A folder with the same data set, a copy, and nothing made of it."""
    shutil.copytree(world / "data/nuscenes", tmp_path / "fresh/data/nuscenes")
    return tmp_path / "fresh"


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Any]:
    """The head of a Ray cluster on this machine, without cores to give."""
    pytest.importorskip("ray", reason="no Ray here: pip install 'olivine[cluster]'")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Nodes inherit the path on which the tests' functions are.
    os.environ["PYTHONPATH"] = ":".join(filter(None, [str(HELPERS), os.environ.get("PYTHONPATH")]))
    head = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "node_ip_address": LOOPBACK})
    yield head
    head.shutdown()


@pytest.fixture
def cluster(ray_head: Any) -> Iterator[Any]:
    """The head, and two nodes of one core each: those that other tests left, and new ones; this process is no driver."""
    import ray

    for _ in range(2 - len(ray_head.worker_nodes)):
        ray_head.add_node(num_cpus=1, node_ip_address=LOOPBACK)
    ray_head.wait_for_nodes()  # also until those that tests removed are known to be gone
    yield ray_head
    ray.shutdown()


@pytest.fixture(scope="session")
def slurm() -> Iterator[dict[str, str]]:
    """SLURM with munge: one controller and two machines of one core each, all on the loopback address.

    Yields the environment in which its commands find it. Nothing outside a folder of its own is touched.
    """
    daemons = {name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in
               ("slurmctld", "slurmd", "munged", "sbatch")}  # fmt: skip
    if absent := [name for name, path in daemons.items() if path is None]:
        pytest.skip(f"no SLURM here ({', '.join(absent)}): apt-get install slurm-wlm munge")
    if os.geteuid():
        pytest.skip("SLURM's daemons need root")
    folder = Path(tempfile.mkdtemp(prefix="olivine-slurm-"))
    folder.chmod(0o755)  # munge's clients may be anybody, and pytest's own folders are closed to them
    key, munge = folder / "munge.key", folder / "munge.socket"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    ports = _free_ports(3)
    host = socket.gethostname().split(".")[0]
    lines = [
        "ClusterName=olivine", f"SlurmctldHost={host}(127.0.0.1)", "SlurmUser=root", "SlurmdUser=root",
        "AuthType=auth/munge", f"AuthInfo=socket={munge}", f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool.%n", f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd.%n.pid", f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/slurmd.%n.log", f"SlurmctldPort={ports[0]}", "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none", "SelectType=select/cons_tres", "ReturnToService=2",
        "SchedulerParameters=batch_sched_delay=0,sched_interval=2",
        f"NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=2000",
        f"NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=2000",
        "PartitionName=main Nodes=one,two Default=YES State=UP",
    ]  # fmt: skip
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    env = {"SLURM_CONF": str(folder / "slurm.conf")}
    files = [f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("pid-file", "log-file", "seed-file")]
    commands = [[daemons["munged"], f"--key-file={key}", f"--socket={munge}", *files], [daemons["slurmctld"]]]
    commands += [[daemons["slurmd"], "-N", node] for node in ("one", "two")]
    try:
        for command in commands:
            subprocess.run(command, check=True, env={**os.environ, **env})  # type: ignore[arg-type]
        for _ in range(60):
            states = subprocess.run(
                ["sinfo", "-h", "-N", "-o", "%t"],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, **env},
            )
            if states.stdout.split() == ["idle", "idle"]:
                break
            time.sleep(0.5)
        else:
            pytest.fail(f"SLURM does not come up: {states.stdout}{states.stderr}")
        yield env
    finally:
        subprocess.run(["scancel", "--user=root"], check=False, env={**os.environ, **env})
        for pid in [*sorted(folder.glob("slurm*.pid")), folder / "munge.pid"]:
            if pid.is_file():
                os.kill(int(pid.read_text()), signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
