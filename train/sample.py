"""A frame as the loader hands it over, and the table of its columns. No torch in here: workers import this file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ..common import OlivineError
from ..pairs.shards import COLUMNS as STORED
from ..pairs.shards import Column


@dataclass(frozen=True, eq=False)
class Sample:
    """One frame, augmented, as the loader hands it over.

    Attributes:
        frame: position in the shard set; ``token`` its name.
        columns: arrays by name, see :data:`COLUMNS`: those that the method needs.
        scans: other scans of its scene, by how many frames they are after it; None where the scene has no such frame.
    """

    frame: int
    token: str
    columns: dict[str, NDArray[Any]]
    scans: dict[int, Sample | None] = field(default_factory=dict)

    def __getattr__(self, name: str) -> NDArray[Any]:
        value: NDArray[Any] = column_of(self.__dict__.get("columns", {}), name)
        return value


#: What a sample holds: the shards' columns as augmentation leaves them, and what it adds.
COLUMNS: dict[str, Column] = {
    **STORED,
    # uint8 [C, H, W, 3] and int32 [C, H, W], decoded; −1 = no segment.
    "image": Column("image", "uint8", "images"),
    "segment": Column("segment", "int32", "images"),
    # The shards' own pair_label, also where pairs carry their points' ground truth.
    "pair_weak_label": Column("pair_weak_label", "uint8", "pairs"),
    # Whether augmentation flipped the image.
    "image_mirrored": Column("image_mirrored", "bool", "images"),
    # What is left of it: (left, top, width, height) as fractions of the whole image, mirrored where it is.
    "image_crop": Column("image_crop", "float64", "images"),
}


def check_columns(*needed: Sequence[str]) -> None:
    """Raise where a method needs columns that there are not.

    Raises:
        OlivineError: names the first, and the nearest that there is.
    """
    for columns in needed:
        if isinstance(columns, str):  # ("label") for ("label",)
            wrong, what = columns, "are no tuple"
        elif absent := [name for name in columns if name not in COLUMNS]:
            wrong, what = absent[0], f"are not all there: {absent[0]!r} is none"
        else:
            continue
        raise OlivineError(
            f"the columns {columns!r} that a method needs {what}",
            where="needs()",
            remedy=f"did you mean {difflib.get_close_matches(wrong, COLUMNS, 1, 0.0)[0]!r}? "
            f"Give a tuple of some of {', '.join(COLUMNS)}",
        )


def column_of(columns: Mapping[str, Any], name: str) -> Any:
    """A column, for attribute access.

    Raises:
        AttributeError: it is not here.
    """
    try:
        return columns[name]
    except KeyError:
        raise AttributeError(f"no column {name!r} here; there are {', '.join(columns)}") from None
