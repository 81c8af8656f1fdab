"""How many of the pairs that eq. 15 draws carry the right weak label: each draw, by class and by distance.

Right is a weak label that is the prompt class of its point. Both are in the shards; nothing is trained.

    python benchmarks/drawn_labels.py SHARDS [--pairs 1024] [--every 4]
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from olivine.labelgen.mapping import prompt_of_point_class
from olivine.pairs.shards import ShardSet, open_shards
from olivine.train.sampling import MODES, draw_without_replacement, generator_of, sampling_probability

EDGES = (0.0, 10.0, 20.0, 40.0, np.inf)
"""Metres from the sensor, in the plane."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="a folder of shards with point labels")
    parser.add_argument("--pairs", type=int, default=1024, help="pairs drawn in a frame")
    parser.add_argument("--every", type=int, default=4, help="read every so many frames")
    options = parser.parse_args()
    shards = open_shards(options.shards)
    if not shards.has_point_label:
        parser.error(f"{options.shards}: the shards hold no point labels; build them from a set that has them")
    by_class, by_distance = count(shards, options.pairs, options.every)
    bins = [f"{low:g} to {high:g} m" for low, high in pairwise(EDGES)]
    for title, rows, table in (
        ("weak label", ["no label", *shards.classes], by_class),
        ("distance", bins, by_distance),
    ):
        print(f"\n{title:<16}" + "".join(f"{mode:>12} right" for mode in MODES))
        for i, name in [*enumerate(rows), (slice(None), "all")]:
            cells = (figures(counts, i) for counts in table)
            print(f"{name:<16}" + "".join(f"{share:11.1f}% {right:4.1f}%" for share, right in cells))


def figures(table: np.ndarray, rows: int | slice) -> tuple[float, float]:
    """Share of the draw and share of right labels of ``rows`` in [R, 2] counts of drawn and right."""
    drawn, right = table[rows].reshape(-1, 2).sum(0)
    return 100 * drawn / table[:, 0].sum(), 100 * right / max(drawn, 1)


def count(shards: ShardSet, pairs: int, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn pairs and those with the right label, of each draw: [4, classes + 1, 2] and [4, distances, 2]."""
    prompts = {name: k + 1 for k, name in enumerate(shards.classes)}
    truth_of = np.zeros(256, np.int64)
    for k, name in enumerate(shards.point_classes):
        truth_of[k + 1] = prompts.get(prompt_of_point_class(shards.dataset, name) or "", 0)
    frequency = torch.from_numpy(shards.class_count)
    by_class = np.zeros((len(MODES), len(prompts) + 1, 2), np.int64)
    by_distance = np.zeros((len(MODES), len(EDGES) - 1, 2), np.int64)
    for frame in (shards[k] for k in range(0, len(shards), every)):
        label = torch.from_numpy(frame.pair_label.astype(np.int64))
        right = truth_of[frame.point_label[frame.pair_point]] == label.numpy()
        distance = np.digitize(np.hypot(*frame.points[frame.pair_point, :2].T), EDGES[1:-1])
        density = torch.from_numpy(np.array(frame.pair_density))
        for k, mode in enumerate(MODES):
            chance = sampling_probability(density, label, frequency, mode)
            drawn = draw_without_replacement(chance, len(label), pairs, generator_of(0, frame.index, k)).numpy()
            for table, group in ((by_class, label.numpy()), (by_distance, distance)):
                np.add.at(table[k, :, 0], group[drawn], 1)
                np.add.at(table[k, :, 1], group[drawn], right[drawn])
    return by_class, by_distance


if __name__ == "__main__":
    main()
