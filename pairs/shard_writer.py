"""Write one shard with zarr-python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import sha256_file
from .layout import ARRAYS, COMPRESSION_LEVEL


@dataclass(frozen=True, eq=False)
class ShardFrame:
    """One frame, ready to be stored. C cameras, N points, M pairs, K classes.

    Attributes:
        token: the frame's name in its data set.
        position: the frame's place in its scene, from 0.
        points: float32 [N, 4].
        point_label: uint8 [N], or None.
        pair_point: int32 [M].
        pair_tag: uint8 [M, 2]: camera, weak label.
        pair_uv: float32 [M, 2], pixels of the stored image.
        pair_density: float32 [M].
        image, segment: the C encoded pictures, or None.
        class_count: int64 [K + 1], pairs of each weak label.
        timestamp: microseconds.
        pose: float64 [4, 4], LiDAR to world.
        intrinsic: float64 [C, 3, 3], of the stored image.
        lidar_to_camera: float64 [C, 4, 4].
        image_size: int64 [C, 2], width and height of the stored image.
        bandwidth: of the density, metres.
    """

    token: str
    position: int
    points: NDArray[np.float32]
    point_label: NDArray[np.uint8] | None
    pair_point: NDArray[np.int32]
    pair_tag: NDArray[np.uint8]
    pair_uv: NDArray[np.float32]
    pair_density: NDArray[np.float32]
    image: list[bytes] | None
    segment: list[bytes] | None
    class_count: NDArray[np.int64]
    timestamp: int
    pose: NDArray[np.float64]
    intrinsic: NDArray[np.float64]
    lidar_to_camera: NDArray[np.float64]
    image_size: NDArray[np.int64]
    bandwidth: float


def write_shard(folder: Path, frames: list[ShardFrame], attributes: dict[str, Any]) -> None:
    """Write ``frames`` as a Zarr v3 group at ``folder``.

    Ragged frames are padded with zeros to the longest one. The bytes depend on the frames
    and attributes alone.
    """
    import zarr

    group = zarr.open_group(str(folder), mode="w", zarr_format=3, attributes=attributes)
    for name in ("points", "point_label", "pair_point", "pair_tag", "pair_uv", "pair_density"):
        rows = [getattr(frame, name) for frame in frames]
        if rows[0] is not None:
            _write(group, name, _pad(rows))
    for name in ("image", "segment"):
        files = [getattr(frame, name) for frame in frames]
        if files[0] is not None:
            _write(group, name, _pad_bytes(files))
            _write(group, f"{name}_bytes", np.array([[len(data) for data in row] for row in files], np.int64))
    _write(group, "point_count", np.array([len(frame.points) for frame in frames], np.int64))
    _write(group, "pair_count", np.array([len(frame.pair_point) for frame in frames], np.int64))
    for name in ("class_count", "pose", "intrinsic", "lidar_to_camera", "image_size"):
        _write(group, name, np.stack([getattr(frame, name) for frame in frames]))
    _write(group, "timestamp", np.array([frame.timestamp for frame in frames], np.int64))


def _pad(rows: list[NDArray[Any]]) -> NDArray[Any]:
    # A chunk cannot be of length 0, so a shard without pairs has one row of padding.
    longest = max(1, *(len(row) for row in rows)) if len(rows) > 1 else max(1, len(rows[0]))
    padded = np.zeros((len(rows), longest, *rows[0].shape[1:]), rows[0].dtype)
    for target, row in zip(padded, rows):
        target[: len(row)] = row
    return padded


def _pad_bytes(files: list[list[bytes]]) -> NDArray[np.uint8]:
    longest = max(len(data) for row in files for data in row)
    padded = np.zeros((len(files), len(files[0]), longest), np.uint8)
    for i, row in enumerate(files):
        for c, data in enumerate(row):
            padded[i, c, : len(data)] = np.frombuffer(data, np.uint8)
    return padded


def _write(group: Any, name: str, values: NDArray[Any]) -> None:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    layout = ARRAYS[name]
    if values.dtype != layout.dtype:
        raise TypeError(f"{name} is {values.dtype}, the format has {layout.dtype}")
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(1, *values.shape[1:]) if layout.packed else values.shape,
        shards=values.shape if layout.packed else None,
        # The sharding codec checks its index alone; this checks every chunk, as stored.
        compressors=[ZstdCodec(level=COMPRESSION_LEVEL), Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    array[...] = values


def file_table(folder: Path) -> dict[str, list[Any]]:
    """Size and SHA-256 of each file under ``folder``, by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): [path.stat().st_size, sha256_file(path)] for path in files}
