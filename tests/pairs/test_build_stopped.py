"""build-pairs stopped by Ctrl-C, by the end of its parent or of a worker: what is finished is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from olivine.labelgen.store import LabelStore
from olivine.pairs.build import build_pairs
from olivine.pairs.settings import PairSettings
from olivine.pairs.shards import open_shards

MakeStore = Callable[..., LabelStore]
Contents = Callable[[Path], dict[str, bytes]]
SETTINGS = PairSettings()


PROGRAM = """
import sys
from olivine.labelgen.store import open_store
from olivine.pairs.build import build_pairs
from olivine.pairs.check import check_shards
from olivine.pairs.settings import PairSettings
if __name__ == "__main__":
    print("ready", flush=True)
    settings = PairSettings(workers=int(sys.argv[3]))
    for failure in build_pairs(open_store(sys.argv[1]), sys.argv[2], settings, split="train").failures:
        print(f"{failure.unit}: {failure.reason}")
"""


def _start(program: Path, store: LabelStore, out: Path, workers: int) -> subprocess.Popen[str]:
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(store.root), str(out), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@contextmanager
def _held(store: LabelStore) -> Iterator[None]:
    """The last frame's image is a pipe that nobody writes to: no run comes to its end."""
    last = list(store.index().frames())[-1]
    path = last.image_path(last.cameras[0])
    data = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    yield
    path.unlink()
    path.write_bytes(data)


def _wait_for_a_shard(out: Path) -> None:
    for _ in range(1200):
        if list(out.glob("units/*.json")):
            return
        time.sleep(0.05)
    raise AssertionError("no shard after 60 s")


def test_ctrl_c_keeps_what_is_finished_and_leaves_nothing_half_done(
    contents: Contents, make_store: MakeStore, tmp_path: Path
) -> None:
    store, out = make_store({f"s{k:02d}": 1 for k in range(8)}, points=20), tmp_path / "out"
    with _held(store):
        process = _start(tmp_path / "program.py", store, out, 2)
        _wait_for_a_shard(out)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of the group
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and errors.count("Traceback") <= 1
    assert not [path for path in out.rglob("*") if "partial" in path.name]
    kept = open_shards(out)
    assert 0 < len(kept) < 8 and all(len(record.points) for record in kept)
    build_pairs(store, out, SETTINGS, split="train")
    build_pairs(store, tmp_path / "fresh", SETTINGS, split="train")
    assert contents(out) == contents(tmp_path / "fresh")


def test_workers_end_with_their_parent(make_store: MakeStore, tmp_path: Path) -> None:
    store, out = make_store({f"s{k:02d}": 1 for k in range(8)}, points=20), tmp_path / "out"
    with _held(store):
        process = _start(tmp_path / "program.py", store, out, 2)
        _wait_for_a_shard(out)
        process.kill()
        process.communicate(timeout=60)  # returns when the last holder of the pipes, a worker, is gone
    assert len(list(out.glob("units/*.json"))) < 8


def _workers(parent: int) -> list[int]:
    """The worker processes of a run (not multiprocessing's own helper)."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            pid, (_, ppid) = int(status.parent.name), status.read_text().rpartition(")")[2].split()[:2]
            if int(ppid) == parent and b"spawn_main" in (status.parent / "cmdline").read_bytes():
                found.append(pid)
    return found


def test_a_unit_whose_worker_dies_again_and_again_is_set_aside_and_the_rest_is_done(
    contents: Contents, make_store: MakeStore, tmp_path: Path
) -> None:
    store, out = make_store({f"s{k:02d}": 1 for k in range(4)}, points=20), tmp_path / "out"
    with _held(store):
        process = _start(tmp_path / "program.py", store, out, 2)
        while len(list(out.glob("units/*.json"))) < 3:
            time.sleep(0.05)
        while process.poll() is None:
            for pid in _workers(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "s03 frames 0-0: its worker process died (signal 9; out of memory?) (3 attempts)" in said
    assert len(open_shards(out)) == 3 and not [path for path in out.rglob("*") if "partial" in path.name]
    assert build_pairs(store, out, SETTINGS, split="train").frames_built == 1
    build_pairs(store, tmp_path / "fresh", SETTINGS, split="train")
    assert contents(out) == contents(tmp_path / "fresh")
