"""A study's finished runs on disk: one JSON file each, with its configuration and the configuration's digest.

A run's configuration is everything that decides its result. Two digests are made of it: with the seed, which says
whether a run has been done, and without, which says whether runs of several seeds (or folders) belong together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..common import OlivineError, Whole, demand, digest, read_json, write_json
from ..common.settings import differences
from .config import slug

SCHEMA = "1.0"


@dataclass(frozen=True)
class Run:
    """One run of a study, done or to be done.

    Attributes:
        row, seed, stage: which.
        configuration: what decides its result, but for the seed; plain values.
    """

    row: str
    seed: int
    stage: str
    configuration: Mapping[str, Any] = field(repr=False)

    @property
    def unit(self) -> str:
        """The run's name for people."""
        return f"{self.row}, seed {self.seed}, {self.stage}"

    @property
    def family(self) -> str:
        """Digest of the configuration without the seed."""
        return digest(dict(self.configuration))

    @property
    def digest(self) -> str:
        """Digest of the configuration with the seed."""
        return digest([dict(self.configuration), self.seed])

    def file(self, out: Path) -> Path:
        """Where its row is."""
        return out / "rows" / f"{slug(self.row)}.seed-{self.seed}.{self.stage}.json"


@dataclass(frozen=True)
class Row:
    """A finished run.

    Attributes:
        row, seed, stage: which.
        digest, family, configuration: see :class:`Run`.
        result: plain values; of a scored stage ``mean_iou``, ``frequency_weighted_iou``, ``iou``, ``absent``, ``by_scene``.
    """

    row: str
    seed: int
    stage: str
    digest: str
    family: str
    configuration: dict[str, Any] = field(repr=False)
    result: dict[str, Any] = field(repr=False)
    schema: str = SCHEMA


def write_row(out: Path, run: Run, result: dict[str, Any]) -> Row:
    """Write a finished run's row, whole or not at all, over a row of another configuration."""
    row = Row(run.row, run.seed, run.stage, run.digest, run.family, dict(run.configuration), result)
    write_json(run.file(out), {**asdict(row), "result_digest": digest(result)})
    return row


def find_row(out: Path, run: Run) -> Row | None:
    """A run's row; None where there is none of its very configuration."""
    path = run.file(out)
    row = read_row(path) if path.is_file() else None
    return row if row is not None and row.digest == run.digest else None


_ROW = {
    "row": str,
    "seed": Whole(),
    "stage": str,
    "digest": str,
    "family": str,
    "configuration": dict,
    "result": {
        "mean_iou?": float,
        "frequency_weighted_iou?": float,
        "iou?": {str: float},
        "absent?": [str],
        "labels_mean_iou?": float,
        "by_scene?": {str: {str: [Whole()]}},
    },
    "schema?": str,
    "result_digest?": str,
}


def read_row(path: Path) -> Row:
    """One row.

    Raises:
        OlivineError: the file is damaged or of another schema.
    """
    remedy = "remove the file; the study makes it again"
    plain = demand(read_json(path, remedy), _ROW, path, remedy)
    stored = plain.pop("result_digest", None)  # an older olivine wrote none
    if stored is not None and stored != digest(plain["result"]):
        raise OlivineError("damaged: its result does not match its digest", where=path, remedy=remedy)
    try:
        row = Row(**plain)
        whole = row.digest == digest([row.configuration, row.seed]) and row.family == digest(row.configuration)
        whole = whole and path.name == Run(row.row, row.seed, row.stage, row.configuration).file(Path()).name
    except TypeError:
        whole = False
    if not whole or row.schema.split(".")[0] != SCHEMA.split(".")[0]:
        raise OlivineError("is not a row of a study", where=path, remedy=remedy)
    return row


def read_rows(folders: Iterable[Path]) -> list[Row]:
    """The rows of several folders together.

    Raises:
        OlivineError: two rows of one name and stage have different configurations; says what differs.
    """
    found: dict[tuple[str, str, int], tuple[Path, Row]] = {}
    first: dict[tuple[str, str], tuple[Path, Row]] = {}
    for folder in folders:
        paths = sorted((folder / "rows").glob("*.json"))
        if not paths:
            raise OlivineError("holds no rows of a study", where=folder, remedy="name folders that olivine study wrote")
        for path in paths:
            row = read_row(path)
            other_path, other = first.setdefault((row.row, row.stage), (path, row))
            if other.family != row.family:
                what = difference(other.configuration, row.configuration)
                raise OlivineError(
                    f"{row.row}, {row.stage} is of another configuration than in {other_path}: {what}",
                    where=path,
                    remedy="run the study again there, or leave the folder out",
                )
            found.setdefault((row.row, row.stage, row.seed), (path, row))
    return [row for _, row in found.values()]


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first value in which two nested configurations differ."""
    return next((f"{key} is {a} there and {b} here" for key, a, b in differences(one, other)), "")
