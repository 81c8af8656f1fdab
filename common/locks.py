"""One writer at a time: locks on files. The system frees those of a process that is gone, however it went."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO

from .errors import FULL_DISK, disk_error


class HeldError(Exception):
    """Another process holds the lock; ``str(error)`` names it."""


def take_lock(path: Path, *, wait_for: str = "") -> IO[str] | None:
    """Take a file's lock, for this process and until the handle is closed; the file is made, and names the process.

    A process that takes a lock twice has it twice, and gives it back with the first handle that it closes.

    Args:
        wait_for: what the holder is at: a line says so, and its end is waited for.

    Returns:
        None on a file system without locks, which is said once.

    Raises:
        HeldError: another process has it.
        OlivineError: the file cannot be written.
    """
    try:
        handle = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115  held on purpose
    except OSError as error:
        raise disk_error(error, path) from error
    try:
        # Not flock, which the processes that load data would inherit and keep when this one is killed.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        handle.seek(0)
        holder = " ".join(handle.read(200).split()) or "another process"
        if not wait_for:
            handle.close()
            raise HeldError(holder) from None
        print(f"olivine: waits for {wait_for} ({holder})", file=sys.stderr, flush=True)
        fcntl.lockf(handle, fcntl.LOCK_EX)
    except OSError as error:
        handle.close()
        _say_that_there_are_none(error.strerror)
        return None
    try:
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        handle.flush()
    except OSError as error:
        handle.close()
        if error.errno in FULL_DISK:
            raise disk_error(error, path) from error
        raise
    return handle


@cache  # once
def _say_that_there_are_none(reason: str) -> None:
    line = f"the file system has no locks ({reason}); start nothing else that writes into the same folder"
    print(f"olivine: {line}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(path: Path, *, wait_for: str = "") -> Iterator[None]:
    """Hold a file's lock meanwhile, see :func:`take_lock`."""
    handle = take_lock(path, wait_for=wait_for)
    try:
        yield
    finally:
        if handle is not None:
            handle.close()
