"""Several runs that differ in their seeds: the best, the mean with its interval, and pre-trained beside random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .detect import DetectionResult

_COMPARED = ("bev", "3d")
_MEAN = "mean"


@dataclass(frozen=True)
class DetectionRuns:
    """Several runs that differ in their seeds.

    Attributes:
        runs: their results.
        best: the highest mean AP (3D, moderate, 40 positions).
        mean: of the mean APs.
        interval: half the width of its 95 % interval by Student's t; None of one run.
    """

    runs: tuple[DetectionResult, ...]
    best: float
    mean: float
    interval: float | None


@dataclass(frozen=True)
class Gain:
    """What pre-training gains, in percentage points of AP.

    Attributes:
        mean: of the differences pre-trained minus random weights, seed by seed.
        interval: half the width of its 95 % interval by Student's t; None of one seed.
    """

    mean: float
    interval: float | None


@dataclass(frozen=True)
class DetectionComparison:
    """Runs from a pre-trained trunk beside runs from random weights with the same seeds.

    Attributes:
        pre_trained, random: the runs, in the order of the seeds.
        gain: by metric (``bev``, ``3d``) and class, ``mean`` among them; at moderate, 40 positions.
    """

    pre_trained: DetectionRuns
    random: DetectionRuns
    gain: dict[str, dict[str, Gain]]


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % interval by Student's t; None of one value."""
    found = np.array(values, np.float64)
    if len(found) < 2:
        return float(found.mean()), None
    from scipy.stats import t

    return float(found.mean()), float(t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))


def runs_of(results: Sequence[DetectionResult]) -> DetectionRuns:
    """The best of several runs, and their mean with its interval."""
    values = [result.mean_ap for result in results]
    return DetectionRuns(tuple(results), max(values), *mean_and_interval(values))


def compare(pre_trained: Sequence[DetectionResult], random: Sequence[DetectionResult]) -> DetectionComparison:
    """What pre-training gains; the k-th results of both are of the same seed, labels and validation frames."""
    one, other = ([_moderate(result) for result in results] for results in (pre_trained, random))
    gain = {
        metric: {
            name: Gain(*mean_and_interval([a[metric][name] - b[metric][name] for a, b in zip(one, other, strict=True)]))
            for name in one[0][metric]
        }
        for metric in _COMPARED
    }
    return DetectionComparison(runs_of(pre_trained), runs_of(random), gain)


def _classes(result: DetectionResult) -> list[str]:
    """The classes in the settings' order, which a result that was read from its file does not keep."""
    return list(result.settings["classes"])


def _moderate(result: DetectionResult) -> dict[str, dict[str, float]]:
    """AP at moderate, 40 positions, by metric and class, with the classes' mean."""
    by_class = {m: {name: result.ap[name][m]["moderate"] for name in _classes(result)} for m in _COMPARED}
    return {metric: {**aps, _MEAN: float(np.mean(list(aps.values())))} for metric, aps in by_class.items()}


def runs_table(runs: DetectionRuns) -> str:
    """A Markdown table: 3D AP at moderate, 40 positions, of each run, a column for each class."""
    classes = _classes(runs.runs[0])
    lines = [
        "| 3D AP, moderate / % | " + " | ".join(classes) + " | mean |",
        "|---|" + "--:|" * (len(classes) + 1),
    ]
    for result in runs.runs:
        values = [result.ap[name]["3d"]["moderate"] for name in classes]
        label = f"{result.name}, seed {result.settings['seed']}"
        lines.append(f"| {label} | " + " | ".join(f"{v:.2f}" for v in [*values, result.mean_ap]) + " |")
    lines.append("")
    spread = "" if runs.interval is None else f" ± {runs.interval:.2f} (95 % interval of {len(runs.runs)} runs)"
    lines.append(f"Best {runs.best:.2f}, mean {runs.mean:.2f}{spread}.")
    return "\n".join(lines) + "\n"


def comparison_table(found: DetectionComparison) -> str:
    """A Markdown table: AP at moderate, 40 positions, of each run, both means, and what pre-training gains."""
    sides = (found.pre_trained.runs, found.random.runs)
    columns = [(metric, name) for metric in _COMPARED for name in found.gain[metric]]
    lines = [
        "| AP, moderate / % | " + " | ".join(f"{name}, {metric}" for metric, name in columns) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for pair in zip(*sides):
        for result in pair:
            values = _moderate(result)
            cells = [f"{values[metric][name]:.2f}" for metric, name in columns]
            lines.append(f"| {result.name}, seed {result.settings['seed']} | " + " | ".join(cells) + " |")
    for results in sides:
        values_of = [_moderate(result) for result in results]
        cells = [f"{np.mean([v[metric][name] for v in values_of]):.2f}" for metric, name in columns]
        lines.append(f"| {results[0].name}, mean | " + " | ".join(cells) + " |")
    gains = [found.gain[metric][name] for metric, name in columns]
    cells = [f"{g.mean:+.2f}" + ("" if g.interval is None else f" ± {g.interval:.2f}") for g in gains]
    lines.append("| difference | " + " | ".join(cells) + " |")
    count, frames = len(sides[0]), sides[0][0].train_frames
    spread = "one seed, so no interval" if count == 1 else f"± is the 95 % interval of {count} seeds, by Student's t"
    lines += ["", f"Difference: pre-trained minus random weights, seed by seed; {spread}. Labels of {frames} frames."]
    return "\n".join(lines) + "\n"
