"""A study's finished runs on disk: one JSON file each, with its configuration and the configuration's digest.

A run's configuration is everything that decides its result. Two digests are made of it: with the seed, which says
whether a run has been done, and without, which says whether runs of several seeds (or folders) belong together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..common import OlivineError, Whole, demand, digest, read_json, write_json
from ..common.settings import differences
from .config import slug

SCHEMA = "1.0"
LAST_DIGITS = 1e-4
"""The largest share of held-out points whose classes another processor's last digits may change."""
_SHARDS = ("train", "validation")


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


def find_row(out: Path, run: Run, *, other_processors: bool = False) -> Row | None:
    """A run's row; None where there is none of its very configuration.

    Args:
        other_processors: also one whose shards have other digests, see :func:`read_rows`.
    """
    path = run.file(out)
    row = read_row(path) if path.is_file() else None
    if row is None or row.digest == run.digest:
        return row
    return row if other_processors and _same_but_shards(row, run) else None


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


def read_rows(folders: Iterable[Path], *, other_processors: bool = False) -> list[Row]:
    """The rows of several folders together.

    Args:
        other_processors: also rows whose shards have other digests, where their held-out points are the same but for
            :data:`LAST_DIGITS` of them: the same command on a processor with other last digits makes such shards. Rows have no
            counts of weak labels, so that those are not compared.

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
            if other.family != row.family and not (other_processors and _same_but_shards(row, other)):
                what = difference(other.configuration, row.configuration)
                raise OlivineError(
                    f"{row.row}, {row.stage} is of another configuration than in {other_path}: {what}",
                    where=path,
                    remedy="run the study again there, or leave the folder out",
                )
            found.setdefault((row.row, row.stage, row.seed), (path, row))
    if other_processors:
        check_held_out(found.values())
    return [row for _, row in found.values()]


def _same_but_shards(one: Row | Run, other: Row | Run) -> bool:
    def bare(configuration: Mapping[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in configuration.items() if key not in _SHARDS}
        return {key: bare(value) if isinstance(value, dict) else value for key, value in kept.items()}

    return digest(bare(one.configuration)) == digest(bare(other.configuration))


def check_held_out(rows: Iterable[tuple[Path, Row]]) -> None:
    """Raise unless rows stand on the same held-out points but for :data:`LAST_DIGITS` of them.

    Raises:
        OlivineError: names the row's file.
    """
    first: dict[str, tuple[Path, Row]] = {}
    for path, row in rows:
        if "mean_iou" not in row.result:
            continue
        other_path, other = first.setdefault(row.stage, (path, row))
        if row.configuration.get("validation") == other.configuration.get("validation"):
            continue
        share = other_points(row, other)
        if share > LAST_DIGITS:
            what = (
                f"of its held-out points {share:.2%} are of another class than in"
                if share < 1
                else "not scored by scene on those of"
            )
            raise OlivineError(
                f"{what} {other_path}",
                where=path,
                remedy="leave the folder out: these are other shards, not those of another processor",
            )


def other_points(one: Row, other: Row) -> float:
    """The share of held-out points that are of another class in one row's shards than in another's, by their counts in each
    scene; at least so many are. 1 where the rows have no counts, or of other scenes.
    """
    here, there = (row.result.get("by_scene", {}) for row in (one, other))
    if not here or set(here) != set(there):
        return 1.0
    count = sum(values[0] for scene in here.values() for values in scene.values())
    off = 0
    for name, scene in here.items():
        classes = {*scene, *there[name]}
        gained = [scene.get(c, (0,))[0] - there[name].get(c, (0,))[0] for c in classes]
        off += max(sum(v for v in gained if v > 0), -sum(v for v in gained if v < 0))
    return off / max(count, 1)


def grounds(rows: Sequence[Row]) -> list[tuple[str, list[int], float]]:
    """The held-out shards that scored rows stand on: their digest, the seeds, and :func:`other_points` from the first ones.

    Of the probe, or else of the first scored stage; one entry where all rows are of the same shards.
    """
    scored = [row for row in rows if "mean_iou" in row.result and "validation" in row.configuration]
    stages = [row.stage for row in scored]
    found: dict[str, list[Row]] = {}
    for row in scored:
        if row.stage == ("probe" if "probe" in stages else stages[0]):
            found.setdefault(row.configuration["validation"], []).append(row)
    in_order = sorted(found.items(), key=lambda item: min(row.seed for row in item[1]))
    return [
        (name, sorted({row.seed for row in of_it}), other_points(of_it[0], in_order[0][1][0]))
        for name, of_it in in_order
    ]


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first value in which two nested configurations differ."""
    return next((f"{key} is {a} there and {b} here" for key, a, b in differences(one, other)), "")
