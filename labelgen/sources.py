"""The files that an imported image's maps are read from, and whether they are those of before.

Size, time and SHA-256 of each are noted in the record of the image's scene. Times differ from copy to copy, so a file of the
same size and another time is read, and is another one only where its content is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..common import sha256_file
from ..readers.frame import Camera
from .settings import LabelSettings

FilesOf = Callable[[Camera], Sequence[Path]]
Note = tuple[int, int, str]
"""Size in bytes, time of change in nanoseconds and SHA-256 of a file; ``(0, 0, "")`` of one that cannot be read."""


def find_file(folder: Path, camera: Camera, suffix: str) -> Path:
    """An image's file in a folder, at the image's key or at its relative path with another suffix."""
    for relative in (camera.key, str(Path(camera.image).with_suffix(""))):
        if (path := folder / f"{relative}{suffix}").exists():
            return path
    return folder / f"{camera.key}{suffix}"


def source_files(settings: LabelSettings) -> FilesOf:
    """What says of an image which files its maps are imported from: none where a labeler looks at the image."""
    folders = [(settings.camseg, ".png"), (settings.scores_from, ".png")]
    folders += [(settings.regions, suffix) for suffix in (".png", ".npz")]
    return lambda camera: [find_file(folder, camera, suffix) for folder, suffix in folders if folder is not None]


def note_of(path: Path) -> Note:
    """What is noted of a file."""
    try:
        state = path.stat()
        return state.st_size, state.st_mtime_ns, sha256_file(path)
    except OSError:
        return 0, 0, ""


def is_same(path: Path, noted: Note) -> bool:
    """Whether a file is the one of a note; one that is not there, or was not, is taken for the same."""
    size, time, content = noted
    try:
        state = path.stat()
        if not content or (state.st_size, state.st_mtime_ns) == (size, time):
            return True
        return state.st_size == size and sha256_file(path) == content
    except OSError:
        return True
