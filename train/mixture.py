"""Several sets of shards in one run, as one sequence of frames; no torch in here.

Classes are joined by name, every sensor's intensity is brought to one scale, and a set's weight says how often its frames
come in an epoch. What the sets do not all have is refused by name.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, digest
from ..pairs.shards import ShardSet, open_shards

if TYPE_CHECKING:
    from ..pairs.shards import FrameRecord, Shard, TextTable

NORMALISED = "by the cloud's mean"
"""The intensity of a network that was trained on several sets, see :func:`normalised_intensity`."""
OFFSET = 0.1
_WEAK = ("pair_label", "pair_pixel_label", "point_weak")


def normalised_intensity(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """Raw intensities of a whole cloud [N] in the form that is the same for every sensor: raw / their mean + OFFSET.

    A voxel of the feature 0 is like no voxel to a sparse convolution: hence the offset, which is small beside the mean, for
    what points have in common tells nothing.
    """
    mean = float(raw.mean(dtype=np.float64)) if len(raw) else 0.0
    return raw / np.float32(mean if mean > 0 else 1) + np.float32(OFFSET)


def network_intensity(points: NDArray[np.float32], shards: ShardSet, normalised: bool) -> None:
    """Replace the raw intensity of a cloud [N, 4] of some shards by what a network takes.

    Args:
        normalised: as :func:`normalised_intensity`; else by the data set's own rule: raw + ``intensity_offset``.
    """
    if normalised:
        points[:, 3] = normalised_intensity(points[:, 3])
    elif shards.intensity_offset:
        points[:, 3] += shards.intensity_offset


def weights_of(named: str | tuple[str, ...] | dict[str, float]) -> dict[str, float]:
    """The folders of shards that a setting names, each with its weight; 1 where it says none."""
    if isinstance(named, dict):
        return named
    return dict.fromkeys((named,) if isinstance(named, str) else named, 1.0)


class ShardMixture:
    """Sets of shards, one after the other, with what a stream of frames asks of one set.

    Args:
        weights: of each folder: how often an epoch takes each of its frames. Below 1 an epoch takes a part of them, the next
            epoch goes on with the others.
        classes, point_classes: the names to number by; without them those of all sets, in the order of their first mention.

    Attributes:
        sets: as opened.
        names: of the sets: the data set's, with a number where there are several of one.
        drawn: frames that an epoch takes of each set, round(weight · frames) and at least 1.
        class_count: int64 [K + 1], pairs of each weak label, the sets' weighted.
        cameras: of the set that has the most; ``seen`` as of a :class:`ShardSet`.
        digest: of all sets and their weights.

    Raises:
        OlivineError: a set has a class that ``classes`` lack, or there are more than 255.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        classes: Sequence[str] | None = None,
        point_classes: Sequence[str] | None = None,
    ) -> None:
        self.weights, self.seen = dict(weights), dict[str, str]()
        self.sets = tuple(open_shards(path) for path in weights)
        self.path = ", ".join(weights)
        for shards in self.sets:
            if len(shards) == 0:
                raise OlivineError("the shard set holds no frames", where=shards.path, remedy="run olivine build-pairs")
            network_intensity(np.zeros((0, 4), np.float32), shards, True)  # what cannot be normalised is refused now
        several = [shards.dataset for shards in self.sets]
        numbers = [several[:k].count(name) for k, name in enumerate(several)]
        self.names = tuple(name if not k else f"{name}-{k + 1}" for name, k in zip(several, numbers))
        self.classes, self._weak = self._join([shards.classes for shards in self.sets], classes, "label classes")
        self.point_classes, self._true = self._join(
            [shards.point_classes for shards in self.sets], point_classes, "point classes"
        )
        factors = tuple(weights.values())
        self.drawn = tuple(max(1, round(w * len(shards))) for w, shards in zip(factors, self.sets))
        count = np.zeros(len(self.classes) + 1)
        for weight, shards, number in zip(factors, self.sets, self._weak):
            np.add.at(count, number, weight * shards.class_count)
        # A class of few pairs in a set of small weight is still one.
        self.class_count: NDArray[np.int64] = np.maximum(np.rint(count), count > 0).astype(np.int64)
        self.cameras = max((shards.cameras for shards in self.sets), key=len)
        self.digest = digest([[shards.digest, weight] for shards, weight in zip(self.sets, factors)])
        self._first = np.cumsum([0, *(len(shards) for shards in self.sets)]).tolist()
        self._drawn_first = np.cumsum([0, *self.drawn]).tolist()

    def _join(
        self, names: Sequence[tuple[str, ...]], known: Sequence[str] | None, what: str
    ) -> tuple[tuple[str, ...], list[NDArray[np.uint8]]]:
        """All names, and of each set the number of its classes among them, "none" first."""
        joined = tuple(dict.fromkeys(name for part in names for name in part)) if known is None else tuple(known)
        for shards, part in zip(self.sets, names):
            if unknown := [name for name in part if name not in joined]:
                raise OlivineError(
                    f"{what} that the training shards do not have: {', '.join(unknown)}",
                    where=shards.path,
                    remedy="hold out shards of the same prompts, or train on shards with these classes too",
                )
        if len(joined) > 255:
            raise OlivineError(
                f"{len(joined)} {what} together", where=self.path, remedy="join sets with at most 255 together"
            )
        return joined, [np.array([0, *(joined.index(name) + 1 for name in part)], np.uint8) for part in names]

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def identity(self) -> list[dict[str, Any]]:
        """What a checkpoint says of each set."""
        weights = self.weights.values()
        return [
            {
                "name": name,
                "digest": shards.digest,
                "weight": weight,
                "frames": len(shards),
            }
            for name, shards, weight in zip(self.names, self.sets, weights)
        ]

    @property
    def note(self) -> str:
        """What was joined, in a line."""
        taken = ", ".join(f"{name} ({count} frames an epoch)" for name, count in zip(self.names, self.drawn))
        common = [name for name in self.classes if all(name in shards.classes for shards in self.sets)]
        own = [
            f"{', '.join(only)} only in {name}"
            for name, shards in zip(self.names, self.sets)
            if (only := [c for c in shards.classes if sum(c in other.classes for other in self.sets) == 1])
        ]
        return "; ".join([f"{taken}: {len(common)} of {len(self.classes)} classes in all sets", *own])

    # -- as a set of shards ----------------------------------------------------------------

    def part(self, frame: int) -> tuple[int, int]:
        """The set that a frame is of, and its position there."""
        number = bisect.bisect_right(self._first, frame) - 1
        return number, frame - self._first[number]

    def draw(self, epoch: int, place: int) -> tuple[int, int, int]:
        """A place within an epoch, from 0, as (set, its frame count, position in that set's own endless stream)."""
        number = bisect.bisect_right(self._drawn_first, place) - 1
        return number, len(self.sets[number]), epoch * self.drawn[number] + place - self._drawn_first[number]

    def first(self, number: int) -> int:
        """The position of a set's first frame."""
        return int(self._first[number])

    def read(self, index: int, columns: Iterable[str]) -> FrameRecord:
        """Some columns of a frame, with the run's classes and normalised intensity; see :meth:`ShardSet.read`."""
        number, place = self.part(index)
        record = self.sets[number].read(place, columns)
        changed: dict[str, Any] = {"index": index}
        for name in _WEAK:
            if (value := getattr(record, name)) is not None:
                changed[name] = self._weak[number][value]
        if record.point_label is not None:
            changed["point_label"] = self._true[number][record.point_label]
        if record.class_count is not None:
            changed["class_count"] = np.zeros(len(self.classes) + 1, np.int64)
            np.add.at(changed["class_count"], self._weak[number], record.class_count)
        if record.points is not None:
            network_intensity(record.points, self.sets[number], True)
        return dataclasses.replace(record, **changed)  # type: ignore[type-var]

    def locate(self, index: int) -> tuple[Shard, int]:
        """See :meth:`ShardSet.locate`."""
        number, place = self.part(index)
        return self.sets[number].locate(place)

    @cached_property
    def shard_ranges(self) -> tuple[range, ...]:
        """See :attr:`ShardSet.shard_ranges`."""
        pairs = [(self._first[k], frames) for k, shards in enumerate(self.sets) for frames in shards.shard_ranges]
        return tuple(range(first + frames.start, first + frames.stop) for first, frames in pairs)

    def has(self, column: str) -> bool:
        """Whether every frame of every set has a column."""
        return all(shards.has(column) for shards in self.sets)

    @property
    def cluster_gap(self) -> int:
        """See :attr:`ShardSet.cluster_gap`.

        Raises:
            OlivineError: the sets differ.
        """
        gaps = {shards.cluster_gap for shards in self.sets}
        if len(gaps) > 1:
            raise OlivineError(
                f"the sets join scans {' and '.join(map(str, sorted(gaps)))} frames apart",
                where=self.path,
                remedy="build all with one olivine build-pairs --clusters N",
            )
        return gaps.pop()

    @property
    def text(self) -> TextTable:
        """Regions have one text table, and several sets would have several.

        Raises:
            OlivineError: always.
        """
        raise OlivineError(
            "regions with their text are of one set of shards", where=self.path, remedy="train on one set: --shards"
        )


Shards = ShardSet | ShardMixture


def held_out_sets(
    named: str | tuple[str, ...], shards: Shards
) -> list[tuple[str, str]] | list[tuple[ShardMixture, str]]:
    """The held-out sets that a setting names, with a name for each, of one run's classes and intensity.

    Args:
        shards: that are trained on; where they are one set, its held-out one is taken as it is, without a name.

    Raises:
        OlivineError: a set has a class that they lack.
    """
    if isinstance(shards, ShardSet):
        assert isinstance(named, str)
        return [(named, "")]
    every = ShardMixture(weights_of(named), shards.classes, shards.point_classes)
    alone = [ShardMixture({path: 1.0}, shards.classes, shards.point_classes) for path in weights_of(named)]
    return list(zip(alone, every.names))
