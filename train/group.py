"""What a method is given: one contrast group, frames within which pairs are drawn and negatives are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..common import OlivineError
from .backbone import Features
from .batch import Batch
from .sampling import generator_of
from .scan import Scan
from .segment_objectives import segment_mean
from .segments import at_pixels, number_through
from .transfer import to_device

if TYPE_CHECKING:
    from .pixel_features import PixelFeatures


class Group:
    """One contrast group.

    Args:
        batch: the pass's; ``frames`` and ``rows`` the group's frames and pairs in it.
        place: int64 [M], where the pairs' points are in the pass's ``features``.
        key: (seed, step, group), of the draws.
        scans: the pass's scans, by how many frames they come after its frames, as :func:`~.scan.scans_of` gives them.

    Attributes:
        step: of the run; ``tokens`` the frames' names.
        size: M, its pairs; at least one. ``frames`` the number of its frames.
        class_count: int64 [C] on the CPU, pairs of each class in the data set, "none" first; zeros where not known.
        points, pixels: the two sides.
    """

    def __init__(
        self,
        batch: Batch,
        frames: slice,
        rows: slice,
        place: Tensor,
        features: Features,
        pixels: PixelFeatures | None,
        class_count: Tensor,
        key: tuple[int, int, int],
        scans: Mapping[int, tuple[Batch, Tensor, Tensor]] | None = None,
    ) -> None:
        self._batch, self._frames, self._rows, self._key = batch, frames, rows, key
        self.step, self.size, self.class_count = key[1], rows.stop - rows.start, class_count
        self.tokens = batch.tokens[frames]
        self.frames, self._scans, self._features = frames.stop - frames.start, dict(scans or {}), features
        self.points = Points(features, place)
        self.pixels = Pixels(batch, frames, rows, pixels)

    def column(self, name: str, *, host: bool = False) -> Tensor:
        """A column of the needs, over pairs [M, …], points, images or frames; ``host``: on the CPU, where draws are made."""
        return self._on(host).part(name, self._frames, self._rows)

    def _on(self, host: bool) -> Batch:
        return self._batch.host if host else self._batch

    def scan(self, after: int) -> Scan | None:
        """A scan of the frames, with all its points: their own (0), or one that the method's needs name.

        None where no frame of the group has it.
        """
        return Scan.of_frames(self._frames, *self._scans[after], self._features) if after in self._scans else None

    def frame_of_pairs(self, *, host: bool = False) -> Tensor:
        """The frame of each pair, from 0, int64 [M]."""
        return self._on(host).pair_frame[self._rows] - self._frames.start

    def points_of_pairs(self, *, host: bool = False) -> Tensor:
        """The pairs' points in the augmented clouds, float32 [M, 4]."""
        batch = self._on(host)
        return batch.points.index_select(0, batch.pair_point[self._rows])

    def generator(self, draw: int) -> torch.Generator:
        """A CPU generator made of (seed, step, group, draw)."""
        return generator_of(*self._key, draw)


class Points:
    """The 3D network's side of a group; rows are the group's pairs.

    Attributes:
        place: the voxel (or point) whose embedding each pair has, int64 [M].
    """

    def __init__(self, features: Features, place: Tensor) -> None:
        self._features, self.place = features, place

    def at(self, rows: Tensor, head: nn.Module) -> Tensor:
        """Unit embeddings of some pairs' points by a point head, [M', p]; rows on the CPU are brought to its device."""
        place = self.place.index_select(0, to_device(rows, self.place.device))
        return self._features.embed(head).index_select(0, place)

    def by_class(self, label: Tensor, classes: int, head: nn.Module) -> tuple[Tensor, Tensor]:
        """Unit embeddings by a point head at every place of the pass, and how many pairs of each class have them.

        Args:
            label: of the group's pairs, in [0, classes), int64 [M].

        Returns:
            [P, p], each place once, however many pairs have it, and float32 [P, classes].
        """
        point, row = self._features.embed(head), torch.add(label, self.place, alpha=classes)
        number = torch.zeros(len(point) * classes, device=row.device)
        return point, number.index_add_(0, row, number.new_ones(len(row))).view(-1, classes)

    def mean_by(self, segment: Tensor, count: int, head: nn.Module) -> Tensor:
        """Mean embedding of each segment's pairs, [count, p], not normalised; ``segment`` int64 [M] or on the CPU, −1 = none."""
        return segment_mean(self._features.embed(head).index_select(0, self.place), segment, count)


class Pixels:
    """The image side of a group."""

    def __init__(self, batch: Batch, frames: slice, rows: slice, source: PixelFeatures | None) -> None:
        self._batch, self._rows, self._known = batch, rows, source
        start = sum(batch.image_count[: frames.start])
        self._images = slice(start, start + sum(batch.image_count[frames]))
        self._segments: dict[bool, tuple[Tensor, Tensor, int]] = {}

    @property
    def _source(self) -> PixelFeatures:
        if self._known is None:
            raise OlivineError("a method asks for pixel features that its needs do not name", where="needs().encoder")
        return self._known

    def at(self, *draws: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """The frozen encoder's features at several draws of pairs, on the CPU, asked for together: [M₁, E], [M₂, E], …"""
        features = self._source(self._batch, torch.cat(draws) + self._rows.start).to(dtype)
        return features.split([len(draw) for draw in draws])

    def segments(self, uncovered: bool = False) -> tuple[Tensor, Tensor, int]:
        """The images' segments that hold a pair, numbered from 0: int64 [I, H, W], each pair's, [M], −1 = none; and S.

        On the CPU, so that nobody waits. With ``uncovered`` what no segment covers is one more of each image.
        """
        if uncovered not in self._segments:
            segment = self._batch.host.segment[self._images].long() + uncovered
            self._segments[uncovered] = number_through(segment, *self._of_pairs())
        return self._segments[uncovered]

    def of_pairs(self, maps: Tensor) -> Tensor:
        """The values of maps of the group's images, [I, H, W], at the pairs' pixels, [M]; both on the CPU."""
        return at_pixels(maps, *self._of_pairs())

    def _of_pairs(self) -> tuple[Tensor, Tensor]:
        host = self._batch.host
        return host.pair_camera[self._rows] - self._images.start, host.pair_uv[self._rows]

    def means_by_segment(
        self, head: nn.Module, encoder: bool = False, uncovered: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean unit embedding of each segment over all its pixels, [S, p], not normalised again.

        With ``encoder`` also its mean feature by the frozen encoder, [S, E], and how many cells of the encoder's map it
        is of, on the CPU, [S]: 0 where that is 0; see :class:`~.pixel_features.PixelFeatures`.
        """
        number, _, count = self.segments(uncovered)
        return self._source.mean_by_segment(self._batch, self._images, number, count, head, encoder)
