"""Frames of one forward pass, joined into tensors: clouds, images and pairs with global indices.

What is joined how stands in one table, :data:`~.sample.COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..common import OlivineError
from .sample import COLUMNS, Sample, column_of
from .transfer import to_device

_INDEX = ("pair_camera", "pair_point", "pair_label")  # int64, whatever they are stored as


class Batch:
    """B frames as tensors.

    Attributes:
        tokens: of the frames; ``frames`` their positions in the shard set.
        point_count: points of each cloud; ``image_count`` images of each frame.
        pair_frame: int64 [M], the frame of each pair, ascending.
        columns: by name, those of the samples: over points [N, …], all clouds one after the other; over pairs [M, …],
            with ``pair_point`` a row of the points and ``pair_camera`` a row of the images; over images and
            regions [I, …]; of frames [B, …], a row of 0 for a camera that a frame has not.
        scans: other scans of the frames, by how many frames they come after: batches without images, of the frames
            that have one.
        owner: of such a batch: the frame in the main batch that each of its frames belongs to, ascending.
    """

    def __init__(
        self,
        tokens: tuple[str, ...],
        frames: tuple[int, ...],
        point_count: tuple[int, ...],
        image_count: tuple[int, ...],
        pair_frame: Tensor,
        columns: Mapping[str, Tensor],
        scans: Mapping[int, Batch] | None = None,
        owner: tuple[int, ...] = (),
    ) -> None:
        self.tokens, self.frames, self.point_count, self.image_count = tokens, frames, point_count, image_count
        self.pair_frame, self.columns = pair_frame, dict(columns)
        self.scans, self.owner = dict(scans or {}), owner
        self._host: Batch | None = None

    def __getattr__(self, name: str) -> Tensor:
        value: Tensor = column_of(self.__dict__.get("columns", {}), name)
        return value

    @property
    def host(self) -> Batch:
        """The same batch on the CPU, which draws are made from: itself where it is there."""
        return self if self._host is None else self._host

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        if device == self.pair_frame.device:
            return self
        moved = self._with(lambda name, value: to_device(value, device), tuple(self.columns))
        moved.scans, moved._host = {after: scan.to(device) for after, scan in self.scans.items()}, self.host
        return moved

    def point_cloud(self) -> Tensor:
        """The cloud of each point, int64 [N]."""
        count = to_device(self.point_count, self.points.device)
        number = torch.arange(len(count), device=count.device)
        return torch.repeat_interleave(number, count, output_size=len(self.points))

    def clouds(self) -> tuple[Tensor, list[int]]:
        """The points of all clouds, those of other scans behind the frames' own, and the number of points of each."""
        every = (self, *self.scans.values())
        points = torch.cat([batch.points for batch in every]) if self.scans else self.points
        return points, [count for batch in every for count in batch.point_count]

    def part(self, name: str, frames: slice, pairs: slice) -> Tensor:
        """A column of some frames, whose pairs these are."""
        over, value = COLUMNS[name].over, getattr(self, name)
        images = self.image_count
        count = {"points": self.point_count, "images": images, "regions": images}.get(over, (1,) * len(self.tokens))
        first, last = sum(count[: frames.start]), sum(count[: frames.stop])
        part: Tensor = value[pairs] if over == "pairs" else value[first:last]
        return part

    def select_pairs(self, kept: Tensor) -> Batch:
        """The batch with some of its pairs only (index [M'] on the CPU)."""
        over_pairs, rows = (
            [name for name in self.columns if COLUMNS[name].over == "pairs"],
            to_device(kept, self.pair_frame.device),
        )
        chosen = self._with(lambda name, value: value.index_select(0, rows), over_pairs)
        if self._host is not None:
            chosen._host = self._host.select_pairs(kept)
        return chosen

    def pairs_inside(self, inside: Tensor) -> Batch:
        """The batch without the pairs of other points than those ``inside``, bool [N] on the CPU."""
        kept = torch.nonzero(inside.index_select(0, self.host.pair_point))[:, 0]
        return self if len(kept) == len(self.pair_point) else self.select_pairs(kept)

    def _with(self, change: Callable[[str, Tensor], Tensor], names: Sequence[str]) -> Batch:
        columns = {name: change(name, value) if name in names else value for name, value in self.columns.items()}
        frame = change("pair_frame", self.pair_frame)
        counts = self.point_count, self.image_count
        return Batch(self.tokens, self.frames, *counts, frame, columns, self.scans, self.owner)


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples with the same columns, each as its row of :data:`COLUMNS` says."""
    batch = _join(samples)
    for after in samples[0].scans:
        found = [sample.scans[after] for sample in samples]
        owner = tuple(i for i, scan in enumerate(found) if scan is not None)
        if owner:
            batch.scans[after] = _join([scan for scan in found if scan is not None], owner)
    return batch


def _join(samples: Sequence[Sample], owner: tuple[int, ...] = ()) -> Batch:
    points = tuple(len(sample.points) for sample in samples)
    images = tuple(len(sample.columns.get("image_size", ())) for sample in samples)
    first = {"points": np.cumsum((0, *points)), "images": np.cumsum((0, *images))}
    columns = {}
    for name in samples[0].columns:
        column, parts = COLUMNS[name], [sample.columns[name] for sample in samples]
        if name in _INDEX:
            parts = [part.astype(np.int64) for part in parts]
        if column.counts is not None:
            parts = [part + first[column.counts][number] for number, part in enumerate(parts)]
        if column.over == "regions":  # as wide as the fullest image of the batch
            width = max(part.shape[1] for part in parts)
            parts = [np.pad(part, ((0, 0), (0, width - part.shape[1]), *((0, 0),) * (part.ndim - 2))) for part in parts]
        if column.over == "frame" and len({part.shape for part in parts}) > 1:  # frames with other numbers of cameras
            rows = max(len(part) for part in parts)
            parts = [np.pad(part, ((0, rows - len(part)), *((0, 0),) * (part.ndim - 1))) for part in parts]
        columns[name] = torch.from_numpy(np.stack(parts) if column.over == "frame" else np.concatenate(parts))
    pairs = [len(sample.columns.get("pair_point", ())) for sample in samples]
    pair_frame = torch.from_numpy(np.repeat(np.arange(len(samples)), pairs))
    tokens, frames = tuple(s.token for s in samples), tuple(s.frame for s in samples)
    return Batch(tokens, frames, points, images, pair_frame, columns, owner=owner)


def check_labels(batch: Batch, classes: int) -> None:
    """Check that the pairs' labels are in [0, classes).

    Raises:
        OlivineError: one is not; names the first frame.
    """
    if "pair_label" in batch.columns and len(batch.pair_label) and int(batch.pair_label.max()) >= classes:
        raise OlivineError(
            f"a pair carries class {int(batch.pair_label.max())}, the shards name {classes - 1}",
            where=batch.tokens[0],
            remedy="build the shards again",
        )
