"""What the tests' units do; a module of its own, so that worker processes on any engine can import it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
