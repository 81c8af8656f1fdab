"""What shards were built of: size, time and content of each cloud and image, noted beside them.

A data set exported again under the same names would otherwise be taken for the one before. The note is no part of a set's
identity, for times differ from copy to copy: a file of the same size and another time is read, and is another one only
where its content is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..common import OlivineError, Whole, demand, is_relative_name, read_json, sha256_file, write_json
from ..readers.frame import Frame
from .layout import UNITS

if TYPE_CHECKING:
    from .unit import Unit

Sources = dict[str, list[int | str]]
"""Size in bytes, time of change in nanoseconds and SHA-256 of each file, by its path relative to the data set's folder."""


def sources_of(frame: Frame, images: bool) -> Sources:
    """What a frame's files are now, with or without its images. To be asked before they are read: a file that changes
    meanwhile is then found to differ. One that cannot be read is left to who needs it."""
    names = [*frame.source.files(frame), *(camera.image for camera in frame.cameras if images)]
    found: Sources = {}
    for name in names:
        with contextlib.suppress(OSError):
            size, time = _size_and_time(frame.root / name)
            found[name] = [size, time, sha256_file(frame.root / name)]
    return found


def note_path(out: Path, number: int) -> Path:
    """The file of a shard's note; not .json, for cluster status counts those as finished units."""
    return out / UNITS / f"shard-{number:05d}.sources"


def write_note(out: Path, number: int, sources: Sources) -> None:
    """Note what a shard was built of.

    Raises:
        OlivineError: the disk is full or cannot be written.
    """
    write_json(note_path(out, number), sources)


def changed_file(out: Path, number: int, root: Path) -> str:
    """The first file that is another one than a shard was built of, relative to ``root``; empty where there is none.

    A file that is not there any more is taken for the same, and so is all of a shard without a note, as an earlier version
    made it. Where a file has another time and the same content the new time is noted, so that it is not read again.
    """
    path = note_path(out, number)
    try:
        sources: Sources = demand(read_json(path), {str: (Whole(), Whole(-(2**63)), str)}, path)
    except OlivineError:
        return ""
    now: Sources = {}
    for name, (size, time, content) in sources.items():
        now[name] = [size, time, content]
        if not is_relative_name(name):
            continue
        with contextlib.suppress(OSError):
            found = _size_and_time(root / name)
            if found == (size, time):
                continue
            if found[0] != size or sha256_file(root / name) != content:
                return name
            now[name] = [*found, content]
    if now != sources:
        with contextlib.suppress(OlivineError):  # the folder may be for reading only
            write_note(out, number, now)
    return ""


def refuse_changed_files(out: Path, root: Path, units: Sequence[Unit]) -> None:
    """Raise where shards of some units were built of other files than the data set in ``root`` has now.

    Raises:
        OlivineError: names the first file.
    """
    changed = [(unit, name) for unit in units if (name := changed_file(out, unit.number, root))]
    if changed:
        unit, name = changed[0]
        raise OlivineError(
            f"{len(changed)} of {len(units)} shards, that of {unit.scene.name} the first, were built of other files than "
            f"{root} holds now: {name} has changed",
            where=out,
            remedy="choose another --out folder, or build them again with --overwrite",
        )


def _size_and_time(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns
