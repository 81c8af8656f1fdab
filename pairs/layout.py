"""What is on disk: the arrays of a shard, and the files beside them.

docs/shards.md describes the format for readers who use another tool.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..common import OlivineError

SCHEMA = "1.0"
FORMAT = "olivine-pairs"
MANIFEST = "manifest.json"
UNITS = "units"
FRAMES_PER_SHARD = 64
COMPRESSION_LEVEL = 1


@dataclass(frozen=True)
class ArrayLayout:
    """One array of a shard.

    Attributes:
        name, dtype: as in the table of docs/shards.md.
        packed: one chunk for each frame, packed into one file by the sharding codec;
            else one chunk for the whole shard.
        optional: absent from some sets.
    """

    name: str
    dtype: str
    packed: bool
    optional: bool = False


ARRAYS = {
    layout.name: layout
    for layout in (
        ArrayLayout("points", "float32", packed=True),
        ArrayLayout("point_label", "uint8", packed=True, optional=True),
        ArrayLayout("pair_point", "int32", packed=True),
        ArrayLayout("pair_tag", "uint8", packed=True),
        ArrayLayout("pair_uv", "float32", packed=True),
        ArrayLayout("pair_density", "float32", packed=True),
        ArrayLayout("image", "uint8", packed=True, optional=True),
        ArrayLayout("segment", "uint8", packed=True, optional=True),
        ArrayLayout("point_count", "int64", packed=False),
        ArrayLayout("pair_count", "int64", packed=False),
        ArrayLayout("class_count", "int64", packed=False),
        ArrayLayout("image_bytes", "int64", packed=False, optional=True),
        ArrayLayout("segment_bytes", "int64", packed=False, optional=True),
        ArrayLayout("timestamp", "int64", packed=False),
        ArrayLayout("pose", "float64", packed=False),
        ArrayLayout("intrinsic", "float64", packed=False),
        ArrayLayout("lidar_to_camera", "float64", packed=False),
        ArrayLayout("image_size", "int64", packed=False),
    )
}


def shard_name(number: int) -> str:
    """The folder of a shard."""
    return f"shard-{number:05d}.zarr"


def is_shard_file(name: str) -> bool:
    """Whether a shard has a file of this path, relative to its folder."""
    return name == "zarr.json" or name.split("/")[0] in ARRAYS


def check_schema(schema: object, where: object) -> None:
    """Raise unless this version reads shards of ``schema``; a newer minor version is fine."""
    if str(schema).split(".")[0] != SCHEMA.split(".")[0]:
        raise OlivineError(
            f"shards of schema {schema}, this olivine reads {SCHEMA}",
            where=where,
            remedy="install the olivine that made them, or make them again with olivine build-pairs --overwrite",
        )
