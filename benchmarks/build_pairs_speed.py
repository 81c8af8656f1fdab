"""build-pairs on full-size nuScenes frames: frames a second of one core, memory, bytes on disk by array.

The real keyframe stands for every frame (or the frames of --data, a nuScenes folder with exact masks). The
peer in the same run is Pillow alone: decode, shrink and encode the same JPEGs, decode the same label maps.

    python benchmarks/build_pairs_speed.py [--frames 64] [--visibility occlusion] [--data DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import multiprocessing
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from olivine.common import write_json
from olivine.labelgen.store import LabelStore, open_store
from olivine.pairs.build import build_pairs
from olivine.pairs.check import bytes_by_array
from olivine.pairs.images import stored_size
from olivine.pairs.settings import PairSettings
from olivine.pairs.shards import open_shards
from olivine.readers import open_dataset
from olivine.readers.frame import Frame
from olivine.readers.index import write_index

PROMPTS = (
    "barrier", "bicycle", "bus", "car", "motorcycle", "pedestrian", "traffic cone", "truck",
    "road", "sidewalk", "terrain", "vegetation", "building",
)  # fmt: skip
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def make_store(folder: Path, data: Path | None, count: int) -> tuple[LabelStore, list[Frame]]:
    """``count`` frames with label maps: one scene, the keyframe repeated or the data set's frames in turn."""
    root = data or SHARED / "nuscenes-keyframe"
    dataset = open_dataset("nuscenes", root)
    real = list(dataset.frames())
    frames = [
        dataclasses.replace(real[k % len(real)], token=f"frame-{k:05d}", scene="repeated", split="train")
        for k in range(count)
    ]
    write_index(folder / "frames", frames, dataset="nuscenes", version=dataset.version, root=root)
    for frame in real:
        for c, camera in enumerate(frame.cameras):
            source = SHARED / "nuscenes-keyframe-camseg" / f"{camera.key}.png"
            if frame.image_truth is not None:
                source = frame.image_truth[c][0]
            (folder / camera.key).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / f"{camera.key}.png")
    write_json(folder / "manifest.json", {"schema": "1.0", "classes": list(PROMPTS), "settings": {}})
    return open_store(folder), real


def pillow_alone(frames: list[Frame], store: LabelStore, count: int) -> float:
    """Seconds of processor time a frame."""
    started = time.process_time()
    for k in range(count):
        frame = frames[k % len(frames)]
        for camera in frame.cameras:
            with Image.open(frame.image_path(camera)) as image:
                small = image.resize(stored_size(camera.width, camera.height), Image.Resampling.BILINEAR)
            small.save(io.BytesIO(), "JPEG", quality=90)
            with Image.open(store.label_path(camera)) as label:
                np.asarray(label)
    return (time.process_time() - started) / count


def _measure(
    labels: Path, out: Path, settings: PairSettings, queue: multiprocessing.Queue[tuple[float, float, int]]
) -> None:
    store = open_store(labels)
    build_pairs(store, out.with_name("warm"), settings, split="train", part=(0, 2))  # compiles
    before, started = time.process_time(), time.perf_counter()
    build_pairs(store, out, settings, split="train")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    queue.put((time.process_time() - before, time.perf_counter() - started, memory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--visibility", default="none")
    options = parser.parse_args()
    if options.data is None and not SHARED.is_dir():
        print("the real keyframe is not here: give a nuScenes folder with exact masks, --data DIR")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, frames = make_store(folder / "labels", options.data, options.frames)
        context = multiprocessing.get_context("spawn")
        queue: multiprocessing.Queue[tuple[float, float, int]] = context.Queue()
        settings = PairSettings(visibility=options.visibility)
        process = context.Process(target=_measure, args=(folder / "labels", folder / "out", settings, queue))
        process.start()
        cpu, wall, memory = queue.get()
        process.join()
        alone = pillow_alone(frames, store, min(options.frames, 16))
        shards = open_shards(folder / "out")
        each = cpu / options.frames
        print(f"{options.frames} frames of 6 images at 1600x900, stored at {'x'.join(map(str, shards.image_size[0]))}")
        print(
            f"build-pairs   {1 / each:6.1f} frames a second of a core ({1e3 * each:.0f} ms of processor time a frame)"
        )
        print(f"              {options.frames / wall:6.1f} frames a second by the clock, one process")
        print(
            f"Pillow alone  {1 / alone:6.1f} frames a second of a core; build-pairs takes {each / alone:.2f} times as long"
        )
        print(f"peak memory of the process {memory / 2**20:.0f} MiB")
        sizes = bytes_by_array(shards)
        print(f"bytes on disk a frame: {sum(sizes.values()) // options.frames:,}")
        for array, size in sizes.items():
            print(f"  {array:16} {size // options.frames:>9,}")


if __name__ == "__main__":
    main()
