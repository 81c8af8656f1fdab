"""A recording's files in time: each sensor's in a scene, when they were taken, and where the vehicle was then."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..common import OlivineError, read_text
from .frame import rotation_of
from .recording import FILE, UNITS, Matrix, PoseTable, Sensor


@dataclass(frozen=True, eq=False)
class Stream:
    """A sensor's files in a scene, in time order.

    Attributes:
        files: relative to the data set's folder.
        times: int64, microseconds.
        times_by_name: the same in the order of the files' names.
    """

    sensor: Sensor
    files: tuple[str, ...]
    times: NDArray[np.int64]
    times_by_name: NDArray[np.int64]


def in_order(path: Path | str) -> tuple[list[tuple[str | int, ...]], str]:
    """A key for sorting files and folders: their names' numbers by value (2 before 10), else by their characters."""
    parts = [re.split(r"(\d+)", part) for part in Path(path).parts]
    return [tuple(int(word) if word.isdecimal() else word for word in words) for words in parts], str(path)


def stream_of(root: Path, scene: str, sensor: Sensor) -> Stream:
    """A sensor's files in a scene.

    Raises:
        OlivineError: no file matches, a file's time is not known, or the times of a table without names go back.
    """
    folder = root / scene
    files = sorted((path for path in folder.glob(sensor.files) if path.is_file()), key=in_order)
    if not files:
        raise OlivineError(
            f"{sensor.name} has no file {sensor.files}",
            where=folder,
            remedy=f"correct the pattern {sensor.name}.files in {FILE}, or take the sensor out of it",
        )
    times = np.array(_times(folder, sensor, files), np.int64) + round(sensor.clock.offset * 1e6)
    order = np.argsort(times, kind="stable")
    names = [files[k].relative_to(root).as_posix() for k in order]
    return Stream(sensor, tuple(names), times[order], times)


def _times(folder: Path, sensor: Sensor, files: Sequence[Path]) -> list[int]:
    clock = sensor.clock
    if clock.times in ("name", "number"):
        factor = UNITS[clock.unit] if clock.times == "name" else 1e6 / clock.rate
        return [_time(_number_in(path), factor, path) for path in files]
    table = folder / clock.times
    rows = _rows(table, "correct the path of the times in " + FILE)
    if all(len(words) == 1 for _, words in rows):
        if len(rows) != len(files):
            raise OlivineError(
                f"has {len(rows)} times, {sensor.name} has {len(files)} files",
                where=table,
                remedy="name the files in it too (one line for each: name, time), or complete it",
            )
        times = [_time(words[0], UNITS[clock.unit], f"{table} {where}") for where, words in rows]
        back = next((k for k in range(1, len(times)) if times[k] < times[k - 1]), None)
        if back is not None:
            raise _goes_back(table, rows[back][0], files)
        return times
    by_name: dict[str, int] = {}
    for where, words in rows:
        if len(words) != 2:
            raise OlivineError(f"{where} has {len(words)} values", where=table, remedy="write: file name, time")
        if is_time(words[0]) and not is_time(words[1]):
            what = f"{where} has {words[1]!r} where the time should be"
            raise OlivineError(what, where=table, remedy="write the name first in every line: file name, time")
        by_name[Path(words[0]).stem] = _time(words[1], UNITS[clock.unit], f"{table} {where}")
    if absent := [path for path in files if path.stem not in by_name]:
        raise OlivineError(f"has no time for {absent[0].name}", where=table, remedy="complete it, or remove that file")
    return [by_name[path.stem] for path in files]


def _goes_back(table: Path, line: str, files: Sequence[Path]) -> OlivineError:
    """The error of a table of times alone whose lines are not in time order: whose time each is cannot be told."""
    if sorted(files) != list(files):  # its lines may be in the order 1, 10, 2
        return OlivineError(
            f"the times go back at {line}, and the files' names have numbers of different lengths",
            where=table,
            remedy=f"write the lines in the order {files[0].name} … {files[-1].name}, or name the files in it too",
        )
    return OlivineError(
        f"the times go back at {line}",
        where=table,
        remedy="where a clock was set back, correct its times or cut the recording there into two scenes; where the lines "
        "are in another order than the files' names, name the files in it too (one line for each: name, time)",
    )


def _number_in(path: Path) -> str:
    found = re.findall(r"\d+(?:\.\d+)?", path.name.removesuffix(path.suffix))
    if not found:
        raise OlivineError(
            "its name has no number", where=path, remedy=f"say in {FILE} where its time is: times: <a table's path>"
        )
    return str(found[-1])


def _time(text: str, factor: float, where: object) -> int:
    if (moment := _moment(text)) is not None:
        return moment
    try:
        time = round(Decimal(text) * Decimal(str(factor)))
        if abs(time) >= 2**62:
            raise InvalidOperation
        return time
    except (InvalidOperation, ValueError, OverflowError):
        raise OlivineError(f"{text!r} is no time", where=where, remedy=f"check the unit in {FILE}") from None


def _moment(word: str) -> int | None:
    """A date and time of day (ISO 8601, UTC where it names no zone) in microseconds since 1970; None for other words."""
    try:
        moment = datetime.fromisoformat(word) if "T" in word else None
    except ValueError:
        return None
    if moment is None:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def is_time(word: str) -> bool:
    """Whether a word of a table can be a time: a finite number, or a date with a time of day."""
    try:
        return _moment(word) is not None or bool(Decimal(word).is_finite())
    except InvalidOperation:
        return False


def words_of(line: str) -> list[str]:
    """The words of a table's line, between spaces, commas or semicolons; a date and its time of day are one, with a T."""
    dated = re.sub(r"(\d{4}-\d\d-\d\d)[ \t]+(?=\d\d:\d\d)", r"\1T", line)
    return dated.replace(",", " ").replace(";", " ").split()


def _rows(path: Path, remedy: str) -> list[tuple[str, list[str]]]:
    """The lines of a table without comments, and where each stands."""
    lines = enumerate(read_text(path, remedy).splitlines(), 1)
    rows = [(f"line {n}", words_of(line)) for n, line in lines]
    rows = [(where, words) for where, words in rows if words and not words[0].startswith("#")]
    if not rows:
        raise OlivineError("is empty", where=path, remedy=remedy)
    return rows


class Poses:
    """Where the vehicle was, at any time between the poses of a table.

    Args:
        table: of the YAML.
        folder: the scene's.
        lidar: the first LiDAR's files; a table in KITTI's form has a line for each in the order of their names.
        to_vehicle: of the sensor whose poses they are.
    """

    def __init__(self, table: PoseTable, folder: Path, lidar: Stream, to_vehicle: Matrix) -> None:
        path = folder / table.file
        rows = _rows(path, f"correct poses.file in {FILE}")
        width = 8 if table.format == "tum" else 12
        for where, words in rows:
            if len(words) != width:
                raise OlivineError(
                    f"{where} has {len(words)} values, the form {table.format} has {width}",
                    where=path,
                    remedy=f"correct poses.format in {FILE}",
                )
        try:
            values = np.array([[float(v) for v in words[-width + (table.format == "tum") :]] for _, words in rows])
        except ValueError as error:
            raise OlivineError(
                f"holds something else than numbers ({error})", where=path, remedy="correct it"
            ) from None
        if table.format == "tum":
            times = [_time(words[0], UNITS[table.unit], path) for _, words in rows]
            self._times = np.array(times, np.int64)
            matrices = np.tile(np.eye(4), (len(rows), 1, 1))
            if not (np.abs(np.linalg.norm(values[:, 3:], axis=1) - 1) < 1e-2).all():
                raise OlivineError(
                    "has a quaternion whose length is not 1", where=path, remedy="write time, x, y, z, qx, qy, qz, qw"
                )
            matrices[:, :3, 3] = values[:, :3]
            matrices[:, :3, :3] = [rotation_of(np.roll(q, 1)) for q in values[:, 3:]]
        else:
            if len(rows) != len(lidar.files):
                raise OlivineError(
                    f"has {len(rows)} poses, {lidar.sensor.name} has {len(lidar.files)} files",
                    where=path,
                    remedy="a table in KITTI's form has one line for each file; else use the form tum",
                )
            self._times = lidar.times_by_name
            matrices = np.tile(np.eye(4), (len(rows), 1, 1))
            matrices[:, :3] = values.reshape(-1, 3, 4)
        if not np.isfinite(matrices).all():
            raise OlivineError("holds a pose that is not finite", where=path, remedy="remove that line")
        order = np.argsort(self._times, kind="stable")
        self._times = self._times[order]
        self._poses = matrices[order] @ np.linalg.inv(to_vehicle)
        self._gap = round(table.max_gap * 1e6)

    def at(self, time: int) -> Matrix | None:
        """Vehicle to world at a time in microseconds, float64 [4, 4]; None outside the table or in too large a gap."""
        k = int(np.searchsorted(self._times, time))
        if k < len(self._times) and self._times[k] == time:
            return self._poses[k]
        if k in (0, len(self._times)) or self._times[k] - self._times[k - 1] > self._gap:
            return None
        from scipy.spatial.transform import Rotation, Slerp

        before, after = self._times[k - 1], self._times[k]
        share = (time - before) / (after - before)
        both = self._poses[k - 1 : k + 1]
        pose = np.eye(4)
        pose[:3, :3] = Slerp([0.0, 1.0], Rotation.from_matrix(both[:, :3, :3]))(share).as_matrix()
        pose[:3, 3] = (1 - share) * both[0, :3, 3] + share * both[1, :3, 3]
        return pose


def nearest(times: NDArray[np.int64], time: int) -> int:
    """The position of the time nearest to ``time``, the earlier of two."""
    k = int(np.searchsorted(times, time))
    around = [j for j in (k - 1, k) if 0 <= j < len(times)]
    return min(around, key=lambda j: abs(int(times[j]) - time))
