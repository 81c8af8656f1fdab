"""Scans of a pass's frames with all their points, paired or not: the frames' own, and others of their scenes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backbone import Clouds, Features
from .batch import Batch
from .transfer import to_device


def scans_of(batch: Batch, clouds: Clouds, features: Features) -> dict[int, tuple[Batch, Tensor]]:
    """The frames' own scans (0) and the others, each with the place of its points, −1 outside the voxels' range."""
    place = torch.where(clouds.voxels.inverse >= 0, features.place, -1)
    scans = {0: batch, **batch.scans}
    parts = place.split([sum(scan.point_count) for scan in scans.values()])
    return {after: (scan, part) for (after, scan), part in zip(scans.items(), parts)}


class Scan:
    """A scan of a group's frames; rows are its points, paired or not.

    Attributes:
        frames: the group's frames that have it, from 0, ascending.
        place: int64 [P], where the points' embeddings are; −1 outside the voxels' range.
    """

    def __init__(
        self, batch: Batch, members: slice, frames: tuple[int, ...], place: Tensor, features: Features
    ) -> None:
        self._batch, self._members, self.frames, self._features = batch, members, frames, features
        self._first = sum(batch.point_count[: members.start])
        self.place = place[self._first : sum(batch.point_count[: members.stop])]
        edges = torch.tensor([members.start, members.stop])
        self._pairs = slice(*torch.searchsorted(batch.host.pair_frame, edges).tolist())

    @classmethod
    def of_frames(cls, frames: slice, batch: Batch, place: Tensor, features: Features) -> Scan | None:
        """The scan of some frames of a pass, None where none of them has it."""
        owner = batch.owner or tuple(range(len(batch.tokens)))
        members = [number for number, frame in enumerate(owner) if frames.start <= frame < frames.stop]
        if not members:
            return None
        own = tuple(owner[number] - frames.start for number in members)
        return cls(batch, slice(members[0], members[-1] + 1), own, place, features)

    def column(self, name: str) -> Tensor:
        """A column that the method's needs name: over its points [P, …], its pairs, or one row a frame."""
        return self._batch.part(name, self._members, self._pairs)

    def frame_of_points(self) -> Tensor:
        """The group's frame that each point belongs to, int64 [P]."""
        number, count = (
            to_device(values, self.place.device) for values in (self.frames, self._batch.point_count[self._members])
        )
        return torch.repeat_interleave(number, count, output_size=len(self.place))

    def points_of_pairs(self) -> Tensor:
        """The point of each of its pairs, rows of its points, int64 [M]."""
        return self.column("pair_point") - self._first

    def at(self, rows: Tensor, head: nn.Module) -> Tensor:
        """Unit embeddings of points by a point head, [P', p]; they must have a place."""
        return self._features.embed(head).index_select(0, self.place.index_select(0, rows))
