"""Read an array of a shard without zarr: its shard index once, then one ``pread`` a chunk.

Understands what :mod:`olivine.pairs.shard_writer` writes, and says so of anything else. The
tests hold it equal to zarr-python on every array.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.zstd import decompress
from numpy.typing import NDArray

from ..common import OlivineError, Whole, demand, parse_json

_CODECS = ["bytes", "zstd", "crc32c"]
_EMPTY = 2**64 - 1
_REMEDY = "delete this shard's folder and run olivine build-pairs again"


def damaged(what: str, where: str) -> OlivineError:
    """The error for a shard whose bytes are not what was written."""
    return OlivineError(what, where=where, remedy=_REMEDY)


def unreadable(error: OSError, where: str, gone: str) -> OlivineError:
    """The error for a shard's file that cannot be read: ``gone`` where there is none, else the shard may be a good one."""
    if isinstance(error, FileNotFoundError):
        return damaged(gone, where)
    return OlivineError(
        f"cannot be read ({error.strerror})",
        where=where,
        remedy="check the folder's permissions and the file system, and run the command again",
    )


def checked(stored: bytes, where: str) -> bytes:
    """The content of ``stored``, which ends in its CRC-32C.

    Raises:
        OlivineError: the checksum does not match.
    """
    content = stored[:-4]
    if len(stored) < 4 or google_crc32c.value(content) != int.from_bytes(stored[-4:], "little"):
        raise damaged("damaged: its checksum does not match", where)
    return content


def decode(stored: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> NDArray[Any]:
    """The array in a chunk: CRC-32C checked, Zstandard undone.

    Raises:
        OlivineError: the checksum does not match, or the content has another size.
    """
    content = checked(stored, where)
    try:
        values = np.empty(shape, dtype)
        decompress(content, values)
        return values
    except (RuntimeError, ValueError, MemoryError) as error:
        raise damaged(f"damaged: {error}", where) from None


def read_at(path: Path, offset: int, length: int, where: str) -> bytes:
    """``length`` bytes from ``offset``.

    Raises:
        OlivineError: the file is gone, cannot be read or ends before.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise unreadable(error, f"{where}: {path}", "no such file") from None
    try:
        # Before memory is taken for a length that may be wrong.
        missing = offset + length - os.fstat(handle).st_size
        if missing > 0:
            raise damaged(f"ends {missing} bytes early", f"{where}: {path}")
        data = os.pread(handle, length, offset)
    except OSError as error:
        raise unreadable(error, f"{where}: {path}", "no such file") from None
    finally:
        os.close(handle)
    if len(data) != length:
        raise damaged(f"ends {length - len(data)} bytes early", f"{where}: {path}")
    return data


class ChunkedArray:
    """One array of a shard.

    Args:
        folder: the array's folder in the shard.
        metadata: the content of its ``zarr.json``.
        where: the shard and array, for messages.

    Attributes:
        shape, dtype: of the whole array.
        packed: whether each frame has a chunk of its own.
    """

    def __init__(self, folder: Path, metadata: bytes, where: str) -> None:
        self.where = where
        plain = parse_json(metadata, where, _REMEDY)
        try:
            self.shape: tuple[int, ...] = tuple(demand(plain["shape"], [Whole(1)], where, _REMEDY))
            self.dtype = np.dtype(plain["data_type"]).newbyteorder("<")
            whole = tuple(plain["chunk_grid"]["configuration"]["chunk_shape"]) == self.shape
            codecs = plain["codecs"]
            self.packed = codecs[0]["name"] == "sharding_indexed"
            if self.packed:
                inner = codecs[0]["configuration"]
                whole = whole and tuple(inner["chunk_shape"]) == (1, *self.shape[1:])
                whole = whole and inner.get("index_location", "end") == "end"
                whole = whole and [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
                codecs = inner["codecs"]
            known = whole and [codec["name"] for codec in codecs] == _CODECS
            # Decoding writes bytes into the array: it must be one of plain numbers.
            known = known and self.dtype.kind in "uif" and len(self.shape) > 0
            separator = plain["chunk_key_encoding"]["configuration"]["separator"]
            known = known and separator in ("/", ".")
        except (KeyError, TypeError, IndexError, AttributeError, ValueError):
            known = False
        if not known:
            raise OlivineError(
                "an array laid out in a way this olivine does not read",
                where=where,
                remedy="read the shard with zarr-python, or make it again with olivine build-pairs --overwrite",
            )
        self.path = folder / separator.join(["c", *"0" * len(self.shape)])
        self._index: NDArray[np.uint64] | None = None

    def index(self) -> NDArray[np.uint64]:
        """Offset and length of each frame's chunk, uint64 [F, 2]; read once."""
        if self._index is None:
            length = 16 * self.shape[0] + 4
            try:
                size = os.stat(self.path).st_size
            except OSError as error:
                raise unreadable(error, f"{self.where}: {self.path}", "no such file") from None
            stored = read_at(self.path, max(0, size - length), min(length, size), self.where)
            table = np.frombuffer(checked(stored, f"{self.where}: its shard index"), "<u8").reshape(-1, 2)
            self._index = table
        return self._index

    def frame(self, position: int, where: str) -> NDArray[Any]:
        """The chunk of one frame, the array's shape without its first dimension.

        Args:
            position: of the frame in the shard.
            where: shard, array and frame, for messages.
        """
        offset, length = (int(value) for value in self.index()[position])
        if offset == _EMPTY:
            raise damaged("has no chunk", where)
        return decode(read_at(self.path, offset, length, where), self.dtype, self.shape[1:], where)

    def all(self) -> NDArray[Any]:
        """An unpacked array, whole."""
        try:
            stored = self.path.read_bytes()
        except OSError as error:
            raise unreadable(error, f"{self.where}: {self.path}", "no such file") from None
        return decode(stored, self.dtype, self.shape, self.where)

    @property
    def nbytes(self) -> int:
        """Size of the whole array in memory."""
        return math.prod(self.shape) * self.dtype.itemsize
