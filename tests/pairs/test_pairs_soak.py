"""Minutes long, run by `make soak`: kills at random moments, and a set of nuScenes' size."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from olivine.labelgen.store import LabelStore, open_store
from olivine.pairs import unit
from olivine.pairs.build import build_pairs
from olivine.pairs.frames import build_frame
from olivine.pairs.settings import PairSettings
from olivine.pairs.shard_writer import ShardFrame, write_shard
from olivine.pairs.shards import open_shards
from olivine.readers.frame import Frame
from olivine.readers.index import write_index

pytestmark = pytest.mark.soak

Contents = Callable[[Path], dict[str, bytes]]


BUILD = """
import sys
from olivine.labelgen.store import open_store
from olivine.pairs.build import build_pairs
from olivine.pairs.settings import PairSettings
if __name__ == "__main__":
    build_pairs(open_store(sys.argv[1]), sys.argv[2], PairSettings(workers=2), split="train")
"""

LOAD = """
import json, sys, time
import numpy as np
import PIL.Image, PIL.JpegImagePlugin
from olivine.pairs import shards as _
from olivine.train.augment import AugmentSettings
from olivine.train.loader import FrameStream, StreamSettings

def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024

settings = StreamSettings(seed=0, batch=16, part=(0, 16), size=(224, 416), augment=AugmentSettings(crop_min_pairs=1))
imports = private()
started = time.process_time()
stream = FrameStream(sys.argv[1], settings)
opened = time.process_time() - started
batches = stream.batches(0, 10**9)
next(batches)
first = time.process_time() - started
for _ in range(int(sys.argv[2])):  # every shard has been open once
    next(batches)
started = time.process_time()
for _ in range(60):
    next(batches)
frame = (time.process_time() - started) / 960
print(json.dumps({"opened": opened, "first": first, "frame": frame, "memory": private() - imports, "torch": "torch" in sys.modules}))
"""


def test_killed_at_20_random_moments_the_bytes_are_those_of_one_run(
    contents: Contents, make_store: Callable[..., LabelStore], tmp_path: Path
) -> None:
    store = make_store({f"s{k:02d}": 4 for k in range(40)})
    program, out = tmp_path / "build.py", tmp_path / "killed"
    program.write_text(BUILD)

    def start(target: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(program), str(store.root), str(target)], start_new_session=True)

    started = time.monotonic()
    assert start(tmp_path / "once").wait() == 0
    whole = time.monotonic() - started
    rng = np.random.default_rng(0)
    kills = finished = 0
    while kills < 20:
        process = start(out)
        try:
            process.wait(timeout=rng.uniform(0.2, 0.9) * whole)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:  # done in spite of the kills before: one more set, from the start
            assert contents(out) == contents(tmp_path / "once")
            finished += 1
            out = tmp_path / f"killed-{finished}"
        if (out / "manifest.json").exists():
            assert all(len(record.points) for record in open_shards(out))
    assert start(out).wait() == 0
    assert contents(out) == contents(tmp_path / "once")


@pytest.fixture(scope="module")
def trainval(
    tmp_path_factory: pytest.TempPathFactory,
    make_frame: Callable[..., Frame],
    make_manifest: Callable[[Path], LabelStore],
) -> Iterator[Path]:
    """28,130 frames in 850 scenes, and 100 frames in 3, all of one small frame's files.

    The one frame is projected once, a shard of each length is written once and then copied under its own
    attributes; plan, digests, entries and manifest are made as ever.
    """
    base = tmp_path_factory.mktemp("trainval")
    frame = make_frame(base / "raw", base / "files", "s", 0, np.random.default_rng(0), 208, 112, 600, "train")
    made: list[ShardFrame] = []

    def build_once(member: Frame, position: int, *rest: Any) -> ShardFrame:
        if not made:
            made.append(build_frame(member, position, *rest))
        return dataclasses.replace(made[0], token=member.token, position=position)

    written: dict[int, Path] = {}

    def write_once(folder: Path, frames: list[ShardFrame], attributes: dict[str, Any]) -> None:
        if len(frames) not in written:
            write_shard(folder, frames, attributes)
            written[len(frames)] = base / f"shard-of-{len(frames)}"
            shutil.copytree(folder, written[len(frames)])
        shutil.copytree(written[len(frames)], folder, dirs_exist_ok=True)
        group = json.loads((folder / "zarr.json").read_text())
        (folder / "zarr.json").write_text(json.dumps({**group, "attributes": attributes}, indent=2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit, "build_frame", build_once)
        patch.setattr(unit, "write_shard", write_once)
        for name, scenes in (("large", [34] * 80 + [33] * 770), ("small", [34, 33, 33])):
            folder = base / f"labels-{name}"
            folder.mkdir()
            frames = [
                dataclasses.replace(frame, token=f"token-{s:04d}-{k:03d}-{'x' * 18}", scene=f"scene-{s:04d}")
                for s, count in enumerate(scenes)
                for k in range(count)
            ]
            for part in ("CAM_FRONT", "CAM_BACK"):
                (folder / part).symlink_to(base / "files" / part)
            write_index(
                folder / "frames", frames, dataset="nuscenes", version="v0", root=base / "raw", point_classes=("a", "b")
            )
            build_pairs(make_manifest(folder), base / name, PairSettings(), split="train")
    yield base
    shutil.rmtree(base)  # a gigabyte


def test_a_set_of_28130_frames_opens_and_reads_as_a_small_one(trainval: Path) -> None:
    (trainval / "load.py").write_text(LOAD)
    results = {}
    for name, warm in (("small", 10), ("large", 250)):
        runs = []
        for _ in range(2):
            command = [sys.executable, str(trainval / "load.py"), str(trainval / name), str(warm)]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        results[name] = min(runs, key=lambda run: run["frame"])
    print(results)
    shards = open_shards(trainval / "large")
    assert len(shards) == 28_130 and len(shards.scenes) == 850
    large, small = results["large"], results["small"]
    assert large["opened"] < 1 and large["first"] < 5
    assert large["memory"] < 100 and not large["torch"]
    assert large["frame"] < 1.1 * small["frame"]


def test_the_open_store_of_the_large_set_is_quick(trainval: Path) -> None:
    """A second build-pairs on the finished set looks at every file and does nothing."""
    started = time.monotonic()
    summary = build_pairs(
        open_store(trainval / "labels-large"), trainval / "large", PairSettings(workers=2), split="train"
    )
    assert summary.frames_built == 0 and summary.frames_kept == 28_130
    assert time.monotonic() - started < 60
