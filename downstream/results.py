"""Scores on disk and as a table."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..common import OlivineError, Whole, demand, digest, read_json, write_bytes, write_json
from .metrics import Scores


@dataclass(frozen=True)
class Result:
    """What one backbone scored.

    Attributes:
        name: ``pre-trained``, ``random weights``, or the same ``fine-tuned``.
        source: the checkpoint's path, empty for random weights.
        scores: over every labelled point of the validation shards.
        classes: 1..K, also those that the scores leave out.
        confusion: points by (truth, prediction), K + 1 rows of K + 1; row and column 0 are the ignored class.
        settings: of the run.
        train_frames, validation_frames: frames used.
        provenance: digests of the shards, backbone, steps, batch.
        notes: what a reader of the scores should know: an unfinished checkpoint, shards that are not all there.
        by_scene: of each validation scene, see :func:`~olivine.downstream.metrics.counts_by_class`.
        labels_mean_iou: in [0, 1], of the validation frames' own weak labels, where the run learns from such; None where
            it does not.
    """

    name: str
    source: str
    scores: Scores
    classes: tuple[str, ...]
    confusion: list[list[int]]
    settings: dict[str, Any]
    train_frames: int
    validation_frames: int
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()
    labels_mean_iou: float | None = None
    by_scene: dict[str, dict[str, list[int]]] = field(default_factory=dict)


def write_results(folder: Path, results: list[Result]) -> None:
    """``scores.md`` and ``scores.json`` in ``folder``, for one result also ``confusion.csv``."""
    write_bytes(folder / "scores.md", score_table(results).encode())
    if len(results) == 1:
        write_bytes(folder / "confusion.csv", _confusion_table(results[0]).encode())
    plain = [asdict(r) for r in results]
    write_json(folder / "scores.json", [{**one, "digest": digest(one)} for one in plain])


_RESULT = {
    "name": str,
    "source": str,
    "scores": {
        "iou": {str: float},
        "absent": [str],
        "mean_iou": float,
        "frequency_weighted_iou": float,
        "accuracy": float,
        "point_count": Whole(),
        "scorer_mean_iou?": {float, None},
    },
    "classes": [str],
    "confusion": [[Whole()]],
    "settings": dict,
    "train_frames": Whole(),
    "validation_frames": Whole(),
    "provenance": dict,
    "notes": [str],
    "labels_mean_iou?": {float, None},
    "by_scene?": {str: {str: [Whole()]}},
    "digest?": str,
}


def read_result(path: Path) -> Result:
    """The result in the ``scores.json`` of one run.

    Raises:
        OlivineError: the file is damaged, or its content is not what was written.
    """
    remedy = "remove it and run the same command again"
    found = demand(read_json(path, remedy), list, path, remedy)
    if len(found) != 1:
        raise OlivineError(f"holds {len(found)} results, not one", where=path, remedy=remedy)
    plain = demand(found[0], _RESULT, path, remedy)
    stored = plain.pop("digest", None)  # an older olivine wrote none
    known = {one.name for kind in (Result, Scores) for one in fields(kind)}
    if {*plain, *plain["scores"]} - known or (stored is not None and stored != digest(plain)):
        raise OlivineError("damaged: its content does not match its digest", where=path, remedy=remedy)
    scores = Scores(**{**plain["scores"], "absent": tuple(plain["scores"]["absent"])})
    sequences = {key: tuple(plain[key]) for key in ("classes", "notes")}
    return Result(**{**plain, **sequences, "scores": scores})


def score_table(results: list[Result]) -> str:
    """A Markdown table: a row for each class and one for the mean, a column for each result; IoU in percent."""
    classes = [name for name in results[0].classes if name in results[0].scores.iou]
    width = max(len(c) for c in (*classes, "frequency-weighted"))
    names = [r.name for r in results]
    lines = [
        f"| {'IoU / %':{width}} | " + " | ".join(names) + " |",
        f"|{'-' * (width + 2)}|" + "|".join("-" * (len(n) + 1) + ":" for n in names) + "|",
    ]

    def row(label: str, values: list[float]) -> str:
        return f"| {label:{width}} | " + " | ".join(f"{100 * v:{len(n)}.1f}" for v, n in zip(values, names)) + " |"

    lines += [row(c, [r.scores.iou[c] for r in results]) for c in classes]
    lines.append(row("mean", [r.scores.mean_iou for r in results]))
    lines.append(row("frequency-weighted", [r.scores.frequency_weighted_iou for r in results]))
    first = results[0]
    lines.append("")
    lines.append(
        f"{first.scores.point_count:,} labelled points of {first.validation_frames} validation frames; "
        f"trained on {first.train_frames} frames."
    )
    if first.scores.absent:
        lines.append(f"Not in the validation set, left out of the means: {', '.join(first.scores.absent)}.")
    theirs = {r.name: r.scores.scorer_mean_iou for r in results}
    if any(t is not None and abs(t - r.scores.mean_iou) > 5e-7 for t, r in zip(theirs.values(), results)):
        means = ", ".join(f"{name} {100 * t:.1f}" for name, t in theirs.items() if t is not None)
        lines.append(f"Mean by the benchmark's own scorer, which counts such classes as 0: {means}.")
    lines += dict.fromkeys(f"Note: {note}." for result in results for note in result.notes)
    return "\n".join(lines) + "\n"


def _confusion_table(result: Result) -> str:
    """Points by truth (rows) and prediction (columns), with the classes' names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["truth", *result.classes])
    writer.writerows([name, *row[1:]] for name, row in zip(result.classes, result.confusion[1:]))
    return text.getvalue()
