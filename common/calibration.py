"""Whether confidences are right as often as they say: expected calibration error, reliability table and its picture."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Of equal width, as the expected calibration error is usually given (Guo et al., ICML 2017)."""
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Share:
    """Labels whose score is from ``low`` on and, in the reliability table, under ``high``.

    Attributes:
        share: of all scored labels, percent.
        said: their mean score, percent.
        right: those that are right, percent.
    """

    low: float
    high: float
    share: float
    said: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """How the scores of labels fit the share that is right.

    Attributes:
        labels: with a score.
        said, right: mean score and share that is right, percent.
        error: expected calibration error: |said - right| of each bin, weighted by its labels, percent.
        bins: the reliability table, of the bins that have labels.
        levels: what is left, and how right it is, when labels of a lower score are left out.
    """

    labels: int
    said: float
    right: float
    error: float
    bins: list[Share]
    levels: list[Share]


def calibration_of(right: NDArray[np.integer]) -> Calibration | None:
    """The calibration of scores in a byte, 255 = certain, 0 = not known; None where none is known.

    Args:
        right: integer [256, 2], how many labels of each score are wrong and right.
    """
    count, hits = right.sum(axis=1).astype(np.float64), right[:, 1].astype(np.float64)
    count[0] = hits[0] = 0
    if not count.any():
        return None
    score = np.arange(256) / 255
    whole = count.sum()

    def share(low: float, high: float, chosen: NDArray[np.bool_]) -> Share:
        some = count[chosen].sum()
        said, good = (count * score)[chosen].sum() / some, hits[chosen].sum() / some
        return Share(low, high, 100 * some / whole, 100 * said, 100 * good)

    number = np.minimum((score * BINS).astype(int), BINS - 1)
    bins = [share(k / BINS, (k + 1) / BINS, number == k) for k in range(BINS) if count[number == k].any()]
    levels = [share(low, 1.0, score >= low) for low in LEVELS if count[score >= low].any()]
    error = sum(row.share * abs(row.said - row.right) for row in bins) / 100
    every = share(0.0, 1.0, np.ones(256, bool))
    return Calibration(int(whole), every.said, every.right, error, bins, levels)


def calibration_table(found: Calibration) -> str:
    """Both tables as text."""
    lines = [
        f"calibration of {found.labels:,} scored labels: they say {found.said:.1f} %, right are {found.right:.1f} %"
    ]
    lines += [f"expected calibration error {found.error:.2f} %", "  score          labels    says   right"]
    lines += [f"  {r.low:.2f} to {r.high:.2f} {r.share:8.1f} % {r.said:5.1f} % {r.right:5.1f} %" for r in found.bins]
    lines += ["  from           labels    says   right"]
    lines += [f"  {r.low:.2f}         {r.share:8.1f} % {r.said:5.1f} % {r.right:5.1f} %" for r in found.levels]
    return "\n".join(lines)


def draw_reliability(found: Calibration) -> bytes:
    """The reliability table as a PNG: the share that is right over the score, and how many labels each bin has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middle = [50 * (row.low + row.high) for row in found.bins]
    above.plot([0, 100], [0, 100], color="grey", linewidth=1, label="calibrated")
    above.bar(middle, [row.right for row in found.bins], width=90 / BINS, color="tab:blue", alpha=0.6)
    above.plot(
        [row.said for row in found.bins], [row.right for row in found.bins], "o", color="tab:blue", label="labels"
    )
    above.set(ylabel="right, %", ylim=(0, 100), title=f"expected calibration error {found.error:.1f} %")
    above.legend()
    below.bar(middle, [row.share for row in found.bins], width=90 / BINS, color="tab:blue", alpha=0.6)
    below.set(xlabel="score, %", ylabel="labels, %", xlim=(0, 100))
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
