"""Weak labels as a benchmark's point classes: what a network learns from that sees no annotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from ..pairs.shards import ShardSet


class WeakLabels:
    """The weak label of every point of a set's frames, as the point class that its prompt is.

    Args:
        shards: the frames.
        point_classes: the benchmark's; class k of them is the label k + 1.

    Attributes:
        absent: point classes that no prompt is, which a network taught by these labels never predicts.

    Raises:
        OlivineError: no prompt is one of these classes.
    """

    def __init__(self, shards: ShardSet, point_classes: Sequence[str]) -> None:
        self._shards = shards
        self._class_of = class_of_prompt(shards.benchmark.prompts, shards.classes, point_classes)
        if not self._class_of.any():
            raise OlivineError(
                f"no prompt is a point class of {shards.dataset}: {', '.join(shards.classes)}",
                where=shards.path,
                remedy="label with prompts that are, see docs/labelgen.md",
            )
        taught = set(self._class_of.tolist())
        self.absent = tuple(name for k, name in enumerate(point_classes, 1) if k not in taught)

    def __call__(self, frame: int) -> NDArray[np.uint8]:
        """uint8 [N], 0 = no label: of the vote where the shards hold one, else what most cameras say at the point.

        Of two labels that equally many cameras give, the one that comes first in the vocabulary.
        """
        if self._shards.has_vote:
            weak = self._shards.read(frame, ("point_weak",)).point_weak
        else:
            record = self._shards.read(frame, ("points", "pair_point", "pair_label"))
            size = len(self._shards.classes) + 1
            key = record.pair_point.astype(np.int64) * size + record.pair_label
            votes = np.bincount(key, minlength=len(record.points) * size).reshape(-1, size)
            votes[:, 0] = 0
            weak = votes.argmax(axis=1)
        label: NDArray[np.uint8] = self._class_of[weak]
        return label


def class_of_prompt(
    table_of: Mapping[str, str], prompts: Sequence[str], point_classes: Sequence[str]
) -> NDArray[np.uint8]:
    """The point class that each prompt is, uint8 [prompts + 1], 0 where it is none; place 0 is "no label".

    A prompt is the class of its name, or else the first one that the data set's table gives to it.

    Args:
        table_of: the prompt of each point class, by the data set's file.
    """
    plain = [_plain(name) for name in point_classes]
    known = {_plain(name): prompt for name, prompt in table_of.items()}
    of_class = [known.get(name) for name in plain]
    table = np.zeros(len(prompts) + 1, np.uint8)
    for k, prompt in enumerate(prompts, 1):
        if _plain(prompt) in plain:
            table[k] = plain.index(_plain(prompt)) + 1
        elif prompt in of_class:
            table[k] = of_class.index(prompt) + 1
    return table


def _plain(name: str) -> str:
    return name.replace("_", " ").replace("-", " ").lower()
