"""Pre-training on the machines of a Ray cluster: Ray finds them, torchrun does the rest."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..common import Failure, OlivineError
from .journal import logs_of
from .plan import ask_stage
from .ray_actors import RayCluster
from .ticket import Ticket

PATIENCE = 60.0  # seconds to wait for machines that are at other work
PACKAGES = ("olivine", "torch", "numpy", "lightning-fabric")


@dataclass
class LaunchSummary:
    """What became of a run.

    Attributes:
        out: the run's folder.
        nodes, processes: machines, and processes on each.
        logs: what each machine printed.
        failures: machines whose part failed; the same command goes on from the last checkpoint.
    """

    out: Path
    nodes: int
    processes: int
    logs: Path
    failures: list[Failure] = field(default_factory=list)


def launch(
    command: Sequence[str],
    nodes: int,
    processes: int,
    address: str | None,
    *,
    say: Callable[[str], object] = lambda text: None,
    patience: float = PATIENCE,
) -> LaunchSummary:
    """Run ``olivine pretrain`` by torchrun, with ``processes`` on each of ``nodes`` machines.

    Args:
        command: ``pretrain`` and its options; its folders must be shared.
        address: of the cluster; None starts one on this machine.
        say: told that machines are waited for, and how long.
        patience: seconds to wait for machines that are at other work.

    Raises:
        OlivineError: no cluster answers, it has no such machines, or one of them lacks a folder or a package.
    """
    if not command or command[0] != "pretrain":
        raise OlivineError(f"cannot launch {' '.join(command) or 'nothing'}", remedy="pretrain with its options")
    out = Path(ask_stage([*command, "--dry-run", "--json"])["out"])
    ray = RayCluster(address).connect()
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpu = any(machine.get("GPU", 0) >= 1 for machine in machines)
    what = check_room(machines, nodes, processes)
    needs = {"CPU": processes, **({"GPU": processes} if gpu else {})}
    group = placement_group([needs] * nodes, strategy="STRICT_SPREAD" if nodes > 1 else "PACK")
    if not group.wait(2):
        say(f"the Ray cluster is at other work; waiting up to {patience:g} s for {what}")
        if not group.wait(patience):
            remedy = "wait until other jobs have ended, or ask for less; look at it with: ray status"
            raise OlivineError(f"the Ray cluster did not have {what} free within {patience:g} s", remedy=remedy)
    summary = LaunchSummary(out, nodes, processes, logs_of(out))
    summary.logs.mkdir(parents=True, exist_ok=True)
    ticket = Ticket.issue((Path.cwd(),), PACKAGES, summary.logs)

    def on(node: int, function: object) -> object:
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node)
        needs = {"num_cpus": processes, "num_gpus": processes if gpu else 0}
        return ray.remote(max_retries=0, scheduling_strategy=place, **needs)(function)

    places = ray.get([on(node, _place).remote(ticket) for node in range(nodes)])  # type: ignore[attr-defined]
    for problem in (place[1] for place in places if place[1] is not None):
        raise problem
    meeting = places[0][0]
    torchrun = [f"--nnodes={nodes}", f"--nproc-per-node={processes}"]
    torchrun += [f"--master-addr={meeting[0]}", f"--master-port={meeting[1]}"]
    threads, folder = os.environ.get("OMP_NUM_THREADS"), Path.cwd()
    parts = []
    for node in range(nodes):
        arguments = [*torchrun, f"--node-rank={node}", "-m", "olivine.cli", *command]
        log = (summary.logs / f"node-{node}.log").absolute()
        parts.append(on(node, _torchrun).remote(arguments, folder, log, threads))  # type: ignore[attr-defined]
    for node, part in enumerate(parts):
        try:
            code = ray.get(part)
        except ray.exceptions.RayError as error:
            reason = f"went away ({type(error).__name__})"
        else:
            reason = f"ended with exit code {code}" if code else ""
        if reason:
            text = f"{reason}; see {summary.logs / f'node-{node}.log'}, and run the command again to go on"
            summary.failures.append(Failure(f"machine {node}", text))
    return summary


def check_room(machines: Iterable[Mapping[str, float]], nodes: int, processes: int) -> str:
    """What is asked for, in words; raises where the whole cluster, idle, could not give it.

    Nothing that a running job does can fix that, so nobody is kept waiting for it.

    Args:
        machines: what each living machine of the cluster has, as Ray counts: ``CPU``, ``GPU``.
    """
    if nodes < 1:
        raise OlivineError(f"--nodes {nodes}", remedy="give at least 1")
    rooms = [(int(machine.get("CPU", 0)), int(machine.get("GPU", 0))) for machine in machines]
    gpu = any(gpus for _, gpus in rooms)
    noun = "GPU" if gpu else "core"

    def words(count: int, room: int) -> str:
        return f"{count} machine{'s' * (count != 1)} with {room} {noun}{'s' * (room != 1)}"

    # With GPUs, each process takes a core too.
    places = [min(room) if gpu else room[0] for room in rooms]
    what = words(nodes, processes) + " each" * (nodes != 1)
    if sum(room >= processes for room in places) < nodes:
        there = Counter(room for room in places if room)
        has = ", ".join(words(count, room) for room, count in sorted(there.items())) or f"no {noun} to give"
        remedy = "ask for no more than that, or start Ray on more machines with: ray start --address=HEAD:PORT"
        raise OlivineError(f"the Ray cluster has no room for {what}: it has {has}", remedy=remedy)
    return what


def _place(ticket: Ticket) -> tuple[tuple[str, int], OlivineError | None]:
    """Where the processes can meet: this machine's address and a free port."""
    import ray

    try:
        ticket.check()
    except OlivineError as error:
        return ("", 0), error
    with socket.socket() as probe:
        probe.bind(("", 0))
        return (ray.util.get_node_ip_address(), probe.getsockname()[1]), None


def _torchrun(arguments: list[str], folder: Path, log: Path, threads: str | None) -> int:
    """One machine's part; returns its exit code."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # that was Ray's
    environment |= {"OMP_NUM_THREADS": threads} if threads else {}
    with open(log, "ab") as output:
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *arguments],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,
            check=False,
        ).returncode


def _end_with_parent() -> None:
    """Have the kernel end this process when Ray's worker is gone, which may be killed at any time."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
