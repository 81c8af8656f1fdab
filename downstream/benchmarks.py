"""What the benchmarks fixed: which frames a fraction of the labels is, and the files that predictions are handed in as.

Shards name their data set and carry its classes with the raw values that mean each; nothing here reads a data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, claim_output, write_bytes, write_json
from ..pairs.shards import ShardSet

# SemanticKITTI's published inverse map takes the smallest raw id of each class but for this one (13 is a bus).
_RAW_IDS = {"other-vehicle": 20}


def training_frames(shards: ShardSet, percent: float) -> list[int]:
    """The frames of a published fraction of the training set, as positions in it.

    nuScenes (SLidR's subsets): the k-th, 2k-th, … scene in the tables' order, k = 100 / percent; 1 % of 700 scenes is
    7. SemanticKITTI: every k-th of the sorted frames, from the first.

    Raises:
        OlivineError: a fraction without a whole k, or one that leaves no frame.
    """
    every = round(100 / percent)
    if abs(100 / percent - every) > 1e-6 * every:
        raise OlivineError(
            f"{percent:g} % is not every k-th of the training set", where="fraction", remedy="use 1, 5, 10, 25 or 100"
        )
    if shards.dataset != "nuscenes":
        return list(range(0, len(shards), every))
    scenes = list(shards.scenes.values())
    chosen = [frame for scene in scenes[every - 1 :: every] for frame in scene]
    if not chosen:
        enough = next((p for p in (5, 10, 25, 50) if 100 // p <= len(scenes)), 100)
        raise OlivineError(
            f"{percent:g} % leaves no frame: it is every {every}th scene, and there are {len(scenes)}",
            where=shards.path,
            remedy=f"use a larger fraction, from {enough} % on",
        )
    return chosen


def scorer_mean_iou(iou: NDArray[np.float64], union: NDArray[np.float64], dataset: str) -> float | None:
    """The mean IoU as the benchmark's own scorer makes it, None for other data sets.

    nuscenes-devkit averages over the classes that truth or prediction hold, semantic-kitti-api over all; so a class
    that the truth lacks counts 0 there. On the complete validation sets both are the mean over the classes present.

    Args:
        iou, union: [K], with IoU 0 where the union is empty.
    """
    if dataset == "semantickitti":
        return float(iou.mean())
    if dataset == "nuscenes":
        return float(iou[union > 0].mean()) if (union > 0).any() else 0.0
    return None


class PredictionWriter:
    """Writes a set's predictions in its benchmark's own format, a file a frame.

    nuScenes-lidarseg: ``lidarseg/<split>/<LiDAR sample_data token>_lidarseg.bin``, uint8, the challenge's classes, and
    ``<split>/submission.json``. SemanticKITTI: ``sequences/08/predictions/000123.label``, uint32, original ids.

    Args:
        folder: of the submission.
        shards: the frames.
        raw: the raw ids that mean each class 0..K, as labelled shards of the data set carry them.
        pre_trained: whether camera images and other data than the benchmark's went into the weights.

    Raises:
        OlivineError: the data set has no such format, or the folder holds something else than predictions.
    """

    def __init__(self, folder: Path, shards: ShardSet, raw: Sequence[Sequence[int]], *, pre_trained: bool) -> None:
        self.folder, self._shards = Path(folder), shards
        self._pre_trained = pre_trained
        if shards.dataset == "semantickitti":
            self._raw = _raw_ids(shards.point_classes, raw)
        elif shards.dataset == "nuscenes":
            # The devkit has lists of its own for the small version.
            mini = shards.shard(0).attributes["version"] == "v1.0-mini"
            self._split = f"mini_{shards.split}" if mini else shards.split
        else:
            raise OlivineError(f"{shards.dataset} has no format for predictions", where=shards.path)
        claim_output(self.folder, inputs=(shards.path,))

    def write(self, frame: int, predicted: NDArray[np.integer]) -> None:
        """Write a frame's predictions, classes 1..K of every point in the data set's order."""
        token = self._shards.token(frame)
        if self._shards.dataset == "nuscenes":
            path = self.folder / "lidarseg" / self._split / f"{token}_lidarseg.bin"
            write_bytes(path, predicted.astype(np.uint8).tobytes())
        else:
            sequence, name = token.split("/")
            path = self.folder / "sequences" / sequence / "predictions" / f"{name}.label"
            write_bytes(path, self._raw[predicted].tobytes())

    def finish(self) -> None:
        """What the submission needs besides: on nuScenes the declaration of what was used."""
        if self._shards.dataset == "nuscenes":
            used = {"use_camera": self._pre_trained, "use_lidar": True, "use_radar": False}
            used |= {"use_map": False, "use_external": self._pre_trained}
            write_json(self.folder / self._split / "submission.json", {"meta": used})


def _raw_ids(classes: Sequence[str], raw: Sequence[Sequence[int]]) -> NDArray[np.uint32]:
    """The original id of each class 0..K."""
    chosen = [_RAW_IDS.get(name, ids[0]) for name, ids in zip(("", *classes), raw)]
    return np.array(chosen, "<u4")
