"""What every room shares: the package's one exception, whole-or-nothing writing, progress, pixels without a copy.

Nothing here knows a data set, a network or a command.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

T = TypeVar("T")
PathLike = str | os.PathLike[str]

_PARTIAL = ".partial-"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class OlivineError(Exception):
    """Something the user can mend: what happened, where, and what to do.

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


def disk_error(error: OSError, path: PathLike) -> OlivineError:
    """The one line for an ``OSError`` met while writing ``path``."""
    if error.errno in FULL_DISK:
        return OlivineError(
            "the disk is full", where=path, remedy="free some space and run the command again; what is finished is kept"
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return OlivineError("no permission to write here", where=path, remedy="choose another --out folder")
    return OlivineError(f"cannot be written: {error.strerror or error}", where=path)


def writer_name(pid: int | None = None) -> str:
    """What a process of this machine (this one without a pid) signs its half-written files with."""
    host = "".join(c if c.isalnum() else "_" for c in socket.gethostname())
    return f"{host}-{pid or os.getpid()}"


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}{_PARTIAL}{writer_name()}-{secrets.token_hex(3)}")


def _sync_file(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(path: PathLike) -> Iterator[IO[bytes]]:
    """Open ``path`` for binary writing so that it appears whole or not at all.

    The bytes go to a hidden file beside it, which is synced and renamed when the
    block ends without an exception and removed otherwise.

    Raises:
        OlivineError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    partial = _partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise disk_error(error, path) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


MARK = ".olivine.json"
"""In a folder that olivine made: the sign that olivine may write there again, and what it may replace."""
_ELSEWHERE = "choose another --out folder, or move what is there away yourself"


def _is_ours(name: str) -> bool:
    return name == MARK or _PARTIAL in name


def _contains(outer: Path, inner: PathLike) -> bool:
    return Path(inner).resolve().is_relative_to(outer.resolve())


def check_output(path: PathLike, *, inputs: Iterable[PathLike | None] = (), known: Iterable[str] = ()) -> None:
    """Raise unless olivine may write its files into the folder ``path``. Writes nothing.

    It may where nothing is there yet, where the folder is empty, and where olivine made it: it holds :data:`MARK`, or
    something with one of the names ``known``, patterns of what the command itself makes there.

    Args:
        inputs: what the command reads; it never writes over a folder that is or holds one of them.

    Raises:
        OlivineError: names the folder and what is in the way.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        raise OlivineError("is a link to nothing", where=path, remedy=_ELSEWHERE)
    if path.exists() and not path.is_dir():
        raise OlivineError("is a file, not a folder", where=path, remedy=_ELSEWHERE)
    for source in inputs:
        if source is not None and _contains(path, source):
            raise OlivineError(f"holds {source}, which this command reads", where=path, remedy=_ELSEWHERE)
    if not path.exists() or any(True for name in (MARK, *known) for _ in path.glob(name)):
        return
    foreign = sorted(name for name in os.listdir(path) if not _is_ours(name))
    if foreign:
        raise OlivineError(
            f"holds {foreign[0]!r}, which olivine did not make there; it is left alone", where=path, remedy=_ELSEWHERE
        )


def claim_output(path: PathLike, *, inputs: Iterable[PathLike | None] = ()) -> None:
    """Make the folder ``path`` olivine's own, with its mark, before anything is written there.

    Raises:
        OlivineError: as :func:`check_output`.
    """
    check_output(path, inputs=inputs)
    if not (Path(path) / MARK).is_file():
        write_json(Path(path) / MARK, {"made_by": "olivine"})


def check_output_file(
    path: PathLike, made: Callable[[Path], bool], *, overwrite: bool = False, inputs: Iterable[PathLike | None] = ()
) -> None:
    """Raise where a command's output file exists already, unless it may be replaced.

    Args:
        made: whether a file is of the kind that the command writes.
        overwrite: the user asked for it to be replaced.
        inputs: what the command reads; never replaced.

    Raises:
        OlivineError: names the file.
    """
    path = Path(path)
    other = "choose another --out file, or move that one away yourself"
    if path.is_dir():
        raise OlivineError("is a folder", where=path, remedy="name a file in it with --out")
    if not os.path.lexists(path):
        return
    if any(source is not None and _contains(path, source) for source in inputs):
        raise OlivineError("is what this command reads", where=path, remedy=other)
    if path.is_symlink() or not path.is_file() or not made(path):
        raise OlivineError("exists, and this command did not write it; it is left alone", where=path, remedy=other)
    if not overwrite:
        raise OlivineError("exists already", where=path, remedy="choose another --out file, or add --overwrite")


def check_replaceable(path: PathLike, ours: Callable[[str], bool] | None = None) -> None:
    """Raise unless the folder ``path`` may be replaced whole: nothing is there, or only what olivine made.

    Args:
        ours: whether olivine makes a file of this relative path there; without it the folder's own mark says so.

    Raises:
        OlivineError: names the first file that olivine did not make.
    """
    path = Path(path).absolute()
    if not os.path.lexists(path):
        return
    remedy = "choose another --out folder, or remove this one yourself"
    if path.is_symlink() or not path.is_dir():
        kind = "a link" if path.is_symlink() else "a file"
        raise OlivineError(f"is {kind}, not a folder that olivine made; it is left alone", where=path, remedy=remedy)
    if Path.cwd().is_relative_to(path.resolve()):
        raise OlivineError("is the folder you are in, or holds it; it is left alone", where=path, remedy=remedy)
    made: set[str] = set()
    if ours is None and (path / MARK).is_file():
        plain = read_json(path / MARK, remedy)
        listed = plain.get("files") if isinstance(plain, dict) else None
        made = {str(name) for name in listed} if isinstance(listed, list) else set()
    for folder, names, files in os.walk(path):
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        for file in sorted([*files, *links]):
            name = Path(folder, file).relative_to(path).as_posix()
            if name != MARK and not (name in made if ours is None else ours(name)):
                raise OlivineError(
                    f"holds {name!r}, which olivine did not make there; it is left alone", where=path, remedy=remedy
                )


@contextlib.contextmanager
def atomic_directory(path: PathLike, ours: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """A folder that appears at ``path`` whole or not at all.

    Yields a hidden folder beside ``path``; it is renamed to ``path`` when the block ends without an exception and
    removed otherwise. What was at ``path`` is replaced only if olivine made all of it, see :func:`check_replaceable`.

    Args:
        ours: knows the files by their relative path; without it the folder gets a mark that lists its files.

    Raises:
        OlivineError: ``path`` holds something that olivine did not make (before the block begins), the disk is full
            or the folder cannot be written.
    """
    path = Path(path).absolute()
    check_replaceable(path, ours)
    partial = _partial_name(path)
    try:
        partial.mkdir(parents=True)
        yield partial
        files = [file for file in partial.rglob("*") if file.is_file()]
        if ours is None:
            names = sorted(file.relative_to(partial).as_posix() for file in files)
            write_json(partial / MARK, {"made_by": "olivine", "files": names})
        # Many at once: the file system then commits its journal once for a batch, not once a file.
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(_sync_file, files))
        check_replaceable(path, ours)
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
        _sync_directory(path.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise disk_error(error, path) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def cores() -> int:
    """Processor cores this process may use; under SLURM those of its task."""
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(free, int(os.environ.get("SLURM_CPUS_PER_TASK") or free))


@contextlib.contextmanager
def children_deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started within the block are born with Ctrl-C blocked: it reaches a whole terminal, their parent answers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
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
    except OSError:
        return False
    # After the name in brackets comes the state: Z is a dead process that nobody waited for.
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def remove_leftovers(directory: PathLike, writer: str | None = None) -> list[Path]:
    """Remove what dead processes of this machine left half-written in ``directory``.

    Only names that :func:`atomic_file` and :func:`atomic_directory` make are touched, and only
    when their process is gone. With ``writer``, a :func:`writer_name` known to be dead, what
    that one left, on whatever machine it ran. Returns what was removed.
    """
    host = writer_name().rpartition("-")[0]
    removed = []
    for path in Path(directory).glob(f".*{_PARTIAL}{writer or host}-*"):
        pid = path.name.rsplit("-", 2)[1]
        if writer is None and (not pid.isdigit() or is_running(int(pid))):
            continue
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with atomic_file(path) as handle:
        handle.write(data)


def write_json(path: PathLike, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys (the same value, the same bytes)."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: PathLike, remedy: str = "make it again") -> Any:
    """The value in a JSON file.

    Raises:
        OlivineError: the file is missing or is not JSON; ``remedy`` says what to do.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise OlivineError("no such file", where=path, remedy=remedy) from None
    except (ValueError, OSError) as error:
        raise OlivineError(f"cannot be read as JSON ({error})", where=path, remedy=remedy) from None


def sha256_file(path: PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value's canonical form, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextlib.contextmanager
def progress(
    description: str, total: int | None = None, unit: str = "it", before: int = 0
) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error for the length of a block: rate and time left.

    On a terminal a bar; elsewhere (a log file) a line every ten seconds. ``before`` of the total
    are done already, and count for no rate. Yields a function that is told how many more are done.
    """
    start = last = time.monotonic()
    count = 0
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total, completed=before, rate="")

            def draw(more: int) -> None:
                nonlocal count
                count += more
                bar.update(task, advance=more, rate=f"{count / max(time.monotonic() - start, 1e-9):.2f} {unit}/s")

            yield draw
        return

    def say(more: int) -> None:
        nonlocal count, last
        count += more
        now = time.monotonic()
        if now - last >= 10:
            last = now
            rate = count / (now - start)
            left = f", {max(total - before - count, 0) / rate:.0f} s left" if total and rate else ""
            of = f"/{total}" if total else ""
            print(f"{description}: {before + count}{of}, {rate:.2f} {unit}/s{left}", file=sys.stderr, flush=True)

    yield say


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Yield ``items`` with a progress bar; see :func:`progress`."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with progress(description, total, unit) as advance:
        for item in items:
            yield item
            advance(1)


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The installed version of each distribution, ``"absent"`` where there is none."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "absent"

    return {name: installed(name) for name in names}


class _ArrowArray(ctypes.Structure):
    """The C struct of Arrow's data interface, which Pillow exports its memory by (11.2 and later)."""

    _fields_ = (
        ("length", ctypes.c_int64),
        ("null_count", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("n_buffers", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("children", ctypes.POINTER(ctypes.c_void_p)),
    )


def pixels_of(picture: Any) -> tuple[NDArray[numpy.uint8], object]:
    """The pixels of a Pillow image of mode RGB, uint8 [H, W, 4], and what keeps their memory alive.

    The last channel means nothing. Pillow's own memory where it can be had in one piece (Pillow
    11.2 and newer, up to 16 MiB), else a copy; read it, and keep ``picture`` while you do.
    """
    import numpy as np

    try:
        _, capsule = picture.__arrow_c_array__()
    except (AttributeError, ValueError, MemoryError):
        return np.asarray(picture.convert("RGBX")), None
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    array = ctypes.cast(address(capsule, b"arrow_array"), ctypes.POINTER(_ArrowArray)).contents
    child = ctypes.cast(array.children[0], ctypes.POINTER(_ArrowArray)).contents
    width, height = picture.size
    memory = (ctypes.c_uint8 * (width * height * 4)).from_address(child.buffers[1] or 0)
    return np.ctypeslib.as_array(memory).reshape(height, width, 4), capsule
