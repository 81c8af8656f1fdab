"""Data sets in, :class:`~olivine.readers.frame.Frame` objects out.

One file for each data set, each reading through the data set's own package (devkit,
pykitti). Knows nothing of labels for images, shards or networks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..common import OlivineError, PathLike, digest
from .frame import Frame
from .index import FrameIndex, OutdatedIndex, open_index, write_index

DATASETS = ("nuscenes", "semantickitti", "kitti")


class Dataset(Protocol):
    """What a reader gives: frames by split, and what it is.

    Attributes:
        intensity_offset: what a network's input adds to the raw intensity of ``Frame.points()``.
    """

    name: str
    version: str
    root: Path
    point_classes: tuple[str, ...]
    intensity_offset: float
    note: str

    def frames(self, split: str | None = None) -> Sequence[Frame]:
        """The frames of a split, scene by scene and in time order; all of them without one."""


def open_dataset(name: str, root: PathLike, version: str | None = None) -> Dataset:
    """Open a data set on disk.

    Args:
        name: ``nuscenes``, ``semantickitti`` or ``kitti`` (odometry layout).
        root: the data set's folder.
        version: nuScenes only, for example ``v1.0-mini``; without it the largest one present.

    Raises:
        OlivineError: the name is unknown, or the folder is not such a data set; says what is missing.
    """
    root = Path(root)
    if name not in DATASETS:
        raise OlivineError(f"unknown data set {name!r}", remedy=f"choose one of {', '.join(DATASETS)}")
    if not root.is_dir():
        raise OlivineError(
            f"no {name} data set here (no such folder)",
            where=root,
            remedy=f"link your data set to data/{name}, name its folder with --root, or make one with: olivine synth",
        )
    if name == "nuscenes":
        from .nuscenes import NuScenesDataset

        return NuScenesDataset(root, version)
    from .kitti import KittiDataset

    return KittiDataset(root, semantic=name == "semantickitti")


def index_dataset(directory: PathLike, name: str, root: PathLike, version: str | None = None) -> tuple[FrameIndex, str]:
    """The index of a data set's frames in ``directory``, written where it is absent or out of date.

    Args:
        directory: the index's folder.
        name, root, version: as :func:`open_dataset`.

    Returns:
        The index, and a line that says which version was taken and whether the index was at hand.
    """
    directory, root = Path(directory), Path(root)
    if root.is_dir() and (directory / "index.json").is_file():
        with contextlib.suppress(OutdatedIndex):
            index = open_index(directory, root)
            same = (index.dataset, version or index.version) == (name, index.version)
            if same and index.fingerprint == _fingerprint(root, index.version):
                return index, f"{index.version}, {len(index)} frames, index at hand in {directory}"
    dataset = open_dataset(name, root, version)
    index = write_index(
        directory,
        dataset.frames(),
        dataset=name,
        version=dataset.version,
        root=root,
        point_classes=dataset.point_classes,
        intensity_offset=dataset.intensity_offset,
        fingerprint=_fingerprint(root, dataset.version),
    )
    return index, f"{dataset.note}; {len(index)} frames in {len(index.scenes)} scenes"


def _fingerprint(root: Path, version: str) -> str:
    """Changes when the data set's tables or folders do; costs a few file-system calls."""
    tables = [*root.glob("v1.0-*/sample.json"), *(root / version).glob("*.json")]
    folders = [p for s in root.glob("sequences/*") for p in (s, *s.iterdir()) if s.is_dir()]
    state = [(str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted({*tables, *folders})]
    return digest(state)
