"""Long runs: memory that does not grow, and kills at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import olivine.labelgen.work as work_module
from olivine.labelgen.labeler import BatchResult, Labelled
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
from olivine.readers.frame import Camera, Frame
from olivine.readers.index import FrameIndex, write_index


class StubModel:
    """Looks at every pixel and keeps nothing."""

    name, needs_image, batch_size, packages = "stub", True, 4, ()

    def resolved(self):
        return {}

    def weights(self):
        return {}

    def prepare(self):
        pass

    def label(self, tasks, images):
        return BatchResult(tuple(Labelled((image.max(axis=2) % 14).astype(np.uint8)) for image in images))


def _long_index(root: Path, count: int) -> FrameIndex:
    """``count`` images of 320 x 180 in scenes of 40; one file under many names."""
    (root / "samples/CAM").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (180, 320, 3), np.uint8)
    Image.fromarray(pixels).save(root / "image.jpg")
    frames = []
    for i in range(count):
        os.link(root / "image.jpg", root / f"samples/CAM/{i:05d}.jpg")
        camera = Camera("CAM", f"samples/CAM/{i:05d}.jpg", 320, 180, np.eye(3), np.eye(4))
        frames.append(
            Frame("nuscenes", "v1.0", root, str(i), f"scene-{i // 40:04d}", "train", i, "none", 5, np.eye(4), (camera,))
        )
    return write_index(root / "frames", frames, dataset="nuscenes", version="v1.0", root=root)


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize("count", [800, pytest.param(10_000, marks=pytest.mark.soak)])
def test_memory_does_not_grow_with_the_number_of_images(count, tmp_path, monkeypatch):
    monkeypatch.setattr(work_module, "make_labeler", lambda *_: StubModel())
    generate_labels(_long_index(tmp_path / "warm", 80), tmp_path / "warm/labels", LabelSettings("oracle"))
    index = _long_index(tmp_path / "long", count)
    before = _resident_mib()
    summary = generate_labels(index, tmp_path / "long/labels", LabelSettings("oracle"))
    assert summary.images == count
    assert _resident_mib() - before < 50  # the images alone would be 0.16 MiB each


CHILD = """
import sys
from pathlib import Path
from olivine.readers.index import open_index
from olivine.labelgen.run import generate_labels
from olivine.labelgen.settings import LabelSettings
import olivine.labelgen.oracle, scipy.ndimage
index = open_index(sys.argv[1])
print("ready", flush=True)
generate_labels(index, Path(sys.argv[2]), LabelSettings("oracle", segments="masks"))
"""


@pytest.mark.soak
def test_killed_at_20_random_moments_and_run_again_the_bytes_are_an_uninterrupted_runs(make_world, tmp_path):
    world = make_world(4, 12)
    settings = LabelSettings("oracle", segments="masks")

    def contents(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    start = time.monotonic()
    generate_labels(world.index, tmp_path / "whole", settings)
    duration = time.monotonic() - start
    whole = contents(tmp_path / "whole")
    generator = np.random.default_rng(0)
    partial = 0
    for number in range(20):
        labels = tmp_path / f"killed-{number}"
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(world.root / "frames"), str(labels)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(float(generator.uniform(0, 1.2 * duration)))
        child.send_signal([signal.SIGKILL, signal.SIGINT, signal.SIGTERM][number % 3])
        child.wait()
        done = {
            name: data for name, data in contents(labels).items() if name.endswith(".png") and ".partial-" not in name
        }
        assert all(whole[name] == data for name, data in done.items())
        partial += 0 < len(done) < sum(name.endswith(".png") for name in whole)
        summary = generate_labels(world.index, labels, settings)
        assert summary.failures == []
        assert contents(labels) == whole
    assert partial >= 5  # most kills fell into the run
