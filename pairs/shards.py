"""Read a set of shards. Imports neither zarr nor torch, so that a loader's workers stay small.

Opening reads the manifest alone. A shard is opened when a frame of it is first asked for:
its files are compared with the manifest's sizes, its metadata with the manifest's SHA-256,
and every chunk with its CRC-32C when it is read. A file that is gone is an error, never
zeros.
"""

from __future__ import annotations

import bisect
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import make_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, PathLike, demand, digest
from ..labelgen.text_table import TextTable, check_text, read_text_table
from ..readers.benchmark import Benchmark, values_of_classes
from ..readers.benchmark import plain_name as plain_name
from ..readers.frame import check_lens
from ..readers.index import has_offset
from .chunks import damaged
from .layout import COLUMNS, VOTE_SCORE, Column
from .manifest import read_benchmark, read_manifest
from .shard import AGAIN, Shard

__all__ = ["COLUMNS", "Benchmark", "Column", "FrameRecord", "Shard", "ShardSet", "TextTable", "open_shards"]


class _Counts:
    """What follows from the columns of a frame."""

    if TYPE_CHECKING:

        def __getattr__(self, column: str) -> Any: ...

    @property
    def point_count(self) -> int:
        """N."""
        return len(self.points)

    @property
    def pair_count(self) -> int:
        """M."""
        return len(self.pair_point)

    @property
    def image_bytes(self) -> NDArray[np.int64] | None:
        """Length of each JPEG, int64 [C]."""
        return None if self.image is None else np.array([len(data) for data in self.image], np.int64)

    @property
    def segment_bytes(self) -> NDArray[np.int64] | None:
        """Length of each segment map, int64 [C]."""
        return None if self.segment is None else np.array([len(data) for data in self.segment], np.int64)


if TYPE_CHECKING:

    class FrameRecord(_Counts):
        """See below; the columns are made of the table."""

        index: int
        token: str
        scene: str
        split: str
        frame_index: int
        bandwidth: float

        def __init__(self, **columns: Any) -> None: ...

else:
    FrameRecord = make_dataclass(
        "FrameRecord",
        [
            ("index", int),
            ("token", str),
            ("scene", str),
            ("split", str),
            ("frame_index", int),
            ("bandwidth", float),
            *((name, Any, None) for name in COLUMNS),
        ],
        bases=(_Counts,),
        frozen=True,
        eq=False,
        namespace={"__module__": __name__},
    )
    FrameRecord.__doc__ = """One frame as stored, unpadded: N points, M pairs ordered by camera, C cameras, K classes.

    A column that the set has not, or that was not asked for, is None.

    Attributes:
        index: position in the set.
        token, scene, split: the frame's names in its data set.
        frame_index: position in its scene.
        bandwidth: of the density, metres.
        points: float32 [N, 4]: x, y, z in metres, raw intensity.
        point_label: uint8 [N], 0 = ignored.
        cluster_previous, cluster_next: int16 [N], the cluster in the joint cloud with the scan ``cluster_gap`` frames
            before and after, −1 = none.
        point_weak: uint8 [N], the label that won the vote at the point, 0 = no vote (``build-pairs --consolidate``).
        point_agreement: uint8 [N], its share of the votes, 255 = all.
        pair_point: int32 [M], position in the cloud.
        pair_camera, pair_label: uint8 [M]; the weak label, 0 = none.
        pair_pixel_label: uint8 [M], the label at the pair's own pixel where ``pair_label`` is the vote's.
        pair_score: uint8 [M], confidence of the weak label, 255 = certain, 0 = not known; see :attr:`ShardSet.score_name`.
        pair_uv: float32 [M, 2], sub-pixel position in the stored image.
        pair_density: float32 [M], distance density at the point, 1 / metre.
        image: C JPEG files.
        segment: C 16-bit PNG files.
        region_phrase: uint8 [C, R], a row of the set's text table for each region of ``segment``, 1 first.
        region_feature: float16 [C, R, E], unit rows.
        region_count: int64 [C], regions of each image; what is beyond is zeros.
        class_count: int64 [K + 1], pairs of each weak label.
        timestamp: microseconds.
        pose: float64 [4, 4], LiDAR to world.
        intrinsic: float64 [C, 3, 3], of the stored image.
        lidar_to_camera: float64 [C, 4, 4].
        image_size: int64 [C, 2], width and height of the stored image.
    """


_TEXT_AGAIN = "put back the set's text.json and text.npy, or run olivine build-pairs again"


class ShardSet(Sequence[FrameRecord]):
    """All shards of a folder as one sequence of frames; see :func:`open_shards`.

    ``set[i]`` reads all of a frame. A loader reads what it needs: :meth:`read`, :meth:`points`,
    :meth:`point_label`.

    Attributes:
        path: the folder.
        manifest: as written.
        classes: names of the weak labels 1..K.
        point_classes: names of the point labels from 1 on; empty where there are none.
        class_count: int64 [K + 1], pairs of each weak label in the whole set.
        cameras: names.
        digest: SHA-256 of the manifest, and so of every byte of the set.
        seen: digests of the sets that a run opens again beside this one, see :func:`check_unchanged`.
    """

    def __init__(self, path: PathLike, expected: str | None = None) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_manifest(self.path)
        recipe = self.manifest["recipe"]
        self.classes: tuple[str, ...] = tuple(recipe["classes"])
        self.point_classes: tuple[str, ...] = tuple(recipe["point_classes"])
        self.class_count: NDArray[np.int64] = np.array(self.manifest["class_count"], np.int64)
        self.cameras: tuple[str, ...] = tuple(self.manifest["cameras"])
        self.digest: str = self.manifest["digest"]
        check_unchanged(self.path, self.digest, {} if expected is None else {str(self.path): expected})
        self._entries: list[dict[str, Any]] = self.manifest["shards"]
        self._stops: list[int] = np.cumsum([entry["frames"] for entry in self._entries]).tolist()
        self._recipe = digest(recipe)
        self.seen: dict[str, str] = {}
        self._open: dict[int, Shard] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (ShardSet, (self.path, self.digest))  # another process opens the same frames, or says that it cannot

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    # -- what is in the set ----------------------------------------------------------------

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return str(self.manifest["recipe"]["dataset"])

    @property
    def intensity_offset(self) -> float:
        """What a network's input adds to the raw intensity of :meth:`points`; the data set's rule.

        Raises:
            OlivineError: the set was built before the rule, of a data set that has one.
        """
        recipe = self.manifest["recipe"]
        if "intensity_offset" not in recipe and has_offset(self.dataset):
            raise OlivineError(
                f"{self.dataset} shards from before the intensity rule",
                where=self.path,
                remedy="run the same olivine labelgen again (it keeps the label maps), then: "
                f"olivine build-pairs --dataset {self.dataset} --split {self.split} --out {self.path.parent} --overwrite",
            )
        return float(recipe.get("intensity_offset", 0.0))

    @cached_property
    def benchmark(self) -> Benchmark:
        """What the data set's benchmark fixed, from the file beside the manifest.

        Raises:
            OlivineError: the set was built before there was such a file, or it is damaged.
        """
        return read_benchmark(self.path)

    def prompt_of(self, point_classes: Sequence[str]) -> NDArray[np.uint8]:
        """The weak label that each of some point classes is, uint8 [classes + 1]: of its name, or by the data set's table.

        0 where this set has no such label. The first place is that of points without a class.
        """
        return np.array(values_of_classes(point_classes, self.classes, self.benchmark.prompt_of), np.uint8)

    @property
    def split(self) -> str:
        """The split all frames are of."""
        return str(self.manifest["recipe"]["split"])

    @property
    def complete(self) -> bool:
        """Whether every frame of the split is here."""
        return bool(len(self) == self.manifest["planned_frames"])

    @property
    def lacks(self) -> str:
        """What of the split is not here, in a line; "" where all is."""
        planned = self.manifest["planned_frames"]
        return "" if self.complete else f"{self.path} holds {len(self)} of the {planned} frames of its split"

    @property
    def has_image(self) -> bool:
        """Whether the set has images (``build-pairs`` without ``--no-images``)."""
        return bool(self.manifest["recipe"]["settings"]["images"])

    @property
    def image_digest(self) -> str:
        """Digest of the images alone, shard by shard: sets of other labels over the same images have the same."""
        return digest([{k: v for k, v in one["files"].items() if k.startswith("image/")} for one in self._entries])

    @property
    def has_point_label(self) -> bool:
        """Whether every frame has ground truth for its points."""
        return bool(self.manifest["has_point_label"])

    @property
    def has_segment(self) -> bool:
        """Whether the set carries segment maps."""
        return bool(self.manifest["recipe"]["settings"]["segments"])

    @property
    def has_regions(self) -> bool:
        """Whether the set's segments are regions, with phrases and features (``build-pairs --regions``)."""
        return "regions" in self.manifest["recipe"]

    @cached_property
    def text(self) -> TextTable:
        """The phrases and embeddings of the set's regions, from the files beside the manifest.

        Raises:
            OlivineError: the set has no regions, or the files are missing, damaged, or of another model or dimension.
        """
        if not self.has_regions:
            raise OlivineError(
                "the shards hold no regions",
                where=self.path,
                remedy=f"make them with: {COLUMNS['region_phrase'].added_by}",
            )
        table = read_text_table(self.path, _TEXT_AGAIN)
        check_text(table, self.manifest["recipe"]["regions"], self.path)
        return table

    @property
    def has_vote(self) -> bool:
        """Whether the labels are those of a vote over frames (``build-pairs --consolidate``)."""
        return bool(self.manifest["recipe"]["settings"].get("consolidate", 0))

    @property
    def uses_boxes(self) -> bool:
        """Whether annotated boxes helped with the labels (``build-pairs --consolidate --tracks``)."""
        return bool(self.manifest["recipe"]["settings"].get("tracks", False))

    @property
    def score_name(self) -> str:
        """What ``pair_score`` is: the labeler's score at the pair's pixel, or the share of a vote; "" where there is none."""
        return str(self.manifest["recipe"].get("pair_score", VOTE_SCORE if self.has_vote else ""))

    @property
    def cluster_gap(self) -> int:
        """Frames from a scan to the one it was clustered with (``build-pairs --clusters``); 0 where there are no clusters."""
        return int(self.manifest["recipe"]["settings"].get("clusters", 0))

    @property
    def cluster_count(self) -> int:
        """Most clusters of two scans; they are numbered from 0."""
        return int(self.manifest["recipe"]["settings"].get("cluster_settings", {}).get("largest", 0))

    @cached_property
    def image_size(self) -> NDArray[np.int64]:
        """Width and height of each camera's stored images, the largest in the set: int64 [C, 2]."""
        sizes = [entry["image_size"] for entry in self._entries]
        return np.max(sizes, axis=0).astype(np.int64) if sizes else np.zeros((0, 2), np.int64)

    @cached_property
    def shard_ranges(self) -> tuple[range, ...]:
        """The frames of each shard, as positions in the set."""
        starts = [0, *self._stops[:-1]]
        return tuple(range(start, stop) for start, stop in zip(starts, self._stops))

    @cached_property
    def scenes(self) -> dict[str, range]:
        """The frames of each scene, as positions in the set; scenes in the data set's order."""
        ranges: dict[str, range] = {}
        for entry, frames in zip(self._entries, self.shard_ranges):
            before = ranges.get(entry["scene"])
            ranges[entry["scene"]] = range(before.start if before else frames.start, frames.stop)
        return ranges

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Every frame's token; opens every shard."""
        return tuple(token for number in range(len(self._entries)) for token in self.shard(number).tokens)

    # -- frames ----------------------------------------------------------------------------

    def shard(self, number: int) -> Shard:
        """A shard by its position in the set, opened and checked on first use."""
        shard = self._open.get(number)
        if shard is None:
            entry = self._entries[number]
            shard = self._open[number] = Shard(self.path / entry["name"], entry, self._recipe)
            if len(shard) != entry["frames"]:
                raise damaged(f"holds {len(shard)} frames, the manifest says {entry['frames']}", str(shard.path))
            for name, count in (("image_size", len(self.cameras)), ("class_count", len(self.classes) + 1)):
                if (found := shard.arrays[name].shape[1]) != count:
                    raise damaged(f"{name} has {found} columns, the manifest says {count}", str(shard.path))
        return shard

    def locate(self, index: int) -> tuple[Shard, int]:
        """The shard that holds frame ``index``, and the frame's position in it."""
        length = len(self)
        index = operator.index(index)
        if not -length <= index < length:
            raise IndexError(f"frame {index} of {length}")
        index %= length
        number = bisect.bisect_right(self._stops, index)
        return self.shard(number), index - (self._stops[number - 1] if number else 0)

    def lenses(self, index: int) -> list[tuple[str, tuple[float, ...]]] | None:
        """Model and coefficients of each camera's lens in a frame; None where all are pinholes."""
        shard, _ = self.locate(index)
        plain = shard.attributes.get("lenses")
        if plain is None:
            return None
        demand(plain, [(str, [float])], shard.path, AGAIN)
        lenses = [(model, tuple(map(float, distortion))) for model, distortion in plain]
        if len(lenses) != len(self.cameras):
            raise damaged(f"has {len(lenses)} lenses and {len(self.cameras)} cameras", str(shard.path))
        for model, distortion in lenses:
            check_lens(model, distortion, shard.path)
        return lenses

    def read(self, index: int, columns: Iterable[str]) -> FrameRecord:
        """Some columns of a frame; the others are None and are not read.

        Args:
            columns: names out of :data:`~olivine.pairs.layout.COLUMNS`.
        """
        shard, i = self.locate(index)
        count = {"points": shard.table("point_count")[i], "pairs": shard.table("pair_count")[i]}
        tags: dict[str, NDArray[Any]] = {}
        found: dict[str, Any] = {}
        for column in map(COLUMNS.__getitem__, columns):
            array = column.array or column.name
            if array not in shard.arrays:
                continue
            if column.over == "images":
                found[column.name] = shard.files(array, i)
            elif column.over == "frame":
                found[column.name] = shard.table(array)[i]
            elif column.over == "regions":
                found[column.name] = shard.frame(array, i)
            elif column.array:
                if array not in tags:
                    tags[array] = shard.frame(array, i, count[column.over])
                found[column.name] = tags[array][:, column.slot]
            else:
                found[column.name] = shard.frame(array, i, count[column.over])
        attributes = shard.attributes
        return FrameRecord(
            index=operator.index(index) % len(self),
            token=shard.tokens[i],
            scene=attributes["scene"],
            split=attributes["split"],
            frame_index=attributes["frame_index"][i],
            bandwidth=attributes["bandwidth"][i],
            **found,
        )

    def has(self, column: str) -> bool:
        """Whether every frame has a column."""
        if not COLUMNS[column].optional:
            return True
        known = {"image": self.has_image, "point_label": self.has_point_label, "segment": self.has_segment}
        known |= dict.fromkeys(("region_phrase", "region_feature", "region_count"), self.has_regions)
        known |= dict.fromkeys(("cluster_previous", "cluster_next"), self.cluster_gap > 0)
        known |= dict.fromkeys(("point_weak", "point_agreement", "pair_pixel_label"), self.has_vote)
        known["pair_score"] = bool(self.score_name)
        return known[column]

    def points(self, index: int) -> NDArray[np.float32]:
        """A frame's cloud, float32 [N, 4]: x, y, z in metres, raw intensity."""
        points: NDArray[np.float32] = self.read(index, ["points"]).points
        return points

    def point_label(self, index: int) -> NDArray[np.uint8] | None:
        """A frame's ground truth, uint8 [N], 0 = ignored; None where it has none."""
        label: NDArray[np.uint8] | None = self.read(index, ["point_label"]).point_label
        return label

    def token(self, index: int) -> str:
        """A frame's token."""
        shard, i = self.locate(index)
        return shard.tokens[i]

    def record(self, index: int) -> FrameRecord:
        """All of a frame."""
        return self.read(index, COLUMNS)

    @overload
    def __getitem__(self, index: int) -> FrameRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[FrameRecord]: ...
    def __getitem__(self, index: int | slice) -> FrameRecord | Sequence[FrameRecord]:
        """All of a frame (:class:`FrameRecord`); a slice gives a list of them."""
        if isinstance(index, slice):
            return [self.record(i) for i in range(*index.indices(len(self)))]
        return self.record(index)

    def __iter__(self) -> Iterator[FrameRecord]:
        for index in range(len(self)):
            yield self.record(index)


def check_unchanged(path: PathLike, found: str, seen: dict[str, str]) -> None:
    """Enter the digest of a folder's shards into ``seen``, digests by path.

    Raises:
        OlivineError: another one was entered before.
    """
    if seen.setdefault(str(path), found) != found:
        raise OlivineError(
            "has changed since this run opened it",
            where=path,
            remedy="wait until build-pairs has ended, and run the command again",
        )


def open_shards(path: PathLike) -> ShardSet:
    """Open a folder of shards. Reads the manifest alone; shards open when a frame is asked for.

    Args:
        path: a folder made by ``olivine build-pairs``, such as ``data/pairs/nuscenes/train``.

    Raises:
        OlivineError: there is no manifest, it is damaged, or it is of an unknown major schema.
    """
    return ShardSet(path)
