"""A study's scores as one table: mean, standard deviation, differences paired by seed with confidence intervals."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .config import Claim, StudySettings, Table
from .rows import Row

CONFIDENCE = 0.95
STAGE_NAMES = {"probe": "linear probe", "finetune": "fine-tuning on few labels"}  # a named fine-tuning has its own
Scores = Mapping[tuple[str, str], Mapping[int, float]]


def stage_name(stage: str) -> str:
    """What a table calls a stage."""
    return STAGE_NAMES.get(stage, f"fine-tuning, {stage}")


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its confidence interval (Student's t with n − 1 degrees of freedom).

    With one pair the interval is unbounded.
    """

    mean: float
    low: float
    high: float
    pairs: int

    def verdict(self, margin: float = 0.0) -> str:
        """Whether the difference is above ``margin``: ``holds``, ``does not hold``, or ``not resolved``."""
        if self.low > margin:
            return "holds"
        return "does not hold" if self.high < margin else "not resolved"


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Of two rows' scores by seed, over the seeds that both have; None where there is none."""
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    values = np.array([one[s] - other[s] for s in seeds])
    if len(seeds) == 1:
        return Difference(float(values[0]), -math.inf, math.inf, 1)
    from scipy.stats import t

    half = t.ppf(0.5 + CONFIDENCE / 2, len(seeds) - 1) * values.std(ddof=1) / math.sqrt(len(seeds))
    return Difference(float(values.mean()), float(values.mean() - half), float(values.mean() + half), len(seeds))


def scores_of(rows: Sequence[Row]) -> Scores:
    """(row, stage) → seed → mean IoU in percent."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if "mean_iou" in row.result:
            found.setdefault((row.row, row.stage), {})[row.seed] = 100 * row.result["mean_iou"]
    return found


def as_markdown(study: StudySettings, scores: Scores, facts: Sequence[str] = ()) -> str:
    """Every table and claim as Markdown; ``facts`` are sentences under them."""
    parts = [_table_markdown(table, scores) for table in study.tables]
    claims = [_claim_cells(claim, scores) for claim in study.claims]
    if claims:
        parts.append(markdown(["claim", "difference", "95 % interval", "seeds", "result"], claims))
    return "\n".join([f"# {study.name}", "", *("\n".join(part) + "\n" for part in parts), *facts]).rstrip() + "\n"


def _table_markdown(table: Table, scores: Scores) -> list[str]:
    head = [stage_name(table.stage), "mIoU / %", "std", "seeds", f"against {table.against}", "95 % interval", "note"]
    lines = [f"## {table.title}", ""] if table.title else []
    return lines + markdown(head, [_table_cells(table, row, scores) for row in table.rows])


def _table_cells(table: Table, row: str, scores: Scores) -> list[str]:
    own = scores.get((row, table.stage), {})
    if not own:
        return [row, "–", "", "0", "", "", "not run"]
    values = np.array([own[s] for s in sorted(own)])
    spread = f"{values.std(ddof=1):.2f}" if len(values) > 1 else ""
    cells = [row, f"{values.mean():.2f}", spread, str(len(values))]
    difference = paired_difference(own, scores.get((table.against, table.stage), {}))
    if row == table.against or difference is None:
        return [*cells, "", "", ""]
    resolved = difference.low > 0 or difference.high < 0
    return [*cells, f"{difference.mean:+.2f}", _interval(difference), "" if resolved else "not resolved"]


def _claim_cells(claim: Claim, scores: Scores) -> list[str]:
    name = f"{claim.better} over {claim.than}" + (f" by {claim.by:g}" if claim.by else "")
    other = claim.than_stage or claim.stage
    name += f" ({stage_name(claim.stage)}" + (f" over {stage_name(other)})" if other != claim.stage else ")")
    pair = (scores.get(key, {}) for key in ((claim.better, claim.stage), (claim.than, other)))
    difference = paired_difference(*pair)
    if difference is None:
        return [name, "", "", "0", "not run"]
    verdict = difference.verdict(claim.by)
    return [name, f"{difference.mean:+.2f}", _interval(difference), str(difference.pairs), verdict]


def _interval(difference: Difference) -> str:
    if difference.pairs == 1:
        return "one seed"
    return f"{difference.low:+.2f} to {difference.high:+.2f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, names to the left and figures to the right."""
    width = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        # Names to the left, figures to the right.
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, width))]
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(width))
    return [line(head), f"|{rule}|", *map(line, rows)]


def as_csv(rows: Sequence[Row]) -> str:
    """Every scored run, one line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "stage", "seed", "mean_iou", "frequency_weighted_iou", "configuration"])
    for row in sorted(rows, key=lambda r: (r.stage, r.row, r.seed)):
        if "mean_iou" in row.result:
            found = row.result
            values = [f"{found['mean_iou']:.6f}", f"{found['frequency_weighted_iou']:.6f}"]
            writer.writerow([row.row, row.stage, row.seed, *values, row.digest[:16]])
    return text.getvalue()
