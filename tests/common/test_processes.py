"""Ctrl-C and child processes."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from olivine.common import children_ignore_ctrl_c, ctrl_c_afterwards, is_running, remove_leftovers, writer_name

FIRST_CHILD = """
import multiprocessing, signal, sys
from olivine.common import children_ignore_ctrl_c

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with children_ignore_ctrl_c():
        # What a new interpreter inherits is the mask of this thread when it is started.
        real = multiprocessing.util.spawnv_passfds
        def watched(path, arguments, descriptors):
            blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
            print("blocked" if blocked else f"not blocked: {arguments}")
            return real(path, arguments, descriptors)
        multiprocessing.util.spawnv_passfds = watched
        for _ in range(2):
            child = context.Process(target=print, args=("child",))
            child.start()
            child.join()
    print("blocked after" if signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []) else "free after")
"""


def test_the_very_first_child_ignores_ctrl_c_from_its_start(tmp_path):
    (tmp_path / "first.py").write_text(FIRST_CHILD)
    done = subprocess.run(
        [sys.executable, "-u", "first.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line != "child"]
    assert lines == ["blocked", "blocked", "free after"], done.stdout + done.stderr


def test_ctrl_c_while_children_are_started_comes_when_they_are():
    # Another thread may take the signal that this one blocks, as those of BLAS do; the parent's handler runs all the same.
    over = threading.Event()
    other = threading.Thread(target=over.wait, args=(60,))
    other.start()
    reached = []
    try:
        with pytest.raises(KeyboardInterrupt), children_ignore_ctrl_c():
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(100):
                time.sleep(0.001)
            reached.append(True)
    finally:
        over.set()
        other.join()
    assert reached


def test_ctrl_c_within_the_block_comes_at_its_end():
    reached = []
    with pytest.raises(KeyboardInterrupt), ctrl_c_afterwards():
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):  # a handler runs between two instructions of the main thread
            time.sleep(0)
        reached.append(True)
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_whoever_handles_ctrl_c_goes_on_doing_so():
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        with ctrl_c_afterwards():
            os.kill(os.getpid(), signal.SIGINT)
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="a system without namespaces")
def test_a_container_with_this_hosts_name_and_its_own_numbers_is_another_machine(tmp_path):
    host = "".join(c if c.isalnum() else "_" for c in socket.gethostname())
    theirs = tmp_path / f".map.png.partial-{host}_1-999999999-abc123"
    unknown = tmp_path / f".map.png.partial-{host}-999999999-abc123"  # an older olivine's, of whatever container
    dead = tmp_path / f".map.png.partial-{writer_name(999999999)}-abc123"
    for path in (theirs, unknown, dead):
        path.touch()
    assert remove_leftovers(tmp_path) == [dead]


def test_a_process_that_proc_does_not_show_may_live(monkeypatch):
    def hidden(self, *_):
        raise FileNotFoundError

    def refuse(pid, number):
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", hidden)
    assert is_running(os.getpid()) and not is_running(999999999)
    monkeypatch.setattr(os, "kill", refuse)
    assert is_running(999999999)
