"""KITTI object detection: velodyne, image_2, calib and label_2; the usual halves of the labelled frames, boxes in the LiDAR frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, read_text
from ..common.images import image_size
from .dataset import Dataset, truth_folder
from .frame import Box, Camera, Frame

FRAMES = 7481
"""Labelled frames of the official ``training`` folder."""
_AGAIN = "unpack the object archives (velodyne, left color images, calib, label_2) into this folder again"
_FOLDERS = {"train": "training", "val": "training", "test": "testing"}
Matrix = NDArray[np.float64]


class KittiObjectDataset(Dataset):
    """KITTI's object benchmark (``training/{velodyne,image_2,calib,label_2}``, ``testing/…``).

    ``training`` is split as ``ImageSets/train.txt`` and ``val.txt`` say, where they are in the folder, and else into the 3,712
    and 3,769 frames that the field uses. The frames are from many drives in no order: they have no poses, and their times
    only count them.
    """

    name = "kitti-object"
    version = "object"
    intensity_offset = 1.0  # as on KITTI odometry: the same sensor

    def __init__(self, root: Path, version: str | None = None) -> None:
        self.root = Path(root)
        self._truth = truth_folder(self.root)
        if not (self.root / "training" / "velodyne").is_dir():
            raise OlivineError("no KITTI object data here (no training/velodyne)", where=self.root, remedy=_AGAIN)
        self._members = {split: self._numbers(split) for split in _FOLDERS}
        lists = [self.root / "ImageSets" / f"{split}.txt" for split in ("train", "val")]
        both = set(self._members["train"]) & set(self._members["val"])
        if both and not all(path.is_file() for path in lists):
            there, absent = sorted(lists, key=lambda path: not path.is_file())
            raise OlivineError(
                f"names {len(both)} frames that are in the official {absent.stem} split, and there is no {absent.name}",
                where=there,
                remedy=f"write ImageSets/{absent.name} too",
            )
        self.note = ", ".join(f"{len(numbers)} {split}" for split, numbers in self._members.items() if numbers)

    @classmethod
    def count(cls, root: Path) -> int:
        """The point files; see :class:`Dataset`."""
        return sum(1 for folder in ("training", "testing") for _ in (root / folder / "velodyne").glob("*.bin"))

    @classmethod
    def state(cls, root: Path, version: str) -> Sequence[Path]:
        """The folders of the files, and the lists of the splits; see :class:`Dataset`."""
        return [*root.glob("t*ing/*"), *root.glob("ImageSets/*.txt")]

    @classmethod
    def boxes(cls, frame: Frame) -> list[Box] | None:
        """The objects of ``label_2`` but for ``DontCare``, in the file's order; None on the test frames."""
        number = frame.token.rpartition("/")[2]
        path = frame.root / "training" / "label_2" / f"{number}.txt"
        if frame.split == "test":
            return None
        _, _, to_camera_0 = _calibration(frame.root / "training" / "calib" / f"{number}.txt")
        xyz = frame.points()[:, :3].astype(np.float64)
        lines = enumerate(read_text(path, _AGAIN).splitlines(), 1)
        return [
            _box(line.split(), np.linalg.inv(to_camera_0), xyz, f"{path} line {number}")
            for number, line in lines
            if line.strip() and not line.startswith("DontCare")
        ]

    def _numbers(self, split: str) -> list[str]:
        """The names of a split's frames that are here."""
        folder = self.root / _FOLDERS[split] / "velodyne"
        here = sorted(path.stem for path in folder.glob("*.bin"))
        if wrong := [name for name in here if not name.isdecimal()]:
            raise OlivineError("is not named by its number", where=folder / f"{wrong[0]}.bin", remedy="move it away")
        if split == "test":
            return here
        listed = self.root / "ImageSets" / f"{split}.txt"
        if listed.is_file():
            wanted = read_text(listed, _AGAIN).split()
            if twice := [number for number, count in Counter(wanted).items() if count > 1]:
                raise OlivineError(f"names frame {twice[0]} twice", where=listed, remedy="remove one of the two")
            if absent := sorted(set(wanted) - set(here)):
                raise OlivineError(f"names frame {absent[0]}, which is not in {folder}", where=listed, remedy=_AGAIN)
            return wanted
        training = official_training_frames()
        if over := [name for name in here if int(name) >= FRAMES]:
            raise OlivineError(
                f"frame {over[0]} is beyond the official {FRAMES}",
                where=folder,
                remedy="say which frames are for what: ImageSets/train.txt and ImageSets/val.txt",
            )
        return [name for name in here if training[int(name)] == (split == "train")]

    def frames(self, split: str | None = None) -> list[Frame]:
        """The frames of ``train``, ``val`` or ``test`` (all without one), by number."""
        if split is not None and split not in _FOLDERS:
            raise OlivineError(f"unknown split {split!r}", remedy=f"choose one of {', '.join(_FOLDERS)}")
        chosen = _FOLDERS if split is None else (split,)
        return [self._frame(name, k, number) for name in chosen for k, number in enumerate(self._members[name])]

    def _frame(self, split: str, position: int, number: str) -> Frame:
        folder = _FOLDERS[split]
        intrinsic, lidar_to_camera, _ = _calibration(self.root / folder / "calib" / f"{number}.txt")
        image = f"{folder}/image_2/{number}.png"
        width, height = image_size(self.root / image, _AGAIN)
        return self.make_frame(
            token=f"{folder}/{number}",
            scene=split,
            split=split,
            timestamp=position * 1_000_000,
            point_file=f"{folder}/velodyne/{number}.bin",
            point_columns=4,
            pose=np.full((4, 4), np.nan),
            cameras=(Camera("image_2", image, width, height, intrinsic, lidar_to_camera),),
            truth_folder=self._truth,
        )


def lidar_to_labels(frame: Frame) -> Matrix:
    """LiDAR to the rectified camera 0 of a frame, in which label and result files give places; float64 [4, 4]."""
    return _calibration(calibration_file(frame))[2]


def calibration_file(frame: Frame) -> Path:
    """The file with the calibration of a frame."""
    return frame.root / f"{frame.token.replace('/', '/calib/')}.txt"


def label_file(frame: Frame) -> Path | None:
    """The file with the objects of a frame; None on the test frames."""
    return None if frame.split == "test" else frame.root / f"{frame.token.replace('/', '/label_2/')}.txt"


def official_training_frames() -> NDArray[np.bool_]:
    """Whether each of the labelled frames is for training (3,712) or for validation (3,769); bool [7481]."""
    text = (files(__package__) / "data" / "kitti_object_split.txt").read_text()
    digits = "".join(line for line in text.splitlines() if not line.startswith("#"))
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))[:FRAMES].astype(bool)


def _calibration(path: Path) -> tuple[Matrix, Matrix, Matrix]:
    """K of the left colour camera [3, 3], LiDAR to it [4, 4], and LiDAR to the rectified camera 0 [4, 4].

    K · ``lidar_to_camera`` is P2 · R0_rect · Tr_velo_to_cam.
    """
    values: dict[str, Matrix] = {}
    for line in read_text(path, _AGAIN).splitlines():
        key, _, rest = line.partition(":")
        try:
            values[key.strip()] = np.array(rest.split(), np.float64)
        except ValueError:
            raise OlivineError(f"{key.strip()} is not numbers", where=path, remedy=_AGAIN) from None
    for key, count in (("P2", 12), ("R0_rect", 9), ("Tr_velo_to_cam", 12)):
        if key not in values or values[key].shape != (count,) or not np.isfinite(values[key]).all():
            raise OlivineError(f"has no {key} of {count} numbers", where=path, remedy=_AGAIN)
    projection = values["P2"].reshape(3, 4)
    rectify, to_camera = np.eye(4), np.eye(4)
    rectify[:3, :3] = values["R0_rect"].reshape(3, 3)
    to_camera[:3] = values["Tr_velo_to_cam"].reshape(3, 4)
    to_camera_0 = rectify @ to_camera
    lidar_to_camera = to_camera_0.copy()
    try:
        lidar_to_camera[:3, 3] += np.linalg.solve(projection[:, :3], projection[:, 3])
    except np.linalg.LinAlgError:
        raise OlivineError("the left three columns of P2 have no inverse", where=path, remedy=_AGAIN) from None
    return projection[:, :3].copy(), lidar_to_camera, to_camera_0


def _box(words: list[str], to_lidar: Matrix, xyz: Matrix, where: str) -> Box:
    """An object as the label file has it: in the rectified camera 0, the place is the middle of the bottom."""
    from scipy.spatial.transform import Rotation

    try:
        height, width, length, x, y, z, turn = (float(word) for word in words[8:15])
    except ValueError:
        raise OlivineError("is no object of 15 values", where=where, remedy=_AGAIN) from None
    ahead = np.array([np.cos(turn), 0.0, -np.sin(turn)])
    up = np.array([0.0, -1.0, 0.0])
    axes = to_lidar[:3, :3] @ np.column_stack([ahead, np.cross(up, ahead), up])
    center = to_lidar[:3, :3] @ np.array([x, y - height / 2, z]) + to_lidar[:3, 3]
    inside = (np.abs((xyz - center) @ axes) <= np.array([length, width, height]) / 2).all(axis=1)
    i, j, k, w = (float(v) for v in Rotation.from_matrix(axes).as_quat())
    place = (float(center[0]), float(center[1]), float(center[2]))
    return Box(words[0], place, (length, width, height), (w, i, j, k), int(inside.sum()))
