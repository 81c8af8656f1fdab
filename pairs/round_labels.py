"""Whether labels settle: how far those of each round of ``olivine finetune --rounds k`` agree with the round's before.

A network that is taught its own sure labels may talk itself into an error. Agreement that grows from round to round says
that the labels settle, and not that they are right; a class that falls behind the others is the one to look at.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, PathLike, demand, read_bytes, read_json, sha256_file, track
from .shards import ShardSet

WEAK = "weak"
"""What the vote's labels are called beside ``labels-1``, ``labels-2``, …"""


@dataclass(frozen=True)
class RoundAgreement:
    """What two successive rounds of labels say of the same points.

    Attributes:
        before, after: the rounds' names: :data:`WEAK`, ``labels-1``, …
        labelled: percent of all points that the later round labels.
        both: points that both label.
        percent: of these, with the same label; None where there are none.
        by_class: the same for each class that the earlier round gives: points, percent.
    """

    before: str
    after: str
    labelled: float
    both: int
    percent: float | None
    by_class: dict[str, tuple[int, float]]


def compare_rounds(shards: ShardSet, run: PathLike) -> list[RoundAgreement]:
    """The agreement of each round's labels with those before, over all points of the frames.

    Where the shards hold a vote, the first one compared with is the vote's label: it agrees where it is the prompt of the
    point class that the round gives.

    Args:
        shards: the frames that the rounds trained on.
        run: the folder of ``olivine finetune --rounds k``.

    Raises:
        OlivineError: no round's labels there, those of other shards or of another run's network, or damaged ones; nothing to
            compare them with.
    """
    rounds: list[_Labels] = []
    while (Path(run) / f"labels-{len(rounds) + 1}").is_dir():
        teacher = Path(run) / f"round-{len(rounds)}" / "last.pt"
        rounds.append(_Labels(Path(run) / f"labels-{len(rounds) + 1}", shards, teacher))
    if not rounds:
        remedy = "name the folder of an olivine finetune --learn-from weak --rounds 2"
        raise OlivineError("holds no labels of a round: no folder labels-1", where=run, remedy=remedy)
    if len(rounds) == 1 and not shards.has_vote:
        raise OlivineError(
            "holds the labels of one round, which nothing is compared with",
            where=run,
            remedy="train with --rounds 2, or on shards of olivine build-pairs --consolidate",
        )
    classes = rounds[0].classes
    weak = ["", *shards.classes]
    # Labels of points as numbers that can be compared: the vote's prompts, and the prompt of each point class.
    prompt_of = shards.prompt_of(classes)
    names = [*([WEAK] if shards.has_vote else []), *(part.folder.name for part in rounds)]
    size = 1 + max(len(classes), len(shards.classes))
    given, same = (np.zeros((len(names) - 1, size), np.int64) for _ in range(2))
    labelled, total = np.zeros(len(names) - 1, np.int64), 0
    for frame in track(range(len(shards)), "compare rounds", unit="frame"):
        count = len(shards.points(frame))
        total += count
        labels = [part.read(frame, count) for part in rounds]
        pairs = list(itertools.pairwise(labels))
        later = labels[1:]
        if shards.has_vote:
            pairs.insert(0, (shards.read(frame, ("point_weak",)).point_weak, prompt_of[labels[0]]))
            later = labels
        for k, (before, after) in enumerate(pairs):
            labelled[k] += np.count_nonzero(later[k])
            both = (before > 0) & (after > 0)
            given[k] += np.bincount(before[both], minlength=size)
            same[k] += np.bincount(before[both & (before == after)], minlength=size)
    found = []
    for k, (earlier, later_one) in enumerate(itertools.pairwise(names)):
        known_as = weak if earlier == WEAK else ["", *classes]
        by_class = {
            known_as[c]: (int(given[k, c]), 100 * float(same[k, c] / given[k, c])) for c in np.flatnonzero(given[k])
        }
        points = int(given[k].sum())
        percent = 100 * float(same[k].sum() / points) if points else None
        share = 100 * float(labelled[k] / max(total, 1))
        found.append(RoundAgreement(earlier, later_one, share, points, percent, by_class))
    return found


class _Labels:
    """The labels of one round, as :class:`olivine.downstream.rounds.OwnLabels` writes them.

    Args:
        teacher: the checkpoint that made them; where it is gone nothing is compared.
    """

    def __init__(self, folder: Path, shards: ShardSet, teacher: Path) -> None:
        self.folder, path = folder, folder / "labels.json"
        self._again = f"remove {folder} and run olivine finetune --rounds again"
        shape = {"identity": {"shards": str, "teacher": str}, "classes": [str], "files": [str]}
        record: dict[str, Any] = demand(read_json(path, self._again), shape, path, self._again)
        if record["identity"]["shards"] != shards.digest or len(record["files"]) != len(shards):
            raise OlivineError(
                "holds labels of other shards", where=folder, remedy=f"name the shards it trained on, not {shards.path}"
            )
        if teacher.is_file() and record["identity"]["teacher"] != sha256_file(teacher):
            raise OlivineError(f"holds labels of another network than {teacher}", where=folder, remedy=self._again)
        self.classes: list[str] = record["classes"]
        self._files: list[str] = record["files"]

    def read(self, frame: int, points: int) -> NDArray[np.uint8]:
        """uint8 [N], 0 = not sure."""
        path = self.folder / f"{frame:06d}.bin"
        data = read_bytes(path, self._again, what="labels")
        label = np.frombuffer(data, np.uint8)
        whole = hashlib.sha256(data).hexdigest() == self._files[frame] and len(label) == points
        if not whole or label.max(initial=0) > len(self.classes):
            raise OlivineError("has changed since it was written", where=path, remedy=self._again)
        return label
