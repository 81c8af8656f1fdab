"""A disk that is full at every moment of every command: one line, nothing that looks whole, and the same bytes afterwards.

The quick tests take one or two moments of labelgen and build-pairs, and a small disk for synth; the soak tests take every change of the file
system, and file systems of OLIVINE_DISK_SIZES (40) sizes, for every command.
"""

import errno
import os
import resource
from collections.abc import Callable

import pytest

SIZES = int(os.environ.get("OLIVINE_DISK_SIZES", 40))
FULL = "disk is full"


def meet(machine, stage: str, expected: dict, fault: Callable, recover: Callable = lambda: None, *says: str) -> str:
    """One case, from an empty folder on; what was wrong with it, empty where nothing was."""
    machine.clean()
    done = machine.run(stage, fault)
    if done.code == 0:
        return "" if machine.tree() == expected else "ended well with another result"
    if not done.is_one_line() or not any(word in done.said for word in says or [FULL]):
        return f"exit code {done.code}: {done.said[-600:]}"
    if left := machine.leftovers():
        return f"left {left}"
    if wrong := machine.wrong(expected):
        return f"looks whole and is not: {wrong}"
    recover()
    return finished(machine, stage, expected)


def finished(machine, stage: str, expected: dict) -> str:
    """Whether the same command now ends with the same files."""
    again = machine.run(stage)
    if again.code != 0:
        return f"did not go on: {again.said[-600:]}"
    found = machine.tree()
    other = [name for name in expected | found if expected.get(name) != found.get(name)]
    return f"other files afterwards: {other}" if other or machine.leftovers() else ""


def report(what: str, stage: str, cases: int, bad: dict) -> None:
    print(f"{what}, {stage}: {cases} cases, {len(bad)} bad")
    assert not bad, "\n".join(f"{case}: {what}" for case, what in bad.items())


@pytest.mark.stages("labelgen", "build-pairs")
def test_every_change_of_the_file_system_may_be_the_one_that_finds_the_disk_full(depth, stage, machine):
    expected, _ = machine.reference(stage)
    machine.clean()
    assert machine.run(stage, machine.at_change(1 << 60, errno.ENOSPC)).code == 0
    count = machine.changes
    numbers = range(1, count + 1) if depth == "all" else (count // 3, count - 2)
    cases = {n: meet(machine, stage, expected, machine.at_change(n, errno.ENOSPC)) for n in numbers}
    report("full at every change", stage, len(cases), {n: what for n, what in cases.items() if what})


@pytest.mark.stages("synth")
def test_a_file_system_of_any_size(depth, stage, disk):
    disk.resize("size=1g")
    expected, _ = disk.reference(stage)
    pages = disk.used[0] // 4096 + 8  # half-written files take a little more than what remains
    numbers = range(1, pages, max(1, pages // SIZES)) if depth == "all" else (pages // 2,)
    cases = {}
    for size in numbers:
        before = lambda size=size: disk.resize(f"size={4 * size}k")  # noqa: E731
        says = (FULL, "are free") if stage == "synth" else ()  # it looks at the free space before it begins
        cases[size] = meet(disk, stage, expected, before, lambda: disk.resize("size=1g"), *says)
        disk.resize("size=1g")
    report("small file systems", stage, len(cases), {n: what for n, what in cases.items() if what})


@pytest.mark.stages("build-pairs")
def test_a_file_system_without_inodes(depth, stage, disk):
    disk.resize("size=1g,nr_inodes=100k")
    expected, _ = disk.reference(stage)
    most = disk.used[1] + 2
    numbers = range(6, most, max(1, most // SIZES)) if depth == "all" else (most * 2 // 3,)
    cases = {}
    for count in numbers:
        before = lambda count=count: disk.resize(f"nr_inodes={count}")  # noqa: E731
        cases[count] = meet(disk, stage, expected, before, lambda: disk.resize("nr_inodes=100k"))
        disk.resize("nr_inodes=100k")
    report("few inodes", stage, len(cases), {n: what for n, what in cases.items() if what})


@pytest.mark.stages("labelgen")
def test_a_limit_on_the_size_of_files(depth, stage, machine):
    expected, _ = machine.reference(stage)
    largest = max(path.stat().st_size for path in machine.case.rglob("*") if path.is_file())
    low = 4096  # what the command prints goes into files, too
    share = range(SIZES) if depth == "all" else (SIZES // 2,)
    cases = {}
    for i in share:
        limit = int(low * (largest / low) ** ((i + 0.5) / SIZES))
        before = lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
        cases[limit] = meet(machine, stage, expected, before, lambda: None, "too large")
    report("limited files", stage, len(cases), {n: what for n, what in cases.items() if what})
