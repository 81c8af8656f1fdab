"""Units done by the actors of a Ray cluster, or of a Ray started on this machine for the purpose.

An actor holds what the job made (the model) for as long as it lives and has one unit at a time. Retries are not Ray's but
the loop's in :mod:`.work`, which knows what became of every unit; an actor that died is replaced, wherever Ray finds room.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from ..common import OlivineError, ctrl_c_afterwards, writer_name
from .ticket import Ticket
from .work import Job, Pool, R, Reply, Runner, T, U, WorkUnit


@dataclass(frozen=True)
class RayCluster:
    """Ray as executor.

    Attributes:
        address: ``host:port`` of a cluster that this machine is a node of, ``auto``, ``ray://host:port``; None starts
            one on this machine.
        workers: actors; 0 for one a GPU where a worker holds a model (one a machine without GPUs), else one a core.
        patience: seconds to wait for a first worker.
    """

    address: str | None = None
    workers: int = 0
    patience: float = 60.0

    def pool(self, job: Job[U, R], logs: Path | None) -> Pool[U, R]:
        """Actors for a job."""
        ray = self.connect()
        return Actors(ray, job, logs, Ticket.of_driver(job.paths, job.packages, logs), self.workers, self.patience)

    def ask(self, function: Callable[[], T], paths: Sequence[Path], packages: Sequence[str]) -> T:
        """The function's value on a worker, with a GPU where there is one."""
        ray = self.connect()
        gpu = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        place = ray.remote(num_cpus=1, num_gpus=gpu)
        free = place(_nothing).remote()  # the question itself may take long: it reads weights
        if not ray.wait([free], num_returns=1, timeout=self.patience)[0]:
            ray.cancel(free, force=True)
            raise _none_free(self.patience)
        value, error = ray.get(place(_ask).remote(function, Ticket.issue(paths, packages)))
        if error is not None:
            raise error
        return value

    def connect(self) -> Any:
        """The module ``ray``, connected.

        Raises:
            OlivineError: Ray is not installed, or no cluster answers.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if self.address is not None:
            # Where something answers that is no cluster: one attempt of 20 s, not 20 of 40 s.
            os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
            os.environ.setdefault("RAY_py_gcs_connect_timeout_s", "10")
        try:
            import ray
        except ImportError:
            raise OlivineError("Ray is not installed", remedy="pip install 'olivine[cluster]'") from None
        if ray.is_initialized():
            return ray
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            cores = self.workers or len(os.sched_getaffinity(0))
            # Without "local" Ray would take up with whatever cluster runs on this machine, and refuse the options;
            # 127.0.0.1 would be replaced by the machine's outer address.
            options |= {
                "address": "local",
                "num_cpus": cores,
                "include_dashboard": False,
                "_node_ip_address": "127.0.0.2",
            }
            options |= {"object_store_memory": 128 << 20}  # what crosses is small
        else:
            _probe(self.address)
            options["address"] = self.address
        try:
            # Ray, interrupted while it starts, leaves processes for a minute.
            with contextlib.nullcontext() if self.address else ctrl_c_afterwards():
                ray.init(**options)
        except Exception as error:  # Ray has no exception type of its own for a cluster that is not there
            first = (str(error).splitlines() or [""])[0]
            raise _no_cluster(self.address or "this machine", f"{type(error).__name__}: {first}") from None
        return ray


def _probe(address: str) -> None:
    """Ray itself waits for minutes, and may then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise OlivineError(f"--address {address}", remedy="give host:port of the cluster's head, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise _no_cluster(address, error.strerror or str(error)) from None


def _none_free(seconds: float) -> OlivineError:
    return OlivineError(
        f"no worker of the Ray cluster became free within {seconds:.0f} s", remedy="look at it with: ray status"
    )


def _no_cluster(address: str, reason: str) -> OlivineError:
    return OlivineError(
        f"no Ray cluster answers ({reason})",
        where=address,
        remedy="start one with: ray start --head, and give its address, or leave --address out to start one here",
    )


def _nothing() -> None:
    """What is done where a worker is free."""


def _ask(function: Callable[[], T], ticket: Ticket) -> tuple[T | None, OlivineError | None]:
    try:
        ticket.check()
        return function(), None
    except OlivineError as error:
        return None, error


class _Actor:
    """A worker; what Ray runs on some machine."""

    def __init__(self, make: Callable[[], Callable[..., Any]], logs: Path | None) -> None:
        self._runner: Runner[Any, Any] = Runner(make, logs, capture=True)

    def hello(self, ticket: Ticket) -> tuple[str, OlivineError | None]:
        """The worker's name, and what it lacks."""
        try:
            ticket.check()
        except OlivineError as error:
            return writer_name(), error
        return writer_name(), None

    def do(self, unit: WorkUnit[Any]) -> Reply[Any]:
        """Do a unit."""
        return self._runner(unit, lambda count: None)


@dataclass(eq=False)
class _Worker(Generic[U]):
    actor: Any
    name: str = ""
    unit: WorkUnit[U] | None = None


class Actors(Generic[U, R]):
    """A pool of actors, all checked before the first unit is given out."""

    def __init__(
        self, ray: Any, job: Job[U, R], logs: Path | None, ticket: Ticket, workers: int, patience: float
    ) -> None:
        self._ray, self._make, self._logs, self._ticket, self._patience = ray, job.make, logs, ticket, patience
        count, needs = _slots(ray, job.wide)
        self._class = ray.remote(max_restarts=0, scheduling_strategy="SPREAD", **needs)(_Actor)
        self._asked: dict[Any, _Worker[U]] = {}
        self._idle: list[_Worker[U]] = []
        self._problem: OlivineError | None = None
        self._heard = time.monotonic()
        for _ in range(min(workers, count) if workers else count):
            self._start()
        try:
            while not self._idle:
                self._answers()
            late = time.monotonic() + 10  # machines that are at other work join when they are free
            while time.monotonic() < late and any(worker.unit is None for worker in self._asked.values()):
                self._answers()
            if self._problem:
                raise self._problem
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        actor = self._class.remote(self._make, self._logs)
        self._asked[actor.hello.remote(self._ticket)] = _Worker(actor)

    @property
    def room(self) -> bool:
        """Whether a worker is idle."""
        return bool(self._idle)

    def submit(self, unit: WorkUnit[U]) -> None:
        """Give the unit to an idle worker."""
        worker = self._idle.pop()
        worker.unit = unit
        self._asked[worker.actor.do.remote(unit)] = worker

    def wait(self, step: Callable[[str, int], None]) -> list[tuple[WorkUnit[U], Reply[R]]]:
        """What the actors answered within a second."""
        return self._answers()

    def _answers(self) -> list[tuple[WorkUnit[U], Reply[R]]]:
        ray = self._ray
        done, _ = ray.wait(list(self._asked), num_returns=1, timeout=1) if self._asked else ([], [])
        if done:
            done, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
            self._heard = time.monotonic()
        elif not self._idle and all(worker.unit is None for worker in self._asked.values()):
            self._give_up_after(self._patience)
        replies: list[tuple[WorkUnit[U], Reply[R]]] = []
        for ref in done:
            worker = self._asked.pop(ref)
            unit, worker.unit = worker.unit, None
            try:
                answer = ray.get(ref)
            except ray.exceptions.RayActorError as error:
                ray.kill(worker.actor)  # also where it was only out of reach
                self._start()
                if unit is not None:
                    why = f"its worker {worker.name} died ({' '.join(str(error).split())[:200]})"
                    replies.append((unit, Reply(error=why, lost=worker.name)))
                continue
            except Exception as error:  # an actor of another olivine, an answer that cannot be read
                answer = Reply(error=" ".join(f"{type(error).__name__}: {error}".split())[:500])
                if unit is None:
                    answer = "", OlivineError(f"a worker cannot start: {answer.error}", remedy="install olivine there")
            if unit is not None:
                replies.append((unit, answer))
            else:
                worker.name, problem = answer
                if problem is not None:
                    self._problem = problem
                    ray.kill(worker.actor)
                    if not self._idle and not self._asked:
                        raise problem
                    continue
            self._idle.append(worker)
        return replies

    def _give_up_after(self, seconds: float) -> None:
        if time.monotonic() - self._heard > seconds:
            raise self._problem or _none_free(seconds)

    def close(self) -> list[str]:
        """Kill the actors; those at work have ended when this returns."""
        workers = [*self._idle, *self._asked.values()]
        for worker in workers:
            self._ray.kill(worker.actor)
        busy = {ref: worker for ref, worker in self._asked.items() if worker.unit is not None}
        if busy:
            self._ray.wait(list(busy), num_returns=len(busy), timeout=10)
        self._ticket.withdraw()
        self._idle, self._asked = [], {}
        return [worker.name for worker in busy.values()]


def _slots(ray: Any, wide: bool) -> tuple[int, dict[str, float]]:
    """How many workers the cluster has room for, and what each of them needs."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        raise OlivineError("the Ray cluster has no machine with a core to give", remedy="start one with: ray start")
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if wide and with_gpu:
        cores = min(node["CPU"] // node["GPU"] for node in with_gpu)
        return int(sum(node["GPU"] for node in with_gpu)), {"num_gpus": 1, "num_cpus": cores}
    if wide:
        return len(nodes), {"num_cpus": min(node["CPU"] for node in nodes)}
    return int(sum(node["CPU"] for node in nodes)), {"num_cpus": 1}
