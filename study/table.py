"""A study's scores as tables: mean, standard deviation, differences paired by seed with confidence intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from ..common.settings import flat_values
from .config import Claim, StudySettings, Table
from .measures import POWER, Difference, Measures, claim_difference, claim_pairs, paired_difference, seeds_needed
from .rows import Row, grounds

STAGE_NAMES = {"probe": "linear probe", "finetune": "fine-tuning on few labels"}  # a named fine-tuning has its own


def stage_name(stage: str) -> str:
    """What a table calls a stage."""
    return STAGE_NAMES.get(stage, f"fine-tuning, {stage}")


def as_markdown(study: StudySettings, measures: Measures, facts: Sequence[str] = ()) -> str:
    """Every table and claim as Markdown; ``facts`` are sentences under them."""
    parts = [_table_markdown(study, table, measures) for table in study.tables]
    claims = [_claim_cells(study, claim, measures) for claim in study.claims]
    if claims:
        parts.append(_markdown(["claim", "difference", "95 % interval", _SCENES, "seeds", "result"], claims))
    return "\n".join([f"# {study.name}", "", *("\n".join(part) + "\n" for part in parts), *facts]).rstrip() + "\n"


_SCENES = "95 %, scenes too"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table without the column of scenes where no run holds any."""
    column = head.index(_SCENES)
    if any(row[column] for row in rows):
        return markdown(head, rows)
    head, *rows = ([*line[:column], *line[column + 1 :]] for line in (head, *rows))
    return markdown(head, rows)


def _table_markdown(study: StudySettings, table: Table, measures: Measures) -> list[str]:
    what = "mIoU / %" if table.over == "all" else f"mIoU of {len(study.classes)} classes / %"
    against = f"against {table.against}"
    head = [stage_name(table.stage), what, "std", "seeds", against, "95 % interval", _SCENES, "note"]
    lines = [f"## {table.title}", ""] if table.title else []
    return lines + _markdown(head, [_table_cells(table, row, measures) for row in table.rows])


def _table_cells(table: Table, row: str, measures: Measures) -> list[str]:
    scores, key, other = measures.scores(table.over), (row, table.stage), (table.against, table.stage)
    own = scores.get(key, {})
    if not own:
        return [row, "–", "", "0", "", "", "", "not run"]
    values = np.array([own[s] for s in sorted(own)])
    spread = f"{values.std(ddof=1):.2f}" if len(values) > 1 else ""
    cells = [row, f"{values.mean():.2f}", spread, str(len(values))]
    difference = paired_difference(own, scores.get(other, {}))
    if row == table.against or difference is None:
        return [*cells, "", "", "", ""]
    resolved = difference.low > 0 or difference.high < 0
    scenes = _between(measures.over_scenes([(key, other)], table.over))
    return [*cells, f"{difference.mean:+.2f}", _interval(difference), scenes, "" if resolved else "not resolved"]


def claim_name(claim: Claim) -> str:
    """A claim as a table says it."""
    name = f"{claim.better} over {claim.than}"
    if claim.beyond:
        name += f" beyond {claim.beyond[0]} over {claim.beyond[1]}"
    name += f" by {claim.by:g}" if claim.by else ""
    other = claim.than_stage or claim.stage
    return name + f" ({stage_name(claim.stage)}" + (f" over {stage_name(other)})" if other != claim.stage else ")")


def _claim_cells(study: StudySettings, claim: Claim, measures: Measures) -> list[str]:
    name, difference = claim_name(claim), claim_difference(claim, measures)
    if claim.over == "classes":
        name += f", {len(study.classes)} classes"
    if difference is None:
        return [name, "", "", "", "0", "not run"]
    verdict, scenes = difference.verdict(claim.by), _between(measures.over_scenes(claim_pairs(claim), claim.over))
    return [name, f"{difference.mean:+.2f}", _interval(difference), scenes, str(difference.pairs), verdict]


def weights_of_terms(study: StudySettings) -> list[str]:
    """For each row that is pre-trained the weights of its method's terms, rows with the same ones together."""
    together: dict[str, list[str]] = {}
    for name, settings in study.rows.items():
        if settings is not None:
            plain = flat_values(settings.method)
            weights = {key.removesuffix("_weight"): value for key, value in plain.items() if key.endswith("_weight")}
            on = {key: value for key, value in weights.items() if plain.get(key, True) and value}
            said = ", ".join(f"{key} {value:g}" for key, value in on.items()) or "one term"
            together.setdefault(f"{settings.method.name}: {said}", []).append(name)
    return [f"{', '.join(rows)} ({said})" for said, rows in together.items()]


def facts_of(study: StudySettings, rows: Sequence[Row]) -> list[str]:
    """What a reader of the tables should know, in sentences."""
    facts = ["Differences are paired by seed; intervals are Student's t, 95 %; “not resolved” where they hold 0."]
    if study.features == "stored":
        cut = [name for name, settings in study.rows.items() if settings is not None and settings.augment.crop]
        but = f", but that {', '.join(cut)} look crops up in them" if cut else ""
        facts.append(f"The frozen encoder's maps of whole images were computed once: images are not augmented{but}.")
    if not study.probe.augment:
        facts.append("The probe computes each frame's features once: clouds are not augmented.")
    facts.append(f"Weights of the terms: {'; '.join(weights_of_terms(study))}. Every setting stands in settings.md.")
    if study.probes > 1:
        facts.append(f"A run's linear probe is the mean of {study.probes} heads.")
    for stage, how in study.finetune.items():
        if how.streets:
            of = f"{how.settings.fraction:g} % of the labels"
            enough = (max(study.seeds) + 1) * how.streets <= round(100 / how.settings.fraction)
            others = ", others for each seed" if enough else ""
            facts.append(f"{stage}: the mean over {how.streets} different parts of {of}{others}.")
    if study.classes:
        facts.append(f"“{len(study.classes)} classes” are {', '.join(study.classes)}.")
    if len(made := grounds(rows)) > 1:
        which = "; ".join(f"{name[:8]} has seeds {', '.join(map(str, seeds))}" for name, seeds, _ in made)
        share = 1e6 * max(other for *_, other in made)
        facts.append(
            f"The shards were made by one command on different processors, whose last digits differ ({which}): "
            f"{share:.1f} of a million held-out points are of another class."
        )
    labels = {row.stage: row.result["labels_mean_iou"] for row in rows if "labels_mean_iou" in row.result}
    for stage, score in labels.items():
        facts.append(f"{stage}: the weak labels of the validation frames are themselves {100 * score:.2f} % mIoU.")
    absent = sorted({name for row in rows for name in row.result.get("absent", ())})
    if absent:
        facts.append(f"Not in the validation set, left out of the means: {', '.join(absent)}.")
    return facts


def settings_table(study: StudySettings) -> str:
    """Every setting of every row that is pre-trained: those that all have, then those in which rows differ."""
    rows = {name: flat_values(settings) for name, settings in study.rows.items() if settings is not None}
    keys = sorted({key for row in rows.values() for key in row} - {"seed", "name", "data.shards"})
    lines: dict[bool, list[list[str]]] = {True: [], False: []}
    for key in keys:
        values = [str(row.get(key, "–")) for row in rows.values()]
        same = len(set(values)) == 1
        lines[same].append([key, *(values[:1] if same else values)])
    parts = ["# Settings of every row", "", *markdown(["setting", *rows], lines[False]), ""]
    return "\n".join([*parts, "All rows:", "", *markdown(["setting", "value"], lines[True])]) + "\n"


def power_table(study: StudySettings, measures: Measures, points: float) -> str:
    """The seeds that each claim needs to resolve a difference of so many points, from the spread of the runs that are there."""
    lines = []
    for claim in study.claims:
        found = claim_difference(claim, measures)
        if found is None or found.pairs < 2:
            lines.append([claim_name(claim), "", "0" if found is None else str(found.pairs), "two seeds or more"])
        else:
            lines.append(
                [
                    claim_name(claim),
                    f"{found.spread:.2f}",
                    str(found.pairs),
                    f"{seeds_needed(found.spread, points) or 'over 1,000'}",
                ]
            )
    head = ["claim", "std of the difference", "seeds", f"seeds for {points:g} points at {100 * POWER:.0f} %"]
    return "\n".join(markdown(head, lines)) + "\n"


def _between(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}"


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
