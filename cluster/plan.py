"""What of a job is left, cut into parts: all that a scheduler needs to know of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common import OlivineError, demand, parse_json
from .journal import Account

SEVERAL = 1000  # a part's number must stay under what a cluster takes as an array's last index


@dataclass(frozen=True)
class Plan:
    """A stage's work, cut into ``parts``.

    Attributes:
        logs: the folder of its accounts, or of the only one.
        accounts: one for each row of units.
        units: of the whole job; ``left`` of them unfinished.
        parts: how many there are; ``open`` are those with unfinished units.
        paths, packages: as for :class:`~olivine.cluster.work.Job`.
    """

    logs: Path
    accounts: tuple[Account, ...]
    units: int
    left: int
    parts: int
    open: tuple[int, ...]
    paths: tuple[Path, ...]
    packages: tuple[str, ...]

    @classmethod
    def of(
        cls,
        logs: Path,
        jobs: Sequence[tuple[Account, Iterable[bool]]],
        parts: int,
        paths: Sequence[Path],
        packages: Sequence[str],
    ) -> Plan:
        """The plan of one or several rows of units (a stage may have one for each split).

        Args:
            jobs: for each row its account, and whether each of its units is finished.
        """
        if not 1 <= parts <= SEVERAL:
            raise OlivineError(f"--parts {parts}", remedy=f"give --parts 1 to {SEVERAL}")
        rows = [list(row) for _, row in jobs]
        left = {number % parts for row in rows for number, finished in enumerate(row) if not finished}
        units = sum(len(row) for row in rows)
        unfinished = sum(not finished for row in rows for finished in row)
        accounts = tuple(account for account, _ in jobs)
        return cls(logs, accounts, units, unfinished, parts, tuple(sorted(left)), tuple(paths), tuple(packages))

    def to_plain(self) -> dict[str, Any]:
        """For JSON, with absolute paths."""
        paths = [str(path.absolute()) for path in self.paths]
        accounts = [(str(a.folder.absolute()), a.job, str(a.out.absolute()), a.units) for a in self.accounts]
        return {**asdict(self), "logs": str(self.logs.absolute()), "accounts": accounts, "paths": paths}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Plan:
        """What :meth:`to_plain` gave."""
        lists = {key: tuple(plain[key]) for key in ("open", "packages")}
        accounts = tuple(Account(Path(folder), job, Path(out), n) for folder, job, out, n in plain["accounts"])
        paths = {"logs": Path(plain["logs"]), "paths": tuple(map(Path, plain["paths"]))}
        return cls(**{**plain, **lists, **paths, "accounts": accounts})


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as SLURM writes an array: ``0-3,7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def ask_stage(arguments: Sequence[str]) -> dict[str, Any]:
    """What a command of olivine prints as JSON, from a process of its own.

    Raises:
        OlivineError: what the command itself says.
    """
    done = subprocess.run(
        [sys.executable, "-m", "olivine.cli", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("olivine: ")] or [done.stderr]
        raise OlivineError(said[-1].removeprefix("olivine: ").strip())
    said = done.stdout.splitlines() or [""]
    plain: dict[str, Any] = demand(parse_json(said[-1], f"olivine {arguments[0]}"), dict, f"olivine {arguments[0]}")
    return plain
