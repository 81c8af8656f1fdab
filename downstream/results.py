"""Scores on disk and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common import write_json
from .metrics import Scores


@dataclass(frozen=True)
class ProbeResult:
    """What one backbone scored.

    Attributes:
        name: ``random weights``, or the run's name.
        source: the checkpoint's path, empty for random weights.
        scores: over every labelled point of the validation shards.
        settings: of the probe.
        train_frames, validation_frames: frames used.
        provenance: digests of the shards, backbone.
    """

    name: str
    source: str
    scores: Scores
    settings: dict[str, Any]
    train_frames: int
    validation_frames: int
    provenance: dict[str, Any]


def write_results(folder: Path, results: list[ProbeResult]) -> None:
    """``scores.json`` and ``scores.md`` in ``folder``."""
    write_json(folder / "scores.json", [asdict(r) for r in results])
    from ..common import write_bytes

    write_bytes(folder / "scores.md", score_table(results).encode())


def score_table(results: list[ProbeResult]) -> str:
    """A Markdown table: a row for each class and one for the mean, a column for each result; IoU in percent."""
    classes = list(results[0].scores.iou)
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
        f"head trained on {first.train_frames} frames."
    )
    if first.scores.absent:
        lines.append(f"Not in the validation set, left out of the means: {', '.join(first.scores.absent)}.")
    return "\n".join(lines) + "\n"
