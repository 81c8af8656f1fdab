"""Data sets in, :class:`~olivine.readers.frame.Frame` objects out.

One file for each data set, each reading through the data set's own package (devkit,
pykitti). Knows nothing of labels for images, shards or networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..common import OlivineError, PathLike
from .frame import Frame

DATASETS = ("nuscenes", "semantickitti", "kitti")


class Dataset(Protocol):
    """What a reader gives: frames by split, and what it is."""

    name: str
    version: str
    root: Path
    point_classes: tuple[str, ...]

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
