"""Write one shard with zarr-python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, sha256_file
from .layout import ARRAYS, COLUMNS, COMPRESSION_LEVEL

MAX_CHUNK = 2**31 - 1
"""Bytes of one frame in one array: what Zarr's Zstandard codec takes at once."""


@dataclass(frozen=True, eq=False)
class ShardFrame:
    """One frame, ready to be stored.

    Attributes:
        token: the frame's name in its data set.
        position: the frame's place in its scene, from 0.
        bandwidth: of the density, metres.
        columns: by the names of :data:`~olivine.pairs.layout.COLUMNS`; images are lists of encoded files; an optional
            column that the set has not is left out.
    """

    token: str
    position: int
    bandwidth: float
    columns: dict[str, Any]


def write_shard(folder: Path, frames: list[ShardFrame], attributes: dict[str, Any]) -> None:
    """Write ``frames`` as a Zarr v3 group at ``folder``.

    Ragged frames are padded with zeros to the longest one. The bytes depend on the frames
    and attributes alone.
    """
    import zarr

    _forget_dead_thread()
    group = zarr.open_group(str(folder), mode="w", zarr_format=3, attributes=attributes)
    for name in {column.array or column.name: None for column in COLUMNS.values()}:
        columns = sorted((c for c in COLUMNS.values() if name in (c.array, c.name)), key=lambda c: c.slot)
        if columns[0].name not in frames[0].columns:
            continue
        rows: list[list[Any]] = [[frame.columns[column.name] for column in columns] for frame in frames]
        if columns[0].over == "images":
            files = [row[0] for row in rows]
            _check_chunk(name, frames, len(files[0]) * max(len(data) for row in files for data in row))
            _write(group, name, _pad_bytes(files))
            _write(group, f"{name}_bytes", np.array([[len(data) for data in row] for row in files], np.int64))
        elif columns[0].over == "regions":
            most = max(1, *(value.shape[1] for (value,) in rows)) if len(rows) > 1 else max(1, rows[0][0].shape[1])
            _write(group, name, np.stack([pad_regions(value, most) for (value,) in rows]))
        elif columns[0].over == "frame":
            _write(group, name, np.stack([row[0] for row in rows]))
        else:
            stacked = [row[0] if len(row) == 1 else np.stack(row, axis=1) for row in rows]
            _check_chunk(name, frames, max(values.nbytes for values in stacked))
            _write(group, name, _pad(stacked))
    for name, column in (("point_count", "points"), ("pair_count", "pair_point")):
        _write(group, name, np.array([len(frame.columns[column]) for frame in frames], np.int64))


def _check_chunk(name: str, frames: list[ShardFrame], size: int) -> None:
    """Raise where one frame's values are more than a chunk can hold; ``size`` in bytes, of the longest frame."""
    if size > MAX_CHUNK:
        raise OlivineError(
            f"{name} of one frame takes {size:,} bytes, a shard holds at most {MAX_CHUNK:,}",
            where=f"frame {frames[0].token} and those after it",
            remedy="store smaller images (--image-scale), or cut the clouds into several frames",
        )


def _forget_dead_thread() -> None:
    """Let zarr start its thread again where it once could not (out of memory): else it waits for that one for ever."""
    from zarr.core import sync

    if sync.loop[0] is not None and not (sync.iothread[0] is not None and sync.iothread[0].is_alive()):
        sync.loop[0] = None


def _pad(rows: list[NDArray[Any]]) -> NDArray[Any]:
    # A chunk cannot be of length 0, so a shard without pairs has one row of padding.
    longest = max(1, *(len(row) for row in rows)) if len(rows) > 1 else max(1, len(rows[0]))
    padded = np.zeros((len(rows), longest, *rows[0].shape[1:]), rows[0].dtype)
    for target, row in zip(padded, rows):
        target[: len(row)] = row
    return padded


def pad_regions(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Columns over regions, [C, R, …], with zeros up to ``count`` regions."""
    padded = np.zeros((len(values), count, *values.shape[2:]), values.dtype)
    padded[:, : values.shape[1]] = values
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
