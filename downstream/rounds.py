"""Self-training: a network that weak labels have taught teaches the next one, by what it is sure of."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, PathLike, demand, read_bytes, read_json, sha256_file, write_bytes, write_json
from ..pairs.shards import ShardSet
from ..train.checkpoint import checkpoint_file
from ..train.devices import make_fabric
from ..train.settings import PretrainSettings
from .network import read_source
from .predict import predicted_points, read_segmenter
from .results import Result, write_results
from .segment import open_ground, segment
from .settings import FinetuneSettings


def finetune_rounds(
    checkpoint: PathLike | None,
    train: PathLike,
    validation: PathLike,
    out: PathLike,
    settings: FinetuneSettings,
    *,
    rounds: int,
    random: bool = False,
    network: PretrainSettings | None = None,
    predictions: PathLike | None = None,
    overwrite: bool = False,
) -> list[Result]:
    """Fine-tune on weak labels, then ``rounds`` times again on the last network's own labels of the training frames.

    Every round starts from the same weights. A point keeps the class that the last network gives it with a probability
    of at least ``settings.sure``; the others are ignored.

    Args:
        out: ``round-0``, ``round-1``, … are runs as :func:`~olivine.downstream.finetune.finetune` makes them, ``labels-1``
            the labels of the first; ``scores.md`` and ``scores.json`` have all of them. What is finished there is
            not done again.
        predictions: of the last round.
        The others as :func:`~olivine.downstream.finetune.finetune` takes them.

    Returns:
        One result for each round, the first on the weak labels.

    Raises:
        OlivineError: as :func:`~olivine.downstream.finetune.finetune`; more than one process.
    """
    if rounds < 1:
        raise OlivineError(f"{rounds} rounds", where="--rounds", remedy="give at least 1, or leave it out")
    if settings.labels != "weak":
        raise OlivineError("rounds of labels are for weak ones", where="--rounds", remedy="add --learn-from weak")
    ground, out = open_ground(train, validation, settings.labels), Path(out)
    source = read_source(checkpoint, random=random, expected=network)
    fabric = make_fabric(settings.as_run())
    if fabric.world_size > 1:
        raise OlivineError("rounds run in one process", where="devices", remedy="use --set devices=1")
    results = []
    for number in range(rounds + 1):
        folder = out / f"round-{number}"
        taught = None
        if number:
            taught = OwnLabels(ground.train, out / f"round-{number - 1}", out / f"labels-{number}", settings)
        where = Path(predictions) if predictions is not None and number == rounds else None
        result = segment(
            source, ground, folder, settings, fabric, predictions=where, overwrite=overwrite, taught=taught
        )
        results.append(replace(result, name=f"round {number}"))
    write_results(out, results)
    return results


class OwnLabels:
    """A fine-tuned network's labels of a set's points, written once and read by frame.

    Args:
        shards: the frames.
        teacher: the run's folder.
        folder: one file for each frame, uint8 [N], 0 = not sure; and ``labels.json``: of whose labels they are, the
            classes' names from 1 on, and the SHA-256 of each file (``olivine check-labels --rounds`` reads it).
        settings: ``sure`` and the device are taken.

    Attributes:
        identity: the teacher's SHA-256 and what else decides the labels.
        note: for the scores.
    """

    def __init__(self, shards: ShardSet, teacher: Path, folder: Path, settings: FinetuneSettings) -> None:
        self._shards, self._folder = shards, folder
        path = checkpoint_file(teacher)
        self.identity: dict[str, Any] = {"teacher": sha256_file(path), "sure": settings.sure, "shards": shards.digest}
        self._again = f"remove {folder} and run again"
        record = self._record()
        if record is None or record["identity"] != self.identity:
            self._write(path, settings)
            record = self._record()
            assert record is not None
        self._files: list[str] = record["files"]
        self.note = f"trained on {100 * record['kept']:.1f} % of the points, which the network before was sure of"

    def _record(self) -> dict[str, Any] | None:
        """``labels.json``, None where there is none."""
        path = self._folder / "labels.json"
        if not path.is_file():
            return None
        shape = {"identity": dict, "kept": float, "files": [str]}
        found: dict[str, Any] = demand(read_json(path, self._again), shape, path, self._again)
        return found

    def _write(self, teacher: Path, settings: FinetuneSettings) -> None:
        model, examples, content = read_segmenter(teacher, self._shards, settings.accelerator)
        kept = total = 0
        files = []
        for frame, predicted, sure in predicted_points(
            model, examples, range(len(self._shards)), "labels of the last round"
        ):
            label = np.where(sure >= settings.sure, predicted, 0).astype(np.uint8)
            write_bytes(self._path(frame), label.tobytes())
            files.append(hashlib.sha256(label.tobytes()).hexdigest())
            kept, total = kept + int((label > 0).sum()), total + len(label)
        classes = list(content["data"]["classes"])
        record = {"identity": self.identity, "classes": classes, "kept": kept / max(1, total), "files": files}
        write_json(self._folder / "labels.json", record)

    def _path(self, frame: int) -> Path:
        return self._folder / f"{frame:06d}.bin"

    def __call__(self, frame: int) -> NDArray[np.uint8]:
        """uint8 [N], 0 = ignored.

        Raises:
            OlivineError: the file is missing, or not what was written.
        """
        path = self._path(frame)
        data = read_bytes(path, self._again, what="labels")
        if hashlib.sha256(data).hexdigest() != self._files[frame]:
            raise OlivineError("has changed since it was written", where=path, remedy=self._again)
        return np.frombuffer(data, np.uint8)
