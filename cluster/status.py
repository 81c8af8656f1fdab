"""How far a job is, from any terminal: its output folder's records and its drivers' events."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from ..common import Failure, OlivineError, Whole, demand, progress, read_json
from .journal import driver_lives, logs_of, read_events
from .slurm import has_jobs

RECENT = 600.0  # seconds over which the rate is taken
IDLE = 10.0  # seconds without a driver after which a job is taken for ended: from one command of a Makefile to the next


@dataclass
class JobStatus:
    """One job.

    Attributes:
        job, out: its command and its output folder.
        units: of the whole job.
        done: have their record in the output folder.
        running: given out by a driver that lives.
        waiting: the rest.
        drivers: commands at work on it, on all machines.
        rate: units a second over the last minutes; 0 where none came.
        seconds_left: at that rate, None where nobody works on it.
        failures: units set aside, or with something left out, each with the last reason.
    """

    job: str
    out: Path
    units: int
    done: int = 0
    running: int = 0
    waiting: int = 0
    drivers: int = 0
    rate: float = 0.0
    seconds_left: float | None = None
    failures: list[Failure] = field(default_factory=list)

    @property
    def unfinished(self) -> int:
        """Units that may still come."""
        return self.running + self.waiting


def find_jobs(path: Path) -> list[Path]:
    """The log folders of the jobs that write to ``path``, or below it.

    Raises:
        OlivineError: there are none.
    """
    # A stage's own folder, one above, or one further up; not deeper, where data sets of a million files may lie.
    patterns = (
        "job.json",
        "*/job.json",
        "*.logs/job.json",
        "*.logs/*/job.json",
        "*/*.logs/job.json",
        "*/*.logs/*/job.json",
    )
    for base in (path, logs_of(path)):
        if found := sorted({file.parent for pattern in patterns for file in base.glob(pattern)}):
            return found
    raise OlivineError(
        "no job has left an account here", where=path, remedy="name the folder that labelgen or build-pairs writes to"
    )


def read_status(logs: Path, now: float | None = None) -> JobStatus:
    """How far the job of a log folder is."""
    path, now = logs / "job.json", time.time() if now is None else now
    again = "delete it and run the job again"
    plain = demand(read_json(path, again), {"job": str, "out": str, "units": Whole()}, path, again)
    try:
        out = Path(logs, plain["out"]).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a null character, half a letter, links in a circle
        raise OlivineError(f"out is no path ({error})", where=path, remedy=again) from None
    status = JobStatus(plain["job"], out, plain["units"])
    records = {path.stem for path in (status.out / "units").glob("[!.]*.json")}
    last: dict[str, tuple[float, str, str, Path]] = {}
    ended: list[float] = []
    first = now
    for driver, event in read_events(logs):
        moment, state, unit = event["time"], event["state"], event["unit"]
        if unit not in last or last[unit][0] <= moment:
            last[unit] = (moment, state, event.get("error", ""), driver)
        if now - moment < RECENT:
            first = min(first, moment)
            if state != "running":
                ended.append(moment)
    lives = {driver: driver_lives(driver) for driver in (logs / "drivers").glob("*.jsonl")}
    status.drivers = sum(lives.values())
    status.running = sum(entry[1] == "running" and lives[entry[3]] for entry in last.values())
    status.failures = [Failure(u, error) for u, (_, state, error, _) in sorted(last.items()) if state == "failed"]
    failed = {failure.unit for failure in status.failures}
    status.done = len(records - failed)
    status.waiting = max(0, status.units - len(records | failed) - status.running)
    status.rate = len(ended) / (now - first) if ended and now > first else 0.0
    if status.drivers and status.rate:
        status.seconds_left = status.unfinished / status.rate
    return status


def watch_jobs(path: Path, seconds: float = 1.0, idle: float = IDLE) -> list[JobStatus]:
    """One bar for the jobs that write to ``path`` or below, until nothing is left or nobody works on it.

    Args:
        seconds: between two looks.
        idle: seconds without a driver, and without a job of SLURM's that may bring one, after which this ends.

    Returns:
        The jobs as last seen.

    Raises:
        OlivineError: there are no jobs.
    """
    found = [read_status(folder) for folder in find_jobs(path)]
    total, left = (sum(getattr(status, name) for status in found) for name in ("units", "unfinished"))
    with progress("units", total, "unit", before=total - left) as advance:
        seen = time.monotonic()
        while True:
            unfinished = sum(status.unfinished for status in found)
            advance(left - unfinished)
            left = unfinished
            now = time.monotonic()
            if any(status.drivers for status in found):
                seen = now
            elif now - seen >= idle and not has_jobs():
                return found
            if not unfinished:
                return found
            time.sleep(seconds)
            found = [read_status(folder) for folder in find_jobs(path)]
