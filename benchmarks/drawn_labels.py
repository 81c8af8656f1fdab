"""How many of the pairs that eq. 2 is given carry the right weak label: each draw of eq. 15, by class and by distance.

The pairs are those of a pre-training run of these settings, step by step: the trainer's loader (cuboid, crops), its
forward pass (voxel range, contrast groups) and the method's own draw with the run's generators. Only the network is left
out. Right is a weak label that is the prompt class of its point; both are in the shards.

    python benchmarks/drawn_labels.py SHARDS [--config cpu] [--set method.pairs=1024 …] [--steps N]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from olivine.pairs.shards import ShardSet, open_shards
from olivine.train.backbone import Backbone, Clouds, Features
from olivine.train.batch import collate
from olivine.train.build import classes_of_pairs
from olivine.train.forward import Distiller
from olivine.train.group import Group
from olivine.train.loader import FrameStream, StreamSettings
from olivine.train.method import Context, Term
from olivine.train.methods.olivine import Olivine
from olivine.train.prepare import prepare_pass
from olivine.train.sampling import MODES
from olivine.train.settings import PretrainSettings, load_settings

EDGES = (0.0, 10.0, 20.0, 40.0, np.inf)
"""Metres from the sensor, in the plane."""


class NoNetwork(Backbone):
    """The voxels' own features: places as a network would give them, and nothing computed."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))  # the trainer asks for the parameters' type

    def encode(self, clouds: Clouds) -> Features:
        """See :class:`~olivine.train.backbone.Backbone`."""
        return Features(clouds.tensor, clouds.voxels.inverse)


class Counting(Olivine):
    """OLIVINE's draw for eq. 2, counted instead of learnt from.

    Attributes:
        truth: int64 [N], the prompt class of each point of the batch at hand, 0 = none.
        by_class, by_distance: int64 [classes + 1, 2] and [distances, 2]: drawn, and of these right.
    """

    def __init__(self, settings: PretrainSettings, mode: str, labels: tuple[str, ...]) -> None:
        method = replace(settings.method, mode=mode, wcd=True, scr=False)  # type: ignore[call-arg]
        super().__init__(method, Context(lambda width: nn.Identity(), 1, labels, 1, settings.voxels.size_m))
        self.truth = torch.empty(0, dtype=torch.int64)
        self.by_class = np.zeros((len(labels), 2), np.int64)
        self.by_distance = np.zeros((len(EDGES) - 1, 2), np.int64)

    def forward(self, group: Group) -> dict[str, Term]:
        """Draw and count; no term."""
        drawn = self.draw_by_label(group)
        label = group.column("pair_label")[drawn].numpy()
        right = self.truth[group.column("pair_point")[drawn]].numpy() == label
        x, y = group.points_of_pairs()[drawn, :2].numpy().T
        for table, key in ((self.by_class, label), (self.by_distance, np.digitize(np.hypot(x, y), EDGES[1:-1]))):
            np.add.at(table[:, 0], key, 1)
            np.add.at(table[:, 1], key[right], 1)
        return {}


@dataclass(frozen=True)
class Count:
    """What was drawn.

    Attributes:
        modes: of eq. 15, each with its tables, see :class:`Counting`.
        stored, augmented, inside: pairs of the frames in the shards, after cuboid and crops, and in the voxels' range.
        frames, steps: of the run.
    """

    modes: dict[str, Counting]
    stored: int
    augmented: int
    inside: int
    frames: int
    steps: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="a folder of shards with point labels")
    parser.add_argument("--config", default="cpu", help="the run's preset or YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of it")
    parser.add_argument("--steps", type=int, help="steps of the run from its first on [one epoch]")
    options = parser.parse_args()
    shards = open_shards(options.shards)
    if not shards.has_point_label:
        parser.error(f"{options.shards}: the shards hold no point labels; build them from a set that has them")
    settings = load_settings(options.config, options.set)
    found = count(shards, settings, options.steps)
    print(
        f"{found.frames} frames in {found.steps} steps. Pairs: {found.stored:,} stored; {found.augmented:,} after cuboid "
        f"and crops; {found.inside:,} of these in the voxels' range"
    )
    bins = [f"{low:g} to {high:g} m" for low, high in pairwise(EDGES)]
    for title, rows, name in (
        ("weak label", ["no label", *shards.classes], "by_class"),
        ("distance", bins, "by_distance"),
    ):
        print(f"\n{title:<16}" + "".join(f"{mode:>12} right" for mode in found.modes))
        for i, row in [*enumerate(rows), (slice(None), "all")]:
            cells = (figures(getattr(counting, name), i) for counting in found.modes.values())
            print(f"{row:<16}" + "".join(f"{share:11.1f}% {right:4.1f}%" for share, right in cells))


def figures(table: np.ndarray, rows: int | slice) -> tuple[float, float]:
    """Share of the draw and share of right labels of ``rows`` in [R, 2] counts of drawn and right."""
    drawn, right = table[rows].reshape(-1, 2).sum(0)
    return 100 * drawn / table[:, 0].sum(), 100 * right / max(drawn, 1)


@torch.no_grad()
def count(shards: ShardSet, settings: PretrainSettings, steps: int | None = None) -> Count:
    """Count the pairs of each draw over the first steps of a run on weak labels; without a number over one epoch."""
    truth_of, (labels, class_count) = (
        torch.from_numpy(shards.prompt_of(shards.point_classes)).long(),
        classes_of_pairs(shards, settings),
    )
    network, modes = NoNetwork(), {mode: Counting(settings, mode, labels) for mode in MODES}
    passes = [
        (method, Distiller(network, method, settings.voxels, settings.run.group, settings.seed))
        for method in modes.values()
    ]
    needs = Olivine.needs(modes["dcas"].settings).columns
    stream_settings = StreamSettings(
        settings.seed,
        settings.run.batch,
        (0, settings.run.batch),
        (settings.image.height, settings.image.width),
        settings.augment,
        columns=(*needs, "point_label"),
    )
    stored = augmented = inside = 0
    with FrameStream(shards.path, stream_settings) as stream:
        steps = steps or -(-stream.count // settings.run.batch)
        for step, samples in enumerate(stream.batches(0, steps)):
            batch = collate(samples)
            stored += sum(len(shards.read(frame, ("pair_point",)).pair_point) for frame in batch.frames)
            augmented += len(batch.pair_point)
            truth = truth_of[batch.point_label.long()]
            for method, distiller in passes:
                method.truth = truth
                _, _, counts = distiller(prepare_pass(batch, distiller, None, class_count), step, 0)
            inside += counts["pairs"]
    return Count(modes, stored, augmented, inside, steps * settings.run.batch, steps)


if __name__ == "__main__":
    main()
