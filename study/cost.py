"""What each row's pre-training cost: seconds a step and memory, read from its runs' ``steps.csv``.

A table of its own, beside the scores: times differ from machine to machine, and the table of scores is compared and merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from ..train.metrics_log import MetricsLog
from .table import markdown


def cost_table(runs: Mapping[str, Sequence[Path]]) -> str:
    """A line for each row that has a run.

    Args:
        runs: row → folders of its pre-trainings, those that are there.
    """
    lines = []
    for row, folders in runs.items():
        steps = [step for folder in folders for step in MetricsLog.read(folder / "steps.csv")]
        if steps:
            seconds = median(float(step["seconds"]) for step in steps)
            memory = max(float(step["memory_mib"]) for step in steps)
            lines.append([row, f"{seconds:.3f}", f"{memory:.0f}", str(len(steps))])
    head = ["pre-training", "seconds a step", "most memory / MiB", "steps"]
    return "\n".join(["# Cost", "", *markdown(head, lines), "", *_FACTS]) + "\n"


_FACTS = (
    "Seconds are medians over all steps, waiting for data left out. Memory is the GPU's or the process's, which holds the",
    "data, the network and what the rows before it have left behind.",
)
