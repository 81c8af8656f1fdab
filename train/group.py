"""What a method is given: one contrast group, frames within which pairs are drawn and negatives are."""

from __future__ import annotations

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

    Attributes:
        step: of the run.
        size: M, its pairs; at least one.
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
    ) -> None:
        self._batch, self._frames, self._rows, self._key = batch, frames, rows, key
        self.step, self.size, self.class_count = key[1], rows.stop - rows.start, class_count
        self.points = Points(embeddings, place)
        self.pixels = Pixels(batch, frames, rows, pixels)

    def column(self, name: str) -> Tensor:
        """A column that the method's needs name: over its pairs [M, …], points or images, or one row a frame [F, …]."""
        batch, over, value = self._batch, COLUMNS[name].over, getattr(self._batch, name)
        if over == "pairs":
            rows: Tensor = value[self._rows]
            return rows
        images = batch.image_count
        count = {"points": batch.point_count, "images": images, "regions": images}.get(over, (1,) * len(batch.tokens))
        first, last = sum(count[: self._frames.start]), sum(count[: self._frames.stop])
        part: Tensor = value[first:last]
        return part

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

    def places(self) -> Tensor:
        """The voxel (or point) whose embedding each pair has, int64 [M]."""
        return self.points.place

    def generator(self, draw: int) -> torch.Generator:
        """A CPU generator made of (seed, step, group, draw)."""
        return generator_of(*self._key, draw)


class Points:
    """The 3D network's side of a group; rows are the group's pairs."""

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
        self._segments: tuple[Tensor, int] | None = None

    @property
    def _source(self) -> PixelFeatures:
        if self._known is None:
            raise OlivineError("a method asks for pixel features that its needs do not name", where="needs().encoder")
        return self._known

    def at(self, *draws: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """The frozen encoder's features at several draws of pairs, asked for together: [M₁, E], [M₂, E], …"""
        features = self._source(self._batch, torch.cat(draws) + self._rows.start).to(dtype)
        return features.split([len(draw) for draw in draws])

    def segments(self) -> tuple[Tensor, int]:
        """The images' segments numbered through from 0, int64 [I, H, W], −1 = none; and how many there are, S."""
        if self._segments is None:
            segment = self._batch.segment[self._images].long()
            image = torch.arange(len(segment), device=segment.device)[:, None, None]
            key = torch.where(segment >= 0, image * (segment.max() + 1).clamp(min=1) + segment, -1)
            known, number = torch.unique(key, return_inverse=True)
            none = int(bool(len(known) and known[0] < 0))
            self._segments = number - none, len(known) - none
        return self._segments

    def segment_of_pairs(self) -> Tensor:
        """The segment of each pair's pixel, int64 [M]; −1 where there is none."""
        return self.of_pairs(self.segments()[0])

    def of_pairs(self, maps: Tensor) -> Tensor:
        """The values of the group's images' maps, [I, H, W], at the pairs' pixels, [M]."""
        (height, width), uv = maps.shape[1:], self._batch.pair_uv[self._rows].round().long()
        u, v = uv[:, 0].clamp(0, width - 1), uv[:, 1].clamp(0, height - 1)
        return maps[self._batch.pair_camera[self._rows] - self._images.start, v, u]

    def mean_by_segment(self, head: nn.Module) -> Tensor:
        """Mean unit embedding of each segment over all its pixels, [S, p], not normalised again."""
        number, count = self.segments()
        return self._source.mean_by_segment(self._batch, self._images, number, count, head)
