"""Processor cores, child processes, and whether a process lives."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType


def writer_name(pid: int | None = None) -> str:
    """What a process of this machine (this one without a pid) signs its half-written files with: its host and number.

    A container that numbers its processes itself counts as another machine, though it may have the host's name.
    """
    host = "".join(c if c.isalnum() else "_" for c in socket.gethostname())
    return f"{host}{_own_numbers()}-{pid or os.getpid()}"


def _own_numbers() -> str:
    """What tells the system's namespaces of process numbers apart; "" where it has none."""
    try:
        return f"_{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def cores() -> int:
    """Processor cores this process may use; under SLURM those of its task."""
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(free, int(os.environ.get("SLURM_CPUS_PER_TASK") or free))


@contextlib.contextmanager
def ctrl_c_afterwards() -> Iterator[None]:
    """Ctrl-C within the block takes effect at its end, for work that must not be left in the middle.

    Does nothing outside the main thread, which alone hears of Ctrl-C, and where somebody else handles it.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


@contextlib.contextmanager
def children_ignore_ctrl_c() -> Iterator[None]:
    """Child processes started within the block ignore Ctrl-C, which reaches a whole terminal; the parent handles it.

    The parent hears of it at the end of the block: a child that is half started would meet the end of its input.
    """
    from multiprocessing import resource_tracker

    # Before its first child multiprocessing starts a process that looks after shared memory, and unblocks Ctrl-C in this
    # thread when it has. Started here, it cannot undo what the next line does.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with ctrl_c_afterwards():  # the mask is this thread's alone, and the signal may come by another
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def children_share_cores(count: int) -> Iterator[None]:
    """Processes started within the block take 1/``count`` of the cores for their threads each.

    BLAS and OpenMP read their thread number once, when a process begins, and take every core by default: ``count``
    such processes then spin against each other. What the user has set stays.
    """
    names = [n for n in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS") if n not in os.environ]
    os.environ.update(dict.fromkeys(names, str(max(1, cores() // max(count, 1)))))
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)


def is_running(pid: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # no /proc, or one that hides other users' processes
        try:
            os.kill(pid, 0)
        except PermissionError:
            return True
        except (OSError, OverflowError):
            return False
        return True
    # After the name in brackets comes the state: Z is a dead process that nobody waited for.
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The installed version of each distribution, ``"absent"`` where there is none."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "absent"

    return {name: installed(name) for name in names}


class StopRequest:
    """Whether a signal asked the run to stop."""

    requested = False


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and the first Ctrl-C into a request that the loop sees at the end of its step.

    A second Ctrl-C interrupts at once. Outside the main thread signals are left alone.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def stop(number: int, _: FrameType | None) -> None:
        if request.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.requested = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
