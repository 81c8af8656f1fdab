"""A run's metrics as CSV tables, for people and spreadsheets, and as TensorBoard events."""

from __future__ import annotations

import csv
import io
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..common import write_bytes


class MetricsLog:
    """``steps.csv`` (a row a step), ``epochs.csv`` and ``tensorboard/`` in a run's folder.

    A log opened at a step forgets every row from that step on, so that a resumed run leaves each step once. Columns may
    grow: an absent value is an empty cell.

    Args:
        directory: the run's folder.
        next_step: first step that will be written.
    """

    def __init__(self, directory: Path, next_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("steps", "epochs"):
            self._forget(directory / f"{name}.csv", next_step)
        self.writer = SummaryWriter(str(directory / "tensorboard"), purge_step=next_step, flush_secs=30)

    @staticmethod
    def read(path: Path) -> list[dict[str, str]]:
        """The rows of a table, [] where there is none. A last line cut short by a kill is left out."""
        if not path.is_file():
            return []
        text = path.read_text(encoding="utf-8")
        return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))

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
            with open(path, "a", newline="", encoding="utf-8") as handle:
                csv.DictWriter(handle, header, restval="", lineterminator="\n").writerow(plain)
        else:
            _write_table(path, [*self.read(path), plain])
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "step":
                self.writer.add_scalar(f"{table}/{name}", value, int(row["step"]))

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
        self.writer.close()


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
