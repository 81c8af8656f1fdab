"""Units done on this machine: in this process, or by processes of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic

from ..common import children_ignore_ctrl_c, writer_name
from .work import Job, Pool, R, Reply, Runner, T, U, WorkUnit


@dataclass(frozen=True)
class Local:
    """The default executor.

    Attributes:
        processes: 1 does the units in this very process.
        devices: one a process in turn, as CUDA names them; empty to leave the choice alone.
    """

    processes: int = 1
    devices: tuple[str, ...] = ()

    def pool(self, job: Job[U, R], logs: Path | None) -> Pool[U, R]:
        """Workers for a job."""
        return Processes(job, logs, self.processes, self.devices) if self.processes > 1 else Here(job, logs)

    def ask(self, function: Callable[[], T], paths: Sequence[Path], packages: Sequence[str]) -> T:
        """The function's value."""
        return function()


class Here(Generic[U, R]):
    """This process as the one worker: no start-up, and Ctrl-C and errors as in any program."""

    def __init__(self, job: Job[U, R], logs: Path | None) -> None:
        self._runner: Runner[U, R] = Runner(job.make, logs, capture=False)
        self._unit: WorkUnit[U] | None = None

    @property
    def room(self) -> bool:
        """Whether there is no unit yet."""
        return self._unit is None

    def submit(self, unit: WorkUnit[U]) -> None:
        """Take the unit."""
        self._unit = unit

    def wait(self, step: Callable[[str, int], None]) -> list[tuple[WorkUnit[U], Reply[R]]]:
        """Do it."""
        unit, self._unit = self._unit, None
        if unit is None:
            return []
        key = unit.key
        return [(unit, self._runner(unit, lambda count: step(key, count)))]

    def close(self) -> list[str]:
        """Nothing to end."""
        return []


@dataclass(eq=False)
class _Worker(Generic[U]):
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    unit: WorkUnit[U] | None = None


class Processes(Generic[U, R]):
    """Worker processes, each with a pipe of its own: when one dies, it is known which unit it had.

    They end with this pool, and with this process, however that ends.
    """

    def __init__(self, job: Job[U, R], logs: Path | None, count: int, devices: tuple[str, ...]) -> None:
        self._make, self._logs, self._count, self._devices = pickle.dumps(job.make), logs, count, devices
        self._workers: list[_Worker[U]] = []
        self._started = 0

    @property
    def room(self) -> bool:
        """Whether a worker is idle or can be started."""
        return len(self._workers) < self._count or any(w.unit is None for w in self._workers)

    def submit(self, unit: WorkUnit[U]) -> None:
        """Give the unit to an idle worker, or to a new one."""
        worker = next((w for w in self._workers if w.unit is None), None) or self._start()
        worker.unit = unit
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died idle: wait() reads its pipe's end
            worker.pipe.send(unit)

    def _start(self) -> _Worker[U]:
        # Spawned: a fork would inherit whatever threads and locks the caller has.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        device = self._devices[self._started % len(self._devices)] if self._devices else None
        self._started += 1
        process = context.Process(target=_serve, args=(theirs, self._make, self._logs, device))
        worker: _Worker[U] = _Worker(process, ours)
        with children_ignore_ctrl_c():
            process.start()
            theirs.close()
            self._workers.append(worker)
        return worker

    def wait(self, step: Callable[[str, int], None]) -> list[tuple[WorkUnit[U], Reply[R]]]:
        """What the workers sent within a second."""
        replies = []
        busy: dict[Any, _Worker[U]] = {w.pipe: w for w in self._workers if w.unit is not None}
        for pipe in wait(list(busy), timeout=1):
            worker = busy[pipe]
            assert worker.unit is not None
            try:
                message = worker.pipe.recv()
            except (EOFError, ConnectionResetError):
                self._workers.remove(worker)
                worker.process.join()
                replies.append((worker.unit, _died(worker.process)))
                continue
            if isinstance(message, int):
                step(worker.unit.key, message)
            else:
                replies.append((worker.unit, message))
                worker.unit = None
        return replies

    def close(self) -> list[str]:
        """End the processes; an idle one goes by itself, a busy one is stopped."""
        for worker in self._workers:
            worker.pipe.close()
            if worker.unit is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        return [writer_name(worker.process.pid) for worker in self._workers if worker.unit is not None]


def _died(process: multiprocessing.process.BaseProcess) -> Reply[Any]:
    code = process.exitcode or 0
    how = f"exit code {code}" if code >= 0 else f"signal {-code}{'; out of memory?' if code == -signal.SIGKILL else ''}"
    return Reply(error=f"its worker process died ({how})", lost=writer_name(process.pid))


def _serve(pipe: Connection, make: bytes, logs: Path | None, device: str | None) -> None:
    """The life of a worker process."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    runner: Runner[Any, Any] = Runner(lambda: pickle.loads(make)(), logs, capture=True)
    while True:
        try:
            unit = pipe.recv()
        except EOFError:
            return
        pipe.send(runner(unit, pipe.send))
