"""Folders that cannot be written or read, no shared memory, little memory, a clock that jumps, two drivers, late renames.

What is promised: the same bytes, or one line; and the same command ends with the same bytes once the fault is gone.
"""

import ctypes
import os
import random
import re
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

DAY = 86_400


def same_or_one_line(machine, done, expected: dict) -> bool:
    """Whether a command ended as promised."""
    return machine.tree() == expected if done.code == 0 else done.is_one_line() and not machine.leftovers()


# --- folders ----------------------------------------------------------------------------------------------------------


def obey_modes() -> None:
    """Root ignores the permissions of files; from here on this process does not."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0


@pytest.mark.stages("labelgen", "build-pairs", "pretrain", "finetune", "study")
def test_a_folder_that_may_not_be_written_is_one_line(stage, machine):
    machine.clean()
    machine.case.chmod(0o555)
    done = machine.run(stage, obey_modes)
    machine.case.chmod(0o755)
    assert done.is_one_line(), done.said
    assert "no permission to write here" in done.said
    assert not machine.tree()


@pytest.mark.stages("labelgen", "build-pairs", "pretrain", "finetune", "study")
def test_a_read_only_file_system_is_one_line(stage, disk):
    disk.clean()
    disk.resize("ro")
    done = disk.run(stage)
    disk.resize("rw")
    assert done.is_one_line(), done.said
    assert "no permission to write here" in done.said
    assert not disk.tree()


@pytest.mark.stages("labelgen")
def test_a_file_system_that_becomes_read_only_keeps_what_is_finished(stage, disk):
    expected, _ = disk.reference(stage)
    disk.resize("ro")
    done = disk.run(stage)
    disk.resize("rw")
    assert same_or_one_line(disk, done, expected) or "exists" in done.said, done.said
    assert disk.tree() == expected


@pytest.mark.soak
def test_no_command_writes_to_what_it_reads(disk, world, tmp_path):
    shutil.copytree(world, disk.root / "world")
    other = type(disk)(tmp_path / "elsewhere", disk.root / "world")
    other.root.mkdir()
    other.said = tmp_path / "said"
    disk.resize("ro")
    for stage in other.stages:
        other.clean()
        done = other.run(stage)
        assert done.code == 0, done.said
    disk.resize("rw")


def test_an_input_that_may_not_be_read_is_one_line_that_names_it(machine, world):
    for stage, pattern in (
        ("labelgen", "data/nuscenes/truth/class/**/*.png"),
        ("build-pairs", "data/nuscenes/samples/CAM_FRONT/*.jpg"),
        ("pretrain", "data/pairs/nuscenes/train/*.zarr/points/zarr.json"),
        ("finetune", "runs/cpu/last.pt"),
    ):
        path = sorted(world.glob(pattern))[0]
        mode = path.stat().st_mode
        path.chmod(0)
        machine.clean()
        done = machine.run(stage, obey_modes)
        path.chmod(mode)
        assert done.is_one_line(), done.said
        assert path.name in done.said or path.parent.name in done.said, done.said
        assert "ermission" in done.said, done.said


# --- memory -----------------------------------------------------------------------------------------------------------


def shared_memory(options: str):
    """In a child: a /dev/shm of its own."""

    def before() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        private = 1 << 18 | 1 << 14
        assert libc.unshare(0x20000) == 0
        assert libc.mount(b"none", b"/", None, private, None) == 0
        assert libc.mount(b"none", b"/dev/shm", b"tmpfs", 1 if options == "ro" else 0, b"size=64k") == 0

    return before


@pytest.mark.soak
@pytest.mark.parametrize("options", ["64k", "ro"])
@pytest.mark.parametrize(
    ("stage", "extra"),
    [
        ("synth", ("--frames", "5", "--workers", "2")),
        ("build-pairs", ("--workers", "2")),
        ("pretrain", ("--set", "data.workers=1")),
    ],
)
def test_without_shared_memory(options, stage, extra, machine):
    machine.clean()
    done = machine.run(stage, lambda: None, *extra)
    assert done.code == 0, done.said
    expected = machine.tree()
    machine.clean()
    done = machine.run(stage, shared_memory(options), *extra)
    print(stage, options, done)
    assert same_or_one_line(machine, done, expected), done.said


def little_memory(mib: float):
    """In a child: so much more memory than it has taken by now."""

    def before() -> None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + int(mib * 2**20),) * 2)

    return before


@pytest.mark.stages("labelgen")
def test_little_memory_is_one_line_or_enough_and_costs_nothing(depth, stage, machine):
    """Libraries end a process themselves where they get no memory: that may be no more than a kill is.

    Python prints lines of its own where it cannot even make the exception.
    """
    expected, _ = machine.reference(stage)
    steps = 16 if depth == "all" else 2
    bad, refused, by_itself = {}, 0, 0
    for i in range(steps):
        mib = 2 * 300 ** ((i + 0.5) / steps)
        machine.clean()
        done = machine.run(stage, little_memory(mib), seconds=60)
        refused += done.code != 0
        ended = done.code == -signal.SIGSEGV or (
            done.code == -signal.SIGABRT and re.search("out of memory|bad_alloc", done.said)
        )
        by_itself += bool(ended)
        told = done.code == 1 and "olivine: not enough memory" in done.said and "Traceback" not in done.said
        if not ((ended and not machine.wrong(expected)) or (told and not machine.leftovers())) and (
            not same_or_one_line(machine, done, expected)
        ):
            bad[mib] = (done.code, done.said[-500:])
        elif done.code:
            again = machine.run(stage)
            if again.code != 0 or machine.tree() != expected:
                bad[mib] = f"did not go on: {again.said[-500:]}"
    print(
        f"little memory, {stage}: {steps} cases, {refused} refused, {by_itself} of them ended by a library, {len(bad)} bad"
    )
    assert not bad, "\n".join(f"{case}: {what}" for case, what in bad.items())


# --- the clock --------------------------------------------------------------------------------------------------------


def jumping_clock(seed: int):
    """In a child: a clock that jumps by up to a day, there and back."""

    def before() -> None:
        draw, now, now_ns = random.Random(seed), time.time, time.time_ns
        time.time = lambda: now() + draw.uniform(-DAY, DAY)
        time.time_ns = lambda: now_ns() + int(draw.uniform(-DAY, DAY) * 1e9)

    return before


@pytest.mark.stages("labelgen")
def test_a_clock_that_jumps_changes_nothing(stage, machine):
    expected, seconds = machine.reference(stage)
    machine.clean()
    done = machine.run(stage, jumping_clock(0))
    assert done.code == 0, done.said
    assert machine.tree() == expected
    for number, days in enumerate((-1, 1)):
        machine.clean()
        machine.kill(stage, seconds / 2)
        for path in machine.case.rglob("*"):
            if not path.is_symlink():
                os.utime(path, (time.time() + days * DAY,) * 2)
        done = machine.run(stage, jumping_clock(number + 1), seconds=60)
        assert done.code == 0, done.said
        assert machine.tree() == expected


# --- several at once --------------------------------------------------------------------------------------------------


def late_renames():
    """In a child: a file appears under its final name up to 0.2 s after the rename has ended, as for another machine."""
    draw, replace, waiting = random.Random(os.getpid()), os.replace, []

    def later(source, target) -> None:
        time.sleep(draw.uniform(0, 0.2))
        replace(source, target)

    def late(source, target, **_) -> None:
        waiting.append(threading.Thread(target=later, args=(source, target)))
        waiting[-1].start()

    os.replace = late
    ended = os._exit

    def wait_and_end(code: int) -> None:
        for thread in waiting:
            thread.join()
        ended(code)

    os._exit = wait_and_end


def slow_renames():
    """In a child: a rename takes up to 0.2 s, as on a busy server."""
    draw, replace = random.Random(os.getpid()), os.replace

    def slow(source, target, **_) -> None:
        time.sleep(draw.uniform(0, 0.1))
        replace(source, target)
        time.sleep(draw.uniform(0, 0.1))

    os.replace = slow


@pytest.mark.parametrize(
    "renames", [pytest.param(lambda: None, id="quick"), pytest.param(slow_renames, id="slow", marks=pytest.mark.soak)]
)
@pytest.mark.parametrize(
    "stage",
    [
        "build-pairs",
        "pretrain",
        *(pytest.param(s, marks=pytest.mark.soak) for s in ("labelgen", "finetune", "probe", "study")),
    ],
)
def test_two_drivers_of_one_folder_do_it_together_or_one_says_so(stage, renames, machine):
    expected, _ = machine.reference(stage)
    machine.clean()
    arguments = machine.stages[stage]
    started = [machine.start(arguments, renames) for _ in range(2)]
    ended = [machine.wait(one) for one in started]
    for done in ended:
        assert done.code == 0 or (done.is_one_line() and "another run writes here" in done.said), done.said
    assert any(done.code == 0 for done in ended)
    done = machine.run(stage)
    assert done.code == 0, done.said
    assert machine.tree() == expected
    assert not machine.leftovers()


@pytest.mark.soak
@pytest.mark.parametrize("stage", ["labelgen", "build-pairs"])
def test_renames_that_are_seen_late_cost_nothing(stage, machine):
    expected, _ = machine.reference(stage)
    for _ in range(5):
        machine.clean()
        started = [machine.start(machine.stages[stage], late_renames) for _ in range(2)]
        for done in (machine.wait(one) for one in started):
            assert done.code == 0 or done.is_one_line(), done.said
        done = machine.run(stage)
        assert done.code == 0, done.said
        assert machine.tree() == expected
