"""One notion of a work unit, and the one loop that has units done by whatever holds workers.

A unit is idempotent: done twice it leaves the same bytes, so a unit whose worker died is simply given to another. The
loop hands each unit out once, gives back-pressure (a worker has one unit at a time, and the row of units is read no
further than there are idle workers), tries a failing unit again, and then sets it aside with its error.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Generic, Protocol, TypeVar

from ..common import FULL_DISK, Failure, OlivineError, disk_error, memory_error, progress
from .journal import Journal

U = TypeVar("U")
T = TypeVar("T")
Step = Callable[[int], None]


class Result(Protocol):
    """What doing a unit gives: anything that can be pickled and lists what could not be done."""

    @property
    def failures(self) -> Sequence[Failure]: ...  # noqa: D102


R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class WorkUnit(Generic[U]):
    """One piece of a job.

    Attributes:
        key: unique in its job, and fit for a file name.
        size: images or frames, for the progress bar.
        content: what the job's function is given.
    """

    key: str
    size: int
    content: U


@dataclass(frozen=True)
class Job(Generic[U, R]):
    """What is to be done to each unit.

    Attributes:
        name: the command's, for messages.
        make: called once in each worker; gives the function that does a unit: its content and a function to be told of
            progress → its result. Must be picklable, with absolute paths.
        noun: what a unit's size counts.
        wide: a worker holds a model: one for each GPU, or one for each machine without.
        paths: folders that every worker must see.
        packages: distributions whose versions the output's bytes depend on.
        lost: told the :func:`~olivine.common.writer_name` of each worker that ended with a unit unfinished, so that the
            room can remove what it had begun.
    """

    name: str
    make: Callable[[], Callable[[U, Step], R]]
    noun: str = "unit"
    wide: bool = False
    paths: tuple[Path, ...] = ()
    packages: tuple[str, ...] = ("olivine",)
    lost: Callable[[str], object] = lambda writer: None


@dataclass(frozen=True)
class Reply(Generic[R]):
    """A worker's answer: a result, or this unit's error (``lost`` names a worker that died), or why no unit can be done."""

    result: R | None = None
    error: str = ""
    lost: str = ""
    stop: OlivineError | None = None


@dataclass(frozen=True)
class Outcome(Generic[U, R]):
    """What became of a unit: its result, or the last attempt's error once it is set aside."""

    unit: WorkUnit[U]
    result: R | None
    error: str = ""


class Pool(Protocol[U, R]):
    """Workers that do one unit each at a time."""

    @property
    def room(self) -> bool:
        """Whether a worker is idle."""

    def submit(self, unit: WorkUnit[U]) -> None:
        """Give a unit to an idle worker."""

    def wait(self, step: Callable[[str, int], None]) -> list[tuple[WorkUnit[U], Reply[R]]]:
        """Answers, after a second at most; ``step`` is told of progress within a unit. A worker's death is an error."""

    def close(self) -> list[str]:
        """End the workers, whatever they do; returns the names of those that were at work."""


class Executor(Protocol):
    """A place where units are done."""

    def pool(self, job: Job[U, R], logs: Path | None) -> Pool[U, R]:
        """Workers for a job, checked: they see what they must see, in the driver's versions."""

    def ask(self, function: Callable[[], T], paths: Sequence[Path], packages: Sequence[str]) -> T:
        """The value of a function where a model's worker would run, checked in the same way."""


class Runner(Generic[U, R]):
    """What a worker is: holds what ``make`` made, does units, keeps each unit's log. Never raises, but for Ctrl-C.

    Args:
        capture: also keep what the unit prints, for workers whose output nobody sees.
    """

    def __init__(self, make: Callable[[], Callable[[U, Step], R]], logs: Path | None, *, capture: bool) -> None:
        self._make, self._logs, self._capture = make, logs, capture
        self._work: Callable[[U, Step], R] | None = None

    def __call__(self, unit: WorkUnit[U], step: Step) -> Reply[R]:
        """Do a unit."""
        try:
            with contextlib.ExitStack() as stack:
                log = stack.enter_context(open(self._logs / f"{unit.key}.log", "a")) if self._logs is not None else None
                if log is not None and self._capture:
                    stack.enter_context(contextlib.redirect_stdout(log))
                    stack.enter_context(contextlib.redirect_stderr(log))
                return self._do(unit, step, log)
        except OSError as error:  # of the log itself
            return Reply(stop=disk_error(error, self._logs or unit.key))

    def _do(self, unit: WorkUnit[U], step: Step, log: IO[str] | None) -> Reply[R]:
        def note(text: str) -> None:
            if log is not None:
                now = time.strftime("%Y-%m-%d %H:%M:%S")
                print(f"{now} {socket.gethostname()} {os.getpid()} {text}", file=log, flush=True)

        note("begins")
        begun = time.monotonic()
        try:
            if self._work is None:
                self._work = self._make()
            result = self._work(unit.content, step)
        except OlivineError as error:
            reply: Reply[R] = Reply(stop=error)
        except Exception as error:  # whatever it is, the other units must not suffer from it
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                reply = Reply(stop=disk_error(error, error.filename or unit.key))
            else:
                reply = Reply(error=_reason(error))
            note(traceback.format_exc().rstrip())
        else:
            for failure in result.failures:
                note(f"{failure.unit}: {failure.reason}")
            note(f"ends after {time.monotonic() - begun:.2f} s")
            return Reply(result)
        note(f"fails after {time.monotonic() - begun:.2f} s: {reply.stop or reply.error}")
        return reply


def _reason(error: Exception) -> str:
    if (memory := memory_error(error)) is not None:
        return str(memory)
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")


def execute(
    job: Job[U, R],
    units: Iterable[WorkUnit[U]],
    executor: Executor,
    *,
    total: int | None = None,
    journal: Journal | None = None,
    retries: int = 2,
) -> Generator[Outcome[U, R], None, None]:
    """Have units done, and yield what became of each as it comes.

    Args:
        units: read as workers become idle, so a row of any length costs no memory.
        total: their sizes together, for the progress bar.
        journal: where the job's account is kept, and where drivers of the same job see each other's claims.
        retries: how often a unit that failed (its function raised, its worker died) is given out again.

    Raises:
        OlivineError: no unit can be done (bad weights, a full disk, no workers). What is finished stays.
    """
    row = _Row(units, journal)
    if (first := row.take(wait=False)) is None and not row.elsewhere:
        return
    if first is not None:
        row.again.append(first)
    attempts: Counter[str] = Counter()
    told: Counter[str] = Counter()
    pool = executor.pool(job, journal.folder if journal else None)
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: deque(map(job.lost, pool.close())))
        advance = stack.enter_context(progress(job.name, total, job.noun))

        def step(key: str, count: int) -> None:
            count = max(0, min(count, row.sizes.get(key, 0) - told[key]))  # a unit that is tried again counts once
            told[key] += count
            advance(count)

        while True:
            while pool.room and (unit := row.take(wait=not row.sizes)) is not None:
                row.sizes[unit.key] = unit.size
                if journal:
                    journal.began(unit.key)
                pool.submit(unit)
            if not row.sizes and not row.unfinished:
                return
            for unit, reply in pool.wait(step):
                attempts[unit.key] += 1
                if reply.lost:
                    job.lost(reply.lost)
                if reply.stop is not None:
                    if journal:
                        journal.ended(unit.key, str(reply.stop))
                    raise reply.stop
                if reply.error and attempts[unit.key] <= retries:
                    del row.sizes[unit.key]
                    row.again.append(unit)
                    continue
                step(unit.key, unit.size)
                del row.sizes[unit.key], attempts[unit.key], told[unit.key]
                if journal:
                    failures = reply.result.failures if reply.result is not None else ()
                    journal.ended(unit.key, reply.error or "; ".join(f"{f.unit}: {f.reason}" for f in failures))
                tries = f" ({retries + 1} attempts)" if reply.error and retries else ""
                yield Outcome(unit, reply.result, reply.error + tries)


class _Row(Generic[U]):
    """Units that wait: those to be tried again, those never given out, those another driver has claimed."""

    def __init__(self, units: Iterable[WorkUnit[U]], journal: Journal | None) -> None:
        self._units, self._journal = iter(units), journal
        self.again: deque[WorkUnit[U]] = deque()
        self.elsewhere: deque[WorkUnit[U]] = deque()
        self.sizes: dict[str, int] = {}  # of the units given out
        self._exhausted = False

    @property
    def unfinished(self) -> bool:
        return bool(self.again or self.elsewhere or not self._exhausted)

    def take(self, *, wait: bool) -> WorkUnit[U] | None:
        """The next unit that nobody has; ``wait``: nothing else goes on, so look again only after a moment."""
        if self.again:
            return self.again.popleft()
        for unit in self._units:
            if self._journal is None or self._journal.claim(unit.key):
                return unit
            self.elsewhere.append(unit)
        self._exhausted = True
        if self._journal is None or not self.elsewhere:
            return None
        # Another driver's units: finished, they are claimed and found finished; its driver dead, they are ours.
        for _ in range(len(self.elsewhere)):
            unit = self.elsewhere.popleft()
            if self._journal.claim(unit.key):
                return unit
            self.elsewhere.append(unit)
        if wait:
            time.sleep(0.5)
        return None
