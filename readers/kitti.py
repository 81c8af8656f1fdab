"""KITTI odometry through pykitti: camera ``image_2``, official splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from ..common.images import image_size
from .dataset import Dataset, truth_folder
from .frame import Camera, Frame

SPLITS = {
    "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
    "val": ("08",),
    "test": tuple(f"{i:02d}" for i in range(11, 22)),
}


class KittiDataset(Dataset):
    """KITTI odometry in its own layout (``sequences/00/{velodyne,image_2,calib.txt,times.txt}``).

    Points are projected by the whole P2. pykitti's ``T_cam2_velo`` leaves out the last two
    entries of its fourth column, which moves pixels by up to 0.8 on a real frame.

    Args:
        root: the folder with ``sequences/`` (and ``poses/`` where there are any).
    """

    name = "kitti"
    version = "odometry"
    packages: ClassVar = {"pykitti": "pykitti"}
    # Many of this sensor's returns have the intensity 0, and a sparse convolution without bias cannot tell
    # a voxel of the feature 0 from an absent one. SLidR's public code adds 1.
    intensity_offset = 1.0

    def __init__(self, root: Path, version: str | None = None) -> None:
        self.root = Path(root)
        self._truth = truth_folder(self.root)
        known = {sequence for members in SPLITS.values() for sequence in members}
        folders = sorted(path.name for path in (self.root / "sequences").glob("*") if path.is_dir())
        self.sequences = [name for name in folders if name in known and (self._folder(name) / "velodyne").is_dir()]
        if not self.sequences:
            raise OlivineError(
                "no KITTI odometry sequences here (no sequences/00/velodyne)",
                where=self.root,
                remedy="unpack the odometry archives (velodyne, color, calib, poses) into this folder",
            )
        self.note = f"{len(self.sequences)} sequences: {', '.join(self.sequences)}"

    @classmethod
    def count(cls, root: Path) -> int:
        """The clouds of all sequences; see :class:`Dataset`."""
        return sum(1 for _ in root.glob("sequences/*/velodyne/*.bin"))

    @classmethod
    def state(cls, root: Path, version: str) -> Sequence[Path]:
        """The sequences, what lies in them, and the poses; see :class:`Dataset`."""
        sequences = [p for s in root.glob("sequences/*") if s.is_dir() for p in (s, *s.iterdir())]
        return [*sequences, *root.glob("poses/*.txt")]

    def label_lookup(self, sequence: str, split: str) -> bytes:
        """The class of every raw id of a sequence's label files; empty where it has no labels."""
        return b""

    def _folder(self, sequence: str) -> Path:
        return self.root / "sequences" / sequence

    def frames(self, split: str | None = None) -> list[Frame]:
        """The frames of ``train``, ``val`` or ``test`` (all without one), sequence by sequence in time order."""
        if split is not None and split not in SPLITS:
            raise OlivineError(f"unknown split {split!r}", remedy=f"choose one of {', '.join(SPLITS)}")
        return [
            frame
            for name, members in SPLITS.items()
            if split in (None, name)
            for sequence in members
            if sequence in self.sequences
            for frame in self._sequence_frames(sequence, name)
        ]

    def _sequence_frames(self, sequence: str, split: str) -> list[Frame]:
        data = _open_sequence(self.root, sequence)
        folder = self._folder(sequence)
        clouds = sorted((folder / "velodyne").glob("*.bin"))
        if not clouds:
            raise OlivineError(
                "no point files here", where=folder / "velodyne", remedy="unpack the velodyne archive again"
            )
        fewer = f"; sequence {sequence} has {len(clouds)} clouds for {len(data.timestamps)} times"
        if len(clouds) < len(data.timestamps) and fewer not in self.note:
            self.note += fewer
        lookup = self.label_lookup(sequence, split)
        intrinsic, lidar_to_camera = _camera_2(data.calib, folder / "calib.txt")
        frames = []
        for cloud in clouds:
            if not cloud.stem.isdecimal():
                raise OlivineError("is not named by its number", where=cloud, remedy="move it out of this folder")
            number = int(cloud.stem)
            if number >= len(data.timestamps):
                raise OlivineError(
                    f"no time for frame {cloud.stem} (the file has {len(data.timestamps)})",
                    where=folder / "times.txt",
                    remedy="unpack the calibration archive again",
                )
            image = f"sequences/{sequence}/image_2/{cloud.stem}.png"
            width, height = image_size(self.root / image, "unpack the color image archive again")
            frames.append(
                self.make_frame(
                    token=f"{sequence}/{cloud.stem}",
                    scene=sequence,
                    split=split,
                    timestamp=round(data.timestamps[number].total_seconds() * 1e6),
                    point_file=f"sequences/{sequence}/velodyne/{cloud.name}",
                    point_columns=4,
                    pose=_pose(data, number),
                    cameras=(Camera("image_2", image, width, height, intrinsic, lidar_to_camera),),
                    point_label_file=f"sequences/{sequence}/labels/{cloud.stem}.label" if lookup else None,
                    point_label_bytes=4,
                    point_label_lookup=lookup,
                    truth_folder=self._truth,
                )
            )
        return frames


def _open_sequence(root: Path, sequence: str) -> Any:
    try:
        import pykitti
    except ImportError as error:
        raise OlivineError(
            f"pykitti is not usable ({error})", remedy="install it: pip install 'olivine[kitti]'"
        ) from error
    folder = root / "sequences" / sequence
    for name in ("calib.txt", "times.txt"):
        if not (folder / name).is_file():
            raise OlivineError("missing", where=folder / name, remedy="unpack the calibration archive again")
    try:
        return pykitti.odometry(str(root), sequence)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
        raise OlivineError(
            f"pykitti cannot read the sequence ({type(error).__name__}: {error})",
            where=folder,
            remedy="unpack the calibration and pose archives again",
        ) from error


def _camera_2(calibration: Any, path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """K [3, 3] and ``lidar_to_camera`` [4, 4], so that K @ lidar_to_camera[:3] = P2 @ Tr.

    KITTI's P2 = K [I | t] has t in all three axes: the left colour camera is not exactly beside
    camera 0, in whose frame Tr ends.
    """
    projection = np.array(calibration.P_rect_20, np.float64)
    intrinsic = projection[:, :3].copy()
    lidar_to_camera = np.array(calibration.T_cam0_velo, np.float64)
    try:
        lidar_to_camera[:3, 3] += np.linalg.solve(intrinsic, projection[:, 3])
    except np.linalg.LinAlgError:
        raise OlivineError(
            "the left three columns of P2 have no inverse", where=path, remedy="unpack the calibration archive again"
        ) from None
    return intrinsic, lidar_to_camera


def _pose(data: Any, number: int) -> NDArray[np.float64]:
    if number >= len(data.poses):
        return np.full((4, 4), np.nan)
    return np.array(data.poses[number] @ data.calib.T_cam0_velo, np.float64)
