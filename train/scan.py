"""Scans of a pass's frames with all their points, paired or not: the frames' own, and others of their scenes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backbone import Clouds, Features
from .batch import Batch
from .transfer import to_device


def scans_of(batch: Batch, clouds: Clouds, features: Features) -> dict[int, tuple[Batch, Tensor, Tensor]]:
    """The frames' own scans (0) and the others, each with the place of its points, and on the CPU which have a voxel."""
    assert clouds.inside is not None
    scans = {0: batch, **batch.scans}
    count = [sum(scan.point_count) for scan in scans.values()]
    parts = zip(features.place.split(count), clouds.inside.split(count))
    return {after: (scan, *part) for (after, scan), part in zip(scans.items(), parts)}


class Scan:
    """A scan of a group's frames; rows are its points, paired or not.

    Attributes:
        frames: the group's frames that have it, from 0, ascending.
        place: int64 [P], where the points' embeddings are.
        inside: bool [P] on the CPU: the points that have a voxel. Another's place means nothing.
    """

    def __init__(
        self, batch: Batch, members: slice, frames: tuple[int, ...], place: Tensor, inside: Tensor, features: Features
    ) -> None:
        self._batch, self._members, self.frames, self._features = batch, members, frames, features
        self._first = sum(batch.point_count[: members.start])
        points = slice(self._first, sum(batch.point_count[: members.stop]))
        self.place, self.inside = place[points], inside[points]
        edges = torch.tensor([members.start, members.stop])
        self._pairs = slice(*torch.searchsorted(batch.host.pair_frame, edges).tolist())

    @classmethod
    def of_frames(cls, frames: slice, batch: Batch, place: Tensor, inside: Tensor, features: Features) -> Scan | None:
        """The scan of some frames of a pass, None where none of them has it."""
        owner = batch.owner or tuple(range(len(batch.tokens)))
        members = [number for number, frame in enumerate(owner) if frames.start <= frame < frames.stop]
        if not members:
            return None
        own = tuple(owner[number] - frames.start for number in members)
        return cls(batch, slice(members[0], members[-1] + 1), own, place, inside, features)

    def column(self, name: str, *, host: bool = False) -> Tensor:
        """A column that the method's needs name: over its points [P, …], its pairs, or one row a frame; ``host``: on the CPU."""
        return (self._batch.host if host else self._batch).part(name, self._members, self._pairs)

    def frame_of_points(self) -> Tensor:
        """The group's frame that each point belongs to, int64 [P] on the CPU."""
        count = torch.tensor(self._batch.point_count[self._members])
        return torch.repeat_interleave(torch.tensor(self.frames), count)

    def points_of_pairs(self) -> Tensor:
        """The point of each of its pairs, rows of its points, int64 [M] on the CPU."""
        return self.column("pair_point", host=True) - self._first

    def at(self, rows: Tensor, head: nn.Module) -> Tensor:
        """Unit embeddings of points by a point head, [P', p]; rows, on the CPU or not, of points inside."""
        place = self.place.index_select(0, to_device(rows, self.place.device))
        return self._features.embed(head).index_select(0, place)
