"""A job's account, in a folder beside its output: who claimed which unit, what became of it, when, on which machine.

| path | what |
|---|---|
| `job.json` | the job's name, its output folder and how many units it has |
| `<unit>.log` | everything about a unit: attempts, machines, times, what it printed, its error |
| `drivers/<driver>.jsonl` | what a driver did, a line an event; touched every few seconds while it lives |
| `claims/<unit>` | the driver that has the unit now |

The output folder itself holds neither times nor names of machines, so outputs compare byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common import (
    OlivineError,
    demand,
    disk_error,
    is_running,
    parse_json,
    read_bytes,
    remove_leftovers,
    write_json,
    writer_name,
)

HEARTBEAT = 5.0  # seconds
SILENT = 60.0  # seconds without a heartbeat after which a driver on another machine is taken for dead
# A heartbeat as far in the future is none either: a clock was set back, and nobody may be waited for until it catches up.
# A driver that is taken for dead and lives costs a unit that is done twice, with the same bytes.


def logs_of(out: Path) -> Path:
    """The folder of the account of the job that writes to ``out``."""
    return out.with_name(f"{out.name}.logs")


def driver_lives(path: Path) -> bool:
    """Whether the driver that writes this event file goes on."""
    host, _, rest = path.stem.rpartition("-")[0].rpartition("-")
    try:
        silent = abs(time.time() - path.stat().st_mtime)
    except OSError:
        return False
    # On this machine its process must be there too; that alone is not enough, for another one may have its number by now.
    here = host == writer_name().rpartition("-")[0] and rest.isdecimal()
    return silent < SILENT and (not here or is_running(int(rest)))


@dataclass(frozen=True)
class Account:
    """What an account begins with.

    Attributes:
        folder: from :func:`logs_of`.
        job: the job's name.
        out: the output folder, in whose ``units/`` every finished unit has its record.
        units: how many the whole job has, all parts together.
    """

    folder: Path
    job: str
    out: Path
    units: int

    def open(self) -> None:
        """Write ``job.json``: from now on `olivine status` knows of the job, also where nobody has begun it.

        Raises:
            OlivineError: the folder cannot be written.
        """
        folder = self.folder.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, folder) from None
        remove_leftovers(folder)
        out = os.path.relpath(self.out.absolute(), folder)
        write_json(folder / "job.json", {"job": self.job, "out": out, "units": self.units})


class Journal:
    """One driver's part of a job's account; a context manager.

    Args:
        folder, job, out, units: of its :class:`Account`, which is opened.

    Raises:
        OlivineError: the folder cannot be written.
    """

    def __init__(self, folder: Path, job: str, out: Path, units: int) -> None:
        Account(folder, job, out, units).open()
        self.folder = folder.absolute()
        self._events = folder / "drivers" / f"{writer_name()}-{secrets.token_hex(3)}.jsonl"
        self._claims = folder / "claims"
        self._end = threading.Event()
        try:
            self._events.parent.mkdir(exist_ok=True)
            self._claims.mkdir(exist_ok=True)
            self._file = open(self._events, "a", buffering=1)  # noqa: SIM115  closed in __exit__
        except OSError as error:
            raise disk_error(error, folder) from None
        self._held: set[str] = set()

    def __enter__(self) -> Journal:
        threading.Thread(target=self._beat, daemon=True, name="heartbeat").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for key in list(self._held):
            self._release(key)
        with contextlib.suppress(OSError):  # a full disk has been told of already
            self._file.close()

    def _beat(self) -> None:
        while not self._end.wait(HEARTBEAT):
            with contextlib.suppress(OSError):
                os.utime(self._events)

    def _write(self, **event: Any) -> None:
        try:
            self._file.write(json.dumps({"time": round(time.time(), 3), **event}) + "\n")
        except OSError as error:
            raise disk_error(error, self._events) from None

    def claim(self, key: str) -> bool:
        """Take a unit for this driver; False where another living driver has it."""
        path = self._claims / key
        while True:
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                if not self._abandoned(path):
                    return False
                continue
            except OSError as error:
                raise disk_error(error, path) from None
            with os.fdopen(handle, "w") as file:
                file.write(self._events.name)
            self._held.add(key)
            return True

    def _abandoned(self, path: Path) -> bool:
        """Remove the claim of a dead driver; whether it is worth trying again."""
        try:
            owner, age = path.read_text(errors="replace"), abs(time.time() - path.stat().st_mtime)
        except FileNotFoundError:
            return True
        except OSError as error:
            raise disk_error(error, path) from None
        known = owner.endswith(".jsonl") and "/" not in owner and "\0" not in owner  # else it is no driver's claim
        if age < SILENT if not known else driver_lives(self._events.parent / owner):
            return False
        # Renamed first: of several drivers that see the claim abandoned, one moves it away.
        grave = self._claims / f".{path.name}-{secrets.token_hex(3)}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, grave)
            if grave.read_text(errors="replace") != owner:  # somebody's who was quicker still: give it back
                with contextlib.suppress(FileExistsError):
                    os.link(grave, path)
            grave.unlink()
        return True

    def _release(self, key: str) -> None:
        self._held.discard(key)
        (self._claims / key).unlink(missing_ok=True)

    def began(self, key: str) -> None:
        """A unit was given to a worker."""
        self._write(unit=key, state="running")

    def ended(self, key: str, error: str = "") -> None:
        """A unit is done, or set aside with its error."""
        self._write(unit=key, state="failed" if error else "done", **({"error": error} if error else {}))
        self._release(key)


def read_events(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """All events of a job, driver by driver; a line that is being written, or is no event, is left out."""
    kind = {"time": float, "unit": str, "state": str, "error?": str}
    for path in sorted((folder / "drivers").glob("*.jsonl")):
        lines = read_bytes(path, "delete it and run the job again").decode(errors="replace")
        for line in lines.split("\n"):
            with contextlib.suppress(OlivineError):
                yield path, demand(parse_json(line, path), kind, path)
