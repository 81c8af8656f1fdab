"""What a report is about, read from the stages' folders. Every part may be missing; then it is said why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, Whole, demand, digest, read_bytes, read_csv, read_json, read_text, sha256_file
from ..downstream.benchmarks import PredictionReader
from ..downstream.checkpoints import progress_at
from ..labelgen.store import LabelStore, open_store
from ..pairs.shards import ShardSet, open_shards

T = TypeVar("T")
LOSS_NAMES = {
    "loss_ppkt": "point-pixel InfoNCE (eq. 1)",
    "loss_wcd": "weakly-supervised contrast (eq. 2)",
    "loss_scr": "von Mises-Fisher consistency (eq. 13)",
}


@dataclass(frozen=True)
class Sources:
    """The folders that a report reads; None for what there is none of.

    Attributes:
        labels: label folder.
        label_scores: what ``olivine score-labels`` wrote.
        shards: of one split, whose frames are shown.
        run: of a pre-training, with its probe's and fine-tunings' folders.
        predictions: of the shards' split, as ``olivine predict`` wrote them.
        study: of a study.
    """

    labels: Path | None = None
    label_scores: Path | None = None
    shards: Path | None = None
    run: Path | None = None
    predictions: Path | None = None
    study: Path | None = None


@dataclass
class Contents:
    """What was found.

    Attributes:
        identity: the run's ``run.json``.
        curves: each loss of ``steps.csv``, float64 [steps, 2].
        epochs: passes that the run has finished.
        scores: title and results of the probe and of each fine-tuning.
        label_scores: ``score.json`` of ``olivine score-labels``.
        study: the study's tables as Markdown, and its image as PNG.
        missing: what is not there, and what makes it.
    """

    sources: Sources
    labels: LabelStore | None = None
    shards: ShardSet | None = None
    predictions: PredictionReader | None = None
    identity: dict[str, Any] | None = None
    curves: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    progress: str = ""
    scores: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    label_scores: dict[str, Any] | None = None
    study: tuple[str, bytes | None] | None = None
    missing: list[str] = field(default_factory=list)

    @property
    def point_classes(self) -> tuple[str, ...]:
        """Names of the shards' point classes from 1 on; of unlabelled shards, those that were predicted."""
        named = self.shards.point_classes if self.shards is not None else ()
        return named or (self.predictions.classes if self.predictions is not None else ())

    def attempt(self, what: str, do: Callable[[], T]) -> T | None:
        """The value of ``do``; what went wrong instead is listed in ``missing``."""
        try:
            return do()
        except OlivineError as error:
            self.missing.append(f"{what}: {error}")
            return None


def read_contents(sources: Sources) -> Contents:
    """Read what the folders hold."""
    found = Contents(sources)
    if sources.labels is None:
        none = "none in data/labels" if sources.shards is None else "none in data/labels that the shards were made of"
        remedy = "Run olivine labelgen" if sources.shards is None else "Name that folder with --labels"
        found.missing.append(f"label maps: {none}. {remedy}")
    else:
        found.labels = found.attempt("label maps", lambda: open_store(sources.labels or ""))
    if sources.shards is None:
        found.missing.append("points and pairs: no shards in data/pairs. Run olivine build-pairs")
    else:
        found.shards = found.attempt("points and pairs", lambda: open_shards(sources.shards or ""))
    of_other_labels = _leave_other_labels_out(found)
    if sources.run is None:
        found.missing.append("losses and scores: no run in runs/. Run olivine pretrain")
    else:
        _read_run(found, sources.run)
    if sources.label_scores is not None and not of_other_labels:
        path = sources.label_scores / "score.json"
        found.label_scores = found.attempt("label quality", lambda: read_label_scores(path))
    elif found.labels is not None:
        found.missing.append("label quality of whole images: not scored. Run olivine score-labels")
    if sources.study is not None:
        found.study = found.attempt("study", lambda: _read_study(sources.study or Path()))
    if found.shards is not None and sources.predictions is not None:
        found.predictions = found.attempt("predictions", lambda: _read_predictions(found, sources.predictions))
    elif found.shards is not None and sources.run is not None:
        found.missing.append("predictions: none of these shards. Run olivine finetune, then olivine predict")
    return found


def read_labels_and_shards(sources: Sources) -> Contents:
    """Open ``labels``, ``shards`` and ``predictions`` alone; predictions that cannot be read, and labels that the
    shards were not made of, are listed as missing.

    Raises:
        OlivineError: the folder of the labels or shards is not there, or is damaged.
    """
    found = Contents(sources)
    found.labels = open_store(sources.labels) if sources.labels is not None else None
    found.shards = open_shards(sources.shards) if sources.shards is not None else None
    _leave_other_labels_out(found)
    if found.shards is not None and len(found.shards) and sources.predictions is not None:
        found.predictions = found.attempt("predictions", lambda: _read_predictions(found, sources.predictions))
    return found


def _leave_other_labels_out(found: Contents) -> bool:
    """Leave label maps out that the shards were not made of, and say so; whether they are left out."""
    store, shards = found.labels, found.shards
    if store is None or shards is None or store.digest == shards.manifest["recipe"]["labels"]:
        return False
    what = f"those in {store.root} are not the labels that the shards in {shards.path} were made of"
    found.missing.append(f"label maps: {what}. Name that folder with --labels")
    found.labels = None
    return True


def _read_run(found: Contents, run: Path) -> None:
    remedy = "name the folder of a run with --run"
    found.identity = found.attempt("run", lambda: _read_identity(run / "run.json", remedy))
    if (run / "steps.csv").is_file():
        found.curves = found.attempt("losses", lambda: read_losses(run / "steps.csv")) or {}
    if not found.curves:
        found.missing.append(f"losses: {run}/steps.csv has none. Run olivine pretrain")
    if (run / "last.pt").is_file():
        found.progress = found.attempt("checkpoint", lambda: progress_at(run)) or ""
    folders = [run / "probe", *sorted(p for p in run.glob("finetune-*") if p.is_dir())]
    for folder in folders:
        path = folder / "scores.json"
        if path.is_file():
            title = "linear probe" if folder.name == "probe" else folder.name.replace("-", " ", 1) + " %"
            results = found.attempt(title, lambda path=path: read_scores(path))  # type: ignore[misc]
            if results:
                found.scores.append((title, results))
    if not found.scores:
        found.missing.append(f"scores: none in {run}. Run olivine probe")


def _read_identity(path: Path, remedy: str) -> dict[str, Any]:
    kind = {"kind": str, "settings": {"method?": dict, "backbone?": dict, "run?": dict}, "data": dict}
    found: dict[str, Any] = demand(read_json(path, remedy), kind, path, remedy)
    return found


def _read_study(folder: Path) -> tuple[str, bytes | None]:
    remedy = "run olivine study again"
    picture = folder / "table.png"
    return read_text(folder / "table.md", remedy), read_bytes(picture, remedy) if picture.is_file() else None


def _read_predictions(found: Contents, folder: Path | None) -> PredictionReader:
    assert found.shards is not None and folder is not None
    reader = PredictionReader(folder, found.shards)
    _check_network(reader, folder)
    reader.read(0, len(found.shards.points(0)))
    return reader


def _check_network(reader: PredictionReader, folder: Path) -> None:
    """Raise where predictions lie in the folder of a fine-tuning that another network made, as after ``--overwrite``."""
    last, run = folder.parent / "last.pt", folder.parent / "run.json"
    if not reader.checkpoint or not last.is_file() or not run.is_file():
        return
    remedy = "name other predictions with --predictions"
    if _read_identity(run, remedy)["kind"] == "finetune" and reader.checkpoint != sha256_file(last):
        raise OlivineError(f"of another network than {last}", where=folder, remedy="run olivine predict again")


def read_label_scores(path: Path) -> dict[str, Any]:
    """The ``score.json`` of ``olivine score-labels``: IoU, precision and recall by class, in percent.

    Raises:
        OlivineError: it is missing or damaged.
    """
    remedy = "run olivine score-labels again"
    by_class = {str: {float, None}}
    kind = {
        "against": str,
        "iou": by_class,
        "precision": by_class,
        "recall": by_class,
        "mean_iou": {float, None},
        "coverage": {float, None},
        "images": Whole(),
        "labels?": str,
        "maps?": {str: str},
    }
    found: dict[str, Any] = demand(read_json(path, remedy), kind, path, remedy)
    return found


def read_losses(path: Path) -> dict[str, NDArray[np.float64]]:
    """The curve of each term of a run's ``steps.csv``, float64 [steps, 2]: step and value.

    Raises:
        OlivineError: the file is damaged, or a value of it is no number.
    """
    remedy = "move it away; resume the run to make it again"
    rows = read_csv(path, remedy=remedy)
    curves = {}
    for name in (n for n in (rows[0] if rows else {}) if n.startswith("loss_")):
        try:
            points = [(float(row["step"]), float(row[name])) for row in rows if row[name]]
        except (KeyError, ValueError) as error:
            raise OlivineError(f"{name} or step is no number ({error})", where=path, remedy=remedy) from None
        if points:
            curves[name] = np.array(points)
    return curves


def read_scores(path: Path) -> list[dict[str, Any]]:
    """What ``scores.json`` holds for each backbone: ``name``, ``scores`` with ``iou`` and ``mean_iou``.

    Raises:
        OlivineError: the file is damaged.
    """
    remedy = "remove it and run olivine probe again"
    kind = [{"name": str, "scores": {"iou": {str: float}, "mean_iou": float}, "digest?": str}]
    results: list[dict[str, Any]] = demand(read_json(path, remedy), kind, path, remedy)
    if not results:
        raise OlivineError("holds no scores", where=path, remedy=remedy)
    if len({result["name"] for result in results}) < len(results):
        raise OlivineError("holds two results of one name", where=path, remedy=remedy)
    for result in results:
        stored = result.pop("digest", None)  # an older olivine wrote none
        if stored is not None and stored != digest(result):
            raise OlivineError("damaged: its content does not match its digest", where=path, remedy=remedy)
    return results
