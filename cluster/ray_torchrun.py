"""Pre-training on the machines of a Ray cluster: Ray finds them, torchrun does the rest."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..common import Failure, OlivineError
from .journal import logs_of
from .plan import ask_stage
from .ray_actors import RayCluster
from .ticket import Ticket

PATIENCE = 60.0  # seconds to wait for machines
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


def launch(command: Sequence[str], nodes: int, processes: int, address: str | None) -> LaunchSummary:
    """Run ``olivine pretrain`` by torchrun, with ``processes`` on each of ``nodes`` machines.

    Args:
        command: ``pretrain`` and its options; its folders must be shared.
        address: of the cluster; None starts one on this machine.

    Raises:
        OlivineError: no cluster answers, it has no such machines, or one of them lacks a folder or a package.
    """
    if not command or command[0] != "pretrain":
        raise OlivineError(f"cannot launch {' '.join(command) or 'nothing'}", remedy="pretrain with its options")
    out = Path(ask_stage([*command, "--dry-run", "--json"])["out"])
    ray = RayCluster(address).connect()
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    gpu = {"GPU": processes} if ray.cluster_resources().get("GPU", 0) >= 1 else {}
    group = placement_group([{"CPU": processes, **gpu}] * nodes, strategy="STRICT_SPREAD" if nodes > 1 else "PACK")
    if not ray.wait([group.ready()], timeout=PATIENCE)[0]:
        what = f"{nodes} machines with {processes} {'GPUs' if gpu else 'cores'} each"
        raise OlivineError(f"the Ray cluster has no room for {what}", remedy="look at it with: ray status")
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
