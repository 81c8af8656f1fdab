"""Self-training: a network that weak labels have taught teaches the next one, by what it is sure of."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, PathLike, demand, read_bytes, read_json, sha256_file, write_bytes, write_json
from ..pairs.shards import ShardSet
from ..train.checkpoint import checkpoint_file
from ..train.devices import make_fabric
from ..train.run_folder import read_identity
from ..train.settings import PretrainSettings
from .network import read_source
from .predict import predicted_points, read_segmenter
from .results import Result, write_results
from .segment import discard, open_ground, segment
from .settings import FinetuneSettings
from .weak import WeakLabels

_STEPS = 1 << 16
"""Of probabilities from 0 to 1."""


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

    Every round starts from the same weights. Of the points that the last network gives a class, the share
    ``settings.surest`` that it is surest of keep it, class by class (as Zou et al., Class-Balanced Self-Training, ECCV
    2018): by one probability for all, rare classes would be taught no more. The other points keep their weak label.

    Args:
        out: ``round-0``, ``round-1``, … are runs as :func:`~olivine.downstream.finetune.finetune` makes them, ``labels-1``
            the labels of the first; ``scores.md`` and ``scores.json`` have all of them. What is finished there is
            not done again; with ``overwrite`` rounds beyond ``rounds`` are removed, for they are another run's.
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
    weak = WeakLabels(ground.train, ground.classes, settings.least_score)
    if overwrite:
        _remove_rounds(out, rounds + 1, (source.path or None, ground.train.path, ground.validation.path))
    else:
        _check_surest(out, settings.surest)
    results = []
    for number in range(rounds + 1):
        folder = out / f"round-{number}"
        taught = None
        if number:
            teacher, labels = out / f"round-{number - 1}", out / f"labels-{number}"
            taught = OwnLabels(ground.train, weak, teacher, labels, settings)
        where = Path(predictions) if predictions is not None and number == rounds else None
        result = segment(
            source, ground, folder, settings, fabric, predictions=where, overwrite=overwrite, taught=taught
        )
        results.append(replace(result, name=f"round {number}"))
    write_results(out, results)
    return results


def _remove_rounds(out: Path, first: int, inputs: tuple[PathLike | None, ...]) -> None:
    """Remove the runs and labels of the rounds from ``first`` on, and no file that a round does not write."""
    for number in itertools.count(first):
        folder, labels = out / f"round-{number}", out / f"labels-{number}"
        if not folder.is_dir() and not labels.is_dir():
            return
        if discard(folder, "finetune", inputs):
            (folder / "run.json").unlink()
            (folder / ".run.lock").unlink(missing_ok=True)
        if (labels / "labels.json").is_file():
            for path in (labels / "labels.json", *labels.glob("[0-9]*.bin")):
                path.unlink()
        for emptied in (folder / "tensorboard", folder, labels):
            if emptied.is_dir() and not any(emptied.iterdir()):
                emptied.rmdir()


def _check_surest(out: Path, surest: float) -> None:
    """Raise where a round in ``out`` learnt from another share of labels, before its labels are written anew.

    ``round-0`` has no such labels: it is taken with any share.

    Raises:
        OlivineError: names the round and both shares.
    """
    for number in itertools.count(1):
        path = out / f"round-{number}" / "run.json"
        if not path.is_file() or not any(path.parent.glob("*.pt")):
            return
        there = read_identity(path, "choose another --out")["settings"].get("surest", surest)
        if there != surest:
            raise OlivineError(
                f"holds another run: surest is {there} there and {surest} here",
                where=path.parent,
                remedy="choose another --out, or remove this round and those after it, with their labels",
            )


class OwnLabels:
    """A fine-tuned network's labels of a set's points, written once and read by frame; weak labels where it has none.

    Args:
        shards: the frames.
        weak: the points' weak labels, uint8 [N] of a frame.
        teacher: the run's folder.
        folder: one file for each frame, uint8 [N], 0 = not among the surest; and ``labels.json``: of whose labels they are, the
            classes' names from 1 on, and the SHA-256 of each file (``olivine check-labels --rounds`` reads it).
        settings: ``surest`` and the device are taken.

    Attributes:
        identity: the teacher's SHA-256 and what else decides the labels.
        note: for the scores.
    """

    def __init__(
        self, shards: ShardSet, weak: WeakLabels, teacher: Path, folder: Path, settings: FinetuneSettings
    ) -> None:
        self._shards, self._weak, self._folder = shards, weak, folder
        path = checkpoint_file(teacher)
        self.identity: dict[str, Any] = {
            "teacher": sha256_file(path),
            "shards": shards.digest,
            "surest": settings.surest,
            "elsewhere": "weak",
        }
        self._again = f"remove {folder} and run again"
        record = self._record()
        if record is None or record["identity"] != self.identity:
            self._write(path, settings)
            record = self._record()
            assert record is not None
        self._files: list[str] = record["files"]
        self.note = (
            f"trained on the network's own labels on {100 * record['kept']:.1f} % of the points, those that it was surest of "
            "in the round before, and on the weak ones elsewhere"
        )

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
        classes, frames = list(content["data"]["classes"]), range(len(self._shards))
        seen = np.zeros((len(classes) + 1, _STEPS), np.int64)  # by class and probability
        for frame, predicted, sure in predicted_points(model, examples, frames, "labels of the last round"):
            step = np.rint((_STEPS - 1) * sure).astype(np.uint16)
            seen += np.bincount(predicted * _STEPS + step, minlength=seen.size).reshape(seen.shape)
            write_bytes(self._path(frame), step.tobytes() + predicted.astype(np.uint8).tobytes())
        least, kept, files = _least_steps(seen, settings.surest), 0, []
        for frame in frames:
            data = read_bytes(self._path(frame), self._again, what="labels")
            count = len(data) // 3
            step, predicted = np.frombuffer(data, np.uint16, count), np.frombuffer(data, np.uint8, offset=2 * count)
            label = np.where(step >= least[predicted], predicted, 0).astype(np.uint8)
            write_bytes(self._path(frame), label.tobytes())
            files.append(hashlib.sha256(label.tobytes()).hexdigest())
            kept += int((label > 0).sum())
        record = {"identity": self.identity, "classes": classes, "kept": kept / max(1, seen.sum()), "files": files}
        write_json(self._folder / "labels.json", record)

    def _path(self, frame: int) -> Path:
        return self._folder / f"{frame:06d}.bin"

    def __call__(self, frame: int) -> NDArray[np.uint8]:
        """uint8 [N], 0 = ignored: what the network is surest of, and the weak label elsewhere.

        Raises:
            OlivineError: the file is missing, or not what was written.
        """
        path = self._path(frame)
        data = read_bytes(path, self._again, what="labels")
        if hashlib.sha256(data).hexdigest() != self._files[frame]:
            raise OlivineError("has changed since it was written", where=path, remedy=self._again)
        own = np.frombuffer(data, np.uint8)
        return np.where(own > 0, own, self._weak(frame))


def _least_steps(seen: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """The largest step of each class from which on at least the share of its points lie; int64 [K].

    Args:
        seen: int64 [K, S], points of each class and step.
    """
    from_here_on = seen[:, ::-1].cumsum(1)[:, ::-1]
    return seen.shape[1] - 1 - (from_here_on[:, ::-1] >= share * seen.sum(1, keepdims=True)).argmax(1)
