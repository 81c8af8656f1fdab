"""Labels by vote: what a point's surroundings are called by all cameras, in the frames before and after.

A label map errs anew in each image: a border lies elsewhere, an object is missed, a car is called a truck. The place in
the world stays. So the labels that fall on one place from many images vote for it, as in LOSC (LiDAR Open-voc Segmentation
Consolidator, 2025).

Every labelled pair of the window is a vote for its point's place, unless a nearer surface hides the point from the
camera. It weighs 1 / distance, since an error of a pixel is larger in metres far away, times the labeler's score at its
pixel where the label store has scores; a label of which nothing is known (score 0) has no vote. Places are voxels of several sizes,
each of which has one say: small ones keep borders sharp, large ones hold enough votes; for far points, which lie apart,
they are larger. A thing that moves leaves its place, so that its votes of other frames are where its points are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from ..labelgen.store import LabelStore
from ..readers.frame import Frame
from ..readers.project import look_up, project_points
from .clusters import move
from .settings import ConsolidationSettings
from .visibility import visible_pairs

_BITS = 21
"""Of a voxel's number on each axis: ±200 km at the smallest voxel."""
_SPREAD = (
    (32, 0x001F00000000FFFF),
    (16, 0x001F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)
"""Steps that move 21 bits apart, two free ones between each and the next."""


@dataclass(frozen=True)
class _Votes:
    """One frame's: world coordinates float64 [M, 3], label uint8 [M], weight float64 [M]."""

    place: NDArray[np.float64]
    label: NDArray[np.uint8]
    weight: NDArray[np.float64]


class SceneVotes:
    """The consolidated labels of a scene's frames; holds the votes of one window.

    Args:
        frames: all of the scene's, in time order.
        window: n, of the frames t - n to t + n.
        store: the label maps.
        min_depth: metres, as the pairs are made with.
        settings: see :class:`ConsolidationSettings`.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        window: int,
        store: LabelStore,
        min_depth: float,
        settings: ConsolidationSettings,
    ) -> None:
        self._frames, self._window, self._store = frames, window, store
        self._min_depth, self._settings = min_depth, settings
        self._votes: dict[int, _Votes] = {}

    def columns(self, position: int, columns: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """The columns of the frame at ``position`` that the vote adds or changes.

        Args:
            columns: the frame's own; ``pair_label`` are the labels at the pairs' pixels.

        Returns:
            ``point_weak`` uint8 [N], the label that won at the point, 0 where there was no vote; ``point_agreement``
            uint8 [N], its share of the votes, 255 = all; ``pair_pixel_label``, the labels before; ``pair_label``,
            ``pair_score`` (the agreement at its point) and ``class_count`` after the vote. A pair whose point has no vote
            keeps its label, with score 0.

        Raises:
            OlivineError: a cloud, a label map or a pose of the window is missing, damaged, or poses jump; names it.
        """
        for done in [number for number in self._votes if number < position - self._window]:
            del self._votes[done]
        first, last = max(0, position - self._window), min(len(self._frames), position + self._window + 1)
        votes = [self._of(number) for number in range(first, last)]
        pose = _pose(self._frames[position])
        # Relative to the frame: a data set's world may lie far from its origin.
        origin = pose[:3, 3]
        xyz = columns["points"][:, :3].astype(np.float64)
        place = np.concatenate([v.place for v in votes]) - origin
        label = np.concatenate([v.label for v in votes])
        weight = np.concatenate([v.weight for v in votes])
        own, settings, classes = move(xyz, pose) - origin, self._settings, len(self._store.classes)
        doubled = np.digitize(_length(xyz), settings.doubled)
        share = count_votes(place, label, weight, own, doubled, classes, settings.voxel, settings.sizes)
        weak = share.argmax(axis=1).astype(np.uint8)
        agreement = np.rint(255 * share.max(axis=1)).astype(np.uint8)
        before = columns["pair_label"]
        won = weak[columns["pair_point"]]
        after = np.where(won > 0, won, before)
        return {
            "point_weak": weak,
            "point_agreement": agreement,
            "pair_pixel_label": before,
            "pair_label": after,
            "pair_score": agreement[columns["pair_point"]],
            "class_count": np.bincount(after, minlength=classes + 1).astype(np.int64),
        }

    def _of(self, number: int) -> _Votes:
        if number not in self._votes:
            frame = self._frames[number]
            pose = _pose(frame)
            if number:
                self._check_speed(self._frames[number - 1], frame)
            points = frame.points()
            point, camera, uv = project_points(points, frame.cameras, self._min_depth)
            label, score = np.zeros(len(point), np.uint8), np.full(len(point), 255, np.uint8)
            for c, view in enumerate(frame.cameras):
                mine = slice(*np.searchsorted(camera, (c, c + 1)))
                label[mine] = look_up(self._store.label_map(view, frame.scene), uv[mine])
                if (sure := self._store.score_map(view, frame.scene)) is not None:
                    score[mine] = look_up(sure, uv[mine])
            votes = visible_pairs(points, frame.cameras, point, camera, uv) & (label > 0) & (score > 0)
            xyz, voter = points[:, :3].astype(np.float64), point[votes]
            weight = score[votes] / 255 / np.maximum(_length(xyz)[voter], self._settings.nearest)
            self._votes[number] = _Votes(move(xyz, pose)[voter], label[votes], weight)
        return self._votes[number]

    def _check_speed(self, before: Frame, after: Frame) -> None:
        seconds = max((after.timestamp - before.timestamp) / 1e6, 0.0)
        metres = float(np.linalg.norm(_pose(after)[:3, 3] - _pose(before)[:3, 3]))
        if metres > self._settings.fastest * max(seconds, 0.1):
            raise OlivineError(
                f"the pose jumps by {metres:,.0f} m in {seconds:.1f} s after frame {before.token}",
                where=f"frame {after.token} of {after.scene}",
                remedy="mend the data set's poses, cut the scene there, or build without --consolidate",
            )


def count_votes(
    place: NDArray[np.float64],
    label: NDArray[np.uint8],
    weight: NDArray[np.float64],
    point: NDArray[np.float64],
    doubled: NDArray[np.integer],
    classes: int,
    voxel: float,
    sizes: int,
) -> NDArray[np.float64]:
    """The share of the votes that each class has at some points: float64 [N, classes + 1], rows sum to 1 or are 0.

    In each of a point's voxels that holds a vote, the classes' shares of its weight; the mean over these voxels.

    Args:
        place, label, weight: of the votes: float64 [M, 3] metres, uint8 [M] from 1, float64 [M].
        point: float64 [N, 3], metres.
        doubled: d, integer [N]: a point's voxels have the edges voxel · 2^d, …, voxel · 2^(d + sizes - 1).
        voxel: metres.
    """
    # In this order the votes of a voxel stand together, whatever its size: sorted once for all.
    key = _voxel(place, voxel)
    order = np.argsort(key, kind="stable")
    key, column, weight = key[order], label[order].astype(np.int64), weight[order]
    wanted = _voxel(point, voxel)
    total = np.zeros((len(point), classes + 1))
    for k in range(int(doubled.max(initial=0)) + sizes):
        mine = np.flatnonzero((doubled <= k) & (k < doubled + sizes))
        cell = key >> 3 * k
        begins = np.diff(cell, prepend=-1) != 0
        held, row = cell[begins], np.cumsum(begins) - 1
        size = len(held) * (classes + 1)
        weights = np.bincount(row * (classes + 1) + column, weight, minlength=size).reshape(-1, classes + 1)
        at = np.searchsorted(held, wanted[mine] >> 3 * k)
        known = at < len(held)
        known[known] = held[at[known]] == wanted[mine[known]] >> 3 * k
        found = weights[at[known]]
        total[mine[known]] += found / found.sum(axis=1, keepdims=True)
    whole = total.sum(axis=1, keepdims=True)
    return np.divide(total, whole, out=total, where=whole > 0)


def _voxel(xyz: NDArray[np.float64], edge: float) -> NDArray[np.int64]:
    """One number for each voxel, its three coordinates' bits in turn (Morton's order); shifted by 3 k bits that of the
    voxel of 2^k times the edge that holds it."""
    number = np.zeros(len(xyz), np.int64)
    for axis in range(3):
        bits = np.floor(xyz[:, axis] / edge).astype(np.int64) + (1 << (_BITS - 1))
        for shift, mask in _SPREAD:
            bits = (bits | bits << shift) & mask
        number |= bits << axis
    return number


def _length(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    # Written out: a norm's bits may depend on the machine.
    length: NDArray[np.float64] = np.sqrt(xyz[:, 0] ** 2 + xyz[:, 1] ** 2 + xyz[:, 2] ** 2)
    return length


def _pose(frame: Frame) -> NDArray[np.float64]:
    pose: NDArray[np.float64] = frame.pose
    if not np.isfinite(pose).all():
        raise OlivineError(
            f"frame {frame.token} of {frame.scene} has no pose, which --consolidate needs",
            where=frame.root,
            remedy="leave out --consolidate, or add the data set's poses",
        )
    return pose
