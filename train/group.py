"""What a method is given: one contrast group, frames within which pairs are drawn and negatives are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..common import OlivineError
from .backbone import Features
from .batch import Batch
from .objectives import segment_mean
from .sample import COLUMNS
from .sampling import generator_of

if TYPE_CHECKING:
    from .pixel_features import PixelFeatures


class Embeddings:
    """A pass's embeddings by each head, made when first asked for and shared by its groups."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._made: dict[nn.Module, Tensor] = {}

    def by(self, head: nn.Module) -> Tensor:
        """Unit embeddings at every place, [places, p]."""
        if head not in self._made:
            self._made[head] = self._features.embed(head)
        return self._made[head]


class Group:
    """One contrast group.

    Args:
        batch: the pass's; ``frames`` and ``rows`` the group's frames and pairs in it.
        place: int64 [M], where the pairs' points are in the pass's ``embeddings``.
        key: (seed, step, group), of the draws.
        scans: the pass's scans, by how many frames they come after its frames, each with its points' places.

    Attributes:
        step: of the run.
        size: M, its pairs; at least one. ``frames`` the number of its frames.
        class_count: int64 [C], pairs of each class in the whole data set, "none" first; zeros where it is not known.
        points, pixels: the two sides.
    """

    def __init__(
        self,
        batch: Batch,
        frames: slice,
        rows: slice,
        place: Tensor,
        embeddings: Embeddings,
        pixels: PixelFeatures | None,
        class_count: Tensor,
        key: tuple[int, int, int],
        scans: Mapping[int, tuple[Batch, Tensor]] | None = None,
    ) -> None:
        self._batch, self._frames, self._rows, self._key = batch, frames, rows, key
        self.step, self.size, self.class_count = key[1], rows.stop - rows.start, class_count
        self.frames, self._scans, self._embeddings = frames.stop - frames.start, dict(scans or {}), embeddings
        self.points = Points(embeddings, place)
        self.pixels = Pixels(batch, frames, rows, pixels)

    def column(self, name: str) -> Tensor:
        """A column that the method's needs name: over its pairs [M, …], points or images, or one row a frame [F, …]."""
        return _part(self._batch, name, self._frames, self._rows)

    def scan(self, after: int) -> Scan | None:
        """A scan of the frames, with all its points: their own (0), or one that the method's needs name.

        None where no frame of the group has it.
        """
        if after not in self._scans:
            return None
        batch, place = self._scans[after]
        owner = batch.owner or tuple(range(len(batch.tokens)))
        members = [number for number, frame in enumerate(owner) if self._frames.start <= frame < self._frames.stop]
        if not members:
            return None
        own = tuple(owner[number] - self._frames.start for number in members)
        return Scan(batch, slice(members[0], members[-1] + 1), own, place, self._embeddings)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Its frames' names."""
        return self._batch.tokens[self._frames]

    def frame_of_pairs(self) -> Tensor:
        """The frame of each pair, from 0, int64 [M]."""
        return self._batch.pair_frame[self._rows] - self._frames.start

    def points_of_pairs(self) -> Tensor:
        """The pairs' points in the augmented clouds, float32 [M, 4]."""
        return self._batch.points.index_select(0, self._batch.pair_point[self._rows])

    def generator(self, draw: int) -> torch.Generator:
        """A CPU generator made of (seed, step, group, draw)."""
        return generator_of(*self._key, draw)


def _part(batch: Batch, name: str, frames: slice, rows: slice) -> Tensor:
    """A column of some frames of a batch; ``rows`` are their pairs."""
    over, value = COLUMNS[name].over, getattr(batch, name)
    images = batch.image_count
    count = {"points": batch.point_count, "images": images, "regions": images}.get(over, (1,) * len(batch.tokens))
    first, last = sum(count[: frames.start]), sum(count[: frames.stop])
    part: Tensor = value[rows] if over == "pairs" else value[first:last]
    return part


class Scan:
    """A scan of a group's frames; rows are its points, paired or not.

    Attributes:
        frames: the group's frames that have it, from 0, ascending.
        place: int64 [P], where the points' embeddings are; −1 outside the voxels' range.
    """

    def __init__(
        self, batch: Batch, members: slice, frames: tuple[int, ...], place: Tensor, embeddings: Embeddings
    ) -> None:
        self._batch, self._members, self.frames, self._embeddings = batch, members, frames, embeddings
        self._first = sum(batch.point_count[: members.start])
        self.place = place[self._first : sum(batch.point_count[: members.stop])]
        edges = torch.tensor([members.start, members.stop], device=batch.pair_frame.device)
        self._pairs = slice(*torch.searchsorted(batch.pair_frame, edges).tolist())

    def column(self, name: str) -> Tensor:
        """A column that the method's needs name: over its points [P, …], its pairs, or one row a frame."""
        return _part(self._batch, name, self._members, self._pairs)

    def frame_of_points(self) -> Tensor:
        """The group's frame that each point belongs to, int64 [P]."""
        number, count = (
            torch.tensor(values, device=self.place.device)
            for values in (self.frames, self._batch.point_count[self._members])
        )
        return torch.repeat_interleave(number, count)

    def points_of_pairs(self) -> Tensor:
        """The point of each of its pairs, rows of its points, int64 [M]."""
        return self.column("pair_point") - self._first

    def at(self, rows: Tensor, head: nn.Module) -> Tensor:
        """Unit embeddings of points by a point head, [P', p]; they must have a place."""
        return self._embeddings.by(head).index_select(0, self.place.index_select(0, rows))


class Points:
    """The 3D network's side of a group; rows are the group's pairs.

    Attributes:
        place: the voxel (or point) whose embedding each pair has, int64 [M].
    """

    def __init__(self, embeddings: Embeddings, place: Tensor) -> None:
        self._embeddings, self.place = embeddings, place

    def at(self, rows: Tensor | slice, head: nn.Module) -> Tensor:
        """Unit embeddings of the pairs' points by a point head, [M', p]."""
        place = self.place[rows] if isinstance(rows, slice) else self.place.index_select(0, rows)
        return self._embeddings.by(head).index_select(0, place)

    def mean_by(self, segment: Tensor, count: int, head: nn.Module) -> Tensor:
        """Mean embedding of each segment's pairs, [count, p], not normalised; ``segment`` int64 [M], −1 = none."""
        return segment_mean(self.at(slice(None), head), segment, count)


class Pixels:
    """The image side of a group."""

    def __init__(self, batch: Batch, frames: slice, rows: slice, source: PixelFeatures | None) -> None:
        self._batch, self._rows, self._known = batch, rows, source
        start = sum(batch.image_count[: frames.start])
        self._images = slice(start, start + sum(batch.image_count[frames]))
        self._segments: dict[bool, tuple[Tensor, int]] = {}

    @property
    def _source(self) -> PixelFeatures:
        if self._known is None:
            raise OlivineError("a method asks for pixel features that its needs do not name", where="needs().encoder")
        return self._known

    def at(self, *draws: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """The frozen encoder's features at several draws of pairs, asked for together: [M₁, E], [M₂, E], …"""
        features = self._source(self._batch, torch.cat(draws) + self._rows.start).to(dtype)
        return features.split([len(draw) for draw in draws])

    def segments(self, uncovered: bool = False) -> tuple[Tensor, int]:
        """The images' segments numbered through from 0, int64 [I, H, W], −1 = none; and how many there are, S.

        With ``uncovered`` what no segment covers is one more of each image.
        """
        if uncovered not in self._segments:
            segment = self._batch.segment[self._images].long() + uncovered
            image = torch.arange(len(segment), device=segment.device)[:, None, None]
            key = torch.where(segment >= 0, image * (segment.max() + 1).clamp(min=1) + segment, -1)
            known, number = torch.unique(key, return_inverse=True)
            none = int(bool(len(known) and known[0] < 0))
            self._segments[uncovered] = number - none, len(known) - none
        return self._segments[uncovered]

    def segment_of_pairs(self, uncovered: bool = False) -> Tensor:
        """The segment of each pair's pixel, int64 [M]; −1 where there is none."""
        return self.of_pairs(self.segments(uncovered)[0])

    def of_pairs(self, maps: Tensor) -> Tensor:
        """The values of the group's images' maps, [I, H, W], at the pairs' pixels, [M]."""
        (height, width), uv = maps.shape[1:], self._batch.pair_uv[self._rows].round().long()
        u, v = uv[:, 0].clamp(0, width - 1), uv[:, 1].clamp(0, height - 1)
        return maps[self._batch.pair_camera[self._rows] - self._images.start, v, u]

    def means_by_segment(
        self, head: nn.Module, encoder: bool = False, uncovered: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mean unit embedding of each segment over all its pixels, [S, p], not normalised again.

        With ``encoder`` also its mean feature by the frozen encoder, [S, E], 0 where the encoder's map has no cell of it;
        see :class:`~.pixel_features.PixelFeatures`.
        """
        number, count = self.segments(uncovered)
        return self._source.mean_by_segment(self._batch, self._images, number, count, head, encoder)
