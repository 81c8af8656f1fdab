"""Data sets in, :class:`~olivine.readers.frame.Frame` objects out.

One file for each data set, found by its name, each reading through the data set's own package
(devkit, pykitti). Knows nothing of labels for images, shards or networks.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from ..common import OlivineError, PathLike, digest
from ..common.plugins import code_of
from .dataset import Dataset, dataset_class, dataset_names, reader_of, recognize
from .index import FrameIndex, OutdatedIndex, open_index, write_index

__all__ = [
    "Dataset",
    "check_current",
    "dataset_class",
    "dataset_names",
    "index_dataset",
    "open_dataset",
    "recognize",
]


def open_dataset(name: str, root: PathLike, version: str | None = None) -> Dataset:
    """Open a data set on disk.

    Args:
        name: of a file in this package (:func:`dataset_names`), or ``package.module:Class`` for one of your own.
        root: the data set's folder.
        version: of the data sets that have several, for example ``v1.0-mini``; without it the largest one present.

    Raises:
        OlivineError: the name is unknown, or the folder is not such a data set; says what is missing.
    """
    root = Path(root)
    kind = dataset_class(name)
    if not root.is_dir():
        raise OlivineError(
            f"no {kind.name} data set here (no such folder)",
            where=root,
            remedy=f"link your data set to data/{kind.name}, name its folder with --root, or make one with: olivine synth",
        )
    return kind(root, version)


def index_dataset(directory: PathLike, name: str, root: PathLike, version: str | None = None) -> tuple[FrameIndex, str]:
    """The index of a data set's frames in ``directory``, written where it is absent or out of date.

    Args:
        directory: the index's folder.
        name, root, version: as :func:`open_dataset`.

    Returns:
        The index, and a line that says which version was taken and whether the index was at hand.
    """
    directory, root = Path(directory), Path(root)
    kind = dataset_class(name)
    if root.is_dir() and (directory / "index.json").is_file():
        with contextlib.suppress(OutdatedIndex):
            index = open_index(directory, root)
            same = (index.dataset, index.reader, version or index.version) == (
                kind.name,
                reader_of(kind),
                index.version,
            )
            if same and index.fingerprint == _fingerprint(kind, root, index.version):
                return index, f"{index.version}, {len(index)} frames, index at hand in {directory}"
    dataset = open_dataset(name, root, version)
    index = _write(directory, dataset)
    return index, f"{dataset.note}; {len(index)} frames in {len(index.scenes)} scenes"


def check_current(index: FrameIndex) -> str:
    """Check that an index still says what its data set's tables say; quick where they are the very files it was made of.

    Returns:
        A line on what could not be checked; empty where all was.

    Raises:
        OlivineError: frames have come, gone or changed (a calibration, a time, a pose); or the data set cannot be opened.
    """
    kind, root = index.source, index.root
    if not index.fingerprint or not root.is_dir() or index.fingerprint == _fingerprint(kind, root, index.version):
        return ""  # of no data set at all the first frame tells
    if not kind.state(root, index.version):
        return f"{root} has none of the data set's tables: that they are as when they were labelled was not checked"
    with tempfile.TemporaryDirectory() as folder:  # copied files have other times and the same content
        now = _write(folder, kind(root, index.version))
    before, after = ({scene.name: (scene.split, scene.digest) for scene in one.scenes} for one in (index, now))
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if changed:
        raise OlivineError(
            f"the data set has changed since its frames were listed: {len(changed)} of {len({**before, **after})} scenes, "
            f"{changed[0]} the first",
            where=root,
            remedy="run the same olivine labelgen again: it lists them anew and keeps the label maps",
        )
    return ""


def _write(directory: PathLike, dataset: Dataset) -> FrameIndex:
    kind = type(dataset)
    return write_index(
        directory,
        dataset.frames(),
        dataset=dataset.name,
        version=dataset.version,
        root=dataset.root,
        point_classes=dataset.point_classes,
        intensity_offset=dataset.intensity_offset,
        reader=reader_of(kind),
        fingerprint=_fingerprint(kind, dataset.root, dataset.version),
    )


def _fingerprint(kind: type[Dataset], root: Path, version: str) -> str:
    """Changes when the data set's tables or folders do, or the file of a reader of the user's; costs a few file-system calls."""
    state: list[Any] = [
        (os.path.relpath(p, root), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted({*kind.state(root, version)})
    ]
    return digest([*state, *([code] if (code := code_of(kind)) else [])])
