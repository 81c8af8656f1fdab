"""Labels by vote: what a point's surroundings are called by all cameras, in the frames before and after.

A label map errs anew in each image: a border lies elsewhere, an object is missed, a car is called a truck. The place in
the world stays. So the labels that fall on one place from many images vote for it, as in LOSC (LiDAR Open-voc Segmentation
Consolidator, 2025).

Every labelled pair of the window is a vote for its point's place, unless a nearer surface hides the point from the
camera. It weighs 1 / sqrt(distance), since an error of a pixel is larger in metres far away, times the labeler's score at
its pixel where the label store has scores; a label of which nothing is known (score 0) has no vote. Votes of the frame
itself weigh more. Places are voxels of several sizes: small ones keep borders sharp, large ones hold enough votes; for far
points, which lie apart, they are larger. The more votes a voxel holds the more say it has, up to a limit. In a voxel each
image has one say, however many of its points lie there: a region that an image calls by a wrong name is one error and not
thousands. How far an image is trusted with a label is told by how often other images agree where it gives this label
(after Dawid and Skene, 1979). A class of ground has no vote above the ground.

A thing that moves leaves its place, so that its votes of other frames are where its points are not. Where annotated boxes
may be used, the points in them vote in the box's own frame, along its track.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError
from ..common.compiled import compiled
from ..labelgen.store import LabelStore
from ..readers.frame import Box, Frame, rotation_of
from ..readers.project import look_up, project_points
from .clusters import level, move
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
    """One frame's.

    Attributes:
        place: float64 [M, 3], metres in the world.
        label: uint8 [M].
        weight: float64 [M].
        image: integer [M], that votes: of the frame's, store by store.
        box: int16 [M], row of ``tracks`` whose box holds the point, -1 for none.
        point_box: int16 [N], the same of each point of the frame.
        tracks: of the frame's annotated boxes; empty where they are not used.
        box_to_world: float64 [4, 4] of each.
    """

    place: NDArray[np.float64]
    label: NDArray[np.uint8]
    weight: NDArray[np.float64]
    image: NDArray[np.integer]
    box: NDArray[np.int16]
    point_box: NDArray[np.int16]
    tracks: tuple[str, ...]
    box_to_world: tuple[NDArray[np.float64], ...]


class SceneVotes:
    """The consolidated labels of a scene's frames; holds the votes of one window.

    Args:
        frames: all of the scene's, in time order.
        window: n, of the frames t - n to t + n.
        store: the label maps; those of the stores beside it (``store.also``) vote as further images.
        min_depth: metres, as the pairs are made with.
        settings: see :class:`ConsolidationSettings`.
        tracks: use annotated boxes: a point in one votes for the same spot of the box in the other frame, and for
            nothing else, and has the votes of its track alone.
    """

    def __init__(
        self,
        frames: Sequence[Frame],
        window: int,
        store: LabelStore,
        min_depth: float,
        settings: ConsolidationSettings,
        tracks: bool = False,
    ) -> None:
        self._frames, self._window, self._store = frames, window, store
        self._min_depth, self._settings, self._tracks = min_depth, settings, tracks
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
            OlivineError: a cloud, a label map or a pose of the window is missing, damaged, or poses jump; tracks are
                asked for and the data set has none. Names it.
        """
        for done in [number for number in self._votes if number < position - self._window]:
            del self._votes[done]
        first, last = max(0, position - self._window), min(len(self._frames), position + self._window + 1)
        here = self._of(position)
        votes = [_along_tracks(self._of(number), here) for number in range(first, last)]
        pose = _pose(self._frames[position])
        # Relative to the frame: a data set's world may lie far from its origin.
        origin = pose[:3, 3]
        xyz = columns["points"][:, :3].astype(np.float64)
        place = np.concatenate([v.place for v in votes]) - origin
        label, box = (np.concatenate([getattr(v, name) for v in votes]) for name in ("label", "box"))
        weight = np.concatenate([v.weight * (self._settings.own_frame if v is here else 1.0) for v in votes])
        images = max(len(frame.cameras) for frame in self._frames[first:last]) * (1 + len(self._store.also))
        numbers = _image_numbers(self._frames[first:last], 1 + len(self._store.also), images)
        image = np.concatenate([of_frame[v.image] for of_frame, v in zip(numbers, votes)])
        own, settings, classes = move(xyz, pose) - origin, self._settings, len(self._store.classes)
        doubled = np.digitize(_length(xyz), settings.doubled)
        share = np.zeros((len(own), classes + 1))
        parts: list[tuple[Any, Any]] = [(slice(None), slice(None))]
        if self._tracks:
            parts = [(here.point_box < 0, box < 0), (here.point_box >= 0, box >= 0)]
        for mine, theirs in parts:
            share[mine] = count_votes(
                place[theirs], label[theirs], weight[theirs], image[theirs],
                own[mine], doubled[mine], classes, settings,
            )  # fmt: skip
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
            stores = (self._store, *self._store.also)
            told = [_labels_at(store, frame, camera, uv) for store in stores]
            label, score = (np.concatenate(part) for part in zip(*told))
            xyz = points[:, :3].astype(np.float64)
            seen = visible_pairs(points, frame.cameras, point, camera, uv)
            image = np.concatenate(
                [len(frame.cameras) * number + camera.astype(np.int64) for number in range(len(stores))]
            )
            point, votes = np.tile(point, len(stores)), np.tile(seen, len(stores)) & (label > 0) & (score > 0)
            upright, settings = level(xyz, frame), self._settings
            above = height_over_ground(upright, settings.ground_cell) > settings.ground_height
            votes &= ~(above[point] & np.isin(label, self._store.ground))
            voter = point[votes]
            weight = score[votes] / 255 / np.sqrt(np.maximum(_length(xyz)[voter], self._settings.nearest))
            box, boxes = self._boxed(frame, xyz)
            self._votes[number] = _Votes(
                place=move(xyz, pose)[voter],
                label=label[votes],
                weight=weight,
                image=image[votes],
                box=box[voter],
                point_box=box,
                tracks=tuple(b.track for b in boxes),
                box_to_world=tuple(pose @ _box_to_lidar(b) for b in boxes),
            )
        return self._votes[number]

    def _boxed(self, frame: Frame, xyz: NDArray[np.float64]) -> tuple[NDArray[np.int16], list[Box]]:
        """The annotated box that holds each point, int16 [N], -1 for none; and the boxes, none where they are not used."""
        if not self._tracks:
            return np.full(len(xyz), -1, np.int16), []
        boxes = frame.boxes()
        if boxes is None or not all(box.track for box in boxes):
            raise OlivineError(
                f"frame {frame.token} of {frame.scene} has no annotated boxes with tracks, which --tracks needs",
                where=frame.root,
                remedy="leave out --tracks",
            )
        margin = self._settings.box_margin
        half = np.array([box.size for box in boxes]).reshape(-1, 3) / 2 + margin
        lidar_to_box = np.array([np.linalg.inv(_box_to_lidar(box)) for box in boxes]).reshape(-1, 4, 4)
        # The ground under a box is none of it.
        return _box_of_points(xyz, lidar_to_box, half, 2 * margin), boxes

    def _check_speed(self, before: Frame, after: Frame) -> None:
        seconds = max((after.timestamp - before.timestamp) / 1e6, 0.0)
        metres = float(np.linalg.norm(_pose(after)[:3, 3] - _pose(before)[:3, 3]))
        if metres > self._settings.fastest * max(seconds, 0.1):
            raise OlivineError(
                f"the pose jumps by {metres:,.0f} m in {seconds:.1f} s after frame {before.token}",
                where=f"frame {after.token} of {after.scene}",
                remedy="mend the data set's poses, cut the scene there, or build without --consolidate",
            )


def _image_numbers(frames: Sequence[Frame], stores: int, images: int) -> list[NDArray[np.int64]]:
    """The numbers of the images that vote, for each frame int64 [stores * cameras], ``images`` apart from frame to frame.

    An image that several frames have, of a camera that is slower than the LiDAR, has one number and so one say.
    """
    first: dict[tuple[int, str], int] = {}
    numbers = []
    for at, frame in enumerate(frames):
        named = [(store, camera.image) for store in range(stores) for camera in frame.cameras]
        numbers.append(np.array([first.setdefault(n, images * at + k) for k, n in enumerate(named)], np.int64))
    return numbers


def _labels_at(
    store: LabelStore, frame: Frame, camera: NDArray[Any], uv: NDArray[Any]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What a store says at the pairs of a frame: label and score, uint8 [M]; score 255 where it has none."""
    label, score = np.zeros(len(uv), np.uint8), np.full(len(uv), 255, np.uint8)
    for c, view in enumerate(frame.cameras):
        mine = slice(*np.searchsorted(camera, (c, c + 1)))
        label[mine] = look_up(store.label_map(view, frame.scene), uv[mine])
        if (sure := store.score_map(view, frame.scene)) is not None:
            score[mine] = look_up(sure, uv[mine])
    return label, score


def count_votes(
    place: NDArray[np.float64],
    label: NDArray[np.uint8],
    weight: NDArray[np.float64],
    image: NDArray[np.int64],
    point: NDArray[np.float64],
    doubled: NDArray[np.integer],
    classes: int,
    settings: ConsolidationSettings,
) -> NDArray[np.float64]:
    """The share of the votes that each class has at some points: float64 [N, classes + 1], rows sum to 1 or are 0.

    In each of a point's voxels every image that votes has one say s, the mean of its votes' weights for each class. Voxels
    count by the sum over images S as S / (half_say + S), shared by the classes as S is. Before that, all votes of an image
    for one class are weighed by the mean share that this class has of what other images say in their voxels of the edge
    voxel · 2^(sizes - 1).

    Args:
        place, label, weight, image: of the votes: float64 [M, 3] metres, uint8 [M] from 1, float64 [M], and the number of
            its image, int64 [M] from 0.
        point: float64 [N, 3], metres.
        doubled: d, integer [N]: a point's voxels have the edges voxel · 2^d, …, voxel · 2^(d + sizes - 1).
        settings: ``voxel``, ``sizes``, ``half_say`` and ``compared`` are taken.
    """
    voxel, sizes = settings.voxel, settings.sizes
    # In this order the votes of a voxel stand together, whatever its size: sorted once for all.
    key = _voxel(place, voxel)
    order = np.argsort(key, kind="stable")
    key, column, weight = key[order], label[order], weight[order]
    image, images = image[order], int(image.max(initial=0)) + 1
    begins = np.flatnonzero(np.diff(key >> 3 * (sizes - 1), prepend=-1))
    agreement = _agreement(np.append(begins, len(key)), column, weight, image, images, classes + 1)
    weight = weight * _trust(agreement, image * (classes + 1) + column, settings.compared)
    wanted = _voxel(point, voxel)
    total = np.zeros((len(point), classes + 1))
    for k in range(int(doubled.max(initial=0)) + sizes):
        mine = np.flatnonzero((doubled <= k) & (k < doubled + sizes))
        cell = key >> 3 * k
        begins = np.flatnonzero(np.diff(cell, prepend=-1))
        held = cell[begins]
        weights = _sum_over_images(np.append(begins, len(cell)), column, weight, image, images, classes + 1)
        at = np.searchsorted(held, wanted[mine] >> 3 * k)
        known = at < len(held)
        known[known] = held[at[known]] == wanted[mine[known]] >> 3 * k
        found = weights[at[known]]
        total[mine[known]] += found / (settings.half_say + found.sum(axis=1, keepdims=True))
    whole = total.sum(axis=1, keepdims=True)
    return np.divide(total, whole, out=total, where=whole > 0)


def _trust(agreement: NDArray[np.float64], group: NDArray[np.int64], compared: float) -> NDArray[np.float64]:
    """The trust in each vote's group, an image's votes for one class, from their agreement with others (-1: no other)."""
    known = agreement >= 0
    if not known.any():
        return np.ones(len(group))
    size = int(group.max()) + 1
    total = np.bincount(group[known], agreement[known], minlength=size) + compared * agreement[known].mean()
    trust: NDArray[np.float64] = (total / (np.bincount(group[known], minlength=size) + compared))[group]
    return trust


@compiled()
def _agreement(begins, label, weight, image, images, classes):  # type: ignore[no-untyped-def]
    """The share that each vote's label has of what the other images say in its voxel, -1 where no other image votes."""
    agreement = np.full(len(label), -1.0)
    of_image = np.zeros((images, classes))
    votes = np.zeros(images, np.int64)
    total = np.zeros(classes)
    for cell in range(len(begins) - 1):
        rows = range(begins[cell], begins[cell + 1])
        for i in rows:
            votes[image[i]] += 1
        for i in rows:
            say = weight[i] / votes[image[i]]
            of_image[image[i], label[i]] += say
            total[label[i]] += say
        whole = total.sum()
        for i in rows:
            others = whole - of_image[image[i]].sum()
            if others > 1e-9 * whole:
                agreement[i] = (total[label[i]] - of_image[image[i], label[i]]) / others
        for i in rows:
            votes[image[i]] = 0
            of_image[image[i]] = 0.0
            total[label[i]] = 0.0
    return agreement


@compiled()
def _sum_over_images(begins, label, weight, image, images, classes):  # type: ignore[no-untyped-def]
    """Of each voxel's votes, from ``begins`` to the next: the sum over images of their mean weights for each class."""
    total = np.zeros((len(begins) - 1, classes))
    of_image = np.zeros((images, classes))
    votes = np.zeros(images, np.int64)
    voters = np.zeros(images, np.int64)
    for cell in range(len(begins) - 1):
        count = 0
        for i in range(begins[cell], begins[cell + 1]):
            if votes[image[i]] == 0:
                voters[count] = image[i]
                count += 1
            votes[image[i]] += 1
            of_image[image[i], label[i]] += weight[i]
        for voter in voters[:count]:
            for c in range(classes):
                total[cell, c] += of_image[voter, c] / votes[voter]
                of_image[voter, c] = 0.0
            votes[voter] = 0
    return total


def height_over_ground(xyz: NDArray[np.float64], cell: float) -> NDArray[np.float64]:
    """How far each point of a scan is above the lowest one around it, float64 [N], metres.

    Args:
        xyz: float64 [N, 3], metres, z up.
        cell: metres; the lowest point is that of the square cell of this edge that holds the point and of the eight around.
    """
    column = np.floor(xyz[:, :2] / cell).astype(np.int64)
    # One number for each cell; a neighbour's is a constant away.
    key = (column[:, 0] << 32) + column[:, 1]
    order = np.argsort(key, kind="stable")
    held, begins = np.unique(key[order], return_index=True)
    if not len(held):
        return np.zeros(0)
    z = xyz[:, 2]
    alone = np.minimum.reduceat(z[order], begins)
    lowest = alone.copy()
    for step in (i * (1 << 32) + j for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j):
        at = np.minimum(np.searchsorted(held, held + step), len(held) - 1)
        there = held[at] == held + step
        lowest[there] = np.minimum(lowest[there], alone[at[there]])
    height: NDArray[np.float64] = z - lowest[np.searchsorted(held, key)]
    return height


@compiled()
def _box_of_points(xyz, lidar_to_box, half, lifted):  # type: ignore[no-untyped-def]
    """The first box that holds each point, int16 [N], -1 for none; boxes by half their edges, ``lifted`` from below."""
    found = np.full(len(xyz), -1, np.int16)
    for i in range(len(xyz)):
        x, y, z = xyz[i, 0], xyz[i, 1], xyz[i, 2]
        for b in range(len(half)):
            m = lidar_to_box[b]
            if abs(m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) > half[b, 0]:
                continue
            if abs(m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) > half[b, 1]:
                continue
            if lifted - half[b, 2] <= m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3] <= half[b, 2]:
                found[i] = b
                break
    return found


def _along_tracks(votes: _Votes, here: _Votes) -> _Votes:
    """A frame's votes as another one has their places: those in boxes move along; those of a track that is not there go."""
    if votes is here or not votes.tracks:
        return votes
    now = dict(zip(here.tracks, here.box_to_world))
    motion = np.array([now.get(t, m) @ np.linalg.inv(m) for t, m in zip(votes.tracks, votes.box_to_world)])
    keep = (votes.box < 0) | np.array([t in now for t in votes.tracks])[votes.box]
    kept = {name: getattr(votes, name)[keep] for name in ("place", "label", "weight", "image", "box")}
    moved, m = kept["box"] >= 0, motion[kept["box"]]
    x, y, z = kept["place"].T
    along = np.stack([m[:, i, 0] * x + m[:, i, 1] * y + m[:, i, 2] * z + m[:, i, 3] for i in range(3)], axis=1)
    return replace(votes, **{**kept, "place": np.where(moved[:, None], along, kept["place"])})


def _box_to_lidar(box: Box) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_of(box.rotation)
    matrix[:3, 3] = box.center
    return matrix


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
