"""A run's metrics as CSV tables, for people and spreadsheets, and as TensorBoard events."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import resource
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..common import OlivineError, disk_error, parse_csv, read_text, write_bytes

_REMEDY = "move it away; the run makes it again from here on"


class MetricsLog:
    """``steps.csv`` (a row a step), ``epochs.csv`` and ``tensorboard/`` in a run's folder.

    A log opened at a step forgets every row from that step on, so that a resumed run leaves each step once. Columns may
    grow: an absent value is an empty cell.

    Args:
        directory: the run's folder.
        next_step: first step that will be written.
    """

    def __init__(self, directory: Path, next_step: int) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("steps", "epochs"):
            self._forget(directory / f"{name}.csv", next_step)
        self._events = _Events(directory / "tensorboard", next_step)

    @staticmethod
    def read(path: Path) -> list[dict[str, str]]:
        """The rows of a table, [] where there is none. A last line cut short by a kill is left out.

        Raises:
            OlivineError: the file is damaged; a value of it is no number.
        """
        if not path.is_file():
            return []
        text = read_text(path, _REMEDY)
        whole = text[: text.rfind("\n") + 1]
        rows = parse_csv(whole, path, ("step", "epoch") if whole else (), _REMEDY)
        for number, row in enumerate(rows, 2):
            for name, cell in row.items():
                if not (_is_whole(cell) if name in ("step", "epoch") else not cell or _is_number(cell)):
                    raise OlivineError(f"row {number} has {cell[:40]!r} for {name}", where=path, remedy=_REMEDY)
        return rows

    def _forget(self, path: Path, next_step: int) -> None:
        rows = self.read(path)
        kept = [row for row in rows if int(row["step"]) < next_step]
        if path.is_file():
            _write_table(path, kept)

    def add(self, table: str, row: Mapping[str, Any]) -> None:
        """Append a row, which holds ``step``, to ``steps`` or ``epochs``."""
        path = self.directory / f"{table}.csv"
        header = _header(path)
        plain = {name: (f"{value:.8g}" if isinstance(value, float) else str(value)) for name, value in row.items()}
        if set(plain) <= set(header):
            with _disk(path), open(path, "a", newline="", encoding="utf-8") as handle:
                csv.DictWriter(handle, header, restval="", lineterminator="\n").writerow(plain)
        else:
            _write_table(path, [*self.read(path), plain])
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}
        self._events.add({f"{table}/{name}": float(value) for name, value in numbers.items()}, int(row["step"]))

    def means_of_epoch(self, epoch: int) -> dict[str, float]:
        """The mean of each column of ``steps.csv`` over an epoch's steps."""
        rows = [row for row in self.read(self.directory / "steps.csv") if row["epoch"] == str(epoch)]
        means = {}
        for name in rows[0] if rows else {}:
            cells = [float(row[name]) for row in rows if row[name]]
            if cells and name not in ("step", "epoch"):
                means[name] = sum(cells) / len(cells)
        return means

    def close(self) -> None:
        """Flush everything."""
        self._events.close()


class _Events:
    """A file of TensorBoard's events. Its own writer has a thread, which prints a traceback where the disk is full."""

    def __init__(self, folder: Path, next_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        # TensorBoard takes the files by name; after a clock was set back this one must still come last.
        stamps = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*")]
        stamp = max([time.time_ns(), *(int(text) + 1 for text in stamps if text.isascii() and text.isdigit())])
        self._path = folder / f"events.out.tfevents.{stamp:019d}.{socket.gethostname()}.{os.getpid()}.0"
        with _disk(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "wb")  # noqa: SIM115  closed by close()
            self._records = RecordWriter(self._file)
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
            # What an earlier file says of this step and later ones is forgotten.
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=next_step, session_log=start))

    def add(self, values: Mapping[str, float], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        with _disk(self._path):
            self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
            self._file.flush()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        with _disk(self._path):
            self._file.close()


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Errors of the disk as one line that names the file."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _header(path: Path) -> list[str]:
    if not path.is_file() or os.path.getsize(path) == 0:
        return []
    with open(path, newline="", encoding="utf-8") as handle:
        return next(csv.reader(handle), [])


def _write_table(path: Path, rows: list[dict[str, str]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    if columns:
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def memory_mib(device: torch.device) -> float:
    """The most memory taken so far, MiB: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def forget_peak_memory() -> None:
    """Count the most memory from here on, where the system can (Linux) or there is a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
