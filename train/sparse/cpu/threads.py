"""Compiled loops on several threads: those of the OpenMP runtime that torch itself computes with.

After each of its parallel operations torch's threads stay awake for some milliseconds and wait for the next one. Other
threads would have to share the cores with them; these are there already and begin at once. Where torch was built without
OpenMP, Python's threads do the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Team = Callable[[Callable[[], None], int], None]


def in_threads(loop: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> None:
    """Call a compiled loop that releases the interpreter's lock with each tuple of arguments; return when all are done.

    As many threads as torch has (:func:`torch.get_num_threads`) take the calls in their order, each the next one when
    it is done with its last.

    Raises:
        Exception: what a call raised first.
    """
    calls = list(calls)
    threads = min(torch.get_num_threads(), len(calls))
    # An iterator's next is one step for the interpreter: no call is taken twice.
    queue = iter(calls)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for call in queue:
                loop(*call)
                if failed:
                    return
        except BaseException as error:  # Ctrl-C too: what leaves a callback is lost
            failed.append(error)

    if threads > 1:
        _team()(work, threads)
    if not failed:
        work()  # alone, or what a callback left that was interrupted before it began
    if failed:
        raise failed[0]


@cache
def _team() -> Team:
    """What runs a function in some threads at once, and returns when all are done."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # A library's symbols include those of the libraries that it was linked with, so this is torch's own runtime.
        region = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return _python_team
    region.argtypes, region.restype = (_REGION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None

    def openmp_team(work: Callable[[], None], threads: int) -> None:
        region(_REGION(lambda _: work()), None, threads, 0)

    return openmp_team


def _python_team(work: Callable[[], None], threads: int) -> None:
    waiting = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for future in waiting:
        future.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="olivine-loops")
