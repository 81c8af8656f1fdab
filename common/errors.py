"""The one exception that users see, a unit of work that failed, and errors of the disk in one line."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any

PathLike = str | os.PathLike[str]
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class OlivineError(Exception):
    """Something the user can fix: what happened, where, and what to do.

    Args:
        what: what is wrong, without a full stop.
        where: the file, frame, camera or key it was found in.
        remedy: what to do about it, as an imperative without a full stop.

    ``str(error)`` is one line, ``<where>: <what>. <Remedy>.``
    """

    def __init__(self, what: str, *, where: object = None, remedy: str = "") -> None:
        line = f"{where}: {what}" if where is not None else what
        if remedy:
            line = f"{line.rstrip('.')}. {remedy[0].upper()}{remedy[1:]}"
        super().__init__(" ".join(line.split()))

    # An exception with keyword-only arguments does not survive pickling by
    # itself, and worker processes send theirs home that way.
    def __reduce__(self) -> tuple[Any, ...]:
        return (OlivineError, (str(self),))


@dataclass(frozen=True)
class Failure:
    """One unit of work that could not be done, and the line that says why."""

    unit: str
    reason: str


def memory_error(error: BaseException) -> OlivineError | None:
    """The one line for an error that means that memory is used up, None for any other.

    Python, NumPy, numba, PyTorch and the system each have one of their own; what they meet while they tell of it counts too.
    """
    before = error.__cause__ or error.__context__
    if before is not None and not isinstance(error, OlivineError) and (found := memory_error(before)) is not None:
        return found
    what = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    signs = (
        "can't start new thread",
        "out of memory",
        "can't allocate memory",
        "could not create a primitive",  # oneDNN's, for whatever it could not allocate
        "failed to map segment",  # of a library that is loaded late
        "bad_alloc",
        "without exception set",  # Python's own two, where it could not make the exception
        "without setting an exception",
    )
    if not (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, (RuntimeError, ImportError, SystemError)) and any(sign in what for sign in signs))
    ):
        return None
    return OlivineError(
        f"not enough memory ({what})",
        remedy="use fewer workers, smaller batches, or a machine with more memory; what is finished is kept",
    )


def _belongs(named: str, path: str) -> bool:
    """Whether ``named`` is ``path``, a folder above or a file below it, or its half-written form."""
    inner = os.path.commonpath((named, path))
    return inner in (named, path) or ".partial-" in named


def disk_error(error: OSError, path: PathLike) -> OlivineError:
    """The one line for an ``OSError`` met while writing ``path``, which may be of a file that was being read."""
    named = error.filename if isinstance(error.filename, (str, os.PathLike)) else path
    if not _belongs(os.path.abspath(named), os.path.abspath(path)):
        if error.errno not in FULL_DISK:
            reason = error.strerror or error
            return OlivineError(f"cannot be read ({reason})", where=named, remedy="check that it is there and readable")
        path = named
    if error.errno in FULL_DISK:
        return OlivineError(
            "the disk is full", where=path, remedy="free some space and run the command again; what is finished is kept"
        )
    if error.errno == errno.EFBIG:
        return OlivineError(
            "the file is too large for its file system or for this process (ulimit -f)",
            where=path,
            remedy="raise the limit or choose another --out folder, and run the command again; what is finished is kept",
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return OlivineError("no permission to write here", where=path, remedy="choose another --out folder")
    return OlivineError(f"cannot be written: {error.strerror or error}", where=path)
