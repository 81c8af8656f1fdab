"""Objects in KITTI's text format: the label files of ``label_2`` and the result files that its evaluation reads.

A line is type, truncated, occluded, alpha, left, top, right, bottom (pixels), height, width, length (metres), x, y, z (metres,
the middle of the bottom, in the rectified camera 0), rotation_y (radians), and in a result file the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common import OlivineError, PathLike, read_text, write_bytes

TYPES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")
"""The types of the benchmark's label files."""
Array = NDArray[np.float64]
_REMEDY = "get or make the file again"
_SPELLING = {name.casefold(): name for name in TYPES}
_NO_SIZE, _NO_PLACE = [-1.0] * 3, [-1000.0] * 3


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of a frame, one a row.

    Attributes:
        kind: [N], the type, one of :data:`TYPES`.
        truncated: [N], 0 to 1; −1 where it is not known.
        occluded: [N], 0 to 3; −1 where it is not known.
        alpha: [N], the angle of observation in radians.
        image: [N, 4], left, top, right, bottom in pixels.
        size: [N, 3], height, width, length in metres.
        place: [N, 3], x, y, z in metres, the middle of the bottom.
        turn: [N], rotation_y in radians.
        score: [N]; 0 in label files.
    """

    kind: NDArray[np.str_]
    truncated: Array
    occluded: Array
    alpha: Array
    image: Array
    size: Array
    place: Array
    turn: Array
    score: Array

    def __len__(self) -> int:
        return len(self.kind)

    def where(self, rows: NDArray[Any]) -> Objects:
        """Some of the objects, by a mask or by row numbers."""
        return Objects(**{member.name: getattr(self, member.name)[rows] for member in fields(self)})


def objects_of(kind: Sequence[str], columns: Array) -> Objects:
    """Objects from their types and the 15 numbers [N, 15] of their lines, score last."""
    c = np.asarray(columns, np.float64).reshape(-1, 15)
    return Objects(
        np.array(kind, dtype="U16").reshape(-1),
        c[:, 0],
        c[:, 1],
        c[:, 2],
        c[:, 3:7],
        c[:, 7:10],
        c[:, 10:13],
        c[:, 13],
        c[:, 14],
    )


def read_objects(path: PathLike, *, scored: bool = False) -> Objects:
    """The objects of a label file, or of a result file.

    The case of a type does not matter, as in KITTI's evaluation. A result of the image alone, whose size is -1 -1 -1 and place
    -1000 -1000 -1000, has size 0: it matches nothing on the ground or in 3D.

    Args:
        scored: it is a result file, with a score in every line.

    Raises:
        OlivineError: no such file, a line that is no object, an unknown type, a negative size, a number that is not finite;
            names the file and the line.
    """
    kinds, rows, width = [], [], 16 if scored else 15
    for number, line in enumerate(read_text(path, _REMEDY).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{path} line {number}"
        if len(words) != width:
            raise OlivineError(f"has {len(words)} values, not {width}", where=where, remedy=_REMEDY)
        kind = _SPELLING.get(words[0].casefold())
        if kind is None:
            raise OlivineError(f"names the type {words[0]!r}, which KITTI does not have", where=where, remedy=_REMEDY)
        try:
            row = [float(word) for word in words[1:]]
        except ValueError:
            raise OlivineError("is not a type and numbers", where=where, remedy=_REMEDY) from None
        if not np.isfinite(row).all():
            raise OlivineError("holds a number that is not finite", where=where, remedy=_REMEDY)
        if scored and row[7:10] == _NO_SIZE and row[10:13] == _NO_PLACE:
            row[7:10] = [0.0] * 3
        if kind != "DontCare" and min(row[7:10]) < 0:
            raise OlivineError(
                f"a box of negative size: {' x '.join(words[8:11])} m", where=where, remedy="fix or remove the line"
            )
        kinds.append(kind)
        rows.append(row if scored else [*row, 0.0])
    return objects_of(kinds, np.array(rows, np.float64))


def write_objects(path: Path, objects: Objects) -> None:
    """Write a result file: truncated and occluded as they are, four decimals, six of the score."""
    lines = []
    for i in range(len(objects)):
        numbers = (objects.alpha[i], *objects.image[i], *objects.size[i], *objects.place[i], objects.turn[i])
        head = f"{objects.kind[i]} {objects.truncated[i]:g} {objects.occluded[i]:g}"
        lines.append(f"{head} {' '.join(f'{v:.4f}' for v in numbers)} {objects.score[i]:.6f}\n")
    write_bytes(path, "".join(lines).encode())
