"""Weak labels as a benchmark's point classes: what a network learns from that sees no annotation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from ..pairs.shards import COLUMNS, ShardSet, plain_name


class WeakLabels:
    """The weak label of every point of a set's frames, as the point class that its prompt is.

    Args:
        shards: the frames.
        point_classes: the benchmark's; class k of them is the label k + 1.
        least: labels of less confidence are none, 0 to 1: the share of the vote, or the labeler's score.

    Attributes:
        absent: point classes that no prompt is, which a network taught by these labels never predicts.

    Raises:
        OlivineError: no prompt is one of these classes, or the labels have no confidence that ``least`` asks for.
    """

    def __init__(self, shards: ShardSet, point_classes: Sequence[str], least: float = 0.0) -> None:
        self._shards, self._least, self._scored = shards, least, shards.has("pair_score")
        if least > 0 and not self._scored:
            raise OlivineError(
                "holds no confidence of its labels, and least_score asks for it",
                where=shards.path,
                remedy=f"make the shards with {COLUMNS['pair_score'].added_by}",
            )
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

        Each camera's word counts by the labeler's score, where the shards hold these. Of two labels that are given
        equally, the one that comes first in the vocabulary.
        """
        if self._shards.has_vote:
            record = self._shards.read(frame, ("point_weak", "point_agreement"))
            weak, sure = record.point_weak, record.point_agreement / 255
        else:
            columns = ("points", "pair_point", "pair_label", *(("pair_score",) if self._scored else ()))
            record = self._shards.read(frame, columns)
            size = len(self._shards.classes) + 1
            key = record.pair_point.astype(np.int64) * size + record.pair_label
            score = record.pair_score / 255 if self._scored else np.ones(len(key))
            votes = np.bincount(key, score, minlength=len(record.points) * size).reshape(-1, size)
            votes[:, 0] = 0
            weak = votes.argmax(axis=1)
            given = np.bincount(key, minlength=votes.size).reshape(-1, size)
            sure = votes.max(axis=1) / np.maximum(given[np.arange(len(weak)), weak], 1)  # the mean of those who say so
        label: NDArray[np.uint8] = self._class_of[weak]
        return np.where(sure >= self._least, label, 0).astype(np.uint8) if self._least > 0 else label


def class_of_prompt(
    table_of: Mapping[str, str], prompts: Sequence[str], point_classes: Sequence[str]
) -> NDArray[np.uint8]:
    """The point class that each prompt is, uint8 [prompts + 1], 0 where it is none; place 0 is "no label".

    A prompt is the class of its name, or else the first one that the data set's table gives to it.

    Args:
        table_of: the prompt of each point class, by the data set's file.
    """
    plain = [plain_name(name) for name in point_classes]
    known = {plain_name(name): prompt for name, prompt in table_of.items()}
    of_class = [known.get(name) for name in plain]
    table = np.zeros(len(prompts) + 1, np.uint8)
    for k, prompt in enumerate(prompts, 1):
        if plain_name(prompt) in plain:
            table[k] = plain.index(plain_name(prompt)) + 1
        elif prompt in of_class:
            table[k] = of_class.index(prompt) + 1
    return table
