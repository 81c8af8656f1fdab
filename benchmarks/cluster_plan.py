"""Disk, time and machines that a data set needs, from rates measured in this run or given.

Measured here: the bytes of a label map and of a frame in the shards, and frames a second of build-pairs on one core, on the
real keyframe; on a machine that is busy with other things, give the rate of a quiet one. The labeler's and the trainer's
rates are those of your machines: measure them (benchmarks/labelgen_speed.py, the `steps per second` that pretrain prints)
and give them; the defaults are this project's own, on CPU cores.

    python benchmarks/cluster_plan.py --label-seconds 1.2 --label-workers 8 --frame-seconds 0.05 --days 7
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from olivine.common import write_json
from olivine.labelgen.store import encode_label_map, open_store, read_values
from olivine.pairs.build import build_pairs
from olivine.pairs.settings import PairSettings
from olivine.readers import open_dataset
from olivine.readers.index import write_index

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CLASSES = tuple(f"class {k}" for k in range(1, 14))
NUSCENES = 28_130  # training keyframes: 168,780 images

FORMULA = """\
images         = frames x cameras
label maps     = images x bytes of a map                      (disk)
shards         = frames x bytes of a frame                    (disk)
labelgen       = images x seconds an image / workers          (time; a worker is a GPU, or a machine without one)
build-pairs    = frames / (frames a second of a core) / cores (time)
pretrain       = epochs x frames x seconds a frame / workers  (time; a worker is a GPU, or a machine without one)
machines       = time of one machine / time that there is, rounded up
"""


@dataclass(frozen=True)
class Rates:
    """What one image or frame costs.

    Attributes:
        map_bytes, frame_bytes: of a label map, and of a frame in the shards.
        label_seconds: of a worker, an image.
        pair_rate: frames a second of a core.
        frame_seconds: of a training worker, a frame.
    """

    map_bytes: float
    frame_bytes: float
    label_seconds: float
    pair_rate: float
    frame_seconds: float


def measure(frames: int) -> tuple[float, float, float]:
    """Bytes of a label map, bytes of a frame in the shards, frames a second of a core."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = open_dataset("nuscenes", SHARED / "nuscenes-keyframe")
        (real,) = dataset.frames()
        row = [dataclasses.replace(real, token=f"{k}", scene="s", split="train") for k in range(frames)]
        write_index(folder / "labels/frames", row, dataset="nuscenes", version=dataset.version, root=real.root)
        sizes = []
        for camera in real.cameras:
            source, target = SHARED / f"nuscenes-keyframe-camseg/{camera.key}.png", folder / f"labels/{camera.key}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            sizes.append(len(encode_label_map(read_values(source, ""), CLASSES)))
        write_json(folder / "labels/manifest.json", {"schema": "1.0", "classes": list(CLASSES), "settings": {}})
        store = open_store(folder / "labels")
        build_pairs(store, folder / "warm", PairSettings(), split="train")
        begun = time.process_time()
        summary = build_pairs(store, folder / "out", PairSettings(), split="train")
        return sum(sizes) / len(sizes), summary.bytes_per_frame, frames / (time.process_time() - begun)


def table(frames: int, rates: Rates, options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """A row for each stage: disk, and time on the machines that are given; then the machines for the days that there are."""
    images = frames * options.cameras
    day, rows = 86_400, []
    label = images * rates.label_seconds / options.label_workers / day
    pairs = frames / rates.pair_rate / options.cores / day
    train = options.epochs * frames * rates.frame_seconds / options.train_workers / day
    for name, disk, days in (
        ("labelgen", images * rates.map_bytes, label),
        ("build-pairs", frames * rates.frame_bytes, pairs),
        ("pretrain", 0.0, train),
    ):
        machines = math.ceil(days / options.days)
        rows.append(
            (
                name,
                f"{disk / 1e9:,.1f} GB" if disk else "",
                f"{days:,.2f} days, or {machines:,} times as many machines for {options.days:g}",
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--label-seconds", type=float, default=16.3, help="32.6 s of processor time on 2 cores")
    parser.add_argument("--label-workers", type=int, default=1)
    parser.add_argument(
        "--frame-seconds", type=float, default=8.5, help="34.0 s of processor time a step of 2 frames on 2 cores"
    )
    parser.add_argument("--train-workers", type=int, default=1)
    parser.add_argument("--cores", type=int, default=2, help="for build-pairs")
    parser.add_argument("--pair-rate", type=float, help="build-pairs, frames a second of a core [measured here]")
    parser.add_argument("--days", type=float, default=7, help="that there are for each stage")
    parser.add_argument("--measure", type=int, default=16, help="frames to measure build-pairs on")
    options = parser.parse_args()
    if not SHARED.is_dir():
        print("the real keyframe is not here, so nothing can be measured")
        return
    map_bytes, frame_bytes, pair_rate = measure(options.measure)
    rates = Rates(map_bytes, frame_bytes, options.label_seconds, options.pair_rate or pair_rate, options.frame_seconds)
    print(FORMULA)
    print(
        f"measured here: {map_bytes:,.0f} bytes a label map, {frame_bytes:,.0f} bytes a frame, {pair_rate:.1f} frames a second of a core"
    )
    print(
        f"given: {options.label_seconds:g} s an image on each of {options.label_workers} labelling workers, "
        f"{options.frame_seconds:g} s a frame on each of {options.train_workers} training workers, {options.cores} cores"
        + (f", {options.pair_rate:g} frames a second of a core for build-pairs" if options.pair_rate else "")
    )
    for name, frames in (("nuScenes", NUSCENES), ("a thousand times as many", 1000 * NUSCENES)):
        print(f"\n{name}: {frames:,} frames, {frames * options.cameras:,} images")
        for stage, disk, duration in table(frames, rates, options):
            print(f"  {stage:12} {disk:>14}   {duration}")


if __name__ == "__main__":
    main()
