"""Files and folders that appear whole or not at all, what may be replaced, and digests."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import OlivineError, PathLike, disk_error
from .processes import is_running, writer_name
from .reading import read_json

_PARTIAL = ".partial-"


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
    remove_leftovers(path.parent)
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
        # Two renames: what is there goes as a whole, or, where that fails, stays as a whole.
        before = _partial_name(path)
        try:
            if path.exists():
                os.rename(path, before)
            os.replace(partial, path)
        except BaseException:  # Ctrl-C too
            with contextlib.suppress(OSError):  # nothing was there, or another writer's is by now
                os.rename(before, path)
            raise
        finally:
            shutil.rmtree(before, ignore_errors=True)
        _sync_directory(path.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise disk_error(error, path) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


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
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    try:
        data = text.encode()
    except UnicodeEncodeError:  # a path that is not UTF-8: JSON's own escapes can hold it
        data = json.dumps(value, indent=1, sort_keys=True).encode()
    write_bytes(path, data + b"\n")


def is_relative_name(name: str) -> bool:
    """Whether ``name`` is a path that leads down from any folder: not absolute or empty, no ``..``, no null character."""
    if not name or not {"", ".", ".."}.isdisjoint(name.split("/")) or "\0" in name:
        return False
    # Surrogates are bytes of a name that is not UTF-8; half of a pair is no byte at all.
    return name.isascii() or all(not "\ud800" <= c <= "\udfff" or "\udc80" <= c <= "\udcff" for c in name)


def inside(folder: PathLike, name: object, where: object, *, write: bool = False) -> Path:
    """The path of something that a file names, which must lie in a folder.

    Args:
        folder: where it must be.
        name: relative to ``folder``, with ``/``, as read from a file.
        where: the file that names it, for the message.
        write: it is to be written or removed: then no link may lead out of the folder either.

    Raises:
        OlivineError: ``name`` is no relative path (absolute, with ``..``, empty, with a null character), or leads out.
    """
    remedy = "a path in this file may not leave its folder; get or make the file again"
    if not (isinstance(name, str) and is_relative_name(name)):
        raise OlivineError(f"names the path {name!r}", where=where, remedy=remedy)
    path = Path(folder, name)
    if write and not path.parent.resolve().is_relative_to(Path(folder).resolve()):
        raise OlivineError(f"names the path {name!r}, which a link leads out of {folder}", where=where, remedy=remedy)
    return path


def weights_folder() -> Path:
    """Where ``olivine weights fetch`` puts published weights: ``$OLIVINE_WEIGHTS``, else ``~/.cache/olivine/weights``."""
    return Path(os.environ.get("OLIVINE_WEIGHTS") or Path.home() / ".cache" / "olivine" / "weights")


def sha256_file(path: PathLike) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value's canonical form, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
