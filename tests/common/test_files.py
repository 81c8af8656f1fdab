"""What is said of a disk, and what is left of what was there."""

import errno
import os
import subprocess
import sys

import pytest

from olivine.common import OlivineError, atomic_directory, atomic_file, disk_error


def test_an_input_that_cannot_be_read_is_not_an_output_that_cannot_be_written(tmp_path):
    missing = tmp_path / "input" / "image.jpg"
    for block in (atomic_file(tmp_path / "out.json"), atomic_directory(tmp_path / "out")):
        with pytest.raises(OlivineError, match=r"image\.jpg: cannot be read \(No such file") as error, block:
            missing.read_bytes()
        assert "--out" not in str(error.value)
    assert os.listdir(tmp_path) == []
    denied = PermissionError(errno.EACCES, "Permission denied", str(missing))
    assert str(disk_error(denied, tmp_path / "out")).startswith(f"{missing}: cannot be read (Permission denied)")


def test_an_output_that_cannot_be_written_says_so(tmp_path):
    for named in (tmp_path, tmp_path / "out", tmp_path / ".out.partial-x-1", tmp_path / "out" / "a", None):
        denied = PermissionError(errno.EACCES, "Permission denied", None if named is None else str(named))
        assert "out: no permission to write here" in str(disk_error(denied, tmp_path / "out"))
    full = OSError(errno.ENOSPC, "No space left on device", "/elsewhere/x")
    assert str(disk_error(full, tmp_path / "out")).startswith("/elsewhere/x: the disk is full")


@pytest.mark.parametrize("stops", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("between", [False, True])
def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch, stops, between):
    """Also when Ctrl-C comes between the two renames."""

    def write(text):
        with atomic_directory(tmp_path / "out") as folder:
            (folder / "a").write_text(text)

    write("first")
    real = {name: getattr(os, name) for name in ("rename", "replace")}

    def fails(source, target):
        if target == tmp_path / "out":
            raise stops
        real["replace"](source, target)

    def renamed_and_stopped(source, target):
        real["rename"](source, target)
        if source == tmp_path / "out":
            raise stops

    monkeypatch.setattr(os, *(("rename", renamed_and_stopped) if between else ("replace", fails)))
    with pytest.raises((OlivineError, KeyboardInterrupt), match=r"cannot be written|^$"):
        write("second")
    assert (tmp_path / "out" / "a").read_text() == "first" and os.listdir(tmp_path) == ["out"]
    monkeypatch.undo()
    write("third")
    assert (tmp_path / "out" / "a").read_text() == "third" and os.listdir(tmp_path) == ["out"]


def test_a_compiled_loop_runs_where_nothing_can_be_kept(tmp_path):
    """numba finds no place for its cache: a module without a file it can write beside, and no home."""
    module = tmp_path / "loops.py"
    module.write_text(
        "from olivine.common.compiled import compiled\n\n@compiled()\ndef total(n):\n    s = 0\n"
        "    for i in range(n):\n        s += i\n    return s\n"
    )
    code = (
        "import numba.core.caching as c\n"
        "c.CacheImpl._locator_classes = []\n"  # what numba finds where neither can be written
        "import loops, numba\n"
        "print(loops.total(5))\n"
        "try: numba.njit(cache=True)(loops.total.py_func)\n"
        "except RuntimeError as error: print('cannot cache' in str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["10", "True"], done.stderr
