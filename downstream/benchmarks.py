"""What the benchmarks fixed: which frames a fraction of the labels is, and the files that predictions are handed in as.

Shards carry what their data set says of its benchmark, and its classes with the raw values that mean each; nothing here
reads a data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import (
    MARK,
    OlivineError,
    PathLike,
    Whole,
    claim_output,
    demand,
    inside,
    read_bytes,
    write_bytes,
    write_json,
)
from ..pairs.shards import ShardSet
from .written import begin_output, read_mark

_CONFIDENCE = "confidence/{token}.bin"
_PREDICT_AGAIN = "run olivine predict again"


def training_frames(shards: ShardSet, percent: float, part: int = 0) -> list[int]:
    """The frames of a fraction of the training set, as positions in it: the published ones, or another part of it.

    With k = 100 / percent, by what the benchmark counts: the k-th, 2k-th, … scene in the data set's order, or every k-th
    frame, from the first. Part p has the scenes p places after those, the last part's neighbour being the first scene,
    or the frames p places later: k parts without a frame in common.

    Raises:
        OlivineError: a fraction without a whole k, a part that is not below k, or one that leaves no frame.
    """
    every = round(100 / percent)
    if abs(100 / percent - every) > 1e-6 * every:
        raise OlivineError(
            f"{percent:g} % is not every k-th of the training set", where="fraction", remedy="use 1, 5, 10, 25 or 100"
        )
    if not 0 <= part < every:
        raise OlivineError(f"no part {part} of {every}", where="part", remedy=f"use 0 to {every - 1}")
    if shards.benchmark.fraction_of == "frames":
        return list(range(part, len(shards), every))
    scenes = list(shards.scenes.values())
    chosen = [frame for scene in scenes[(every - 1 + part) % every :: every] for frame in scene]
    if not chosen:
        enough = next((p for p in (5, 10, 25, 50) if 100 // p <= len(scenes)), 100)
        raise OlivineError(
            f"{percent:g} % leaves no frame: it is every {every}th scene, and there are {len(scenes)}",
            where=shards.path,
            remedy=f"use a larger fraction, from {enough} % on",
        )
    return chosen


def scorer_mean_iou(iou: NDArray[np.float64], union: NDArray[np.float64], mean_over: str) -> float | None:
    """The mean IoU as the benchmark's own scorer makes it, None where there is none.

    One scorer averages over the classes that truth or prediction hold, another over all; so a class that the truth lacks
    counts 0 there. On the complete validation sets both are the mean over the classes present.

    Args:
        iou, union: [K], with IoU 0 where the union is empty.
        mean_over: ``present``, ``all`` or ``none``.
    """
    if mean_over == "all":
        return float(iou.mean())
    if mean_over == "present":
        return float(iou[union > 0].mean()) if (union > 0).any() else 0.0
    return None


class _Predictions:
    """The files of a set's predictions in its benchmark's own format; see ``Submission`` in the readers.

    Args:
        folder: of the submission.
        shards: the frames.
        classes: names of the classes from 1 on; not the shards' own, for shards without labels may name none.

    Raises:
        OlivineError: the data set has no such format.
    """

    _id: NDArray[np.unsignedinteger[Any]]
    """What each class 0..K is written as."""

    def __init__(self, folder: PathLike, shards: ShardSet, classes: Sequence[str]) -> None:
        self.folder, self.classes, self._shards = Path(folder), tuple(classes), shards
        if shards.benchmark.submission is None:
            raise OlivineError(f"{shards.dataset} has no format for predictions", where=shards.path)
        self._format = shards.benchmark.submission
        self._split = self._format.splits.get(shards.split, shards.split)

    def _ids(self, raw: Sequence[Sequence[int]]) -> NDArray[np.unsignedinteger[Any]]:
        """What each class is written as, by the raw ids that mean it."""
        ids = np.arange(len(self.classes) + 1, dtype=f"<u{self._format.bytes}")
        if self._format.original_ids:
            if len(raw) != len(ids):
                raise OlivineError(
                    f"{len(raw)} classes have original ids, and there are {len(ids) - 1} classes and 0",
                    where=self._shards.path,
                    remedy="build the shards from labelled frames, or run olivine predict again",
                )
            for number, (name, of_class) in enumerate(zip(("", *self.classes), raw)):
                ids[number] = self._format.chosen_ids.get(name, of_class[0])
        return ids

    def _path(self, name: str, token: str = "") -> Path:
        folder, _, stem = token.rpartition("/")
        for key, value in (("split", self._split), ("token", token), ("folder", folder), ("stem", stem)):
            name = name.replace(f"{{{key}}}", value)
        return inside(self.folder, name, self._shards.path)


class PredictionReader(_Predictions):
    """Reads what :class:`PredictionWriter` wrote; arguments as above.

    Attributes:
        classes: names of the classes 1..K that are read.
        checkpoint: SHA-256 of the network's file that made them; empty where an earlier version noted none.

    Raises:
        OlivineError: the data set has no such format, or the predictions are of other classes than the shards'.
    """

    def __init__(self, folder: PathLike, shards: ShardSet) -> None:
        made = read_mark(folder).get("network")
        self.checkpoint = ""
        super().__init__(folder, shards, shards.point_classes)
        if made is None:  # by a version that kept no account
            self._id = self._ids(shards.shard(0).attributes.get("point_class_raw", []))
            return
        kind = {"checkpoint?": str, "classes": [str], "ids": [Whole(0, 256**self._format.bytes - 1)]}
        found = demand(made, kind, self.folder / MARK, _PREDICT_AGAIN)
        self.classes, self.checkpoint = tuple(found["classes"]), found.get("checkpoint", "")
        if shards.point_classes not in ((), self.classes) or len(found["ids"]) != len(self.classes) + 1:
            raise OlivineError(
                "holds predictions of other classes than these shards have", where=folder, remedy=_PREDICT_AGAIN
            )
        self._id = np.array(found["ids"], f"<u{self._format.bytes}")

    def read(self, frame: int, points: int) -> NDArray[np.uint8]:
        """The class 0..K of each of a frame's ``points`` points, uint8 [N].

        Raises:
            OlivineError: the file is missing, of another number of points, or holds an id that is no class's.
        """
        path = self._path(self._format.file, self._shards.token(frame))
        found = np.frombuffer(self._bytes(path, points * self._id.itemsize), self._id.dtype)
        order = np.argsort(self._id)
        place = np.minimum(np.searchsorted(self._id, found, sorter=order), len(order) - 1)
        if not np.array_equal(self._id[order[place]], found):
            raise OlivineError("holds an id that no class has", where=path, remedy=_PREDICT_AGAIN)
        return order[place].astype(np.uint8)

    def confidence(self, frame: int, points: int) -> NDArray[np.uint8] | None:
        """How sure the network is of each point, uint8 [N], 255 = certain; None where it was not written."""
        path = self._path(_CONFIDENCE, self._shards.token(frame))
        return np.frombuffer(self._bytes(path, points), np.uint8) if path.is_file() else None

    def _bytes(self, path: Path, size: int) -> bytes:
        data = read_bytes(path, _PREDICT_AGAIN, what="prediction")
        if len(data) != size:
            raise OlivineError(
                f"has {len(data)} bytes, the frame's points need {size}", where=path, remedy=_PREDICT_AGAIN
            )
        return data


def uses_cameras(source_sha256: str, labels: str) -> bool:
    """Whether camera images, and the data of the networks that read them, went into the weights of a segmentation run.

    Args:
        source_sha256: of what it started from: ``random`` for random weights, else it is pre-trained.
        labels: what it learnt from: ``weak`` labels are a labeller's of camera images.
    """
    return source_sha256 != "random" or labels == "weak"


class PredictionWriter(_Predictions):
    """Writes a set's predictions, a file a frame, after :meth:`begin`; arguments as above.

    Args:
        raw: the raw ids that mean each class 0..K, as labelled shards of the data set carry them.
        pre_trained: whether camera images and other data than the benchmark's went into the weights; see
            :func:`uses_cameras`.
        confidence: whether :meth:`write_confidence` will be called too.

    Raises:
        OlivineError: the data set has no such format, or the folder holds something else than predictions.
    """

    def __init__(
        self,
        folder: PathLike,
        shards: ShardSet,
        classes: Sequence[str],
        raw: Sequence[Sequence[int]],
        *,
        pre_trained: bool,
        confidence: bool = False,
    ) -> None:
        super().__init__(folder, shards, classes)
        self._id, self._pre_trained, self._confidence = self._ids(raw), pre_trained, confidence
        claim_output(self.folder, inputs=(shards.path,))

    def begin(self, checkpoint: str, **how: Any) -> None:
        """Remove another network's predictions from the folder, and note whose come; by one process alone.

        Args:
            checkpoint: SHA-256 of the network's file.
            how: plain values: what else decides the predictions.
        """
        network = {"checkpoint": checkpoint, "classes": list(self.classes), "ids": self._id.tolist(), **how}
        declared = [self._format.declaration] if self._format.declaration else []
        files, sure = (
            [self._path(name, self._shards.token(frame)) for frame in range(len(self._shards))]
            for name in (self._format.file, _CONFIDENCE)
        )
        first = [self._path(name) for name in declared]
        paths = [*first, *(sure if self._confidence else ()), *files]
        names, earlier = ([p.relative_to(self.folder).as_posix() for p in some] for some in (paths, sure))
        begin_output(self.folder, network, names, earlier, inputs=(self._shards.path,))

    def write(self, frame: int, predicted: NDArray[np.integer]) -> None:
        """Write a frame's predictions, classes 1..K of every point in the data set's order."""
        write_bytes(self._path(self._format.file, self._shards.token(frame)), self._id[predicted].tobytes())

    def write_confidence(self, frame: int, sure: NDArray[np.floating]) -> None:
        """Write how sure a frame's predictions are, 0 to 1 for every point, as bytes."""
        data = np.rint(255 * sure).astype(np.uint8).tobytes()
        write_bytes(self._path(_CONFIDENCE, self._shards.token(frame)), data)

    def finish(self) -> None:
        """What the submission needs besides: the declaration of what was used, where the benchmark asks for one."""
        if self._format.declaration:
            write_json(self._path(self._format.declaration), self._declared(self._format.declares))

    def _declared(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._declared(item) for key, item in value.items()}
        return self._pre_trained if value == "pre_trained" else value
