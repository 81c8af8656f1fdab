"""Differences of two rows of a study's CSV, paired by seed, with Student's interval of 95 %: for what its claims do not ask.

python benchmarks/study_difference.py docs/study-full.csv finetune Dirac PPKT [WCD PPKT …]
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from olivine.study.measures import paired_difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="table.csv of a study")
    parser.add_argument("stage", help="probe or finetune")
    parser.add_argument("rows", nargs="+", help="pairs of rows: the difference is of the first over the second")
    options = parser.parse_args()
    if len(options.rows) % 2:
        parser.error(f"{options.rows[-1]} has no row to be compared with: give rows in pairs")
    scores: dict[str, dict[int, float]] = {}
    try:
        with options.table.open() as file:
            for line in csv.DictReader(file):
                if line["stage"] == options.stage:
                    scores.setdefault(line["row"], {})[int(line["seed"])] = 100 * float(line["mean_iou"])
    except (OSError, KeyError, ValueError) as error:
        parser.error(
            f"{options.table} is not the table.csv of a study ({error}): give the one that olivine study wrote"
        )
    if absent := sorted(set(options.rows) - set(scores)):
        parser.error(
            f"{options.table} has no {options.stage} of {'; '.join(absent)}: it has {'; '.join(scores) or 'none'}"
        )
    for row, other in zip(options.rows[::2], options.rows[1::2]):
        if found := paired_difference(scores[row], scores[other]):
            mean = sum(scores[row].values()) / len(scores[row])
            print(f"{row} {mean:.2f}, over {other} {found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})")
        else:
            print(f"{row} over {other}: no seed in common in {options.stage}")


if __name__ == "__main__":
    main()
