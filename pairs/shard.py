"""One shard of a set: its files as the manifest has them, its arrays as the format has them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..common import OlivineError, Whole, demand, inside, parse_json
from .chunks import ChunkedArray, damaged, unreadable
from .layout import ARRAYS, check_schema

AGAIN = "delete this shard's folder and run olivine build-pairs again"
_ATTRIBUTES = {
    "schema": str,
    "recipe": str,
    "scene": str,
    "split": str,
    "token": [str],
    "frame_index": [Whole()],
    "bandwidth": [float],
}


class Shard:
    """One shard, opened and checked against its manifest entry.

    Args:
        path: the shard's folder.
        entry: the manifest's entry for it.
        recipe: digest of the set's recipe, which the shard must carry.
    """

    def __init__(self, path: Path, entry: dict[str, Any], recipe: str) -> None:
        self.path = path
        self._entry = entry
        for name, (size, _) in entry["files"].items():
            try:
                found = (path / name).stat().st_size
            except OSError as error:
                raise unreadable(error, self._blame(name), "a file is gone") from None
            if found != size:
                raise damaged(f"has {found} bytes, was written with {size}", self._blame(name))
        plain = parse_json(self._metadata("zarr.json"), path / "zarr.json", AGAIN)
        attributes = demand(plain, {"attributes": _ATTRIBUTES}, path / "zarr.json", AGAIN)["attributes"]
        check_schema(attributes["schema"], path)
        if attributes["recipe"] != recipe:
            raise OlivineError(
                "a shard of other labels or settings than the manifest says",
                where=path,
                remedy="delete its folder and run olivine build-pairs again",
            )
        self.attributes: dict[str, Any] = attributes
        self.tokens: tuple[str, ...] = tuple(attributes["token"])
        for token in self.tokens:  # it names the file of a frame's prediction
            inside(path, token, path / "zarr.json")
        if not len(self.tokens) == len(attributes["frame_index"]) == len(attributes["bandwidth"]):
            raise damaged("has another number of tokens than of frames", str(path / "zarr.json"))
        present = {name.split("/")[0] for name in entry["files"]}
        self.arrays = {
            name: ChunkedArray(path / name, self._metadata(f"{name}/zarr.json"), f"{path.name}/{name}")
            for name in ARRAYS
            if name in present
        }
        for name, layout in ARRAYS.items():
            if name not in self.arrays:
                if not layout.optional:
                    raise damaged(f"has no array {name}", str(path))
                continue
            array = self.arrays[name]
            shape = [None if fixed is None else n for n, fixed in zip(array.shape[1:], layout.shape)]
            if (array.dtype, array.packed, array.shape[0]) != (layout.dtype, layout.packed, len(self.tokens)) or (
                len(array.shape) != len(layout.shape) + 1 or tuple(shape) != layout.shape
            ):
                raise damaged(f"is {array.dtype} {array.shape}, not as the format has it", f"{path.name}/{name}")
        self._whole: dict[str, NDArray[Any]] = {}

    def _blame(self, name: str) -> str:
        frames = ", all frames" if "/" in name else ""
        return f"{self.path / name} (shard {self.path.name}, array {name.split('/')[0]}{frames})"

    def _metadata(self, name: str) -> bytes:
        if name not in self._entry["files"]:
            raise damaged("is not in the manifest", self._blame(name))
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise unreadable(error, self._blame(name), "a file is gone") from None
        if hashlib.sha256(data).hexdigest() != self._entry["files"][name][1]:
            raise damaged("damaged: its SHA-256 is not the manifest's", self._blame(name))
        return data

    def __len__(self) -> int:
        return len(self.tokens)

    def table(self, name: str) -> NDArray[Any]:
        """An array that has one chunk for the whole shard, such as ``pair_count``; read once."""
        if name not in self._whole:
            self._whole[name] = self.arrays[name].all()
        return self._whole[name]

    def frame(self, name: str, position: int, count: int | None = None) -> NDArray[Any]:
        """One frame's chunk of a packed array, its first ``count`` rows."""
        where = f"{self.path.name}, array {name}, frame {position} ({self.tokens[position]})"
        return self.arrays[name].frame(position, where)[:count]

    def files(self, name: str, position: int) -> list[bytes]:
        """One frame's encoded files of ``image`` or ``segment``, one for each camera."""
        padded = self.frame(name, position)
        lengths = self.table(f"{name}_bytes")[position]
        return [row[:length].tobytes() for row, length in zip(padded, lengths)]
