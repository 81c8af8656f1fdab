"""What a data set's file says: the contract, and how the file is found by name.

A data set is one class in one file, ``readers/<name>.py``, or anywhere on the Python path (``package.module:Class``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..common import Failure, OlivineError, PathLike
from ..common.plugins import find, names_in
from .benchmark import Benchmark, plain_name
from .frame import Box, Frame

PACKAGE = "olivine.readers"
OWN = (
    "bag_messages",
    "bag_rig",
    "bags",
    "benchmark",
    "check_edges",
    "checks",
    "clouds",
    "dataset",
    "frame",
    "index",
    "lens",
    "lidar_odometry",
    "project",
    "recording",
    "recording_files",
    "recording_start",
    "recording_upright",
)
"""The modules of this room that are no data set."""


class Dataset(ABC):
    """A data set on disk, opened.

    What a data set must say is :attr:`name`, :meth:`__init__`, :meth:`frames`, :meth:`count` and :meth:`state`; the rest has
    a default.

    Attributes:
        name: short; folders are called so.
        intensity_offset: what a network's input adds to the raw intensity of ``Frame.points()``.
        prompts: the prompt that each point class is, None where no prompt says it plainly. Empty where the data set has no
            point labels.
        packages: what the file imports, by the name it is installed under: the module.
        version: for example ``v1.0-mini``.
        root: the data set's folder.
        point_classes: names of the classes of ``Frame.point_labels()`` from 1 on, () without labels.
        note: which version was taken and what is unusual, one line for the user.
        doubts: what the data set's own description says and is probably wrong; ``olivine check-data`` counts it as wrong.
    """

    name: ClassVar[str]
    intensity_offset: float = 0.0
    prompts: ClassVar[Mapping[str, str | None]] = {}
    packages: ClassVar[Mapping[str, str]] = {}
    version: str
    root: Path
    point_classes: tuple[str, ...] = ()
    note: str = ""
    doubts: tuple[Failure, ...] = ()

    @abstractmethod
    def __init__(self, root: Path, version: str | None = None) -> None:
        """Open the data set in the folder ``root``.

        Raises:
            OlivineError: the folder is not such a data set; says what is missing.
        """

    @abstractmethod
    def frames(self, split: str | None = None) -> Sequence[Frame]:
        """The frames of ``train``, ``val`` or ``test`` (all without one), scene by scene and in time order."""

    @classmethod
    @abstractmethod
    def count(cls, root: Path) -> int:
        """About how many frames a folder holds of this data set, 0 where it is another's; quick, without its packages."""

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether a folder looks like this data set, by its files."""
        return cls.count(root) > 0

    @classmethod
    @abstractmethod
    def state(cls, root: Path, version: str) -> Sequence[Path]:
        """Files and folders whose sizes and times tell that the data set has changed since its index was written."""

    @classmethod
    def benchmark(cls, version: str) -> Benchmark:
        """What the data set's benchmark fixed."""
        return Benchmark()

    @classmethod
    def cloud(cls, frame: Frame) -> NDArray[np.float32]:
        """The points of a frame as its files have them, float32 [N, 4]; :meth:`Frame.points` checks the values.

        Raises:
            OlivineError: a file is missing or truncated.
        """
        path = frame.root / frame.point_file
        try:
            raw = np.fromfile(path, np.float32)
            size = path.stat().st_size
        except OSError as error:
            raise OlivineError(
                f"the point file of frame {frame.token} cannot be read ({error.strerror})",
                where=path,
                remedy="download the data set's LiDAR files again",
            ) from None
        if size % (4 * frame.point_columns):
            raise OlivineError(
                f"truncated point file: {size} bytes is not a whole number of {4 * frame.point_columns}-byte points",
                where=path,
                remedy="download it again",
            )
        return np.ascontiguousarray(raw.reshape(-1, frame.point_columns)[:, :4])

    @classmethod
    def files(cls, frame: Frame) -> tuple[str, ...]:
        """The files that the points and their labels come from, relative to the data set's folder."""
        return (frame.point_file, *([] if frame.point_label_file is None else [frame.point_label_file]))

    @classmethod
    def labels(cls, frame: Frame) -> NDArray[np.uint8] | None:
        """The mapped class of each point of a frame, uint8 [N], 0 = ignored; None where there are none.

        Raises:
            OlivineError: the label file is missing, or holds another number of labels than the cloud has points.
        """
        if frame.point_label_file is None:
            return None
        path = frame.root / frame.point_label_file
        wide = frame.point_label_bytes == 4
        try:
            raw: NDArray[Any] = np.fromfile(path, np.uint32 if wide else np.uint8)
        except OSError as error:
            raise OlivineError(
                f"the point labels of frame {frame.token} cannot be read ({error.strerror})",
                where=path,
                remedy="download the data set's point labels again",
            ) from None
        expected = (frame.root / frame.point_file).stat().st_size // (4 * frame.point_columns)
        if len(raw) != expected:
            raise OlivineError(
                f"{len(raw)} labels for {expected} points", where=path, remedy="download the point labels again"
            )
        if wide:
            raw = raw & 0xFFFF  # the upper half is the instance
        lookup = np.frombuffer(frame.point_label_lookup, np.uint8)
        if len(raw) and int(raw.max()) >= len(lookup):
            raise OlivineError(
                f"raw class {int(raw.max())} is not one of the data set's {len(lookup)}",
                where=path,
                remedy="check that the labels belong to this data set",
            )
        return lookup[raw]

    @classmethod
    def boxes(cls, frame: Frame) -> list[Box] | None:
        """The annotated boxes of a frame in its LiDAR frame, None where the data set has none."""
        return None

    @classmethod
    def delays(cls, frame: Frame) -> dict[str, float]:
        """Seconds from a frame's cloud to the image of each camera; empty where the data set does not say."""
        return {}

    @classmethod
    def prompt_of(cls, point_class: str) -> str | None:
        """The prompt that a point class is, None where it is none; blanks, ``-`` and ``_`` are the same.

        Raises:
            OlivineError: the data set's file does not say it of any class.
        """
        if not cls.prompts:
            raise OlivineError(
                f"nothing says which prompt a point class of {cls.name} is",
                where=f"class {cls.__name__} in {cls.__module__}",
                remedy="give that class a table `prompts` of its point classes",
            )
        plain = {plain_name(key): prompt for key, prompt in cls.prompts.items()}
        return plain.get(plain_name(point_class))

    def make_frame(self, **fields: Any) -> Frame:
        """A frame of this data set; ``fields`` are those of :class:`Frame` but for what the data set itself says."""
        return Frame(dataset=self.name, version=self.version, root=self.root, reader=reader_of(type(self)), **fields)


def dataset_names() -> list[str]:
    """The data sets that have a file in this package."""
    return names_in(PACKAGE, without=OWN)


@lru_cache
def dataset_class(name: str) -> type[Dataset]:
    """The data set that ``name`` means: ``nuscenes``, or ``package.module:Class`` outside this package.

    Raises:
        OlivineError: there is none of that name, or its file cannot be imported.
    """
    found: type[Dataset] = find(name, PACKAGE, Dataset, "data set", without=OWN)  # type: ignore[type-abstract]
    return found


def reader_of(kind: type[Dataset]) -> str:
    """The name by which another process finds a data set of the user's own; empty where its name is enough."""
    return "" if kind.__module__.rpartition(".")[0] == PACKAGE else f"{kind.__module__}:{kind.__qualname__}"


def recognize(root: PathLike) -> list[str]:
    """The data sets of this package that a folder may hold; of one and another that is built on it, the latter."""
    found = {name: kind for name in dataset_names() if (kind := dataset_class(name)).recognizes(Path(root))}
    return [n for n, kind in found.items() if not any(o is not kind and issubclass(o, kind) for o in found.values())]


def truth_folder(root: Path) -> str | None:
    """The folder of the exact masks that ``olivine synth`` writes, None where the data set is not synthetic."""
    return "truth" if (root / "synthetic.json").is_file() and (root / "truth").is_dir() else None
