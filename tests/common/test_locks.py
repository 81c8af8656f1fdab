"""Locks on files: one holder, named, and none once it is gone."""

import errno
import fcntl
import subprocess
import sys

import pytest

from olivine.common.locks import HeldError, locked, take_lock

_HOLDER = """
import sys
from pathlib import Path
from olivine.common.locks import locked
with locked(Path(sys.argv[1])):
    print("taken", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the lock of ``tmp_path / "lock"`` until it is told to go on."""
    command = [sys.executable, "-c", _HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def test_a_lock_has_one_holder_which_is_named(holder, tmp_path):
    with pytest.raises(HeldError, match=rf"process {holder.pid} on "), locked(tmp_path / "lock"):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path / "lock"):
        pass


def test_waiting_is_said_and_ends_with_the_holder(holder, tmp_path, capfd, monkeypatch):
    lockf, waited = fcntl.lockf, []

    def lets_go(handle, how):
        if not how & fcntl.LOCK_NB:
            waited.append(how)
            holder.stdin.write("\n")
            holder.stdin.flush()
        lockf(handle, how)

    monkeypatch.setattr(fcntl, "lockf", lets_go)
    with locked(tmp_path / "lock", wait_for="the maps"):
        assert waited == [fcntl.LOCK_EX]
    assert f"olivine: waits for the maps (process {holder.pid} on " in capfd.readouterr().err


def test_a_file_system_without_locks_is_said_once(tmp_path, capfd, monkeypatch):
    def none(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    assert take_lock(tmp_path / "one") is None and take_lock(tmp_path / "two") is None
    assert capfd.readouterr().err.count("the file system has no locks (No locks available)") == 1
