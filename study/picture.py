"""A study's picture: every seed's score and each row's mean; differences with their confidence intervals."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from .config import StudySettings, Table
from .measures import Measures, Scores, paired_difference
from .table import stage_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEAN, _SEED, _UNRESOLVED = "#1f5a96", "#9bbbe0", "#9a9a9a"


def draw_study(study: StudySettings, measures: Measures) -> bytes:
    """A PNG: a line of two panels for each table."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [max(2.0, 0.36 * len(table.rows) + 1.1) for table in study.tables]
    figure = Figure(figsize=(9, sum(heights)), layout="constrained", dpi=80)
    panels = figure.subplots(len(heights), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for (left, right), table in zip(panels, study.tables):
        scores = measures.scores(table.over)
        _scores_panel(left, table, scores)
        _differences_panel(right, table, scores)
    image = io.BytesIO()
    # Without a date and a version in it: the same scores, the same bytes.
    FigureCanvasAgg(figure).print_png(image, metadata={"Software": None}, pil_kwargs=None)
    return image.getvalue()


def _scores_panel(axes: Axes, table: Table, scores: Scores) -> None:
    for place, row in enumerate(table.rows):
        values = list(scores.get((row, table.stage), {}).values())
        if values:
            axes.barh(place, sum(values) / len(values), color=_SEED, height=0.6)
            axes.plot(values, [place] * len(values), "o", color=_MEAN, markersize=4)
    axes.set_yticks(range(len(table.rows)), table.rows)
    axes.invert_yaxis()
    axes.set_xlabel(f"{stage_name(table.stage)}, mIoU / %; a dot is a seed", fontsize="small")
    axes.set_title(table.title, loc="left", fontsize="medium")


def _differences_panel(axes: Axes, table: Table, scores: Scores) -> None:
    other = scores.get((table.against, table.stage), {})
    for place, row in enumerate(table.rows):
        difference = paired_difference(scores.get((row, table.stage), {}), other)
        if row == table.against or difference is None:
            continue
        resolved = difference.low > 0 or difference.high < 0
        colour = _MEAN if resolved else _UNRESOLVED
        axes.plot(difference.mean, place, "o", color=colour, markersize=5)
        if math.isfinite(difference.low):
            axes.plot([difference.low, difference.high], [place, place], "-", color=colour)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(table.rows)), [""] * len(table.rows))
    axes.set_ylim(len(table.rows) - 0.5, -0.5)
    axes.set_xlabel(f"against {table.against}, 95 % interval; grey: not resolved", fontsize="small")
