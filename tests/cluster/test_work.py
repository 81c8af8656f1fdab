"""The loop that has units done: each once, failing ones again and then aside, whatever becomes of the workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_functions import peak_memory

from olivine.cluster.journal import Journal
from olivine.cluster.local import Local
from olivine.cluster.work import Job, WorkUnit, execute
from olivine.common import OlivineError

Units = Callable[..., list[WorkUnit]]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failing_unit_is_tried_three_times_and_set_aside_and_the_rest_is_done(
    job: Job, units: Units, tmp_path: Path, processes: int
) -> None:
    behave = {1: "raise", 3: "raise once", 4: "in part"}
    outcomes = {o.unit.key: o for o in execute(job, units(6, behave), Local(processes))}
    assert sorted(outcomes) == [f"unit-{k}" for k in range(6)]
    assert outcomes["unit-1"].result is None
    assert outcomes["unit-1"].error == "ValueError: number 1 is wrong (3 attempts)"
    assert outcomes["unit-4"].result.failures[0].reason == "is bad"
    attempts = [len((tmp_path / f"out/{k}.attempts").read_text().splitlines()) for k in range(6)]
    assert attempts == [1, 3, 1, 2, 1, 1]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.txt")) == [f"{k}.txt" for k in (0, 2, 3, 4, 5)]


def test_only_the_unit_of_a_dead_worker_is_blamed_and_what_it_had_begun_is_removed(
    job: Job, units: Units, tmp_path: Path
) -> None:
    outcomes = {o.unit.key: o for o in execute(job, units(8, {1: "die", 5: "die once"}), Local(2))}
    assert [key for key, o in outcomes.items() if o.error] == ["unit-1"]
    assert outcomes["unit-1"].error == "its worker process died (exit code 7) (3 attempts)"
    assert len((tmp_path / "out/5.attempts").read_text().splitlines()) == 2
    assert not [p for p in (tmp_path / "out").iterdir() if "partial" in p.name]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_no_unit_can_do_without_stops_the_job_at_once(
    job: Job, units: Units, tmp_path: Path, processes: int
) -> None:
    with pytest.raises(OlivineError, match=r"the weights are missing\. Fetch them"):
        list(execute(job, units(50, {0: "stop"}, seconds=0.5), Local(processes)))
    assert len(list((tmp_path / "out").glob("*.attempts"))) <= 4


def test_units_are_read_no_further_than_there_are_idle_workers(job: Job, units: Units) -> None:
    read = done = 0

    def counted() -> Iterator[WorkUnit]:
        nonlocal read
        for unit in units(12):
            read += 1
            yield unit

    for _ in execute(job, counted(), Local(2)):
        done += 1
        assert read <= done + 2
    assert done == 12


def test_the_drivers_memory_does_not_grow_with_the_number_of_units(tmp_path: Path) -> None:
    # A process of its own: this one's other threads allocate too.
    with multiprocessing.get_context("spawn").Pool(1) as driver:
        few, many = (driver.apply(peak_memory, (count, tmp_path / str(count))) for count in (200, 2_000))
    assert many < few + 20_000  # bytes; a unit alone is over 200


def test_each_unit_has_one_log_with_its_machine_its_words_and_its_error(job: Job, units: Units, tmp_path: Path) -> None:
    with Journal(tmp_path / "logs", "test", tmp_path / "out", 3) as journal:
        list(execute(job, units(3, {1: "raise", 2: "in part"}), Local(2), journal=journal))
    logs = {path.stem: path.read_text() for path in (tmp_path / "logs").glob("*.log")}
    assert sorted(logs) == ["unit-0", "unit-1", "unit-2"]
    assert os.uname().nodename in logs["unit-0"] and "this is 0" in logs["unit-0"]
    assert logs["unit-1"].count("begins") == logs["unit-1"].count("Traceback") == 3
    assert "image of 2: is bad" in logs["unit-2"]


DRIVER = """
import sys; sys.path[:0] = [{helpers!r}]
from pathlib import Path
from functools import partial
from cluster_functions import Task, Work
from olivine.cluster.journal import Journal
from olivine.cluster.local import Local
from olivine.cluster.work import Job, WorkUnit, execute
out, logs = Path({out!r}), Path({logs!r})
row = [WorkUnit(f"unit-{{k}}", 1, Task(k, seconds={seconds})) for k in {order}]
with Journal(logs, "test", out, 14) as journal:
    for outcome in execute(Job("test", partial(Work, out)), row, Local(), journal=journal):
        print(outcome.unit.key, flush=True)
"""


def test_two_drivers_at_once_never_have_the_same_unit(job: Job, tmp_path: Path) -> None:
    """Each takes what the other has not; a unit that one has done, the other finds done (here: does again, later)."""

    def start(order: str) -> subprocess.Popen[str]:
        values = {"helpers": str(Path(__file__).parent / "helpers"), "out": str(tmp_path / "out"), "order": order}
        program = DRIVER.format(**values, logs=str(tmp_path / "logs"), seconds=0.05)
        return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)

    drivers = [start("range(14)"), start("range(14)")]
    assert all(driver.wait(60) == 0 for driver in drivers)
    events = []
    for path in (tmp_path / "logs/drivers").glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        spans: dict[str, list[float]] = {}
        for line in lines:
            spans.setdefault(line["unit"], []).append(line["time"])
        events.append(spans)
    assert len(events) == 2
    for key in set(events[0]) & set(events[1]):
        (a0, a1), (b0, b1) = events[0][key], events[1][key]
        assert a1 <= b0 + 0.002 or b1 <= a0 + 0.002, key
    assert not list((tmp_path / "logs/claims").iterdir())


def test_what_a_dead_driver_had_claimed_is_taken_over(job: Job, units: Units, tmp_path: Path) -> None:
    def claim_and_die(logs: Path) -> None:
        journal = Journal(logs, "test", tmp_path / "out", 3)
        assert journal.claim("unit-1")
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=claim_and_die, args=(tmp_path / "logs",))
    process.start()
    process.join()
    assert (tmp_path / "logs/claims/unit-1").is_file()
    with Journal(tmp_path / "logs", "test", tmp_path / "out", 3) as journal:
        assert len(list(execute(job, units(3), Local(), journal=journal))) == 3
    assert not list((tmp_path / "logs/claims").iterdir())


def test_a_claim_of_a_living_driver_is_respected_until_it_is_released(tmp_path: Path) -> None:
    with Journal(tmp_path / "logs", "test", tmp_path / "out", 1) as one:
        with Journal(tmp_path / "logs", "test", tmp_path / "out", 1) as two:
            assert one.claim("a") and not two.claim("a")
            one.began("a")
            one.ended("a")
            assert two.claim("a")
        assert one.claim("a")  # its owner has ended
