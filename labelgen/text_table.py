"""The text side of regions: phrases, their categories and classes, and a unit embedding of each by one text model.

The same two files lie in a folder to import from, in a label folder and beside the shards: ``text.json`` (the model and
the phrases) and ``text.npy`` (the embeddings, float32 [V, E]).
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, PathLike, demand, digest, read_bytes, read_json, write_bytes, write_json

TEXT_FILES = ("text.json", "text.npy")
MAX_PHRASES = 256
"""A phrase is stored in one byte."""


@dataclass(frozen=True, eq=False)
class TextTable:
    """V phrases.

    Attributes:
        model: the text model; features of another model cannot be compared with it.
        phrases, categories: of each row; phrases of one category are not each other's negatives.
        classes: the label class that each phrase counts as; "" for none.
        embedding: float32 [V, E], unit rows.
    """

    model: str
    phrases: tuple[str, ...]
    categories: tuple[str, ...]
    classes: tuple[str, ...]
    embedding: NDArray[np.float32]

    @property
    def dimension(self) -> int:
        """E."""
        return int(self.embedding.shape[1])

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """Phrase, category and class of each row."""
        return list(zip(self.phrases, self.categories, self.classes))

    def to_plain(self) -> dict[str, Any]:
        """What ``text.json`` holds; its digest stands for the whole table."""
        return {
            "model": self.model,
            "dimension": self.dimension,
            "phrases": [{"phrase": p, "category": c, "class": k or None} for p, c, k in self.rows],
            "sha256": hashlib.sha256(self.embedding.tobytes()).hexdigest(),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of phrases, model and embeddings."""
        return digest(self.to_plain())

    def identity(self) -> dict[str, Any]:
        """What a manifest says of the table."""
        return {"model": self.model, "dimension": self.dimension, "phrases": len(self.phrases), "digest": self.digest}


_ROW = {"phrase": str, "category": str, "class": {str, None}}
_REMEDY = "see docs/regions.md for the files of a folder of regions"


def read_text_table(folder: PathLike, remedy: str = _REMEDY) -> TextTable:
    """The table in ``text.json`` and ``text.npy`` of a folder.

    Raises:
        OlivineError: a file is missing or damaged, or the two do not belong together; names the file.
    """
    path, array = (Path(folder) / name for name in TEXT_FILES)
    kind = {"model": str, "phrases": list, "dimension?": int, "sha256?": str}
    plain = demand(read_json(path, remedy), kind, path, remedy)
    rows = _rows(plain["phrases"], path, remedy)
    embedding = decode_array(read_bytes(array, remedy), array, remedy)
    if embedding.ndim != 2 or len(embedding) != len(rows) or embedding.dtype.kind != "f" or not embedding.size:
        raise OlivineError(
            f"is {embedding.dtype} {list(embedding.shape)}, {path.name} names {len(rows)} phrases",
            where=array,
            remedy="save an embedding for each phrase, float32 [phrases, dimension]",
        )
    values = unit_rows(embedding, array)
    phrases, categories, classes = zip(*rows)
    table = TextTable(plain["model"], phrases, categories, classes, values)
    if plain.get("sha256", table.to_plain()["sha256"]) != table.to_plain()["sha256"]:
        raise OlivineError(f"is not the embedding that {path.name} was written with", where=array, remedy=remedy)
    return table


def _rows(plain: Any, path: Path, remedy: str) -> list[tuple[str, str, str]]:
    rows = demand(plain, [_ROW], path, remedy)
    if not 1 <= len(rows) <= MAX_PHRASES:
        raise OlivineError(f"names {len(rows)} phrases, not 1 to {MAX_PHRASES}", where=path, remedy=remedy)
    return [(row["phrase"], row["category"], row["class"] or "") for row in rows]


def read_phrases(path: PathLike) -> list[tuple[str, str, str]]:
    """Phrase, category and class ("" for none) of each row of a JSON file, a list in the form of ``text.json``'s.

    Raises:
        OlivineError: it is missing or damaged, or names no phrases or too many.
    """
    remedy = "see labelgen/data/uov.json for such a list"
    return _rows(read_json(path, remedy), Path(path), remedy)


def check_text(table: TextTable, known: dict[str, Any], where: object) -> None:
    """Raise unless a table is the one that features were made with; ``known`` is that one's :meth:`TextTable.identity`."""
    if table.identity() != known:
        raise OlivineError(
            f"the text table is of {table.model} (dimension {table.dimension}, digest {table.digest[:12]}), the features are "
            f"of {known.get('model')} (dimension {known.get('dimension')}, digest {str(known.get('digest'))[:12]})",
            where=Path(str(where)) / TEXT_FILES[0],
            remedy="put the text table back that the features were made with",
        )


def write_text_table(folder: PathLike, table: TextTable) -> None:
    """Write a table's two files; nothing where they are there already."""
    try:
        if read_text_table(folder).digest == table.digest:
            return
    except OlivineError:
        pass
    stored = io.BytesIO()
    np.save(stored, table.embedding)
    write_bytes(Path(folder) / TEXT_FILES[1], stored.getvalue())
    write_json(Path(folder) / TEXT_FILES[0], table.to_plain())


def unit_rows(values: NDArray[np.floating], where: object) -> NDArray[np.float32]:
    """Rows of length 1, float32; rows that are so to 1e-5 keep their bits.

    Raises:
        OlivineError: a value is not finite, or a row is zero.
    """
    length = np.linalg.norm(values.astype(np.float64), axis=1)
    if not (np.isfinite(length).all() and (length > 0).all()):
        raise OlivineError("holds a row that is zero or not finite", where=where, remedy="make the embeddings again")
    if (abs(length - 1) > 1e-5).any():
        values = values / length[:, None]
    return np.ascontiguousarray(values, np.float32)


def decode_array(data: bytes, where: object, remedy: str) -> NDArray[Any]:
    """The array of a ``.npy`` file.

    Raises:
        OlivineError: it is none, or damaged.
    """
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array
    except (ValueError, OSError, EOFError, MemoryError, SyntaxError, json.JSONDecodeError):
        pass
    raise OlivineError("is no whole .npy file of numbers", where=where, remedy=remedy)
