"""Stored feature maps of images, beside the shards: one file for each shard of frames. No torch in here.

| file | what |
|---|---|
| `features.json` | what the maps are: digest of the shards' images, encoder, SHA-256 of its weights, sizes, type, mirrored or not |
| `maps-00000.bin` | the maps of a shard's frames: (frame, camera, as stored or mirrored), each `record_bytes` long |
| `maps-00000.json` | the file's size and SHA-256, and the CRC-32 of each map |

A map is [h, w, E]: float16, float32, or int8 after its scales, float32 [E], of which each channel's value is a multiple. A
shard's maps exist when their table does: the file is written aside and renamed first. Each map is compared with its CRC-32
when it is read.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, PathLike, Whole, atomic_file, demand, digest, read_json, write_json
from .chunks import read_at

DTYPES = ("float16", "float32", "int8")
REMEDY = "make them again: olivine features"
_IDENTITY = {
    "dtype": str,
    "map": [Whole(1, 1 << 20)],
    "cameras": Whole(1, 1 << 16),
    "mirrored": bool,
    "image_digest": str,
    "encoder": str,
    "weights": str,
    "images": [Whole(1, 1 << 20)],
}


class FeatureMaps:
    """A folder of stored maps.

    Args:
        folder: of ``features.json``.

    Attributes:
        identity: the content of ``features.json``.
        channels: E.

    Raises:
        OlivineError: it is missing or damaged.
    """

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)
        path = self.folder / "features.json"
        self.identity: dict[str, Any] = demand(
            read_json(path, "store them first: olivine features"), _IDENTITY, path, REMEDY
        )
        if self.identity["dtype"] not in DTYPES or len(self.identity["map"]) != 3:
            raise OlivineError("describes no feature maps", where=path, remedy=REMEDY)
        self.shape: tuple[int, int, int] = tuple(self.identity["map"])
        self.channels = self.shape[2]
        self._dtype = np.dtype(self.identity["dtype"])
        self._variants = 1 + self.identity["mirrored"]
        scales = 4 * self.channels if self._dtype == np.int8 else 0
        self.record_bytes = scales + int(np.prod(self.shape)) * self._dtype.itemsize
        self._table = lru_cache(maxsize=64)(self._read_table)

    @classmethod
    def create(cls, parent: PathLike, identity: Mapping[str, Any]) -> FeatureMaps:
        """The folder in ``parent`` that is named by what the maps are, made where it is not there."""
        folder = Path(parent) / digest(dict(identity))[:16]
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "features.json", dict(identity))
        return cls(folder)

    def has(self, shard: int) -> bool:
        """Whether a shard's maps are there, by their table and size; not where the table cannot be read."""
        data, table = self._paths(shard)
        try:
            return table.is_file() and data.is_file() and data.stat().st_size == self.size_of(shard)
        except OlivineError:
            return False

    def size_of(self, shard: int) -> int:
        """Bytes of a shard's maps, by their table."""
        size: int = self._read_table(shard)["size"]
        return size

    def write(self, shard: int, frames: Iterable[NDArray[np.float32]]) -> None:
        """Write a shard's maps, whole or not at all.

        Args:
            frames: of each frame float32 [cameras, 1 or 2, h, w, E], as stored and mirrored.

        Raises:
            OlivineError: a value that the type cannot hold, or a full disk.
        """
        path, table = self._paths(shard)
        sums, whole, size = [], hashlib.sha256(), 0
        with atomic_file(path) as handle:
            for maps in frames:
                for one in maps.reshape(-1, *self.shape):
                    record = self._encode(one)
                    handle.write(record)
                    whole.update(record)
                    sums.append(zlib.crc32(record))
                    size += len(record)
        write_json(table, {"size": size, "sha256": whole.hexdigest(), "crc32": sums})

    def read(self, shard: int, frame: int, camera: int, mirrored: bool) -> NDArray[np.float32]:
        """One map, float32 [h, w, E]; ``frame`` is the position in the shard.

        Raises:
            OlivineError: it is missing or damaged.
        """
        path, _ = self._paths(shard)
        record = (frame * self.identity["cameras"] + camera) * self._variants + mirrored
        sums = self._table(shard)["crc32"]
        if not 0 <= record < len(sums):
            raise OlivineError(f"holds no map of frame {frame}", where=path, remedy=REMEDY)
        data = read_at(path, record * self.record_bytes, self.record_bytes, "feature maps")
        if zlib.crc32(data) != sums[record]:
            raise OlivineError(
                f"is damaged: a map of frame {frame} is not what was written",
                where=path,
                remedy=f"delete it and {REMEDY}",
            )
        return self._decode(data)

    def _encode(self, values: NDArray[np.float32]) -> bytes:
        if self._dtype != np.int8:
            with np.errstate(over="ignore"):
                kept = values.astype(self._dtype)
            if not np.isfinite(kept).all():
                raise OlivineError(
                    f"a feature of {np.abs(values).max():g} is too large for {self._dtype}",
                    where=self.folder,
                    remedy="store them as float32 or int8",
                )
            return kept.tobytes()
        scale = np.abs(values).max((0, 1)) / np.float32(127)
        steps = np.rint(values / np.where(scale > 0, scale, 1)).astype(np.int8)
        return scale.astype(np.float32).tobytes() + steps.tobytes()

    def _decode(self, data: bytes) -> NDArray[np.float32]:
        if self._dtype != np.int8:
            return np.frombuffer(data, self._dtype).reshape(self.shape).astype(np.float32)
        scale = np.frombuffer(data, np.float32, self.channels)
        steps = np.frombuffer(data, np.int8, offset=scale.nbytes).reshape(self.shape)
        return steps * scale

    def _read_table(self, shard: int) -> dict[str, Any]:
        path = self._paths(shard)[1]
        kind = {"size": Whole(0), "sha256": str, "crc32": [Whole(0, 1 << 32)]}
        table: dict[str, Any] = demand(read_json(path, REMEDY), kind, path, REMEDY)
        return table

    def _paths(self, shard: int) -> tuple[Path, Path]:
        return self.folder / f"maps-{shard:05d}.bin", self.folder / f"maps-{shard:05d}.json"


def find_maps(folder: PathLike, wanted: Mapping[str, Any]) -> FeatureMaps:
    """The maps with given values in ``features.json``: those of a folder, or of the one folder in it that has them.

    Raises:
        OlivineError: there are none; the first value that differs is named. Or there are several.
    """
    folder = Path(folder)
    inside = sorted(path.parent for path in folder.glob("*/features.json"))
    known = [
        FeatureMaps(place) for place in ([folder] if (folder / "features.json").is_file() or not inside else inside)
    ]
    different = [[key for key, value in wanted.items() if maps.identity.get(key) != value] for maps in known]
    fitting = [maps for maps, keys in zip(known, different) if not keys]
    if len(fitting) > 1:
        raise OlivineError(
            f"{len(fitting)} stores fit this run", where=folder, remedy=f"name one, as {fitting[0].folder}"
        )
    if not fitting:
        maps, keys = min(zip(known, different), key=lambda pair: len(pair[1]))
        raise OlivineError(
            f"{keys[0]} is {maps.identity.get(keys[0])} there and {wanted[keys[0]]} here",
            where=maps.folder,
            remedy="store them with olivine features --mirrored, or set augment.flip_image=0"
            if keys[0] == "mirrored"
            else "store the maps of this run: olivine features",
        )
    return fitting[0]
