"""Point files as recordings have them: .bin, .pcd (ascii, binary, compressed), .ply, .npy and .npz, by named columns."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, read_bytes
from ..common.compiled import compiled

SUFFIXES = (".bin", ".npy", ".npz", ".pcd", ".ply")
_REMEDY = "export or record it again, or leave this file out"
# What np.load raises on damaged bytes: its headers are Python text, and its archives zip files.
_NUMPY_DAMAGE = (
    *(ValueError, EOFError, OSError, TypeError, LookupError, AttributeError, SyntaxError, NotImplementedError),
    *(MemoryError, OverflowError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
Named = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class CloudLayout:
    """Which columns of a point file are what.

    Attributes:
        columns: the names of the columns, for files that name none (.bin, plain .npy and .npz).
        dtype: of every value of a .bin file, little-endian: ``float32`` or ``float64``.
        xyz: the names of x, y, z in metres.
        intensity: the name of the intensity; empty where there is none (it becomes 0).
    """

    columns: tuple[str, ...] = ("x", "y", "z", "intensity")
    dtype: str = "float32"
    xyz: tuple[str, str, str] = ("x", "y", "z")
    intensity: str = "intensity"


def read_cloud(path: Path, layout: CloudLayout) -> NDArray[np.float32]:
    """The points of a file, float32 [N, 4]: x, y, z, intensity; without those that have no position (NaN: no return).

    Raises:
        OlivineError: the file is missing, damaged, of an unknown encoding, or has no such columns; they are listed.
    """
    named = read_columns(path, layout)
    wanted = [*layout.xyz, *([layout.intensity] if layout.intensity else [])]
    if absent := [name for name in wanted if name not in named]:
        what = "x, y, z" if set(absent) & set(layout.xyz) else "intensity"
        raise OlivineError(
            f"has no column {absent[0]!r} for {what}; it has {', '.join(named) or 'none'}",
            where=path,
            remedy="name the file's columns: in rig.yaml (xyz, intensity, columns), or by --columns and --intensity",
        )
    columns = [np.asarray(named[name]) for name in wanted]
    if any(c.ndim != 1 or c.dtype.kind not in "fiu" for c in columns) or len({len(c) for c in columns}) > 1:
        raise OlivineError("its columns are not as many numbers each", where=path, remedy=_REMEDY)
    points = np.zeros((len(columns[0]), 4), np.float32)
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # what float32 cannot hold becomes infinite, and is left out below
        for k, column in enumerate(columns):
            points[:, k] = column
    there = np.isfinite(points[:, :3]).all(axis=1)
    return points if there.all() else points[there]


def read_columns(path: Path, layout: CloudLayout) -> Named:
    """Every column of a point file by its name; see :func:`read_cloud`."""
    readers = {".bin": _bin, ".npy": _npy, ".npz": _npz, ".pcd": _pcd, ".ply": _ply}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise OlivineError(
            f"point files of the kind {path.suffix or 'without a suffix'} are not read",
            where=path,
            remedy=f"convert it to one of {', '.join(SUFFIXES)}",
        )
    data = read_bytes(path, "check the path, or the pattern of the files in rig.yaml", what="point file", most=1 << 34)
    return read(data, path, layout)


def _by_position(rows: NDArray[Any], path: Path, columns: tuple[str, ...]) -> Named:
    if rows.dtype.names:
        return {name: rows[name] for name in rows.dtype.names}
    if rows.ndim != 2 or rows.shape[1] != len(columns):
        raise OlivineError(
            f"holds an array of shape {list(rows.shape)}, and the YAML names {len(columns)} columns",
            where=path,
            remedy=f"name every column of it (now: {', '.join(columns)})",
        )
    return dict(zip(columns, rows.T))


def _bin(data: bytes, path: Path, layout: CloudLayout) -> Named:
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    row = dtype.itemsize * len(layout.columns)
    if len(data) % row:
        raise OlivineError(
            f"{len(data)} bytes is not a whole number of points of {row} bytes ({', '.join(layout.columns)})",
            where=path,
            remedy="name every column in the YAML, or record the file again: it is truncated",
        )
    return _by_position(np.frombuffer(data, dtype).reshape(-1, len(layout.columns)), path, layout.columns)


def _npy(data: bytes, path: Path, layout: CloudLayout) -> Named:
    try:
        rows = np.load(io.BytesIO(data), allow_pickle=False)
    except _NUMPY_DAMAGE as error:
        raise OlivineError(f"is no array that NumPy reads ({error})", where=path, remedy=_REMEDY) from None
    return _by_position(np.asarray(rows), path, layout.columns)


def _npz(data: bytes, path: Path, layout: CloudLayout) -> Named:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except _NUMPY_DAMAGE as error:
        raise OlivineError(f"is no archive that NumPy reads ({error})", where=path, remedy=_REMEDY) from None
    if len(arrays) == 1 and (rows := next(iter(arrays.values()))).ndim == 2:
        return _by_position(rows, path, layout.columns)
    return arrays


# -- PCD ----------------------------------------------------------------------------------------------------------------


def _pcd(data: bytes, path: Path, layout: CloudLayout) -> Named:
    header, body = _pcd_header(data, path)
    try:
        names = header["FIELDS"]
        counts = [int(n) for n in header.get("COUNT", ["1"] * len(names))]
        kinds = [_PCD_KINDS[kind] + size for kind, size in zip(header["TYPE"], header["SIZE"], strict=True)]
        points = int(header["POINTS"][0] if "POINTS" in header else int(header["WIDTH"][0]) * int(header["HEIGHT"][0]))
        # Several fields may be padding of the name "_".
        unique = [name if names.index(name) == k and name != "_" else f"_{k}" for k, name in enumerate(names)]
        dtype = np.dtype([(n, f"<{k}", (c,) if c > 1 else ()) for n, k, c in zip(unique, kinds, counts, strict=True)])
        if points < 0:
            raise ValueError("a negative number of points")
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise OlivineError(f"its PCD header is not understood ({error})", where=path, remedy=_REMEDY) from None
    encoding = header["DATA"][0].lower()
    if encoding == "ascii":
        return _ascii(body, path, [n for n, c in zip(unique, counts) for _ in range(c)], points)
    if encoding == "binary":
        if len(body) < points * dtype.itemsize:
            raise _truncated(path, points, len(body), dtype.itemsize)
        rows = np.frombuffer(body, dtype, points)
        return {name: rows[name] for name in unique}
    if encoding != "binary_compressed":
        raise OlivineError(
            f"its PCD encoding {encoding!r} is not read",
            where=path,
            remedy="write it as ascii, binary or binary_compressed",
        )
    if len(body) < 8:
        raise _truncated(path, points, len(body), dtype.itemsize)
    packed, size = (int(v) for v in np.frombuffer(body, "<u4", 2))
    if len(body) < 8 + packed or size != points * dtype.itemsize:
        raise _truncated(path, points, len(body), dtype.itemsize)
    plain = np.empty(size, np.uint8)
    if _unpack_lzf(np.frombuffer(body, np.uint8, packed, 8), plain) != size:
        raise OlivineError("its compressed points are damaged", where=path, remedy=_REMEDY)
    # Compressed, the columns lie one after another.
    columns, at = {}, 0
    for name in unique:
        kind = dtype[name]
        columns[name] = plain[at : at + points * kind.itemsize].view(kind.base).reshape(points, *kind.shape)
        at += points * kind.itemsize
    return columns


_PCD_KINDS = {"F": "f", "I": "i", "U": "u"}


def _pcd_header(data: bytes, path: Path) -> tuple[dict[str, list[str]], bytes]:
    header: dict[str, list[str]] = {}
    at = 0
    while at < min(len(data), 1 << 16):
        end = data.find(b"\n", at)
        end = len(data) if end < 0 else end
        words = data[at:end].decode("ascii", "replace").split()
        at = end + 1
        if not words or words[0].startswith("#"):
            continue
        header[words[0].upper()] = words[1:]
        if words[0].upper() == "DATA" and len(words) > 1:
            return header, data[at:]
    raise OlivineError("is no PCD file (it has no line DATA)", where=path, remedy=_REMEDY)


def _truncated(path: Path, points: int, found: int, row: int) -> OlivineError:
    what = f"is truncated: {points} points of {row} bytes are announced, {found} bytes follow"
    return OlivineError(what, where=path, remedy=_REMEDY)


def _ascii(body: bytes, path: Path, names: list[str], points: int) -> Named:
    # Every line has as many numbers: then all of them are read at once, which is ten times as fast as line by line.
    text = b" ".join(body.split(b"\n")[:points])
    try:
        values = np.array(text.split(), np.float64)
    except ValueError as error:
        raise OlivineError(f"holds something else than numbers ({error})", where=path, remedy=_REMEDY) from None
    if len(values) != points * len(names):
        raise OlivineError(
            f"is truncated: {points} points of {len(names)} numbers are announced, {len(values)} numbers follow",
            where=path,
            remedy=_REMEDY,
        )
    return dict(zip(names, values.reshape(points, len(names)).T))


@compiled()
def _unpack_lzf(packed, plain):  # type: ignore[no-untyped-def]
    """Fill ``plain`` from LZF data (liblzf, as PCL writes it); the bytes filled, −1 where the data is damaged."""
    i, o = 0, 0
    while i < len(packed):
        control = np.int64(packed[i])
        i += 1
        if control < 32:  # a run of control + 1 literal bytes
            run = control + 1
            if i + run > len(packed) or o + run > len(plain):
                return -1
            for _ in range(run):
                plain[o] = packed[i]
                o += 1
                i += 1
            continue
        length = control >> 5
        if length == 7:
            if i >= len(packed):
                return -1
            length += np.int64(packed[i])
            i += 1
        if i >= len(packed):
            return -1
        source = o - ((control & 31) << 8) - np.int64(packed[i]) - 1
        i += 1
        if source < 0 or o + length + 2 > len(plain):
            return -1
        for _ in range(length + 2):  # may overlap what it writes
            plain[o] = plain[source]
            o += 1
            source += 1
    return o


# -- PLY ----------------------------------------------------------------------------------------------------------------

_PLY_KINDS = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}


def _ply(data: bytes, path: Path, layout: CloudLayout) -> Named:
    end = data.find(b"end_header")
    if not data.startswith(b"ply") or end < 0:
        raise OlivineError("is no PLY file", where=path, remedy=_REMEDY)
    lines = [line.split() for line in data[:end].decode("ascii", "replace").splitlines()]
    body = data[data.find(b"\n", end) + 1 :]
    encoding, elements = "", list[tuple[str, int]]()
    fields: list[tuple[str, str]] = []
    try:
        for words in lines:
            if words[:1] == ["format"]:
                encoding = words[1]
            elif words[:1] == ["element"]:
                elements.append((words[1], int(words[2])))
            elif words[:1] == ["property"] and len(elements) == 1:
                fields.append((words[-1], _PLY_KINDS[words[1]]))
        if not elements or elements[0][0] != "vertex":
            raise ValueError("the points are not its first element")
        count = elements[0][1]
        order = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}[encoding]
        dtype = np.dtype([(name, order + kind) for name, kind in fields])
        if count < 0:
            raise ValueError("a negative number of points")
    except (KeyError, ValueError, IndexError) as error:
        raise OlivineError(f"its PLY header is not understood ({error})", where=path, remedy=_REMEDY) from None
    if not order:
        return _ascii(body, path, [name for name, _ in fields], count)
    if len(body) < count * dtype.itemsize:
        raise _truncated(path, count, len(body), dtype.itemsize)
    rows = np.frombuffer(body, dtype, count)
    return {name: rows[name] for name, _ in fields}
