"""What the tests' units do; a module of its own, so that worker processes on any engine can import it."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from olivine.cluster.journal import Journal
from olivine.cluster.work import Job, Reply, WorkUnit, execute
from olivine.common import Failure, OlivineError, atomic_directory


@dataclass(frozen=True)
class Task:
    """``do`` says how this unit behaves."""

    number: int
    do: str = "right"
    seconds: float = 0.0


@dataclass(frozen=True)
class Made:
    """A result."""

    number: int
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Work:
    """Writes ``<number>.txt``, and a line into ``<number>.attempts`` each time it begins."""

    out: Path

    def __call__(self, task: Task, step: Callable[[int], None]) -> Made:
        """Do a task."""
        attempts = self.out / f"{task.number}.attempts"
        with open(attempts, "a") as file:
            file.write(f"{os.getpid()}\n")
        print(f"this is {task.number}")
        time.sleep(task.seconds)
        tried = len(attempts.read_text().splitlines())
        if task.do == "raise" or (task.do == "raise once" and tried == 1):
            raise ValueError(f"number {task.number}\nis wrong")
        if task.do == "die" or (task.do == "die once" and tried == 1):
            with atomic_directory(self.out / f"{task.number}.folder"):
                os._exit(7)
        if task.do == "stop":
            raise OlivineError("the weights are missing", remedy="fetch them")
        (self.out / f"{task.number}.txt").write_text(f"{task.number}\n")
        step(1)
        failures = (Failure(f"image of {task.number}", "is bad"),) if task.do == "in part" else ()
        return Made(task.number, failures)


def nothing(task: Task, step: Callable[[int], None]) -> Made:
    """Do nothing, at once."""
    return Made(task.number)


def make_nothing() -> Callable[[Task, Callable[[int], None]], Made]:
    """For jobs that measure their engine."""
    return nothing


class Instant:
    """A pool of 100 workers that are done at once."""

    def __init__(self) -> None:
        self.units: list[WorkUnit] = []

    @property
    def room(self) -> bool:
        return len(self.units) < 100

    def submit(self, unit: WorkUnit) -> None:
        self.units.append(unit)

    def wait(self, step: Callable[[str, int], None]) -> list[tuple[WorkUnit, Reply]]:
        answers, self.units = [(unit, Reply(nothing(unit.content, lambda _: None))) for unit in self.units], []
        return answers

    def close(self) -> list[str]:
        return []

    def pool(self, job: Job, logs: Path | None) -> Instant:
        return self


def peak_memory(count: int, logs: Path) -> int:
    """Bytes that the driver of a job of ``count`` units holds at most."""
    job = Job("test", make_nothing)
    with Journal(logs, "test", logs, count) as journal:
        row = (WorkUnit(f"unit-{k}", 1, Task(k)) for k in range(count))
        tracemalloc.start()
        try:
            assert sum(1 for _ in execute(job, row, Instant(), total=count, journal=journal)) == count  # type: ignore[arg-type]
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
