"""What is on disk: the arrays of a shard, and the files beside them.

docs/shards.md describes the format for readers who use another tool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..common import OlivineError

SCHEMA = "1.1"
FORMAT = "olivine-pairs"
MANIFEST = "manifest.json"
UNITS = "units"
DATASET = "dataset.json"
"""What the data set's benchmark fixed."""
FRAMES_PER_SHARD = 64
COMPRESSION_LEVEL = 1
Over = Literal["points", "pairs", "images", "regions", "frame"]


@dataclass(frozen=True)
class Column:
    """One thing that is known of every frame: the one place where its name, type and shape stand.

    Writing, reading, augmenting, joining frames to a batch and moving it to a device are loops over :data:`COLUMNS`.

    Attributes:
        name, dtype: as users see them.
        over: what the rows are: ``points``, ``pairs``, ``images`` (one encoded file for each camera), ``regions`` (a row
            for each camera, of as many regions as the shard's fullest image has), or ``frame`` (one value of a fixed
            shape, not ragged).
        shape: of one row, None where it is not fixed; of a column over frames that of the value.
        counts: what the values of a column over pairs number, ``points`` or ``images``: when frames are joined they
            are shifted by as many.
        optional: absent from some sets; ``added_by`` says how such a set is made.
        array, slot: where it is stored, if it shares an array with others.
    """

    name: str
    dtype: str
    over: Over
    shape: tuple[int | None, ...] = ()
    counts: Literal["points", "images"] | None = None
    optional: bool = False
    added_by: str = "olivine build-pairs"
    array: str = ""
    slot: int = 0


_REGIONS = "olivine labelgen --labeler regions --regions DIR (or sam-clip), then olivine build-pairs --regions"
_CONSOLIDATE = "olivine build-pairs --consolidate"
VOTE_SCORE = "share of the votes at the pair's point"
"""What ``pair_score`` is where the shards do not say it."""
COLUMNS = {
    column.name: column
    for column in (
        Column("points", "float32", "points", (4,)),
        Column(
            "point_label",
            "uint8",
            "points",
            optional=True,
            added_by="olivine build-pairs from a data set with point labels",
        ),
        *(
            Column(name, "int16", "points", optional=True, added_by="olivine build-pairs --clusters 1")
            for name in ("cluster_previous", "cluster_next")
        ),
        *(
            Column(name, "uint8", "points", optional=True, added_by=_CONSOLIDATE)
            for name in ("point_weak", "point_agreement")
        ),
        Column("pair_point", "int32", "pairs", counts="points"),
        Column("pair_camera", "uint8", "pairs", counts="images", array="pair_tag"),
        Column("pair_label", "uint8", "pairs", array="pair_tag", slot=1),
        Column("pair_pixel_label", "uint8", "pairs", optional=True, added_by=_CONSOLIDATE),
        Column(
            "pair_score",
            "uint8",
            "pairs",
            optional=True,
            added_by=f"{_CONSOLIDATE}, or olivine labelgen --scores before olivine build-pairs",
        ),
        Column("pair_uv", "float32", "pairs", (2,)),
        Column("pair_density", "float32", "pairs"),
        Column("image", "uint8", "images", (None,), optional=True, added_by="olivine build-pairs without --no-images"),
        Column(
            "segment",
            "uint8",
            "images",
            (None,),
            optional=True,
            added_by="olivine labelgen --segments slic (or sam), then olivine build-pairs --segments",
        ),
        Column("region_phrase", "uint8", "regions", (None,), optional=True, added_by=_REGIONS),
        Column("region_feature", "float16", "regions", (None, None), optional=True, added_by=_REGIONS),
        Column("region_count", "int64", "frame", (None,), optional=True, added_by=_REGIONS),
        Column("class_count", "int64", "frame", (None,)),
        Column("timestamp", "int64", "frame"),
        Column("pose", "float64", "frame", (4, 4)),
        Column("intrinsic", "float64", "frame", (None, 3, 3)),
        Column("lidar_to_camera", "float64", "frame", (None, 4, 4)),
        Column("image_size", "int64", "frame", (None, 2)),
    )
}


@dataclass(frozen=True)
class ArrayLayout:
    """One array of a shard.

    Attributes:
        name, dtype: as in the table of docs/shards.md.
        packed: one chunk for each frame, packed into one file by the sharding codec;
            else one chunk for the whole shard.
        optional: absent from some sets.
        shape: of one frame's values; None where it differs from shard to shard.
    """

    name: str
    dtype: str
    packed: bool
    shape: tuple[int | None, ...]
    optional: bool = False


def _arrays() -> dict[str, ArrayLayout]:
    """The arrays that hold the columns, and those that hold the lengths of ragged ones."""
    arrays: dict[str, ArrayLayout] = {}
    for column in COLUMNS.values():
        name, together = column.array or column.name, sum(c.array == column.array for c in COLUMNS.values())
        shape = column.shape if not column.array else (together,)
        ragged = column.over != "frame"
        arrays[name] = ArrayLayout(name, column.dtype, ragged, (None, *shape) if ragged else shape, column.optional)
        if column.over == "images":
            arrays[f"{name}_bytes"] = ArrayLayout(f"{name}_bytes", "int64", False, (None,), column.optional)
    for name in ("point_count", "pair_count"):
        arrays[name] = ArrayLayout(name, "int64", False, ())
    return arrays


ARRAYS = _arrays()


def shard_name(number: int) -> str:
    """The folder of a shard."""
    return f"shard-{number:05d}.zarr"


def is_shard_file(name: str) -> bool:
    """Whether a shard has a file of this path, relative to its folder."""
    folder, *inner = name.split("/")
    return name == "zarr.json" or (folder in ARRAYS and ".." not in inner)


def check_schema(schema: object, where: object) -> None:
    """Raise unless this version reads shards of ``schema``; a newer minor version is fine."""
    if str(schema).split(".")[0] != SCHEMA.split(".")[0]:
        raise OlivineError(
            f"shards of schema {schema}, this olivine reads {SCHEMA}",
            where=where,
            remedy="install the olivine that made them, or make them again with olivine build-pairs --overwrite",
        )
