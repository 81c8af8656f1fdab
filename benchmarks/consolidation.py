"""What the vote of ``build-pairs --consolidate`` repairs and what it spoils, where the points' own classes are known.

A pair is right where its weak label is the prompt class of its point; pairs whose point is of no prompt's class are left
out. `uniform` counts every pair alike, `DCAS before` by eq. 15's probability with the labels at the pairs' own pixels,
`DCAS after` with those of the vote, and `DCAS x score` in proportion to their confidence too (`method.scored_draw`).

    olivine build-pairs --consolidate --out VOTED
    python benchmarks/consolidation.py VOTED/train [VOTED/val …]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from olivine.pairs.shards import ShardSet, open_shards
from olivine.readers import dataset_class
from olivine.train.sampling import sampling_probability

EDGES = (0.0, 10.0, 20.0, 40.0, np.inf)
"""Metres from the sensor."""
COLUMNS = ("points", "point_label", "pair_point", "pair_label", "pair_pixel_label", "pair_score", "pair_density")


def count(shards: ShardSet) -> dict[str, np.ndarray]:
    """Weights of pairs, [distances, 2, 2] by distance, right before and right after, under each draw."""
    prompts = [dataset_class(shards.dataset).prompt_of(name) for name in shards.point_classes]
    number = np.array([0, *(shards.classes.index(p) + 1 if p in shards.classes else 0 for p in prompts)])
    size = len(shards.classes) + 1
    before_count = sum(
        np.bincount(shards.read(frame, ("pair_pixel_label",)).pair_pixel_label, minlength=size)
        for frame in range(len(shards))
    )
    counts = {"before": torch.from_numpy(before_count), "after": torch.from_numpy(shards.class_count)}
    found: dict[str, np.ndarray] = {}
    for frame in range(len(shards)):
        record = shards.read(frame, COLUMNS)
        truth = number[record.point_label][record.pair_point]
        scored = truth > 0
        density, score = torch.from_numpy(record.pair_density), record.pair_score / 255
        labels = {"before": record.pair_pixel_label, "after": record.pair_label}
        draws = {"uniform": np.ones(len(truth))}
        for name, label in labels.items():
            share = sampling_probability(density, torch.from_numpy(label.astype(np.int64)), counts[name])
            draws[f"DCAS {name}"] = share.numpy()
        weighed = draws["DCAS after"] * score
        draws["DCAS x score"] = weighed / weighed.sum()
        near = np.digitize(np.linalg.norm(record.points[record.pair_point, :3], axis=1), EDGES) - 1
        before, after = ((label == truth)[scored].astype(int) for label in labels.values())
        for name, weight in draws.items():
            table = found.setdefault(name, np.zeros((len(EDGES) - 1, 2, 2)))
            np.add.at(table, (near[scored], before, after), weight[scored])
    return found


def main() -> None:
    """Print one table for each draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, nargs="+")
    found = [count(open_shards(path)) for path in parser.parse_args().shards]
    for name in found[0]:
        table = sum(part[name] for part in found)
        print(f"\n{name:12}      pairs  right before   after  wrong ones repaired  right ones spoilt")
        for k in range(len(EDGES)):
            row = table[k] if k < len(EDGES) - 1 else table.sum(axis=0)
            where = f"{EDGES[k]:g} to {EDGES[k + 1]:g} m" if k < len(EDGES) - 1 else "all"
            whole = row.sum()
            repaired, spoilt = row[0, 1] / max(row[0].sum(), 1e-12), row[1, 0] / max(row[1].sum(), 1e-12)
            print(
                f"{where:14} {whole / table.sum():10.1%} {row[1].sum() / whole:13.1%} {row[:, 1].sum() / whole:7.1%}"
                f" {repaired:20.1%} {spoilt:18.2%}"
            )


if __name__ == "__main__":
    main()
